"""p-values below what a simulation can count: a generalised Pareto tail fitted to its largest values.

Beyond a high threshold, the excess of almost any law is nearly generalised Pareto (Pickands; Balkema and de Haan). It
is fitted to the largest 250 draws by probability-weighted moments and used only where no draw reaches the observation.
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
        """The probability of reaching x, for x >= start."""
        excess = np.maximum(np.asarray(x) - self.start, 0.0) / self.scale
        if self.shape == 0:
            return self.share * np.exp(-excess)
        return self.share * (1 + self.shape * excess) ** (-1 / self.shape)


def fitted_tail(null: Float[np.ndarray, " draws"]) -> Tail | None:
    """The tail of a null, from its largest draws; None where there are too few, or they are all alike."""
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
    if shape <= 0:
        return Tail(start, share, 0.0, a0)
    return Tail(start, share, shape, 2 * a0 * a1 / room)


def tail_p(observed: Number, null: Float[np.ndarray, " draws"]) -> Number:
    """P(null >= observed): (1 + #)/(B + 1), and where # = 0 the fitted tail if that is smaller.

    Returns p in the shape of `observed`, at least 10⁻²/(B + 1); falls with `observed`; NaN stays NaN. NaN draws (lists
    that have no score) are left out. Raises BadRequest if no draw is finite.
    """
    finite = null[np.isfinite(null)]
    p = np.asarray(monte_carlo_p(observed, finite).value)
    tail = fitted_tail(finite)
    if tail is None:
        return p[()]
    statistic = np.asarray(observed, dtype=np.float64)
    floor = 10.0**-DECADES / (len(finite) + 1)
    beyond = statistic > finite.max()
    fitted = np.maximum(tail.reaches(np.where(beyond, statistic, tail.start)), floor)
    return np.where(beyond, np.minimum(p, fitted), p)[()]
