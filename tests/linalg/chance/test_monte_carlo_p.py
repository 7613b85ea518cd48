"""Simulated p-values: their floor, their ties, their error."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.chance import monte_carlo_p

NULL = np.array([3.0, 1.0, 2.0, 2.0])


@pytest.mark.identity("SV-33")
def test_p_counts_draws_that_reach_the_observed_value_and_the_observed_one():
    estimate = monte_carlo_p(np.array([0.0, 2.0, 2.5, 9.0, np.nan]), NULL)
    np.testing.assert_array_equal(estimate.value, [5 / 5, 4 / 5, 2 / 5, 1 / 5, np.nan])
    assert estimate.draws == 4


@pytest.mark.identity("SV-33")
def test_p_is_unchanged_by_a_monotone_transform():
    rng = np.random.default_rng(0)
    observed, null = rng.random(50), rng.random(999)
    np.testing.assert_array_equal(
        monte_carlo_p(observed, null).value, monte_carlo_p(np.exp(5 * observed), np.exp(5 * null)).value
    )
    assert not np.array_equal(monte_carlo_p(observed, null).value, monte_carlo_p(-observed, -null).value)


def test_the_standard_error_is_that_of_repeated_simulation():
    rng = np.random.default_rng(1)
    repeats = [monte_carlo_p(0.9, rng.random(500)) for _ in range(2000)]
    spread = np.std([estimate.value for estimate in repeats])
    # 2000 repeats know a standard deviation to 1/√4000 = 1.6 %.
    assert np.mean([estimate.error for estimate in repeats]) == pytest.approx(spread, rel=0.065)


@pytest.mark.identity("SV-33")
def test_simulated_p_values_never_reject_too_often():
    rng = np.random.default_rng(2)
    p = np.array([monte_carlo_p(rng.random(), rng.random(19)).value for _ in range(4000)])
    for alpha in (0.05, 0.1, 0.5):
        assert np.mean(p <= alpha) <= alpha + 4 * np.sqrt(alpha * (1 - alpha) / 4000)
    # Without the observed value's own place (#/B) a p of 0 would come up 5 % of the time.
    assert p.min() == 1 / 20


def test_a_smaller_bound_replaces_the_estimate_and_a_larger_one_does_not():
    estimate = monte_carlo_p(np.array([2.5, 9.0]), NULL, at_most=np.array([0.9, 1e-30]))
    assert estimate.value.tolist() == [2 / 5, 1e-30]
    assert estimate.error[1] == 0 < estimate.error[0]


def test_an_empty_or_broken_null_is_refused():
    with pytest.raises(BadRequest, match="a null needs draws, all finite, got 0"):
        monte_carlo_p(1.0, np.zeros(0))
    with pytest.raises(BadRequest, match="all finite"):
        monte_carlo_p(1.0, np.array([1.0, np.nan]))
