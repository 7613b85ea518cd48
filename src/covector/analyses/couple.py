"""Whether two tasks use the same feature: coupling coefficients of their features, head by head.

Source: `docs/theory/observables.md`, equations 12 and 13; theory page §1.6.
"""

from dataclasses import dataclass

import numpy as np

from covector.analyses.each_head import without_bias
from covector.analyses.head_grid import head_grid
from covector.analyses.propagate import DATA_FREE, head_features
from covector.analyses.shared import LEVEL, random_pairs, standardised
from covector.analyses.virtual_chain import chain_of
from covector.analyses.virtual_heads import readout
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.model.opened import Model
from covector.render import Column, Grid, Table
from covector.study.feature import Feature
from covector.study.observable import Observable

# Cosines closer than this are equal: where read-outs have no freedom every draw has the task's own cosine.
TIE = 1e-12


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


def couple(
    model: Model,
    first: Observable | str,
    second: Observable | str,
    *,
    frame: str | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Table:
    """One row per head: how the feature of the second task at its input couples to that of the first, without data.

    Norms keep gain and centring and lose their scale, so coefficients compare the two tasks at one working point.
    Null: `draws` pairs of random read-outs with the cosine that the two tasks' read-outs have, read through the same
    head. A law of cosines in d_model dimensions is none: both features lie in what the head reads, d_head dimensions
    and those unevenly, and read-outs that are alike stay alike.
    ``chance`` and ``p`` are of |cos| at that head alone; ``q`` over heads, at least heads/(draws + 1) for a head by
    itself; ``p_max`` repeats the choice of the best head: max-T over atanh|cos|, standardised head by head, exact up to
    1/(draws + 1). Raises BadRequest, BadSite, NotOneToken, UnknownBasis.
    """
    if draws < 19:
        raise BadRequest(f"expected draws of at least 19, got {draws}; p is never below 1/(draws + 1)")
    view = without_bias(model, frame)
    one, two = (Observable.parse(o, view) if isinstance(o, str) else o for o in (first, second))
    names, a = head_features(view, one)
    _, b = head_features(view, two)
    found = [coupling(x, y) for x, y in zip(a, b, strict=True)]
    cosine = np.array([c.cosine for c in found])
    rho, null = _null(view, one, two, draws, seed)
    p, p_max = _chances(cosine, null)
    columns = [
        Column("head", names, about="layer and query head"),
        Column("coupling", np.array([c.coefficient for c in found]), "", 3, f"{two} per unit of {one}"),
        Column("back", np.array([c.back for c in found]), "", 3, f"{one} per unit of {two}"),
        Column("cos", cosine, "cos", 4, "cosine of the two features", chance="chance"),
        Column("chance", np.quantile(np.abs(null), 1 - LEVEL, axis=0), "", 4,
               "|cos| that random read-outs as alike stay below with 95 % at this head"),
        Column("r2", cosine**2, "", 3, "r² of the regression for inputs spread evenly"),
        Column("p", p, about="chance of such a |cos| for random read-outs as alike, at this head alone"),
        Column("q", chance.bh(p), about="Benjamini–Hochberg over heads"),
        Column("p_max", p_max, about="chance that the best of all heads is so far above"),
        Column("norm_first", np.array([c.sizes[0] for c in found]), "logits", 3, f"feature length of {one}"),
        Column("norm_second", np.array([c.sizes[1] for c in found]), "logits", 3, f"feature length of {two}"),
    ]  # fmt: skip
    order = np.argsort(-np.minimum(columns[-2].numbers, columns[-1].numbers), kind="stable")
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "couple", "observables": [str(one), str(two)], "policy": str(DATA_FREE),
                          "readouts_cos": rho, "seed": seed,
                          "null": f"pairs of random read-outs with cosine {rho:.4f}, max-T, {draws} draws"},
        title=f"{view.name} · {one} against {two} · {len(names)} heads · read-outs cos {rho:.3f} · "
        f"frame {view.frame} · no data",
        says=_says(cosine, p_max, rho),
        not_says="It does not say how inputs are spread: a coefficient is the slope of a regression only for inputs "
        "even in all directions. Random read-outs are even in all directions, those of tokens are not.",
        next=f'covector observe align {view.words} {one.typed} {names[int(order[0])]}{view.framing}',
        picture=_picture,
        key=("head",),
    ).take(order)  # fmt: skip


def _null(
    view: Model, one: Observable, two: Observable, draws: int, seed: int
) -> tuple[float, Float[np.ndarray, "draws head"]]:
    """The cosine of the two read-outs, and those of the features of random pairs with that cosine, head by head."""
    (f, sphere), (g, _) = readout(view, one), readout(view, two)
    rho = float(np.clip(f @ g / np.linalg.norm(f) / np.linalg.norm(g), -1, 1))
    A, B = random_pairs(sphere, rho, draws, seed)
    chain, _ = chain_of(view)
    found = np.empty((draws, chain.n_heads))
    for head in range(chain.n_heads):
        X = chain.operator((head,)).T
        Y, Z = A @ X, B @ X
        sizes = np.linalg.norm(Y, axis=1) * np.linalg.norm(Z, axis=1)
        found[:, head] = np.divide(np.vecdot(Y, Z), sizes, out=np.zeros(draws), where=sizes > 0)
    return rho, found


def _chances(
    cosine: Float[np.ndarray, " head"], null: Float[np.ndarray, "draws head"]
) -> tuple[Float[np.ndarray, " head"], Float[np.ndarray, " head"]]:
    """Monte-Carlo p of every head alone, and of the best of all heads; never 0."""
    C = np.concatenate([cosine[None], null])
    p = np.mean(np.abs(C) >= np.abs(cosine) - TIE, axis=0)
    t = standardised(C[:, :, None])[:, :, 0]
    return p, np.mean(np.max(t, axis=1, keepdims=True) >= t[0], axis=0)


def _says(cosine: Float[np.ndarray, " head"], p_max: Float[np.ndarray, " head"], rho: float) -> str:
    """At how many heads the features are more alike than their read-outs make them."""
    same, opposite = (int(np.sum((p_max < LEVEL) & (cosine * sign > 0))) for sign in (1, -1))
    if abs(rho) > 1 - TIE:
        return f"The two read-outs are one (cos {rho:.0f}), so their features are one at every head, whatever it reads."
    return (
        f"At {same} of {len(cosine)} heads the two tasks read the same direction beyond what read-outs with cosine "
        f"{rho:.2f} make of them, at {opposite} opposite ones, after paying for the choice among all heads "
        f"({LEVEL:.0%})."
    )


def _picture(table: Table) -> Grid:
    return head_grid(list(table["head"]), np.asarray(table["cos"]), value_name="cosine of the two features")
