"""Singular triples as an algorithm leaves them: before signs, blocks and the truncation that was asked for."""

from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float

EPS = 2.0**-52

# Relative accuracy promised for singular values that are not marked `absolute`.
RELATIVE_ACCURACY = 1e-11

# Backward error of QR, of the core product and of its SVD together, in units of eps·‖A‖₂‖B‖₂. Measured 0.1-4.0 on
# d = 768, r = 64 against 80-bit arithmetic, over the spectra of tests/linalg/test_svd_accuracy.py.
BACKWARD_ERROR = 8.0


@dataclass(frozen=True, eq=False)
class Dyads:
    """U [n, r], S [r] descending, Vh [r, m] in float64, and what their algorithm knows about them.

    One of the sides may have been left out: U [n, 0] or Vh [0, m].

    `beyond` holds the singular values that follow, falling, numerical zeros left out; they may come from a Gram, which
    knows those of t·σ₁ to eps·σ₁/t and sees nothing below 1e-7·σ₁. `cut` counts dyads that were dropped as numerical
    zeros, where all were looked for; `absolute[i]` says that σᵢ is only known to `BACKWARD_ERROR`·eps·(size of the
    factors).
    """

    U: Float[np.ndarray, "n _"]
    S: Float[np.ndarray, " r"]
    Vh: Float[np.ndarray, "_ m"]
    absolute: Bool[np.ndarray, " r"]
    beyond: Float[np.ndarray, " b"]
    cut: int
    route: str


def numerical_rank(S: Float[np.ndarray, " r"], shape: tuple[int, int]) -> int:
    """Return how many singular values exceed max(n, m)·2⁻⁵²·σ₁, the level at which float64 no longer sees them."""
    if not S.size:
        return 0
    zero = max(shape) * EPS * S[0]
    return int(np.count_nonzero(zero < S))


def is_absolute(S: Float[np.ndarray, " r"], size: float) -> Bool[np.ndarray, " r"]:
    """Return where an error of `BACKWARD_ERROR`·eps·size is more than `RELATIVE_ACCURACY` of the singular value."""
    return BACKWARD_ERROR * EPS * size > RELATIVE_ACCURACY * S


def first(dyads: Dyads, rank: int) -> Dyads:
    """Return copies of the leading `rank` dyads, remembering the gains that follow; the dyads as they are if fewer."""
    if rank >= dyads.S.size:
        return dyads
    return Dyads(
        dyads.U[:, :rank].copy(order="K"),
        dyads.S[:rank].copy(),
        dyads.Vh[:rank].copy(),
        dyads.absolute[:rank].copy(),
        np.concatenate([dyads.S[rank:], dyads.beyond]),
        dyads.cut,
        dyads.route,
    )
