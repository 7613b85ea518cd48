"""A bilinear value a M bᵀ split into the dyads of M, and what a split by any other basis would look like.

Source: `docs/theory/attend.md`, equations 8, 9 and 11.
"""

from collections.abc import Callable

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.streams import Seed, generator, in_blocks

BLOCK = 64
# A running sum of a few hundred terms may miss its own total by this much of it.
ROUNDING = 1e-12


def largest_in_turned_bases(
    a: Float[np.ndarray, " r"], c: Float[np.ndarray, " r"], *, draws: int, seed: Seed
) -> Float[np.ndarray, " draws"]:
    """The size of the largest term of a·c = Σ aᵢcᵢ after Haar rotations of the basis: max_i |(aO)_i (cO)_i|.

    The sum is the same in every basis; the null asks how much of it the best direction of *some* basis would carry.
    Only |a|, |c| and a·c enter. With r = 1 there is one basis, and every draw is |a·c|.
    Raises BadRequest for different or no lengths, or draws < 1.
    """
    return _over_turned_bases(a, c, lambda terms: np.abs(terms).max(axis=1), draws, seed)


def contributing_in_turned_bases(
    a: Float[np.ndarray, " r"], c: Float[np.ndarray, " r"], *, share: float, draws: int, seed: Seed
) -> Int[np.ndarray, " draws"]:
    """How many terms of a·c reach `share` of it (`contributing`) after Haar rotations of the basis.

    Any basis shows some concentration: this is how much. The same rotations as `largest_in_turned_bases`.
    Raises BadRequest for different or no lengths, or draws < 1.
    """
    found = _over_turned_bases(a, c, lambda terms: contributing(terms, share).astype(np.float64), draws, seed)
    return found.astype(np.int64)


def contributing(terms: Float[np.ndarray, "*batch r"], share: float) -> Int[np.ndarray, "*batch"]:
    """The size of the contributing set: the fewest terms whose sum is at least `share` of the sum of all.

    Terms of the sum's own sign come first, largest first, so no other set of that size has a larger sum. Equation 11.
    0 where the sum is 0. Exact. Raises BadRequest unless 0 < share <= 1.
    """
    if not 0 < share <= 1:
        raise BadRequest(f"expected a share of the sum above 0 and up to 1, got {share}")
    total = terms.sum(axis=-1, keepdims=True)
    running = np.cumsum(-np.sort(-terms * np.sign(total), axis=-1), axis=-1)
    reached = running >= share * np.abs(total) * (1 - ROUNDING)
    return np.where(total[..., 0] == 0, 0, np.argmax(reached, axis=-1) + 1)


def _over_turned_bases(
    a: Float[np.ndarray, " r"],
    c: Float[np.ndarray, " r"],
    of: Callable[[np.ndarray], np.ndarray],
    draws: int,
    seed: Seed,
) -> Float[np.ndarray, " draws"]:
    """A number of the terms (aO)_i (cO)_i for Haar rotations O; `of` takes a block of them, a draw per row."""
    if a.shape != c.shape or not len(a):
        raise BadRequest(f"expected coordinates of two vectors in one basis, got {a.shape} and {c.shape}")
    r, length = len(a), float(np.linalg.norm(a))
    if r == 1 or not length:
        return np.full(draws, of(np.asarray(a * c, dtype=np.float64)[None])[0], dtype=np.float64)
    along = float(a @ c) / length
    across = float(np.sqrt(max(0.0, c @ c - along**2)))

    def block(number: int) -> Float[np.ndarray, " draws"]:
        frames = draw_frames(generator(seed, "bilinear", number), BLOCK, r, 2)
        return of(length * frames[:, 0] * (along * frames[:, 0] + across * frames[:, 1]))

    return in_blocks(block, size=BLOCK, draws=draws)


def turned_size(rows: Float[np.ndarray, "n d"], functionals: Float[np.ndarray, "n d"]) -> float:
    """‖Σ_s rows_sᵀ functionals_s‖_F: √d times the standard deviation of Σ_s functionals_s · (rows_s Q), Q Haar.

    The second moment is exact for every d; for one row the law of the value over this size is that of a cosine.
    """
    return float(np.sqrt(max(0.0, np.sum((rows @ rows.T) * (functionals @ functionals.T)))))
