"""Haar-distributed directions, frames and rotations: what a random orthonormal basis is.

A frame is r orthonormal rows in R^d, drawn by the QR factorisation of a Gaussian matrix. LAPACK's factorisation is
not unique: it fixes signs as is convenient for it, which biases Q (its first entry is always negative). Making the
diagonal of R positive gives the one unique factor, and that is Haar.

Source: Mezzadri, "How to generate random matrices from the classical compact groups"; SV-31.
"""

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator

# Rows count as orthonormal below this departure of their Gram matrix from 1: float32 bases pass, raw rows do not.
ORTHONORMAL_WITHIN = 1e-4


def haar_directions(n: int, d: int, seed: Seed) -> Float[np.ndarray, "n d"]:
    """n independent Haar directions of R^d: unit rows, float64; the first rows do not depend on n.

    Raises BadRequest if n or d is below 1.
    """
    _check_sizes(n=n, d=d)
    return unit_rows(generator(seed, "directions").standard_normal((n, d)))


def haar_frame(d: int, r: int, seed: Seed) -> Float[np.ndarray, "r d"]:
    """One Haar frame: r orthonormal rows in R^d, float64, exact to rounding. Raises BadRequest if not 1 <= r <= d."""
    _check_sizes(d=d, r=r)
    return draw_frames(generator(seed, "frame"), 1, d, r)[0]


def rotation(d: int, seed: Seed) -> Float[np.ndarray, "d d"]:
    """One Haar orthogonal matrix Q of R^d (reflections included); x @ Q turns rows. Costs one QR, O(d³)."""
    _check_sizes(d=d)
    return draw_frames(generator(seed, "rotation"), 1, d, d)[0]


def rotate_inside(basis: Float[np.ndarray, "r d"], seed: Seed) -> Float[np.ndarray, "r d"]:
    """A Haar-random orthonormal basis of the subspace that the rows of `basis` span.

    Returns r orthonormal rows with the same projector as `basis` (to rounding): the null of "would any basis of this
    subspace do?". Raises BadRequest if the rows of `basis` are not orthonormal.
    """
    rows = np.asarray(basis, dtype=np.float64)
    departure = np.abs(rows @ rows.T - np.eye(len(rows))).max()
    if not departure < ORTHONORMAL_WITHIN:
        raise BadRequest(f"rows of the basis must be orthonormal, their Gram matrix is off by {departure:.2g}; take Vh")
    return draw_frames(generator(seed, "inside"), 1, len(rows), len(rows))[0] @ rows


def draw_frames(rng: np.random.Generator, count: int, d: int, r: int) -> Float[np.ndarray, "draws r d"]:
    """`count` independent Haar frames of r rows in R^d from a running generator. Expects 1 <= r <= d."""
    columns, triangle = np.linalg.qr(rng.standard_normal((count, d, r)))
    signs = np.copysign(1.0, np.diagonal(triangle, axis1=-2, axis2=-1))
    return np.swapaxes(columns * signs[:, None, :], -1, -2)


def draw_corners(
    rng: np.random.Generator, count: int, d: int, rows: int, columns: int
) -> Float[np.ndarray, "draws n m"]:
    """`count` upper left corners, rows × columns, of Haar orthogonal d × d matrices. Expects both sides <= d.

    Only the shorter side is orthonormalised, so three vectors against all 128 directions cost a QR of 128 × 3.
    """
    if columns < rows:
        return np.swapaxes(draw_frames(rng, count, d, columns)[:, :, :rows], -1, -2)
    return draw_frames(rng, count, d, rows)[:, :, :columns]


def unit_rows(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The rows divided by their norms. A Gaussian row is never null, so nothing is guarded here."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _check_sizes(**sizes: int) -> None:
    if min(sizes.values()) < 1 or sizes.get("r", 1) > sizes.get("d", 1):
        came = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise BadRequest(f"sizes are at least 1 and r at most d, got {came}")
