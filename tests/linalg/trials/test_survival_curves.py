"""Time to failure: curves, log-rank with and without pairs, restricted means."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.trials.resample import mean_interval
from covector.linalg.trials.survival import (
    kaplan_meier,
    log_rank,
    log_rank_scores,
    paired_log_rank,
    restricted_mean,
    restricted_mean_difference,
)

CLOSE = 1e-12
Arm = tuple[np.ndarray, np.ndarray]


def arm(n: int, seed: int, mean: float = 20.0, most: float = 30.0) -> Arm:
    """Whole times with ties, some that end for other reasons, all at `most` at the latest."""
    rng = np.random.default_rng(seed)
    fails, leaves = np.ceil(rng.exponential(mean, n)), np.ceil(rng.exponential(2 * mean, n))
    times = np.minimum(np.minimum(fails, leaves), most)
    return times, fails <= np.minimum(leaves, most)


def censored(of: Arm) -> stats.CensoredData:
    return stats.CensoredData.right_censored(of[0], ~of[1])


def test_the_curve_and_its_interval_are_the_judges() -> None:
    times, failed = arm(40, 0)
    found, wanted = kaplan_meier(times, failed), stats.ecdf(censored((times, failed))).sf
    interval = wanted.confidence_interval(method="log-log")
    at = np.searchsorted(wanted.quantiles, found.time)
    np.testing.assert_allclose(found.share, wanted.probabilities[at], rtol=CLOSE)
    np.testing.assert_allclose(found.low, interval.low.probabilities[at], rtol=1e-9)
    np.testing.assert_allclose(found.high, interval.high.probabilities[at], rtol=1e-9)
    np.testing.assert_allclose(found.at(np.arange(31.0)), wanted.evaluate(np.arange(31.0)), rtol=CLOSE)


def test_a_curve_without_censoring_is_the_share_still_going() -> None:
    times = np.array([3.0, 1, 4, 1, 5, 9])
    found = kaplan_meier(times, np.ones(6, bool))
    np.testing.assert_allclose(found.share, [np.mean(times > t) for t in found.time], atol=CLOSE)
    # Where nobody is left: from 0 to the upper end of the step before.
    assert found.low[-1] == 0
    assert found.high[-1] == found.high[-2] > 0
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()


def test_arms_that_never_fail_have_a_flat_curve_and_nothing_to_compare() -> None:
    never = (np.full(5, 9.0), np.zeros(5, bool))
    assert kaplan_meier(*never).at(np.array([100.0])) == 1
    assert log_rank(never, never).p == 1
    assert paired_log_rank(never, never)[0].p == 1
    assert restricted_mean(*never, 9.0) == 9


def test_log_rank_is_the_judges() -> None:
    one, two = arm(30, 1), arm(45, 2, mean=12)
    found, wanted = log_rank(one, two), stats.logrank(censored(two), censored(one))
    assert found.z == pytest.approx(wanted.statistic, rel=1e-9)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert found.excess > 0, "the second arm fails earlier"


def test_scores_sum_to_nothing_and_over_an_arm_to_its_failures_less_those_expected() -> None:
    one, two = arm(30, 1), arm(45, 2, mean=12)
    scores = log_rank_scores(*(np.concatenate(parts) for parts in zip(one, two, strict=True)))
    assert scores.sum() == pytest.approx(0, abs=1e-10)
    assert scores[30:].sum() == pytest.approx(log_rank(one, two).excess, rel=1e-10)


def test_the_paired_p_is_that_of_all_swaps_of_labels() -> None:
    one, two = arm(8, 3), arm(8, 4, mean=8)
    observed, null = abs(log_rank(one, two).excess), []
    for swap in product([False, True], repeat=8):
        first, second = (tuple(np.where(swap, a, b) for a, b in zip(x, y, strict=True))
                         for x, y in ((two, one), (one, two)))  # fmt: skip
        null.append(abs(log_rank(first, second).excess))
    found, estimate = paired_log_rank(one, two)
    assert found.p == pytest.approx(np.mean(np.array(null) >= observed - 1e-9), abs=CLOSE)
    assert found.excess == pytest.approx(log_rank(one, two).excess, rel=1e-10)
    assert float(estimate.error) == 0


def alike(n: int, rng: np.random.Generator, ratio: float = 1.0) -> tuple[Arm, Arm]:
    """Two arms whose times share most of what a seed decides; up to 30 steps."""
    start = rng.exponential(20, n)
    times = [np.minimum(start * r * np.exp(0.2 * rng.standard_normal(n)), 30) for r in (1.0, ratio)]
    one, two = ((t, t < 30) for t in times)
    return one, two


def test_the_size_with_shared_seeds_is_that_of_the_paired_test_only() -> None:
    """1200 null experiments of 11 pairs: 4 errors of 5 % are .025. Unpaired, pairs that agree hide what differs."""
    rng = np.random.default_rng(5)
    p, unpaired = np.array([(paired_log_rank(*pair)[0].p, log_rank(*pair).p)
                            for pair in (alike(11, rng) for _ in range(1200))]).T  # fmt: skip
    assert abs(np.mean(p <= 0.05) - 0.05) < 0.025
    assert np.mean(p <= 0.05) > 0.03
    assert np.mean(unpaired <= 0.05) < 0.01


def test_an_arm_that_fails_a_little_earlier_is_found_by_pairs() -> None:
    one, two = alike(100, np.random.default_rng(6), ratio=0.85)
    assert paired_log_rank(one, two, draws=2000)[0].p < 0.001
    assert paired_log_rank(one, two, draws=500)[0].z > 3
    assert log_rank(one, two).p > 0.05
    assert restricted_mean_difference(one, two, 30.0, draws=1000)[2] < 0


def test_the_restricted_mean_is_the_area_under_the_curve() -> None:
    times, failed = arm(40, 7)
    curve = kaplan_meier(times, failed)
    # Steps stand at whole times: the middle of each unit has the height of the unit.
    area = curve.at(np.arange(25) + 0.5).sum()
    assert float(restricted_mean(times, failed, 25.0)[0]) == pytest.approx(area, rel=1e-12)


def test_without_other_endings_it_is_the_mean_of_the_shorter_of_time_and_horizon() -> None:
    times = np.random.default_rng(8).exponential(20, 50)
    found = restricted_mean(np.minimum(times, 30), times < 30, 12.0)
    assert float(found[0]) == pytest.approx(np.minimum(times, 12).mean(), rel=CLOSE)


def test_a_weight_of_two_is_an_episode_that_comes_twice() -> None:
    times, failed = arm(12, 9)
    weight = np.array([2.0, 0, 1, 1, 3, 0, 1, 1, 1, 0, 1, 1])
    again = weight.astype(int)
    wanted = restricted_mean(np.repeat(times, again), np.repeat(failed, again), 20.0)
    np.testing.assert_allclose(restricted_mean(times, failed, 20.0, weight[None]), wanted, rtol=CLOSE)


def test_the_interval_of_a_difference_is_that_of_paired_differences_where_nothing_is_censored() -> None:
    one, two = alike(40, np.random.default_rng(10), ratio=0.8)
    d = np.minimum(two[0], 25) - np.minimum(one[0], 25)
    found = restricted_mean_difference(one, two, 25.0, draws=1500, seed=4)
    low, high = mean_interval(d, draws=1500, seed=4)
    assert found == pytest.approx((d.mean(), float(low), float(high)), rel=1e-9)


def test_arms_that_agree_differ_by_nothing() -> None:
    one = arm(20, 11)
    assert restricted_mean_difference(one, one, 20.0, draws=100) == (0, 0, 0)
    assert paired_log_rank(one, one)[0].p == 1


def test_what_is_not_known_is_refused() -> None:
    one = arm(20, 12)
    with pytest.raises(BadRequest, match="nothing is known beyond 30"):
        restricted_mean_difference(one, one, 31.0)
    with pytest.raises(BadRequest, match="the same seeds"):
        paired_log_rank(one, arm(19, 12))
    with pytest.raises(BadRequest, match="a time of at least 0"):
        kaplan_meier(np.array([-1.0]), np.array([True]))
