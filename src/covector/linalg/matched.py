"""Random changes of a matrix that are like a given one: of its rank and relative singular values, of a wished size.

Two sizes: the mean square of what the change adds to the outputs, over given inputs, and the Frobenius norm of the
change in a map that the matrix is a factor of. Rows are vectors: what a change L R adds to x is x L R.

Source: theory page F5, F14 and §4.0; `docs/theory/edits.md`, equations 20 and 21.
"""

import numpy as np

from covector.axes import Float, Int
from covector.linalg.chance.haar import draw_frames

# Singular values below this share of the largest are rounding, not rank.
ROUNDING = 1e-12


def spectrum(left: Float[np.ndarray, "n k"], right: Float[np.ndarray, "k m"]) -> Float[np.ndarray, " r"]:
    """Singular values of left·right above rounding, largest first; through thin factors."""
    core = np.linalg.qr(left)[1] @ np.linalg.qr(right.T)[1].T
    values = np.linalg.svd(core, compute_uv=False)
    return values[values > ROUNDING * values[0]] if values.size and values[0] > 0 else values[:0]


def random_factors(
    values: Float[np.ndarray, " r"], n: int, m: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "r m"]]:
    """Factors of a matrix with these singular values and Haar-random directions on both sides."""
    read = draw_frames(rng, 1, n, len(values))[0]
    write = draw_frames(rng, 1, m, len(values))[0]
    return read.T * values, write


def mean_square(
    driven: Float[np.ndarray, "N k"],
    right: Float[np.ndarray, "k m"],
    constant: Float[np.ndarray, " m"] | float = 0.0,
) -> float:
    """E‖driven·right + constant‖² over the rows; `driven` = X·left. Costs no product of full width."""
    second = driven.T @ driven / len(driven)
    whole = float(np.sum(second * (right @ right.T)))
    shift = np.broadcast_to(np.asarray(constant, dtype=np.float64), right.shape[1:])
    return whole + 2 * float(driven.mean(axis=0) @ (right @ shift)) + float(shift @ shift)


def product_norm(left: Float[np.ndarray, "n k"], right: Float[np.ndarray, "k m"]) -> float:
    """‖left·right‖_F through the Grams of thin factors."""
    return float(np.sqrt(max(float(np.sum((left.T @ left) * (right @ right.T))), 0.0)))


def driven_by(
    inputs: Float[np.ndarray, "N n"] | Int[np.ndarray, " N"], left: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "N k"]:
    """inputs·left; whole numbers stand for one-hot inputs (rows of an embedding)."""
    return left[inputs] if inputs.ndim == 1 else inputs @ left


def two_sided_p(observed: float, null: Float[np.ndarray, " draws"]) -> float:
    """(1 + #{|null| ≥ |observed|}) / (1 + draws): two-sided, at least 1/(draws + 1); NaN without draws.

    Ties count, up to rounding. Exact where the observed value is one more draw of the null.
    """
    null = np.abs(null[np.isfinite(null)])
    if not len(null) or not np.isfinite(observed):
        return float("nan")
    slack = 1e-12 * max(abs(observed), float(null.max()))
    return (1 + int(np.sum(null >= abs(observed) - slack))) / (1 + len(null))
