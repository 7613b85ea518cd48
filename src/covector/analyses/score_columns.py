"""The columns of scored lists: each score beside what random directions reach, and the verdict in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.score import INTERPRETABLE, Q_VALUES, Rule, ScoreNulls, Scores, Verdict
from covector.analyses.score_places import Side
from covector.axes import Int
from covector.linalg.dictionary import Dictionary
from covector.linalg.npmi import Cooccurrence
from covector.render import Column

# What 95 % of random directions stay below.
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Against:
    """One basis with its nulls, and the corpus where there is one."""

    dictionary: Dictionary
    nulls: ScoreNulls
    labels: tuple[str, ...]
    corpus: Cooccurrence | None


@dataclass(frozen=True, eq=False)
class Scored:
    """One side scored: its shown rows, the lists of their stronger poles, and p of the mean over the whole basis."""

    side: Side
    against: Against
    scores: Scores
    lists: Int[np.ndarray, "s k"]
    p_basis: float


def columns(
    found: Sequence[Scored], scores: Scores, verdict: Verdict, labels: list[str | None], counted: bool
) -> list[Column]:
    """All columns, a row per list; those of NPMI where a text was `counted`."""
    made = [*_named(found, scores, verdict, labels), *_scores(found, scores, verdict)]
    made += _npmi(found, scores) if counted else []
    return [*made, *_chances(found, scores, verdict)]


def _named(found: Sequence[Scored], scores: Scores, verdict: Verdict, labels: list[str | None]) -> list[Column]:
    sides = [(one.side, dyad) for one in found for dyad in one.side.dyads]
    return [
        Column("direction", [f"{side.site}:{dyad}" for side, dyad in sides], about="the dyad"),
        Column("side", [side.name for side, _ in sides], about="read or write; query or key of QK"),
        Column("pole", ["+" if p > 0 else "−" for p in scores.pole], about="the pole whose list is more coherent"),
        Column("label", labels, about="the labeller's name of the list; – where it declined"),
        Column("verdict", _verdicts(verdict, scores), about="by the rule; 'no:' names the clauses that fail"),
    ]


def _scores(found: Sequence[Scored], scores: Scores, verdict: Verdict) -> list[Column]:
    return [
        Column("coherence", scores.coherence, "cos", 3, "mean pairwise cosine of the list beyond the direction",
               chance="coherence_level"),
        _level(found, "coherence", lambda n: n.p_dir.scores.coherence, "cos", 3),
        Column("z", scores.z, "sd", 1, "coherence in standard deviations of random directions"),
        Column("q", verdict.q_coherence, about="Benjamini–Hochberg of p_dir over the family"),
        Column("heldout", scores.heldout, "AUC", 2, "first members tell later ones from matched others",
               chance="heldout_level"),
        Column("heldout_low", scores.heldout_low, "AUC", 2, "lower end of its 95 % interval"),
        Column("heldout_high", scores.heldout_high, "AUC", 2, "upper end"),
        _level(found, "heldout", lambda n: n.p_dir.scores.auc, "AUC", 2),
        Column("intruder", scores.intruder, "share", 2, "strangers found among four of the list",
               chance="intruder_level"),
        Column("intruder_level", np.full(len(scores.pole), scores.intruder_chance), "share", 2, "found by guessing"),
        Column("intruder_p", scores.intruder_p, about=f"random directions that find as many; {_least(found)}"),
        Column("lexical", scores.lexical, "share", 3, "likeness of the labels as strings: a high one warns",
               chance="lexical_level"),
        _level(found, "lexical", lambda n: n.lexical, "share", 3),
    ]  # fmt: skip


def _npmi(found: Sequence[Scored], scores: Scores) -> list[Column]:
    return [
        Column("npmi", scores.npmi, "", 3, "mean over pairs of the list that both occur in the text",
               chance="npmi_level"),
        _level(found, "npmi", lambda n: n.npmi, "", 3),
        Column("npmi_pairs", scores.npmi_pairs, about="over how many pairs"),
        Column("p_npmi", scores.p_npmi, about="against lists of random directions"),
    ]  # fmt: skip


def _chances(found: Sequence[Scored], scores: Scores, verdict: Verdict) -> list[Column]:
    by_side = np.concatenate([np.full(len(one.lists), one.p_basis) for one in found])
    return [
        Column("p_dir", scores.p_dir, about="of coherence, against random directions"),
        Column("p_cov", scores.p_cov, about="against directions of the basis' own covariance"),
        Column("p_svd", scores.p_svd, about="against rotated bases of the same subspace; – where that is not defined"),
        Column(
            "q_svd",
            verdict.q_coherence_svd,
            about="Benjamini–Hochberg of p_svd over the family (in an atlas of a pooled p)",
        ),
        Column("p_basis", by_side, about="of the mean coherence of all singular vectors there, among rotated bases"),
        Column("p_heldout", scores.p_heldout, about="of the held-out AUC, against random directions"),
        Column("p_heldout_cov", scores.p_heldout_cov, about="against directions of the basis' own covariance"),
        Column("p_heldout_svd", scores.p_heldout_svd, about="against rotated bases of the same subspace"),
        Column("intruder_p_cov", scores.intruder_p_cov, about=f"those that find as many strangers; {_least(found)}"),
        Column("intruder_p_svd", scores.intruder_p_svd, about="rotated directions that find as many strangers"),
        Column("p_lexical", scores.p_lexical, about="of the likeness of strings, against random directions"),
        Column("p_lexical_cov", scores.p_lexical_cov, about="against directions of the basis' own covariance"),
        Column("p_lexical_svd", scores.p_lexical_svd, about="against rotated bases of the same subspace"),
        Column("whole", scores.whole, "cos", 3, "coherence with the direction left in", chance="whole_level"),
        _level(found, "whole", lambda n: n.p_dir.scores.whole, "cos", 3),
        Column("q_whole", verdict.q_whole, about="Benjamini–Hochberg of its p over the family"),
        Column("carried", scores.carried, "share", 2, "share of it that is the direction itself"),
        Column("stability", scores.stability, "", 3, "median |cos| with itself under noise of one percent"),
        Column("sigma", np.concatenate([one.side.sigma for one in found]), about="gain of the dyad"),
        Column("words", [words(one.against, row) for one in found for row in one.lists], about="the list, best first"),
    ]


def _least(found: Sequence[Scored]) -> str:
    return f"counted, so never below 1/{found[0].against.nulls.p_dir.draws + 1}"


def _level(
    found: Sequence[Scored], name: str, of: Callable[[ScoreNulls], np.ndarray | None], unit: str, digits: int
) -> Column:
    """What 95 % of random directions stay below, by the basis that each row is read against."""
    values = []
    for one in found:
        null = of(one.against.nulls)
        finite = np.zeros(0) if null is None else null[np.isfinite(null)]
        values.append(np.full(len(one.lists), np.quantile(finite, LEVEL) if len(finite) else np.nan))
    own = f"{name}_level"
    return Column(own, np.concatenate(values), unit, digits, "95 % of random directions stay below",
                  chance=own if unit == "cos" else None)  # fmt: skip


def _verdicts(verdict: Verdict, scores: Scores) -> list[str]:
    q = {name: getattr(verdict, name) for name in Q_VALUES}
    told = []
    for i in range(len(verdict.interpretable)):
        if verdict.svd_specific[i]:
            told.append("interpretable, SVD-specific")
        elif verdict.interpretable[i]:
            told.append("interpretable")
        elif verdict.aligned[i]:
            told.append("aligned (not judged)")
        else:
            told.append("no: " + ", ".join(_failed(INTERPRETABLE, q, scores, i)))
    return told


def _failed(rule: Rule, q: dict[str, np.ndarray], scores: Scores, i: int) -> list[str]:
    values = {c.column: q[c.column] if c.column in q else getattr(scores, c.column) for c in rule}
    return [c.column for c in rule if not c.holds(values[c.column][i : i + 1])[0]]


def words(against: Against, ids: Int[np.ndarray, " k"]) -> list[str]:
    """The labels of a list."""
    return [against.labels[i] for i in ids]
