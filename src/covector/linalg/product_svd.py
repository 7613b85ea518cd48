"""Singular triples of ``A @ B`` from its thin factors, never multiplied out.

Two routes. The fast one takes float64 Grams of both factors, their Cholesky factors, and the SVD of an r x r core:
with ``A = Qa·Laᵀ`` and ``B = Lb·Qbᵀ``, ``M = Qa·(Laᵀ·Lb)·Qbᵀ``. What a Gram loses is set by the condition of the factor
*after its columns are scaled to length one* (a diagonal scaling passes through Cholesky untouched), so that is what the
guard measures: at κ²·eps = 2e-10 the measured loss of orthogonality is 4e-13, of relative accuracy 2e-13.

The careful one is the product SVD of Drmač (SIAM J. Sci. Comput. 19, 1998): scale A's columns to one and push the
scales into B, QR of Bᵀ with pivoting, QR of A in the same order, and one-sided Jacobi (LAPACK dgejsv) on the core,
whose columns are then graded. It keeps relative accuracy of every singular value that the factors determine, in
whatever order their columns come; without pivots a shuffled graded factor loses it (3e-6 at κ(M) = 1e14, against
2e-15).

Source: Drmač 1998; Drmač and Veselić 2008 for gejsv; measured in tests/linalg/test_svd_accuracy.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.axes import Bool, Float
from covector.linalg.dyads import BACKWARD_ERROR, EPS, RELATIVE_ACCURACY, Dyads, is_absolute, numerical_rank
from covector.linalg.lapack import lapack, scipy_linalg
from covector.linalg.triangular import inverses_of_lower

# Largest κ_F(scaled factor)²·eps for which Cholesky of the Gram is used: 25 times below where orthogonality of the
# vectors was measured to reach 1e-11 at r = 64 (κ_F²·eps = 5e-9).
GUARD = 2e-10
# The loss follows ‖L⁻¹‖², not r times it: at r = 2 and κ = 944 orthogonality was off by 3e-10. Fewer columns count as
# these many, which keeps it below 8e-12 in all that was tried.
LEAST_RANK = 128

# Squares of entries outside this range over- or underflow float64; such factors take the careful route, which scales.
SAFE_SQUARES = (1e-200, 1e200)


@dataclass(frozen=True, eq=False)
class Measured:
    """What the decomposition learned of the factors: (Frobenius, spectral) norms, and ‖uᵢᵀA‖, ‖B·vᵢ‖ per dyad."""

    left: tuple[float, float]
    right: tuple[float, float]
    reach: tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]


# Factors of one product; memory for the vectors, U and Vh, of several products of one shape.
Pair = tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "r m"]]
Room = tuple[Float[np.ndarray, "h n r"], Float[np.ndarray, "h r m"]]

# What makes the sign of each dyad canonical: from the written directions, 1 or -1 for each.
Signs = Callable[[Float[np.ndarray, "r m"]], Float[np.ndarray, " r"]]


def product_dyads(A: Float[np.ndarray, "n r"], B: Float[np.ndarray, "r m"]) -> tuple[Dyads, Measured]:
    """Return the singular triples of ``A @ B`` above numerical rank, and the norms that were met on the way.

    U and Vh are orthonormal to 1e-11. A singular value not marked `absolute` is right to 1e-11 of itself; a marked one
    to 8·eps·‖A‖₂·‖B‖₂. Costs about 8dr² + 30r³ flop for d x r and r x d factors, and four d x r doubles. Signs are as
    they fall. Values must be finite (the caller checks).
    """
    return by_gram(A, B) or by_jacobi(A, B)


def by_gram(
    A: Float[np.ndarray, "n r"], B: Float[np.ndarray, "r m"], signs: Signs | None = None
) -> tuple[Dyads, Measured] | None:
    """The fast route; None where a factor is wide, not finite or too ill-conditioned, or the tail needs more digits.

    Both vectors of a dyad are multiplied by what `signs` says of Vh; without it signs are as they fall.
    """
    return by_grams([(A, B)], signs)[0]


def by_grams(
    pairs: Sequence[Pair], signs: Signs | None = None, room: Room | None = None
) -> list[tuple[Dyads, Measured] | None]:
    """`by_gram` of several pairs of factors, of one shape and one order in memory (`is_turned`), each to the last bit.

    What is small is done for all pairs in one call, which spares a quarter of the time at r = 64. `signs` is shown the
    rows of all pairs, one pair's after another's, also of those that come back as None. Vectors are put in `room` where
    that is given. Each factor and each result is used as soon as it is there, while it is in a core's own cache.
    """
    (n, r), m = pairs[0][0].shape, pairs[0][1].shape[1]
    if not 0 < r <= min(n, m):
        return [None] * len(pairs)
    with np.errstate(all="ignore"):
        a = _stacked([A for A, _ in pairs])
        left = _gram_factors(a.mT @ a)
        b = _stacked([B for _, B in pairs])
        right = _gram_factors(b @ b.mT)
        cores = (left.lower.mT * (left.scale * right.scale)[:, None]) @ right.lower
        good = left.good & right.good
        cores[~good] = 0.0
        left_small, S, right_small = _svd_of_each(cores)
        # The r x r SVD sees its own largest entries only. A tail that it cannot see may still be in the factors.
        for i, size in enumerate(left.spectral * right.spectral):
            good[i] &= not is_absolute(S[i], size).any()
        if not good.any():
            return [None] * len(pairs)
        into_left = (left.inverse.mT @ left_small) / left.scale[:, :, None]
        into_right = (right_small @ right.inverse) / right.scale[:, None]
        U, Vh = room or room_for(len(pairs), n, r, m)
        np.matmul(into_right, b, out=Vh)
        if signs is not None:
            chosen = signs(Vh.reshape(-1, m)).reshape(S.shape)
            np.multiply(Vh, chosen[:, :, None], out=Vh)
            into_left *= chosen[:, None]
        np.matmul(into_left.mT, a.mT, out=U.mT)
        # u = A·w and M·v = σ·u, so B·v = σ·w, A having full rank; the same on the other side.
        reach = (S * np.linalg.norm(into_right, axis=2), S * np.linalg.norm(into_left, axis=1))
    return [
        (
            Dyads(U[i], S[i], Vh[i], np.zeros(r, bool), np.zeros(0), 0, "product: Gram and Cholesky"),
            Measured(left.norms(i), right.norms(i), (reach[0][i], reach[1][i])),
        )
        if good[i]
        else None
        for i in range(len(pairs))
    ]


def room_for(number: int, n: int, r: int, m: int) -> Room:
    """Memory for U [n, r] and Vh [r, m] of several products, each vector in one piece: a fifth less time for U."""
    return np.empty((number, r, n)).mT, np.empty((number, r, m))


def is_turned(a: np.ndarray) -> bool:
    """Whether the columns of a matrix, not its rows, lie together in memory, as in the transpose of a table of rows."""
    return a.strides[0] < a.strides[1]


def _stacked(factors: Sequence[np.ndarray]) -> Float[np.ndarray, "h n r"]:
    """Factors in float64, one after the other, in the order in memory that they have."""
    if len(factors) == 1:
        one = np.asarray(factors[0], dtype=np.float64)
        return (one if min(one.strides) == one.itemsize else np.ascontiguousarray(one))[None]
    rows, columns = factors[0].shape
    turned = is_turned(factors[0])
    room = np.empty((len(factors), columns, rows) if turned else (len(factors), rows, columns))
    out = room.mT if turned else room
    for into, factor in zip(out, factors, strict=True):
        into[...] = factor
    return out


def _svd_of_each(cores: Float[np.ndarray, "h r r"]) -> tuple[np.ndarray, Float[np.ndarray, "h r"], np.ndarray]:
    """SVD of every core; gains of zero where it did not converge."""
    try:
        return np.linalg.svd(cores)  # SciPy's would keep other threads waiting meanwhile
    except np.linalg.LinAlgError:
        if len(cores) == 1:
            return cores, np.zeros(cores.shape[:2]), cores
    each = [_svd_of_each(cores[i : i + 1]) for i in range(len(cores))]
    U, S, Vh = (np.concatenate(parts) for parts in zip(*each, strict=True))
    return U, S, Vh


@dataclass(frozen=True, eq=False)
class _GramFactors:
    """``G = D·L·Lᵀ·D`` with unit rows of L: Cholesky factors of Grams whose columns were scaled to length one.

    `good` says of which of them that can be trusted; those of the others are not defined.
    """

    good: Bool[np.ndarray, " h"]
    scale: Float[np.ndarray, "h r"]
    lower: Float[np.ndarray, "h r r"]
    inverse: Float[np.ndarray, "h r r"]
    frobenius: Float[np.ndarray, " h"]
    spectral: Float[np.ndarray, " h"]

    def norms(self, i: int) -> tuple[float, float]:
        """(Frobenius, spectral) norms of one factor."""
        return float(self.frobenius[i]), float(self.spectral[i])


def _gram_factors(grams: Float[np.ndarray, "h r r"]) -> _GramFactors:
    """Cholesky of the scaled Grams, and where the guard says that it cannot be trusted."""
    squares = np.diagonal(grams, axis1=1, axis2=2)
    trace = squares.sum(axis=1)
    good = (squares.min(axis=1) > SAFE_SQUARES[0]) & (trace < SAFE_SQUARES[1])
    scale = np.sqrt(squares)
    scaled = grams / (scale[:, :, None] * scale[:, None])
    scaled[~good] = 0.0
    lower = _cholesky_of_each(scaled)
    inverse = inverses_of_lower(lower)
    # κ_F = ‖L‖_F‖L⁻¹‖_F bounds κ₂ from above; ‖L‖_F² = r since its rows have length one. Where there is no L it is NaN.
    good &= max(grams.shape[1], LEAST_RANK) * _squares(inverse) * EPS <= GUARD
    # ‖G⁴‖_F^(1/4) >= ‖G‖₂ and at most r^(1/8) above it: a spectral norm for two small products instead of an SVD. A
    # matrix times its own transpose takes half of a product.
    powers = grams / trace[:, None, None]
    powers = powers @ powers.mT
    powers = powers @ powers.mT
    return _GramFactors(good, scale, lower, inverse, np.sqrt(trace), np.sqrt(trace * _squares(powers) ** 0.125))


def _cholesky_of_each(grams: Float[np.ndarray, "h r r"]) -> Float[np.ndarray, "h r r"]:
    """Cholesky factor of every Gram; zeros for one that is not positive definite."""
    try:
        return np.linalg.cholesky(grams)
    except np.linalg.LinAlgError:
        if len(grams) == 1:
            return np.zeros(grams.shape)
    return np.concatenate([_cholesky_of_each(grams[i : i + 1]) for i in range(len(grams))])


def _squares(matrices: Float[np.ndarray, "h r r"]) -> Float[np.ndarray, " h"]:
    """Squared Frobenius norm of every matrix."""
    flat = matrices.reshape(len(matrices), -1)
    return np.vecdot(flat, flat)


def by_jacobi(A: Float[np.ndarray, "n r"], B: Float[np.ndarray, "r m"]) -> tuple[Dyads, Measured]:
    """The careful route: Drmač's product SVD. Values must be finite; signs are as they fall."""
    a, b = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)
    n, m = a.shape[0], b.shape[1]
    lengths = _column_lengths(a)
    alive = (lengths > 0) & (_column_lengths(b.T) > 0)
    if not alive.any():
        return _nothing(n, m, a.shape[1])
    a, b, lengths = a[:, alive], b[alive], lengths[alive]
    pivoted: Any = scipy_linalg().qr((lengths[:, None] * b).T, mode="economic", pivoting=True)
    Qb, Rb, order = pivoted
    Qa, Ra = np.linalg.qr((a / lengths)[:, order])
    left_small, S, right_small = _jacobi_svd(Ra @ Rb.T)
    measured = _measure(Ra * lengths[order], (Rb / lengths[order]).T, left_small, right_small)
    size = measured.left[1] * measured.right[1]
    absolute = is_absolute(S, size) & (not _is_determined(Ra, Rb))
    keep = numerical_rank(S, (n, m))
    # A value below the backward error that the factors do not determine has no right digit: a product that cancels.
    keep = min(keep, int(np.count_nonzero(~absolute | (BACKWARD_ERROR * EPS * size < S))))
    reach = (measured.reach[0][:keep], measured.reach[1][:keep])
    dyads = Dyads(
        Qa @ left_small[:, :keep],
        S[:keep],
        right_small[:keep] @ Qb.T,
        absolute[:keep],
        np.zeros(0),
        min(n, m, alive.size) - keep,
        "product: pivoted QR and Jacobi",
    )
    return dyads, Measured(measured.left, measured.right, reach)


def _measure(Ra: np.ndarray, Rb: np.ndarray, left_small: np.ndarray, right_small: np.ndarray) -> Measured:
    """Norms of the factors (seen through their triangles, whose inner order is the same) and reach per dyad."""

    def norms(R: np.ndarray) -> tuple[float, float]:
        return float(np.linalg.norm(R)), float(np.linalg.norm(R, 2))

    reach = (np.linalg.norm(left_small.T @ Ra, axis=1), np.linalg.norm(Rb @ right_small.T, axis=0))
    return Measured(norms(Ra), norms(Rb), reach)


def _is_determined(Ra: np.ndarray, Rb: np.ndarray) -> bool:
    """Whether the scaled triangles are well enough conditioned that every σ is known relative to itself."""
    if min(Ra.shape[0], Rb.shape[0]) < Ra.shape[1]:
        return False
    kappa = 0.0
    for R in (Ra, Rb):
        spectrum = np.linalg.svd(R / np.maximum(_column_lengths(R), np.finfo(float).tiny), compute_uv=False)
        if spectrum[-1] <= EPS * spectrum[0]:
            return False
        kappa += spectrum[0] / spectrum[-1]
    return bool(BACKWARD_ERROR * EPS * kappa <= RELATIVE_ACCURACY)


def _jacobi_svd(core: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SVD of a small matrix whose columns are graded, each σ relative to itself; (U, S, Vh)."""
    if core.shape[0] < core.shape[1]:
        U, S, Vh = _jacobi_svd(core.T)
        return Vh.T, S, U.T
    # joba 0: high relative accuracy for graded columns; jobu, jobv 0: thin U and V; jobr 1: guard against overflow;
    # jobt, jobp 0: no transposing and no perturbing on its own account.
    (jacobi,) = lapack("gejsv")
    S, U, V, work, _, failed = jacobi(core, joba=0, jobu=0, jobv=0, jobr=1, jobt=0, jobp=0)
    if failed:
        # Jacobi did not converge. The usual routine is right to eps·‖core‖ only, which marks what needs more.
        return np.linalg.svd(core, full_matrices=False)
    return U, S * (work[0] / work[1]), V.T


def _column_lengths(a: np.ndarray) -> np.ndarray:
    """Euclidean column norms, scaled by the largest entry so that squares neither over- nor underflow."""
    largest = float(np.abs(a).max(initial=0.0))
    return largest * np.sqrt(np.sum((a / largest) ** 2, axis=0)) if largest > 0 else np.zeros(a.shape[1])


def _nothing(n: int, m: int, inner: int) -> tuple[Dyads, Measured]:
    none = np.zeros(0)
    dyads = Dyads(
        np.zeros((n, 0)), none, np.zeros((0, m)), np.zeros(0, bool), none, min(n, m, inner), "product: nothing"
    )
    return dyads, Measured((0.0, 0.0), (0.0, 0.0), (none, none))
