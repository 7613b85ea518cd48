"""Ranks among all labels, against a dense table of scores that is small enough to hold."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg import retrieval
from covector.linalg.retrieval import reaches_each, reaches_own

RNG = np.random.default_rng(0)
SOURCES, B = RNG.standard_normal((2, 6, 3)), RNG.standard_normal((2, 3, 10))
VECTORS = RNG.standard_normal((37, 10))


def dense_hits(sign: float, k: int, targets: np.ndarray) -> np.ndarray:
    scores = sign * np.einsum("hmr,hrd,nd->hmn", SOURCES, B, VECTORS)
    ranks = (-scores).argsort(axis=2).argsort(axis=2)
    return ranks[:, :, targets] < k


@pytest.mark.parametrize("k", [1, 4, 36, 37])
@pytest.mark.parametrize("entries", [2**22, 12])
def test_every_source_finds_its_own_label_as_a_dense_table_of_scores_does(
    k: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "TILE_ENTRIES", entries)
    own = np.array([3, 0, 36, 5, 5, 20])
    found = reaches_own(SOURCES, B, VECTORS, own, k)
    rows = np.arange(6)
    np.testing.assert_array_equal(found.high, dense_hits(1, k, own)[:, rows, rows])
    np.testing.assert_array_equal(found.low, dense_hits(-1, k, own)[:, rows, rows])


@pytest.mark.parametrize("k", [1, 4, 36])
@pytest.mark.parametrize("entries", [2**22, 12])
def test_every_source_with_every_target(k: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "TILE_ENTRIES", entries)
    targets = np.array([7, 7, 1, 30])
    found = reaches_each(SOURCES, B, VECTORS, targets, k)
    np.testing.assert_array_equal(found.high, dense_hits(1, k, targets))
    np.testing.assert_array_equal(found.low, dense_hits(-1, k, targets))


def test_a_map_of_zeros_reaches_nothing() -> None:
    own = np.arange(6)
    for found in (reaches_own(SOURCES, 0 * B, VECTORS, own, 3), reaches_each(SOURCES, 0 * B, VECTORS, own, 3)):
        assert not found.high.any()
        assert not found.low.any()


def test_no_source_reaches_nothing() -> None:
    assert reaches_own(SOURCES[:, :0], B, VECTORS, np.zeros(0, int), 1).high.shape == (2, 0)
    assert reaches_each(SOURCES[:, :0], B, VECTORS, np.arange(4), 1).low.shape == (2, 0, 4)


def test_a_label_that_has_a_twin_does_not_win_over_it() -> None:
    vectors = np.concatenate([VECTORS, VECTORS])
    best = np.einsum("mr,rd,nd->mn", SOURCES[0], B[0], VECTORS).argmax(axis=1)
    assert reaches_own(SOURCES[:1], B[:1], VECTORS, best, 1).high.all()
    assert not reaches_own(SOURCES[:1], B[:1], vectors, best, 1).high.any()
    assert reaches_own(SOURCES[:1], B[:1], vectors, best, 2).high.all()


@pytest.mark.parametrize("k", [0, 38])
def test_k_counts_labels(k: int) -> None:
    with pytest.raises(BadRequest, match=f"expected 1 <= k <= 37 labels, got k = {k}"):
        reaches_own(SOURCES, B, VECTORS, np.arange(6), k)
