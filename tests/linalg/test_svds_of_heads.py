"""Heads decomposed together: the same bits as each by itself, whoever stands beside it."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg import product_svd
from covector.linalg import svd as module
from covector.linalg.maps import Factored, Space
from covector.linalg.product_svd import by_grams
from covector.linalg.svd import SVD, svd, svds

N, R = 96, 16
STREAM, HEAD = Space("residual", N), Space("head", N)
ARRAYS = ("U", "S", "Vh", "beyond", "gap", "wedin", "noisy", "absolute", "sign_margin")


def head(seed: int, dtype: type = np.float32, spread: float = 30.0, writes: Space = STREAM) -> Factored:
    rng = np.random.default_rng(seed)
    gains = np.geomspace(1, 1 / spread, R)
    frames = [np.linalg.qr(rng.standard_normal((n, R)))[0] for n in (N, R, N, R)]
    A, B = (frames[0] * gains) @ frames[1], (frames[3] * gains) @ frames[2].T
    return Factored(A.astype(dtype), B.astype(dtype), STREAM, writes)


def with_factors(m: Factored, A: np.ndarray, B: np.ndarray) -> Factored:
    return Factored(A, B, m.reads, m.writes, m.stored)


def turned(m: Factored) -> Factored:
    """The same numbers, columns together in memory, as factors cut from a table of another layout are."""
    return with_factors(m, np.asfortranarray(m.A), np.asfortranarray(m.B))


def spaced(m: Factored) -> Factored:
    """The same numbers, neither rows nor columns together."""
    wide = [np.zeros((2 * len(f), 2 * f.shape[1]), f.dtype) for f in (m.A, m.B)]
    for room, factor in zip(wide, (m.A, m.B), strict=True):
        room[::2, ::2] = factor
    return with_factors(m, *(room[::2, ::2] for room in wide))


def assert_same(one: SVD, other: SVD) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("reads", "writes", "stored", "blocks", "noise", "cut", "route"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("together", [1, 3 * 2 * N * R, 2**20])  # heads by one, by three (the last run shorter), all
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_each_head_is_as_it_is_alone_to_the_last_bit(monkeypatch, together, dtype):
    monkeypatch.setattr(module, "TOGETHER", together)
    heads = [head(seed, dtype) for seed in range(8)]
    found = svds(heads)
    assert len(found) == len(heads)
    for m, one in zip(heads, found, strict=True):
        assert one.route == "product: Gram and Cholesky"
        assert_same(one, svd(m))


@pytest.mark.parametrize("layout", [turned, spaced, lambda m: turned(m).T])
def test_the_order_in_memory_of_a_neighbour_does_not_matter(layout):
    heads = [head(seed, np.float64 if seed % 2 else np.float32) for seed in range(6)]
    mixed = [layout(m) if i in (1, 2, 5) else m for i, m in enumerate(heads)]
    for m, one in zip(mixed, svds(mixed), strict=True):
        assert_same(one, svd(m))


def test_heads_are_right_against_dense_float64_algebra():
    heads = [head(seed) for seed in range(5)]
    for m, one in zip(heads, svds(heads), strict=True):
        M = m.A.astype(np.float64) @ m.B.astype(np.float64)
        # Condition 900 of the product: gains of the dense SVD are right to 900 eps, its sum of dyads to a few eps.
        np.testing.assert_allclose(one.S, np.linalg.svd(M, compute_uv=False)[:R], rtol=1e-11)
        np.testing.assert_allclose((one.U * one.S) @ one.Vh, M, atol=1e-13)


def test_a_head_that_needs_the_careful_route_takes_it_alone():
    heads = [head(seed, np.float64) for seed in range(4)]
    graded = head(9, np.float64, spread=1e7)
    lacking = with_factors(heads[0], np.repeat(heads[0].A[:, :1], R, axis=1), heads[0].B)
    nothing = with_factors(heads[0], 0 * heads[0].A, heads[0].B)
    mixed = [heads[0], graded, heads[1], lacking, nothing, heads[2], heads[3]]
    found = svds(mixed)
    careful = [one.route != "product: Gram and Cholesky" for one in found]
    assert careful == [False, True, False, True, True, False, False]
    assert [one.rank for one in found] == [R, R, R, 1, 0, R, R]
    for m, one in zip(mixed, found, strict=True):
        assert_same(one, svd(m))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_one_head_that_is_not_finite_is_refused_as_it_is_alone(wrong):
    heads = [head(seed) for seed in range(3)]
    A = heads[1].A.copy()
    A[5, 2] = wrong
    heads[1] = with_factors(heads[1], A, heads[1].B)
    pairs = [(m.A, m.B) for m in heads]
    assert [found is None for found in by_grams(pairs)] == [False, True, False]
    with pytest.raises(BadRequest, match="not finite"):
        svds(heads)


def test_a_head_whose_core_does_not_converge_leaves_the_others(monkeypatch):
    heads = [head(seed) for seed in range(3)]
    alone = [svd(m) for m in heads]
    real, bad = np.linalg.svd, alone[1].S[0]

    def failing(a, *args, **kwargs):
        cores = a.reshape(-1, R, R)
        if any(abs(real(core, compute_uv=False)[0] - bad) < 1e-9 * bad for core in cores):
            raise np.linalg.LinAlgError("SVD did not converge")
        return real(a, *args, **kwargs)

    monkeypatch.setattr(product_svd.np.linalg, "svd", failing)
    found = svds(heads)
    assert [one.route == "product: Gram and Cholesky" for one in found] == [True, False, True]
    for i in (0, 2):
        assert_same(found[i], alone[i])


def test_heads_of_other_shapes_and_spaces_stand_beside_each_other():
    small = Factored(head(0).A[:, :5], head(0).B[:5], STREAM, STREAM)
    mixed = [head(1), head(2, writes=HEAD), head(3), small, head(4).T]
    for m, one in zip(mixed, svds(mixed), strict=True):
        assert_same(one, svd(m))


def test_no_heads_are_no_dyads():
    assert svds([]) == []


@pytest.mark.parametrize("r", [2, 4, 16])
def test_few_columns_that_are_nearly_parallel_keep_orthonormal_vectors(r: int) -> None:
    """What the Gram loses does not shrink with r: at r = 2 and κ about 1000 vectors were off by 3e-10."""
    rng = np.random.default_rng(0)
    for gap in np.geomspace(1e-2, 1e-4, 9):
        A = rng.standard_normal((65, 1)) + gap * rng.standard_normal((65, r))
        found = svd(Factored(A, rng.standard_normal((r, 65)), Space("residual", 65), Space("residual", 65)))
        np.testing.assert_allclose(found.U.T @ found.U, np.eye(found.rank), atol=1e-11)
