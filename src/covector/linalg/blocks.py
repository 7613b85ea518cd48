"""Gaps between singular values, and the runs of dyads that storage noise does not let one tell apart.

Equal singular values leave only the span of their vectors defined; nearly equal ones leave each vector at the mercy of
the rounding of the weights. First-order perturbation turns dyad i towards dyad j by (coupling)/(σᵢ - σⱼ), coupling
being the root-mean-square entry ``uᵢᵀ·E·vⱼ`` of the noise (see `storage_noise`).
"""

from bisect import bisect_left
from itertools import pairwise, starmap

import numpy as np

from covector.axes import Bool, Float

# Neighbours closer than this many couplings form a block: expected to turn into each other by 1/3 rad or more, near
# the cosine of 0.9 below which a direction should not be named.
BLOCK_COUPLINGS = 3.0

# A dyad closer than this many couplings to anything else is marked noisy: expected to turn by 0.1 rad or more.
NOISY_COUPLINGS = 10.0


# A dyad of less than this times σ₁ is a direction of the kernel to one that stands above the noise.
VANISHING = 1e-6


def kernel_size(shape: tuple[int, int], S: Float[np.ndarray, " r"]) -> int:
    """Return how many directions of the larger side a map takes to (nearly) nothing, given all its singular values."""
    return max(shape) - (int(np.count_nonzero(VANISHING * S[0] < S)) if S.size else 0)


def gaps(S: Float[np.ndarray, " r"], following: float, shape: tuple[int, int]) -> Float[np.ndarray, " r"]:
    """Return the distance of each of the leading singular values of a map [n, m] to the nearest other one, over σ₁.

    Others include the one that follows the last given, and 0 where the map has a kernel on either side: `following` is
    the one or, if there is none, the other. A map of one dyad without a kernel has no other; its gap is 1.
    """
    if not S.size:
        return np.zeros(0)
    beyond = following if max(shape) > S.size else -np.inf
    steps = np.empty(S.size + 1)
    steps[0] = np.inf
    steps[1:-1] = S[:-1] - S[1:]
    steps[-1] = S[-1] - beyond
    nearest = np.minimum(steps[:-1], steps[1:]) / S[0]
    return np.where(np.isfinite(nearest), nearest, 1.0)


def wedin_bounds(S: Float[np.ndarray, " r"], gap: Float[np.ndarray, " r"], error: float) -> Float[np.ndarray, " r"]:
    """Return a bound on the sine of the angle by which an error of spectral norm `error` turns uᵢ or vᵢ.

    √2·‖E‖₂/(gapᵢ·σ₁ - ‖E‖₂), at most 1. Wedin's theorem in its Frobenius form, which needs no order among the
    values: the residuals uᵀE and Ev are at most ‖E‖₂ each, and Weyl moves the other values by no more.
    """
    if not S.size:
        return np.zeros(0)
    room = gap * S[0] - error
    return np.divide(np.sqrt(2) * error, room, out=np.ones_like(room), where=room > np.sqrt(2) * error)


def noisy_dyads(
    S: Float[np.ndarray, " r"],
    gap: Float[np.ndarray, " r"],
    coupling: Float[np.ndarray, " r"],
    kernel: int,
    floor: float,
) -> Bool[np.ndarray, " r"]:
    """Return which dyads the storage noise is expected to turn by 0.1 rad or more, into a neighbour or the kernel.

    Those closer to another than `floor`, the error of the arithmetic, are among them.
    """
    if not S.size:
        return np.zeros(0, bool)
    near = np.maximum(NOISY_COUPLINGS * coupling, floor) > gap * S[0]
    # A kernel of k directions pulls with √k couplings at once.
    return near | (NOISY_COUPLINGS * coupling * np.sqrt(kernel) > S)


def degenerate_blocks(
    S: Float[np.ndarray, " s"], coupling: Float[np.ndarray, " r"], floor: float, rank: int
) -> tuple[range, ...]:
    """Cut the indices into maximal runs whose neighbours noise can mix; return those that start below `rank`.

    `S` are all singular values; couplings that are not given count as the last one. A run of one is a dyad of its own;
    the last run may reach beyond `rank`. `floor` is the error of the arithmetic, which decides when storage is exact.
    """
    if not S.size:
        return ()
    coupling = np.concatenate([coupling, np.repeat(coupling[-1:], S.size - coupling.size)])
    reach = np.maximum(BLOCK_COUPLINGS * np.maximum(coupling[:-1], coupling[1:]), floor)
    starts = [0, *(np.flatnonzero(S[:-1] - S[1:] > reach) + 1).tolist(), S.size]
    return tuple(starmap(range, pairwise(starts[: bisect_left(starts, rank) + 1])))
