"""Eigenvalue positivity of a square map in factors: does it send what it reads back as itself, or as its opposite?

η = Σλ / Σ|λ| over the nonzero eigenvalues of ``M = A @ B``, which are those of the r x r core ``B @ A``: +1 when all
are positive (what comes in goes out again: copying), −1 when all are negative. Complex ones come in pairs, so η is
real. Behind an embedding and an unembedding, ``W_E·M·W_U`` has the eigenvalues of the core ``B @ T @ A``, T = W_U·W_E,
a d x d matrix that is made once for all heads.

The null keeps the spectrum of M and turns what it writes: M·Q with Q Haar. Its core needs no d x d matrix: only the
overlap of two random r-frames enters, an r x r corner of a Haar rotation.

Source: `docs/theory/heads.md`, equations 1–5; SV-23.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_corners
from covector.linalg.chance.streams import Seed, generator, in_blocks

# Cores per block: fixed, so that a draw does not depend on who makes it; 64 cores of 128 x 128 are 8 MB.
BLOCK = 64
# Σ|λ| below this many units of rounding of Σσ is rounding: the map is nilpotent, and η is not defined.
ROUNDING = 64


@dataclass(frozen=True)
class Positivity:
    """η with what it is made of: trace = Σλ, absolute = Σ|λ|, nuclear = Σσ, all in the map's own units but η.

    Weyl: absolute <= nuclear. Their ratio is 1 for a normal map and 0 for a nilpotent one. η is NaN for the latter.
    """

    eta: float
    trace: float
    absolute: float
    nuclear: float


def positivity(A: Float[np.ndarray, "n r"], B: Float[np.ndarray, "r m"]) -> Positivity:
    """Return η of the square map ``A @ B``, with trace, Σ|λ| and the nuclear norm Σσ.

    Exact to rounding of the r x r core; the d x d product is never made. Raises BadRequest where the read and the write
    side differ in size: such a map has no eigenvalues.
    Source: `docs/theory/heads.md`, equations 1–2; SV-23.
    """
    if A.shape[0] != B.shape[1]:
        raise BadRequest(
            f"eigenvalues need a map from a space to itself, came {A.shape[0]} -> {B.shape[1]}; leave a bias row out"
        )
    left: Any = np.linalg.qr(A.astype(np.float64, copy=False), mode="r")
    right: Any = np.linalg.qr(B.T.astype(np.float64, copy=False), mode="r")
    nuclear = float(np.linalg.svd(left @ right.T, compute_uv=False).sum())
    core = B.astype(np.float64, copy=False) @ A
    values = np.linalg.eigvals(core)
    trace, absolute = float(np.trace(core)), float(np.abs(values).sum())
    floor = ROUNDING * np.finfo(float).eps * max(nuclear, np.finfo(float).tiny)
    return Positivity(trace / absolute if absolute > floor else np.nan, trace, absolute, nuclear)


def core_positivity(cores: Float[np.ndarray, "*batch r r"], size: float = 0.0) -> Float[np.ndarray, "*batch"]:
    """Return η of square cores, ``B @ A`` or ``B @ T @ A``: NaN where Σ|λ| is rounding of `size`, the scale of the
    core."""
    absolute = np.abs(np.linalg.eigvals(cores)).sum(axis=-1)
    trace = np.trace(cores, axis1=-2, axis2=-1)
    defined = absolute > ROUNDING * np.finfo(float).eps * size
    return np.divide(trace, absolute, out=np.full(np.shape(trace), np.nan), where=defined)


def null_positivity(
    S: Float[np.ndarray, " r"],
    d: int,
    *,
    draws: int,
    seed: Seed,
    seen: Float[np.ndarray, "d r"] | None = None,
    first: int = 0,
) -> Float[np.ndarray, " draws"]:
    """Return η of maps with the singular values `S` that write where chance would have it: M·Q, Q Haar in d dimensions.

    `seen` is what the read directions are to a written vector, T·U for the full circuit (None: U itself). Only its
    triangle enters: η' = η of diag(S)·O·R, O an r x r corner of Q and R from ``seen = (orthonormal) · R``. The law is
    symmetric, η' and −η' are equally likely. `first` continues the sequence.
    Costs one r x r eigenvalue problem per draw (.15 ms at r = 32, .6 at 64, 4 at 128), whatever d is.
    Raises BadRequest if r > d, or S is empty or negative.
    Source: `docs/theory/heads.md`, equations 3–5.
    """
    r = len(S)
    if not 1 <= r <= d or np.any(S < 0):
        raise BadRequest(f"expected 1 to d = {d} singular values >= 0, got {r}; pass S of the map")
    triangle: Any = np.eye(r) if seen is None else np.linalg.qr(np.asarray(seen, dtype=np.float64), mode="r")
    size = float(np.linalg.norm(S) * np.linalg.norm(triangle))

    def block_etas(block: int) -> Float[np.ndarray, " draws"]:
        overlap = draw_overlaps(generator(seed, "positivity", block), BLOCK, d, r, len(triangle))
        return np.nan_to_num(core_positivity(S[:, None] * (overlap @ triangle), size))

    return in_blocks(block_etas, size=BLOCK, draws=draws, first=first)


def draw_overlaps(
    rng: np.random.Generator, count: int, d: int, r: int, s: int | None = None
) -> Float[np.ndarray, "draws r s"]:
    """`count` overlaps of a Haar r-frame with a fixed s-frame (s = r unless given): r x s corners of a Haar rotation.

    With G a Gaussian d x s matrix and RᵀR its Gram, G·R⁻¹ is Haar; its first r rows are G₁·R⁻¹, and of the others only
    the Gram G₂ᵀG₂ enters, which is Wishart and drawn by its Cholesky factor (Bartlett): s² numbers instead of s·d.
    Where fewer than s rows are left over, or s < r, the frame itself is drawn.
    """
    s = r if s is None else s
    if d - r < s:
        return draw_corners(rng, count, d, r, s)
    top = rng.standard_normal((count, r, s))
    rest = np.tril(rng.standard_normal((count, s, s)), -1)
    diagonal = np.arange(s)
    rest[:, diagonal, diagonal] = np.sqrt(rng.chisquare(d - r - diagonal, (count, s)))
    lower = np.linalg.cholesky(np.swapaxes(top, 1, 2) @ top + rest @ np.swapaxes(rest, 1, 2))
    # G₁·R⁻¹ with R = lowerᵀ: solve lower·Xᵀ = G₁ᵀ.
    return np.swapaxes(np.linalg.solve(lower, np.swapaxes(top, 1, 2)), 1, 2)
