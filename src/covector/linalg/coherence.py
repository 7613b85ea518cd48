"""Coherence of a list of vectors: how much its members share, beyond the direction that picked them and with it.

The k vectors that lie nearest to *any* direction v share v, so their mean pairwise cosine is positive for no reason of
their own. Taking v out of each of them first leaves what they share *beyond* v; its mean over random directions is 0
where vectors are spread evenly. The price: a direction that *is* what its list shares leaves nothing. (The members of a
mean of k vectors have the coherence −1/(k − 1) beyond that mean, however alike they are.) So both are returned, with
the part that the direction carries; `whole` is to be read against its null only, never by itself.

Source: `docs/theory/scores.md`, equations 1–4; F10(i) and D11 of the theory page.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.judging import Aimed, View, view_of

# Doubles gathered at a time: 4 MB, half of what a core's cache holds; larger blocks were slower.
BLOCK_ENTRIES = 2**19
# Directions whose sums are brought into the metric together: 8 MB each for d = 4096, and a product of full speed.
TOGETHER = 256

# A vector this near to the direction (its rest below 1e-3 of its length) is the direction and float32 rounding: it has
# no direction of its own left, and is left out.
ALONG = 1e-6


@dataclass(frozen=True, eq=False)
class Coherence:
    """Mean pairwise cosine of each list: `beyond` the direction, on the `whole`, and what the direction `carries`.

    carries = mean of c_s·c_t over pairs, c the cosines with the direction: how alike the list is through the direction
    alone. All unitless, one per direction; NaN for lists with fewer than two usable members.
    """

    beyond: Float[np.ndarray, " r"]
    whole: Float[np.ndarray, " r"]
    carries: Float[np.ndarray, " r"]


def coherence(
    directions: Float[np.ndarray, "r d"] | Aimed, lists: Int[np.ndarray, "r k"], units: Float[np.ndarray, "n d"] | View
) -> Float[np.ndarray, " r"]:
    """Mean pairwise cosine of the listed vectors after the direction is taken out of each and the rest renormalised.

    `lists[i]` are rows of `units` (any lengths but zero; a view of a table in another metric will do), `directions[i]`
    is what picked them (any length but zero). Returns values in [−1/(k−1), 1], float64; vectors that are the direction
    itself are left out, NaN where fewer than two remain. Costs 2·r·k·d multiplications, and two products with the
    metric of a view per direction; 4 MB and a few times 256 directions.
    Raises SpaceMismatch when shapes do not fit, BadRequest for ids outside `units`.
    """
    return coherences(directions, lists, units).beyond


def coherences(
    directions: Float[np.ndarray, "r d"] | Aimed, lists: Int[np.ndarray, "r k"], units: Float[np.ndarray, "n d"] | View
) -> Coherence:
    """`coherence` together with the coherence on the whole and the part that the direction carries; same errors."""
    view, (r, k) = view_of(units), lists.shape
    beyond, whole, carries = (np.full(r, np.nan) for _ in range(3))
    for some, aimed in aimed_at(directions, view):
        rests, members = (np.zeros((len(aimed), view.shape[1])) for _ in range(2))
        counted = np.zeros(len(aimed), np.int64)
        for rows, listed in gathered(aimed, lists[some], view):
            rests[rows], counted[rows] = listed.rest_sum(), listed.usable.sum(axis=1)
            unit = 1 / listed.length
            members[rows] = np.matmul(unit[:, None, :], listed.vectors)[:, 0]
            cosine = listed.along * unit
            squares = np.sum(cosine * cosine, axis=1)
            carries[some][rows] = (cosine.sum(axis=1) ** 2 - squares) / max(k * (k - 1), 1)
        beyond[some] = _mean_of_pairs(beyond_direction(rests, aimed, view), counted)
        whole[some] = _mean_of_pairs(view.into(members), np.full(len(members), k))
    return Coherence(beyond, whole, carries)


def aimed_at(directions: Float[np.ndarray, "r d"] | Aimed, view: View) -> Iterator[tuple[slice, Aimed]]:
    """`TOGETHER` directions at a time, at length one. Raises SpaceMismatch for another width than that of the rows."""
    width = (directions.own if isinstance(directions, Aimed) else directions).shape[1]
    if width != view.shape[1]:
        raise SpaceMismatch(f"expected directions [r, d] for units [n, d], came width {width} for {view.shape}")
    for start in range(0, len(directions), TOGETHER):
        rows = slice(start, start + TOGETHER)
        yield rows, directions.part(rows) if isinstance(directions, Aimed) else view.aim(directions[rows])


def beyond_direction(sums: Float[np.ndarray, "r d"], aimed: Aimed, view: View) -> Float[np.ndarray, "r d"]:
    """Weighted sums of rows, brought into the metric of the view and freed of what lies along the direction."""
    found = view.into(sums)
    return found - np.vecdot(found, aimed.own)[:, None] * aimed.own


@dataclass(frozen=True, eq=False)
class Listed:
    """One block of lists, gathered: b directions, k listed vectors each.

    vectors  as they are in their table; the numbers below are of the metric
    along    component of every vector along its unit direction
    length   length of every vector
    inverse  1 / length of its rest once the direction is taken out; 0 where nothing is left (not `usable`)
    """

    vectors: Float[np.ndarray, "b k d"]
    along: Float[np.ndarray, "b k"]
    length: Float[np.ndarray, "b k"]
    inverse: Float[np.ndarray, "b k"]

    @property
    def usable(self) -> Bool[np.ndarray, "b k"]:
        """Which vectors have a direction besides the one taken out."""
        return self.inverse > 0

    def rest_sum(self) -> Float[np.ndarray, "b d"]:
        """Sum of the vectors, each over the length of its rest: `beyond_direction` makes it the sum of unit rests."""
        return np.matmul(self.inverse[:, None, :], self.vectors)[:, 0]


def gathered(aimed: Aimed, lists: Int[np.ndarray, "r k"], view: View) -> Iterator[tuple[slice, Listed]]:
    """Blocks of directions with their listed vectors in float64, the direction's part measured.

    Raises what `coherence` raises, and BadRequest for null directions or listed vectors.
    """
    _check(aimed, lists, view)
    r, k = lists.shape
    step = max(1, BLOCK_ENTRIES // max(1, k * view.shape[1]))
    for start in range(0, r, step):
        rows = slice(start, min(start + step, r))
        vectors, squares = view.rows(lists[rows])
        towards = aimed.along[rows]
        if not np.isfinite(towards).all() or not (squares > 0).all():
            raise BadRequest("directions and listed vectors must be finite and not null; leave the others out")
        along = np.matmul(vectors, towards[:, :, None])[:, :, 0]
        rest = squares - along * along
        usable = rest > ALONG * squares
        inverse = np.where(usable, 1 / np.sqrt(np.where(usable, rest, 1.0)), 0.0)
        yield rows, Listed(vectors, along, np.sqrt(squares), inverse)


def _mean_of_pairs(total: Float[np.ndarray, "b d"], count: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """Mean cosine over pairs of unit vectors from their sum: ‖Σ‖² counts every pair twice and each vector once."""
    pairs = np.where(count > 1, count * (count - 1), 1)
    return np.where(count > 1, (np.vecdot(total, total) - count) / pairs, np.nan)


def _check(aimed: Aimed, lists: np.ndarray, view: View) -> None:
    if len(aimed) != len(lists):
        raise SpaceMismatch(f"expected one list per direction, came {len(lists)} for {len(aimed)}")
    if lists.size and not (lists.min() >= 0 and lists.max() < view.shape[0]):
        raise BadRequest(
            f"lists hold rows 0 … {view.shape[0] - 1} of the units, came {lists.min()} … {lists.max()}; "
            "pass ids, not positions in a filtered vocabulary"
        )
