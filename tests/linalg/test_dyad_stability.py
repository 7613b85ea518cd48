"""Stability of dyads under small changes of the stored arrays, against perturbation theory and planted gaps."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.chance import haar_frame
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
