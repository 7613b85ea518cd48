"""Maps with fewer dyads, or with other gains: exact truncation, rescaling, and random subspaces to compare with.

Everything is ``M' = U S T Vh`` with a small core T on the map's own dyads: a diagonal of ones and zeros truncates, any
diagonal rescales, a projector on a random subspace is the control. Of a product A·B one factor changes and nothing of
the size of the product is formed.

Source: `docs/theory/changes.md`, equations 11–15; Sharma et al., LASER (2023); Sun et al., Transformer² (2025); SV-16.
"""

from math import floor
from typing import Literal

import numpy as np

from covector.axes import Float
from covector.errors import BadRank, BadRequest
from covector.linalg.chance.haar import draw_frames
from covector.linalg.maps import Dense, Factored, Map
from covector.linalg.svd import SVD

Side = Literal["read", "write"]
# What floating point takes off a product such as 0.29 · 100, which is 29.
ROUNDING = 1e-9


def kept_rank(share: float, largest: int) -> int:
    """How many dyads a share ρ of `largest` keeps: ⌊ρ · largest⌋, as LASER counts (equation 12).

    A share below 1/largest keeps none: then the map is zero. LASER's ``int(rate * max_rank)`` loses one where the
    product falls below a whole number by rounding; here it does not. Raises BadRequest outside 0 … 1.
    """
    if not 0 <= share <= 1:
        raise BadRequest(f"expected a share of the rank between 0 and 1, got {share:g}")
    return floor(share * largest + ROUNDING)


def truncation(found: SVD, rank: int) -> Float[np.ndarray, "r r"]:
    """The core that keeps the leading `rank` dyads: the best approximation of that rank (SV-16). Raises BadRank."""
    if isinstance(rank, bool) or rank != int(rank) or not rank >= 0:
        raise BadRank(f"expected a whole number of dyads >= 0 to keep, got {rank}")
    return np.diag((np.arange(found.rank) < rank).astype(np.float64))


def rescaling(found: SVD, factors: Float[np.ndarray, " k"], renormalise: bool = False) -> Float[np.ndarray, "r r"]:
    """The core that multiplies the leading gains by `factors` (the others by 1): σ → σz.

    With `renormalise` everything is multiplied by Σσ/Σσz, which keeps the sum of the gains (equation 13). Raises
    BadRequest for negative or non-finite factors, more of them than dyads, or nothing left to renormalise.
    """
    z = np.asarray(factors, dtype=np.float64)
    if z.ndim != 1 or not np.all(np.isfinite(z)) or np.any(z < 0) or len(z) > found.rank:
        raise BadRequest(f"expected at most {found.rank} finite factors >= 0, one per leading dyad, got {list(z)}")
    whole = np.concatenate([z, np.ones(found.rank - len(z))])
    if renormalise:
        left = float(found.S @ whole)
        if not left > 0:
            raise BadRequest("expected a gain that is left over to renormalise, every factor is 0")
        whole = whole * (float(found.S.sum()) / left)
    return np.diag(whole)


def random_core(
    found: SVD, rank: int, rng: np.random.Generator, side: Side = "write", size: float | None = None
) -> Float[np.ndarray, "r r"]:
    """The core that keeps a Haar-random subspace of `rank` dimensions of what the map writes (reads).

    With `size` only as much of the rest is taken off as makes ‖ΔM‖_F = size (equation 14). At most the norm that
    taking all off has, which is at least that of the truncation to the same rank (Eckart–Young), so a truncation's
    own norm can always be reached.
    """
    r = found.rank
    Q = draw_frames(rng, 1, r, rank)[0] if rank else np.zeros((0, r))
    rest = np.eye(r) - Q.T @ Q
    moved = found.S[:, None] * rest if side == "write" else rest * found.S
    whole = float(np.linalg.norm(moved))
    taken = 1.0 if size is None or whole == 0 else min(1.0, size / whole)
    return np.eye(r) - taken * rest


def change_size(found: SVD, core: Float[np.ndarray, "r r"], side: Side = "write") -> float:
    """‖ΔM‖_F of a core, exactly: ‖S(T − I)‖_F on the written side, ‖(T − I)S‖_F on the read one."""
    less = core - np.eye(found.rank)
    return float(np.linalg.norm(found.S[:, None] * less if side == "write" else less * found.S))


def with_core(m: Map, found: SVD, core: Float[np.ndarray, "r r"], side: Side = "write") -> Factored | Dense:
    """The map ``U S T Vh`` (`side` write) or ``U T S Vh`` (read), kept as `m` is.

    Of factors A·B only B changes (write: ``B V T Vh``) or only A (read: ``U T Uᵀ A``); `found` has to hold every dyad
    of the map. Exact to float64; what lies below the numerical rank is dropped. Raises BadRequest for other dyads.
    """
    if found.following or core.shape != (found.rank, found.rank) or (len(found.U), found.Vh.shape[1]) != m.shape:
        raise BadRequest(f"expected every dyad of this {m.shape} map and a core of their number, got {core.shape}")
    if isinstance(m, Factored):
        if side == "write":
            B = (m.B @ found.Vh.T) @ core @ found.Vh
            return Factored(m.A, B, m.reads, m.writes, m.stored)
        A = found.U @ (core @ (found.U.T @ m.A))
        return Factored(A, m.B, m.reads, m.writes, m.stored)
    inner = found.S[:, None] * core if side == "write" else core * found.S
    return Dense((found.U @ inner) @ found.Vh, m.reads, m.writes, m.stored)
