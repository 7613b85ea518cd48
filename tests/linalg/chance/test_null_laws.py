"""Covariance-matched directions have the covariance, and a basis as root means Haar inside its span."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.chance import (
    Matched,
    covariance_root,
    haar_directions,
    haar_frame,
    matched_directions,
    null_maxima,
    tail,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("n", "d"), [(3, 20), (20, 20), (9000, 6)])
def test_the_root_squares_to_the_second_moment_about_zero(n, d):
    vectors = RNG.standard_normal((n, d)) + 1.0  # a common mean, which must not be taken out
    root = covariance_root(vectors)
    assert root.shape == (min(n, d), d)
    np.testing.assert_allclose(root.T @ root, vectors.T @ vectors / n, rtol=1e-10, atol=1e-12)


def test_matched_directions_are_gaussian_directions_of_that_covariance():
    root = RNG.standard_normal((4, 4))
    directions = matched_directions(root.T @ root, 4000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-14)
    # Whitening undoes the covariance, so what is left must be Haar; and without whitening it is not.
    white = directions @ np.linalg.inv(root)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    assert stats.kstest(tail(white[:, 0], 4), "uniform").pvalue > 0.01
    assert stats.kstest(tail(directions[:, 0], 4), "uniform").pvalue < 0.01


def test_matched_directions_of_an_isotropic_covariance_are_haar():
    directions = matched_directions(3.0 * np.eye(16), 3000, seed=2)
    assert stats.kstest(tail(directions[:, 5], 16), "uniform").pvalue > 0.01


def test_a_basis_as_root_draws_haar_directions_inside_its_span():
    basis, target = haar_frame(30, 5, seed=1), haar_directions(1, 30, seed=2)
    maxima = null_maxima(target, draws=3000, seed=3, law=Matched(basis))
    assert stats.kstest(tail(maxima / np.linalg.norm(basis @ target[0]), 5), "uniform").pvalue > 0.01


def test_what_is_no_covariance_or_no_basis_is_refused():
    with pytest.raises(BadRequest, match="a covariance is symmetric"):
        matched_directions(np.array([[1.0, 1.0], [0.0, 1.0]]), 3, seed=0)
    with pytest.raises(BadRequest, match="no negative variance"):
        matched_directions(np.diag([1.0, -1.0]), 3, seed=0)
    with pytest.raises(BadRequest, match="a finite covariance that is not null"):
        matched_directions(np.zeros((2, 2)), 3, seed=0)
    with pytest.raises(BadRequest, match="not all null"):
        covariance_root(np.zeros((3, 2)))
    with pytest.raises(BadRequest, match="finite vectors"):
        covariance_root(np.array([[np.nan, 1.0]]))
    with pytest.raises(SpaceMismatch, match="lives in 5 dimensions, the vectors in 4"):
        null_maxima(np.eye(4), draws=5, seed=0, law=Matched(np.eye(5)))
