"""Null distributions of what a token list scores: the same scoring, on directions that mean nothing.

p_dir   lists of Haar directions                          once per dictionary
p_cov   lists of directions of its second moment          once per dictionary
p_svd   lists of random orthonormal bases of a subspace   once per subspace, the directions of all bases pooled

Draws depend on the seed and their place in the sequence alone, whoever shares the work. Of each draw only its list and
scores are kept.

Source: §4.0 and decision 6; `docs/theory/scores.md`, equations 8 and 11–13.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.chance.estimate import Number, monte_carlo_p
from covector.linalg.chance.haar import ORTHONORMAL_WITHIN, draw_frames, unit_rows
from covector.linalg.chance.laws import Haar, Law, Matched, covariance_root, root_of_moment
from covector.linalg.chance.pareto import tail_p
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.dictionary import Dictionary, Lists
from covector.linalg.list_scores import ListScores, list_scores
from covector.linalg.topk import poles

# Draws that share a generator; results depend on it, so it never varies.
BLOCK = 256
DRAWS = 10_000
# Scores of a handful of values, or mostly of one: a tail fitted between two of them would be of nothing, so p is
# counted alone.
COUNTED = ("intruder", "lexical")
# Draws of which the others vary by less than this share of all are the only ones that differ.
ALIKE = 1e-12


@dataclass(frozen=True, eq=False)
class ListNull:
    """Scores of null directions, B draws; `groups[b]` is the random basis that draw b belongs to (p_svd), else b."""

    question: str
    scores: ListScores
    groups: Int[np.ndarray, " draws"]

    @property
    def draws(self) -> int:
        """How many directions were drawn."""
        return len(self.groups)

    def p(self, score: str, observed: Number) -> Number:
        """Probability that a null direction scores this much (`coherence`, `whole`, `auc`, `intruder`): `p_among`."""
        return p_among(score, observed, self._of(score))

    def z(self, score: str, observed: Number) -> Number:
        """Effect size: how many standard deviations of the null above its mean."""
        return z_among(observed, self._of(score))

    def p_of_mean(self, score: str, observed: Float[np.ndarray, " r"]) -> float:
        """Probability that the mean over a whole random basis is as large; NaN unless the null is one of bases."""
        number, null = np.bincount(self.groups), self._of(score)
        if number.max() < 2 or len(observed) != number.max() or not np.isfinite(null).all():
            return float("nan")
        return float(tail_p(observed.mean(), np.bincount(self.groups, null) / number))

    def _of(self, score: str) -> Float[np.ndarray, " draws"]:
        if score not in ("coherence", "whole", "auc", "intruder"):
            raise BadRequest(f"nulls are kept of coherence, whole, auc and intruder, came {score!r}")
        null = getattr(self.scores, score)
        if score == "intruder" and np.isnan(null).all():
            raise BadRequest("expected a null in whose lists intruders were looked for; draw it with intruders=True")
        return null


def p_among(score: str, observed: Number, null: Float[np.ndarray, " draws"]) -> Number:
    """P(null >= observed) of a score among its draws, in the shape of `observed`: by `tail_p`, or where it is `COUNTED`
    (1 + #)/(B + 1), which is never below 1/(B + 1). Raises BadRequest if no draw is finite.
    """
    return monte_carlo_p(observed, null).value if score in COUNTED else tail_p(observed, null)


def z_among(observed: Number, null: Float[np.ndarray, " draws"]) -> Number:
    """How many standard deviations of the draws `observed` is above their mean, in its shape."""
    return ((np.asarray(observed) - np.nanmean(null)) / np.nanstd(null, ddof=1))[()]


def left_out(null: Float[np.ndarray, " n"], observed: Float[np.ndarray, " r"] | None = None) -> np.ndarray:
    """What is pooled over nulls of different levels and spreads: every draw in standard deviations of the others, or
    every observation in those of all draws but one, the i-th without draw i mod n.

    Both stand beside n − 1 draws, so that what is alike is a tie, and are brought to the scale of a prediction: over
    sd·(1 + 1/(n−1))^½. NaN where those n − 1 are alike, or a value is not finite; draws that are NaN have no part,
    and of fewer than four there is nothing. Rounded to 1e-9. Source: `docs/theory/scores.md`, equation 19.
    """
    null = null[np.isfinite(null)]
    n, values = len(null), null if observed is None else observed
    if n < 4:
        return np.full(len(values), np.nan)
    centred = null - null.mean()
    out = centred[np.arange(len(values)) % n]
    squares = np.sum(centred**2)
    rest = squares - out**2 * n / (n - 1)
    away = values - null.mean() + out / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = away / np.sqrt(rest / (n - 2) * (1 + 1 / (n - 1)))
    return np.round(np.where((rest > ALIKE * squares) & np.isfinite(values), z, np.nan), 9)


def haar_lists(
    dictionary: Dictionary,
    *,
    draws: int = DRAWS,
    seed: Seed = 0,
    law: Law | None = None,
    first: int = 0,
    intruders: bool = False,
) -> ListNull:
    """The null of p_dir: directions spread evenly over the space, or by `law` (inside a subspace: Matched(basis)).

    `first` continues the same sequence in whole blocks of 256: parts that `joined` puts together are bit for bit what
    one call gives. Costs draws·n·d multiplications: 15 s for 10⁴ draws, 50,257 tokens and d = 1024 on one core;
    `intruders` are looked for where they are asked for, which takes a fifth more.
    Raises BadRequest if draws < 1, `first` is not a multiple of 256, or the dictionary is too small.
    """
    if draws < 1 or first < 0 or first % BLOCK:
        raise BadRequest(f"expected draws >= 1 from a multiple of {BLOCK} on, came {draws} from {first}")
    dictionary.check()
    chosen, d = Haar() if law is None else law, dictionary.vectors.shape[1]
    parts = []
    for start in range(first, first + draws, BLOCK):
        rng = generator(seed, "lists", start // BLOCK)
        rows = unit_rows(chosen.draw(rng, BLOCK, d))[: first + draws - start]
        parts.append(list_scores(rows, dictionary.lists(rows), dictionary, seed=seed, intruders=intruders))
    return ListNull("p_dir" if law is None else "p_cov", ListScores.joined(parts), np.arange(first, first + draws))


def matched_lists(
    dictionary: Dictionary, *, draws: int = DRAWS, seed: Seed = 0, first: int = 0, intruders: bool = False
) -> ListNull:
    """The null of p_cov: v ∝ g·Σ^½, Σ the second moment of the kept unit vectors. Cost, errors as `haar_lists`."""
    few = np.count_nonzero(dictionary.keep) <= dictionary.vectors.shape[1]
    law = Matched(
        covariance_root(dictionary.units[dictionary.keep]) if few else root_of_moment(dictionary.second_moment())
    )
    return haar_lists(dictionary, draws=draws, seed=seed, law=law, first=first, intruders=intruders)


def basis_lists(
    dictionary: Dictionary,
    basis: Float[np.ndarray, "r d"],
    *,
    draws: int = DRAWS,
    seed: Seed = 0,
    intruders: bool = False,
) -> ListNull | None:
    """The null of p_svd: random orthonormal bases of the span of the rows of `basis`, ⌈draws/r⌉ of them, pooled.

    None where the question is not defined: r = 1 (one direction, no other basis) and r = d (no subspace to speak of).
    Costs draws·n·r multiplications. Raises BadRequest if the rows are not orthonormal, SpaceMismatch if they live
    in another space.
    """
    number = _bases_drawn(dictionary, basis, draws)
    if number is None:
        return None
    r = len(basis)
    with np.errstate(all="ignore"):  # rows that are not kept may hold anything
        projected = dictionary.vectors @ basis.T.astype(dictionary.vectors.dtype)
        projected /= dictionary.lengths[:, None].astype(projected.dtype)
    parts = []
    for frames in _frames(r, number, seed):
        found = poles(frames, projected, dictionary.length, keep=dictionary.keep)
        lists = Lists(found.top, found.bottom)
        parts.append(list_scores(frames @ basis, lists, dictionary, seed=seed, intruders=intruders))
    return ListNull("p_svd", ListScores.joined(parts), np.repeat(np.arange(number), r))


def each_basis_lists(
    dictionary: Dictionary, bases: Sequence[Float[np.ndarray, "_ d"]], *, seed: Seed = 0, intruders: bool = False
) -> list[ListNull | None]:
    """`basis_lists` of several bases, one random basis of each span: for the heads of a layer three times sooner.

    The draws are the same but for rounding. All lists come from one product with the dictionary, which costs draws·n·d
    multiplications like the projections it does without. Errors as `basis_lists`.
    """
    chosen = [i for i, basis in enumerate(bases) if _bases_drawn(dictionary, basis, len(basis)) is not None]
    found: list[ListNull | None] = [None] * len(bases)
    if not chosen:
        return found
    frames = {r: next(_frames(r, 1, seed)) for r in {len(bases[i]) for i in chosen}}
    turned = [frames[len(bases[i])] @ bases[i] for i in chosen]
    rows = np.concatenate(turned)
    scores = list_scores(rows, dictionary.lists(rows), dictionary, seed=seed, intruders=intruders)
    starts = np.cumsum([0, *(len(part) for part in turned)])
    for i, start, stop in zip(chosen, starts, starts[1:], strict=False):
        found[i] = ListNull("p_svd", scores.part(slice(start, stop)), np.zeros(stop - start, np.int64))
    return found


def _bases_drawn(dictionary: Dictionary, basis: np.ndarray, draws: int) -> int | None:
    """How many random bases so many draws are; None where p_svd is not defined."""
    r, d = basis.shape
    if d != dictionary.vectors.shape[1]:
        raise SpaceMismatch(f"the basis lives in {d} dimensions, the dictionary in {dictionary.vectors.shape[1]}")
    if draws < 1 or np.abs(basis @ basis.T - np.eye(r)).max(initial=0.0) > ORTHONORMAL_WITHIN:
        raise BadRequest("expected draws >= 1 and orthonormal rows that span the subspace; take Vh or Uᵀ")
    if r in (1, d):
        return None
    dictionary.check()
    return -(-draws // r)


def _frames(r: int, number: int, seed: Seed) -> Iterator[Float[np.ndarray, "b r"]]:
    """So many random orthonormal bases of r dimensions, one below the other, about `BLOCK` rows at a time."""
    together = max(1, BLOCK // r)
    for start in range(0, number, together):
        rng = generator(seed, "bases", start // together)
        yield draw_frames(rng, together, r, r)[: number - start].reshape(-1, r)


def joined(parts: list[ListNull]) -> ListNull:
    """Parts of one sequence, in order, as one null. Raises BadRequest if they answer different questions."""
    if len({part.question for part in parts}) != 1:
        raise BadRequest("expected parts of one null; join those of one question only")
    scores = ListScores.joined([part.scores for part in parts])
    return ListNull(parts[0].question, scores, np.concatenate([part.groups for part in parts]))
