"""Eigenvalue positivity: the small core has the eigenvalues of the whole map, and its null those of random maps."""

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest

from covector.errors import BadRequest
from covector.linalg import positivity as module
from covector.linalg.chance import rotation
from covector.linalg.chance.haar import draw_corners
from covector.linalg.positivity import core_positivity, draw_overlaps, null_positivity, positivity


def factors(seed: int, d: int = 24, r: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((d, r)), rng.standard_normal((r, d))


def dense_eta(M: np.ndarray, rank: int) -> float:
    """η from all eigenvalues of a dense matrix: those beyond the rank are zero up to rounding."""
    values = np.linalg.eigvals(M)
    values = values[np.argsort(-np.abs(values))][:rank]
    return float(values.sum().real / np.abs(values).sum())


@pytest.mark.identity("SV-23")
@pytest.mark.parametrize("seed", range(5))
def test_the_core_has_the_nonzero_eigenvalues_of_the_map(seed: int) -> None:
    A, B = factors(seed)
    found, M = positivity(A, B), A @ B
    whole = np.linalg.eigvals(M)
    # A zero eigenvalue of a dense 24 × 24 matrix of norm ~100 comes out at about 1e-14 times that.
    assert found.absolute == pytest.approx(np.abs(whole).sum(), rel=1e-11)
    assert found.trace == pytest.approx(np.trace(M), rel=1e-11)
    assert found.nuclear == pytest.approx(np.linalg.norm(M, "nuc"), rel=1e-11)
    assert found.eta == pytest.approx(dense_eta(M, 5), rel=1e-10)
    assert found.absolute <= found.nuclear * (1 + 1e-12)
    assert -1 <= found.eta <= 1


@pytest.mark.identity("SV-23")
def test_a_positive_symmetric_map_has_eta_one_and_its_negative_minus_one() -> None:
    A, _ = factors(0)
    assert positivity(A, A.T).eta == pytest.approx(1, abs=1e-12)
    assert positivity(A, -A.T).eta == pytest.approx(-1, abs=1e-12)
    found = positivity(A, A.T)
    assert found.absolute == pytest.approx(found.nuclear, rel=1e-12)  # Weyl is an equality for normal maps


@pytest.mark.identity("SV-23")
def test_eta_changes_its_sign_with_the_map_and_does_not_see_rotations_scales_or_the_basis_of_the_head() -> None:
    A, B = factors(1)
    Q, G = rotation(24, seed=0), np.random.default_rng(2).standard_normal((5, 5))
    eta = positivity(A, B).eta
    assert positivity(-A, B).eta == pytest.approx(-eta, rel=1e-12)
    assert positivity(Q.T @ A, B @ Q).eta == pytest.approx(eta, rel=1e-10)
    assert positivity(A @ G, np.linalg.inv(G) @ B).eta == pytest.approx(eta, rel=1e-9)
    assert positivity(3 * A, B).eta == pytest.approx(eta, rel=1e-12)
    # Turning one side only is not a change of coordinates.
    assert abs(positivity(A, B @ Q).eta - eta) > 1e-3


@pytest.mark.identity("SV-23")
def test_the_full_circuit_is_read_off_its_small_core() -> None:
    A, B = factors(3)
    rng = np.random.default_rng(4)
    W_E, W_U = rng.standard_normal((40, 24)), rng.standard_normal((24, 40))
    T = W_U @ W_E
    assert float(core_positivity(B @ T @ A)) == pytest.approx(dense_eta(W_E @ A @ B @ W_U, 5), rel=1e-9)
    # The other order of T is the circuit of other matrices.
    assert abs(float(core_positivity(B @ T.T @ A)) - float(core_positivity(B @ T @ A))) > 1e-3


def test_a_nilpotent_map_has_no_eta() -> None:
    A, B = np.eye(6)[:, :2], np.eye(6)[2:4]
    found = positivity(A, B)
    assert np.isnan(found.eta)
    assert (found.trace, found.absolute, found.nuclear) == (0, 0, 2)


def test_a_map_between_different_spaces_has_no_eigenvalues() -> None:
    with pytest.raises(BadRequest, match="eigenvalues need a map from a space to itself, came 7 -> 6"):
        positivity(np.ones((7, 2)), np.ones((2, 6)))


@pytest.mark.parametrize(("d", "r"), [(12, 3), (7, 5), (6, 6), (40, 8)])
def test_overlaps_are_corners_of_haar_rotations(d: int, r: int) -> None:
    """Against corners drawn by QR: the same law of an entry, of the Frobenius norm and of the trace."""
    draws = 4000
    made = draw_overlaps(np.random.default_rng(0), draws, d, r)
    known = draw_corners(np.random.default_rng(1), draws, d, r, r)
    for statistic in (
        lambda x: x[:, 0, -1],
        lambda x: np.linalg.norm(x, axis=(1, 2)),
        lambda x: np.trace(x, axis1=1, axis2=2),
    ):
        if r == d and statistic(known).std() < 1e-9:
            continue  # the norm of a whole rotation is √d
        assert ks_2samp(statistic(made), statistic(known)).pvalue > 1e-3
    assert np.mean(made**2) == pytest.approx(1 / d, rel=5 / np.sqrt(draws))


@pytest.mark.parametrize(("d", "r", "seen"), [(16, 4, False), (16, 4, True), (4, 3, False), (3, 3, False)])
def test_the_null_is_that_of_dense_maps_of_equal_spectrum_that_write_at_random(d: int, r: int, seen: bool) -> None:
    rng = np.random.default_rng(6)
    U, Vh, S = np.linalg.qr(rng.standard_normal((d, r)))[0], rotation(d, seed=9)[:r], np.geomspace(3, 0.3, r)
    # What is seen weighs the read directions very unequally, so that its triangle is not to be transposed.
    T = rng.standard_normal((d, r)) * np.geomspace(100, 0.1, r) @ U.T if seen else np.eye(d)
    dense = [dense_eta(U * S @ Vh @ rotation(d, seed=(7, i)) @ T, r) for i in range(3000)]
    null = null_positivity(S, d, draws=3000, seed=8, seen=T @ U if seen else None)
    assert ks_2samp(dense, null).pvalue > 1e-3
    # Symmetric: the mean is zero within four standard errors.
    assert abs(null.mean()) < 4 * null.std() / np.sqrt(len(null))


def test_one_draw_of_the_null_is_the_eta_of_the_dense_circuit_with_that_rotation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    A, B = factors(5, d=16, r=4)
    U, S, Vh = np.linalg.svd(A @ B)
    U, S, Vh = U[:, :4], S[:4], Vh[:4]
    T, Q = np.random.default_rng(6).standard_normal((16, 16)), rotation(16, seed=7)
    overlap = Vh @ Q @ np.linalg.qr(T @ U)[0]
    monkeypatch.setattr(module, "draw_overlaps", lambda rng, count, *_: np.broadcast_to(overlap, (count, 4, 4)))
    null = null_positivity(S, 16, draws=3, seed=0, seen=T @ U)
    np.testing.assert_allclose(null, dense_eta(U * S @ Vh @ Q @ T, 4), rtol=1e-9)


def test_p_values_of_random_maps_are_uniform() -> None:
    S = np.array([3.0, 1.0, 0.5, 0.2])
    null = np.abs(null_positivity(S, 16, draws=4000, seed=1))
    observed = np.abs(null_positivity(S, 16, draws=600, seed=2))
    p = np.array([(null >= x).mean() for x in observed])
    assert kstest(p, "uniform").pvalue > 1e-3


def test_draws_continue_and_do_not_depend_on_who_makes_them() -> None:
    S = np.array([2.0, 1.0])
    whole = null_positivity(S, 9, draws=150, seed=3)
    parts = [null_positivity(S, 9, draws=n, seed=3, first=f) for f, n in ((0, 70), (70, 80))]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    with pytest.raises(BadRequest, match="expected 1 to d = 3 singular values"):
        null_positivity(np.ones(4), 3, draws=1, seed=0)
