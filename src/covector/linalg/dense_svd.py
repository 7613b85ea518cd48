"""Singular triples of a matrix held as one array: an MLP's d x 4d weights, an embedding of V x d.

The float64 Gram of the short side and its eigenvectors give that side; one product gives the other. This squares the
spectrum, so a dyad with σᵢ/σ₁ = t loses t⁻² in orthogonality on the other side. Above t = 1e-2 that is at most
1e-12; the dyads below (a centred matrix has one, a trained one may have many) are decomposed again, their
left vectors kept orthogonal to the strong ones, or, where they are the greater part, the whole matrix by QR and an SVD.

The Gram must be float64: in float32 it loses half the digits (shown in the tests). Against the economy SVD in float32
of a 1024 x 4096 matrix this is 1.9 times faster (one thread, scipy's gesdd) and has six more digits.
"""

import numpy as np

from covector.axes import Float
from covector.linalg.dyads import Dyads, is_absolute, numerical_rank
from covector.linalg.lapack import lapack, scipy_linalg
from covector.linalg.maps import row_tiles

# σ/σ₁ down to which vectors of the long side are made by one product: eps/t² = 2e-12 keeps them orthonormal to 1e-11.
STRONG = 1e-2

# Traces outside this range over- or underflow in later squares; LAPACK's own SVD scales such matrices.
SAFE_TRACE = (1e-200, 1e200)

# Vectors for a part of the spectrum pay below a quarter of it (64 of 1024: 0.21 s with all values, 0.33 s for all).
SUBSET = 0.25

# Squares of a float64 Gram below this part of the largest are its rounding, n·eps for n up to thousands: σ < 1e-7·σ₁.
UNSEEN = 1e-14

# Fewest rows per step of `_triangle`; tiles of fewer rows than R has would mostly repeat the work on R.
TRIANGLE_ROWS = 1024


def dense_dyads(W: Float[np.ndarray, "n m"], rank: int, short_only: bool = False) -> Dyads:
    """Return at least the leading `rank` singular triples of the matrix above numerical rank.

    With `short_only` the vectors of the longer side (the columns' side U where both are equal) are left out: that side
    comes as [n, 0]. It is the larger part of the memory, and of the time after the Gram.

    U and Vh are orthonormal to 1e-11, singular values right to 8·eps·σ₁; those for which this is more than 1e-11 of
    themselves are marked `absolute`. Widens to float64 by tiles, so a float32 matrix is never copied whole except on
    the QR route. Values must be finite (the caller checks).
    """
    if W.shape[0] < W.shape[1]:
        flipped = dense_dyads(W.T, rank, short_only)
        return Dyads(flipped.Vh.T, flipped.S, flipped.U.T, flipped.absolute, flipped.beyond, flipped.cut, flipped.route)
    gram = _gram(W)
    trace = float(np.trace(gram))
    if trace == 0.0 and not W.any():
        return _finish(W.shape, np.zeros((W.shape[0], 0)), np.zeros(0), np.zeros((0, W.shape[1])), "dense: nothing")
    if not SAFE_TRACE[0] < trace < SAFE_TRACE[1]:
        return _by_qr(W, short_only)
    if rank + 1 <= SUBSET * W.shape[1]:
        leading = _leading(W, gram, rank, short_only)
        if leading is not None:
            return leading
    found = _by_gram(W, gram, short_only)
    if found is None:
        del gram  # its vectors lie in it; both go before the QR, which takes most
        return _by_qr(W, short_only)
    return found


def _leading(W: np.ndarray, gram: np.ndarray, rank: int, short_only: bool) -> Dyads | None:
    """The first `rank` dyads from part of the Gram's vectors, or None where one of them is too weak for it.

    All values are found: how the last of these dyads stands to those beyond must not depend on how many were asked for.
    """
    size = gram.shape[0]
    squares, V = scipy_linalg().eigh(gram, subset_by_index=[size - rank, size - 1], driver="evr", check_finite=False)
    S, V = np.sqrt(np.maximum(squares[::-1], 0.0)), V[:, ::-1]
    if S[rank - 1] < STRONG * S[0]:
        return None
    rest = np.linalg.eigvalsh(gram)[::-1][rank:]
    beyond = np.minimum(np.sqrt(rest[rest > UNSEEN * S[0] ** 2]), S[-1])
    U = _nothing(W) if short_only else _product(W, V / S)
    return Dyads(U, S, V.T, is_absolute(S, S[0]), beyond, 0, "dense: part of the Gram")


def _by_gram(W: np.ndarray, gram: np.ndarray, short_only: bool) -> Dyads | None:
    """All dyads from all vectors of the Gram, which is overwritten by them; None where most are too weak for it."""
    squares, V = scipy_linalg().eigh(gram.T, overwrite_a=True, driver="evd", check_finite=False)
    V = V[:, ::-1]
    S = np.sqrt(np.maximum(squares[::-1], 0.0))
    strong = int(np.count_nonzero(S / S[0] >= STRONG))
    if 2 * strong < S.size:
        return None
    S = S[:strong]
    U = _nothing(W) if short_only else _product(W, V[:, :strong] / S)
    if strong == V.shape[1]:
        return _finish(W.shape, U, S, V.T, "dense: Gram")
    if short_only:
        weak_S, turn = _right_vectors(_triangle(W, V[:, strong:]))
    else:
        weak_U, weak_S, turn = _weak(_product(W, V[:, strong:]), U)
        U = np.concatenate([U, weak_U], axis=1)
    V = np.concatenate([V[:, :strong], V[:, strong:] @ turn.T], axis=1)
    return _finish(W.shape, U, np.concatenate([S, weak_S]), V.T, "dense: Gram, weak part apart")


def _weak(image: np.ndarray, U: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SVD of the weak directions' image, its left vectors orthogonal to the strong ones and to each other.

    Rounding leaves eps·σ₁ of the strong directions in the image: no error of a gain, but much of a very weak vector.
    Hence a projection and a QR, whose triangle is the identity up to signs and the little that was projected out.
    """
    weak_U, weak_S, turn = np.linalg.svd(image, full_matrices=False)
    weak_U -= U @ (U.T @ weak_U)
    orthonormal, triangle = np.linalg.qr(weak_U)
    return orthonormal * np.where(np.diagonal(triangle) < 0, -1.0, 1.0), weak_S, turn


def _by_qr(W: np.ndarray, short_only: bool) -> Dyads:
    if short_only:
        S, Vh = _right_vectors(_triangle(W, None))
        return _finish(W.shape, _nothing(W), S, Vh, "dense: QR and SVD")
    Q, R = np.linalg.qr(W.astype(np.float64))
    U, S, Vh = np.linalg.svd(R)
    return _finish(W.shape, Q @ U, S, Vh, "dense: QR and SVD")


def _triangle(W: np.ndarray, X: np.ndarray | None) -> Float[np.ndarray, "r r"]:
    """R of the QR of W (or of W @ X), from tiles of rows put below what the ones before gave: Q is never held.

    As stable as one QR (each step is orthogonal). LAPACK works where R and the tile lie, so the memory is twice R.
    """
    width = W.shape[1] if X is None else X.shape[1]
    step = min(W.shape[0], max(TRIANGLE_ROWS, width))
    stacked = np.zeros((width + step, width), order="F")
    qr, qr_work = lapack("geqrf", "geqrf_lwork")
    work = int(qr_work(*stacked.shape)[0])
    for start in range(0, W.shape[0], step):
        tile = W[start : start + step]
        end = width + len(tile)
        stacked[width:end] = tile if X is None else tile.astype(np.float64, copy=False) @ X
        stacked[end:] = 0.0
        _checked(qr(stacked, lwork=work, overwrite_a=True)[-1], "QR")
        for column in range(width):  # below R LAPACK keeps its reflectors
            stacked[column + 1 : width, column] = 0.0
    return np.asfortranarray(stacked[:width])


def _right_vectors(R: np.ndarray) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, "r r"]]:
    """Singular values of a triangle and its right vectors as rows; R is overwritten."""
    gesdd, gesdd_work = lapack("gesdd", "gesdd_lwork")
    work = int(gesdd_work(*R.shape, compute_uv=True, full_matrices=False)[0])
    _, S, Vh, info = gesdd(R, lwork=work, full_matrices=False, overwrite_a=True)
    _checked(info, "SVD")
    return S, Vh


def _checked(info: int, what: str) -> None:
    if info:
        raise np.linalg.LinAlgError(f"LAPACK's {what} ended with {info}, expected 0; the matrix may hold extremes")


def _nothing(W: np.ndarray) -> np.ndarray:
    return np.zeros((W.shape[0], 0))


def _finish(shape: tuple[int, int], U: np.ndarray, S: np.ndarray, Vh: np.ndarray, route: str) -> Dyads:
    keep = numerical_rank(S, shape)
    S = S[:keep]
    absolute = is_absolute(S, S[0] if keep else 0.0)
    return Dyads(U[:, :keep], S, Vh[:keep], absolute, np.zeros(0), min(shape) - keep, route)


def _gram(W: np.ndarray) -> np.ndarray:
    total = np.zeros((W.shape[1], W.shape[1]))
    for rows in row_tiles(W.shape):
        tile = W[rows].astype(np.float64, copy=False)
        total += tile.T @ tile
    return total


def _product(W: np.ndarray, X: np.ndarray) -> np.ndarray:
    out = np.empty((W.shape[0], X.shape[1]))
    for rows in row_tiles(W.shape):
        out[rows] = W[rows].astype(np.float64, copy=False) @ X
    return out
