"""Principal components of labelled vectors: the axes of largest variance around their mean.

Source: Q19 of the theory page; `docs/theory/studies.md`, equation 34.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.linalg.lapack import scipy_linalg

# Rows that are widened at a time: 2048 of d = 4096 in float64 are 64 MB.
ROWS = 2048
# Axes whose variance is below this part of the largest are rounding: the covariance has lost them.
LOST = 1e-12


@dataclass(frozen=True, eq=False)
class Principal:
    """Unit axes, largest variance first, the variance along each, and the mean that was taken off."""

    axes: Float[np.ndarray, "r d"]
    variances: Float[np.ndarray, " r"]
    mean: Float[np.ndarray, " d"]


def principal(vectors: Float[np.ndarray, "n d"], keep: Bool[np.ndarray, " n"] | None = None) -> Principal:
    """Principal components of n >= 2 rows (of those in `keep`): eigenvectors of XᵀX/n, X the rows less their mean.

    Float64, whatever the rows are; r <= min(n − 1, d) axes whose variance is more than rounding. The sign of an axis is
    that in which its largest entry is positive. Costs n·d² multiplications, holds two d × d arrays and no copy of the
    rows. Raises BadRequest for fewer than two rows, values that are not finite, or rows that are all the same.
    """
    at = np.arange(len(vectors)) if keep is None else np.flatnonzero(keep)
    n, d = len(at), vectors.shape[1]
    parts = [at[start : start + ROWS] for start in range(0, n, ROWS)]
    mean = sum((vectors[part].sum(axis=0, dtype=np.float64) for part in parts), np.zeros(d)) / max(n, 1)
    moment, size = np.zeros((d, d), order="F"), 0.0
    for part in parts:
        rows = vectors[part].astype(np.float64)
        size += float(np.einsum("nd,nd->", rows, rows))
        rows -= mean
        moment += (rows.T @ rows).T
    if n < 2 or not np.isfinite(size) or not np.trace(moment) > LOST * size:
        raise BadRequest(f"expected two finite vectors or more that differ, got {n} of length {np.sqrt(size):.3g}")
    values, columns = scipy_linalg().eigh(moment / n, overwrite_a=True, check_finite=False, driver="evd")
    kept = np.flatnonzero(values > LOST * values[-1])[::-1][: n - 1]
    axes = columns.T[kept]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return Principal(axes * np.sign(largest), values[kept], mean)
