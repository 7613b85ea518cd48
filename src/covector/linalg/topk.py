"""The most extreme vectors along each direction, both poles from one product.

``scores = directions @ vectors.T`` are computed in row chunks, screened, and only the winners looked at closely:

1. *Screening.* Each row of scores is cut into groups, of which the k best hold a valid top k (`grouped`).
2. *Certificate.* Screening runs in float32 (float64 if the vectors are) with directions scaled to length one, so a
   screened score differs from the true one by at most δ = (d + 4)·u·‖vector‖. The set of winners is certain when the
   k-th screened score beats the next by more than 2δ. Rows in doubt are decided on all candidates, and if that does
   not settle it, on everything.
3. *Winners* are scored again in float64 from the inputs and ordered by (score, id).

So the answer is that of float64 arithmetic with ties broken by the lower id, whatever chunk a row fell into; the top of
a direction is the bottom of its negative, bit for bit. For 1000 directions, 50,257 vectors, d = 1024 and k = 10 all of
this costs 1.1 times the bare float32 product (one thread), and two thirds of it where the processor multiplies
bfloat16 quickly: then those products choose the candidates of many directions (`half`).
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg import half
from covector.linalg.grouped import largest_in_groups
from covector.linalg.on_device import card_for

# Scores held at a time: 667 rows of a 50,257-token vocabulary in float32. With half of it the products of d = 2048 run
# a tenth slower.
BUFFER_BYTES = 128 * 2**20

# Scores whose winners are chosen at a time, 16 rows of 200 KB: the second look at them finds them in the cache.
NEAR_BYTES = 2**22

# Candidates kept beyond k, so that a near tie at the border is decided without a second look at the whole row.
SLACK = 6

# Doubles gathered at a time when winners are scored again: 16 rows x 10 winners x d_model fit a core's cache.
RESCORE_ENTRIES = 2**17


@dataclass(frozen=True, eq=False)
class Poles:
    """Per direction, ids and float64 scores of the k highest (`top`, falling) and k lowest (`bottom`, rising)."""

    top: Int[np.ndarray, "r k"]
    top_score: Float[np.ndarray, "r k"]
    bottom: Int[np.ndarray, "r k"]
    bottom_score: Float[np.ndarray, "r k"]

    def part(self, rows: Bool[np.ndarray, " r"]) -> "Poles":
        """Those of some of the directions."""
        return Poles(self.top[rows], self.top_score[rows], self.bottom[rows], self.bottom_score[rows])


def poles(
    directions: Float[np.ndarray, "r d"],
    vectors: Float[np.ndarray, "n d"],
    k: int,
    *,
    keep: Bool[np.ndarray, " n"] | None = None,
    lengths: Float[np.ndarray, " n"] | None = None,
    see: Callable[[slice, Float[np.ndarray, "r n"]], None] | None = None,
) -> Poles:
    """Return the k highest and the k lowest scores ``direction · vector`` of each direction, with the vectors' ids.

    With `lengths`, the Euclidean lengths of the vectors, scores are divided by them: cosines (for unit directions)
    without a normalised copy of a vocabulary. Lengths of kept vectors must be positive.

    Exact: the order is that of the float64 scores, ties by lower id (for directions of 1e-290 or longer: products that
    fall below float64's normal numbers lose digits). `keep` leaves vectors out of the running without
    changing the order of the rest; a k beyond what is left is capped. Ids refer to the rows of `vectors`.
    `see(rows, scores)` is shown every block of screened scores while it is there (of directions scaled to length one;
    whatever stands for vectors that are left out is 0), to sum over the vectors what would not fit in memory.
    Raises BadRequest for k < 1, nothing kept, kept vectors (or directions) that are not finite, or lengths outside the
    normal numbers of the vectors' precision; SpaceMismatch for widths that differ. Memory beyond inputs and result:
    128 MB of scores, and a float32 copy of float16 vectors; or half of those scores, a copy of half precision, and
    torch, where that is quicker (never with `see`, nor inside `half.only_float32`).
    """
    n = _check(directions, vectors, k, keep)
    few = 2 * n < vectors.shape[0] and n * vectors.shape[1] * vectors.itemsize <= BUFFER_BYTES
    if keep is not None and few and see is None:
        # Few are kept: a copy of them costs less than scoring everything.
        ids = np.flatnonzero(keep)
        found = poles(directions, vectors[ids], k, lengths=None if lengths is None else lengths[ids])
        return Poles(ids[found.top], found.top_score, ids[found.bottom], found.bottom_score)
    if lengths is not None:
        _check_lengths(lengths if keep is None else lengths[keep], vectors.dtype)
    k = min(int(k), n)
    if see is None and vectors.dtype != np.float64 and half.pays(len(directions), n, vectors.shape[1]):
        table = half.table(vectors, keep, lengths)
        if 0 < table.wanted(k) <= n // 4:
            return _by_half(directions, vectors, k, lengths, table)
    return _screened(_Screening(directions, vectors, k, keep, lengths, see), directions)


def _screened(screening: "_Screening", directions: np.ndarray) -> Poles:
    """The poles of these directions, a block of scores at a time."""
    number, itemsize = len(screening.tokens), screening.tokens.itemsize
    rows = _rows(len(directions), itemsize * number)
    block = np.empty((min(rows, len(directions)), number), screening.tokens.dtype)
    parts = [screening.chunk(slice(i, i + rows), block) for i in range(0, len(directions), rows)]
    top, bottom = ([pair[side] for pair in parts] for side in (0, 1))
    return Poles(*_joined(top, screening.k), *_joined(bottom, screening.k))


def _rows(directions: int, size: int) -> int:
    """Directions whose scores, of so many bytes each, are held at a time, in blocks of about one size.

    A product with few rows left over runs at half the speed.
    """
    most = max(1, BUFFER_BYTES // size)
    return max(1, -(-directions // max(1, -(-directions // most))))


def _by_half(
    directions: np.ndarray, vectors: np.ndarray, k: int, lengths: np.ndarray | None, table: half.HalfTable
) -> Poles:
    """The same poles, with candidates chosen in half precision."""
    # As many as in float32, so that these scores and the table together need little more than those do.
    rows = _rows(len(directions), 4 * len(table.ids))
    room, sides = table.room(min(rows, len(directions))), (list[tuple[np.ndarray, np.ndarray]](), [])
    for start in range(0, len(directions), rows):
        part = directions[start : start + rows]
        shown, size = table.shown(_unit(part), room), _sizes(part)
        for sign, side in zip((1, -1), sides, strict=True):
            found, others = shown.best(table.wanted(k), sign)
            ids, exact = _ranked(sign * part, vectors, lengths, table.ids[found], k)
            # Where others may reach the k-th, everything that may is looked at.
            for row in np.flatnonzero(~(exact[:, -1] > size * others)):
                least = exact[row, -1] / size[row] if size[row] > 0 else -np.inf
                among = table.ids[shown.reaching(int(row), least, sign)][None]
                ids[row], exact[row] = _ranked(sign * part[row : row + 1], vectors, lengths, among, k)
            side.append((ids, sign * exact))
    return Poles(*_joined(sides[0], k), *_joined(sides[1], k))


def scores(directions: Float[np.ndarray, "r d"], vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "r n"]:
    """Return every ``direction · vector`` in float64, each summed alike wherever it stands, as `poles` orders them.

    For small sets; ten times slower per score than a matrix product.
    """
    _check(directions, vectors, 1, None)
    everything = np.broadcast_to(np.arange(vectors.shape[0]), (directions.shape[0], vectors.shape[0]))
    return _exact(directions, vectors, everything)


# Ids and scores.
_Ranked = tuple[np.ndarray, np.ndarray]

# By the number of the array, which leaves with it.
_longest_of: dict[int, float] = {}


class _Screening:
    """One call's tokens, norms and masks, shared by its chunks of rows."""

    def __init__(
        self,
        directions: np.ndarray,
        vectors: np.ndarray,
        k: int,
        keep: np.ndarray | None,
        lengths: np.ndarray | None,
        see: Callable[[slice, np.ndarray], None] | None,
    ) -> None:
        self.directions, self.vectors, self.k, self.lengths, self.see = directions, vectors, k, lengths, see
        kind = np.float64 if vectors.dtype == np.float64 else np.float32
        self.tokens = vectors.astype(kind, copy=False)
        self.left_out = np.zeros(0, int) if keep is None else np.flatnonzero(~keep)
        self.ids = np.arange(vectors.shape[0]) if keep is None else np.flatnonzero(keep)
        d, about = vectors.shape[1], np.finfo(kind)
        longest = 1.0 if lengths is not None else self._longest(float(about.smallest_normal))
        # Rounding the direction, d products and sums, a division: (d + 4)·u, the 4 also covering the norms' own
        # rounding; what squares lose to underflow is below the smallest normal number each. Vectors divided by their
        # lengths have length one.
        self.doubt = 2 * (d + 4) * float(about.eps) / 2 * longest

    def _longest(self, smallest: float) -> float:
        """Length of the longest kept vector, from above. Raises BadRequest if one is not finite.

        Found once for vectors that cannot change and of which none is left out: a twentieth of the time of a call.
        """
        if self.left_out.size or not half.is_fixed(self.vectors):
            return self._measured(smallest)
        if id(self.vectors) not in _longest_of:
            _longest_of[id(self.vectors)] = self._measured(smallest)
            weakref.finalize(self.vectors, _longest_of.pop, id(self.vectors), None)
        return _longest_of[id(self.vectors)]

    def _measured(self, smallest: float) -> float:
        with np.errstate(all="ignore"):
            squares = np.einsum("nd,nd->n", self.tokens, self.tokens)[self.ids]
        if not np.isfinite(squares).all():
            raise BadRequest(
                f"kept vectors must be finite ({self.tokens.dtype} squares); leave the others out with keep"
            )
        return float(np.sqrt(squares.max() + self.tokens.shape[1] * smallest))

    def chunk(self, rows: slice, block: np.ndarray) -> tuple[_Ranked, _Ranked]:
        """(ids, scores) of the top and of the bottom for these rows of directions; `block` has room for the scores."""
        directions = self.directions[rows]
        screened = block[: len(directions)]
        few = max(1, NEAR_BYTES // screened[:1].nbytes)
        with np.errstate(all="ignore"):  # vectors that are left out may hold anything
            self._multiply(_unit(directions).astype(self.tokens.dtype), screened)
        if self.see is not None:
            screened[:, self.left_out] = 0.0
            self.see(rows, screened)
        pairs = [self._both(directions[i : i + few], screened[i : i + few]) for i in range(0, len(directions), few)]
        top, bottom = ([pair[side] for pair in pairs] for side in (0, 1))
        return _joined(top, self.k), _joined(bottom, self.k)

    def _both(self, directions: np.ndarray, screened: np.ndarray) -> tuple[_Ranked, _Ranked]:
        screened[:, self.left_out] = -np.inf
        top = self._winners(directions, screened, 1)
        screened[:, self.left_out] = np.inf
        ids, low = self._winners(-directions, screened, -1)
        return top, (ids, -low)

    def _multiply(self, unit: np.ndarray, out: np.ndarray) -> None:
        lengths = None if self.lengths is None else self.lengths.astype(self.tokens.dtype)
        card = card_for(len(unit), self.tokens)
        if card is not None:
            card.multiply(unit, self.tokens, lengths, out)
            return
        np.matmul(unit, self.tokens.T, out=out)
        if lengths is not None:
            out /= lengths

    def _winners(self, directions: np.ndarray, screened: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
        """Certain top k of each row by float64 score; `screened` are the scores times `sign`."""
        k, wanted = self.k, min(self.k + SLACK, self.ids.size)
        found, values = largest_in_groups(screened, wanted, sign)
        if wanted == self.ids.size:
            return _ranked(directions, self.vectors, self.lengths, found, k)
        # Three kinds of rows: the set of k is certain; the set of candidates is; neither.
        border = values[:, k - 1] - self.doubt
        clear = values[:, k] < border
        enough = values[:, -1] < border
        ids = np.empty((len(directions), k), np.int64)
        exact = np.empty((len(directions), k))
        for chosen, pool in ((clear, found[:, :k]), (~clear & enough, found), (~clear & ~enough, None)):
            for row in _groups_of(np.flatnonzero(chosen), pool is None):
                among = np.broadcast_to(self.ids, (len(row), self.ids.size)) if pool is None else pool[row]
                ids[row], exact[row] = _ranked(directions[row], self.vectors, self.lengths, among, k)
        return ids, exact


def _unit(directions: np.ndarray) -> np.ndarray:
    """Directions at length one in float64 (null ones stay null)."""
    largest = np.abs(directions).max(axis=1, keepdims=True, initial=0.0).astype(np.float64)
    rows = directions.astype(np.float64) / np.where(largest > 0, largest, 1.0)
    return rows / np.where(largest > 0, np.linalg.norm(rows, axis=1, keepdims=True), 1.0)


def _sizes(directions: np.ndarray) -> np.ndarray:
    """Lengths in float64, by way of the largest entry against underflow."""
    largest = np.abs(directions).max(axis=1, initial=0.0).astype(np.float64)
    return largest * np.linalg.norm(directions / np.where(largest > 0, largest, 1.0)[:, None], axis=1)


def _groups_of(rows: np.ndarray, singly: bool) -> list[np.ndarray]:
    """Rows one at a time, or all at once if there are any."""
    if singly:
        return [rows[i : i + 1] for i in range(rows.size)]
    return [rows] if rows.size else []


def _ranked(
    directions: np.ndarray, vectors: np.ndarray, lengths: np.ndarray | None, ids: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the given ids per row, by float64 score and then by id."""
    exact = _exact(directions, vectors, ids, lengths)
    order = np.lexsort((ids, -exact), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(exact, order, axis=1)


def _exact(
    directions: np.ndarray, vectors: np.ndarray, ids: np.ndarray, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Float64 scores of chosen pairs, each summed over d in the same order whatever else is asked for."""
    out = np.empty(ids.shape)
    across = max(1, RESCORE_ENTRIES // max(1, vectors.shape[1]))
    down = max(1, across // max(1, ids.shape[1]))
    for row in range(0, ids.shape[0], down):
        direction = directions[row : row + down].astype(np.float64)
        for column in range(0, ids.shape[1], across):
            part = ids[row : row + down, column : column + across]
            out[row : row + down, column : column + across] = np.einsum(
                "rkd,rd->rk", vectors[part].astype(np.float64), direction
            )
    return out if lengths is None else out / lengths[ids]


def _joined(pairs: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    if not pairs:
        return np.zeros((0, k), np.int64), np.zeros((0, k))
    return np.concatenate([ids for ids, _ in pairs]), np.concatenate([score for _, score in pairs])


def _check_lengths(lengths: np.ndarray, stored: np.dtype) -> None:
    if not (np.isfinite(lengths).all() and lengths.min() > 0):
        raise BadRequest("lengths of kept vectors must be positive and finite; leave the others out with keep")
    about = np.finfo(np.float64 if stored == np.float64 else np.float32)
    if lengths.min() < about.smallest_normal or lengths.max() > about.max:
        raise BadRequest(
            f"lengths of kept vectors must be {about.smallest_normal:.1e} to {about.max:.1e}, which {about.dtype} "
            f"holds in full, came {lengths.min():.1e} to {lengths.max():.1e}; scale the vectors, or use float64"
        )


def _check(directions: np.ndarray, vectors: np.ndarray, k: int, keep: np.ndarray | None) -> int:
    """The number of vectors in the running."""
    if directions.ndim != 2 or vectors.ndim != 2 or directions.shape[1] != vectors.shape[1]:
        raise SpaceMismatch(
            f"directions [r, d] and vectors [n, d] must share d, came {directions.shape} and {vectors.shape}"
        )
    if keep is not None and (keep.shape != vectors.shape[:1] or keep.dtype != bool):
        raise BadRequest(f"keep must be {vectors.shape[0]} booleans, one per vector, came {keep.dtype} {keep.shape}")
    n = vectors.shape[0] if keep is None else int(keep.sum())
    if k < 1 or n < 1:
        raise BadRequest(f"expected k >= 1 of at least one vector, came k = {k} of {n} kept; ask for fewer exclusions")
    if not np.isfinite(directions).all():
        raise BadRequest(f"directions {directions.shape} must be finite; drop the rows that are not")
    return n
