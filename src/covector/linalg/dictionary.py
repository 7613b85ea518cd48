"""A dictionary: unit vectors that lists are drawn from, who may be listed, and in which metric lists are judged.

Lists are drawn by cosine. They are judged, by default, after whitening: in a trained vocabulary the few directions of
largest variance (frequency, spelling, how far a token was trained) make most pairs alike, and lists of rarely seen
fragments come out as the most coherent of all. Whitening leaves what is particular to a pair. With û a unit vector, μ
and Σ mean and (shrunk) covariance of the kept ones, w = (û − μ)Σ^(−½), and the cosine that drew the list is
v·û = w·(Σ^½ v) + v·μ: in the judging metric the direction to be taken out is Σ^½ v, exactly.

Source: `docs/theory/scores.md`, equation 3; §1.6 of the theory page (whitened metric).
"""

from dataclasses import dataclass, replace

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.judging import Judging, judging
from covector.linalg.norms import lengths
from covector.linalg.topk import Poles, poles

# Coherence is that of the first 20 members; the first 20 must tell the next 40 (F10(iv)).
SCORED, FIRST, LATER = 20, 20, 40
# A concept has fewer members in a smaller vocabulary: of 1,700 words about 30 name things to carry, and 60 ranks reach
# far beyond. So held-out detection goes no further than ¾√n ranks (60 from n = 6,400 on), coherence than n/30.
REACH, SCORED_SHARE = 0.75, 1 / 30
# Members of an intruder's group: the 20 scored make five of them.
GROUP = 4
# Lists shorter than this make coherence noise: three members are three pairs.
SHORTEST = 3
# Kept vectors from which `list_sizes` gives that many.
FEWEST = 144
# Places kept for vectors that no list may hold, where nearest ones are asked for among all: a direction hardly ever has
# more of them, and is looked up again where it does.
SPARE = 16
MEASURES = ("whitened", "centred", "raw")


@dataclass(frozen=True, eq=False)
class Lists:
    """Ids of the members of each direction's list at both poles, best first; k = `Dictionary.length`."""

    top: Int[np.ndarray, "r k"]
    bottom: Int[np.ndarray, "r k"]


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Unit vectors [n, d], who may be listed, what lists are judged by, and list sizes. Make one with `dictionary`.

    vectors    what directions are compared with, of any lengths: the table that was given, not a copy
    lengths    Euclidean lengths of the kept ones, 1 outside `keep`: those rows are never looked at
    view       the same labels in the metric of `measure`, made when they are asked for
    covariate  what distractors match
    scored     how many members coherence, intruders and likeness of strings look at
    first, later  how many members held-out detection learns from, and how many after them it must find
    """

    vectors: Float[np.ndarray, "n d"]
    lengths: Float[np.ndarray, " n"]
    view: Judging
    keep: Bool[np.ndarray, " n"]
    covariate: Float[np.ndarray, " n"]
    scored: int
    first: int
    later: int
    measure: str

    @property
    def strangers(self) -> int:
        """Groups that the scored members are dealt into for intruder detection, a stranger in each."""
        return max(1, self.scored // GROUP)

    @property
    def guessed(self) -> float:
        """Share of the strangers that guessing finds."""
        return 1 / (self.scored // self.strangers + 1)

    @property
    def length(self) -> int:
        """Members of a list that any score needs."""
        return max(self.scored, self.first + self.later)

    def lists(self, directions: Float[np.ndarray, "r d"]) -> Lists:
        """The lists of both poles, by cosine; ids ascending among equals. Raises BadRequest for null directions."""
        keep = None if self.keep.all() else self.keep
        found = poles(directions, self.vectors, self.length, keep=keep, lengths=self.lengths)
        return Lists(found.top, found.bottom)

    def listed_among(self, others: Bool[np.ndarray, " n"]) -> int:
        """How many of the nearest of `others`, who are all kept ones and more, nearly always hold a whole list."""
        return self.length + min(SPARE, int(np.count_nonzero(others & ~self.keep)))

    def lists_among(self, found: Poles, directions: Float[np.ndarray, "r d"]) -> Lists:
        """The same as `lists(directions)`, taken from what was found among others too (`listed_among`) by cosine.

        Rows of which too few are left when the others are taken out are looked up again.
        """
        top, bottom = (self._kept_first(ids) for ids in (found.top, found.bottom))
        short = np.flatnonzero(~self.keep[np.stack([top, bottom])].all(axis=(0, 2)))
        if short.size:
            again = self.lists(directions[short])
            top[short], bottom[short] = again.top, again.bottom
        return Lists(top, bottom)

    def _kept_first(self, ids: Int[np.ndarray, "r m"]) -> Int[np.ndarray, "r k"]:
        order = np.argsort(~self.keep[ids], axis=1, kind="stable")[:, : self.length]
        return np.take_along_axis(ids, order, axis=1)

    def seen(self, directions: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "r d"]:
        """The directions in the metric of `judged`, where they are what made the lists alike."""
        return self.view.pulled(directions)

    @property
    def units(self) -> Float[np.ndarray, "n d"]:
        """The kept vectors at length one, zero rows for the others: a new array as large as the table."""
        made = np.zeros(self.vectors.shape, self.vectors.dtype)
        made[self.keep] = self.vectors[self.keep]
        made /= self.lengths[:, None].astype(made.dtype)
        return made

    @property
    def judged(self) -> Float[np.ndarray, "n d"]:
        """The kept vectors in the metric of `measure` (any lengths): a new array as large as the table."""
        return self.view.whole()

    @property
    def pull(self) -> Float[np.ndarray, "d d"] | None:
        """[d, d], takes a direction to the metric of `judged`; None where that is the same space. A new array."""
        return None if self.view.axes is None else self.seen(np.eye(self.vectors.shape[1]))

    def second_moment(self) -> Float[np.ndarray, "d d"]:
        """EᵀE/n of the kept unit vectors, not centred; float64 in Fortran order, a new array."""
        return replace(self.view, mean=None).moment()

    def check(self) -> None:
        """Raise BadRequest where the dictionary is too small for lists to be judged."""
        if min(self.scored, self.first, self.later) < SHORTEST:
            raise BadRequest(
                f"lists of a dictionary of {FEWEST} vectors or more can be judged, this one keeps "
                f"{int(self.keep.sum())}; read single cosines instead"
            )


def dictionary(
    vectors: Float[np.ndarray, "n d"],
    *,
    keep: Bool[np.ndarray, " n"] | None = None,
    covariate: Float[np.ndarray, " n"] | Int[np.ndarray, " n"] | None = None,
    measure: str = "whitened",
    sizes: tuple[int, int, int] | None = None,
) -> Dictionary:
    """A dictionary of these vectors, compared at length one, in their own precision (float32 at least).

    `measure` is the metric of coherence and detection: ``whitened`` (the head of this file says why), ``centred`` or
    ``raw``. Tokens that were hardly trained lie close together and make many random lists coherent: leave them out by
    `keep`. `covariate` is what distractors match: frequencies, or ids where they fall with frequency; the length of a
    vector where nothing is given. `sizes` are (scored, first, later), by default those of `list_sizes`; null rows are
    never kept. Costs 2·n·d² multiplications; holds one d × d array in float64 (three while it is made) and the table
    itself, no copy of it.
    Raises BadRequest for another measure.
    """
    if measure not in MEASURES:
        raise BadRequest(f"expected measure {', '.join(MEASURES)}, came {measure!r}")
    vectors = vectors.astype(np.result_type(vectors.dtype, np.float32), copy=False)
    size = lengths(vectors)
    kept = np.isfinite(size) & (size > 0) if keep is None else keep & np.isfinite(size) & (size > 0)
    long = np.where(kept, size, 1.0)
    kept.flags.writeable = long.flags.writeable = False
    view = judging(vectors, np.where(kept, 1 / long, 0.0), measure)
    _ = view.squares  # found here, before threads ask for them
    scored, first, later = list_sizes(int(kept.sum())) if sizes is None else sizes
    matched = size if covariate is None else covariate.astype(np.float64)
    return Dictionary(vectors, long, view, kept, matched, scored, first, later, measure)


def list_sizes(n: int) -> tuple[int, int, int]:
    """(scored, first, later) for a dictionary of n vectors: 20, 20 and 40, and less below 6,400."""
    reach = int(min(FIRST + LATER, REACH * n**0.5))
    return int(min(SCORED, SCORED_SHARE * n)), reach // 3, reach - reach // 3
