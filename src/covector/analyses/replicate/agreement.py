"""How far lists that we make agree with published ones, and which recipe that singles out.

A published label agrees when it stands among our labels of the same pole (as many as were published), its value when
it is within the tolerance of ours. A dyad's sign is nobody's choice: each list is compared with both signs and the
better one counts, for random directions too. A recipe's score is the share of published labels and values that agree.

Chance: random directions in place of the dyads, the same lists made of them by every recipe, and the best recipe chosen
anew in every draw. Two recipes are told apart by the lists on which one of them does better (sign test).

Source: `docs/replicate.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from covector.analyses.replicate.published import Entry, Published, PublishedList
from covector.analyses.replicate.recipes import Kitchen, Recipe
from covector.axes import Float, Int
from covector.linalg.chance import monte_carlo_p
from covector.linalg.chance.haar import haar_directions
from covector.linalg.chance.streams import generator

ALPHA = 0.05
# Random directions that stand in for dyads, and how often they are dealt out to the published lists.
RANDOM, DRAWS = 60, 999
# No published label, and a label that this vocabulary does not have.
NONE, UNKNOWN = -1, -2


@dataclass(frozen=True, eq=False)
class Asked:
    """Published lists as arrays: codes and values per pole (NaN: not told), how many of our labels count, sizes."""

    plus: Int[np.ndarray, "n m"]
    minus: Int[np.ndarray, "n m"]
    plus_value: Float[np.ndarray, "n m"]
    minus_value: Float[np.ndarray, "n m"]
    within: Int[np.ndarray, "n 2"]
    sizes: Float[np.ndarray, "n s"]
    codes: Int[np.ndarray, " token"]
    tolerance: float

    @property
    def k(self) -> int:
        """How many labels per pole have to be made."""
        return max(int(self.within.max(initial=1)), self.sizes.shape[1])

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Published labels per list."""
        return (self.plus != NONE).sum(axis=1) + (self.minus != NONE).sum(axis=1)

    @property
    def values(self) -> Int[np.ndarray, " n"]:
        """Published values per list."""
        told = (self.plus_value, self.minus_value, self.sizes)
        return np.sum([np.isfinite(v).sum(axis=1) for v in told], axis=0)


@dataclass(frozen=True, eq=False)
class Ours:
    """Ids and scores of our labels at both poles, strongest first: one row per published list, or [r, 1, k]."""

    top: Int[np.ndarray, "*batch k"]
    top_score: Float[np.ndarray, "*batch k"]
    bottom: Int[np.ndarray, "*batch k"]
    bottom_score: Float[np.ndarray, "*batch k"]


@dataclass(frozen=True, eq=False)
class Agreement:
    """Labels and values that agree, per list (or per draw and list), under the better sign; +1 or −1."""

    labels: Int[np.ndarray, "*batch n"]
    values: Int[np.ndarray, "*batch n"]
    sign: Int[np.ndarray, "*batch n"]


@dataclass(frozen=True, eq=False)
class Tried:
    """One recipe: agreement per list, its score with what random directions reach, and how it stands to the best.

    `labels` and `values` are shares (NaN where none were published), `chance` the 95 % level of the score for random
    directions, `p` the chance that any recipe reaches this score with random directions, `p_behind` the chance of being
    so often behind the best recipe if it were as good. `named`: beyond chance and not told apart from the best.
    """

    recipe: Recipe
    agreement: Agreement
    score: float
    labels: float
    values: float
    chance: float
    p: float
    p_behind: float
    named: bool


def asked(published: Published, labels: Sequence[str], lists: Sequence[PublishedList]) -> Asked:
    """The lists as arrays over a vocabulary: ids are compared where they are told, else texts."""
    by_text: dict[str, int] = {}
    strip = published.labels == "stripped"
    has_ids = any(e.id is not None for one in lists for e in (*one.plus, *one.minus))
    if has_ids:
        codes = np.arange(len(labels))
    else:
        codes = np.array([by_text.setdefault(t.strip() if strip else t, len(by_text)) for t in labels])

    def code(entry: Entry) -> int:
        if has_ids:
            return entry.id if entry.id is not None else UNKNOWN
        return by_text.get(entry.label or "", UNKNOWN)

    wide = max((len(pole) for one in lists for pole in (one.plus, one.minus)), default=0)
    plus, minus = (np.full((len(lists), wide), NONE) for _ in range(2))
    plus_value, minus_value = (np.full((len(lists), wide), np.nan) for _ in range(2))
    sizes = np.full((len(lists), max((len(one.sizes) for one in lists), default=0)), np.nan)
    within = np.zeros((len(lists), 2), dtype=np.int64)
    for i, one in enumerate(lists):
        for pole, ids, values in ((one.plus, plus, plus_value), (one.minus, minus, minus_value)):
            ids[i, : len(pole)] = [code(entry) for entry in pole]
            values[i, : len(pole)] = [np.nan if entry.value is None else entry.value for entry in pole]
        within[i] = [published.within or len(pole) if pole else 0 for pole in (one.plus, one.minus)]
        sizes[i, : len(one.sizes)] = one.sizes
    return Asked(plus, minus, plus_value, minus_value, within, sizes, codes, published.tolerance)


def agree(told: Asked, found: Ours) -> Agreement:
    """Agreement of every list with the poles of its direction, or of r directions given as [r, 1, k] with all lists."""
    top, bottom = told.codes[found.top], told.codes[found.bottom]
    by_sign = []
    for sign, high, low in ((1, (top, found.top_score), (bottom, found.bottom_score)),
                            (-1, (bottom, -found.bottom_score), (top, -found.top_score))):  # fmt: skip
        plus = _hits(told.plus, told.plus_value, told.within[:, 0], *high, told.tolerance)
        minus = _hits(told.minus, told.minus_value, told.within[:, 1], *low, told.tolerance)
        by_sign.append((plus[0] + minus[0], plus[1] + minus[1], sign))
    (labels, values, _), (labels_flipped, values_flipped, _) = by_sign
    flip = labels_flipped + values_flipped > labels + values
    sized = _sized(told, found)
    return Agreement(
        np.where(flip, labels_flipped, labels),
        np.where(flip, values_flipped, values) + sized,
        np.where(flip, -1, 1),
    )


def _hits(
    ids: np.ndarray, values: np.ndarray, within: np.ndarray, ours: np.ndarray, scores: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Published labels that ours hold, and published values that ours are near to: counts per list."""
    counts = np.arange(ours.shape[-1]) < within[:, None]
    same = (ids[..., :, None] == ours[..., None, :]) & counts[..., None, :] & (ids != NONE)[..., :, None]
    near = np.abs(values[..., :, None] - scores[..., None, :]) <= tolerance
    return same.any(axis=-1).sum(axis=-1), (same & near).any(axis=-1).sum(axis=-1)


def _sized(told: Asked, found: Ours) -> np.ndarray:
    """Published sizes that our largest projections, either pole, are near to."""
    n = told.sizes.shape[1]
    both = np.abs(np.concatenate([found.top_score, found.bottom_score], axis=-1))
    ours = -np.sort(-both, axis=-1)[..., :n]
    return (np.abs(told.sizes - ours) <= told.tolerance).sum(axis=-1)


def found_lists(kitchen: Kitchen, recipe: Recipe, lists: Sequence[PublishedList], k: int) -> Ours | None:
    """Both poles of every list's dyad by one recipe; None where the model has not all of the dyads."""
    rows = [kitchen.direction(recipe, one.site, one.dyad) for one in lists]
    if any(row is None for row in rows):
        return None
    every = np.array(rows)
    parts, order = [], []
    for lookup, places in kitchen.lookups(recipe):
        at = [i for i, one in enumerate(lists) if one.site in places]
        if at:
            parts.append(lookup.lists(every[at], k))
            order += at
    back = np.argsort(order)
    return Ours(*(np.concatenate([getattr(p, name) for p in parts])[back] for name in _POLES))


_POLES = ("top", "top_score", "bottom", "bottom_score")


def identify(
    kitchen: Kitchen, told: Asked, lists: Sequence[PublishedList], recipes: Sequence[Recipe], *, seed: int = 0,
    draws: int = DRAWS,
) -> list[Tried]:  # fmt: skip
    """Every recipe tried, the best first. Costs `RANDOM` rows of vocabulary products per recipe beside the dyads'."""
    made, nulls = [], []
    d = kitchen.model.spec.d_model
    random = haar_directions(RANDOM, d, seed)
    dealt = generator(seed, "recipes").integers(RANDOM, size=(draws, len(lists)))
    total = told.labels.sum() + told.values.sum()
    for recipe in recipes:
        found = found_lists(kitchen, recipe, lists, told.k)
        if found is None:
            continue
        made.append((recipe, agree(told, found)))
        nulls.append(_null(kitchen, recipe, told, lists, random, dealt) / total)
    if not made:
        return []
    best_null = np.max(nulls, axis=0)
    tallies = np.array([a.labels + a.values for _, a in made])
    scores = tallies.sum(axis=1) / total
    order = np.argsort(-scores, kind="stable")
    leader = tallies[order[0]]
    tried = []
    for i in order.tolist():
        recipe, agreement = made[i]
        p = float(monte_carlo_p(scores[i], best_null).value)
        behind = _behind(leader, tallies[i])
        tried.append(
            Tried(
                recipe,
                agreement,
                float(scores[i]),
                _share(agreement.labels, told.labels),
                _share(agreement.values, told.values),
                float(np.quantile(nulls[i], 1 - ALPHA)),
                p,
                behind,
                p < ALPHA and behind >= ALPHA,
            )
        )
    return tried


def _null(
    kitchen: Kitchen, recipe: Recipe, told: Asked, lists: Sequence[PublishedList], random: np.ndarray, dealt: np.ndarray
) -> Float[np.ndarray, " draws"]:
    """Labels and values that agree by chance, summed over lists, per deal of random directions."""
    counts = np.zeros((len(random), len(lists)))
    for lookup, places in kitchen.lookups(recipe):
        at = np.array([one.site in places for one in lists])
        if at.any():
            found = lookup.lists(random, told.k)
            agreement = agree(told, Ours(*(getattr(found, name)[:, None] for name in _POLES)))
            counts[:, at] = (agreement.labels + agreement.values)[:, at]
    return counts[dealt, np.arange(len(lists))].sum(axis=1)


def _behind(leader: Int[np.ndarray, " n"], other: Int[np.ndarray, " n"]) -> float:
    """Sign test: chance that a recipe as good as the leader is behind it on so many of the lists that differ."""
    behind, ahead = int((leader > other).sum()), int((leader < other).sum())
    return float(stats.binom.sf(behind - 1, behind + ahead, 0.5)) if behind + ahead else 1.0


def _share(hits: np.ndarray, of: np.ndarray) -> float:
    return float(hits.sum() / of.sum()) if of.sum() else float("nan")
