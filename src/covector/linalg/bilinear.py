"""A bilinear value a M bᵀ split into the dyads of M, and what a split by any other basis would look like.

Source: `docs/theory/attend.md`, equations 8, 9.
"""

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.streams import Seed, generator, in_blocks

BLOCK = 64


def largest_in_turned_bases(
    a: Float[np.ndarray, " r"], c: Float[np.ndarray, " r"], *, draws: int, seed: Seed
) -> Float[np.ndarray, " draws"]:
    """The size of the largest term of a·c = Σ aᵢcᵢ after Haar rotations of the basis: max_i |(aO)_i (cO)_i|.

    The sum is the same in every basis; the null asks how much of it the best direction of *some* basis would carry.
    Only |a|, |c| and a·c enter. With r = 1 there is one basis, and every draw is |a·c|.
    Raises BadRequest for different or no lengths, or draws < 1.
    """
    if a.shape != c.shape or not len(a):
        raise BadRequest(f"expected coordinates of two vectors in one basis, got {a.shape} and {c.shape}")
    r, length = len(a), float(np.linalg.norm(a))
    if r == 1 or not length:
        return np.full(draws, abs(float(a @ c)))
    along = float(a @ c) / length
    across = float(np.sqrt(max(0.0, c @ c - along**2)))

    def block(number: int) -> Float[np.ndarray, " draws"]:
        frames = draw_frames(generator(seed, "bilinear", number), BLOCK, r, 2)
        terms = length * frames[:, 0] * (along * frames[:, 0] + across * frames[:, 1])
        return np.abs(terms).max(axis=1)

    return in_blocks(block, size=BLOCK, draws=draws)


def turned_size(rows: Float[np.ndarray, "n d"], functionals: Float[np.ndarray, "n d"]) -> float:
    """‖Σ_s rows_sᵀ functionals_s‖_F: √d times the standard deviation of Σ_s functionals_s · (rows_s Q), Q Haar.

    The second moment is exact for every d; for one row the law of the value over this size is that of a cosine.
    """
    return float(np.sqrt(max(0.0, np.sum((rows @ rows.T) * (functionals @ functionals.T)))))
