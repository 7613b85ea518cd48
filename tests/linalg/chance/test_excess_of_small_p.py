"""An excess of small p-values, one-sided."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance.uniformity import excess_of_small


def test_the_distance_and_its_p_are_those_of_the_one_sided_kolmogorov_smirnov_test():
    for seed in range(5):
        p = np.random.default_rng(seed).beta(0.8, 1, 37)
        told = stats.ks_1samp(p, stats.uniform.cdf, alternative="greater", method="exact")
        found, wanted = excess_of_small(p), np.array(told, float)
        assert found.distance == pytest.approx(float(wanted[0]), rel=1e-12)
        assert found.p == pytest.approx(float(wanted[1]), rel=1e-9)


def test_p_values_that_are_too_large_are_no_excess():
    upper = np.minimum(1.0, 3 * np.random.default_rng(0).random(500))
    found = excess_of_small(upper)
    assert found.distance < 0.01
    assert found.p > 0.5


def test_p_is_uniform_for_uniform_values():
    rng = np.random.default_rng(1)
    p = [excess_of_small(rng.random(60)).p for _ in range(600)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_values_that_share_their_draws_are_worth_fewer():
    """Ranks among 8 shared draws, 8 per head, 30 heads: worth half. As independent ones they would cry wolf."""
    rng = np.random.default_rng(2)
    shared, naive = [], []
    for _ in range(400):
        draws, own = rng.normal(size=(30, 1, 8)), rng.normal(size=(30, 8, 1))
        p = (1 + (draws >= own).sum(-1)).ravel() / 9
        shared.append(excess_of_small(p, len(p) / 2).p)
        naive.append(excess_of_small(p).p)
    assert np.mean(np.array(shared) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(naive) < np.mean(shared)


def test_missing_values_do_not_count_and_none_has_no_excess():
    assert excess_of_small(np.array([0.1, np.nan, 0.9])).n == 2
    assert np.isnan(excess_of_small(np.array([np.nan])).p)
    with pytest.raises(BadRequest, match="expected p-values in"):
        excess_of_small(np.array([0.1, 1.5]))
