"""Scores of token lists with their chance levels, and the written rule by which a direction is called interpretable.

`score_nulls` is made once per dictionary, `basis_lists` once per head; `score_lists` then scores the directions of one
place, and `judged` applies the rule to as many of them as belong to one family (an atlas, or one request).

Source: §4.0 and F10 of the theory page; `docs/theory/scores.md`.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import SpaceMismatch
from covector.linalg.chance import bh
from covector.linalg.chance.laws import Law
from covector.linalg.chance.lists import DRAWS, ListNull, haar_lists, matched_lists, p_among
from covector.linalg.chance.pareto import tail_p
from covector.linalg.chance.streams import Seed
from covector.linalg.dictionary import Dictionary, Lists
from covector.linalg.lexical import lexical
from covector.linalg.list_scores import list_scores
from covector.linalg.npmi import Cooccurrence, npmi

# Where half of the directions called have a p_svd above this, rotated bases are said to score alike.
ALIKE = 0.05


@dataclass(frozen=True)
class Clause:
    """One condition of a rule, on a column of `Scores` or a q-value: ``column relation level``."""

    column: str
    relation: str
    level: float
    means: str

    def holds(self, value: Float[np.ndarray, " r"]) -> Bool[np.ndarray, " r"]:
        """Where the condition is met; where the value is missing (NaN) it is not."""
        return {"<": operator.lt, ">": operator.gt, ">=": operator.ge}[self.relation](value, self.level)

    def __str__(self) -> str:
        return f"{self.column} {self.relation} {self.level:g}"


Rule = tuple[Clause, ...]

_STABLE = Clause("stability", ">=", 0.9, "the direction survives a small change of the weights")

# §4.0: "interpretable iff q < 0.05 on a pre-registered score and held-out detection AUC CI > 0.5 and stability >= 0.9".
INTERPRETABLE: Rule = (
    Clause("q_coherence", "<", 0.05, "its list is more coherent beyond the direction than those of random directions"),
    Clause("heldout_low", ">", 0.5, "its first labels tell the later ones from others that are as common"),
    _STABLE,
)
SVD_SPECIFIC: Rule = (
    *INTERPRETABLE,
    Clause("q_coherence_svd", "<", 0.05, "and more coherent than directions of random bases of the same subspace"),
)
# Where the direction is all that its list shares, nothing is left beyond it and the first two clauses are blind.
ALIGNED: Rule = (
    Clause("q_whole", "<", 0.05, "its list is more alike than those of random directions, the direction left in"),
    Clause("carried", ">=", 0.5, "and half of that or more is the direction itself"),
    _STABLE,
)
# What the clauses call q-values: of the families of p_dir, p_svd and p_whole, as in an atlas.
Q_VALUES = ("q_coherence", "q_coherence_svd", "q_whole")


@dataclass(frozen=True, eq=False)
class ScoreNulls:
    """Nulls of one dictionary: lists of Haar and of covariance-matched directions, and what else those lists score."""

    p_dir: ListNull
    p_cov: ListNull
    lexical: Float[np.ndarray, " draws"] | None
    lexical_cov: Float[np.ndarray, " draws"] | None
    npmi: Float[np.ndarray, " draws"] | None


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of r directions of one place; unitless, NaN where a question is not defined or was not asked.

    pole           +1 or −1: the pole whose list is more coherent beyond the direction; the list scored below
    coherence      its mean pairwise cosine beyond the direction (the pre-registered score); z in sd of the Haar null
    p_dir, p_cov, p_svd  of the coherence of the stronger pole against the three nulls; z_svd in sd of the third
    heldout, heldout_low, heldout_high  AUC of later ranks (21–60) against matched distractors, 95 % interval;
                   p_heldout, p_heldout_cov, p_heldout_svd against the AUC that the three nulls have
    intruder, intruder_p, intruder_p_cov, intruder_p_svd  share of intruders found, and how often draws of the three
                   nulls find as many: p is never below 1/(draws + 1); guessing finds `intruder_chance`
    lexical, p_lexical, p_lexical_cov, p_lexical_svd  likeness of the labels as strings: a high one warns, it is no
                   merit; p against the three nulls
    npmi, npmi_pairs, p_npmi  where a corpus was counted
    whole, z_whole, p_whole, carried  coherence with the direction left in, and the share of it that the direction is
    stability      as given
    p_basis        of the mean coherence of these directions among random bases of their subspace: one number, given
                   when they are as many as the subspace has dimensions
    """

    pole: Int[np.ndarray, " r"]
    coherence: Float[np.ndarray, " r"]
    z: Float[np.ndarray, " r"]
    p_dir: Float[np.ndarray, " r"]
    p_cov: Float[np.ndarray, " r"]
    p_svd: Float[np.ndarray, " r"]
    z_svd: Float[np.ndarray, " r"]
    heldout: Float[np.ndarray, " r"]
    heldout_low: Float[np.ndarray, " r"]
    heldout_high: Float[np.ndarray, " r"]
    p_heldout: Float[np.ndarray, " r"]
    p_heldout_cov: Float[np.ndarray, " r"]
    p_heldout_svd: Float[np.ndarray, " r"]
    intruder: Float[np.ndarray, " r"]
    intruder_p: Float[np.ndarray, " r"]
    intruder_p_cov: Float[np.ndarray, " r"]
    intruder_p_svd: Float[np.ndarray, " r"]
    lexical: Float[np.ndarray, " r"]
    p_lexical: Float[np.ndarray, " r"]
    p_lexical_cov: Float[np.ndarray, " r"]
    p_lexical_svd: Float[np.ndarray, " r"]
    npmi: Float[np.ndarray, " r"]
    npmi_pairs: Int[np.ndarray, " r"]
    p_npmi: Float[np.ndarray, " r"]
    whole: Float[np.ndarray, " r"]
    z_whole: Float[np.ndarray, " r"]
    p_whole: Float[np.ndarray, " r"]
    carried: Float[np.ndarray, " r"]
    stability: Float[np.ndarray, " r"]
    intruder_chance: float
    p_basis: float

    @classmethod
    def joined(cls, parts: "Sequence[Scores]") -> "Scores":
        """Scores of several places, one after the other; `p_basis`, which is of one place, is lost."""
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls._per_direction()},
            intruder_chance=parts[0].intruder_chance,
            p_basis=parts[0].p_basis if len(parts) == 1 else float("nan"),
        )

    def part(self, rows: Int[np.ndarray, " s"]) -> "Scores":
        """Those of some of the directions."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self._per_direction()})

    @classmethod
    def _per_direction(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name not in ("intruder_chance", "p_basis")]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the rules say of each direction, with the q-values they used (BH over the family judged together)."""

    interpretable: Bool[np.ndarray, " r"]
    svd_specific: Bool[np.ndarray, " r"]
    aligned: Bool[np.ndarray, " r"]
    q_coherence: Float[np.ndarray, " r"]
    q_coherence_svd: Float[np.ndarray, " r"]
    q_whole: Float[np.ndarray, " r"]


def score_nulls(
    dictionary: Dictionary,
    *,
    labels: tuple[str, ...] | None = None,
    cooccurrence: Cooccurrence | None = None,
    draws: int = DRAWS,
    seed: Seed = 0,
    law: Law | None = None,
) -> ScoreNulls:
    """Both nulls of a dictionary, made once for any number of places. `law` is of p_dir (None: Haar on all of R^d).

    With `labels` their lists are scored as strings too, with `cooccurrence` (which must have counted their ids) those
    of the Haar null by NPMI. Costs twice `haar_lists`.
    """
    p_dir = haar_lists(dictionary, draws=draws, seed=seed, law=law, intruders=True)
    p_cov = matched_lists(dictionary, draws=draws, seed=seed, intruders=True)
    scored = p_dir.scores.members[:, : dictionary.scored]
    return ScoreNulls(
        p_dir,
        p_cov,
        None if labels is None else lexical(scored, labels),
        None if labels is None else lexical(p_cov.scores.members[:, : dictionary.scored], labels),
        None if cooccurrence is None else npmi(scored, cooccurrence)[0],
    )


def score_lists(
    directions: Float[np.ndarray, "r d"],
    lists: Lists,
    dictionary: Dictionary,
    nulls: ScoreNulls,
    *,
    within: ListNull | None = None,
    stability: Float[np.ndarray, " r"] | None = None,
    labels: tuple[str, ...] | None = None,
    cooccurrence: Cooccurrence | None = None,
    seed: Seed = 0,
) -> Scores:
    """Score the lists of directions of one place against the nulls.

    `lists` as `dictionary.lists(directions)` gives them (cosine order, `dictionary.length` per pole). `within` is the
    null of random bases of their subspace (`basis_lists`, with intruders), None where p_svd is not defined. `seed` must
    be that of the nulls: it chooses distractors, strangers and groups. Raises what `list_scores` raises.
    """
    found = list_scores(directions, lists, dictionary, seed=seed, intruders=True)
    scored = found.members[:, : dictionary.scored]
    nothing = np.full(len(directions), np.nan)
    alike = nothing if labels is None else lexical(scored, labels)
    turned = None if within is None or labels is None else lexical(within.scores.members[:, : len(scored.T)], labels)
    mutual, pairs = (nothing, np.zeros(len(directions), int)) if cooccurrence is None else npmi(scored, cooccurrence)
    basis_p = float("nan") if within is None else within.p_of_mean("coherence", found.coherence)
    return Scores(
        pole=1 - 2 * found.pole,
        coherence=found.coherence,
        z=_of(nulls.p_dir.z("coherence", found.coherence)),
        p_dir=_of(nulls.p_dir.p("coherence", found.coherence)),
        p_cov=_of(nulls.p_cov.p("coherence", found.coherence)),
        p_svd=nothing if within is None else _of(within.p("coherence", found.coherence)),
        z_svd=nothing if within is None else _of(within.z("coherence", found.coherence)),
        heldout=found.auc,
        heldout_low=found.low,
        heldout_high=found.high,
        p_heldout=_of(nulls.p_dir.p("auc", found.auc)),
        p_heldout_cov=_of(nulls.p_cov.p("auc", found.auc)),
        p_heldout_svd=nothing if within is None else _of(within.p("auc", found.auc)),
        intruder=found.intruder,
        intruder_p=_of(nulls.p_dir.p("intruder", found.intruder)),
        intruder_p_cov=_of(nulls.p_cov.p("intruder", found.intruder)),
        intruder_p_svd=nothing if within is None else _of(within.p("intruder", found.intruder)),
        lexical=alike,
        p_lexical=nothing if nulls.lexical is None else _of(p_among("lexical", alike, nulls.lexical)),
        p_lexical_cov=nothing if nulls.lexical_cov is None else _of(p_among("lexical", alike, nulls.lexical_cov)),
        p_lexical_svd=nothing if turned is None else _of(p_among("lexical", alike, turned)),
        npmi=mutual,
        npmi_pairs=pairs,
        p_npmi=nothing if nulls.npmi is None else _of(tail_p(mutual, nulls.npmi)),
        whole=found.whole,
        z_whole=_of(nulls.p_dir.z("whole", found.whole)),
        p_whole=_of(nulls.p_dir.p("whole", found.whole)),
        carried=found.carries / found.whole,
        stability=nothing if stability is None else stability,
        intruder_chance=dictionary.guessed,
        p_basis=basis_p,
    )


def judged(
    scores: Scores,
    *,
    q_coherence: Float[np.ndarray, " r"] | None = None,
    q_coherence_svd: Float[np.ndarray, " r"] | None = None,
    q_whole: Float[np.ndarray, " r"] | None = None,
) -> Verdict:
    """Apply the rules. q-values are those of the whole family: give them, or BH is taken over the directions here.

    A clause whose value is missing is not met: without a stability nothing is interpretable, and where p_svd is not
    defined nothing is SVD-specific. `aligned` marks directions that are all their list shares, which the rule cannot
    judge; it is never set where `interpretable` is. Raises SpaceMismatch for q-values of another length.
    """
    q = {
        "q_coherence": bh(scores.p_dir) if q_coherence is None else q_coherence,
        "q_coherence_svd": bh(scores.p_svd) if q_coherence_svd is None else q_coherence_svd,
        "q_whole": bh(scores.p_whole) if q_whole is None else q_whole,
    }
    if any(value.shape != scores.p_dir.shape for value in q.values()):
        raise SpaceMismatch(f"expected one q per direction ({len(scores.p_dir)}); cut the family's to this place")
    called = {rule: _all(rule, scores, q) for rule in (INTERPRETABLE, SVD_SPECIFIC, ALIGNED)}
    return Verdict(
        interpretable=called[INTERPRETABLE],
        svd_specific=called[SVD_SPECIFIC],
        aligned=called[ALIGNED] & ~called[INTERPRETABLE],
        **q,
    )


def rule_text(rule: Rule = INTERPRETABLE) -> str:
    """The rule as one line for a table: ``q_coherence < 0.05, heldout_low > 0.5, stability >= 0.9``."""
    return ", ".join(map(str, rule))


def verdict_text(verdict: Verdict, scores: Scores, *, places: int = 1) -> str:
    """What the rule found in so many places, and whether the SVD had part in it, in two or three sentences."""
    number, called = len(verdict.interpretable), int(verdict.interpretable.sum())
    said = f"{called} of {number} directions are interpretable by the rule ({rule_text()})"
    if np.isnan(scores.p_svd).all():
        said += "; whether the SVD found them is not defined here (no smaller subspace to rotate in)."
    elif called:
        within = scores.p_svd[verdict.interpretable]
        asked, specific = int(np.isfinite(within).sum()), int(verdict.svd_specific.sum())
        of = "these" if asked == called else f"the {asked} that have a subspace to rotate in"
        said += f", {specific} of {of} also against random bases of the same subspace." if asked else "."
        if asked and np.nanmedian(within) >= ALIKE:
            here, its = ("this place", "its") if places == 1 else ("these places", "their")
            said += f" Rotated bases of {here} score like {its} singular vectors: the subspace means something, "
            said += f"{its} singular directions hardly more than others."
    else:
        said += "."
    aligned = int(verdict.aligned.sum())
    if aligned:
        said += f" Of the others {aligned} are themselves what their lists share, which the rule cannot judge."
    return said


def _all(rule: Rule, scores: Scores, q: dict[str, Float[np.ndarray, " r"]]) -> Bool[np.ndarray, " r"]:
    held = [clause.holds(q[clause.column] if clause.column in q else getattr(scores, clause.column)) for clause in rule]
    return np.logical_and.reduce(held)


def _of(value: object) -> Float[np.ndarray, " r"]:
    return np.atleast_1d(np.asarray(value, dtype=np.float64))
