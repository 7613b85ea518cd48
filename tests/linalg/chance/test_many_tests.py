"""Corrections against their textbook procedures, by enumeration, and their error rates by simulation."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import bh, by, haar_directions, holm, max_t, simes, tail

GRID = [Fraction(1, 200), Fraction(1, 40), Fraction(1, 40), Fraction(1, 20), Fraction(3, 10), Fraction(1)]


def bh_rejects(p, alpha, price=1):
    """The procedure as published: the largest k with p₍k₎ <= kα/(m·price), and everything up to it."""
    ordered = sorted(p)
    winners = [k for k in range(1, len(p) + 1) if ordered[k - 1] <= k * alpha / (len(p) * price)]
    return [bool(winners) and value <= ordered[max(winners) - 1] for value in p]


def by_rejects(p, alpha):
    return bh_rejects(p, alpha, price=sum(Fraction(1, i) for i in range(1, len(p) + 1)))


def holm_rejects(p, alpha):
    """The procedure as published: go up while p₍k₎ <= α/(m−k+1), stop at the first failure."""
    ordered, rejected = sorted(p), []
    for k, value in enumerate(ordered):
        if value > alpha / (len(p) - k):
            break
        rejected.append(value)
    return [value in rejected for value in p]


@pytest.mark.parametrize(("adjust", "rejects"), [(bh, bh_rejects), (by, by_rejects), (holm, holm_rejects)])
def test_rejecting_adjusted_values_is_the_published_procedure_at_every_level(adjust, rejects):
    levels = [Fraction(i, 400) + Fraction(1, 100_003) for i in range(401)]  # off every tie, so rounding cannot matter
    for p in product(GRID[::2], GRID, GRID[1:], GRID):
        adjusted = adjust(np.array([float(value) for value in p]))
        for alpha in levels[::37]:
            assert (adjusted <= float(alpha)).tolist() == rejects(p, alpha), (p, alpha)


def test_step_up_values_agree_with_scipy():
    p = np.random.default_rng(0).random(300) ** 3
    np.testing.assert_allclose(bh(p), stats.false_discovery_control(p, method="bh"), rtol=1e-13)
    np.testing.assert_allclose(by(p), stats.false_discovery_control(p, method="by"), rtol=1e-13)


@pytest.mark.parametrize("adjust", [bh, by, holm])
def test_undefined_p_values_are_no_members_of_the_family(adjust):
    p = np.array([[0.01, np.nan, 0.04], [np.nan, 0.5, 0.03]])
    adjusted = adjust(p)
    assert adjusted.shape == (2, 3)
    assert np.isnan(adjusted).tolist() == np.isnan(p).tolist()
    np.testing.assert_array_equal(adjusted[~np.isnan(p)], adjust(p[~np.isnan(p)]))
    assert adjust(np.zeros(0)).shape == (0,)
    assert np.isnan(adjust(np.array([np.nan]))).all()
    assert np.isnan(p[0, 1])  # the argument is not changed
    assert p[0, 0] == 0.01


def test_tiny_p_values_keep_their_digits():
    np.testing.assert_allclose(bh(np.array([1e-300, 0.5])), [2e-300, 0.5])


@pytest.mark.identity("SV-30")
def test_false_discovery_rate_holds_on_all_null_directions():
    families, size, alpha = 1000, 100, 0.1
    target = haar_directions(1, 64, seed=1)[0]
    p = tail(haar_directions(families * size, 64, seed=2) @ target, 64).reshape(families, size)
    false = np.mean([(bh(family) <= alpha).any() for family in p])
    error = np.sqrt(alpha * (1 - alpha) / families)
    # All-null: the rate is the chance of any rejection, exactly α for independent p.
    assert false == pytest.approx(alpha, abs=4 * error)
    assert np.mean(simes(p) <= alpha) == false
    # Uncorrected, nearly every family has one.
    assert np.mean((p <= alpha).any(axis=1)) > 0.99
    for stricter in (by, holm):
        assert np.mean([(stricter(family) <= alpha).any() for family in p]) <= alpha + 4 * error


def test_false_discovery_proportion_among_mixed_tests_is_alpha_times_the_share_of_nulls():
    rng, alpha, repeats = np.random.default_rng(3), 0.2, 2000
    proportions = []
    for _ in range(repeats):
        p = np.concatenate([rng.random(30), rng.random(20) * 1e-3])  # 30 of 50 are null
        rejected = bh(p) <= alpha
        proportions.append(rejected[:30].sum() / max(rejected.sum(), 1))
    error = np.std(proportions) / np.sqrt(repeats)
    assert np.mean(proportions) == pytest.approx(alpha * 30 / 50, abs=4 * error)


def test_simes_is_the_least_adjusted_value_of_each_row():
    p = np.random.default_rng(4).random((3, 4, 7)) ** 2
    p[0, 0, :3] = np.nan
    p[1, 2] = np.nan
    expected = [[np.nan if np.isnan(row).all() else np.nanmin(bh(row)) for row in block] for block in p]
    np.testing.assert_allclose(simes(p), expected, rtol=1e-14)
    assert simes(p[2, 3]) == np.min(bh(p[2, 3]))


def brute_max_t(observed, null):
    """Westfall–Young step-down from its definition: successive maxima, then made monotone."""
    order = sorted(range(len(observed)), key=lambda j: -observed[j])
    adjusted, running = [0.0] * len(observed), 0.0
    for position, j in enumerate(order):
        remaining = order[position:]
        reached = sum(max(draw[i] for i in remaining) >= observed[j] for draw in null)
        running = max(running, (1 + reached) / (len(null) + 1))
        adjusted[j] = running
    return adjusted


def test_max_t_is_its_definition():
    rng = np.random.default_rng(5)
    for _ in range(50):
        observed, null = np.round(rng.normal(size=6), 1), np.round(rng.normal(size=(19, 6)), 1)  # with ties
        if len(set(observed)) == 6:
            np.testing.assert_allclose(max_t(observed, null), brute_max_t(observed, null), rtol=1e-14)
        single = [(1 + np.sum(null.max(axis=1) >= value)) / 20 for value in observed]
        np.testing.assert_allclose(max_t(observed, null, step_down=False), single, rtol=1e-14)
        assert np.all(max_t(observed, null) <= single)


@pytest.mark.parametrize("step_down", [True, False])
def test_max_t_holds_its_rate_over_every_sign_flip(step_down):
    # Complete enumeration: under the sign-flip group each of the 2⁸ datasets is equally likely, so the share of them
    # with a false claim is the error rate itself, no simulation.
    rows = np.random.default_rng(6).normal(size=(8, 5))
    rows[:, 1] = rows[:, 0] + 0.1 * rows[:, 1]  # correlated tests
    flips = np.array(list(product([-1.0, 1.0], repeat=8)))
    statistics = np.abs(flips @ rows)
    least = np.array([max_t(observed, statistics, step_down=step_down).min() for observed in statistics])
    for alpha in (0.02, 0.05, 0.1, 0.3):
        assert np.mean(least <= alpha) <= alpha
        assert np.mean(least <= alpha) >= alpha - 4 / 256  # sharp: steps of 2/256 by the sign symmetry, and +1


@pytest.mark.identity("SV-33")
def test_max_t_is_unchanged_by_a_monotone_transform_and_never_below_its_floor():
    rng = np.random.default_rng(7)
    observed, null = rng.random(10), rng.random((99, 10))
    np.testing.assert_array_equal(max_t(observed, null), max_t(np.exp(observed), np.exp(null)))
    assert max_t(observed + 9, null).min() == 1 / 100


def test_max_t_leaves_undefined_tests_out():
    rng = np.random.default_rng(8)
    observed, null = rng.random(4), rng.random((50, 4))
    observed[2], null[:, 2] = np.nan, 99.0
    adjusted = max_t(observed, null)
    assert np.isnan(adjusted[2])
    np.testing.assert_array_equal(adjusted[[0, 1, 3]], max_t(observed[[0, 1, 3]], null[:, [0, 1, 3]]))
    assert np.isnan(max_t(np.array([np.nan]), null[:, :1])).all()


def test_what_is_no_p_value_or_no_joint_null_is_refused():
    for adjust in (bh, by, holm, simes):
        with pytest.raises(BadRequest, match=r"p-values lie in \[0, 1\], got 0.5 to 2.5"):
            adjust(np.array([0.5, 2.5]))
    with pytest.raises(BadRequest, match=r"max-T wants null draws \[draws, 3\] without NaN, got \(5, 2\)"):
        max_t(np.zeros(3), np.zeros((5, 2)))
    with pytest.raises(BadRequest, match="without NaN"):
        max_t(np.zeros(1), np.full((5, 1), np.nan))
