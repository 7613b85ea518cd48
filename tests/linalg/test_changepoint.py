"""One change of level along an order."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.changepoint import SHORTEST, changepoint


def stepped(seed: int, n: int = 80, at: int = 30, by: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n) - by * (np.arange(n) >= at)


def test_a_step_is_found_where_it_is_with_both_levels():
    values = np.where(np.arange(40) < 13, 5.0, 2.0)
    found = changepoint(values, draws=200, seed=0)
    assert (found.at, found.low, found.high) == (13, 13, 13)
    assert (found.before, found.after) == (5.0, 2.0)
    assert found.p == pytest.approx(1 / 201)


def test_the_place_is_the_least_squares_division():
    """The contrast is largest where two means explain most: by brute force over all divisions."""
    for seed in range(10):
        values = np.random.default_rng(seed).standard_normal(37)
        cost = {at: values[:at].var() * at + values[at:].var() * (37 - at) for at in range(SHORTEST, 37 - SHORTEST + 1)}
        assert changepoint(values, draws=1, seed=0).at == min(cost, key=cost.__getitem__)


def test_the_interval_holds_the_place_of_a_noisy_step():
    """60 sequences: 95 % nominal; bootstrap intervals of a changepoint are known to be a little short."""
    covered = sum((c := changepoint(stepped(s), draws=1, seed=s)).low <= 30 <= c.high for s in range(60))
    assert covered >= 51


def test_without_a_step_p_is_uniform_although_every_place_was_tried():
    p = [changepoint(np.random.default_rng(s).standard_normal(50), draws=199, seed=s).p for s in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_turned_round_it_is_found_from_the_other_end():
    values = stepped(3)
    one, other = (changepoint(v, draws=50, seed=0) for v in (values, values[::-1].copy()))
    assert other.at == 80 - one.at
    assert (other.before, other.after) == pytest.approx((one.after, one.before))


def test_too_short_a_sequence_is_refused():
    with pytest.raises(BadRequest, match="expected 10 values or more"):
        changepoint(np.zeros(9), draws=10, seed=0)
