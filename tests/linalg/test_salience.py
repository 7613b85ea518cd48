"""Gains of labelled vectors, and the largest by chance, against dense rotations."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from covector.errors import BadRequest
from covector.linalg.chance import rotation
from covector.linalg.norms import without_mean
from covector.linalg.salience import gains, haar_rows, null_top_gains

RNG = np.random.default_rng(0)
E = RNG.standard_normal((30, 12)) * RNG.uniform(0.5, 2, (30, 1))
U, S, VH = np.linalg.svd(RNG.standard_normal((12, 4)) @ RNG.standard_normal((4, 12)))
U, S, VH = U[:, :4], S[:4], VH[:4]


def dense_gains(M: np.ndarray) -> np.ndarray:
    return np.linalg.norm(E @ M, axis=1) / np.linalg.norm(E, axis=1) * np.sqrt(12) / np.linalg.norm(M)


def test_gains_are_those_of_the_dense_map() -> None:
    np.testing.assert_allclose(gains(E, np.linalg.norm(E, axis=1), U, S, 12), dense_gains(U * S @ VH), rtol=1e-12)


@pytest.mark.identity("SV-19")
def test_the_mean_square_gain_over_an_orthonormal_basis_is_one() -> None:
    Q = rotation(12, seed=1)
    assert np.mean(gains(Q, np.ones(12), U, S, 12) ** 2) == pytest.approx(1, rel=1e-12)


def test_the_largest_gain_by_chance_is_that_of_dense_rotations() -> None:
    units = E / np.linalg.norm(E, axis=1, keepdims=True)
    dense = [dense_gains(rotation(12, seed=(2, i)) @ (U * S @ VH)).max() for i in range(1500)]
    null = null_top_gains(units, np.stack([S, S[::-1], 0 * S]), 12, draws=1500, seed=3)
    assert ks_2samp(dense, null[:, 0]).pvalue > 1e-3
    assert ks_2samp(dense, null[:, 1]).pvalue > 1e-3  # the order of gains does not matter
    assert not null[:, 2].any()


def test_centred_frames_have_no_part_along_one_and_are_orthonormal() -> None:
    rows = haar_rows(np.random.default_rng(0), 4, 9, centred=True)
    np.testing.assert_allclose(rows @ np.ones(9), 0, atol=1e-14)
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-13)
    centred = without_mean(E)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    null = null_top_gains(units, S[None], 11, draws=50, seed=4)
    assert (null > 1).all()  # the largest of 30 exceeds the root-mean-square


def test_a_spectrum_longer_than_the_space_is_refused() -> None:
    with pytest.raises(BadRequest, match="expected spectra of 1 to d = 12 values"):
        null_top_gains(E, np.ones((1, 13)), 12, draws=1, seed=0)
