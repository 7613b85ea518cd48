"""Detection: can the rest of a list, or a stranger in it, be told by what its first members share?

Held-out: the centroid of the first members must rank later members above distractors. Intruder: of k members and one
stranger the stranger must be the least similar. In both the direction that picked the list is taken out of every
vector first, so that being picked by it is no help; strangers and distractors are matched on a covariate (frequency,
rank in the vocabulary, or length), so that being common is none either.

Source: `docs/theory/scores.md`, equations 5–8; DeLong, DeLong and Clarke-Pearson 1988; Newcombe 2006 (method 5);
Chang et al. 2009 for intruders; F10(iii) and (iv) of the theory page.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.coherence import aimed_at, beyond_direction, gathered
from covector.linalg.judging import Aimed, View, view_of

# Matches are taken from this share of the vocabulary around a token's place in the order of the covariate, and from
# no fewer than this many places.
WINDOW_SHARE, WINDOW_LEAST = 0.02, 50
# Tries for a match that is not in the list; a list is a small part of a window, so a handful is needed.
TRIES = 32
# Rows whose distractors are looked for together: 4096 × 40 × 100 comparisons are 16 MB.
MATCH_ROWS = 4096


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Area under the ROC curve of later members against distractors, one per direction, with its interval."""

    auc: Float[np.ndarray, " r"]
    low: Float[np.ndarray, " r"]
    high: Float[np.ndarray, " r"]


@dataclass(frozen=True, eq=False)
class Intruders:
    """Share of `trials` intruders found, one per direction; guessing finds `chance` = 1/(k + 1) of them."""

    accuracy: Float[np.ndarray, " r"]
    chance: float
    trials: int


def heldout(
    directions: Float[np.ndarray, "r d"] | Aimed,
    first: Int[np.ndarray, "r k"],
    later: Int[np.ndarray, "r h"],
    distractors: Int[np.ndarray, "r m"],
    units: Float[np.ndarray, "n d"] | View,
    *,
    level: float = 0.95,
) -> HeldOut:
    """AUC with which the centroid of `first` (ranks 1–20) tells `later` (ranks 21–60) from `distractors`.

    The direction is taken out of every vector and the rest brought to length one. Returns the AUC (½ is chance; ties
    count half) and its two-sided interval at `level`: DeLong on the logit scale, Newcombe's method 5 where the two
    are perfectly separated. The interval takes items as independent given the centroid; near-duplicates in a list
    make it too narrow, which is why the null of the AUC itself is drawn too (`chance.lists`).
    NaN where `first` has nothing left. Raises what `coherence` raises.
    """
    view, h = view_of(units), later.shape[1]
    auc, spread = (np.full(len(first), np.nan) for _ in range(2))
    told = np.concatenate([later, distractors], axis=1)
    for some, aimed in aimed_at(directions, view):
        sums, left = np.zeros((len(aimed), view.shape[1])), np.zeros(len(aimed), bool)
        for rows, listed in gathered(aimed, first[some], view):
            sums[rows], left[rows] = listed.rest_sum(), listed.usable.any(axis=1)
        # The centroid is orthogonal to the direction, so a rest's cosine with it needs no rest.
        centroid = view.back(beyond_direction(sums, aimed, view))
        score = np.empty((len(aimed), told.shape[1]))
        for rows, listed in gathered(aimed, told[some], view):
            score[rows] = np.matmul(listed.vectors, centroid[rows][:, :, None])[:, :, 0] * listed.inverse
        area, variance = _area(score[:, :h], score[:, h:])
        auc[some], spread[some] = np.where(left, area, np.nan), variance
    low, high = _interval(auc, spread, (h, distractors.shape[1]), level)
    return HeldOut(auc, low, high)


def intruder(
    directions: Float[np.ndarray, "r d"] | Aimed,
    lists: Int[np.ndarray, "r k"],
    strangers: Int[np.ndarray, "r t"],
    units: Float[np.ndarray, "n d"] | View,
    *,
    seed: Seed,
) -> Intruders:
    """Whether the least similar of a group of members and one stranger is the stranger, over `t` disjoint groups.

    Each list is dealt into t groups of ⌊k/t⌋ members (the same deal for every list, from `seed`), and each
    group gets one of the strangers. Similarity is the mean cosine with the rest of the group, the direction taken
    out; a tie counts as not found. Evenly spread vectors give chance 1/(⌊k/t⌋ + 1); lists of random directions of a
    trained vocabulary give more, and trials that hang together, so a p is taken among such lists (`chance.lists`).
    Raises BadRequest where groups would have fewer than two members.
    """
    r, t = strangers.shape
    size = lists.shape[1] // max(t, 1)
    if t < 1 or size < 2:
        raise BadRequest(f"a group needs two members, came {lists.shape[1]} for {t} strangers; ask for fewer strangers")
    deal = generator(seed, "intruders").permutation(lists.shape[1])[: t * size]
    groups = lists[:, deal].reshape(r, t, size)
    together = np.concatenate([groups, strangers[:, :, None]], axis=2).reshape(r, t * (size + 1))
    view, found = view_of(units), np.zeros(r)
    for some, aimed in aimed_at(directions, view):
        likeness = _likeness(aimed, together[some], view, t)
        found[some] = (likeness[:, :, -1] < likeness[:, :, :-1].min(axis=2)).sum(axis=1)
    return Intruders(found / t, 1 / (size + 1), t)


def _likeness(aimed: Aimed, lists: np.ndarray, view: View, groups: int) -> Float[np.ndarray, "b t m"]:
    """Product of every unit rest with the sum of the others of its group; lists are groups one after the other."""
    found = np.empty((len(lists), groups, lists.shape[1] // groups))
    for group, ids in enumerate(np.split(lists, groups, axis=1)):
        sums = np.zeros((len(lists), view.shape[1]))
        for rows, listed in gathered(aimed, ids, view):
            sums[rows] = listed.rest_sum()
        total = view.back(beyond_direction(sums, aimed, view))
        for rows, listed in gathered(aimed, ids, view):
            products = np.matmul(listed.vectors, total[rows][:, :, None])[:, :, 0] * listed.inverse
            found[rows, group] = products - listed.usable
    return found


def matched(
    lists: Int[np.ndarray, "r h"],
    avoid: Int[np.ndarray, "r a"],
    covariate: Float[np.ndarray, " n"],
    keep: Bool[np.ndarray, " n"],
    *,
    seed: Seed,
) -> Int[np.ndarray, "r h"]:
    """For every listed id another kept one with nearly the same covariate, that is neither in `avoid` nor repeated.

    A match stands within 2 % of the vocabulary (50 places at least) of the token in the order of the covariate. The
    answer for a list depends on that list and the seed alone. Where 32 tries do not find one (vocabularies hardly
    larger than a list) the last try stands, which can only make detection look worse.
    Raises BadRequest if a listed id is not kept, or fewer than four are.
    """
    ids = np.flatnonzero(keep)
    if len(ids) < 4 or not keep[lists].all():
        raise BadRequest(f"matches are drawn among kept ids, at least four, came {len(ids)}; keep the listed ids too")
    order = ids[np.argsort(covariate[ids], kind="stable")]
    place = np.empty(len(keep), np.int64)
    place[order] = np.arange(len(order))
    reach = int(np.clip(WINDOW_SHARE * len(ids), min(WINDOW_LEAST, len(ids) // 2), len(ids) // 2))
    rng = generator(seed, "matched")
    step = rng.integers(1, reach + 1, (TRIES, lists.shape[1])) * rng.choice([-1, 1], (TRIES, lists.shape[1]))
    parts = [
        _matched_block(place[lists[i : i + MATCH_ROWS]], avoid[i : i + MATCH_ROWS], order, step)
        for i in range(0, len(lists), MATCH_ROWS)
    ]
    return np.concatenate([np.zeros((0, lists.shape[1]), np.int64), *parts])


def _matched_block(place: np.ndarray, avoid: np.ndarray, order: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Column by column, so that later matches of a row differ from its earlier ones."""
    r, h = place.shape
    found = np.full((r, h), -1, np.int64)
    for column in range(h):
        open_rows = np.arange(r)
        for offset in step[:, column]:
            near = place[open_rows, column] + offset
            near = np.where(near < 0, -near, near)  # reflected at both ends
            near = np.where(near >= len(order), 2 * (len(order) - 1) - near, near)
            tried = order[near]
            found[open_rows, column] = tried
            taken = (tried[:, None] == avoid[open_rows]).any(axis=1)
            taken |= (tried[:, None] == found[open_rows, :column]).any(axis=1)
            open_rows = open_rows[taken]
            if not open_rows.size:
                break
    return found


def _area(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC and its DeLong variance per row, from scores [b, h] and [b, m]."""
    wins = np.sign(positive[:, :, None] - negative[:, None, :]) / 2 + 0.5
    by_positive, by_negative = wins.mean(axis=2), wins.mean(axis=1)
    h, m = positive.shape[1], negative.shape[1]
    variance = by_positive.var(axis=1, ddof=1) / h + by_negative.var(axis=1, ddof=1) / m
    return wins.sum(axis=(1, 2)) / (h * m), variance  # halves add up without rounding: equal areas are equal


def _interval(
    auc: np.ndarray, variance: np.ndarray, sizes: tuple[int, int], level: float
) -> tuple[np.ndarray, np.ndarray]:
    z = float(stats.norm.ppf(0.5 + level / 2))
    inner = (auc > 0) & (auc < 1) & (variance > 0)
    safe = np.where(inner, auc, 0.5)
    logit, width = np.log(safe / (1 - safe)), z * np.sqrt(variance) / (safe * (1 - safe))
    low, high = (1 / (1 + np.exp(-(logit + sign * width))) for sign in (-1, 1))
    edge = _separated(sizes, z)
    low = np.where(inner, low, np.where(auc == 1, edge, np.where(auc == 0, 0.0, np.nan)))
    high = np.where(inner, high, np.where(auc == 1, 1.0, np.where(auc == 0, 1 - edge, np.nan)))
    return low, high


def _separated(sizes: tuple[int, int], z: float) -> float:
    """Lower end of Newcombe's interval for an AUC of 1: where 1 − θ equals z standard errors at θ."""
    h, m = sizes
    extra = (h + m) / 2 - 1

    def excess(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (h * m)
        return (1 - theta) - z * np.sqrt(variance)

    low, high = 0.0, 1.0
    for _ in range(60):  # halving until a double is used up
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low
