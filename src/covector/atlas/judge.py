"""Token lists of an atlas judged: coherence, held-out detection, intruders, spelling, stability, and rotated bases.

What a list scores is settled in its unit, and so is the comparison with random bases of the same head; the comparison
with random directions needs the null draws and is made when the parts are put together.

Source: `docs/theory/scores.md`; §4.0 of the theory page.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.atlas.plan import Against, Options
from covector.axes import Float
from covector.linalg.chance.laws import Hyperplane
from covector.linalg.chance.lists import (
    ListNull,
    basis_lists,
    each_basis_lists,
    haar_lists,
    left_out,
    matched_lists,
    p_among,
    z_among,
)
from covector.linalg.dictionary import Dictionary, Lists
from covector.linalg.lexical import lexical
from covector.linalg.list_scores import ListScores, list_scores
from covector.linalg.maps import Map
from covector.linalg.stability import DRAWS, ONE_PERCENT, stability
from covector.linalg.svd import SVD
from covector.model.opened import Model

# Draws of the stability of a matrix that is decomposed whole; a head's costs a hundredth.
DENSE_DRAWS = 3
# Scores that are held against every null, and what each is called among the scores of a list.
SCORES = {"coherence": "coherence", "heldout": "auc", "intruder": "intruder", "lexical": "lexical"}
# What is pooled over the atlas (equation 19): of every side of a head what rotated bases score, each in deviations of
# the others, and what its own directions score in deviations of as many.
POOL = {score: f"rotated.{score}" for score in SCORES}
BESIDE = {score: f"beside.{score}" for score in SCORES}


@dataclass(frozen=True)
class Judged:
    """Directions of one side, unit rows: the first `kept` are scored; `whole`: the rows are a basis of a subspace."""

    rows: Float[np.ndarray, "r d"]
    kept: int
    whole: bool


def judges(model: Model, against: Against) -> Dictionary | None:
    """The dictionary that lists are judged by, or None where the basis is too small for lists."""
    found = against.judges(model)
    return found if min(found.scored, found.first, found.later) >= 3 else None


def judged_lists(
    model: Model, against: Against, sides: Sequence[Judged], lists: Lists, options: Options
) -> dict[str, np.ndarray]:
    """Scores of the kept rows of these sides, one after the other, with p_svd of those that are whole.

    `lists` are those of the kept rows, by the dictionary of this basis; it must be large enough (`judges`). The arrays
    of `POOL` hold what the rotated bases score: not one per row.
    """
    chosen, labels = against.judges(model), model.bases[against.basis].labels
    directions = np.concatenate([side.rows[: side.kept] for side in sides])
    found = list_scores(directions, lists, chosen, seed=options.seed, intruders=True)
    within = _within(chosen, [side.rows if side.whole else None for side in sides], options)
    observed = _compared(found, chosen, labels)
    rotated = [None if null is None else _compared(null.scores, chosen, labels) for null in within]
    made = {name: observed[score] for name, score in SCORES.items()} | {
        "score_pole": 1.0 - 2.0 * found.pole,
        "heldout_low": found.low,
        "heldout_high": found.high,
        "whole": found.whole,
        "carried": found.carries / found.whole,
    }
    ends = np.cumsum([side.kept for side in sides])[:-1]
    for name, score in SCORES.items():
        nulls = [np.zeros(0) if scores is None else scores[score] for scores in rotated]
        sides_of = list(zip(np.split(observed[score], ends), nulls, strict=True))
        made[f"p_{name}_svd"] = np.concatenate([p_within(score, own, null) for own, null in sides_of])
        made[f"z_{name}_svd"] = np.concatenate([z_within(own, null) for own, null in sides_of])
        made[BESIDE[name]] = np.concatenate([left_out(null, own) for own, null in sides_of])
        made[POOL[name]] = np.concatenate([left_out(null) for null in nulls])
    return made


COLUMNS = (
    "score_pole", *SCORES, "heldout_low", "heldout_high", "whole", "carried",
    *(f"{what}_{score}_svd" for score in SCORES for what in ("p", "z")),
)  # fmt: skip


def _compared(found: ListScores, chosen: Dictionary, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """The scores that are held against nulls."""
    spelt = lexical(found.members[:, : chosen.scored], labels)
    return {score: spelt if score == "lexical" else getattr(found, score) for score in SCORES.values()}


def p_within(score: str, observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """p of every value among the finite draws of a null; NaN where it is, and where there is no draw."""
    p, defined, null = np.full(len(observed), np.nan), np.isfinite(observed), null[np.isfinite(null)]
    if len(null) and defined.any():
        p[defined] = p_among(score, observed[defined], null)
    return p


def z_within(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Every value in standard deviations of the finite draws above their mean; NaN where these are alike, or none."""
    null = null[np.isfinite(null)]
    if not len(null) or not np.ptp(null) > 0:
        return np.full(len(observed), np.nan)
    return np.atleast_1d(z_among(observed, null))


def _within(chosen: Dictionary, bases: Sequence[np.ndarray | None], options: Options) -> list[ListNull | None]:
    """The null of rotated bases of each side that is whole; a single rotation of all of them is drawn together."""
    whole = [basis for basis in bases if basis is not None]
    if options.rotations == 1:
        found = iter(each_basis_lists(chosen, whole, seed=options.seed, intruders=True))
    else:
        draws = options.rotations
        found = (basis_lists(chosen, b, draws=draws * len(b), seed=options.seed, intruders=True) for b in whole)
    return [None if basis is None else next(found) for basis in bases]


def stability_of(m: Map, found: SVD, place: Sequence[int], options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Stability (read, written) of every dyad under noise of one percent of each stored array."""
    thin = m.shape[0] == m.shape[1] and hasattr(m, "A")
    moved = stability(m, found, delta=ONE_PERCENT, draws=DRAWS if thin else DENSE_DRAWS, seed=(options.seed, *place))
    return moved.read, moved.write


def null_scores(model: Model, against: Against, options: Options) -> dict[str, np.ndarray]:
    """What lists of random directions score, by law and score (``haar.coherence``), each sorted."""
    chosen = judges(model, against)
    if chosen is None:
        return {}
    law, drawn = Hyperplane() if against.centred else None, {"draws": options.draws, "seed": options.seed}
    labels, made = model.bases[against.basis].labels, {}
    haar = haar_lists(chosen, **drawn, law=law, intruders=True).scores
    made["haar.whole"] = haar.whole
    made |= {f"haar.{score}": values for score, values in _compared(haar, chosen, labels).items()}
    del haar
    cov = matched_lists(chosen, **drawn, intruders=True).scores
    made |= {f"cov.{score}": values for score, values in _compared(cov, chosen, labels).items()}
    return {name: np.sort(values) for name, values in made.items()}
