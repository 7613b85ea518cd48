"""Spearman's correlation of score and effect over sites: interval and p."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.trials.ranks import rank_correlation_interval, weighted
from covector.linalg.trials.resample import bca, counts


def test_a_weighted_sample_is_one_in_which_sites_come_more_than_once() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 15).astype(np.float64), rng.standard_normal(15)
    times = np.stack([np.bincount(rng.integers(15, size=15), minlength=15) for _ in range(20)]).astype(np.float64)
    wanted = [stats.spearmanr(np.repeat(x, c.astype(int)), np.repeat(y, c.astype(int))).statistic for c in times]
    np.testing.assert_allclose(weighted(x, y, times), wanted, rtol=1e-10)
    assert np.isnan(weighted(x, y, np.eye(15)[:1] * 15)).all()


def test_value_and_ends_are_the_judges() -> None:
    """9999 draws each: an end errs by .02 of the interval's sd, 4 errors of a difference .12."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(50)
    y = x + rng.standard_normal(50)
    found = rank_correlation_interval(x, y)
    wanted = stats.bootstrap((x, y), lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False,
                             n_resamples=2500, method="BCa", rng=np.random.default_rng(2))  # fmt: skip
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    # 2500 draws of the judge: twice as far.
    ends = wanted.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.24 * wanted.standard_error)


def test_the_acceleration_is_that_of_leaving_sites_out() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal(20)
    y = x + 0.5 * rng.standard_normal(20)
    y[0] = -x[0] - 3
    left = np.array([stats.spearmanr(np.delete(x, i), np.delete(y, i)).statistic for i in range(20)])
    boot = np.concatenate([weighted(x, y, c) for c in counts(20, draws=2000, seed=5)])
    low, high = bca(boot, np.array(stats.spearmanr(x, y).statistic), left.mean() - left)
    found = rank_correlation_interval(x, y, draws=2000, seed=5)
    assert (found.low, found.high) == pytest.approx((float(low), float(high)), rel=1e-9)


def test_few_sites_have_the_p_of_all_orders() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 1, 4, 3, 6, 6])
    wanted = stats.permutation_test((x,), lambda a: abs(stats.spearmanr(a, y).statistic), permutation_type="pairings",
                                    n_resamples=np.inf, alternative="greater")  # fmt: skip
    assert rank_correlation_interval(x, y, draws=50).p == pytest.approx(wanted.pvalue)


def test_the_size_of_p_is_what_it_says() -> None:
    """99 draws, 1000 experiments: 5 % with an error of .0069; 4 of them."""
    rng = np.random.default_rng(3)
    p = [rank_correlation_interval(rng.standard_normal(15), rng.exponential(size=15), draws=99, seed=i).p
         for i in range(1000)]  # fmt: skip
    assert abs(np.mean(np.array(p) <= 0.05 + 1e-12) - 0.05) < 4 * 0.0069


def test_intervals_cover_the_correlation_of_normal_pairs() -> None:
    """Spearman's of a normal pair with correlation ρ is 6/π asin(ρ/2). 500 experiments: 4 errors .039, 1/n short."""
    rng, rho, inside = np.random.default_rng(4), 0.6, 0
    wanted = 6 / np.pi * np.arcsin(rho / 2)
    for i in range(500):
        x, noise = rng.standard_normal((2, 40))
        found = rank_correlation_interval(x, rho * x + np.sqrt(1 - rho**2) * noise, draws=400, seed=i)
        inside += found.low <= wanted <= found.high
    assert 0.95 - 0.039 - 0.02 < inside / 500 < 0.985


def test_sites_of_one_matrix_are_one_piece_of_evidence() -> None:
    rng = np.random.default_rng(5)
    matrix = np.repeat(np.arange(8), 10)
    score, effect = rng.standard_normal((2, 8))[:, matrix] + 0.1 * rng.standard_normal((2, 80))
    alone, together = (rank_correlation_interval(score, effect, c, draws=1000) for c in (None, matrix))
    assert (alone.clusters, together.clusters) == (80, 8)
    assert together.high - together.low > 2 * (alone.high - alone.low)
    order = rng.permutation(80)
    again = rank_correlation_interval(score[order], effect[order], matrix[order], draws=1000)
    assert (again.low, again.high) == pytest.approx((together.low, together.high), rel=1e-9)


def test_strata_are_shuffled_within() -> None:
    """Layers differ in both, nothing is related inside them: found across, not within; and the other way round."""
    rng = np.random.default_rng(6)
    layer = np.repeat(np.arange(4), 15)
    x, y = rng.standard_normal((2, 60)) + 5 * layer
    assert rank_correlation_interval(x, y, draws=500).p < 0.01
    assert rank_correlation_interval(x, y, strata=layer, draws=500).p > 0.05
    inside = 3 * rng.standard_normal(60)
    x, y = inside + 4 * layer, inside - 4 * layer
    assert rank_correlation_interval(x, y, strata=layer, draws=500).p < 0.01


def test_only_order_counts_and_signs_turn_it() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal(30)
    y = x + rng.standard_normal(30)
    one, other = (rank_correlation_interval(x, v, draws=500) for v in (y, -np.exp(y)))
    assert (other.value, other.low, other.high, other.p) == pytest.approx((-one.value, -one.high, -one.low, one.p))


def test_nothing_that_varies_has_no_correlation_and_one_matrix_no_interval() -> None:
    found = rank_correlation_interval(np.ones(5), np.arange(5.0), draws=10)
    assert np.isnan(found.value)
    assert np.isnan(found.p)
    one = rank_correlation_interval(np.arange(9.0), np.arange(9.0), np.zeros(9, int), draws=99)
    assert one.value == pytest.approx(1)
    assert np.isnan(one.low)
    assert one.p == pytest.approx(0.01)
    with pytest.raises(BadRequest, match="at 3 or more sites"):
        rank_correlation_interval(np.ones(2), np.ones(2))
