"""Rotating the dictionary keeps spectra and inner products and makes alignment chance."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import haar_directions, haar_frame, null_gain, null_max_of_frame, rotation_null

S = np.array([3.0, 2.0, 1.0, 0.5, 0.0])


def gain(vectors, M):
    return np.mean(np.linalg.norm(vectors @ M, axis=1) ** 2) / (np.sum(M**2) / len(M))


def test_rotated_vectors_keep_their_inner_products():
    vectors = haar_directions(3, 9, seed=1)
    drift = rotation_null(lambda e: np.abs(e @ e.T - vectors @ vectors.T).max(), vectors, draws=20, seed=2)
    assert drift.max() < 1e-14


@pytest.mark.identity("SV-19")
@pytest.mark.parametrize("n", [1, 4, 30])
def test_null_gain_follows_the_law_of_the_gain_of_rotated_vectors(n):
    vectors = haar_directions(n, 12, seed=n)
    M = haar_frame(12, 5, seed=5).T * S @ haar_frame(8, 5, seed=6)
    slow = rotation_null(lambda e: gain(e, M), vectors, draws=1500, seed=7)
    quick = null_gain(S, vectors, draws=4000, seed=8)
    assert stats.ks_2samp(quick, slow).pvalue > 0.01
    # Mean exactly 1, for any vectors and any spectrum.
    assert quick.mean() == pytest.approx(1, abs=4 * quick.std() / np.sqrt(4000))


def test_a_flat_spectrum_or_a_whole_basis_leaves_the_gain_no_freedom():
    np.testing.assert_allclose(
        null_gain(np.full(6, 2.0), haar_directions(3, 6, seed=1), draws=50, seed=2), 1, rtol=1e-12
    )
    np.testing.assert_allclose(null_gain(S, np.eye(6), draws=50, seed=2), 1, rtol=1e-12)


@pytest.mark.identity("SV-36")
def test_null_gain_does_not_depend_on_the_scale_of_the_map():
    vectors = haar_directions(3, 16, seed=1)
    np.testing.assert_allclose(
        null_gain(S, vectors, draws=50, seed=2), null_gain(1e-3 * S, vectors, draws=50, seed=2), rtol=1e-12
    )


def test_the_general_null_and_the_special_one_of_maxima_agree():
    vectors, frame = haar_directions(3, 20, seed=1), haar_frame(20, 8, seed=2)
    slow = rotation_null(lambda e: np.abs(e @ frame.T).max(), vectors, draws=1500, seed=3)
    assert stats.ks_2samp(null_max_of_frame(vectors, 8, draws=4000, seed=4), slow).pvalue > 0.01


def test_unnormalised_vectors_and_impossible_spectra_are_refused():
    unit = haar_directions(3, 6, seed=1)
    with pytest.raises(BadRequest, match="the gain takes unit vectors, norms run 2–2"):
        null_gain(S, 2 * unit, draws=5, seed=0)
    with pytest.raises(BadRequest, match="expected 1 to 6 singular values"):
        null_gain(np.zeros(3), unit, draws=5, seed=0)
    with pytest.raises(BadRequest, match="expected 1 to 6 singular values"):
        null_gain(np.ones(7), unit, draws=5, seed=0)
    with pytest.raises(BadRequest, match="finite vectors"):
        rotation_null(np.max, np.full((2, 3), np.inf), draws=5, seed=0)
