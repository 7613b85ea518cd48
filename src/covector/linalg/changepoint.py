"""Where along an order does a level change, if it does?

Source: Q19 of the theory page; `docs/theory/studies.md`, equations 9–10.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator

# A level needs this many values.
SHORTEST = 5
_RESAMPLES = 500


@dataclass(frozen=True)
class Changepoint:
    """The first place of the second level, its interval, both levels, and the p of the largest contrast."""

    at: int
    low: int
    high: int
    before: float
    after: float
    p: float


def changepoint(values: Float[np.ndarray, " n"], *, draws: int, seed: Seed, level: float = 0.95) -> Changepoint:
    """The single change of mean that divides a sequence best (NaN counts as the mean).

    p is that of the largest contrast over all places among `draws` random orders, so the search is paid for; exact if
    the order does not matter. The interval is that of the place refound in sequences with the same two levels and
    resampled residuals; it means something only where p is small.
    Raises BadRequest for fewer than ten values, or draws < 1.
    """
    n = len(values)
    if n < 2 * SHORTEST or draws < 1:
        raise BadRequest(f"expected {2 * SHORTEST} values or more and draws >= 1, got {n} and {draws}")
    filled = np.where(np.isnan(values), np.nanmean(values), values).astype(np.float64)
    rng = generator(seed, "changepoint")
    observed, at = _best(filled[None])
    shuffled = rng.permuted(np.repeat(filled[None], draws, axis=0), axis=1)
    reached = int((_best(shuffled)[0] >= observed[0] - 1e-12).sum())
    place = int(at[0])
    before, after = float(filled[:place].mean()), float(filled[place:].mean())
    fitted = np.where(np.arange(n) < place, before, after)
    left = filled - fitted
    again = np.concatenate([rng.choice(part, (_RESAMPLES, len(part))) for part in (left[:place], left[place:])], axis=1)
    places = _best(fitted + again)[1]
    low, high = np.quantile(places, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Changepoint(place, int(low), int(high), before, after, (1 + reached) / (draws + 1))


def _best(rows: Float[np.ndarray, "draws n"]) -> tuple[np.ndarray, np.ndarray]:
    """Largest |difference of means| in its standard error's units (up to the common sd), and where."""
    n = rows.shape[1]
    places = np.arange(SHORTEST, n - SHORTEST + 1)
    total = np.cumsum(rows - rows.mean(axis=1, keepdims=True), axis=1)[:, places - 1]
    # With the mean taken out: mean before − mean after = total·n/(place·(n − place)), its variance ∝ the same factor.
    contrast = np.abs(total) * np.sqrt(n / (places * (n - places)))
    best = contrast.argmax(axis=1)
    return contrast[np.arange(len(rows)), best], places[best]
