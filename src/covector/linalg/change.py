"""What one map became: the difference of two maps, kept in factors, and how the dyads of one stand to the other's.

Source: `docs/theory/changes.md`, equations 1–7; §2 F16 of the theory page; SV-28, SV-29.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment

from covector.axes import Bool, Float, Int
from covector.errors import SpaceMismatch
from covector.linalg.dyads import Dyads, is_absolute
from covector.linalg.maps import Dense, Factored, Map, Space, frobenius, row_tiles
from covector.linalg.storage_noise import coarser
from covector.linalg.svd import SVD, svd

# A matrix of more entries keeps its own precision when both are float32: a vocabulary of 50,000 x 1024 in float64 would
# be 400 MB, and the difference of two nearby float32 numbers is exact anyway (Sterbenz).
LARGE = 2**24
# Gains of a change below this many times the expected norm of storage rounding are called rounding.
ABOVE_NOISE = 2.0


def difference(other: Map, base: Map, *, stored: str | None = None) -> Factored | Dense:
    """Return the map `other` − `base`, between the same spaces (which may carry other names).

    Two factored maps give ``[A' − A, A] · [B'; B' − B]``, of inner size 2r, or r where one factor did not change, and
    zero exactly where neither did: nothing is subtracted that was multiplied before, so a small change keeps its
    digits (equation 1). Two matrices are subtracted in float64, very large ones of float32 in float32. `rounded` says
    how much storage rounding of both is in the difference; `stored` overrides the dtype that rounded them (float64 for
    a change that is itself given, such as an adapter's).
    Raises SpaceMismatch for maps of other sizes, or kept in other ways.
    """
    same_spaces(other, base)
    kind = stored or coarser(other.stored, base.stored)
    if isinstance(base, Factored) and isinstance(other, Factored) and base.A.shape == other.A.shape:
        return _of_factors(other, base, kind)
    if isinstance(base, Dense) and isinstance(other, Dense):
        sizes = float(np.hypot(frobenius(other), frobenius(base)))
        return Dense(_minus(other.W, base.W), base.reads, base.writes, kind, (sizes,))
    raise SpaceMismatch(
        f"expected two maps that are kept in the same way, came {type(other).__name__} {other.shape} and "
        f"{type(base).__name__} {base.shape}; compare checkpoints of one anatomy"
    )


def same_spaces(other: Map, base: Map) -> None:
    """Raise SpaceMismatch unless both maps go between spaces of the same kinds and sizes."""

    def told(m: Map) -> str:
        return f"{_named(m.reads)} → {_named(m.writes)}"

    if told(other) != told(base):
        raise SpaceMismatch(f"expected two maps of one shape, came {told(base)} and {told(other)}; nothing to subtract")


def _named(space: Space) -> str:
    return f"{space.kind}[{space.size}]"


def _of_factors(other: Factored, base: Factored, kind: str) -> Factored:
    dA, dB = _minus(other.A, base.A), _minus(other.B, base.B)
    # Both blocks of a factor hold rounding of about one array's size; √2 makes the two blocks together right.
    norms = tuple(
        float(np.sqrt(2) * np.hypot(np.linalg.norm(_wide(one)), np.linalg.norm(_wide(two))))
        for one, two in ((other.A, base.A), (other.B, base.B))
    )
    if not dA.any():
        return Factored(base.A, dB, base.reads, base.writes, kind, (0.0, norms[1] / np.sqrt(2)))
    if not dB.any():
        return Factored(dA, base.B, base.reads, base.writes, kind, (norms[0] / np.sqrt(2), 0.0))
    A = np.concatenate([dA, _wide(base.A)], axis=1)
    B = np.concatenate([_wide(other.B), dB], axis=0)
    return Factored(A, B, base.reads, base.writes, kind, norms)


def _minus(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    if one.size > LARGE and one.dtype == other.dtype == np.float32:
        return one - other
    return _wide(one) - _wide(other)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64, copy=False)


def rank_above_noise(found: SVD) -> int:
    """How many dyads of a change stand above twice the expected norm of its storage rounding."""
    gains = np.concatenate([found.S, found.beyond])
    return int(np.count_nonzero(gains > ABOVE_NOISE * found.noise))


def first_order_shifts(found: SVD, change: Map) -> Float[np.ndarray, " r"]:
    """uᵢᵀ ΔM vᵢ of every dyad of the old map: the shift of its gain to first order (equation 3).

    Exact up to O(‖ΔM‖²/gap) for a simple gain (SV-29); in the unit of the gains.
    """
    return np.einsum("ij,ij->i", change.apply(found.U.T), found.Vh)


def bands(found: SVD, change: Map, top: int) -> Float[np.ndarray, "3 3"]:
    """Shares of ‖ΔM‖² by where the change reads (rows) and writes (columns), against the old map's dyads.

    Bands: the leading `top` dyads, the others, and what the old map neither reads nor writes (equation 5). Sums to 1.
    A side that was left out of `found` (`stream_only`) counts as the last band. All zero for a change of zero.
    """
    total = frobenius(change) ** 2
    if total == 0:
        return np.zeros((3, 3))
    reads = change.apply(found.U.T) if found.U.shape[1] else np.zeros((0, change.shape[1]))
    writes = change.T.apply(found.Vh) if len(found.Vh) else np.zeros((0, change.shape[0]))
    both = reads @ found.Vh.T if len(reads) and len(writes) else np.zeros((len(reads), len(writes)))
    cuts = (slice(None, top), slice(top, None))
    made = np.zeros((3, 3))
    for i, rows in enumerate(cuts):
        made[i, :2] = [np.sum(both[rows, columns] ** 2) for columns in cuts]
        made[i, 2] = np.sum(reads[rows] ** 2) - made[i, :2].sum()
    for i, columns in enumerate(cuts):
        made[2, i] = np.sum(writes[columns] ** 2) - made[:2, i].sum()
    made[2, 2] = total - made.sum()
    return np.maximum(made, 0.0) / total


def leading(m: Map, rank: int, stream_only: bool = False) -> Dyads:
    """The leading dyads of a map, to compare and not to name: no signs, nothing told of noise.

    Of factors through their triangles and one dense SVD of the core, right to eps·‖A‖‖B‖, which for small gains is less
    than `svd` promises and for leading ones the same, several times as fast; of a matrix as `svd` finds them.
    """
    if not isinstance(m, Factored):
        found = svd(m, rank, stream_only=stream_only)
        return Dyads(found.U, found.S, found.Vh, found.absolute, found.beyond, found.cut, found.route)
    (Qa, Ra), (Qb, Rb) = (np.linalg.qr(_wide(factor)) for factor in (m.A, m.B.T))
    u, S, vh = np.linalg.svd(Ra @ Rb.T, full_matrices=False)
    count = min(rank, int(np.count_nonzero(max(m.shape) * 2.0**-52 * S[0] < S)))
    U, Vh = Qa @ u[:, :count], vh[:count] @ Qb.T
    return Dyads(U, S[:count], Vh, is_absolute(S[:count], float(S[0])), S[count:], 0, "triangles")


def angles(one: SVD | Dyads, other: SVD | Dyads, top: int) -> dict[str, Float[np.ndarray, " r"]]:
    """Principal angles in degrees, largest first, between the spans of the leading `top` dyads, per side that is there.

    Exact for small angles too. Fewer than `top` where one of the maps has fewer dyads.
    """
    found = {}
    for name, left, right in (("read", one.U, other.U), ("write", one.Vh.T, other.Vh.T)):
        a, b = left[:, :top], right[:, :top]
        if a.shape[1] and b.shape[1]:
            found[name] = np.degrees(subspace_angles(a, b))
    return found


def likeness(old: SVD | Dyads, new: SVD | Dyads) -> Float[np.ndarray, "old new"]:
    """|u·u'| |v·v'| of every old dyad with every new one; of one side alone where the other was left out."""
    sides = []
    if old.U.shape[1] and new.U.shape[1]:
        sides.append(np.abs(old.U.T @ new.U))
    if len(old.Vh) and len(new.Vh):
        sides.append(np.abs(old.Vh @ new.Vh.T))
    return np.prod(sides, axis=0) if sides else np.zeros((old.S.size, new.S.size))


@dataclass(frozen=True, eq=False)
class Matched:
    """Partner of each of the leading new dyads among all old ones (−1: none), and the cosines with it.

    `nearest` is the largest likeness with *any* old dyad: that of an intruder is small.
    """

    partner: Int[np.ndarray, " r"]
    read: Float[np.ndarray, " r"]
    write: Float[np.ndarray, " r"]
    nearest: Float[np.ndarray, " r"]

    def intruders(self, below: float) -> Bool[np.ndarray, " r"]:
        """Which new dyads resemble no old one by `below`."""
        return self.nearest < below


def matched(old: SVD, new: SVD, top: int) -> Matched:
    """Pair the leading `top` new dyads with old ones so that the total likeness is largest (Hungarian).

    A side that was left out comes back as NaN.
    """
    like = likeness(old, new)[:, :top]
    count = like.shape[1]
    partner = np.full(count, -1)
    rows, columns = linear_sum_assignment(-like)
    partner[columns] = rows
    has = partner >= 0
    read, write = np.full(count, np.nan), np.full(count, np.nan)
    at = np.flatnonzero(has)
    if old.U.shape[1] and new.U.shape[1]:
        read[at] = np.abs(np.einsum("ni,ni->i", old.U[:, partner[at]], new.U[:, at]))
    if len(old.Vh) and len(new.Vh):
        write[at] = np.abs(np.einsum("im,im->i", old.Vh[partner[at]], new.Vh[at]))
    return Matched(partner, read, write, nearest(old, new, top))


def nearest(old: SVD | Dyads, new: SVD | Dyads, top: int) -> Float[np.ndarray, " r"]:
    """Largest likeness of each of the leading `top` new dyads with any old one; 0 where there is no old one."""
    return likeness(old, new)[:, :top].max(axis=0, initial=0.0)


def relative_change(change: Map, base: Map) -> float:
    """‖ΔM‖_F / ‖M‖_F: 0 where nothing changed, infinite where the old map was zero (equation 2)."""
    size, old = frobenius(change), frobenius(base)
    return 0.0 if size == 0 else size / old if old else float("inf")


def is_zero(change: Factored | Dense) -> bool:
    """Whether a difference is exactly zero."""
    if isinstance(change, Factored):
        return not (change.A.any() and change.B.any())
    return not any(change.W[rows].any() for rows in row_tiles(change.shape))
