"""Time to failure: how many episodes are still going, and does an arm fail earlier?

An episode is a time and whether it failed then; the others are known to have lasted so long. An episode that ended
well is not at risk any more, and did not fail: give it the horizon as its time, or "not failed" means "if nothing else
had ended it", which is not what an arm did.

Source: `docs/theory/rollouts.md`, equations 8–11; Kaplan–Meier 1958, Kalbfleisch–Prentice 1980 (log-log interval),
Mantel 1966 (log-rank), O'Brien–Fleming, Biometrics 43 (1987) (scores of pairs).
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.linalg.chance.estimate import Estimate
from covector.linalg.chance.streams import Seed
from covector.linalg.trials.paired import sign_flip_p
from covector.linalg.trials.resample import DRAWS, LEVEL, bca, counts, in_range

Times = Float[np.ndarray, " n"]
Failed = Bool[np.ndarray, " n"]
First = tuple[Times, Failed]
Second = tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"]]


@dataclass(frozen=True, eq=False)
class Survival:
    """A Kaplan–Meier curve: the share that has not failed after each distinct time of a failure, with its interval.

    Before the first `time` the share is 1. `at_risk` episodes were still going just before, `failures` ended then.
    """

    time: Float[np.ndarray, " k"]
    share: Float[np.ndarray, " k"]
    low: Float[np.ndarray, " k"]
    high: Float[np.ndarray, " k"]
    at_risk: Float[np.ndarray, " k"]
    failures: Float[np.ndarray, " k"]

    def at(self, times: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
        """The share that has not failed at these times, a failure at the very time included."""
        return np.append(1.0, self.share)[np.searchsorted(self.time, times, side="right")]


def kaplan_meier(times: Times, failed: Failed, level: float = LEVEL) -> Survival:
    """The curve with pointwise intervals, Greenwood's variance on the scale log(−log S) (equation 8).

    Asymptotic. Where nobody is left the variance is not defined: the interval then runs from 0 to the upper end of the
    step before. Raises BadRequest for times that are negative or not finite, no episodes, or a level outside (0, 1).
    """
    _check(times, failed)
    in_range(1, level)
    at, risk, ends = _table(times, failed)
    share = np.cumprod(1 - ends / risk)
    inside = share > 0
    spread = np.cumsum(np.divide(ends, risk * (risk - ends), out=np.zeros(len(at)), where=inside))
    z = float(ndtri((1 + level) / 2))
    log = np.log(np.where(inside, share, 0.5))
    width = z * np.sqrt(spread) / np.abs(log)
    low, high = np.where(inside, np.exp(log * np.exp(width)), 0.0), np.exp(log * np.exp(-width))
    if len(at) and not inside[-1]:
        high[-1] = high[-2] if len(at) > 1 else 1.0
    return Survival(at, share, low, high, risk, ends)


@dataclass(frozen=True)
class LogRank:
    """`excess`: failures of the second arm beyond those expected if both fail at one rate; its `z`, two-sided `p`."""

    excess: float
    z: float
    p: float


def log_rank(first: First, second: Second) -> LogRank:
    """Do two independent arms fail at one rate? By the normal law (Mantel), asymptotic.

    Arms that share their seeds are not independent: `paired_log_rank`. p = 1 where nobody fails.
    """
    _check(*first)
    _check(*second)
    at, risk, ends = _table(np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]]))
    mine = np.sum(second[0][:, None] >= at, axis=0).astype(np.float64)
    observed, expected = float(second[1].sum()), float(np.sum(ends * mine / risk))
    spread = np.where(risk > 1, ends * (mine / risk) * (1 - mine / risk) * (risk - ends) / np.maximum(risk - 1, 1), 0.0)
    variance = float(spread.sum())
    z = (observed - expected) / np.sqrt(variance) if variance > 0 else 0.0
    return LogRank(observed - expected, float(z), float(2 * ndtr(-abs(z))))


def log_rank_scores(times: Times, failed: Failed) -> Float[np.ndarray, " n"]:
    """Failure (0 or 1) less cumulative hazard at each episode's own end, δᵢ − Λ(Tᵢ), of all together; they sum to 0.

    The sum over one arm is its failures less those expected: the log-rank statistic (equation 9).
    """
    at, risk, ends = _table(times, failed)
    hazard = np.append(0.0, np.cumsum(ends / risk))[np.searchsorted(at, times, side="right")]
    return failed - hazard


def paired_log_rank(first: First, second: Second, *, draws: int = DRAWS, seed: Seed = 0) -> tuple[LogRank, Estimate]:
    """Log-rank of two arms on the same seeds, episode i against episode i: p by swapping labels within seeds.

    Swapping leaves all scores as they are, so it flips the signs of n differences of scores (equation 10): exact under
    the null that the arms are exchangeable within each seed, by the rules of `sign_flip_p`. `z` uses the variance of
    the pairs. Raises BadRequest for arms of different length.
    """
    _check(*first)
    _check(*second)
    n = len(first[0])
    if n != len(second[0]):
        raise BadRequest(f"expected the same seeds in both arms, came {n} and {len(second[0])} episodes")
    scores = log_rank_scores(np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]]))
    differences = scores[n:] - scores[:n]
    found = sign_flip_p(differences, draws=draws, seed=seed)
    size = float(np.sqrt(differences @ differences))
    z = float(differences.sum()) / size if size > 0 else 0.0
    return LogRank(float(differences.sum()) / 2, z, float(found.value)), found


def restricted_mean(
    times: Times, failed: Failed, horizon: float, weight: Float[np.ndarray, "draws n"] | None = None
) -> Float[np.ndarray, " draws"]:
    """Mean time without failure up to a horizon: the area under the curve of each weighted sample (equation 11).

    Exact mean of min(T, horizon) where nobody left before the horizon without failing. `weight` counts each episode;
    without it once each, one sample. A curve that ends before the horizon is carried on level.
    """
    _check(times, failed)
    if not horizon > 0:
        raise BadRequest(f"expected a horizon above 0, got {horizon:g}")
    weight = np.ones((1, len(times))) if weight is None else weight
    at = np.unique(times[failed & (times < horizon)])
    risk = weight @ (times[:, None] >= at).astype(np.float64)
    ends = weight @ ((times[:, None] == at) & failed[:, None]).astype(np.float64)
    share = np.cumprod(1 - np.divide(ends, risk, out=np.zeros_like(ends), where=risk > 0), axis=1)
    edges = np.concatenate([[0.0], at, [horizon]])
    return np.concatenate([np.ones((len(weight), 1)), share], axis=1) @ np.diff(edges)


def restricted_mean_difference(
    first: First,
    second: Second,
    horizon: float,
    *,
    draws: int = DRAWS,
    seed: Seed = 0,
    level: float = LEVEL,
) -> tuple[float, float, float]:
    """Restricted mean of the second arm less that of the first, BCa interval over seeds (pairs stay together).

    Asymptotic. Its p, if nobody leaves before the horizon: `sign_flip_p` of the differences of min(T, horizon). Raises
    BadRequest for a horizon beyond the last time of an arm that still has somebody, where the curve is not known.
    """
    in_range(draws, level)
    n = len(first[0])
    if n != len(second[0]):
        raise BadRequest(f"expected the same seeds in both arms, came {n} and {len(second[0])} episodes")
    for times, failed in (first, second):
        _check(times, failed)
        last = times.max()
        if horizon > last and not np.all(failed[times == last]):
            raise BadRequest(
                f"nothing is known beyond {last:g}, and the horizon is {horizon:g}; take one up to {last:g}"
            )

    def difference(weight: np.ndarray | None) -> np.ndarray:
        return restricted_mean(*second, horizon, weight) - restricted_mean(*first, horizon, weight)

    observed = float(difference(None)[0])
    boot = np.concatenate([difference(c) for c in counts(n, draws=draws, seed=seed)])
    without = difference(1.0 - np.eye(n)) if n > 1 else np.zeros(1)
    influence = without.mean() - without
    low, high = bca(boot, np.array(observed), influence, level)
    return observed, float(low), float(high)


def _table(times: Times, failed: Failed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct times of failures, how many were going just before, and how many failed."""
    at, ends = np.unique(times[failed], return_counts=True)
    risk = len(times) - np.searchsorted(np.sort(times), at, side="left")
    return at, risk.astype(np.float64), ends.astype(np.float64)


def _check(times: Times, failed: Failed) -> None:
    if not len(times) or times.shape != failed.shape or not np.all(np.isfinite(times)) or times.min() < 0:
        raise BadRequest(
            f"expected a time of at least 0 and a mark (failed or not) per episode, came {times.shape} times and "
            f"{failed.shape} marks"
        )
