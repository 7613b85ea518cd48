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
from covector.linalg.chance.lists import ListNull, basis_lists, each_basis_lists, haar_lists, matched_lists
from covector.linalg.dictionary import Dictionary, Lists
from covector.linalg.lexical import lexical
from covector.linalg.list_scores import list_scores
from covector.linalg.maps import Map
from covector.linalg.stability import DRAWS, ONE_PERCENT, stability
from covector.linalg.svd import SVD
from covector.model.opened import Model

# Draws of the stability of a matrix that is decomposed whole; a head's costs a hundredth.
DENSE_DRAWS = 3
# Of every side of a head the coherence of rotated bases, in their own standard deviations: pooled over the atlas.
POOL = "rotated.z"


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

    `lists` are those of the kept rows, by the dictionary of this basis; it must be large enough (`judges`). `POOL`
    holds the scores of the rotated bases: not one per row.
    """
    chosen, labels = against.judges(model), model.bases[against.basis].labels
    directions = np.concatenate([side.rows[: side.kept] for side in sides])
    found = list_scores(directions, lists, chosen, seed=options.seed, intruders=True)
    within = _within(chosen, [side.rows if side.whole else None for side in sides], options)
    ends = np.cumsum([side.kept for side in sides])
    by_side = list(zip(within, np.split(found.coherence, ends[:-1]), strict=True))
    return {
        "score_pole": 1.0 - 2.0 * found.pole,
        "coherence": found.coherence,
        "p_coherence_svd": np.concatenate([_nan(c) if w is None else w.p("coherence", c) for w, c in by_side]),
        "z_coherence_svd": np.concatenate([_nan(c) if w is None else w.z("coherence", c) for w, c in by_side]),
        "heldout": found.auc,
        "heldout_low": found.low,
        "heldout_high": found.high,
        "intruder": found.intruder,
        "lexical": lexical(found.members[:, : chosen.scored], labels),
        "whole": found.whole,
        "carried": found.carries / found.whole,
        POOL: np.concatenate([np.zeros(0), *(w.left_out("coherence") for w in within if w is not None)]),
    }


COLUMNS = (
    "score_pole", "coherence", "p_coherence_svd", "z_coherence_svd", "heldout", "heldout_low", "heldout_high",
    "intruder", "lexical", "whole", "carried",
)  # fmt: skip


def _within(chosen: Dictionary, bases: Sequence[np.ndarray | None], options: Options) -> list[ListNull | None]:
    """The null of rotated bases of each side that is whole; a single rotation of all of them is drawn together."""
    whole = [basis for basis in bases if basis is not None]
    if options.rotations == 1:
        found = iter(each_basis_lists(chosen, whole, seed=options.seed))
    else:
        found = (basis_lists(chosen, b, draws=options.rotations * len(b), seed=options.seed) for b in whole)
    return [None if basis is None else next(found) for basis in bases]


def _nan(of: np.ndarray) -> np.ndarray:
    return np.full(len(of), np.nan)


def stability_of(m: Map, found: SVD, place: Sequence[int], options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Stability (read, written) of every dyad under noise of one percent of each stored array."""
    thin = m.shape[0] == m.shape[1] and hasattr(m, "A")
    moved = stability(m, found, delta=ONE_PERCENT, draws=DRAWS if thin else DENSE_DRAWS, seed=(options.seed, *place))
    return moved.read, moved.write


def null_scores(model: Model, against: Against, options: Options) -> dict[str, np.ndarray]:
    """What lists of random directions score, by law and score (``haar.coherence``), each sorted.

    Of directions of the basis' own covariance coherence alone is compared, so no other score of them is kept.
    """
    chosen = judges(model, against)
    if chosen is None:
        return {}
    law = Hyperplane() if against.centred else None
    haar = haar_lists(chosen, draws=options.draws, seed=options.seed, law=law, intruders=True).scores
    made = {
        "haar.coherence": haar.coherence,
        "haar.whole": haar.whole,
        "haar.auc": haar.auc,
        "haar.intruder": haar.intruder,
        "haar.lexical": lexical(haar.members[:, : chosen.scored], model.bases[against.basis].labels),
        "cov.coherence": matched_lists(chosen, draws=options.draws, seed=options.seed).scores.coherence,
    }
    return {name: np.sort(values) for name, values in made.items()}
