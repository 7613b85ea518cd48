"""Whether two tasks use the same feature: coupling coefficients of their features, head by head.

Source: `docs/theory/observables.md`, equations 12 and 13; theory page §1.6.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import overload

import numpy as np

from covector.analyses.couple_null import chances, null_cosines
from covector.analyses.couple_readings import ratio, within
from covector.analyses.couple_table import Coupled, Data, couple_table
from covector.analyses.each_head import without_bias
from covector.analyses.propagate import head_features
from covector.axes import Float
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.propagation.anatomy import components
from covector.render import Table
from covector.run.prompts import Pair
from covector.study.feature import Feature
from covector.study.observable import Observable


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


@overload
def couple(model: Feature, first: Feature, /) -> Coupling: ...


@overload
def couple(
    model: Model,
    first: Observable | str,
    second: Observable | str,
    *others: Observable | str,
    frame: str | None = None,
    pairs: Sequence[Pair] = (),
    at: str = "end",
    token: str = "all",
    picture: str = "auto",
    draws: int = 2000,
    seed: int = 0,
) -> Table: ...


def couple(
    model: Model | Feature,
    first: Observable | Feature | str,
    second: Observable | str | None = None,
    *others: Observable | str,
    frame: str | None = None,
    pairs: Sequence[Pair] = (),
    at: str = "end",
    token: str = "all",
    picture: str = "auto",
    draws: int = 2000,
    seed: int = 0,
) -> Table | Coupling:
    """Do tasks use the same features? Of two features their `Coupling`; of a model and two or more tasks a table.

    ``couple(f1, f2)`` is ``coupling(f1, f2)``. ``couple(model, task, task, …)`` has one row per head and pair of tasks:
    how the feature of the pair's second task at the head's input couples to that of its first, without data. Norms keep
    gain and centring and lose their scale, so coefficients compare the tasks at one working point. ``low``, ``high``:
    theorem 2's mean ± 1.96 deviations for inputs of length √d that read ‖y1‖ on the first feature, per unit of it;
    ``least``, ``most`` its extremes (NaN where no norm stands in front of the head).
    Null: `draws` sets of random read-outs with the cosines that the tasks' read-outs have, read through the same
    head. A law of cosines in d_model dimensions is none: the features lie in what the head reads, d_head dimensions
    and those unevenly, and read-outs that are alike stay alike.
    ``chance`` and ``p`` are of |cos| in that row alone; ``q`` over rows, at least rows/(draws + 1) for a row by itself;
    ``p_max`` repeats the choice of the best row: max-T over atanh|cos|, standardised row by row, exact up to
    1/(draws + 1).
    With `pairs` of prompts (frame raw) also: ``data``, C_Σ of the clean prompts' inputs, which is the slope of
    regression there, with its ``r2_data`` (fit); ``slope`` and ``r2_slope`` measured on the inputs of the corrupt
    prompts that no clean one has; ``within``, the share of all inputs in theorem 2's 95 % given their own length and
    first reading; and ``ratio``, the second task's attribution of the difference clean − corrupt through this head over
    the first's, read at the slot `at` (accounting). `token`: the slot whose input is read, or ``all`` but the first
    position. `picture`: ``heads`` (heat map of cosines), ``readings`` or ``attributions`` (scatter; these need pairs).
    Raises BadRequest, BadSite, NotOneToken, UnknownBasis.
    """
    if isinstance(model, Feature) or isinstance(first, Feature):
        if not (isinstance(model, Feature) and isinstance(first, Feature)) or second is not None or others:
            raise BadRequest("expected couple(feature, feature), or couple(model, task, task, …); a mixture came")
        return coupling(model, first)
    if second is None:
        raise BadRequest("expected a model and at least two tasks, got one task; name another to compare it with")
    if draws < 19:
        raise BadRequest(f"expected draws of at least 19, got {draws}; p is never below 1/(draws + 1)")
    view = without_bias(model, frame)
    tasks = [Observable.parse(o, view) if isinstance(o, str) else o for o in (first, second, *others)]
    _check(view, pairs, picture)
    found = [head_features(view, task) for task in tasks]
    names, features = found[0][0], np.stack([f for _, f in found])
    data = _measured(view, tasks, names, features, pairs, at, token) if pairs else None
    return couple_table(_coupled(view, tasks, names, features, draws, seed), data, picture)


def _check(view: Model, pairs: Sequence[Pair], picture: str) -> None:
    """Refuse what cannot be done before anything is computed."""
    if picture not in ("auto", "heads", "readings", "attributions"):
        raise BadRequest(f"picture: expected auto, heads, readings or attributions, got '{picture}'")
    if picture in ("readings", "attributions") and not pairs:
        raise BadRequest(f"picture '{picture}' shows prompts, none came; give --template and --fill, or --prompts FILE")
    if picture == "attributions" and not any(pair.differs for pair in pairs):
        raise BadRequest("picture 'attributions': expected prompts that differ, both sides are the same; use readings")
    if pairs and str(view.frame) != "raw":
        raise BadRequest(f"with prompts the model runs as it is: expected frame raw, got {view.frame}")


def _coupled(
    view: Model, tasks: list[Observable], names: list[str], features: Float[np.ndarray, "task head d"], draws: int,
    seed: int,
) -> Coupled:  # fmt: skip
    """The numbers that need no prompts, for every pair of tasks and head."""
    which = tuple(combinations(range(len(tasks)), 2))
    pairs = [[coupling(a, b) for a, b in zip(features[i], features[j], strict=True)] for i, j in which]
    rho, every = null_cosines(view, tasks, draws, seed)
    null = np.stack([every[:, i, j] for i, j in which], axis=1)
    cosine = np.array([[c.cosine for c in row] for row in pairs])
    p, p_max = chances(cosine.ravel(), null.reshape(draws, -1))
    free = _free(view)
    expected = np.array([[_interval(c, n) for c, n in zip(row, free, strict=True)] for row in pairs])
    return Coupled(
        view, tuple(tasks), tuple(names), which,
        np.array([[c.coefficient for c in row] for row in pairs]),
        np.array([[c.back for c in row] for row in pairs]),
        cosine, np.array([[c.sizes for c in row] for row in pairs]), expected, null,
        p.reshape(cosine.shape), p_max.reshape(cosine.shape), rho, draws, seed,
    )  # fmt: skip


def _free(view: Model) -> list[int | None]:
    """Dimensions in which every head's normed input lies: one less where its norm centres, None without a norm."""
    return [
        None if c.sub.reads is None else view.spec.d_model - (c.sub.reads.kind == "layer")
        for c in components(view.spec)
        if c.attn
        for _ in range(c.attn.n_heads)
    ]


def _interval(found: Coupling, free: int | None) -> tuple[float, float, float]:
    """(deviation, least, most) of the second reading per unit of the first, for x̂ of length √d that reads ‖y1‖."""
    if free is None:
        return float("nan"), float("nan"), float("nan")
    k = found.sizes[0]
    _, least, most, deviation = replace(found, d=free).expected(k, np.sqrt(found.d))
    return deviation / k, least / k, most / k


def _measured(
    view: Model, tasks: list[Observable], names: list[str], features: Float[np.ndarray, "task head d"],
    pairs: Sequence[Pair], at: str, token: str,
) -> Data:  # fmt: skip
    """The numbers that prompts give, for every pair of tasks and head."""
    # Imported here: it brings torch, which couplings from weights alone do without.
    from covector.analyses.couple_data import attributions, readings

    which = tuple(combinations(range(len(tasks)), 2))
    clean, other = readings(view, features, pairs, token)
    differs = any(pair.differs for pair in pairs)
    direct = attributions(view, tasks, pairs, names, at) if differs else np.full(features.shape[:2], np.nan)
    free = [view.spec.d_model if n is None else n for n in _free(view)]
    fits = [(*clean.regression(i, j), *other.regression(i, j)) for i, j in which]
    return Data(
        clean, other, *(np.stack(column) for column in zip(*fits, strict=True)),
        within=np.stack([within((clean, other), i, j, features, free) for i, j in which]),
        direct=direct, ratio=np.stack([ratio(direct[i], direct[j]) for i, j in which]),
        pairs=len(pairs), at=at, token=token,
    )  # fmt: skip
