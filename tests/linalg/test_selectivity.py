"""Is one token hit and no other? Squares made by hand, and how often chance says yes."""

import math

import numpy as np
import pytest

from covector.linalg.selectivity import judge, upper


def square(n: int = 25, own: float = 0.9, others: float = 0.01, seed: int = 0, times: int = 6) -> np.ndarray:
    """Edits × tokens × measurements: `own` on the diagonal, about `others` beside it; noise that averages out."""
    rng = np.random.default_rng(seed)
    values = others * (1 + 0.1 * rng.standard_normal((n, n)))
    np.fill_diagonal(values, own)
    noise = 1e-4 * rng.standard_normal((n, n, times))
    return values[:, :, None] + noise - noise.mean(axis=2, keepdims=True)


def test_a_clean_hit_is_alone() -> None:
    each = square()
    found = judge(each, np.ones(25), 3)
    rest = np.delete(each.mean(axis=2)[3], 3)
    assert found.own == pytest.approx(0.9)
    assert found.others == pytest.approx(np.median(rest))
    assert found.ratio == pytest.approx(0.9 / np.median(rest))
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.band == pytest.approx((rest.min(), rest.max()))  # of 24 no band of 95 % is narrower
    assert found.p == pytest.approx(1 / 25)
    assert (found.broken, found.hit, found.alone) == (0, True, True)


def test_another_that_loses_more_than_half_the_share_is_broken_too() -> None:
    """Shares count, not amounts: a token of p .2 that loses .15 loses more of it than one of p 1 that loses .9 · ½."""
    each, had = square(), np.full(25, 1.0)
    each[3, 7] = 0.15
    assert judge(each, had, 3).alone
    had[7] = 0.2
    found = judge(each, had, 3)
    assert (found.broken, found.hit, found.alone, found.worst) == (1, True, False, 7)


def test_a_token_that_other_edits_hit_as_much_is_not_hit_by_its_own() -> None:
    each = square()
    each[[5, 6], 3] = 0.95
    found = judge(each, np.ones(25), 3)
    assert found.p == pytest.approx(3 / 25)
    assert not found.hit


def test_a_gain_is_no_loss() -> None:
    found = judge(square(own=-0.9), np.ones(25), 3)
    assert not found.hit
    assert not found.alone


def test_the_level_is_that_of_the_token_hit_most_by_the_other_edits() -> None:
    each = square()
    each[10, 11], each[3, 4] = 0.3, -0.4
    found = judge(each, np.ones(25), 3)
    assert found.level == pytest.approx(0.3)
    assert found.beyond == 1
    assert judge(each, np.ones(25), 10).level == pytest.approx(0.4)  # up or down


def test_what_was_not_measured_is_left_out() -> None:
    each = square()
    each[3, 5] = np.nan
    each[7, 3] = np.nan
    found = judge(each, np.ones(25), 3)
    assert found.p == pytest.approx(1 / 24)
    assert found.band == pytest.approx(tuple(np.delete(each.mean(axis=2)[3], [3, 5])[[0, 0]] * 0 + [
        np.delete(each.mean(axis=2)[3], [3, 5]).min(), np.delete(each.mean(axis=2)[3], [3, 5]).max()]))  # fmt: skip


def test_chance_hits_a_token_in_at_most_one_of_twenty_rows() -> None:
    """With nothing special about the diagonal, 'hit' needs the largest of row and column: far below 5 %."""
    rng = np.random.default_rng(1)
    hits = [judge(rng.standard_normal((21, 21, 2)), np.ones(21), 0).hit for _ in range(80)]
    assert sum(hits) <= 0.05 * 80 + 3 * math.sqrt(80 * 0.05 * 0.95)


def test_the_band_holds_one_more_value_with_its_share() -> None:
    """⌈.95 (n + 1)⌉-th of n: for 19 the largest, for 39 the second; a new exchangeable value is below with 95 %."""
    assert upper(np.arange(19.0)) == 18
    assert upper(np.arange(39.0)) == 37
    assert upper(np.arange(5.0)) == 4
    rng = np.random.default_rng(2)
    below = [x[0] <= upper(x[1:]) for x in rng.standard_normal((4000, 40))]
    assert abs(np.mean(below) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)
