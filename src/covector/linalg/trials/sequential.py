"""Stopping early: how large must a statistic be at each look so that all looks together err no more often than one?

Errors are spent as information grows (Lan and DeMets), so neither the number of looks nor their times have to be fixed
beforehand, as long as they do not depend on what was seen. Statistics are standard normal at each look under the null,
with independent increments: means of independent episodes. Two-sided and symmetric: each side spends alpha/2.

Source: `docs/theory/rollouts.md`, equations 21–24; Armitage, McPherson and Rowe 1969 (recursion), Lan and DeMets,
Biometrika 70 (1983), Jennison and Turnbull, "Group Sequential Methods" (2000), chapters 7, 8 and 19.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed
from covector.linalg.quadrature import gauss_legendre
from covector.linalg.trials.crossing import crossing
from covector.linalg.trials.paired import sign_flip_p
from covector.linalg.trials.resample import DRAWS

KINDS = ("o'brien-fleming", "pocock")
# No boundary beyond: the normal tail there is 1e-19, below what the recursion resolves.
FARTHEST = 9.0
# Pieces of two standard deviations of the narrower increment with so many nodes: error below 1e-12.
_NODES, _PIECE = 12, 2.0
# A nominal p with fewer draws than this below it is not judged by drawn signs.
_RESOLVED = 20

Fractions = Float[np.ndarray, " k"]


@dataclass(frozen=True, eq=False)
class Looks:
    """At `fraction` of the information stop if |z| ≥ `bound`, or p ≤ `nominal`; `spent` of alpha up to there."""

    fraction: Fractions
    bound: Fractions
    nominal: Fractions
    spent: Fractions


def looks(fractions: Fractions, alpha: float = 0.05, kind: str = KINDS[0]) -> Looks:
    """Boundaries at looks with these fractions of the full information (episodes over planned episodes), rising to 1.

    Later looks do not change earlier boundaries, so a plan can be made look by look. `nominal` is the two-sided p that
    a test of all episodes so far is compared with (random signs give none below 1/(draws + 1)). Exact to 1e-8 for
    normal statistics; ∞ (and nominal 0) where so little is spent that nothing could reach it. Raises BadRequest for
    fractions that do not rise within (0, 1], closer than 1/2000, or an unknown kind.
    """
    spent = spending(fractions, alpha, kind)
    steps = np.diff(spent, prepend=0.0) / 2
    bounds: list[float] = []
    path = _Path(0.0)
    for fraction, step in zip(fractions.tolist(), steps.tolist(), strict=True):
        here = path.tail_at(fraction)
        if here(FARTHEST) >= step:
            bounds.append(float("inf"))
        else:
            bounds.append(crossing(lambda z, f=here, s=step: f(z) - s, 0.0, FARTHEST, 1e-11))
        path = path.on(fraction, bounds[-1])
    bound = np.array(bounds)
    return Looks(fractions, bound, 2 * ndtr(-bound), spent)


def spending(fractions: Fractions, alpha: float = 0.05, kind: str = KINDS[0]) -> Fractions:
    """Two-sided alpha spent up to each fraction t: 4(1 − Φ(z_{1−α/4}/√t)), or α ln(1 + (e − 1)t) (equation 22)."""
    steps = np.diff(fractions, prepend=0.0)
    if not len(fractions) or np.any(steps < 1 / 2000) or fractions[-1] > 1 + 1e-12 or not 0 < alpha < 1:
        raise BadRequest(
            "expected fractions of the information that rise within (0, 1] by 1/2000 or more and alpha in (0, 1), got "
            f"{fractions.tolist()[:5]} and {alpha:g}"
        )
    if kind not in KINDS:
        raise BadRequest(f"expected {' or '.join(KINDS)}, got {kind!r}")
    if kind == KINDS[0]:
        return 4 * ndtr(ndtri(alpha / 4) / np.sqrt(fractions))
    return alpha * np.log1p((np.e - 1) * fractions)


def exit_probabilities(bounds: Fractions, fractions: Fractions, drift: float = 0.0) -> tuple[Fractions, Fractions]:
    """Chance to leave ±bounds for the first time at each look, above and below (equation 21).

    `drift` is the mean of z at full information; z at fraction t has mean drift·√t. Exact to 1e-10. Their sum is the
    power at this drift, and the size at drift 0.
    """
    path, up, down = _Path(drift), [], []
    for bound, fraction in zip(bounds.tolist(), fractions.tolist(), strict=True):
        up.append(path.tail_at(fraction)(bound))
        down.append(path.tail_at(fraction, below=True)(bound))
        path = path.on(fraction, bound)
    return np.array(up), np.array(down)


def p_at_look(differences: Float[np.ndarray, " n"], nominal: float, *, draws: int = DRAWS, seed: Seed = 0) -> float:
    """Two-sided p of the pairs so far, to be compared with a look's `nominal`: of all signs where these can be counted.

    Where signs have to be drawn, and too few of them would lie below `nominal`, Hoeffding's bound 2·exp(−T²/(2Σd²)) of
    random signs stands for p: never too small, and below any nominal p if the effect is large enough. Which of them is
    taken follows from `nominal` alone, so the level holds. Raises BadRequest as `sign_flip_p`.
    """
    found = sign_flip_p(differences, draws=draws, seed=seed)
    if not found.draws or nominal >= _RESOLVED / draws:
        return float(found.value)
    z2 = float(differences.sum()) ** 2 / float(differences @ differences)
    return min(1.0, 2 * float(np.exp(-z2 / 2)))


def in_own_errors(plan: Looks, pairs: Float[np.ndarray, " k"], *, draws: int = DRAWS) -> Looks:
    """The same looks with bounds on mean/(sd/√n) in place of T/√Σd², by which `p_at_look` judges n pairs.

    With their own sd the differences of a large effect have a larger z than their signs, which cannot pass √n:
    z² = n·c²/(n − c²), ∞ where c² ≥ n. An estimate with its own standard error needs these (`stopped`).
    """
    sure = plan.nominal >= _RESOLVED / draws
    with np.errstate(divide="ignore"):
        c2 = np.where(sure, plan.bound**2, 2 * (np.log(2) - np.log(plan.nominal)))
        bound = np.sqrt(np.where(c2 < pairs, pairs * c2 / np.maximum(pairs - c2, 1e-300), np.inf))
    return Looks(plan.fraction, bound, plan.nominal, plan.spent)


@dataclass(frozen=True)
class Stopped:
    """After stopping at a look: two-sided `p`, and median-unbiased `middle` with an interval, in the effect's unit."""

    p: float
    middle: float
    low: float
    high: float


def stopped(estimate: float, error: float, plan: Looks, look: int, level: float = 0.95) -> Stopped:
    """p and interval that allow for stopping at `look` (from 0) of a plan that was not crossed before.

    Stage-wise ordering (equations 23 and 24): leaving earlier on one side is more extreme on that side, later looks do
    not matter. Exact for normal statistics with known variance; `error` is the standard error of `estimate` at this
    look. An estimate inside the boundary is one whose experiment ended here. Raises BadRequest for a look that the plan
    does not have, or an error that is not above 0.
    """
    if not 0 <= look < len(plan.fraction) or not error > 0 or not 0 < level < 1:
        raise BadRequest(
            f"expected a look of 0–{len(plan.fraction) - 1}, an error above 0, a level in (0, 1), "
            f"got {look}, {error:g}, {level:g}"
        )
    z, fractions = estimate / error, plan.fraction[: look + 1]
    unit = error * float(np.sqrt(fractions[-1]))

    def above(drift: float) -> float:
        """Chance of something at least as far up; rises with the drift."""
        path, up, down = _Path(drift), 0.0, 0.0
        for fraction, bound in zip(fractions[:-1].tolist(), plan.bound[:look].tolist(), strict=True):
            up += path.tail_at(fraction)(bound)
            down += path.tail_at(fraction, below=True)(bound)
            path = path.on(fraction, bound)
        last = float(fractions[-1])
        return up + path.tail_at(last)(z) if z >= 0 else 1 - down - path.tail_at(last, below=True)(-z)

    def drift_of(share: float) -> float:
        middle = z / float(np.sqrt(fractions[-1]))
        reach = 4.0 / float(np.sqrt(fractions[0]))
        low, high = middle - reach, middle + reach
        while above(low) > share:
            low -= reach
        while above(high) < share:
            high += reach
        return crossing(lambda d: above(d) - share, low, high, 1e-9)

    p_up = above(0.0)
    ends = [unit * drift_of(share) for share in (0.5, (1 - level) / 2, (1 + level) / 2)]
    return Stopped(float(min(1.0, 2 * min(p_up, 1 - p_up))), *ends)


class _Path:
    """Paths of the score S(t) = z√t that have not left: their density at the last look, on nodes."""

    def __init__(self, drift: float) -> None:
        self.drift, self.time = drift, 0.0
        self.nodes, self.mass = np.zeros(1), np.ones(1)

    def tail_at(self, time: float, below: bool = False):
        """z ↦ chance not to have left before and to have z(time) ≥ z (with `below`: ≤ −z)."""
        width, side = np.sqrt(time - self.time), -1.0 if below else 1.0
        centre = side * (self.nodes + self.drift * (time - self.time))

        def tail(z: float) -> float:
            return float(self.mass @ ndtr((centre - z * np.sqrt(time)) / width))

        return tail

    def on(self, time: float, bound: float) -> "_Path":
        """The paths that are inside ±bound at `time`."""
        next_path = _Path(self.drift)
        next_path.time, step = time, time - self.time
        width = float(np.sqrt(step))
        reach, mean = FARTHEST * np.sqrt(time), self.drift * time
        edge = min(bound, 1e3) * np.sqrt(time)
        low, high = max(-edge, mean - reach), min(edge, mean + reach)
        if low >= high:
            next_path.nodes, next_path.mass = np.zeros(1), np.zeros(1)
            return next_path
        pieces = int(np.ceil((high - low) / (_PIECE * width)))
        nodes, weights = gauss_legendre(_NODES)
        size = (high - low) / pieces
        next_path.nodes = (low + size * (np.arange(pieces)[:, None] + nodes)).ravel()
        distance = next_path.nodes[:, None] - self.nodes - self.drift * step
        density = np.exp(-0.5 * (distance / width) ** 2) @ self.mass / (width * np.sqrt(2 * np.pi))
        next_path.mass = density * np.tile(size * weights, pieces)
        return next_path
