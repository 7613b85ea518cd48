"""How somebody else's SVD relates to ours: the same, another sign, another order, another side, or another matrix.

Singular values agree between programs; singular vectors agree only up to the joint sign of a dyad and, where values
coincide, up to a rotation of the block. Worse, libraries differ in what they call V: ``torch.svd`` returns V, whose
*columns* are directions, NumPy and ``torch.linalg.svd`` return Vh, whose *rows* are. Code moved from one to the other
reads row i of V, the loadings of coordinate i, and finds noise. Each such reading of their arrays is tried in turn and
the first that explains them is named.

Tolerances come from the coarser dtype among their arrays: a backward stable SVD is that of ``M + E`` with ‖E‖₂ a few
times eps·σ₁, which moves a gain by ‖E‖₂ and turns a dyad by about ‖E‖₂/gap. Arrays of float64 that came from float32
(a list, a text file, a cast) betray it by not being orthonormal to float64: where nothing explains them they are
compared again as float32, and the answer says so.

Dyads that no gap of ours fixes must still be dyads of our map: with its gain, and ``M v = σ u`` and ``uᵀM = σ vᵀ`` as
far as we know M. What only passes that is `undetermined`, which explains nothing: other readings are tried first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from covector.axes import Float
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.relation import AS_GIVEN, ROWS_OF_V, Relation
from covector.linalg.svd import SVD

# ‖E‖₂ allowed to the other program, over σ₁, by the dtype that its arrays were held in: 64·eps where it computed in it
# (float32 gesdd of scipy and torch was measured at 7-16 eps on products and 27 on matrices of d = 768-1024), 1·eps for
# half precision, in which nobody computes an SVD but some store one: twice what rounding the entries can do.
FOREIGN_ERROR = {"float64": 2.0**-46, "float32": 2.0**-17, "float16": 2.0**-10, "bfloat16": 2.0**-7}

# An entry of UᵀU - I in float64 stays below this (our own promise; LAPACK leaves 1e-14 at n = 1024), in float32 not.
ORTHONORMAL = 1e-11

# What may be taken from two sides at once in a residual M v - σ u: their ‖E‖₂, and their rounding of u and v.
RESIDUAL_ERRORS = 2.0

# Neighbours closer than this many ‖E‖₂ are compared as a block; from here on a dyad turns by up to 1/2 rad.
BLOCK_ERRORS = 4.0


def relate(
    ours: SVD,
    U: Float[np.ndarray, "..."],
    S: Float[np.ndarray, "..."],
    Vh: Float[np.ndarray, "..."],
    *,
    held: str | None = None,
) -> Relation:
    """Return how the arrays U [n, k], S [k] and Vh [k, m] of somebody else relate to our SVD of the same map.

    Full, thin and truncated forms are understood, float64 and float32, and what half precision holds of them. `held`
    names the dtype that they were kept in where the arrays do not show it ("bfloat16"). Right inside the tolerance that
    the dtype and our gaps imply; dyads closer than that are compared by their span.
    Raises SpaceMismatch when no reading of the shapes fits the map, BadRequest when there is nothing to compare or
    `held` is no dtype.
    """
    if (U.ndim, S.ndim, Vh.ndim) != (2, 1, 2):
        raise SpaceMismatch(
            f"expected U and Vh of two axes and S of one, came {U.shape}, {S.shape}, {Vh.shape}; "
            "give gains as a row of numbers, not as a diagonal matrix"
        )
    if held is not None and held not in FOREIGN_ERROR:
        raise BadRequest(f"held must be one of {', '.join(FOREIGN_ERROR)}, came {held!r}; leave it out if unsure")
    if not ours.rank or not all(np.isfinite(array).all() for array in (U, S, Vh)):
        raise BadRequest(f"expected finite U, S, Vh and a map that is not zero, came a map of rank {ours.rank}")
    # Wider floats than float64 are compared as float64, which is what they are converted to.
    names = [held] if held else [array.dtype.name for array in (U, S, Vh)]
    error = max(FOREIGN_ERROR.get(name, FOREIGN_ERROR["float64"]) for name in names)
    readings = [(name, _Theirs(left, S.astype(np.float64), right)) for name, left, right in _readings(ours, U, S, Vh)]
    if not readings:
        n, m = ours.U.shape[0], ours.Vh.shape[1]
        raise SpaceMismatch(
            f"expected U [{n}, k], S [k], Vh [k, {m}], came {U.shape}, {S.shape}, {Vh.shape}, which fit no reading of "
            "this map; compare with the SVD of the same map"
        )
    found = []
    for relation in _attempts(ours, readings, error):
        if relation.kind not in ("different", "undetermined"):
            return relation
        found.append(relation)
    if _holds_rows_of_v(ours, Vh.astype(np.float64), error):
        return replace(found[0], kind="transposed", reading=ROWS_OF_V)
    # Of float32 in float64's clothes, tell where it parts from ours by more than float32 would.
    parted = next((r for r in found if r.departure is not None), found[0])
    return next((r for r in found if r.kind == "undetermined"), parted)


def _attempts(ours: SVD, readings: list[tuple[str, "_Theirs"]], error: float) -> Iterator[Relation]:
    """The relation under each reading; for float64, then at float32's tolerance where orthonormality points to it."""
    for reading, theirs in readings:
        yield _compared(ours, reading, theirs, error)
    if error > FOREIGN_ERROR["float64"]:
        return
    for reading, theirs in readings:
        departure = theirs.departure
        if ORTHONORMAL < departure <= FOREIGN_ERROR["float32"]:
            yield replace(_compared(ours, reading, theirs, FOREIGN_ERROR["float32"]), departure=departure)


@dataclass(frozen=True, eq=False)
class _Theirs:
    """Their dyads under one reading: U [n, k], S [k], Vh [k, m]."""

    U: np.ndarray
    S: np.ndarray
    Vh: np.ndarray

    def taken(self, order: np.ndarray | range) -> "_Theirs":
        return _Theirs(self.U[:, order], self.S[order], self.Vh[order])

    @property
    def departure(self) -> float:
        """The largest entry of UᵀU - I and Vh·Vhᵀ - I."""
        identity = np.eye(self.U.shape[1])
        return float(max(np.abs(gram - identity).max() for gram in (self.U.T @ self.U, self.Vh @ self.Vh.T)))


def _readings(ours: SVD, U: np.ndarray, S: np.ndarray, Vh: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each way to take their arrays as (U, Vh) whose shapes fit the map, the honest one first; float64."""
    U, Vh = U.astype(np.float64), Vh.astype(np.float64)
    n, m = ours.U.shape[0], ours.Vh.shape[1]
    for reading, left, right in (
        (AS_GIVEN, U, Vh),
        ("V for Vh", U, Vh.T),
        ("Uᵀ for U", U.T, Vh),
        ("both transposed", U.T, Vh.T),
        ("U and V swapped", Vh.T, U.T),
        ("swapped, V for Vh", Vh, U.T),
    ):
        k = min(left.shape[1], right.shape[0], S.size)
        if left.shape[0] == n and right.shape[1] == m and k > 0:
            yield reading, left[:, :k], right[:k]


def _compared(ours: SVD, reading: str, theirs: _Theirs, error: float) -> Relation:
    """The relation under one reading: in the order given or, if that explains nothing, in the best matching one."""
    count = min(theirs.U.shape[1], ours.rank)
    plain = _aligned(ours, reading, theirs, np.arange(count), error)
    if plain.kind != "different":
        return plain
    likeness = np.abs(ours.U[:, :count].T @ theirs.U) * np.abs(ours.Vh[:count] @ theirs.Vh.T)
    _, order = linear_sum_assignment(-likeness)
    matched = _aligned(ours, reading, theirs, order, error)
    return matched if matched.kind != "different" else plain


def _aligned(ours: SVD, reading: str, theirs: _Theirs, order: np.ndarray, error: float) -> Relation:
    """The relation once their dyads are taken in an order; `first_difference` says where it fails."""
    count, extra = order.size, theirs.U.shape[1] - order.size
    taken = theirs.taken(order)
    signs = np.where(np.einsum("ni,ni->i", ours.U[:, :count], taken.U) < 0, -1.0, 1.0)
    off = np.maximum(
        np.linalg.norm(taken.U * signs - ours.U[:, :count], axis=0),
        np.linalg.norm(taken.Vh * signs[:, None] - ours.Vh[:count], axis=1),
    )
    off_gain = np.abs(taken.S - ours.S[:count]) / ours.S[0]
    rotated, loose, wrong = _verdicts(ours, taken, off, off_gain, error)
    plain = sorted(set(range(count)) - {*loose, *(i for block in rotated for i in block)})
    flipped = tuple(i for i in plain if signs[i] < 0)
    shuffled = not np.array_equal(order, np.arange(count))
    missing = ours.rank - count
    kinds = (
        ("different", bool(wrong)),
        ("undetermined", len(loose) == count),
        ("transposed", reading != AS_GIVEN),
        ("permuted", shuffled),
        ("rotated", bool(rotated)),
        ("sign", bool(flipped)),
        ("truncated", missing > 0),
        ("same", True),
    )
    return Relation(
        kind=next(kind for kind, applies in kinds if applies),
        reading=reading,
        compared=count,
        missing=missing,
        extra=extra,
        flipped=flipped,
        order=tuple(order.tolist()) if shuffled else None,
        rotated=tuple(rotated),
        undetermined=tuple(loose),
        first_difference=wrong[0] if wrong else None,
        departure=None,
        left_angle=_largest_angle(ours.U[:, :count], taken.U),
        right_angle=_largest_angle(ours.Vh[:count].T, taken.Vh.T),
        gain_difference=float(off_gain.max()),
        vector_difference=float(off[plain].max(initial=0.0)),
    )


def _verdicts(
    ours: SVD, taken: _Theirs, off: np.ndarray, off_gain: np.ndarray, error: float
) -> tuple[list[range], list[int], list[int]]:
    """Runs that agree in span only, dyads that fit but that nothing fixes, and those that nothing explains."""
    rotated: list[range] = []
    loose: list[int] = []
    wrong: list[int] = []
    for block, room in _runs(ours, off.size, error):
        if room < BLOCK_ERRORS * error:
            fits = off_gain[block].max() <= error and _are_dyads(ours, taken.taken(block), error)
            (loose if fits else wrong).extend(block)
            continue
        allowed = 2 * error / room + error
        if off[block].max() <= allowed and off_gain[block].max() <= error:
            continue
        if len(block) > 1 and _spans_agree(ours, taken, block, allowed, error):
            rotated.append(block)
        else:
            wrong += block
    return rotated, loose, wrong


def _runs(ours: SVD, count: int, error: float) -> Iterator[tuple[range, float]]:
    """Runs of our first `count` dyads that their dtype cannot tell apart, each with its distance to all others.

    Distances are over S[0]; a run that the comparison cuts short has the distance 0.
    """
    n, r, m = *ours.U.shape, ours.Vh.shape[1]
    beyond = ours.following if ours.following > 0 or max(n, m) > r else -np.inf
    steps = -np.diff(np.concatenate([[np.inf], ours.S, [beyond]])) / ours.S[0]
    start = 0
    for i in range(1, r + 1):
        if i < r and steps[i] < BLOCK_ERRORS * error:
            continue
        if start >= count:
            return
        whole = i <= count
        yield range(start, min(i, count)), float(min(steps[start], steps[i], 2.0)) if whole else 0.0
        start = i


def _spans_agree(ours: SVD, taken: _Theirs, block: range, allowed: float, error: float) -> bool:
    """Whether inside a run the spans are equal on both sides and the gains, turned accordingly, are ours."""
    U, Vh, S = ours.U[:, block], ours.Vh[block], ours.S[block]
    left, right = U.T @ taken.U[:, block], Vh @ taken.Vh[block].T
    outside = max(
        float(np.linalg.norm(taken.U[:, block] - U @ left, 2)),
        float(np.linalg.norm(taken.Vh[block] - right.T @ Vh, 2)),
    )
    turned = float(np.linalg.norm((left * taken.S[block]) @ right.T - np.diag(S), 2)) / float(ours.S[0])
    # Each side's tilt enters in second order, the foreign error in first; 2 covers both rotations.
    return outside <= allowed and turned <= 2 * error + allowed**2


def _are_dyads(ours: SVD, theirs: _Theirs, error: float) -> bool:
    """Whether they are orthonormal dyads of our map as far as it is known here: M v = σ u, uᵀM = σ vᵀ.

    Inside the span of our dyads that is known of any map (Uᵀ M = S·Vh); outside only where none of ours was left out.
    """
    left, right, S = ours.U.T @ theirs.U, ours.Vh @ theirs.Vh.T, ours.S[:, None]
    residuals = [S * right - left * theirs.S, S * left - right * theirs.S]
    if not ours.following:
        residuals.append((theirs.U - ours.U @ left) * theirs.S)
        residuals.append((theirs.Vh.T - ours.Vh.T @ right) * theirs.S)
    worst = max(float(np.linalg.norm(residual, 2)) for residual in residuals)
    return worst <= RESIDUAL_ERRORS * error * float(ours.S[0]) and theirs.departure <= RESIDUAL_ERRORS * error


def _largest_angle(one: np.ndarray, other: np.ndarray) -> float:
    """Largest principal angle between two spans given by (nearly) orthonormal columns, exact for small angles too."""
    outside = other - one @ (one.T @ other)
    return float(np.arcsin(min(1.0, float(np.linalg.norm(outside, 2)))))


def _holds_rows_of_v(ours: SVD, Vh: np.ndarray, error: float) -> bool:
    """Whether row i of theirs holds the loadings of coordinate i on our directions, up to each direction's sign."""
    columns = min(Vh.shape[1], ours.rank)
    alone = [run[0] for run, room in _runs(ours, columns, error) if len(run) == 1 and room > 100 * error]
    rows = min(Vh.shape[0], ours.Vh.shape[1])
    # Fewer than 8 loadings could agree by accident.
    if len(alone) * rows < 8:
        return False
    loadings = ours.Vh[alone, :rows].T
    signs = np.sign(np.einsum("ij,ij->j", loadings, Vh[:rows, alone]))
    return bool(np.abs(Vh[:rows, alone] * signs - loadings).max() <= 0.1 * np.sqrt(np.mean(loadings**2)))
