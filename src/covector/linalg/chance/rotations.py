"""The rotation null: turn the dictionary against the map, keep the spectrum, destroy the alignment.

M → QM for a Haar rotation Q (the same as turning every vector, e → eQ). Whatever depends on the singular values alone
stays; what depends on how vectors and singular directions lie to each other becomes chance.

Source: N3 and F13 of the theory page; SV-19 for the mean of the gain.
"""

from collections.abc import Callable

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_corners
from covector.linalg.chance.maxima import BLOCK, FRAME_ENTRIES, check_vectors, span_coordinates
from covector.linalg.chance.streams import Seed, generator, in_blocks

# The gain's null mean is 1 only for unit vectors; float32 normalisation is off by 1e-6, a raw row by much more.
UNIT_WITHIN = 1e-3


def rotation_null(
    statistic: Callable[[Float[np.ndarray, "n d"]], float],
    vectors: Float[np.ndarray, "n d"],
    *,
    draws: int,
    seed: Seed,
    first: int = 0,
) -> Float[np.ndarray, " draws"]:
    """`statistic` of the vectors after `draws` independent Haar rotations: a null for anything computed from them.

    The statistic gets a rotated copy [n, d] whose inner products are those of `vectors`, and returns one number.
    Costs a QR of d × min(n, d) and one call per draw. `first` continues the same sequence.
    Raises BadRequest if there are no vectors or some are not finite.
    """
    check_vectors(vectors)
    coordinates = span_coordinates(vectors)
    d, m = vectors.shape[1], coordinates.shape[1]

    def one_draw(block: int) -> Float[np.ndarray, " draws"]:
        turned = coordinates @ draw_corners(generator(seed, "rotations", block), 1, d, m, d)[0]
        return np.array([float(statistic(turned))])

    return in_blocks(one_draw, size=1, draws=draws, first=first)


def null_gain(
    S: Float[np.ndarray, " r"], vectors: Float[np.ndarray, "n d"], *, draws: int, seed: Seed, first: int = 0
) -> Float[np.ndarray, " draws"]:
    """The gain G = mean ‖e M‖² / (‖M‖_F²/d) of unit vectors e after random rotations of M.

    `S` are the singular values of M, `vectors` unit rows on its read (or, for Mᵀ, write) side of dimension d.
    Returns one G per draw, unitless, mean exactly 1. Only S and the vectors' Gram matrix enter:
    n·G·ΣS²/d = Σ_ai g_a S_i² O_ai² with g the Gram's eigenvalues and O a corner of a Haar rotation.
    Raises BadRequest if the vectors are not unit, or S is null, negative, or longer than d.
    Source: F13 and SV-19 of the theory page.
    """
    check_vectors(vectors)
    n, d = vectors.shape
    lengths = np.linalg.norm(vectors, axis=1)
    if np.abs(lengths - 1).max() > UNIT_WITHIN:
        raise BadRequest(f"the gain takes unit vectors, norms run {lengths.min():.3g}–{lengths.max():.3g}; divide")
    power = np.asarray(S, dtype=np.float64) ** 2
    if np.any(S < 0) or not power.sum() > 0 or len(S) > d:
        raise BadRequest(f"expected 1 to {d} singular values >= 0 that are not all 0, got {len(S)}; pass S of the map")
    power = power[power > 0]
    weights = _gram_eigenvalues(vectors)
    m, r = len(weights), len(power)
    size = int(np.clip(FRAME_ENTRIES // (d * min(r, m)), 1, BLOCK))

    def block_gains(block: int) -> Float[np.ndarray, " draws"]:
        corners = draw_corners(generator(seed, "gain", block), size, d, m, r)
        return np.einsum("a,bai,i->b", weights, corners**2, power, optimize=True) * d / (n * power.sum())

    return in_blocks(block_gains, size=size, draws=draws, first=first)


def _gram_eigenvalues(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " m"]:
    # One eigenvalue per dimension that the vectors can fill; the smaller of the two Gram matrices has them all.
    rows = np.asarray(vectors, dtype=np.float64)
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return np.maximum(np.linalg.eigvalsh(gram), 0.0)
