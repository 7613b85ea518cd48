"""Is one token hit, and no other? A square of effects, edit by token, judged row by row.

Source: Q14 of the theory page; `docs/theory/edits.md`, equation 18.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float, Int
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.interval import half_width

SHARE = 0.95
# An other token is broken too when it loses more than half the share that the target loses; asked of tokens that have
# at least a tenth of what the target has to lose.
HALF, TENTH = 0.5, 0.1
RESAMPLES = 400


@dataclass(frozen=True, eq=False)
class Judged:
    """One edit on its own token and on the others.

    ``own`` the mean effect on its token, ``low`` the lower end of its 95 % interval; ``others`` the median over the
    others; ``ratio`` own over |others|, and its 95 % interval over measurements (bootstrap). ``band`` is what `SHARE`
    of the others stay within, ``worst`` the index of the other that is hit most. ``p``: among the edits made for other
    tokens, those that hit this one as much; ``least_p`` is the least that there are enough of them for. ``broken``
    counts the others that lose more than half as large a share of what they had (`HALF`, `TENTH`; none where the token
    itself loses nothing). ``level``: what the
    token hit most beside the target stays within for `SHARE` of the other edits; ``beyond`` counts the others that
    this edit hits beyond it (one edit in twenty does so by itself).
    """

    own: float
    low: float
    others: float
    ratio: float
    ratio_low: float
    ratio_high: float
    band: tuple[float, float]
    worst: int
    p: float
    least_p: float
    level: float
    beyond: int
    broken: int

    @property
    def hit(self) -> bool:
        """Whether the token itself is above the others' band, interval and all, and by no edit for another."""
        return self.low > self.band[1] and self.p <= max(1 - SHARE, self.least_p) + 1e-12

    @property
    def alone(self) -> bool:
        """Whether it is hit, and no other token loses half as much."""
        return self.hit and not self.broken


def judge(
    each: Float[np.ndarray, "edit token n"], had: Float[np.ndarray, " token"], edit: int, *, seed: Seed = 0
) -> Judged:
    """Judge one row of effects measured n times each; NaN where an edit was not measured on a token.

    `had` is what each token has to lose. Edits and tokens are numbered alike. Null: the same edits made for the other
    tokens, so what any such edit does to a token that it is not about.
    """
    mean = each.mean(axis=2)
    here = mean[edit]
    rest = np.flatnonzero(np.isfinite(here) & (np.arange(len(here)) != edit))
    own, others = float(here[edit]), here[rest]
    away = mean.copy()
    np.fill_diagonal(away, np.nan)
    column = away[np.isfinite(away[:, edit]), edit]
    largest = _largest(np.delete(np.delete(away, edit, axis=0), edit, axis=1))
    level = upper(largest)
    middle = float(np.median(others))
    low, high = _interval(each[edit], edit, rest, seed)
    return Judged(
        own, own - float(half_width(each[edit, edit])), middle, _ratio(own, middle), low, high,
        (-upper(-others), upper(others)), int(rest[np.argmax(others)]),
        (1 + int(np.sum(column >= own))) / (1 + len(column)), 1 / (1 + len(column)),
        level, int(np.sum(np.abs(others) > level)),
        int(np.sum((others / had[rest] > HALF * own / had[edit]) & (had[rest] >= TENTH * had[edit]))) * (own > 0),
    )  # fmt: skip


def upper(values: Float[np.ndarray, " n"], share: float = SHARE) -> float:
    """The level that one more value of the same kind stays at or below with at least `share`; the largest if few.

    For both ends of a band `share` is that of each end. Exact for exchangeable values where there are enough of them
    (19 for 95 %).
    """
    ordered = np.sort(values)
    place = int(np.ceil(share * (len(ordered) + 1) - 1e-9)) - 1
    return float(ordered[min(place, len(ordered) - 1)])


def _largest(away: Float[np.ndarray, "edit token"]) -> Float[np.ndarray, " edit"]:
    """Each edit's largest effect, up or down, on a token that it is not about."""
    return np.nanmax(np.abs(away), axis=1)


def _ratio(own: float, others: float) -> float:
    """NaN where the token itself is not hit."""
    if own <= 0:
        return float("nan")
    return own / abs(others) if others else float("inf")


def _interval(row: Float[np.ndarray, "token n"], edit: int, rest: Int[np.ndarray, " k"], seed: Seed):
    """95 % of the ratio over resampled measurements, each token's own."""
    rng, n = generator(seed, "selectivity", edit), row.shape[1]
    found = []
    for _ in range(RESAMPLES):
        own = row[edit, rng.integers(n, size=n)].mean()
        some = np.take_along_axis(row[rest], rng.integers(n, size=(len(rest), n)), axis=1).mean(axis=1)
        found.append(_ratio(float(own), float(np.median(some))))
    kept = np.array(found)
    low, high = np.quantile(kept[~np.isnan(kept)], [0.025, 0.975], method="nearest") if np.isfinite(kept).any() else (
        float("nan"), float("nan"))  # fmt: skip
    return float(low), float(high)
