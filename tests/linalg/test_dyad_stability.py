"""Stability of dyads under small changes of the stored arrays, against perturbation theory and planted gaps."""

import tracemalloc

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.chance import haar_frame
from covector.linalg.chance.streams import generator
from covector.linalg.maps import Dense, Factored, Space
from covector.linalg.stability import paired, stability
from covector.linalg.svd import svd

STREAM = Space("residual", 40)


def planted(S: np.ndarray, factored: bool = True, stored: str = "float32") -> Factored | Dense:
    r = len(S)
    U, Vh = haar_frame(40, r, seed=1).T, haar_frame(40, r, seed=2)
    if not factored:
        return Dense((U * S) @ Vh, STREAM, STREAM, stored)
    return Factored(U * np.sqrt(S), np.sqrt(S)[:, None] * Vh, STREAM, STREAM, stored)


@pytest.mark.parametrize("factored", [True, False])
def test_a_dyad_turns_by_noise_over_gap(factored: bool) -> None:
    """First order, dense: v_i turns towards v_j by (σ_i E_ij… )/gap; here only what lies outside the span of r = 1."""
    m = planted(np.array([1.0]), factored)
    delta = 0.02
    found = stability(m, svd(m), delta=delta, draws=101, seed=0)
    # Rank one. The written side turns by the noise of B alone (factored: δ‖B‖ spread over 40 entries, 39 of them off
    # the direction), or by that of uᵀE (dense: δ over 40 × 40 entries).
    angle = delta * np.sqrt(39 / 40) if factored else delta * np.sqrt(39) / 40
    assert np.arccos(found.write[0]) == pytest.approx(angle, rel=0.1)
    assert np.arccos(found.read[0]) == pytest.approx(angle, rel=0.1)


def test_close_gains_are_unstable_and_far_ones_are_not() -> None:
    m = planted(np.array([3.0, 2.0, 1.001, 1.0]))
    found = stability(m, svd(m), delta=0.01, seed=0)
    assert (found.write[:2] > 0.99).all()
    assert (found.write[2:] < 0.98).all()
    # Within the pair the rotation is by any angle; its median cosine after pairing lies above cos 45°.
    assert (found.write[2:] > 0.6).all()


def test_storage_rounding_is_what_is_meant_by_no_delta() -> None:
    S = np.array([3.0, 1.0004, 1.0])
    coarse, fine = (stability(m, svd(m)) for m in (planted(S, stored="bfloat16"), planted(S, stored="float32")))
    assert coarse.delta == pytest.approx(0.425 * 2**-8)
    assert (fine.write > 1 - 1e-6).all()
    assert coarse.write[1] < 0.99 < coarse.write[0]
    assert (coarse.perturbed, stability(planted(S, False), svd(planted(S, False))).perturbed) == (
        "each factor",
        "the matrix",
    )


def test_dyads_are_paired_by_both_sides_whatever_their_order_and_sign() -> None:
    m = planted(np.array([3.0, 2.0, 1.0]))
    ours = svd(m)
    other = svd(planted(np.array([3.0, 2.0, 1.0])))
    shuffled = type("Found", (), {"U": -other.U[:, [2, 0, 1]], "Vh": -other.Vh[[2, 0, 1]]})
    read, write = paired.__wrapped__(ours, shuffled)
    np.testing.assert_allclose([read, write], 1, atol=1e-9)


def test_each_side_has_its_own_stability() -> None:
    """B large in a space of 5 and A small in one of 40: noise turns what is read by more, √39 against √4 entries."""
    U, Vh = haar_frame(40, 1, seed=1).T, haar_frame(5, 1, seed=2)
    m = Dense(U @ Vh, STREAM, Space("few", 5))
    found = stability(m, svd(m), delta=0.2, draws=101)
    turned_read, turned_write = np.arccos(found.read[0]), np.arccos(found.write[0])
    # uᵢ is turned by E v, 39 entries off u of size 0.2/√200 each; vᵢ by uᵀE, 4 of them.
    assert turned_read == pytest.approx(0.2 * np.sqrt(39 / 200), rel=0.15)
    assert turned_write == pytest.approx(0.2 * np.sqrt(4 / 200), rel=0.3)


def test_a_dyad_left_without_a_partner_has_no_stability() -> None:
    """A map of rank two whose dyads are looked for in one of rank one."""
    two, one = svd(planted(np.array([2.0, 1.0]))), svd(planted(np.array([2.0, 1.0])), 1)
    found = type("Found", (), {"U": one.U, "Vh": one.Vh})
    read, write = paired.__wrapped__(two, found)
    assert (read[1], write[1]) == (0, 0)
    assert read[0] == pytest.approx(1)


def test_the_same_seed_gives_the_same_stability() -> None:
    m = planted(np.array([2.0, 1.05, 1.0]))
    one, other, third = (stability(m, svd(m), delta=0.05, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.write, other.write)
    assert (one.write != third.write).any()


def test_nonsense_is_refused() -> None:
    m = planted(np.array([2.0, 1.0]))
    with pytest.raises(BadRequest, match="delta >= 0, draws >= 1"):
        stability(m, svd(m), delta=-1.0)
    with pytest.raises(BadRequest, match="delta >= 0, draws >= 1"):
        stability(m, svd(m), draws=0)


WIDE_STREAM, NEURONS = Space("residual", 96), Space("neurons", 2500)


def matrix(gains: np.ndarray, seed: int = 5, width: int = 96) -> np.ndarray:
    """2500 × width of these gains."""
    left, right = haar_frame(2500, len(gains), seed=seed).T, haar_frame(width, len(gains), seed=seed + 1)
    return (left * gains) @ right


def moved_by_hand(W: np.ndarray, delta: float, seed: int, draw: int) -> np.ndarray:
    """The matrix that a draw of the noise makes of W, put together from its blocks in falling order."""
    n, m = W.shape
    made = np.empty_like(W)
    for index in (2, 1, 0):
        rows = slice(1024 * index, min(1024 * (index + 1), n))
        noise = generator((seed, draw), "moved rows", index).standard_normal(W[rows].shape)
        made[rows] = W[rows] + delta * np.linalg.norm(W) / np.sqrt(n * m) * noise
    return made


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rank", [3, 96])
def test_a_matrix_moved_by_blocks_on_the_way_into_its_gram_is_the_matrix_moved(turned: bool, rank: int) -> None:
    """Of either orientation, the leading dyads or all of them, against LAPACK's SVD of the moved matrix."""
    W = matrix(np.geomspace(1, 0.02, 96))
    m = Dense(W, NEURONS, WIDE_STREAM, "float32")
    m = m.T if turned else m
    whole = svd(m, rank)
    found = stability(m, whole, delta=0.02, draws=1, seed=4)
    U, _, Vh = np.linalg.svd(moved_by_hand(W, 0.02, 4, 0), full_matrices=False)
    U, Vh = (Vh.T, U.T) if turned else (U, Vh)
    again = type("Found", (), {"U": U, "Vh": Vh})
    read, write = paired.__wrapped__(whole, again)
    # A Gram's vectors for gains down to σ₁/50, the noise's own floor: eps·50²/gap, gaps from 1e-3 of squares on.
    np.testing.assert_allclose(found.read, read, atol=1e-7)
    np.testing.assert_allclose(found.write, write, atol=1e-7)


def test_the_shorter_side_alone_is_found_again_as_with_both() -> None:
    m = Dense(matrix(np.geomspace(1, 0.1, 96)), NEURONS, WIDE_STREAM, "float32")
    short = svd(m, 8, stream_only=True)
    assert not short.U.shape[1]
    found = stability(m, short, delta=0.01, draws=3, seed=2)
    assert np.isnan(found.read).all()
    np.testing.assert_allclose(
        found.write[:4], stability(m, svd(m, 8), delta=0.01, draws=3, seed=2).write[:4], atol=1e-9
    )


def test_partners_are_looked_for_among_more_dyads_than_are_kept() -> None:
    """Twelve equal gains and one kept: after the noise its partner is anywhere among the twelve, none of them far."""
    gains = np.concatenate([1 + 1e-6 * np.arange(12)[::-1], np.full(84, 1e-3)])
    m = Dense(matrix(gains), NEURONS, WIDE_STREAM, "float32")
    one = stability(m, svd(m, 1), delta=1e-3, draws=9, seed=0).write
    # The largest of twelve coordinates of a Haar direction has median .57 (of one coordinate alone: .2).
    assert 0.4 < one[0] < 0.8
    _, _, Vh = np.linalg.svd(moved_by_hand(m.dense(), 1e-3, 0, 0), full_matrices=False)
    best = np.abs(Vh @ svd(m, 1).Vh[0]).max()
    assert stability(m, svd(m, 1), delta=1e-3, draws=1, seed=0).write[0] == pytest.approx(best, abs=1e-6)


def test_small_noise_is_taken_to_the_matrix_itself() -> None:
    """Rounding of float64 storage, 5e-17 of the norm: a Gram would turn weak dyads by a thousand times as much."""
    gains = np.concatenate([np.geomspace(1, 1e-5, 40), np.geomspace(1e-6, 1e-7, 56)])
    m = Dense(matrix(gains), NEURONS, WIDE_STREAM, "float64")
    assert (stability(m, svd(m)).write > 1 - 1e-12).all()


def test_no_moved_copy_of_a_matrix_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covector.linalg.maps.TILE_ENTRIES", 2**16)  # of the norm
    W = np.random.default_rng(0).standard_normal((40_000, 64), dtype=np.float32)
    m = Dense(W, Space("neurons", 40_000), Space("residual", 64), "float32")
    found = svd(m, 4, stream_only=True)
    tracemalloc.start()
    try:
        stability(m, found, delta=0.01, draws=2)
        assert tracemalloc.get_traced_memory()[1] < 0.5 * W.nbytes
    finally:
        tracemalloc.stop()
