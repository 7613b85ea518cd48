"""BCa intervals: the judge's, equivariant, covering."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.trials.resample import bca, counts, mean_interval

CLOSE = 1e-10


def test_a_sample_with_replacement_has_n_units_each_as_often_as_any_other() -> None:
    drawn = np.concatenate(list(counts(20, draws=4000, seed=0)))
    assert drawn.shape == (4000, 20)
    assert (drawn.sum(axis=1) == 20).all()
    # Each count is binomial(20, 1/20): variance .95; 5 standard errors of a mean of 4000 and of a variance.
    np.testing.assert_allclose(drawn.mean(axis=0), 1.0, atol=5 * np.sqrt(0.95 / 4000))
    np.testing.assert_allclose(drawn.var(axis=0), 0.95, atol=5 * 0.95 * np.sqrt(3 / 4000))


def test_the_first_draws_do_not_depend_on_how_many_there_are() -> None:
    few, many = (np.concatenate(list(counts(7, draws=draws, seed=1))) for draws in (300, 2500))
    np.testing.assert_array_equal(few, many[:300])


def test_the_ends_are_those_of_the_judge() -> None:
    """Both from 20,000 draws of their own: the 2.5 % quantile then has an error of √(.025·.975/2·10⁴)/density, .02 sd
    of the mean for near normal means; twice that in a difference, at 4 errors .12."""
    x = np.random.default_rng(0).exponential(size=40)
    wanted = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    low, high = mean_interval(x, draws=20_000, seed=2)
    sd = x.std() / np.sqrt(40)
    assert float(low) == pytest.approx(wanted.confidence_interval.low, abs=0.12 * sd)
    assert float(high) == pytest.approx(wanted.confidence_interval.high, abs=0.12 * sd)
    # The skewed sample's interval leans to the right, as that of quantiles leans less.
    assert high - x.mean() > 1.1 * (x.mean() - low)


def test_on_the_judges_own_draws_the_ends_are_the_same() -> None:
    x = np.random.default_rng(3).gamma(0.7, size=25)
    wanted = stats.bootstrap((x,), np.mean, n_resamples=3000, method="BCa", rng=np.random.default_rng(1))
    low, high = bca(wanted.bootstrap_distribution, np.array(x.mean()), x - x.mean())
    assert (float(low), float(high)) == pytest.approx(tuple(wanted.confidence_interval), rel=CLOSE)


def test_intervals_move_stretch_and_turn_with_the_values() -> None:
    x = np.random.default_rng(4).exponential(size=50)
    low, high = mean_interval(x, draws=2000)
    np.testing.assert_allclose(mean_interval(3 * x + 100, draws=2000), (3 * low + 100, 3 * high + 100), rtol=CLOSE)
    np.testing.assert_allclose(mean_interval(-x, draws=2000), (-high, -low), rtol=CLOSE)


def test_the_interval_covers_the_mean_of_skewed_values() -> None:
    """2000 samples of 60 exponentials. BCa falls short by order 1/n, some percent there; 4 errors are .02."""
    x = np.random.default_rng(5).exponential(size=(2000, 60))
    low, high = mean_interval(x, draws=1500)
    covered = np.mean((low <= 1) & (high >= 1))
    assert 0.95 - 0.02 - 0.02 < covered < 0.95 + 0.02
    # Both sides miss, unlike those of a symmetric interval (1 % and 6 % by Student's t there).
    assert np.mean(low > 1) > 0.01
    assert np.mean(high < 1) < 0.055


def test_a_share_has_an_interval_inside_the_scale() -> None:
    hits = (np.arange(50) < 3).astype(np.float64)
    low, high = mean_interval(hits)
    wanted = stats.binomtest(3, 50).proportion_ci(method="wilson")
    assert 0 < float(low) < 0.06 < float(high) < 0.2
    # One draw of fifty is .02: both methods agree to that.
    assert (float(low), float(high)) == pytest.approx((wanted.low, wanted.high), abs=0.02)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 + 0.1])
def test_values_that_are_alike_have_an_interval_of_no_width(value: float) -> None:
    low, high = mean_interval(np.full((2, 7), value), draws=50)
    np.testing.assert_allclose(low, value, rtol=1e-15)
    np.testing.assert_array_equal(low, high)


def test_samples_on_one_side_still_have_ends() -> None:
    low, high = bca(np.array([2.0, 3, 4]), np.array(1.0), np.array([-1.0, 0, 1]))
    assert 2 <= low <= high <= 4


def test_samples_that_do_not_define_the_statistic_are_left_out() -> None:
    boot, u = np.random.default_rng(6).standard_normal(200), np.array([-1.0, 0.2, 0.8])
    with_nan = np.concatenate([boot, np.full(30, np.nan)])
    np.testing.assert_allclose(bca(with_nan, np.array(0.1), u), bca(boot, np.array(0.1), u), rtol=CLOSE)
    assert np.isnan(bca(np.full(5, np.nan), np.array(0.0), u)).all()


def test_levels_and_values_outside_their_range_are_refused() -> None:
    with pytest.raises(BadRequest, match="a level in"):
        mean_interval(np.ones(3), level=95.0)
    with pytest.raises(BadRequest, match="all finite"):
        mean_interval(np.array([1.0, np.inf]))
