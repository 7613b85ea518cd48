"""How far the rounding of a checkpoint's dtype can move a map, before any arithmetic of ours.

A stored weight is the true one times (1 + δ) with |δ| <= u, u = 2^-p for a dtype of p significant bits. A map M is thus
known only as M + E, and what E can do to a singular vector no later precision can undo. For ``M = A @ B``
``E = δA·B + A·δB + δA·δB``. Three sizes of E are of use, from pessimistic to typical:

* ``worst``: ‖E‖₂ <= u(‖A‖_F‖B‖₂ + ‖A‖₂‖B‖_F) + u²‖A‖_F‖B‖_F. Always holds, reached only if all roundings conspire.
* ``typical``: ‖E‖₂ for independent roundings. A random n x r matrix G of entries e times a fixed B has spectral norm
  at most e(√n‖B‖₂ + ‖B‖_F) (Gordon); both parts in squares come out 1.1 to 1.4 times what rounding does, 1/25 of worst.
* ``coupling[i]``: the root-mean-square of an entry ``u_iᵀ·E·v_j``. This, over the difference of two singular values, is
  the angle by which the two dyads mix, and so what decides whether they can be told apart.

δA is relative to A as it was stored. Where A was rewritten since (a mean taken off, a gain folded in: `Map.rounded`),
its Frobenius norm below is that of the stored array, and its spectral norm and reach are those of the array as it is.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest

# 2^-p, p = significant bits with the hidden one: 53, 24, 11 and, for bfloat16 (7 stored + 1 hidden), 8.
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# Root mean square of a rounding error over that of the weights, in units of u. The error of a weight w is uniform in
# ±u·2^e, 2^e <= |w| < 2^(e+1), so has mean square u²·4^e/3; over weights of all scales 4^e/w² averages to the integral
# of 4^-t from 0 to 1, 3/(4 ln 4) = 0.541. Hence sqrt(0.541/3); measured 0.42-0.44 on normal weights.
TYPICAL_ROUNDING = 0.425


@dataclass(frozen=True, eq=False)
class StorageNoise:
    """Sizes of the error E that the storage dtype leaves in a map, in the unit of its singular values."""

    worst: float
    typical: float
    coupling: Float[np.ndarray, " r"]


def unit_roundoff(stored: str) -> float:
    """Return the largest relative error of rounding to the dtype named `stored`. Raises BadRequest for others."""
    if stored not in UNIT_ROUNDOFF:
        raise BadRequest(f"stored must be one of {', '.join(UNIT_ROUNDOFF)}, came {stored!r}")
    return UNIT_ROUNDOFF[stored]


def coarser(one: str, other: str) -> str:
    """Return whichever of the two dtype names rounds more."""
    return one if unit_roundoff(one) >= unit_roundoff(other) else other


def noise_of_matrix(shape: tuple[int, int], frobenius: float, rank: int, stored: str) -> StorageNoise:
    """Return the noise of a map stored as one [n, m] matrix of that Frobenius norm then, for its first `rank` dyads."""
    n, m = shape
    u = unit_roundoff(stored)
    rms = TYPICAL_ROUNDING * u * frobenius
    return StorageNoise(u * frobenius, rms * (1 / sqrt(n) + 1 / sqrt(m)), np.full(rank, rms / sqrt(n * m)))


def noise_of_product(
    shape: tuple[int, int, int],
    left: tuple[float, float],
    right: tuple[float, float],
    reach: tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]],
    stored: str,
) -> StorageNoise:
    """Return the noise of a map stored as factors A [n, r] and B [r, m].

    `left` and `right` are (Frobenius as stored, spectral as they are) norms of A and B; `reach` holds, per dyad, ‖uᵢᵀA‖
    and ‖B·vᵢ‖: how much of one factor's rounding the other passes on in these directions.
    """
    n, r, m = shape
    u = unit_roundoff(stored)
    r = max(r, 1)
    (fa, sa), (fb, sb) = left, right
    rms = TYPICAL_ROUNDING * u
    worst = u * (fa * sb + sa * fb) + u * u * fa * fb
    entry_a, entry_b = rms * fa / sqrt(n * r), rms * fb / sqrt(r * m)
    typical = float(np.hypot(entry_a * (sqrt(n) * sb + fb), entry_b * (sqrt(m) * sa + fa)))
    return StorageNoise(worst, typical, np.hypot(entry_a * reach[1], entry_b * reach[0]))


def together(one: StorageNoise, other: StorageNoise) -> StorageNoise:
    """Return the noise of a sum of two maps: worst cases add, independent errors add in squares."""
    return StorageNoise(
        one.worst + other.worst, float(np.hypot(one.typical, other.typical)), np.hypot(one.coupling, other.coupling)
    )
