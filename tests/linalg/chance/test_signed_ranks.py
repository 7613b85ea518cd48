"""Wilcoxon's test and the interval that belongs to it."""

import itertools

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance.signed_rank import EXACT, signed_rank


def by_all_signs(d: np.ndarray) -> float:
    """Two-sided p by every choice of signs."""
    ranks = stats.rankdata(np.abs(d))
    observed = abs(ranks[d > 0].sum() - ranks.sum() / 2)
    sums = [np.dot(ranks, s) for s in itertools.product((0, 1), repeat=len(d))]
    return float(np.mean(np.abs(np.array(sums) - ranks.sum() / 2) >= observed - 1e-9))


def test_p_counts_every_choice_of_signs():
    rng = np.random.default_rng(0)
    for n in (4, 7, 10):
        d = rng.normal(0.5, 1, n)
        assert signed_rank(d).p == pytest.approx(by_all_signs(d), rel=1e-12)


def test_centre_is_the_median_of_pairwise_means():
    d = np.random.default_rng(1).normal(size=9)
    means = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(d, 2)]
    assert signed_rank(d).centre == pytest.approx(float(np.median(means)), rel=1e-12)


@pytest.mark.parametrize("n", [6, 9, 20, EXACT, EXACT + 40])
def test_the_interval_holds_the_shifts_that_the_test_does_not_reject(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    found = signed_rank(d)
    reach = 1e-6
    assert signed_rank(d - found.low - reach).p > 0.05 * 0.97
    assert signed_rank(d - found.high + reach).p > 0.05 * 0.97
    assert signed_rank(d - found.low + reach).p <= 0.05 * 1.03
    assert signed_rank(d - found.high - reach).p <= 0.05 * 1.03


def test_signs_turned_round_turn_everything_round():
    d = np.random.default_rng(4).normal(0.4, 1, 15)
    one, other = signed_rank(d), signed_rank(-d)
    assert (one.centre, one.low, one.high, one.p) == pytest.approx((-other.centre, -other.high, -other.low, other.p))


def test_few_pairs_have_no_interval_and_missing_ones_do_not_count():
    found = signed_rank(np.array([1.0, np.nan, 2, 3, 4, 5]))
    assert found.n == 5
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert found.p == pytest.approx(2 / 2**5)
    assert np.isnan(signed_rank(np.array([np.nan])).p)
    assert signed_rank(np.zeros(8)).p == 1


def test_p_of_symmetric_differences_is_uniform_up_to_its_steps():
    rng = np.random.default_rng(5)
    p = np.array([signed_rank(rng.standard_t(3, 30)).p for _ in range(1000)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 1000) + 0.01)


def test_a_level_outside_its_range_is_refused():
    with pytest.raises(BadRequest, match=r"a level lies in \(0, 1\)"):
        signed_rank(np.ones(3), level=95.0)
