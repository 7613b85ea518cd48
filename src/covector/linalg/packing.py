"""How tightly are directions packed: their largest and typical |cos|, against the least that so many must have.

Source: Q5(a) of the theory page; `docs/theory/studies.md`, equations 13–15; Welch 1974 for the bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.streams import Seed, generator

# Gram rows at a time: 1024 × 100,000 cosines are 800 MB in float64, so blocks are cut to 2²⁴ entries.
ENTRIES = 2**24


@dataclass(frozen=True)
class Packing:
    """n directions in d dimensions: largest |cos| of two, root mean square over pairs, dimensions they fill."""

    n: int
    d: int
    largest: float
    rms: float
    dimensions: float


def packing(rows: Float[np.ndarray, "n d"]) -> Packing:
    """Pack n >= 2 unit rows. `dimensions` is (Σλ)²/Σλ² of their second moment: d if all are used alike, 1 for one line.

    Costs n²·d multiplications; a block of the Gram matrix is held at a time. Raises BadRequest for fewer than two rows.
    """
    n, d = rows.shape
    if n < 2:
        raise BadRequest(f"expected two directions or more, got {n}; a single one has no neighbour")
    wide, largest = rows.astype(np.float64), 0.0
    step = max(1, ENTRIES // n)
    for start in range(0, n, step):
        block = np.abs(wide[start : start + step] @ wide[start:].T)
        block[np.arange(len(block)), np.arange(len(block))] = 0.0
        largest = max(largest, float(block.max()))
    moment = wide.T @ wide
    total = float(np.sum(moment * moment))
    lengths = np.einsum("nd,nd->n", wide, wide)
    rms = float(np.sqrt(max(0.0, total - float(lengths @ lengths)) / (n * (n - 1))))
    return Packing(n, d, min(largest, 1.0), rms, float(np.trace(moment)) ** 2 / total)


def welch_bound(n: int, d: int) -> float:
    """The least that the largest, and the root mean square, |cos| of n unit vectors in R^d can be; 0 for n <= d.

    √((n − d)/(d(n − 1))). The largest reaches it where vectors are equiangular, the mean where they are a tight frame.
    """
    return float(np.sqrt((n - d) / (d * (n - 1)))) if n > d else 0.0


def null_packings(sizes: Sequence[int], d: int, *, draws: int, seed: Seed) -> list[Packing]:
    """Packings of as many random directions, orthonormal within groups of these sizes as singular directions are.

    Raises BadRequest if draws < 1 or a size is outside 1 … d.
    """
    if draws < 1 or not sizes or min(sizes) < 1 or max(sizes) > d:
        raise BadRequest(f"expected draws >= 1 and groups of 1 to {d} directions, got {draws} and {list(sizes)[:3]}")
    made = []
    for draw in range(draws):
        rng = generator(seed, "packing", draw)
        made.append(packing(np.concatenate([draw_frames(rng, 1, d, size)[0] for size in sizes])))
    return made
