"""`svd(stream_only=True)`: the side in the stream as ever, the other one left out, whatever route finds it."""

import numpy as np
import pytest

from covector.linalg import dense_svd
from covector.linalg.maps import Dense, Space
from covector.linalg.svd import svd

D = 24
STREAM, NEURONS = Space("residual", D), Space("neurons", 90, "L0")
# Routes: values in reach of the Gram, one weak dyad (a centred matrix), most of them weak.
SPECTRA = {
    "Gram": np.linspace(3.0, 1.0, D),
    "weak part": np.append(np.linspace(3.0, 1.0, D - 3), [1e-4, 1e-7, 1e-9]),
    "QR": np.geomspace(1.0, 1e-10, D),
}


def matrix(spectrum: np.ndarray, long: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((n, D)))[0] for n in (long, D))
    return (U * spectrum) @ V.T


def a_map(M: np.ndarray, writes: bool) -> Dense:
    """[neurons, stream] as an MLP writes, or [stream, neurons] as it reads."""
    other = Space("neurons", M.shape[0], "L0")
    return Dense(M, other, STREAM, "float64") if writes else Dense(M.T.copy(), STREAM, other, "float64")


@pytest.mark.parametrize("route", SPECTRA)
@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("long", [D + 1, 90, 5000])
def test_the_side_in_the_stream_is_that_of_the_whole_svd(route, writes, long, monkeypatch):
    monkeypatch.setattr(dense_svd, "TRIANGLE_ROWS", 30)  # several steps even here
    m = a_map(matrix(SPECTRA[route], long), writes)
    whole, found = svd(m), svd(m, stream_only=True)
    assert (found.U.shape[1], found.Vh.shape[0]) == ((0, D) if writes else (D, 0))
    assert found.route == whole.route
    np.testing.assert_allclose(found.S, whole.S, atol=1e-14 * whole.S[0])
    rows, exact = (found.Vh, whole.Vh) if writes else (found.U.T, whole.U.T)
    np.testing.assert_allclose(rows @ rows.T, np.eye(D), atol=1e-11)
    # A dyad turns by rounding over its distance to the next gain, relative to the largest.
    firm = whole.gap > 1e-6
    np.testing.assert_allclose(rows[firm], exact[firm], atol=1e-8)
    assert found.blocks == whole.blocks
    np.testing.assert_allclose(found.gap, whole.gap, atol=1e-13)


@pytest.mark.parametrize("writes", [True, False])
def test_the_leading_dyads_alone_are_the_first_of_all(writes):
    m = a_map(matrix(SPECTRA["Gram"], 90), writes)
    few, whole = svd(m, 3, stream_only=True), svd(m)
    rows, exact = (few.Vh, whole.Vh) if writes else (few.U.T, whole.U.T)
    np.testing.assert_allclose(rows, exact[:3], atol=1e-10)
    np.testing.assert_allclose(np.concatenate([few.S, few.beyond]), whole.S, atol=1e-7 * whole.S[0])


def test_a_stream_that_is_the_longer_side_comes_with_both():
    M = np.random.default_rng(0).standard_normal((D, 9))
    m = Dense(M, STREAM, Space("neurons", 9, "L0"), "float64")
    found = svd(m, stream_only=True)
    assert (found.U.shape, found.Vh.shape) == ((D, 9), (9, 9))
    np.testing.assert_allclose((found.U * found.S) @ found.Vh, M, atol=1e-12)


def test_the_triangle_needs_a_tile_and_not_the_matrix(monkeypatch):
    """RᵀR = MᵀM from pieces of any size."""
    M = matrix(SPECTRA["QR"], 777)
    for rows in (25, 100, 10_000):
        monkeypatch.setattr(dense_svd, "TRIANGLE_ROWS", rows)
        R = dense_svd._triangle(M, None)
        assert R.shape == (D, D)
        np.testing.assert_allclose(R.T @ R, M.T @ M, atol=1e-14)
        X = np.linalg.qr(np.random.default_rng(1).standard_normal((D, 5)))[0]
        np.testing.assert_allclose((T := dense_svd._triangle(M, X)).T @ T, X.T @ M.T @ M @ X, atol=1e-14)
