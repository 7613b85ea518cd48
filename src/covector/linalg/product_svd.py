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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.linalg import qr as householder_qr

from covector.axes import Float
from covector.linalg.dyads import BACKWARD_ERROR, EPS, RELATIVE_ACCURACY, Dyads, is_absolute, numerical_rank

_cholesky, _invert_triangle, _jacobi = get_lapack_funcs(("potrf", "trtri", "gejsv"), dtype=np.float64)

# Largest κ_F(scaled factor)²·eps for which Cholesky of the Gram is used: 25 times below where orthogonality of the
# vectors was measured to reach 1e-11 (κ_F²·eps = 5e-9).
GUARD = 2e-10

# Squares of entries outside this range over- or underflow float64; such factors take the careful route, which scales.
SAFE_SQUARES = (1e-200, 1e200)


@dataclass(frozen=True, eq=False)
class Measured:
    """What the decomposition learned of the factors: (Frobenius, spectral) norms, and ‖uᵢᵀA‖, ‖B·vᵢ‖ per dyad."""

    left: tuple[float, float]
    right: tuple[float, float]
    reach: tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]


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

    Both vectors of a dyad are multiplied by what `signs` says of Vh; without it signs are as they fall. Each factor and
    each result is used as soon as it is there, while it is in a core's own cache.
    """
    if not 0 < A.shape[1] <= min(A.shape[0], B.shape[1]):
        return None
    a = np.asarray(A, dtype=np.float64)
    with np.errstate(all="ignore"):
        left = _gram_factor(a.T @ a)
    if left is None:
        return None
    b = np.asarray(B, dtype=np.float64)
    with np.errstate(all="ignore"):
        right = _gram_factor(b @ b.T)
    if right is None:
        return None
    core = (left.lower.T * (left.scale * right.scale)) @ right.lower
    try:
        left_small, S, right_small = np.linalg.svd(core)  # SciPy's would keep other threads waiting meanwhile
    except np.linalg.LinAlgError:
        return None
    # The r x r SVD sees its own largest entries only. A tail below its accuracy may still be in the factors: ask there.
    if is_absolute(S, left.spectral * right.spectral).any():
        return None
    into_left = (left.inverse.T @ left_small) / left.scale[:, None]
    into_right = (right_small @ right.inverse) / right.scale
    Vh = into_right @ b
    if signs is not None:
        chosen = signs(Vh)
        np.multiply(Vh, chosen[:, None], out=Vh)
        into_left *= chosen
    U = a @ into_left
    # u = A·w and M·v = σ·u, so B·v = σ·w, A having full rank; the same on the other side.
    reach = (S * np.linalg.norm(into_right, axis=1), S * np.linalg.norm(into_left, axis=0))
    dyads = Dyads(U, S, Vh, np.zeros(S.size, bool), np.zeros(0), 0, "product: Gram and Cholesky")
    return dyads, Measured((left.frobenius, left.spectral), (right.frobenius, right.spectral), reach)


@dataclass(frozen=True, eq=False)
class _GramFactor:
    """``G = D·L·Lᵀ·D`` with unit rows of L: the Cholesky factor of a Gram whose columns were scaled to length one."""

    scale: Float[np.ndarray, " r"]
    lower: Float[np.ndarray, "r r"]
    inverse: Float[np.ndarray, "r r"]
    frobenius: float
    spectral: float


def _gram_factor(gram: np.ndarray) -> _GramFactor | None:
    """Cholesky of the scaled Gram, or None where the guard says that it cannot be trusted."""
    squares = np.diagonal(gram)
    trace = float(squares.sum())
    if not (squares.min() > SAFE_SQUARES[0] and trace < SAFE_SQUARES[1]):
        return None
    scale = np.sqrt(squares)
    lower, failed = _cholesky(gram / (scale * scale[:, None]), lower=1, clean=1)
    if failed:
        return None
    inverse, failed = _invert_triangle(lower, lower=1)
    # κ_F = ‖L‖_F‖L⁻¹‖_F bounds κ₂ from above; ‖L‖_F² = r since its rows have length one.
    if failed or len(scale) * float(np.vdot(inverse.T, inverse.T)) * EPS > GUARD:
        return None
    # ‖G⁴‖_F^(1/4) >= ‖G‖₂ and at most r^(1/8) above it: a spectral norm for two small products instead of an SVD.
    power = gram / trace
    power = power @ power
    power = power @ power
    spectral = np.sqrt(trace * np.linalg.norm(power) ** 0.25)
    return _GramFactor(scale, lower, inverse, float(np.sqrt(trace)), float(spectral))


def by_jacobi(A: Float[np.ndarray, "n r"], B: Float[np.ndarray, "r m"]) -> tuple[Dyads, Measured]:
    """The careful route: Drmač's product SVD. Values must be finite; signs are as they fall."""
    a, b = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)
    n, m = a.shape[0], b.shape[1]
    lengths = _column_lengths(a)
    alive = (lengths > 0) & (_column_lengths(b.T) > 0)
    if not alive.any():
        return _nothing(n, m, a.shape[1])
    a, b, lengths = a[:, alive], b[alive], lengths[alive]
    pivoted: Any = householder_qr((lengths[:, None] * b).T, mode="economic", pivoting=True)
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
    S, U, V, work, _, failed = _jacobi(core, joba=0, jobu=0, jobv=0, jobr=1, jobt=0, jobp=0)
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
