"""How far each dyad turns when the weights move a little: by the rounding of their storage, or by a stated amount.

The stored arrays themselves are moved (for a factored map its factors, not their product), each by Gaussian noise of
a given size relative to its Frobenius norm; dyads are found again and paired with the old ones so that the total of
|u·u'||v·v'| is largest. A direction whose median |cos| with its partner falls below 0.9 is not the same direction on
another day, and should not be named.

Source: §1.4 of the theory page; `docs/theory/scores.md`, equation 14.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.dense_svd import dense_dyads
from covector.linalg.dyads import Dyads
from covector.linalg.maps import Dense, Factored, Map
from covector.linalg.product_svd import product_dyads
from covector.linalg.storage_noise import TYPICAL_ROUNDING, unit_roundoff
from covector.linalg.svd import SVD

# A perturbation that any retraining, quantisation or edit exceeds.
ONE_PERCENT = 0.01
# The median of nine draws: enough to tell 0.8 from 0.95, at the cost of nine decompositions.
DRAWS = 9


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
    stored); 0.01 is one percent. Costs `draws` decompositions of m, and a pairing of r × r each.
    Raises BadRequest for a negative delta, draws < 1, or dyads of another map's shape.
    """
    size = TYPICAL_ROUNDING * unit_roundoff(m.stored) if delta is None else delta
    if not size >= 0 or draws < 1 or (found.U.shape[0], found.Vh.shape[1]) != m.shape:
        raise BadRequest(
            f"expected delta >= 0, draws >= 1 and dyads of this {m.shape} map, came {size}, {draws}, "
            f"{found.U.shape[0]} × {found.Vh.shape[1]}"
        )
    read, write = np.empty((draws, found.rank)), np.empty((draws, found.rank))
    for draw in range(draws):
        short_only = not (found.U.shape[1] and len(found.Vh))
        again = _found_again(m, size, generator(seed, "perturbation", draw), delta is None, short_only)
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


def _found_again(m: Map, delta: float, rng: np.random.Generator, storage: bool, short_only: bool) -> Dyads:
    if isinstance(m, Factored):
        was = m.rounded if storage and m.rounded else (None, None)
        A, B = (_moved(array, delta, rng, norm) for array, norm in zip((m.A, m.B), was, strict=True))
        return product_dyads(A, B)[0]
    was = m.rounded[0] if storage and isinstance(m, Dense) and m.rounded else None
    return dense_dyads(_moved(m.dense(), delta, rng, was), min(m.shape), short_only)


def _moved(array: np.ndarray, delta: float, rng: np.random.Generator, norm: float | None) -> np.ndarray:
    """The array plus Gaussian noise of relative Frobenius size delta (of `norm`, its norm as it was stored)."""
    wide = array.astype(np.float64)
    length = float(np.linalg.norm(wide)) if norm is None else norm
    return wide + rng.standard_normal(wide.shape) * (delta * length / np.sqrt(wide.size))
