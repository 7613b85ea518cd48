"""Achieved against asked return."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.trials.calibration import calibration
from covector.linalg.trials.resample import mean_interval

ASKED = np.array([0.0, 0.3, 0.5, 0.9])


def returns(rng: np.random.Generator, slope: float, n: int = 60, shared: float = 0.5) -> np.ndarray:
    noise = 0.3 * rng.standard_normal((4, n))
    return slope * ASKED[:, None] + shared * rng.standard_normal(n) + noise


@pytest.mark.parametrize("shared", [True, False])
def test_the_slope_is_that_of_least_squares_over_all_episodes(shared: bool) -> None:
    achieved = returns(np.random.default_rng(0), 0.6)
    found = calibration(ASKED, achieved, shared=shared, draws=200)
    wanted = np.polyfit(np.repeat(ASKED, 60), achieved.ravel(), 1)[0]
    assert found.slope == pytest.approx(wanted, rel=1e-10)
    assert found.rank == pytest.approx(stats.spearmanr(ASKED, achieved.mean(axis=1)).statistic)
    assert found.low < found.slope < found.high


def test_with_shared_seeds_the_interval_is_that_of_the_slopes_of_seeds() -> None:
    achieved = returns(np.random.default_rng(1), 0.6)
    each = np.polyfit(ASKED, achieved, 1)[0]
    found = calibration(ASKED, achieved, draws=800, seed=3)
    low, high = mean_interval(each, draws=800, seed=3)
    assert (found.low, found.high) == pytest.approx((float(low), float(high)), rel=1e-8)


@pytest.mark.parametrize("shared", [True, False])
def test_intervals_cover_and_p_has_its_size(shared: bool) -> None:
    """400 experiments, seeds that differ only where they are shared; 4 errors of 5 % are .044; BCa is short by 1/n."""
    rng, covered, small = np.random.default_rng(2), 0, 0
    for i in range(400):
        achieved = returns(rng, 0.0, n=30, shared=1.0 if shared else 0.0)
        found = calibration(ASKED, achieved, shared=shared, draws=199, seed=i)
        covered += found.low <= 0 <= found.high
        small += found.p <= 0.05
    assert abs(small / 400 - 0.05) < 0.044
    assert covered / 400 > 0.95 - 0.044 - 0.02


def test_seeds_that_decide_most_cost_nothing_where_they_are_shared() -> None:
    achieved = returns(np.random.default_rng(3), 0.2, shared=5.0)
    together, apart = (calibration(ASKED, achieved, shared=s, draws=500) for s in (True, False))
    assert together.p < 0.01 < 0.2 < apart.p
    assert together.high - together.low < 0.2 * (apart.high - apart.low)


def test_an_agent_that_brings_what_is_asked_has_slope_one_and_rank_one() -> None:
    found = calibration(ASKED, np.repeat(ASKED[:, None], 5, axis=1), draws=100)
    assert (found.slope, found.low, found.high) == pytest.approx((1, 1, 1))
    assert (found.rank, found.rank_low, found.rank_high) == pytest.approx((1, 1, 1))


def test_an_agent_that_does_not_listen_has_slope_zero_and_no_rank() -> None:
    found = calibration(ASKED, np.full((4, 6), 0.1), draws=100)
    assert found.slope == pytest.approx(0, abs=1e-15)
    assert found.p == 1
    assert np.isnan(found.rank)
    assert np.isnan(found.rank_low)


def test_shift_and_unit_of_returns() -> None:
    achieved = returns(np.random.default_rng(4), 0.4)
    one, other = calibration(ASKED, achieved, draws=300), calibration(ASKED, 5 - 2 * achieved, draws=300)
    assert (other.slope, other.low, other.high) == pytest.approx(
        (-2 * one.slope, -2 * one.high, -2 * one.low), rel=1e-8
    )
    assert (other.p, other.rank) == pytest.approx((one.p, -one.rank))


def test_the_observed_order_counts_in_p() -> None:
    achieved = ASKED[:, None] + 1e-3 * np.random.default_rng(6).standard_normal((4, 20))
    for shared in (True, False):
        assert calibration(ASKED, achieved, shared=shared, draws=99).p == pytest.approx(1 / 100)


def test_many_targets_are_shuffled_too() -> None:
    asked, rng = np.arange(9.0), np.random.default_rng(5)
    flat, rising = rng.standard_normal((9, 20)), 0.2 * asked[:, None] + rng.standard_normal((9, 20))
    assert calibration(asked, flat, draws=300).p > 0.05 > 0.01 > calibration(asked, rising, draws=300).p


def test_one_target_has_no_slope() -> None:
    with pytest.raises(BadRequest, match="two or more different targets"):
        calibration(np.array([0.5, 0.5]), np.ones((2, 4)))
