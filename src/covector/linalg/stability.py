"""How far each dyad turns when the weights move a little: by the rounding of their storage, or by a stated amount.

The stored arrays themselves are moved (for a factored map its factors, not their product), each by Gaussian noise of
a given size relative to its Frobenius norm; dyads are found again and paired with the old ones so that the total of
|u·u'||v·v'| is largest. A direction whose median |cos| with its partner falls below 0.9 is not the same direction on
another day, and should not be named.

A matrix that is held whole is moved a few rows at a time, on their way into its Gram: no moved copy is made. Of such a
matrix 2r + 16 leading dyads are found again where r were kept, if that is a part of all, so that partners can move
down; one whose partner sank further has none, and its cosine is what it has with a stranger: never more than with all.

Source: §1.4 of the theory page; `docs/theory/scores.md`, equations 14 and 18.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.dense_svd import SUBSET, dense_dyads
from covector.linalg.dyads import Dyads, is_absolute
from covector.linalg.maps import Dense, Factored, Map, Updated, frobenius
from covector.linalg.product_svd import product_dyads
from covector.linalg.storage_noise import TYPICAL_ROUNDING, unit_roundoff
from covector.linalg.svd import SVD

# A perturbation that any retraining, quantisation or edit exceeds.
ONE_PERCENT = 0.01
# The median of nine draws: enough to tell 0.8 from 0.95, at the cost of nine decompositions.
DRAWS = 9
# Rows of a matrix that share a generator, along its longer side; results depend on it, so it never varies.
NOISE_ROWS = 1024
# Noise below this is decomposed from the moved matrix itself: a Gram turns dyad i by eps·σ₁²/σᵢ over its gap, noise by
# δ‖W‖_F/√n over it, so that down to σᵢ = 1e-6·σ₁ the Gram's part is less than a hundredth; weaker ones lie below it.
LEAST_FOR_GRAM = 1e-6
# Dyads that are found again beyond twice those that are kept.
BEYOND = 16


@dataclass(frozen=True, eq=False)
class Stability:
    """Median |cos| of each dyad with its partner after perturbation: of what it reads, of what it writes.

    `delta` is the size of the noise relative to the Frobenius norm of each stored array (`perturbed` says which).
    """

    read: Float[np.ndarray, " r"]
    write: Float[np.ndarray, " r"]
    delta: float
    perturbed: str
    draws: int


def stability(m: Map, found: SVD, *, delta: float | None = None, draws: int = DRAWS, seed: Seed = 0) -> Stability:
    """How stable the dyads `found` of the map m are under noise of relative size `delta` in its stored arrays.

    `delta` None is the rounding of the dtype that the weights are stored in (`m.stored`, of the arrays as they were
    stored); 0.01 is one percent. Costs `draws` decompositions of m (of a matrix, its Gram and 2r + 16 vectors), and a
    pairing of r × (2r + 16) each. Of a matrix no copy is made unless delta is below 1e-6.
    Raises BadRequest for a negative delta, draws < 1, or dyads of another map's shape.
    """
    size = TYPICAL_ROUNDING * unit_roundoff(m.stored) if delta is None else delta
    if not size >= 0 or draws < 1 or (found.U.shape[0], found.Vh.shape[1]) != m.shape:
        raise BadRequest(
            f"expected delta >= 0, draws >= 1 and dyads of this {m.shape} map, came {size}, {draws}, "
            f"{found.U.shape[0]} × {found.Vh.shape[1]}"
        )
    read, write = np.empty((draws, found.rank)), np.empty((draws, found.rank))
    short_only = not (found.U.shape[1] and len(found.Vh))
    norms = _norms(m, delta is None)
    for draw in range(draws):
        if isinstance(m, Factored):
            rng = generator(seed, "perturbation", draw)
            A, B = (_moved(array, size, rng, norm) for array, norm in zip((m.A, m.B), norms, strict=True))
            again = product_dyads(A, B)[0]
        else:
            again = _Moved(m, size * norms[0], seed, draw).dyads(found.rank, short_only, size)
        read[draw], write[draw] = paired(found, again)
    perturbed = "each factor" if isinstance(m, Factored) else "the matrix"
    return Stability(np.median(read, axis=0), np.median(write, axis=0), float(size), perturbed, draws)


def paired(one: SVD, other: Dyads) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """|u·u'| and |v·v'| of each dyad with its partner (Hungarian on their product); 0 for one left without.

    A side that was left out (`stream_only`) does not count in the pairing and comes back as NaN.
    """
    left = np.abs(one.U.T @ other.U) if one.U.shape[1] else None
    right = np.abs(one.Vh @ other.Vh.T) if len(one.Vh) else None
    both = [likeness for likeness in (left, right) if likeness is not None]
    rows, columns = linear_sum_assignment(-np.prod(both, axis=0))
    read, write = (np.full(one.rank, np.nan if side is None else 0.0) for side in (left, right))
    if left is not None:
        read[rows] = left[rows, columns]
    if right is not None:
        write[rows] = right[rows, columns]
    return read, write


def _norms(m: Map, storage: bool) -> tuple[float, ...]:
    """Frobenius norms of the stored arrays: as they were stored, where it is storage that moves them."""
    if storage and isinstance(m, Factored | Dense) and m.rounded:
        return m.rounded
    if isinstance(m, Factored):
        return tuple(float(np.linalg.norm(array.astype(np.float64))) for array in (m.A, m.B))
    return (frobenius(m),)


def _moved(array: np.ndarray, delta: float, rng: np.random.Generator, norm: float) -> np.ndarray:
    """The array plus Gaussian noise of Frobenius size delta · norm."""
    return array + rng.standard_normal(array.shape) * (delta * norm / np.sqrt(array.size))


class _Moved:
    """A matrix moved by noise, handed out by rows of its longer side; every block of rows has its own generator."""

    def __init__(self, m: Map, size: float, seed: Seed, draw: int) -> None:
        self.flipped = m.shape[0] < m.shape[1]
        self.m = m.T if self.flipped else m
        self.seed = (*((seed,) if isinstance(seed, int) else seed), draw)
        self.entry = size / np.sqrt(m.shape[0] * m.shape[1])

    def tile(self, index: int) -> Float[np.ndarray, "b m"]:
        """Rows of block `index`, moved."""
        n, width = self.m.shape
        rows = slice(index * NOISE_ROWS, min((index + 1) * NOISE_ROWS, n))
        moved = generator(self.seed, "moved rows", index).standard_normal((rows.stop - rows.start, width))
        moved *= self.entry
        if isinstance(self.m, Updated):
            moved += self.m.base.W[rows]
            moved += self.m.A[rows].astype(np.float64) @ self.m.B.astype(np.float64)
        else:
            moved += self.m.dense()[rows]
        return moved

    def tiles(self) -> Iterator[tuple[slice, Float[np.ndarray, "b m"]]]:
        """All blocks with their rows."""
        for index in range(-(-self.m.shape[0] // NOISE_ROWS)):
            tile = self.tile(index)
            yield slice(index * NOISE_ROWS, index * NOISE_ROWS + len(tile)), tile

    def dyads(self, kept: int, short_only: bool, delta: float) -> Dyads:
        """Enough dyads to find the partners of the first `kept`; all where these are not a part of them."""
        if delta < LEAST_FOR_GRAM:
            whole = np.concatenate([tile for _, tile in self.tiles()])
            found = dense_dyads(whole, min(whole.shape), short_only)
        else:
            found = self._from_gram(2 * kept + BEYOND, short_only)
        return self._turned(found) if self.flipped else found

    def _from_gram(self, wanted: int, short_only: bool) -> Dyads:
        """The leading dyads from the Gram of the shorter side, which LAPACK overwrites."""
        n, width = self.m.shape
        gram = np.zeros((width, width), order="F")
        for _, tile in self.tiles():
            gram += (tile.T @ tile).T
        if wanted <= SUBSET * width:
            part = (width - wanted, width - 1)
            squares, V = eigh(gram, subset_by_index=part, overwrite_a=True, driver="evr", check_finite=False)
        else:
            squares, V = eigh(gram, overwrite_a=True, driver="evd", check_finite=False)
        del gram
        S, V = np.sqrt(np.maximum(squares[::-1], 0.0)), V[:, ::-1]
        U = np.zeros((n, 0 if short_only else len(S)))
        if not short_only:
            inverse = np.divide(1.0, S, out=np.zeros_like(S), where=S > 0)
            for rows, tile in self.tiles():
                U[rows] = (tile @ V) * inverse
        return Dyads(U, S, V.T, is_absolute(S, S[0]), np.zeros(0), 0, "moved: Gram")

    @staticmethod
    def _turned(found: Dyads) -> Dyads:
        return Dyads(found.Vh.T, found.S, found.U.T, found.absolute, found.beyond, found.cut, found.route)
