"""What the lists of directions score, both poles considered and the stronger one reported.

This one function scores the directions under test and those of every null, so that whatever is selected in the data
(the pole) is selected in the null as well.

Source: `docs/theory/scores.md`, equations 1–8.
"""

from dataclasses import dataclass, fields

import numpy as np

from covector.axes import Float, Int
from covector.errors import SpaceMismatch
from covector.linalg.chance.streams import Seed
from covector.linalg.coherence import coherences
from covector.linalg.detection import heldout, intruder, matched
from covector.linalg.dictionary import Dictionary, Lists
from covector.linalg.judging import Aimed


@dataclass(frozen=True, eq=False)
class ListScores:
    """Scores of r directions, one number each unless said otherwise.

    pole       0 top, 1 bottom: where the coherence beyond the direction is larger
    members    ids of that pole's list [r, k]
    coherence  mean pairwise cosine of its scored members beyond the direction
    by_pole    the same of either pole [r, 2]
    auc, low, high  held-out detection of its later ranks against matched distractors, with its 95 % interval
    whole_pole, whole  mean pairwise cosine with the direction left in, at the pole where *that* is larger
    carries    mean of c_s·c_t at that pole: what the direction itself makes its list share
    intruder   share of strangers found among the scored members of `members`; NaN where they were not asked for
    """

    pole: Int[np.ndarray, " r"]
    members: Int[np.ndarray, "r k"]
    coherence: Float[np.ndarray, " r"]
    by_pole: Float[np.ndarray, "r 2"]
    auc: Float[np.ndarray, " r"]
    low: Float[np.ndarray, " r"]
    high: Float[np.ndarray, " r"]
    whole_pole: Int[np.ndarray, " r"]
    whole: Float[np.ndarray, " r"]
    carries: Float[np.ndarray, " r"]
    intruder: Float[np.ndarray, " r"]

    @classmethod
    def joined(cls, parts: "list[ListScores]") -> "ListScores":
        """Parts one after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def part(self, rows: slice) -> "ListScores":
        """Those of some of the directions."""
        return ListScores(*(getattr(self, field.name)[rows] for field in fields(self)))


def list_scores(
    directions: Float[np.ndarray, "r d"],
    lists: Lists,
    dictionary: Dictionary,
    *,
    seed: Seed = 0,
    intruders: bool = False,
) -> ListScores:
    """Coherence and held-out detection of each direction's lists; `seed` chooses distractors, strangers and groups.

    What a direction scores does not depend on the others (but for rounding). Costs about 12·r·k·d multiplications for
    lists of k, and 14·r·d² for a whitened metric; with `intruders` two thirds more.
    Raises SpaceMismatch when lists are not of the dictionary's sizes, BadRequest where it is too small.
    """
    dictionary.check()
    view, aimed = dictionary.view, dictionary.view.aim_of(directions)
    scored, first = dictionary.scored, dictionary.first
    if lists.top.shape[1] != dictionary.length or lists.top.shape != lists.bottom.shape:
        raise SpaceMismatch(
            f"expected lists of {dictionary.length} at both poles, came {lists.top.shape}, "
            f"{lists.bottom.shape}; take them from the dictionary"
        )
    top = coherences(aimed, lists.top[:, :scored], view)
    bottom = coherences(aimed, lists.bottom[:, :scored], view)
    by_pole = np.stack([top.beyond, bottom.beyond], axis=1)
    pole = np.argmax(np.where(np.isnan(by_pole), -np.inf, by_pole), axis=1)
    members = np.where(pole[:, None] == 0, lists.top, lists.bottom)
    later = members[:, first : first + dictionary.later]
    distractors = matched(later, members, dictionary.covariate, dictionary.keep, seed=seed)
    held = heldout(aimed, members[:, :first], later, distractors, view)
    whole_pole = np.where(top.whole >= bottom.whole, 0, 1)
    return ListScores(
        pole=pole,
        members=members,
        coherence=by_pole[np.arange(len(pole)), pole],
        by_pole=by_pole,
        auc=held.auc,
        low=held.low,
        high=held.high,
        whole_pole=whole_pole,
        whole=np.maximum(top.whole, bottom.whole),
        carries=np.where(whole_pole == 0, top.carries, bottom.carries),
        intruder=_found(aimed, members, dictionary, seed) if intruders else np.full(len(pole), np.nan),
    )


def _found(aimed: Aimed, members: np.ndarray, dictionary: Dictionary, seed: Seed) -> Float[np.ndarray, " r"]:
    """Share of strangers found among the scored members; strangers have numbers of their own."""
    scored, apart = members[:, : dictionary.scored], (seed, 1) if isinstance(seed, int) else (*seed, 1)
    strangers = matched(scored[:, : dictionary.strangers], members, dictionary.covariate, dictionary.keep, seed=apart)
    return intruder(aimed, scored, strangers, dictionary.view, seed=seed).accuracy
