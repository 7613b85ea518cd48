"""Power: which true difference between two arms on the same seeds would be found, with how many seeds?

Source: `docs/theory/rollouts.md`, equations 19 and 20.
"""

import numpy as np
from scipy.special import ndtr, stdtrit
from scipy.stats import binom, chi

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.quadrature import gauss_legendre
from covector.linalg.trials.crossing import crossing

ALPHA, POWER = 0.05, 0.8
# For the law of an estimated sd, which is some ten of its own widths wide: error below 1e-12 from n = 3.
_NODES = 100


def power_of_difference(
    difference: Float[np.ndarray, "*batch"], sd: float, n: int, alpha: float = ALPHA
) -> Float[np.ndarray, "*batch"]:
    """Chance that a two-sided paired test at level alpha finds a true mean difference; `sd` of single differences.

    Exact for Student's paired test of normal differences; sign flips are the same test but for terms of order 1/n
    (equation 19). Raises BadRequest for n < 2, sd ≤ 0 or alpha outside (0, 1).
    """
    _check(n, alpha)
    if not sd > 0:
        raise BadRequest(
            f"expected differences that vary, got an sd of {sd:g}; take it from a control, not from the sham"
        )
    cut = stdtrit(n - 1, 1 - alpha / 2)
    shift = np.asarray(difference, dtype=np.float64) / sd * np.sqrt(n)
    # Over the law of the estimated sd, in units of the true one: scipy's noncentral t is NaN for some arguments.
    low, high = chi.ppf(1e-16, n - 1), chi.isf(1e-16, n - 1)
    nodes, weights = gauss_legendre(_NODES)
    estimated = low + (high - low) * nodes
    mass = (high - low) * weights * chi.pdf(estimated, n - 1)
    limit = cut * estimated / np.sqrt(n - 1)
    return np.asarray((ndtr(shift[..., None] - limit) + ndtr(-shift[..., None] - limit)) @ mass)


def detectable_difference(sd: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true mean difference that is found with this power, in the unit of `sd`; errors as above."""
    _check_power(power, alpha)

    def lacking(size: float) -> float:
        return float(power_of_difference(np.array(size * sd), sd, n, alpha)) - power

    most = 1.0
    while lacking(most) < 0:
        most *= 2
    return sd * crossing(lacking, 0.0, most, 1e-10)


def power_of_shares(lost: float, gained: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that McNemar's exact test finds a change of a share of successes (equation 20); exact.

    A seed is `lost` (success becomes failure) or `gained` with these probabilities; the difference is gained − lost.
    The exact test keeps below alpha: with few changes its power is 0. Raises BadRequest for shares that are none.
    """
    _check(n, alpha)
    if not (lost >= 0 and gained >= 0 and lost + gained <= 1 + 1e-12):
        raise BadRequest(f"expected shares of seeds that change, at most 1 together, got {lost:g} and {gained:g}")
    changed = min(lost + gained, 1.0)
    if changed == 0:
        return 0.0
    many = np.arange(n + 1)
    cut = _rejects_up_to(many, alpha)
    share = lost / changed
    found = np.where(cut >= 0, binom.cdf(cut, many, share) + binom.sf(many - cut - 1, many, share), 0.0)
    return float(np.clip(binom.pmf(many, n, changed) @ found, 0.0, 1.0))


def detectable_shares(n: int, gained: float = 0.0, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest fall of a share of successes that is found with this power, where `gained` of seeds change back.

    In shares: lost − gained. NaN where even losing every other seed is not found. Errors as above.
    """
    _check_power(power, alpha)

    def lacking(lost: float) -> float:
        return power_of_shares(lost, gained, n, alpha) - power

    if lacking(1.0 - gained) < 0:
        return float("nan")
    return crossing(lacking, gained, 1.0 - gained, 1e-10) - gained if lacking(gained) < 0 else 0.0


def least_p_of_rank(controls: int) -> float:
    """The smallest p that a rank among so many controls can give, 1/(controls + 1)."""
    return 1 / (controls + 1)


def _rejects_up_to(many: np.ndarray, alpha: float) -> np.ndarray:
    """The largest c with 2·P(Binomial(many, ½) ≤ c) ≤ alpha; −1 where there is none."""
    c = binom.ppf(alpha / 2, many, 0.5)
    # ppf is the smallest c that reaches alpha/2; all below it, and it itself when it is reached exactly, reject.
    exactly = 2 * binom.cdf(c, many, 0.5) <= alpha * (1 + 1e-12)
    return np.where(exactly, c, c - 1)


def _check(n: int, alpha: float) -> None:
    if n < 2 or not 0 < alpha < 1:
        raise BadRequest(f"expected two or more seeds and a level alpha in (0, 1), got {n} and {alpha:g}")


def _check_power(power: float, alpha: float) -> None:
    if not alpha < power < 1:
        raise BadRequest(f"expected a power between alpha = {alpha:g} and 1, got {power:g}")
