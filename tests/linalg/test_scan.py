"""The pass over stored directions: every half is read as what it is, whatever the width, the block and the thread."""

import numpy as np
import pytest

from covector.linalg import scan as module
from covector.linalg.scan import scan


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def exact(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64) @ queries.T.astype(np.float64)


def rounding(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """A float32 sum of d products, in any order, errs by (d + 2)·2⁻²⁴·Σ|products| at most, query rounded."""
    d = rows.shape[1]
    return (d + 2) * 2.0**-24 * (np.abs(rows.astype(np.float64)) @ np.abs(queries.T.astype(np.float64)))


def test_every_finite_half_is_read_exactly() -> None:
    # All 63,488 finite bit patterns, each in the even and in the odd place of a pair: subnormals and −0 among them.
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits.view(np.float16)
    halves = halves[np.isfinite(halves)]
    for place in (0, 1):
        rows = np.zeros((len(halves), 2), np.float16)
        rows[:, place] = halves
        query = np.zeros((1, 2))
        query[0, place] = 1.0
        np.testing.assert_array_equal(scan(rows, query)[:, 0].astype(np.float64), halves.astype(np.float64))


@pytest.mark.parametrize("d", [1, 2, 3, 5, 64, 127, 768, 1601])
@pytest.mark.parametrize("k", [1, 3])
def test_scores_are_those_of_the_stored_halves_to_the_rounding_of_a_float32_sum(d: int, k: int) -> None:
    rows, queries = unit_rows(300, d), np.random.default_rng(1).standard_normal((k, d))
    assert np.all(np.abs(scan(rows, queries) - exact(rows, queries)) <= rounding(rows, queries))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "how", ["contiguous", "reversed rows", "every second row", "columns of a wider array", "Fortran"]
)
def test_any_layout_and_dtype_gives_the_same(dtype: type, how: str) -> None:
    wide = unit_rows(200, 66).astype(dtype)
    rows = {
        "contiguous": wide,
        "reversed rows": wide[::-1],
        "every second row": wide[::2],
        "columns of a wider array": wide[:, 1:65],
        "Fortran": np.asfortranarray(wide),
    }[how]
    queries = np.random.default_rng(1).standard_normal((2, rows.shape[1]))
    assert np.all(np.abs(scan(rows, queries) - exact(rows, queries)) <= rounding(rows, queries))


def test_a_read_only_map_of_a_file_is_scanned_where_it_is() -> None:
    rows = unit_rows(50, 32)
    rows.flags.writeable = False
    query = np.eye(32)[3:4]
    np.testing.assert_array_equal(scan(rows, query)[:, 0], rows[:, 3].astype(np.float32))


def test_no_rows_and_one_row_are_no_special_cases() -> None:
    assert scan(np.zeros((0, 8), np.float16), np.ones((2, 8))).shape == (0, 2)
    assert scan(np.ones((1, 8), np.float16), np.ones((1, 8))).tolist() == [[8.0]]


@pytest.mark.parametrize("d", [62, 63])
def test_the_number_of_threads_does_not_change_a_bit(monkeypatch: pytest.MonkeyPatch, d: int) -> None:
    # Blocks of 16 rows, so that shares end inside and at the edge of blocks.
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * d * 16)
    rows, queries = unit_rows(16 * 13 + 5, d), np.random.default_rng(1).standard_normal((2, d))
    monkeypatch.setattr(module, "ALONE", rows.size + 1)
    alone = scan(rows, queries)
    monkeypatch.setattr(module, "ALONE", 0)
    # New memory may hold the scores of the call before: a block that nobody computes must show.
    monkeypatch.setattr(module.np, "empty", lambda shape, dtype=float: np.full(shape, 77, dtype))
    for cores in (1, 2, 3, 4):
        monkeypatch.setattr(module.os, "cpu_count", lambda cores=cores: cores)
        np.testing.assert_array_equal(scan(rows, queries), alone)


def test_a_hundred_thousand_rows_are_all_there() -> None:
    rows = unit_rows(100_000, 48)
    query = np.random.default_rng(2).standard_normal((1, 48))
    assert np.all(np.abs(scan(rows, query) - exact(rows, query)) <= rounding(rows, query))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 4, 300])
def test_no_product_is_large_enough_for_blas_to_start_threads_of_its_own(
    monkeypatch: pytest.MonkeyPatch, dtype: type, k: int
) -> None:
    # OpenBLAS divides a product of more than 2¹⁸ multiplications; in several workers at once that takes forty times as
    # long. One row of it cannot be divided further.
    sizes, matmul = [], np.matmul

    def spied(a: np.ndarray, b: np.ndarray, **named: np.ndarray) -> np.ndarray:
        sizes.append((a.shape[-2], a.shape[-2] * a.shape[-1] * b.shape[-1]))  # a stack is a product after another
        return matmul(a, b, **named)

    rows, queries = unit_rows(3000, 1024).astype(dtype), np.random.default_rng(1).standard_normal((k, 1024))
    monkeypatch.setattr(module.np, "matmul", spied)
    scores = scan(rows, queries)
    monkeypatch.undo()
    assert sizes
    assert all(size <= 2**18 or count == 1 for count, size in sizes)
    assert np.all(np.abs(scores - exact(rows, queries)) <= rounding(rows, queries))
