"""p-values below what a simulation can count: a generalised Pareto tail fitted to its largest values.

Beyond a high threshold, the excess of almost any law is nearly generalised Pareto (Pickands; Balkema and de Haan). It
is fitted to the largest 250 draws by probability-weighted moments and used where fewer than ten draws reach the
observation.
Two restraints keep it from claiming too much: a shape below 0, which would put an end to the tail and give p = 0, is
taken as 0 (exponential); and p goes no further than two decades below 1/(B + 1).

How often p <= α beyond the draws, over α, averaged over nulls of 2000 draws, down to α = 0.03/B: coherence of random
lists of the bundled model 1.0–1.3 (against 120,000 draws); exponential and Gumbel 0.8, normal, beta and uniform under
0.4 (cautious); log-normal and Student's t of 8 degrees 1.5–2.3, at two decades 2.7–3.4 (too bold).

Source: Knijnenburg et al. 2009 (fewer permutations, more accurate p-values); Hosking and Wallis 1987 (moments);
`docs/theory/scores.md`, equation 12.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.linalg.chance.estimate import Number, monte_carlo_p

# Knijnenburg et al. take 250 of their 1000 … 10⁴ permutations; of few draws no more than a tenth is a tail.
EXCESSES, LARGEST_SHARE = 250, 0.1
# Of draws that reach an observation, so many are counted. One or two say little of how many there would be in another
# simulation; the fit to all of the largest varies a fifth less, and does not tie neighbours.
COUNTED = 10
# Fewer excesses than this determine no shape.
FEWEST = 30
# How far below 1/(B + 1) the fit is believed: measured in tests/linalg/chance/test_pareto_tail.py.
DECADES = 2


@dataclass(frozen=True)
class Tail:
    """P(T >= x) = share · (1 + shape·(x − start)/scale)^(−1/shape) for x beyond `start`; exponential for shape 0."""

    start: float
    share: float
    shape: float
    scale: float

    def reaches(self, x: Number) -> Number:
        """The probability of reaching x, for x >= start; 0 beyond the end that a shape below 0 has."""
        excess = np.maximum(np.asarray(x) - self.start, 0.0) / self.scale
        if self.shape == 0:
            return self.share * np.exp(-excess)
        return self.share * np.maximum(1 + self.shape * excess, 0.0) ** (-1 / self.shape)


def fitted_tail(null: Float[np.ndarray, " draws"], *, ends: bool = False) -> Tail | None:
    """The tail of a null, from its largest draws; None where there are too few, or they are all alike.

    A shape below 0 is taken as 0 unless the tail may have an end (`ends`).
    """
    number = int(min(EXCESSES, LARGEST_SHARE * len(null)))
    if number < FEWEST:
        return None
    largest = np.sort(null)[-number - 1 :]
    start = float(largest[:2].mean())
    excess = largest[1:] - start
    # Hosking and Wallis: a0 = E Y, a1 = E Y(1 − F(Y)); shape = 2 − a0/(a0 − 2·a1), scale = 2·a0·a1/(a0 − 2·a1).
    place = (np.arange(1, number + 1) - 0.35) / number
    a0, a1 = float(excess.mean()), float(np.mean(excess * (1 - place)))
    if not a0 > 0:
        return None
    share, room = number / len(null), a0 - 2 * a1
    shape = 2 - a0 / room if room > 0 else 0.0
    if shape == 0 or (shape < 0 and not ends):
        return Tail(start, share, 0.0, a0)
    return Tail(start, share, shape, 2 * a0 * a1 / room)


def tail_p(observed: Number, null: Float[np.ndarray, " draws"]) -> Number:
    """P(null >= observed): counted where at least ten draws reach it, by a fitted tail where fewer do.

    (1 + #)/(B + 1) from # = 10 on. From 9 to 1 the fit smooths what is counted, whatever its shape, with half a draw
    added for its own error, and is at least 1/(B + 1). Beyond all draws it is restrained as said above and at least
    10⁻²/(B + 1). Returns p in the shape of `observed`; falls with `observed`; NaN stays NaN. NaN draws (lists that have
    no score) are left out. Raises BadRequest if no draw is finite.
    """
    finite = null[np.isfinite(null)]
    p = np.asarray(monte_carlo_p(observed, finite).value)
    within, beyond = fitted_tail(finite, ends=True), fitted_tail(finite)
    if within is None or beyond is None:
        return p[()]
    one = 1 / (len(finite) + 1)
    statistic = np.asarray(observed, dtype=np.float64)
    few, most = np.partition(finite, -COUNTED)[-COUNTED], finite.max()

    def smooth(x: Number) -> Number:
        return np.clip(within.reaches(x) + one / 2, one, (1 + COUNTED) * one)

    fitted = smooth(np.clip(statistic, few, most))
    further = np.clip(beyond.reaches(np.maximum(statistic, most)), 10.0**-DECADES * one, smooth(most))
    p = np.where(statistic > few, np.where(statistic > most, further, fitted), p)
    return p[()]
