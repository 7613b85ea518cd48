"""Gaps between singular values, and the runs of dyads that storage noise does not let one tell apart.

Equal singular values leave only the span of their vectors defined; nearly equal ones leave each vector at the mercy of
the rounding of the weights. First-order perturbation turns dyad i towards dyad j by (coupling)/(σᵢ - σⱼ), coupling
being the root-mean-square entry ``uᵢᵀ·E·vⱼ`` of the noise (see `storage_noise`).
"""

from itertools import pairwise

import numpy as np

from covector.axes import Bool, Float
from covector.linalg.storage_noise import StorageNoise

# Neighbours closer than this many couplings form a block: expected to turn into each other by 1/3 rad or more, near
# the cosine of 0.9 below which a direction should not be named.
BLOCK_COUPLINGS = 3.0

# A dyad closer than this many couplings to anything else is marked noisy: expected to turn by 0.1 rad or more.
NOISY_COUPLINGS = 10.0


def gaps(S: Float[np.ndarray, " r"], following: float, kernel: int) -> Float[np.ndarray, " r"]:
    """Return the distance of each singular value to the nearest other one, over σ₁.

    Others include the one that follows the last kept, and 0 where the map has a kernel on either side. A map of one
    dyad without a kernel has no other; its gap is 1.
    """
    if not S.size:
        return np.zeros(0)
    beyond = following if following > 0 or kernel else -np.inf
    steps = -np.diff(np.concatenate([[np.inf], S, [beyond]]))
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
    return np.where(room > np.sqrt(2) * error, np.sqrt(2) * error / np.maximum(room, np.finfo(float).tiny), 1.0)


def noisy_dyads(
    S: Float[np.ndarray, " r"], gap: Float[np.ndarray, " r"], noise: StorageNoise, kernel: int, floor: float
) -> Bool[np.ndarray, " r"]:
    """Return which dyads the storage noise is expected to turn by 0.1 rad or more, into a neighbour or the kernel.

    Those closer to another than `floor`, the error of the arithmetic, are among them.
    """
    if not S.size:
        return np.zeros(0, bool)
    near = np.maximum(NOISY_COUPLINGS * noise.coupling, floor) > gap * S[0]
    # A kernel of k directions pulls with √k couplings at once.
    return near | (NOISY_COUPLINGS * noise.coupling * np.sqrt(kernel) > S)


def degenerate_blocks(S: Float[np.ndarray, " r"], noise: StorageNoise, floor: float) -> tuple[range, ...]:
    """Cut the indices 0 ... r-1 into maximal runs; neighbours in a run differ by less than the noise can mix.

    A run of one is a dyad of its own. `floor` is the error of the arithmetic, which decides when the storage is exact.
    """
    if not S.size:
        return ()
    reach = np.maximum(BLOCK_COUPLINGS * np.maximum(noise.coupling[:-1], noise.coupling[1:]), floor)
    starts = [0, *(np.flatnonzero(-np.diff(S) > reach) + 1).tolist(), S.size]
    return tuple(range(a, b) for a, b in pairwise(starts))
