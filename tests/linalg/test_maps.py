"""Maps: five questions, and an algebra that keeps factors apart without changing what a map does."""

import dataclasses
from dataclasses import FrozenInstanceError
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from covector.errors import BadRequest, SpaceMismatch
from covector.linalg import maps
from covector.linalg.maps import Dense, Factored, Map, Space, Updated

LAWS = settings(max_examples=20, deadline=None, derandomize=True)
READS, MIDDLE, WRITES = Space("residual", 7), Space("neurons", 9, "L3"), Space("tokens", 8)
# Sums of some hundred products of numbers near 1: 100 * 2^-52, generously.
EXACT = 1e-13


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def dense(seed: int, reads: Space = READS, writes: Space = WRITES) -> Dense:
    return Dense(normal(seed, reads.size, writes.size), reads, writes)


def factored(seed: int, reads: Space = READS, writes: Space = WRITES) -> Factored:
    return Factored(normal(seed, reads.size, 3), normal(seed, 3, writes.size), reads, writes)


def updated(seed: int, reads: Space = READS, writes: Space = WRITES) -> Updated:
    return Updated(dense(seed, reads, writes), normal(seed, reads.size, 2), normal(seed, 2, writes.size))


def matrix_of(m: Map) -> np.ndarray:
    """The matrix from its parts, independent of the methods under test."""
    if isinstance(m, Dense):
        return np.array(m.W)
    if isinstance(m, Factored):
        return np.einsum("nr,rm->nm", m.A, m.B)
    assert isinstance(m, Updated)
    return m.base.W + np.einsum("nr,rm->nm", m.A, m.B)


KINDS = [dense, factored, updated]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_pair = pytest.mark.parametrize(("one", "other"), list(product(KINDS, KINDS)))


@every_kind
@LAWS
@given(seed=st.integers(0, 999))
def test_applying_a_map_is_multiplying_rows_by_its_matrix(kind, seed):
    m, x = kind(seed), normal(seed, 2, 5, READS.size)
    np.testing.assert_allclose(m.apply(x), np.einsum("abn,nm->abm", x, matrix_of(m)), atol=EXACT)
    np.testing.assert_allclose(m.apply(x[0, 0]), x[0, 0] @ matrix_of(m), atol=EXACT)


@every_kind
def test_a_map_answers_its_shape_and_dense_form(kind):
    m = kind(1)
    assert m.shape == (READS.size, WRITES.size)
    np.testing.assert_allclose(m.dense(), matrix_of(m), atol=EXACT)


@every_kind
def test_the_transpose_swaps_the_spaces_and_undoes_itself(kind):
    m = kind(2)
    assert (m.T.reads, m.T.writes) == (WRITES, READS)
    np.testing.assert_allclose(m.T.dense(), matrix_of(m).T, atol=EXACT)
    np.testing.assert_array_equal(maps.transpose(m.T).dense(), m.dense())
    assert type(m.T) is type(m)


@every_pair
@LAWS
@given(seed=st.integers(0, 999))
def test_composing_goes_through_the_first_and_then_the_second(one, other, seed):
    first, second = one(seed, READS, MIDDLE), other(seed + 1, MIDDLE, WRITES)
    both, x = maps.compose(first, second), normal(seed, 4, READS.size)
    assert (both.reads, both.writes) == (READS, WRITES)
    np.testing.assert_allclose(both.apply(x), x @ matrix_of(first) @ matrix_of(second), atol=10 * EXACT)


@every_pair
def test_sums_are_sums_of_matrices(one, other):
    total = maps.add(one(3), other(4))
    np.testing.assert_allclose(total.dense(), matrix_of(one(3)) + matrix_of(other(4)), atol=EXACT)


@every_kind
def test_scaling_scales_and_keeps_the_kind(kind):
    half = maps.scale(kind(5), -0.5)
    assert type(half) is type(kind(5))
    np.testing.assert_allclose(half.dense(), -0.5 * matrix_of(kind(5)), atol=EXACT)


@every_kind
def test_a_low_rank_update_adds_a_product_and_leaves_the_map_alone(kind):
    m, A, B = kind(6), normal(7, READS.size, 2), normal(8, 2, WRITES.size)
    before = matrix_of(m)
    np.testing.assert_allclose(maps.low_rank_update(m, A, B).dense(), before + A @ B, atol=EXACT)
    np.testing.assert_array_equal(matrix_of(m), before)


@every_kind
def test_the_frobenius_norm_is_that_of_the_matrix(kind):
    assert maps.frobenius(kind(9)) == pytest.approx(np.sqrt((matrix_of(kind(9)) ** 2).sum()), rel=EXACT)


@every_kind
def test_a_map_less_itself_has_no_norm_left(kind):
    # A Gram's trace would leave sqrt(eps) = 1.5e-8 of the norm here; QR and tiles leave a few eps.
    nothing = maps.add(kind(9), maps.scale(kind(9), -1.0))
    assert maps.frobenius(nothing) < 1e-13 * maps.frobenius(kind(9))


@pytest.mark.identity("SV-22")
def test_the_norm_of_a_composition_is_the_overlap_of_written_and_read_directions():
    first, second = factored(10, READS, MIDDLE), factored(11, MIDDLE, WRITES)
    _, gain1, written = np.linalg.svd(matrix_of(first))
    read, gain2, _ = np.linalg.svd(matrix_of(second))
    overlap = written[:3] @ read[:, :3]
    expected = np.sqrt(np.sum((gain1[:3, None] * overlap * gain2[:3]) ** 2))
    assert maps.frobenius(maps.compose(first, second)) == pytest.approx(expected, rel=EXACT)


def test_factors_stay_factors_through_the_thinnest_joint():
    wide = Factored(normal(1, READS.size, 5), normal(2, 5, MIDDLE.size), READS, MIDDLE)
    thin = factored(3, MIDDLE, WRITES)
    for chain in (maps.compose(wide, thin), maps.compose(thin.T, wide.T), maps.compose(dense(4, READS, MIDDLE), thin)):
        assert isinstance(chain, Factored)
        assert chain.A.shape[1] == 3


def test_an_embedding_and_an_unembedding_compose_without_a_vocabulary_squared_matrix():
    tokens, residual = Space("tokens", 50), Space("residual", 4)
    direct = maps.compose(dense(1, tokens, residual), dense(2, residual, tokens))
    assert isinstance(direct, Factored)
    assert direct.A.shape == (50, 4)


def test_a_low_rank_update_of_a_dense_map_is_kept_as_an_overlay_on_the_same_array():
    base = dense(1)
    edited = maps.add(maps.low_rank_update(base, normal(2, 7, 1), normal(3, 1, 8)), factored(4))
    assert isinstance(edited, Updated)
    assert np.shares_memory(edited.base.W, base.W)
    assert edited.A.shape[1] == 4


def test_maps_hold_read_only_views_of_what_they_were_given():
    W = normal(1, 7, 8).astype(np.float32)
    m = Dense(W, READS, WRITES)
    assert np.shares_memory(m.W, W)
    assert W.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        m.dense()[0, 0] = 1.0
    with pytest.raises(FrozenInstanceError):
        m.W = W  # type: ignore[misc]


def test_half_precision_weights_are_kept_as_they_are_and_multiplied_in_float64():
    A, B = (normal(i, *s).astype(np.float16) for i, s in ((1, (7, 3)), (2, (3, 8))))
    m = Factored(A, B, READS, WRITES, stored="float16")
    assert m.A.dtype == np.float16
    x = normal(3, READS.size).astype(np.float32)
    np.testing.assert_allclose(m.apply(x), x.astype(float) @ A.astype(float) @ B.astype(float), rtol=1e-12)


def test_large_matrices_are_widened_by_tiles_with_the_same_result(monkeypatch):
    whole = dense(1).apply(np.eye(READS.size)), maps.frobenius(updated(1))
    monkeypatch.setattr(maps, "TILE_ENTRIES", 17)
    assert [part.stop - part.start for part in maps.row_tiles((7, 8))] == [2, 2, 2, 1]
    np.testing.assert_allclose(dense(1).apply(np.eye(READS.size)), whole[0], atol=EXACT)
    assert maps.frobenius(updated(1)) == pytest.approx(whole[1], rel=EXACT)


def test_the_coarser_storage_dtype_survives_composition_and_sums():
    half = Dense(normal(1, 7, 8), READS, WRITES, stored="bfloat16")
    assert maps.add(half, dense(2)).stored == "bfloat16"
    assert maps.add(factored(2), half).stored == "bfloat16"
    assert maps.compose(dense(3, MIDDLE, READS), half).stored == "bfloat16"
    assert maps.low_rank_update(half, normal(1, 7, 1), normal(2, 1, 8)).stored == "bfloat16"


def noted(m: Map, *sizes: float) -> Map:
    return dataclasses.replace(m, rounded=sizes)  # type: ignore[arg-type]


def rounded_of(m: Map) -> tuple[float, ...]:
    """What a map says of its arrays as they were stored, or their own norms."""
    assert isinstance(m, Dense | Factored)
    arrays = (m.W,) if isinstance(m, Dense) else (m.A, m.B)
    return m.rounded or tuple(float(np.linalg.norm(a)) for a in arrays)


def test_the_norms_of_stored_arrays_follow_the_algebra():
    d, f = noted(dense(1), 40.0), noted(factored(2), 30.0, 50.0)
    assert rounded_of(d.T) == (40.0,)
    assert rounded_of(f.T) == (50.0, 30.0)
    assert rounded_of(maps.scale(d, -0.5)) == (20.0,)
    assert rounded_of(maps.scale(f, -0.5)) == (30.0, 25.0)
    # Errors of sums add in the worst case, those of stacked factors in squares.
    own = float(np.linalg.norm(dense(3).W))
    assert rounded_of(maps.add(d, dense(3))) == pytest.approx((40.0 + own,))
    A, B = normal(4, 7, 2), normal(5, 2, 8)
    stacked = maps.low_rank_update(f, A, B)
    assert rounded_of(stacked) == pytest.approx((np.hypot(30.0, np.linalg.norm(A)), np.hypot(50.0, np.linalg.norm(B))))
    for overlaid in (maps.low_rank_update(d, A, B), maps.add(f, d), maps.scale(maps.low_rank_update(d, A, B), 2.0)):
        assert isinstance(overlaid, Updated)
        assert overlaid.base.rounded is not None
    assert maps.low_rank_update(d, A, B).T.base.rounded == (40.0,)  # type: ignore[attr-defined]
    # Nothing is made up where nothing was said.
    for plain in (dense(1).T, maps.scale(factored(2), 3.0), maps.add(dense(1), dense(2)), maps.add(*[factored(1)] * 2)):
        assert plain.rounded is None  # type: ignore[attr-defined]


def test_a_product_is_as_uncertain_as_the_most_rewritten_of_its_factors():
    first = dense(1, READS, MIDDLE)
    for second in (dense(2, MIDDLE, WRITES), factored(2, MIDDLE, WRITES)):
        own = rounded_of(second)
        product = maps.compose(first, noted(second, *(7.0 * size for size in own)))
        bare = maps.compose(first, second)
        assert bare.rounded is None  # type: ignore[attr-defined]
        assert rounded_of(product) == pytest.approx([7.0 * size for size in rounded_of(bare)])
    nothing = Dense(np.zeros((9, 8)), MIDDLE, WRITES, rounded=(3.0,))
    assert rounded_of(maps.compose(first, nothing)) == (0.0,)


@pytest.mark.parametrize("sizes", [(1.0, 2.0), (), (float("nan"),), (-1.0,)])
def test_norms_of_stored_arrays_are_one_per_array_and_sizes(sizes):
    with pytest.raises(BadRequest, match="rounded must be 1 norm"):
        Dense(normal(1, 7, 8), READS, WRITES, rounded=sizes)


def test_spaces_are_equal_when_kind_size_and_place_are():
    assert Space("residual", 7) == READS
    assert len({Space("head", 4, "L0H0"), Space("head", 4, "L0H1"), Space("head", 4, "L0H0")}) == 2
    assert str(MIDDLE) == "neurons@L3[9]"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: Dense(normal(1, 8, 7), READS, WRITES), "needs W of shape (7, 8), came (8, 7)"),
        (lambda: Factored(normal(1, 7, 3), normal(1, 4, 8), READS, WRITES), "B [r, m], came (7, 3) and (4, 8)"),
        (lambda: Factored(normal(1, 7, 3), normal(1, 3, 9), READS, WRITES), "needs B of shape (3, 8), came (3, 9)"),
        (lambda: maps.low_rank_update(dense(1), normal(1, 6, 1), normal(1, 1, 8)), "needs A of shape (7, 1)"),
        (lambda: maps.compose(dense(1), dense(1)), "first map writes tokens[8], the second reads residual[7]"),
        (
            lambda: maps.compose(dense(1), dense(1, Space("neurons", 8))),
            "writes tokens[8], the second reads neurons[8]",
        ),
        (lambda: maps.add(dense(1), dense(1).T), "residual[7] -> tokens[8] and tokens[8] -> residual[7] differ"),
        (lambda: dense(1).apply(normal(1, 8)), "expected rows of 7 entries, came shape (8,)"),
        (lambda: Space("head", 0), "'head' came with 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sizes(wrong, text):
    with pytest.raises((SpaceMismatch, TypeCheckError)) as refused:
        wrong()
    # Where the import hook checks shape strings, it may refuse first, in words of its own.
    if refused.type is SpaceMismatch:
        assert text in str(refused.value)
        assert "\n" not in str(refused.value)


def test_whole_numbers_and_unknown_dtypes_are_refused():
    with pytest.raises((BadRequest, TypeCheckError), match=r"floating-point weights, came int64|Float"):
        Dense(np.ones((7, 8), np.int64), READS, WRITES)
    with pytest.raises(BadRequest, match="came 'fp8'"):
        Dense(normal(1, 7, 8), READS, WRITES, stored="fp8")
