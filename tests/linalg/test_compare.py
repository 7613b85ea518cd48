"""How somebody else's SVD relates to ours, on the ways in which real programs differ."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy.linalg import svd as lapack_svd

from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.compare import relate
from covector.linalg.maps import Dense, Factored, Space
from covector.linalg.svd import SVD, svd

D, R = 48, 8
RESIDUAL, NEURONS = Space("residual", D), Space("neurons", 64)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


HEAD = Factored(normal(1, D, R), normal(1, R, D), RESIDUAL, RESIDUAL)
OURS = svd(HEAD)


def theirs(dtype: type = np.float64, *, full: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An SVD of the dense product by LAPACK's other driver, as any other program would make it."""
    U, S, Vh = lapack_svd(HEAD.dense().astype(dtype), lapack_driver="gesvd")
    return (U, S, Vh) if full else (U[:, :R], S[:R], Vh[:R])


def signed_like_ours() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, S, Vh = theirs()
    signs = np.sign(np.sum(U * OURS.U, axis=0))
    return U * signs, S, Vh * signs[:, None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_dyads_are_the_same_in_either_precision(dtype):
    relation = relate(OURS, *(array.astype(dtype) for array in signed_like_ours()))
    assert (relation.kind, relation.reading) == ("same", "as given")
    assert (relation.compared, relation.missing, relation.extra, relation.flipped) == (R, 0, 0, ())
    assert relation.words.startswith("same: 8 dyads agree to")
    # A backward error of some eps turns a dyad by that much over its gap.
    assert relation.vector_difference < 10 * np.finfo(dtype).eps / OURS.gap.min()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signs_of_another_driver_are_told_by_index(dtype):
    U, S, Vh = theirs(dtype)
    relation = relate(OURS, U, S, Vh)
    flipped = tuple(np.flatnonzero(np.sum(U * OURS.U, axis=0) < 0).tolist())
    assert flipped
    assert (relation.kind, relation.flipped) == ("sign", flipped)
    assert f"signs flipped at {flipped[0]}" in relation.words


def test_flipping_one_side_only_is_another_matrix():
    U, S, Vh = signed_like_ours()
    Vh = Vh.copy()
    Vh[3] *= -1
    relation = relate(OURS, U, S, Vh)
    assert (relation.kind, relation.first_difference) == ("different", 3)


@pytest.mark.parametrize("full", [True, False])
def test_v_given_for_vh_is_seen_and_read_the_other_way(full):
    U, S, Vh = theirs(full=full)
    relation = relate(OURS, U, S, Vh.T)
    assert (relation.kind, relation.reading) == ("transposed", "V for Vh")
    assert "read with V for Vh" in relation.words


def test_rows_of_v_taken_for_directions_are_recognised():
    _, _, Vh = theirs(full=True)
    U, S, _ = theirs()
    relation = relate(OURS, U, S, Vh.T[:R])
    assert (relation.kind, relation.reading) == ("transposed", "rows of V")
    assert "loadings of coordinate i" in relation.words
    # One loading may agree by accident.
    single = svd(Dense(np.outer(normal(10, 4), normal(11, 5)), Space("head", 4), Space("head", 5)))
    first_only = np.concatenate([single.Vh[:, :1], -single.Vh[:, 1:] + 0.1], axis=1)
    assert relate(single, np.array(single.U), np.array(single.S), first_only).kind == "different"
    # Rows that are random are not: nothing explains them.
    noise = np.linalg.qr(normal(3, D, R))[0].T
    assert relate(OURS, U, S, noise).kind == "different"


def test_an_svd_of_the_transposed_map_has_u_and_v_swapped():
    U, S, Vh = lapack_svd(HEAD.dense().T, full_matrices=False)
    assert relate(OURS, U[:, :R], S[:R], Vh[:R]).reading == "U and V swapped"
    assert relate(OURS, U[:, :R], S[:R], Vh[:R].T).reading == "swapped, V for Vh"


def test_another_order_is_found_and_given():
    U, S, Vh = signed_like_ours()
    order = np.random.default_rng(0).permutation(R)
    relation = relate(OURS, U[:, order], S[order], Vh[order])
    assert relation.kind == "permuted"
    assert relation.order == tuple(np.argsort(order).tolist())


def test_fewer_dyads_are_a_truncation_and_more_are_not_compared():
    U, S, Vh = signed_like_ours()
    fewer = relate(OURS, U[:, :3], S[:3], Vh[:3])
    assert (fewer.kind, fewer.compared, fewer.missing) == ("truncated", 3, R - 3)
    more = relate(OURS, *theirs(full=True))
    assert (more.kind, more.compared, more.extra) == ("sign", R, D - R)


def with_block() -> tuple[SVD, np.ndarray]:
    gains = np.array([3.0, 2.0, 2.0, 2.0, 1.0])
    U, V = (np.linalg.qr(normal(seed, D, 5))[0] for seed in (4, 5))
    return svd(Factored(U * gains, V.T.copy(), RESIDUAL, RESIDUAL)), np.linalg.qr(normal(6, 3, 3))[0]


def test_another_basis_of_a_block_is_a_rotation_inside_it():
    ours, turn = with_block()
    U, Vh = ours.U.copy(), ours.Vh.copy()
    U[:, 1:4], Vh[1:4] = U[:, 1:4] @ turn, turn.T @ Vh[1:4]
    relation = relate(ours, U, ours.S, Vh)
    assert (relation.kind, relation.rotated) == ("rotated", (range(1, 4),))
    assert "rotated inside 1-3" in relation.words
    # A block that leans out of its span by more than the rounding of float64 allows is another matrix.
    outside = normal(16, D)
    outside -= ours.Vh.T @ (ours.Vh @ outside)
    leaning = Vh.copy()
    leaning[2] += 1e-9 * outside / np.linalg.norm(outside)
    assert relate(ours, U, ours.S, leaning).first_difference == 1
    # Turning one side alone, or the two sides apart, is another matrix.
    assert relate(ours, U, ours.S, ours.Vh).first_difference == 1
    assert relate(ours, U, ours.S, np.concatenate([Vh[:1], turn @ Vh[1:4], Vh[4:]])).kind == "different"


@pytest.mark.parametrize("how", ["widened", "listed", "printed"])
def test_float32_arrays_that_became_float64_are_still_float32(how):
    W = normal(8, 64, D).astype(np.float32)
    ours = svd(Dense(W, NEURONS, RESIDUAL))
    arrays = [a.astype(np.float64) for a in lapack_svd(W, full_matrices=False)]
    if how == "listed":
        arrays = [np.array(a.tolist()) for a in arrays]
    if how == "printed":
        arrays = [np.array([float(f"{x:.7g}") for x in a.ravel()]).reshape(a.shape) for a in arrays]
    relation = relate(ours, *arrays)
    assert relation.kind == "sign"
    assert relation.departure is not None
    assert 1e-9 < relation.departure < 1e-5
    assert "compared as float32, their vectors being orthonormal to" in relation.words
    # Where such arrays part from ours is told by what float32 can tell.
    arrays[1][40] *= 1.01
    assert relate(ours, *arrays).first_difference == 40
    # Arrays that are orthonormal as float64 makes them get no such allowance, nor do those that are not at all.
    U, S, Vh = signed_like_ours()
    for stretched in (1 + 1e-15, 1 + 1e-3):
        wrong = relate(OURS, U * stretched, S * (1 + 1e-6), Vh)
        assert (wrong.kind, wrong.departure) == ("different", None)


def test_half_precision_can_hold_an_svd_though_it_cannot_make_one():
    U, S, Vh = (a.astype(np.float16) for a in theirs())
    assert relate(OURS, U, S, Vh).kind == "sign"
    coarse = [(a * 2**-3).astype(np.float32) for a in (U, S, Vh)]
    coarse = [(a.view(np.uint32) & 0xFFFF0000).view(np.float32) * 8 for a in coarse]
    assert relate(OURS, *coarse, held="bfloat16").kind == "sign"
    assert relate(OURS, *coarse).kind == "different"
    with pytest.raises(BadRequest, match="held must be one of float64, float32, float16, bfloat16, came 'fp8'"):
        relate(OURS, U, S, Vh, held="fp8")


def random_dyads(seed: int, k: int, gains: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, V = (np.linalg.qr(normal(seed + side, 128, k))[0] for side in (0, 100))
    return U, gains[:k], V.T.copy()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 5, 32])
def test_random_dyads_are_never_explained_by_what_a_dtype_leaves_open(dtype, k):
    space = Space("residual", 128)
    # Steps of a half-precision rounding: one run down to the kernel, in which no single dyad is fixed.
    falling = np.linspace(1.0, 0.002, 32)
    turned = [np.linalg.qr(normal(seed, 128, 32))[0] for seed in (20, 21)]
    for ours in (
        svd(Factored(normal(18, 128, 32), normal(19, 32, 128), space, space)),
        svd(Factored(turned[0] * falling, turned[1].T.copy(), space, space)),
    ):
        for seed in range(10):
            U, S, Vh = random_dyads(seed, k, np.array(ours.S))
            assert relate(ours, U.astype(dtype), S.astype(dtype), Vh.astype(dtype)).kind == "different"
        held = [np.array(a).astype(dtype) for a in (ours.U[:, :k], ours.S[:k], ours.Vh[:k])]
        assert relate(ours, *held).kind != "different"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_dyad_of_a_degenerate_pair_has_its_gain_and_lies_in_its_span(dtype):
    U, V = (np.linalg.qr(normal(seed, 128, 2))[0] for seed in (30, 31))
    space = Space("residual", 128)
    ours = svd(Factored(U * 2.0, V.T.copy(), space, space))
    turn = np.linalg.qr(normal(32, 2, 2))[0]

    def one(left: np.ndarray, gain: float, right: np.ndarray) -> str:
        return relate(ours, left.astype(dtype)[:, None], np.array([gain], dtype), right.astype(dtype)[None]).kind

    left, right = ours.U @ turn[:, 0], turn[:, 0] @ ours.Vh
    assert one(left, 2.0, right) == "undetermined"
    assert one(left, 42.0, right) == "different"
    assert one(left, 2.0, -right) == "different"
    assert one(left, 2.0, turn[:, 1] @ ours.Vh) == "different"
    assert one(0 * left, 2.0, 0 * right) == "different"
    # Leaning out of the span alike on both sides, with the gain of what stays inside.
    beside = np.linalg.qr(np.stack([ours.U[:, 0], ours.U[:, 1], normal(34, 128)], axis=1))[0][:, 2]
    aside = np.linalg.qr(np.stack([ours.Vh[0], ours.Vh[1], normal(35, 128)], axis=1))[0][:, 2]
    assert one(0.8 * left + 0.6 * beside, 2.0, 0.8 * right + 0.6 * aside) == "different"
    apart = random_dyads(33, 1, np.array([2.0]))
    assert one(apart[0][:, 0], 2.0, apart[2][0]) == "different"
    assert one(apart[0][:, 0], 42.0, apart[2][0]) == "different"


def test_a_dyad_beside_what_was_left_out_of_ours_must_not_meet_our_other_dyads():
    whole, _ = with_block()
    ours = svd(Factored(whole.U * whole.S, np.array(whole.Vh), RESIDUAL, RESIDUAL), rank=2)
    U, S, Vh = (np.array(a) for a in (whole.U[:, :2], whole.S[:2], whole.Vh[:2]))
    assert relate(ours, U, S, Vh).undetermined == (1,)
    # Any unit vectors of the unseen rest would do, but with this gain.
    unseen = np.array(whole.U[:, [0, 4]]), np.array(whole.Vh[[0, 4]])
    assert relate(ours, unseen[0], S, unseen[1]).undetermined == (1,)
    for left, right in ((U, Vh), unseen):
        assert relate(ours, left, S * [1, 0.75], right).first_difference == 1
    tilted = U @ np.array([[1.0, 0.6], [0.0, 0.8]])
    assert relate(ours, tilted, S, Vh).first_difference == 1


def test_a_block_that_was_cut_short_determines_nothing():
    ours, _ = with_block()
    two = svd(Factored(ours.U * ours.S, np.array(ours.Vh), RESIDUAL, RESIDUAL), rank=2)
    relation = relate(two, np.array(ours.U), np.array(ours.S), np.array(ours.Vh))
    assert relation.undetermined == (1,)
    one_of_block = relate(ours, ours.U[:, 1:2], ours.S[1:2], ours.Vh[1:2])
    assert one_of_block.kind != "same"


def test_other_gains_or_directions_differ_from_the_first_that_does():
    U, S, Vh = signed_like_ours()
    gains = S.copy()
    gains[2] *= 1 + 1e-6
    relation = relate(OURS, U, gains, Vh)
    assert (relation.kind, relation.first_difference) == ("different", 2)
    assert relation.gain_difference == pytest.approx(1e-6 * S[2] / S[0], rel=1e-6)
    assert max(relation.left_angle, relation.right_angle) < 1e-12
    # In float32 a millionth of a gain is within reach of any program's rounding.
    assert relate(OURS, *(array.astype(np.float32) for array in (U, gains, Vh))).kind == "same"


def test_the_angle_between_spans_is_the_one_that_was_planted():
    U, S, Vh = signed_like_ours()
    outside = normal(7, D)
    outside -= OURS.U @ (OURS.U.T @ outside)
    U = U.copy()
    U[:, 5] = np.cos(0.3) * U[:, 5] + np.sin(0.3) * outside / np.linalg.norm(outside)
    relation = relate(OURS, U, S, Vh)
    assert (relation.kind, relation.first_difference) == ("different", 5)
    assert relation.left_angle == pytest.approx(0.3, rel=1e-9)
    assert relation.right_angle < 1e-12
    assert "different from dyad 5 on" in relation.words
    assert "0.3 rad (read)" in relation.words


def test_an_mlp_in_float32_agrees_with_ours_up_to_sign_and_order_of_close_dyads():
    W = normal(8, 64, D).astype(np.float32)
    ours = svd(Dense(W, NEURONS, RESIDUAL))
    relation = relate(ours, *lapack_svd(W, full_matrices=False))
    assert (relation.kind, relation.compared) == ("sign", D)
    assert relation.words.count("\n") == 0


def test_the_svd_of_another_matrix_is_different():
    other = svd(Factored(normal(9, D, R), normal(9, R, D), RESIDUAL, RESIDUAL))
    relation = relate(OURS, np.array(other.U), np.array(other.S), np.array(other.Vh))
    assert (relation.kind, relation.first_difference) == ("different", 0)
    assert relation.left_angle > 1


def test_arrays_that_cannot_be_an_svd_of_the_map_are_refused():
    U, S, Vh = theirs()
    with pytest.raises(SpaceMismatch, match=r"expected U \[48, k\], S \[k\], Vh \[k, 48\], came \(47, 8\)"):
        relate(OURS, U[1:], S, Vh)
    with pytest.raises(BadRequest, match="expected finite"):
        relate(OURS, U * np.nan, S, Vh)
    nothing = svd(Dense(np.zeros((D, D)), RESIDUAL, RESIDUAL))
    with pytest.raises((BadRequest, TypeCheckError), match="rank 0"):
        relate(nothing, U, S, Vh)
