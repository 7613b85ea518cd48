"""Bundled unions of Beta tails: never below the exact union, and close above it."""

import numpy as np
import pytest
from scipy import stats

from covector.linalg import chance
from covector.linalg.chance.bundles import GROWTH, SINGLE, p_svd_in_bundles


def projections(n: int, rank: int, d: int, seed: int = 0) -> np.ndarray:
    """Lengths of random unit vectors' projections on a subspace: cos² is Beta(rank/2, (d − rank)/2)."""
    return np.sqrt(stats.beta.rvs(rank / 2, (d - rank) / 2, size=n, random_state=seed))


def union(best: np.ndarray, lengths: np.ndarray, rank: int) -> np.ndarray:
    """Σ over vectors of P(length² · Beta(½, (rank − 1)/2) ≥ best²), by SciPy, one by one."""
    ratio = np.minimum(np.abs(best)[:, None] / lengths, 1.0)
    return np.minimum(1.0, stats.beta.sf(ratio**2, 0.5, (rank - 1) / 2).sum(axis=1))


@pytest.mark.parametrize("n", [1, 2, SINGLE - 1, SINGLE, SINGLE + 1, 1000, 20_000])
@pytest.mark.parametrize(("rank", "d"), [(2, 10), (8, 64), (64, 768)])
def test_it_bounds_the_exact_union_from_above_by_a_few_per_cent(n, rank, d):
    lengths = projections(n, rank, d)
    best = np.linspace(0.05, 1.0, 40) * lengths.max()
    exact, found = union(best, lengths, rank), p_svd_in_bundles(best, lengths, rank, d)
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= 1.1 * exact + 1e-12).all()


def test_it_agrees_with_the_union_that_readouts_use():
    lengths = projections(5000, 16, 128)
    best = np.linspace(0.3, 1.0, 20) * lengths.max()
    np.testing.assert_allclose(p_svd_in_bundles(best, lengths, 16, 128), chance.p_svd(best, lengths, 16, 128), rtol=0.1)


def test_order_of_the_vectors_and_sign_of_the_cosine_do_not_matter():
    lengths = projections(500, 8, 32)
    best = np.array([0.4, 0.6, 0.7])
    one = p_svd_in_bundles(best, lengths, 8, 32)
    np.testing.assert_array_equal(one, p_svd_in_bundles(-best, lengths[::-1].copy(), 8, 32))


def test_vectors_outside_the_subspace_cannot_win():
    lengths = projections(100, 8, 32)
    best = np.array([0.5])
    padded = np.concatenate([lengths, np.zeros(40)])
    np.testing.assert_allclose(
        p_svd_in_bundles(best, padded, 8, 32), p_svd_in_bundles(best, lengths, 8, 32), rtol=1e-12
    )
    assert p_svd_in_bundles(best, np.zeros(5), 8, 32) == 0


def test_a_cosine_beyond_the_longest_projection_counts_as_reaching_it():
    lengths = projections(100, 8, 32)
    beyond = p_svd_in_bundles(lengths.max(keepdims=True) * (1 + 1e-7), lengths, 8, 32)
    np.testing.assert_allclose(beyond, union(lengths.max(keepdims=True), lengths, 8), atol=1e-12)


@pytest.mark.parametrize(("rank", "d"), [(1, 8), (8, 8)])
def test_it_is_not_defined_for_one_dimension_and_for_all(rank, d):
    assert np.isnan(p_svd_in_bundles(np.array([0.3, 0.9]), projections(50, 4, 8), rank, d)).all()


def test_bundles_grow_with_their_place_and_cover_everything():
    from covector.linalg.chance.bundles import _starts

    for n in (1, 49, 50, 51, 333, 50_257):
        starts = _starts(n)
        sizes = np.diff(np.append(starts, n))
        assert starts[0] == 0
        assert sizes.sum() == n
        assert (sizes >= 1).all()
        # A bundle, and what is left over for the last one, is at most a fiftieth of what stands before it.
        assert (sizes[1:] <= np.maximum(1, 2 * GROWTH * starts[1:] + 1)).all()
