"""Whether two tasks use the same feature: coupling coefficients of their features, head by head.

Source: `docs/theory/observables.md`, equation 12; theory page §1.6.
"""

from dataclasses import dataclass

import numpy as np

from covector.analyses.each_head import without_bias
from covector.analyses.head_grid import head_grid
from covector.analyses.propagate import DATA_FREE, head_features
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.model.opened import Model
from covector.render import Column, Grid, Table
from covector.study.feature import Feature
from covector.study.observable import Observable

LEVEL = 0.05


@dataclass(frozen=True)
class Coupling:
    """What a reading of one feature says about another.

    ``coefficient``  y1·y2/‖y1‖²: the expected reading of y2 where y1 reads 1, for inputs spread evenly on the sphere
    ``back``         the same the other way; the product of both is cos²
    ``cosine``       between the two
    ``r2``           share of variance of y2's reading that y1's explains, for such inputs: cos²
    """

    coefficient: float
    back: float
    cosine: float
    r2: float
    sizes: tuple[float, float]
    d: int

    def expected(self, k: float, s: float) -> tuple[float, float, float, float]:
        """(mean, least, greatest, standard deviation) of y2's reading over inputs of length s where y1 reads k.

        Exact for inputs uniform on {‖x‖ = s, x·y1 = k} (theorem 2). Raises BadRequest where that set is empty.
        """
        first, second = self.sizes
        rest = s * s - (k / first) ** 2
        if rest < 0:
            raise BadRequest(f"no input of length {s:g} reads {k:g} on a feature of length {first:g}; s >= |k|/‖y1‖")
        spread = second * np.sqrt(max(0.0, 1 - self.cosine**2) * rest)
        mean = k * self.coefficient
        return mean, mean - spread, mean + spread, float(spread / np.sqrt(self.d - 1))


def coupling(y1: Float[np.ndarray, " d"] | Feature, y2: Float[np.ndarray, " d"] | Feature) -> Coupling:
    """The coupling of two features of one space. Raises BadRequest for different spaces or a null feature."""
    if isinstance(y1, Feature) and isinstance(y2, Feature):
        y1.same_space(y2)
    a, b = (y.vector if isinstance(y, Feature) else np.asarray(y, dtype=np.float64) for y in (y1, y2))
    first, second = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not first or not second or a.shape != b.shape:
        raise BadRequest(f"expected two features of one length, neither null, got {a.shape} and {b.shape}")
    cosine = float(a @ b / (first * second))
    return Coupling(cosine * second / first, cosine * first / second, cosine, cosine**2, (first, second), len(a))


def fitted(
    y1: Float[np.ndarray, " d"], y2: Float[np.ndarray, " d"], covariance: Float[np.ndarray, "d d"]
) -> tuple[float, float]:
    """(C_Σ, r²): slope and r² of the regression of y2's reading on y1's over data with this covariance. Exact."""
    one, two, both = y1 @ covariance @ y1, y2 @ covariance @ y2, y1 @ covariance @ y2
    return float(both / one), float(both**2 / (one * two))


def couple(model: Model, first: Observable | str, second: Observable | str, *, frame: str | None = None) -> Table:
    """One row per head: how the feature of the second task at its input couples to that of the first, without data.

    Norms keep gain and centring and lose their scale, so coefficients compare the two tasks at one working point.
    p: two random directions have a cosine this large (exact, two-sided Beta law in the dimension that features live
    in), q over heads. Raises BadRequest, BadSite, NotOneToken, UnknownBasis.
    """
    view = without_bias(model, frame)
    one, two = (Observable.parse(o, view) if isinstance(o, str) else o for o in (first, second))
    names, a = head_features(view, one)
    _, b = head_features(view, two)
    found = [coupling(x, y) for x, y in zip(a, b, strict=True)]
    d = np.array([view.spec.d_model - _centred(view, name) for name in names])
    cosine = np.array([c.cosine for c in found])
    p = np.array([float(chance.p_dir(abs(c.cosine), int(n), 1)) for c, n in zip(found, d, strict=True)])
    level = float(chance.threshold(int(d.min()), 1))
    q = chance.bh(p)
    columns = [
        Column("head", names, about="layer and query head"),
        Column("coupling", np.array([c.coefficient for c in found]), "", 3, f"{two} per unit of {one}"),
        Column("back", np.array([c.back for c in found]), "", 3, f"{one} per unit of {two}"),
        Column("cos", cosine, "cos", 4, "cosine of the two features", chance=level),
        Column("r2", cosine**2, "", 3, "r² of the regression for inputs spread evenly"),
        Column("p", p, about="chance that random directions have a cosine this large"),
        Column("q", q, about="Benjamini–Hochberg over heads"),
        Column("norm_first", np.array([c.sizes[0] for c in found]), "logits", 3, f"feature length of {one}"),
        Column("norm_second", np.array([c.sizes[1] for c in found]), "logits", 3, f"feature length of {two}"),
    ]
    order = np.argsort(-np.minimum(columns[7].numbers, columns[8].numbers), kind="stable")
    same = int(np.sum((q < LEVEL) & (cosine > 0)))
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "couple", "observables": [str(one), str(two)], "policy": str(DATA_FREE),
                          "null": "two random directions, exact"},
        title=f"{view.name} · {one} against {two} · {len(names)} heads · frame {view.frame} · no data",
        says=f"At {same} of {len(names)} heads the two tasks read the same direction beyond chance, at "
        f"{int(np.sum((q < LEVEL) & (cosine < 0)))} opposite ones (false-discovery rate {LEVEL:.0%}).",
        not_says="It does not say how inputs are spread: a coefficient is the slope of a regression only for inputs "
        "even in all directions. Cosines of observables whose own read-outs are alike are large everywhere.",
        next=f'covector observe align {view.words} {one.typed} {names[int(order[0])]}',
        picture=_picture,
        key=("head",),
    ).take(order)  # fmt: skip


def _centred(view: Model, name: str) -> bool:
    layer = int(name[1:].split("H")[0])
    sub = view.spec.blocks[layer].sublayer("attn")
    return bool(sub and sub.reads and sub.reads.kind == "layer")


def _picture(table: Table) -> Grid:
    level = table.column("cos").chance_level
    return head_grid(
        list(table["head"]), np.asarray(table["cos"]), value_name="cosine of the two features", chance=level
    )
