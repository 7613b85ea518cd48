"""Maxima over dictionaries, frames and sites: published values, exact means, and the obvious slow route."""

import mpmath
import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import (
    expected_max,
    expected_max_of_basis,
    haar_directions,
    haar_frame,
    max_in_frame,
    median_max,
    null_max_of_frame,
    null_maxima,
    tail,
)


def agree(first, second):
    return stats.ks_2samp(first, second).pvalue > 0.01


def test_null_maxima_follow_the_law_of_directions_scored_one_by_one():
    vectors = haar_directions(9000, 6, seed=1) * 0.7  # more rows than one step takes; lengths are kept
    vectors[-1] *= 2  # the last row wins often
    slow = [np.abs(vectors @ direction).max() for direction in haar_directions(1500, 6, seed=2)]
    assert agree(null_maxima(vectors, draws=1500, seed=3), slow)
    assert not agree(null_maxima(vectors / 0.7, draws=1500, seed=3), slow)


def test_the_maximum_over_one_vector_is_the_beta_law():
    maxima = null_maxima(haar_directions(1, 40, seed=1), draws=3000, seed=4)
    assert stats.kstest(tail(maxima, 40), "uniform").pvalue > 0.01


def test_either_pole_counts_in_a_maximum():
    vectors = haar_directions(7, 10, seed=1)
    assert np.array_equal(null_maxima(vectors, draws=300, seed=2), null_maxima(-vectors, draws=300, seed=2))


def test_float32_vectors_give_the_same_draws_to_float32_rounding():
    vectors = haar_directions(50, 20, seed=1)
    single = null_maxima(vectors.astype(np.float32), draws=300, seed=2)
    # 20 products of float32 rounding 6e-8 each
    np.testing.assert_allclose(single, null_maxima(vectors, draws=300, seed=2), atol=20 * 6e-8)


@pytest.mark.parametrize(("d", "r"), [(128, 128), (128, 64), (20, 1)])
def test_max_in_frame_follows_the_law_of_drawn_frames(d, r):
    target = haar_directions(1, d, seed=1)
    slow = [np.abs(haar_frame(d, r, seed=(2, draw)) @ target[0]).max() for draw in range(400)]
    quick = max_in_frame(d, r, draws=4000, seed=3)
    assert agree(quick, slow)
    assert agree(null_max_of_frame(target, r, draws=2000, seed=4), quick)


@pytest.mark.parametrize("r", [2, 6, 12])
@pytest.mark.parametrize("n", [3, 12, 40])
def test_null_max_of_frame_follows_the_law_of_whole_frames_against_whole_vectors(n, r):
    vectors = haar_directions(n, 12, seed=n)
    vectors[1] = vectors[0]  # rank-deficient spans are allowed
    slow = [np.abs(haar_frame(12, r, seed=(5, draw)) @ vectors.T).max() for draw in range(1000)]
    assert agree(null_max_of_frame(vectors, r, draws=4000, seed=6), slow)


def test_site_nulls_of_the_theory_page_are_reproduced():
    # §3.13: 95 % of the maximum over all singular vectors of a site and all items, d = 128. The items are the three
    # action rows there, here three random ones (the largest of three far-apart vectors barely depends on which).
    items = haar_directions(3, 128, seed=0)
    for vectors, r, published in [(items, 128, 0.329), (items, 64, 0.315), (items[:1], 64, 0.291)]:
        null = null_max_of_frame(vectors, r, draws=6000, seed=1)
        # Quantile error: sqrt(.05·.95/6000)/density ≈ 0.0007 at the density ≈ 4 there; both sides were simulated.
        assert np.quantile(null, 0.95) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize(
    ("d", "published"), [(128, 0.2513), (256, 0.1905), (768, 0.1212), (1024, 0.1075), (1600, 0.0891), (4096, 0.0594)]
)
def test_expected_maximum_over_a_whole_basis_is_that_of_the_theory_page(d, published):
    # The published values are simulated: at d = 128 one maximum has sd 0.030, so 1000 draws err by 1e-3.
    assert expected_max_of_basis(d, d) == pytest.approx(published, abs=1e-3)


def test_expected_maximum_over_a_basis_is_exact():
    # d = r = 2: |cos| and |sin| of a uniform angle, mean of the larger = (4/π)·sin(π/4).
    assert expected_max_of_basis(2, 2) == pytest.approx(4 / np.pi * np.sqrt(0.5), rel=1e-10)
    assert expected_max_of_basis(1, 1) == pytest.approx(1, rel=1e-10)
    sample = max_in_frame(128, 64, draws=20_000, seed=1)
    assert sample.mean() == pytest.approx(expected_max_of_basis(128, 64), abs=4 * sample.std() / np.sqrt(20_000))


@pytest.mark.parametrize(
    ("d", "n", "published"),
    [(768, 50257, 0.156), (1024, 50257, 0.135), (1280, 50257, 0.121), (1600, 50257, 0.108), (4096, 50400, 0.068)],
)
def test_isotropic_medians_are_those_of_the_theory_page(d, n, published):
    assert median_max(d, n) == pytest.approx(published, abs=5e-4)
    assert expected_max(d, n) == pytest.approx(published, abs=2e-3)  # right-skewed: mean above median by ~0.1 sd


@pytest.mark.parametrize(("d", "n"), [(3, 1), (20, 7), (768, 1000)])
def test_expected_maximum_over_independent_directions_is_the_integral_of_its_tail(d, n):
    with mpmath.workdps(25):
        one = lambda c: 1 - mpmath.betainc(mpmath.mpf(1) / 2, mpmath.mpf(d - 1) / 2, 0, c * c, regularized=True) ** n  # noqa: E731
        middle = median_max(d, n)
        exact = mpmath.quad(one, [0, middle / 2, middle, min(2 * middle, 0.99), 1])
    assert expected_max(d, n) == pytest.approx(float(exact), rel=1e-9)


def test_impossible_ranks_and_broken_vectors_are_refused():
    with pytest.raises(BadRequest, match="a frame in 4 dimensions has 1 to 4 directions, got r = 5"):
        null_max_of_frame(np.eye(4), 5, draws=5, seed=0)
    with pytest.raises(BadRequest, match="got r = 0"):
        max_in_frame(4, 0, draws=5, seed=0)
    with pytest.raises(BadRequest, match="at least one"):
        null_maxima(np.zeros((0, 4)), draws=5, seed=0)
    with pytest.raises(BadRequest, match="drop the bad rows"):
        null_maxima(np.full((2, 4), np.nan), draws=5, seed=0)
    with pytest.raises(BadRequest, match="d >= 2"):
        expected_max(1, 10)
