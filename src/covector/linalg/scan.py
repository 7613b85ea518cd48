"""One query against every stored direction: a pass at the speed of memory.

NumPy widens float16 at half a number per nanosecond, which would be most of the time. Here pairs of halves are taken as
one 32-bit integer, and two or three integer operations put sign, exponent and mantissa of each half where float32
has them. The exponent is then too small by 112, for which the query makes up.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from covector.axes import Float

# Rows widened at a time: halves of one parity are 1 MB in float32. Smaller blocks spend their time between threads,
# larger ones leave the cache and make the products use threads of their own.
BLOCK_BYTES = 2**21
# Multiplications per call of a product: beyond this OpenBLAS starts threads of its own in every one of ours, and they
# wait for each other (forty times slower with four queries on two cores).
QUIET = 2**18
# Below this many entries a second thread costs more than it brings.
ALONE = 2**22
# Sign, five bits of exponent and ten of mantissa, where they stand in float32 after the shift by three.
_BITS = np.array(0x8FFFE000, np.uint32).view(np.int32)
_LACKING = np.float32(2.0**112)


def scan(rows: Float[np.ndarray, "n d"], queries: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "n k"]:
    """``rows @ queries.T`` in float32, for stored rows in float16 (any float dtype works).

    Against unit vectors in float64, scores of unit float16 rows are off by at most 5e-4, typically 2e-5. Each block is
    summed alike whoever computes it, so the result does not depend on the number of threads. Rows must be finite.
    """
    out = np.empty((len(rows), len(queries)), np.float32)
    block = max(1, BLOCK_BYTES // (4 * max(1, rows.shape[1])))
    halves = rows.dtype == np.float16 and rows.shape[1] % 2 == 0 and rows.flags.c_contiguous
    work = _Halves(rows, queries, out) if halves else _Wide(rows, queries, out)
    starts = range(0, len(rows), block)
    workers = 1 if rows.size < ALONE else min(4, os.cpu_count() or 1)
    if workers == 1:
        work(starts, block)
        return out
    share = -(-len(starts) // workers)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda first: work(starts[first : first + share], block), range(0, len(starts), share)))
    return out


class _Halves:
    """Float16 rows of even width, as pairs of halves."""

    def __init__(self, rows: np.ndarray, queries: np.ndarray, out: np.ndarray) -> None:
        self.pairs, self.out = rows.view(np.int32), out
        scaled = queries.T.astype(np.float32) * _LACKING
        self.wanted = np.ascontiguousarray(np.stack([scaled[0::2], scaled[1::2]]))

    def __call__(self, starts: range, block: int) -> None:
        # The two halves side by side: fewer calls are fewer moments in which one thread waits for another.
        bits = np.empty((2, block, self.pairs.shape[1]), np.int32)
        sums = np.empty((2, block, self.out.shape[1]), np.float32)
        for start in starts:
            pair = self.pairs[start : start + block]
            both, added = bits[:, : len(pair)], sums[:, : len(pair)]
            np.right_shift(pair, 3, out=both[1])
            np.left_shift(pair, 16, out=both[0])
            np.right_shift(both[0], 3, out=both[0])
            np.bitwise_and(both, _BITS, out=both)
            _multiplied(both.view(np.float32), self.wanted, added)
            np.add(added[0], added[1], out=self.out[start : start + len(pair)])


class _Wide:
    """Rows of any other kind, widened by NumPy."""

    def __init__(self, rows: np.ndarray, queries: np.ndarray, out: np.ndarray) -> None:
        self.rows, self.wanted, self.out = rows, np.ascontiguousarray(queries.T, dtype=np.float32), out

    def __call__(self, starts: range, block: int) -> None:
        for start in starts:
            part = self.rows[start : start + block].astype(np.float32)
            _multiplied(part, self.wanted, self.out[start : start + len(part)])


def _multiplied(rows: np.ndarray, queries: np.ndarray, out: np.ndarray) -> None:
    """``rows @ queries`` into `out`, in calls that stay on the thread that makes them."""
    step = max(1, QUIET // max(1, queries.shape[-2] * queries.shape[-1]))
    for start in range(0, rows.shape[-2], step):
        part = np.s_[..., start : start + step, :]
        np.matmul(rows[part], queries, out=out[part])
