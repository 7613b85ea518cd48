"""Dyads: what they are, what leaves them alone, where they stop being defined, and what rounding does to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy.linalg import svd as lapack_svd

from covector.errors import BadRank, BadRequest
from covector.linalg import maps
from covector.linalg.blocks import wedin_bounds
from covector.linalg.maps import Dense, Factored, Map, Space, Updated
from covector.linalg.signs import canonical_signs
from covector.linalg.storage_noise import UNIT_ROUNDOFF
from covector.linalg.svd import SVD, svd

LAWS = settings(max_examples=15, deadline=None, derandomize=True)
D, HEAD, MLP = 24, 6, 40
RESIDUAL, NEURONS = Space("residual", D), Space("neurons", MLP)
# Vectors of well separated dyads: rounding of a few hundred products over gaps of a percent, 1e-16 * 1e2 * 1e2.
CLOSE = 1e-10


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def orthonormal(seed: int, n: int, r: int) -> np.ndarray:
    return np.linalg.qr(normal(seed, n, r))[0]


def planted(seed: int, gains: np.ndarray, n: int = D, m: int = D) -> tuple[np.ndarray, np.ndarray]:
    """Factors A, B whose product has exactly these gains, hidden behind a random basis of the head."""
    r = len(gains)
    basis = orthonormal(seed + 1, r, r)
    root = np.sqrt(gains)
    return (orthonormal(seed + 2, n, r) * root) @ basis, basis.T @ (root[:, None] * orthonormal(seed + 3, m, r).T)


def head(seed: int) -> Factored:
    return Factored(normal(seed, D, HEAD), normal(seed, HEAD, D), RESIDUAL, RESIDUAL)


def mlp_in(seed: int) -> Dense:
    return Dense(normal(seed, D, MLP), RESIDUAL, NEURONS)


def mlp_out(seed: int) -> Dense:
    return Dense(normal(seed, MLP, D), NEURONS, RESIDUAL)


def edited(seed: int) -> Updated:
    return Updated(mlp_out(seed), normal(seed, MLP, 2), normal(seed, 2, D))


def heads_of_a_layer(seed: int) -> Factored:
    """More inner than outer dimensions: eight heads of six in a stream of twenty-four."""
    return Factored(normal(seed, D, 8 * HEAD), normal(seed, 8 * HEAD, D), RESIDUAL, RESIDUAL)


every_kind = pytest.mark.parametrize("kind", [head, mlp_in, mlp_out, edited, heads_of_a_layer])


def projectors(d: SVD) -> list[np.ndarray]:
    """Per block, what is defined whatever the basis inside: the sum of u vᵀ."""
    return [d.U[:, block] @ d.Vh[block] for block in d.blocks]


def same_dyads(one: SVD, other: SVD, tolerance: float = CLOSE) -> None:
    np.testing.assert_allclose(one.S, other.S, rtol=tolerance)
    np.testing.assert_allclose(one.U, other.U, atol=tolerance)
    np.testing.assert_allclose(one.Vh, other.Vh, atol=tolerance)


# ---- what a decomposition is


@pytest.mark.identity("SV-2")
@every_kind
@LAWS
@given(seed=st.integers(0, 999))
def test_dyads_are_orthonormal_and_rebuild_the_map(kind, seed):
    m = kind(seed)
    d = svd(m)
    np.testing.assert_allclose(d.U.T @ d.U, np.eye(d.rank), atol=1e-11)
    np.testing.assert_allclose(d.Vh @ d.Vh.T, np.eye(d.rank), atol=1e-11)
    np.testing.assert_allclose((d.U * d.S) @ d.Vh, m.dense(), atol=1e-13 * d.S[0])
    assert (np.diff(d.S) <= 0).all()


@pytest.mark.identity("SV-4")
@every_kind
def test_u_is_read_and_v_is_written(kind):
    m = kind(1)
    d = svd(m)
    np.testing.assert_allclose(m.apply(d.U.T), d.S[:, None] * d.Vh, atol=1e-12)
    np.testing.assert_allclose(m.T.apply(d.Vh), (d.U * d.S).T, atol=1e-12)


@pytest.mark.identity("SV-4")
def test_rows_of_v_and_swapped_sides_would_not_pass_for_dyads():
    m = heads_of_a_layer(1)
    d = svd(m)
    for read, written in ((d.U, d.Vh), (d.U.T, d.Vh.T), (d.Vh, d.U.T)):
        assert np.abs(m.apply(read) - d.S[:, None] * written).max() > 0.1


@pytest.mark.identity("SV-3", "SV-37")
@pytest.mark.parametrize("kind", [head, heads_of_a_layer])
def test_singular_vectors_do_not_depend_on_the_route_dense_or_factored(kind):
    factored = svd(kind(2))
    dense = svd(Dense(kind(2).dense(), RESIDUAL, RESIDUAL), rank=factored.rank)
    assert factored.route != dense.route
    same_dyads(factored, dense)


@pytest.mark.identity("SV-37")
@pytest.mark.parametrize("driver", ["gesdd", "gesvd"])
def test_block_projectors_agree_with_either_driver_of_the_dense_svd(driver):
    A, B = planted(3, np.array([5.0, 3.0, 3.0, 3.0, 1.0, 1.0]))
    ours = svd(Factored(A, B, RESIDUAL, RESIDUAL))
    U, _, Vh = lapack_svd(A @ B, lapack_driver=driver)
    assert [len(block) for block in ours.blocks] == [1, 3, 2]
    for block, projector in zip(ours.blocks, projectors(ours), strict=True):
        np.testing.assert_allclose(projector, U[:, block] @ Vh[block], atol=1e-13)


@every_kind
def test_the_transposed_map_has_the_dyads_read_backwards(kind):
    one, other = svd(kind(4)), svd(kind(4).T)
    np.testing.assert_allclose(one.S, other.S, rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(one.U * other.Vh.T, axis=0)), 1.0, atol=CLOSE)
    assert (other.reads, other.writes) == (one.writes, one.reads)


@pytest.mark.identity("SV-5")
@pytest.mark.parametrize("factored", [True, False])
def test_svd_recovers_a_planted_dyad(factored):
    reads, writes = normal(1, D), normal(2, D)
    reads, writes = reads / np.linalg.norm(reads), writes / np.linalg.norm(writes)
    noise = 1e-3
    A = np.concatenate([3.0 * reads[:, None], noise * normal(3, D, HEAD)], axis=1)
    B = np.concatenate([writes[None], normal(4, HEAD, D)], axis=0)
    m = Factored(A, B, RESIDUAL, RESIDUAL)
    d = svd(m if factored else Dense(m.dense(), RESIDUAL, RESIDUAL), rank=1)
    # The noise has norm about 1e-3 * (√24 + √6)² = 0.055 against a gain of 3: one or two percent of turn.
    assert d.S[0] == pytest.approx(3.0, rel=0.02)
    assert abs(d.U[:, 0] @ reads) > 0.999
    assert abs(d.Vh[0] @ writes) > 0.999
    assert np.sign(d.U[:, 0] @ reads) == np.sign(d.Vh[0] @ writes)


@pytest.mark.identity("SV-16")
@every_kind
def test_the_leading_dyads_are_the_best_approximation_of_their_rank(kind):
    d, M, k = svd(kind(5)), kind(5).dense(), 3
    left_over = M - (d.U[:, :k] * d.S[:k]) @ d.Vh[:k]
    assert np.sum(left_over**2) == pytest.approx(np.sum(d.S[k:] ** 2), rel=1e-12)
    assert np.linalg.norm(left_over, 2) == pytest.approx(d.S[k], rel=1e-12)
    for seed in range(20):
        Q = orthonormal(seed, M.shape[1], k)
        assert np.linalg.norm(M - M @ Q @ Q.T) > np.linalg.norm(left_over)


@pytest.mark.identity("SV-17")
@every_kind
def test_gains_give_the_norms_of_the_map(kind):
    d, M = svd(kind(6)), kind(6).dense()
    assert np.sum(d.S**2) == pytest.approx(np.sum(M**2), rel=1e-12)
    assert maps.frobenius(kind(6)) == pytest.approx(np.sqrt(np.sum(M**2)), rel=1e-12)
    assert np.sum(d.S) == pytest.approx(np.linalg.norm(M, "nuc"), rel=1e-12)


@pytest.mark.identity("SV-17")
def test_gains_give_the_determinant_and_interlace_when_a_bias_row_is_appended():
    W = normal(7, D, D)
    d = svd(Dense(W, RESIDUAL, RESIDUAL))
    assert np.sum(np.log(d.S)) == pytest.approx(np.linalg.slogdet(W)[1], rel=1e-10)
    more = svd(Dense(np.concatenate([W, normal(8, 1, D)]), Space("residual+bias", D + 1), RESIDUAL))
    assert (more.S >= d.S - 1e-12).all()
    assert (more.S[1:] <= d.S[:-1] + 1e-12).all()


@pytest.mark.identity("SV-18")
def test_energies_of_a_unit_vector_sum_to_one_only_at_full_rank():
    e = normal(9, D) / np.linalg.norm(normal(9, D))
    assert np.sum((svd(mlp_out(9)).Vh @ e) ** 2) == pytest.approx(1.0, rel=1e-12)
    thin = svd(head(9))
    span = np.linalg.qr(head(9).B.T)[0]
    assert np.sum((thin.Vh @ e) ** 2) == pytest.approx(np.sum((span.T @ e) ** 2), rel=1e-12)


@pytest.mark.identity("SV-19")
@every_kind
def test_the_gain_of_an_input_is_spread_over_the_dyads_it_meets(kind):
    m = kind(10)
    d, x = svd(m), normal(11, 4000, m.shape[0])
    np.testing.assert_allclose(np.sum(m.apply(x) ** 2, axis=1), (x @ d.U) ** 2 @ d.S**2, rtol=1e-11)
    mean = np.sum(d.S**2) / m.shape[0]
    spread = np.sum(m.apply(x / np.linalg.norm(x, axis=1, keepdims=True)) ** 2, axis=1)
    assert abs(spread.mean() - mean) < 5 * spread.std() / np.sqrt(len(x))


# ---- what leaves it alone, and what does not


@pytest.mark.identity("SV-8")
@LAWS
@given(seed=st.integers(0, 999))
def test_the_basis_inside_a_head_does_not_matter(seed):
    m, G = head(seed), normal(seed, HEAD, HEAD) + 3 * np.eye(HEAD)
    turned = Factored(m.A @ G, np.linalg.solve(G, m.B), RESIDUAL, RESIDUAL)
    one, other = svd(m), svd(turned)
    np.testing.assert_allclose(one.S, other.S, rtol=1e-9)
    # The condition of G (up to 1e3 here) enters the rounding of its inverse.
    for p, q in zip(projectors(one), projectors(other), strict=True):
        np.testing.assert_allclose(p, q, atol=1e-8)


@pytest.mark.identity("SV-9")
def test_the_order_of_neurons_does_not_matter_but_their_scale_does():
    W, order = mlp_out(12).W, np.random.default_rng(0).permutation(MLP)
    one = svd(Dense(W, NEURONS, RESIDUAL))
    other = svd(Dense(W[order], NEURONS, RESIDUAL))
    np.testing.assert_allclose(one.S, other.S, rtol=1e-12)
    np.testing.assert_allclose(one.Vh, other.Vh, atol=CLOSE)
    np.testing.assert_allclose(one.U[order], other.U, atol=CLOSE)
    scaled = svd(Dense(W * np.geomspace(0.5, 2.0, MLP)[:, None], NEURONS, RESIDUAL))
    assert np.abs(scaled.S - one.S).max() > 0.1


@pytest.mark.identity("SV-36")
@every_kind
@pytest.mark.parametrize("factor", [1e-6, 0.3, 1e8])
def test_scaling_a_map_scales_its_gains_only(kind, factor):
    one, other = svd(kind(13)), svd(maps.scale(kind(13), factor))
    np.testing.assert_allclose(other.S, factor * one.S, rtol=1e-12)
    np.testing.assert_allclose(other.Vh, one.Vh, atol=CLOSE)
    np.testing.assert_allclose(other.gap, one.gap, atol=1e-12)
    np.testing.assert_allclose(other.wedin, one.wedin, rtol=1e-6)
    assert other.blocks == one.blocks


@pytest.mark.identity("SV-36")
@pytest.mark.parametrize("factor", [1e-150, 1e150])
def test_extreme_scales_neither_overflow_nor_vanish(factor):
    for kind in (head, mlp_out):
        d = svd(maps.scale(kind(13), factor))
        np.testing.assert_allclose(d.S / factor, svd(kind(13)).S, rtol=1e-11)
        np.testing.assert_allclose(d.U.T @ d.U, np.eye(d.rank), atol=1e-11)


# ---- signs


@pytest.mark.identity("SV-6")
@every_kind
@LAWS
@given(seed=st.integers(0, 999))
def test_the_largest_entry_of_the_residual_side_is_positive(kind, seed):
    d = svd(kind(seed))
    rows = d.Vh if d.writes.kind == "residual" else d.U.T
    assert (rows[np.arange(d.rank), np.abs(rows).argmax(axis=1)] > 0).all()


@pytest.mark.identity("SV-6")
def test_signs_do_not_depend_on_the_driver_or_on_the_sign_it_chose():
    d = svd(head(14))
    flips = np.where(normal(15, d.rank) < 0, -1.0, 1.0)
    again, margin = canonical_signs(d.U, d.Vh, d.reads, d.writes)
    np.testing.assert_array_equal(again, 1.0)
    undone, other = canonical_signs(d.U * flips, d.Vh * flips[:, None], d.reads, d.writes)
    np.testing.assert_array_equal(undone, flips)
    np.testing.assert_array_equal(margin, other)


def test_the_sign_margin_is_how_much_the_largest_entry_wins_by():
    rows = np.array([[0.5, -1.0, 0.2], [0.1, 0.2, 0.3], [2.0, -2.0, 0.0], [-1.0, 1.0 + 1e-13, 0.5]])
    signs, margin = canonical_signs(np.eye(4), rows, Space("head", 4), Space("residual", 3))
    # Second row: nothing negative. Third and fourth: a tie, even up to rounding, goes to the lowest index.
    np.testing.assert_array_equal(signs, [-1, 1, 1, -1])
    np.testing.assert_allclose(margin, [0.5, 1.0, 0.0, 0.0], atol=1e-12)


def test_the_constant_in_front_of_the_stream_has_no_say_in_the_sign():
    stream = Space("residual+1", 4)
    rows = np.array([[-0.9, 0.1, 0.3, -0.2], [0.9, -0.3, 0.1, 0.2], [-1.0, 0.0, 0.0, 1e-16], [-0.6, -0.8, 0.0, 0.0]])
    neurons = np.eye(4)
    for signs, margin in (
        canonical_signs(neurons, rows, Space("head", 4), stream),
        canonical_signs(rows.T, -neurons, stream, Space("neurons", 4)),
    ):
        # The third writes into the constant only; there it decides, being all there is.
        np.testing.assert_array_equal(signs, [1, -1, -1, -1])
        np.testing.assert_allclose(margin, [1 / 3, 1 / 3, 1.0, 1.0], atol=1e-12)
    # Without the constant the same dyads of a stream have the same signs.
    plain, _ = canonical_signs(neurons[:, :2], rows[:2, 1:], Space("head", 4), Space("residual", 3))
    np.testing.assert_array_equal(plain, [1, -1])


# ---- how many


def test_asking_for_fewer_gives_the_leading_ones_of_all():
    for m in (head(16), Dense(normal(16, 300, 64), Space("tokens", 300), Space("residual", 64))):
        everything, some = svd(m), svd(m, rank=4)
        for name in ("S", "gap", "wedin", "sign_margin"):
            np.testing.assert_allclose(getattr(some, name), getattr(everything, name)[:4], rtol=1e-9)
        np.testing.assert_allclose(some.Vh, everything.Vh[:4], atol=CLOSE)
        assert some.following == pytest.approx(everything.S[4], rel=1e-12)
        assert everything.following == 0.0


def of_spectrum(gains: list[float], kind: str, stored: str, n: int = 96, m: int = 64) -> Map:
    """A map with these gains and zeros after them, as one matrix or as factors of the whole inner size."""
    padded = np.concatenate([gains, np.zeros(m - len(gains))])
    left, right = orthonormal(50, n, m), orthonormal(51, m, m)
    reads, writes = Space("neurons", n), Space("residual", m)
    if kind == "dense":
        return Dense((left * padded) @ right, reads, writes, stored)
    return Factored(left[:, : len(gains)] * gains, right[: len(gains)].copy(), reads, writes, stored)


SPECTRA = {
    "zeros after the cut": [3.0, 2.0, 0.04],
    "equal at the cut": [3.0, 2.0, 1.0, 0.5, 0.5, 0.5, 0.1],
    "close at the cut": [3.0, 2.0, 1.0, *np.linspace(0.5, 0.4, 40)],
    "all equal": [1.0] * 60,
    "full and falling": np.geomspace(1.0, 0.1, 64).tolist(),
    "a long tail": np.geomspace(1.0, 1e-5, 64).tolist(),
}


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["dense", "factored"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_what_is_told_of_a_dyad_does_not_depend_on_how_many_were_asked_for(spectrum, kind, stored):
    m = of_spectrum(SPECTRA[spectrum], kind, stored)
    everything = svd(m)
    for rank in (1, 3, 4, 14, everything.rank):
        if rank > everything.rank:
            continue
        some = svd(m, rank)
        # Values by part of the Gram are right to eps/t² of themselves, t >= 1e-2.
        np.testing.assert_allclose(some.S, everything.S[:rank], rtol=1e-11)
        # The gain behind the cut may be weaker, and is then known from the Gram alone: to eps·σ₁/t, t >= 1e-5.
        np.testing.assert_allclose(some.gap, everything.gap[:rank], atol=1e-10)
        np.testing.assert_allclose(some.wedin, everything.wedin[:rank], rtol=1e-6)
        np.testing.assert_array_equal(some.noisy, everything.noisy[:rank])
        assert [some.block_of(i) for i in range(rank)] == [everything.block_of(i) for i in range(rank)]
        assert some.blocks == tuple(b for b in everything.blocks if b.start < rank)


def test_the_distance_to_an_exact_zero_counts_where_the_rank_was_cut_there():
    m = Dense(np.diag([3.0, 2.0, 0.04, *[0.0] * (D - 3)]), RESIDUAL, RESIDUAL)
    for d in (svd(m), svd(m, rank=3)):
        np.testing.assert_allclose(d.gap, [1 / 3, 1 / 3, 0.04 / 3], atol=1e-12)
    assert svd(m, rank=3).following == 0.0


@pytest.mark.parametrize("kind", ["dense", "factored"])
def test_a_block_at_the_cut_reaches_beyond_what_was_asked_for(kind):
    d = svd(of_spectrum(SPECTRA["equal at the cut"], kind, "bfloat16"), 4)
    assert d.rank == 4
    assert d.block_of(3) == d.blocks[-1] == range(3, 6)
    with pytest.raises(BadRank, match=r"expected a dyad 0 \.\.\. 3"):
        d.block_of(4)


@every_kind
def test_a_rank_beyond_the_map_is_capped(kind):
    assert svd(kind(17), rank=1000).rank == svd(kind(17)).rank == min(np.linalg.matrix_rank(kind(17).dense()), D)


@pytest.mark.parametrize("rank", [0, -3, 2.0, True, "all"])
def test_a_rank_that_is_no_count_is_refused(rank):
    with pytest.raises((BadRank, TypeCheckError)) as refused:
        svd(head(1), rank=rank)
    # The import hook refuses what is not even an int; zero, negatives and True are ours to refuse.
    assert refused.type is BadRank or not isinstance(rank, int)
    if refused.type is BadRank:
        assert str(refused.value).startswith(f"expected rank >= 1, a whole number of dyads, came {rank!r}")


def test_weights_that_are_not_finite_are_refused_by_name():
    B = normal(1, HEAD, D)
    B[2, 3] = np.nan
    with pytest.raises(BadRequest, match=r"B \(6, 24\) holds values that are not finite"):
        svd(Factored(normal(1, D, HEAD), B, RESIDUAL, RESIDUAL))
    W = normal(1, MLP, D)
    W[0, 0] = -np.inf
    with pytest.raises(BadRequest, match=r"W \(40, 24\) holds"):
        svd(Dense(W, NEURONS, RESIDUAL))


@pytest.mark.parametrize(
    "zeros",
    [
        Factored(np.zeros((D, HEAD)), normal(1, HEAD, D), RESIDUAL, RESIDUAL),
        Factored(normal(1, D, 0), normal(1, 0, D), RESIDUAL, RESIDUAL),
        Dense(np.zeros((D, D), np.float32), RESIDUAL, RESIDUAL),
        maps.add(mlp_out(1), maps.scale(mlp_out(1), -1.0)),
    ],
)
def test_a_map_of_zeros_has_no_dyads(zeros):
    for d in (svd(zeros), svd(zeros, rank=2)):
        n, m = zeros.shape
        assert (d.U.shape, d.S.shape, d.Vh.shape, d.blocks) == ((n, 0), (0,), (0, m), ())
        assert d.gap.shape == d.wedin.shape == d.noisy.shape == d.sign_margin.shape == (0,)


def test_factors_that_cancel_give_no_dyads_of_rounding():
    # W_V writes into a space that W_O does not read: the product is zero up to 1e-16 times the factors.
    inside = orthonormal(1, HEAD, HEAD)
    A, B = normal(2, D, 3) @ inside[:, :3].T, inside[:, 3:] @ normal(3, 3, D)
    assert np.abs(A @ B).max() > 0
    assert svd(Factored(A, B, RESIDUAL, RESIDUAL)).rank == 0
    exactly = Factored(
        np.eye(D)[:, :HEAD] @ np.diag([1, 1, 1, 0, 0, 1e-8]), np.diag([0, 0, 0, 1, 1, 0]) @ B, RESIDUAL, RESIDUAL
    )
    assert svd(exactly).rank == 0
    turned = Factored(np.ones((D, 2)), np.array([[1.0], [-1.0]]) * np.ones((1, D)), RESIDUAL, RESIDUAL)
    assert svd(turned).rank == 0


def test_dyads_below_numerical_rank_are_cut_and_counted():
    A, B = normal(18, D, HEAD), normal(18, HEAD, D)
    A[:, 4:] = A[:, :2]
    d = svd(Factored(A, B, RESIDUAL, RESIDUAL))
    assert (d.rank, d.cut) == (4, 2)
    centred = normal(19, MLP, D) @ (np.eye(D) - 1 / D)
    d = svd(Dense(centred, NEURONS, RESIDUAL))
    assert (d.rank, d.cut) == (D - 1, 1)
    np.testing.assert_allclose(d.U.T @ d.U, np.eye(D - 1), atol=1e-11)


# ---- gaps, blocks, noise


def test_the_gap_is_the_distance_to_the_nearest_other_gain_kernel_included():
    gains = np.array([4.0, 3.0, 1.0, 0.2])
    A, B = planted(20, gains)
    d = svd(Factored(A, B, RESIDUAL, RESIDUAL))
    np.testing.assert_allclose(d.gap, [0.25, 0.25, 0.2, 0.05], atol=1e-13)
    two = svd(Factored(A, B, RESIDUAL, RESIDUAL), rank=2)
    np.testing.assert_allclose(two.gap, [0.25, 0.25], atol=1e-13)
    small = Space("residual", 4)
    square = svd(Factored(*planted(20, gains, 4, 4), small, small))
    np.testing.assert_allclose(square.gap, [0.25, 0.25, 0.2, 0.2], atol=1e-13)
    tall = svd(Dense(planted(20, gains, D, 4)[0] @ planted(20, gains, D, 4)[1], RESIDUAL, small))
    np.testing.assert_allclose(tall.gap, d.gap, atol=1e-13)
    alone = svd(Dense(np.array([[2.0]]), Space("head", 1), Space("head", 1)))
    assert alone.gap.tolist() == [1.0]


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
def test_coinciding_gains_form_one_block_whose_span_is_all_that_is_known(stored):
    A, B = planted(21, np.array([2.0, 1.0, 1.0, 1.0, 0.4]))
    d = svd(Factored(A, B, RESIDUAL, RESIDUAL, stored=stored))
    assert d.blocks == (range(1), range(1, 4), range(4, 5))
    assert d.noisy[1:4].all()
    np.testing.assert_array_equal(d.wedin[1:4], 1.0)
    assert d.block_of(2) == range(1, 4)
    with pytest.raises(BadRank, match=r"expected a dyad 0 \.\.\. 4"):
        d.block_of(5)


def test_blocks_widen_as_the_storage_gets_coarser():
    # A coupling here is 0.425 u √2 ‖A‖_F/√(24·5) = 0.13 u for ‖A‖_F² = 5.5: three are 1.5e-3, 1.9e-4, 2e-8.
    gains = np.array([2.0, 1.0, 1.0 - 1e-4, 1.0 - 11e-4, 0.5])
    sizes = {}
    for stored in UNIT_ROUNDOFF:
        d = svd(Factored(*planted(22, gains), RESIDUAL, RESIDUAL, stored=stored))
        sizes[stored] = [len(block) for block in d.blocks]
        assert sum(sizes[stored]) == d.rank
    assert sizes == {
        "float64": [1, 1, 1, 1, 1],
        "float32": [1, 1, 1, 1, 1],
        "float16": [1, 2, 1, 1],
        "bfloat16": [1, 3, 1],
    }


def rounded(x: np.ndarray, stored: str) -> np.ndarray:
    """Round to nearest even, by hand for bfloat16: the upper half of a float32."""
    if stored != "bfloat16":
        return x.astype(stored).astype(np.float64)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_the_unit_roundoff_is_the_largest_relative_error_of_rounding(stored):
    x = np.random.default_rng(0).uniform(1, 4, 200_000)
    worst = np.max(np.abs(rounded(x, stored) - x) / x)
    assert 0.98 * UNIT_ROUNDOFF[stored] < worst <= UNIT_ROUNDOFF[stored]


def realistic(seed: int, stored: str) -> tuple[SVD, SVD, np.ndarray]:
    """A head as trained (decades of gain, many entries) as it was and as stored, and the error of storing it."""
    n, r = 192, 24
    A, B = planted(seed, np.geomspace(1.0, 0.02, r), n, n)
    space = Space("residual", n)
    ideal = svd(Factored(A, B, space, space, stored=stored))
    a, b = rounded(A, stored), rounded(B, stored)
    return ideal, svd(Factored(a, b, space, space, stored=stored)), a @ b - A @ B


@pytest.mark.identity("SV-28")
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_rounding_to_storage_stays_inside_the_reported_bounds(stored):
    for seed in range(5):
        ideal, kept, error = realistic(seed, stored)
        size = np.linalg.norm(error, 2)
        assert np.abs(kept.S - ideal.S).max() <= size * (1 + 1e-9)
        # The expected norm is Gordon's bound for one factor's rounding, both in squares: high by up to √2.
        assert 0.9 * size < ideal.noise < 1.6 * size
        for one, other in ((ideal.U.T, kept.U.T), (ideal.Vh, kept.Vh)):
            cosine = np.sum(one * other, axis=1)
            sine = np.linalg.norm(other - one * np.sum(one * other, axis=1)[:, None], axis=1)
            assert (sine <= kept.wedin).all()
            # `noisy` starts at an expected 0.1 rad; a quiet dyad meets a few neighbours and three deviations at most.
            assert (sine[~kept.noisy] < 0.35).all()
            assert (np.abs(cosine[~kept.noisy]) > 0.9).all()


@pytest.mark.parametrize(("couplings", "noisy"), [(1.0, True), (5.0, True), (40.0, False)])
def test_noisy_says_which_neighbours_storage_turns_into_each_other(couplings, noisy):
    # The coupling of a dyad of gain 1 is 0.425 u √2 ‖A‖_F/√(n r), and ‖A‖_F² the sum of the gains.
    gains = np.array([2.0, 1.0, 1.0, *np.geomspace(0.8, 0.2, 9)])
    coupling = 0.425 * UNIT_ROUNDOFF["bfloat16"] * np.sqrt(2 * gains.sum() / (192 * 12))
    gains[1:3] += np.array([0.5, -0.5]) * couplings * coupling
    space, turned = Space("residual", 192), []
    for seed in range(12):
        A, B = planted(seed, gains, 192, 192)
        one, other = (
            svd(Factored(a, b, space, space, stored="bfloat16"))
            for a, b in ((A, B), (rounded(A, "bfloat16"), rounded(B, "bfloat16")))
        )
        assert one.noisy[1:3].all() == noisy
        turned.append(abs(one.U[:, 1] @ other.U[:, 2]))
    # First order: a coupling of either sign on both sides, averaged, over the gap: (1/√2)/couplings.
    assert (np.sqrt(np.mean(np.square(turned))) > 0.1) == noisy


@pytest.mark.identity("SV-28")
@every_kind
def test_the_wedin_bound_holds_for_any_error_of_that_norm(kind):
    d, M = svd(kind(23)), kind(23).dense()
    for seed in range(20):
        E = normal(seed, *M.shape)
        E *= 1e-3 * d.S[0] / np.linalg.norm(E, 2)
        bound = wedin_bounds(d.S, d.gap, float(np.linalg.norm(E, 2)))
        U, S, Vh = np.linalg.svd(M + E, full_matrices=False)
        assert np.abs(S[: d.rank] - d.S).max() <= np.linalg.norm(E, 2) * (1 + 1e-12)
        for one, other in ((d.U.T, U.T[: d.rank]), (d.Vh, Vh[: d.rank])):
            sine = np.linalg.norm(other - one * np.sum(one * other, axis=1)[:, None], axis=1)
            assert (sine <= bound).all()
    assert (bound < 1).any()


def rewritten(seed: int, kind: str) -> tuple[Map, Map, Map]:
    """A writer of 0.1·noise + 20·(a part along 1) and one dyad of gain 8, stored in float16 and then centred.

    As it would be unrounded; as stored, with the norms of what was stored; and as stored, without.
    """
    n, d = 64, 96
    stream, heads = Space("residual", d), Space("h", n)
    # A reader's own rounding is in the bound of a product: there the part along 1 must be larger to break it.
    mean = 20.0 if kind == "dense" else 60.0
    wide = 0.1 * normal(seed, n, d) + mean * normal(seed + 1, n, 1)
    wide += 8.0 * orthonormal(seed + 3, n, 1) @ orthonormal(seed + 4, d, 1).T
    kept = rounded(wide, "float16")
    true, given = (w - w.mean(axis=1, keepdims=True) for w in (wide, kept))
    size = float(np.linalg.norm(kept))
    if kind == "dense":
        ideal = Dense(true, heads, stream, "float16")
        return ideal, Dense(given, heads, stream, "float16", (size,)), Dense(given, heads, stream, "float16")
    read = rounded(normal(seed + 2, 80, n) / 8, "float16")
    space, norms = Space("neurons", 80), (float(np.linalg.norm(read)), size)
    return (
        Factored(read, true, space, stream, "float16"),
        Factored(read, given, space, stream, "float16", norms),
        Factored(read, given, space, stream, "float16"),
    )


def turned(one: SVD, other: SVD) -> np.ndarray:
    """The larger sine by which each dyad of one has turned in the other."""
    sines = []
    for a, b in ((one.U.T, other.U.T), (one.Vh, other.Vh)):
        sines.append(np.linalg.norm(b - a * np.sum(a * b, axis=1)[:, None], axis=1))
    return np.minimum(np.maximum(*sines), 1.0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", ["dense", "factored"])
def test_the_rounding_of_a_rewritten_map_is_that_of_the_array_that_was_stored(kind, transposed):
    for seed in range(5):
        ideal, told, untold = (svd(m.T if transposed else m) for m in rewritten(seed, kind))
        angle = turned(ideal, told)
        assert angle.max() > 0.5
        assert (angle <= told.wedin).all()
        # Not for nothing: the bound says something of the strong dyad, where the reader's part of it is not too large.
        assert kind == "factored" or (told.wedin[0] < 0.5 and not told.noisy[0])
        assert (angle[~told.noisy] < 0.35).all()
        size = np.linalg.norm((ideal.U * ideal.S) @ ideal.Vh - (told.U * told.S) @ told.Vh, 2)
        assert np.abs(told.S - ideal.S).max() <= size <= 2 * told.noise
        # From the centred array alone nothing of this can be seen.
        assert (angle > untold.wedin).any()
        assert not untold.noisy[angle > 0.5].all()
        assert untold.noise < size / 10


@pytest.mark.parametrize(("couplings", "noisy"), [(40.0, True), (120.0, False)])
def test_a_kernel_of_many_directions_pulls_with_all_of_them(couplings, noisy):
    # 61 directions: 10 couplings times √61 = 78 are 0.1 rad; one neighbour would need to come within 10.
    coupling = 0.425 * UNIT_ROUNDOFF["bfloat16"] * np.hypot(3.0, 2.0) / 64
    m = of_spectrum([3.0, 2.0, couplings * coupling], "dense", "bfloat16", n=64)
    for d in (svd(m), svd(m, 3)):
        assert d.noisy.tolist() == [False, False, noisy]


def test_a_bound_on_large_weights_does_not_overflow():
    # bfloat16 leaves an error above 4 in these; divided by the smallest number it would be infinite, with a warning.
    d = svd(Dense(1e4 * np.eye(D) + 1e3, RESIDUAL, RESIDUAL, stored="bfloat16"))
    assert (d.wedin[1:] == 1.0).all()


@pytest.mark.identity("SV-29")
def test_gains_move_at_first_by_the_change_seen_between_u_and_v():
    m, change = head(24), normal(25, D, D)
    d = svd(m)
    slope = np.einsum("ni,nm,im->i", d.U, change, d.Vh)
    t = 1e-5
    moved = [svd(Dense(m.dense() + s * t * change, RESIDUAL, RESIDUAL), rank=d.rank).S for s in (1, -1)]
    # Central difference: error t²·(third derivative) + eps·σ₁/t = 1e-10 + 1e-9.
    np.testing.assert_allclose((moved[0] - moved[1]) / (2 * t), slope, atol=1e-7)


# ---- values


@every_kind
def test_results_are_read_only_and_the_map_is_left_alone(kind):
    m: Map = kind(26)
    before = np.array(m.dense())
    d = svd(m)
    with pytest.raises(ValueError, match="read-only"):
        d.S[0] = 0.0
    np.testing.assert_array_equal(m.dense(), before)
    assert (d.reads, d.writes, d.stored) == (m.reads, m.writes, m.stored)


@every_kind
def test_the_same_map_gives_the_same_bytes(kind):
    one, other = svd(kind(27)), svd(kind(27))
    assert one.U.tobytes() + one.S.tobytes() + one.Vh.tobytes() == (
        other.U.tobytes() + other.S.tobytes() + other.Vh.tobytes()
    )
