"""Token lists of directions, scored: coherence, held-out detection, intruders, spelling, a corpus, and a labeller.

One row per direction and side: the pole whose list is more coherent, what it scores beside random directions, and what
the written rule says of it.

Source: §4.0 and F10 of the theory page; `docs/theory/scores.md`, equations 1–16.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from covector.analyses.labels import Labelled, Labeller, labelled, nulls_needed, tokens_themselves
from covector.analyses.score import (
    ALIGNED,
    Q_VALUES,
    SVD_SPECIFIC,
    Scores,
    Verdict,
    judged,
    rule_text,
    score_lists,
    score_nulls,
    verdict_text,
)
from covector.analyses.score_columns import Against, Scored, columns, words
from covector.analyses.score_corpus import counted
from covector.analyses.score_lines import scored_lines
from covector.analyses.score_places import Side, place_of, rows_of_atlas, sides_of_atlas, sides_of_model
from covector.axes import Float
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.laws import Hyperplane
from covector.linalg.chance.lists import basis_lists
from covector.linalg.dictionary import Dictionary
from covector.linalg.lapack import at_most_threads
from covector.model.opened import Model
from covector.render import Scatter, Table

# Null directions per basis, and directions of rotated bases per side of a head.
DRAWS, ROTATED = 2000, 1000
# Fewer null lists than this would say next to nothing of a labeller.
NULL_LISTS = 20
# A subspace whose rotated bases reach the mean coherence of its singular vectors this often is said to score alike.
ALIKE = 0.05


def score_table(
    model: Model,
    where: str | None = None,
    *,
    atlas: Atlas | None = None,
    rank: int = 10,
    corpus: str | None = None,
    labeller: Labeller | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """Score the lists of directions and judge each by the written rule.

    `where`: a place (``L3H0``, its leading `rank` dyads), or dyads of it (``L3.mlp.out:0-4``); both sides that lie in
    the stream. With an `atlas` (the model is its own) rows of it: without `where` the `rank` that it calls
    interpretable by the least q, or the strongest by z of coherence if it calls none; q and stability are then the
    atlas', whose family is all its directions. Without one the family is the request. `corpus` is a text: NPMI is
    counted in it. `labeller` takes the words of a list and returns a name or ""; lists of random directions are mixed
    in blind and how often it names those is told; None lets the first words stand for the list.
    `draws` random directions per basis set the chance levels. Exact for a seed.
    Raises BadRequest, BadRank, BadSite, and for a basis of fewer than 144 labels BadRequest.
    """
    if rank < 1 or draws < 100:
        raise BadRequest(f"expected rank >= 1 and draws >= 100, got rank = {rank}, draws = {draws}")
    with at_most_threads(1):  # as an atlas is made, to the last bit; on thin products more threads are slower
        every, family = _sides(model, where, atlas, rank, seed)
        sides = _judgeable(model, every)
        _check_draws(sum(len(side.shown) for side in sides), draws)
        against = _bases(model, sides, corpus, draws, seed)
        found = [_scored(side, against[side.basis, side.centred][0], seed) for side in sides]
    left_out = [f"{side.site} {side.name}" for side in every if side not in sides]
    scores = Scores.joined([one.scores for one in found])
    verdict = judged(scores, **_family_q(sides))
    named, labels = _labels(found, labeller, seed)
    tokens = next((read for _, read in against.values() if read), 0)
    alike = _alike(found)
    return Table(
        columns=columns(found, scores, verdict, labels, corpus is not None),
        meta=model.meta
        | _request(where, atlas, family, draws, seed, found, alike)
        | _told_of_labels(named, labeller)
        | ({} if corpus is None else {"corpus_sha256": _digest(corpus), "corpus_tokens": tokens})
        | {
            "left_out": left_out,
            "interpretable": int(verdict.interpretable.sum()),
            "aligned": int(verdict.aligned.sum()),
        },
        title=_title(model, where, atlas, len(scores.p_dir), draws),
        says=_says(found, scores, verdict, named, labeller, alike, family, atlas)
        + (f" Not scored, for too few labels to make lists of: {_listed(left_out)}." if left_out else ""),
        not_says="It does not say that the model uses what a list means: covector fires and covector patch ask that. "
        "A name is the labeller's, worth what its rate of named null lists leaves of it.",
        next=_next(model, found, verdict),
        picture=_picture,
        lines=scored_lines,
        key=("direction", "side"),
    )


def _sides(model: Model, where: str | None, atlas: Atlas | None, rank: int, seed: int) -> tuple[list[Side], int]:
    """What is scored, and how many directions it was chosen among (0: it was named)."""
    place = None if where is None else place_of(model, where)
    if atlas is None:
        if place is None:
            raise BadRequest(f"{model.name}: expected a place of it such as L3H0 or L3.mlp.out:0-4; or give an atlas")
        return sides_of_model(model, place, rank, seed), 0
    at, among = rows_of_atlas(atlas, place, rank)
    return sides_of_atlas(model, atlas, at), among if place is None else 0


def _judgeable(model: Model, sides: list[Side]) -> list[Side]:
    """Those that are read against a basis large enough for lists. Raises BadRequest where there is none."""
    chosen = [side for side in sides if _large_enough(model.bases.dictionary(side.basis, side.centred))]
    if not chosen:
        model.bases.dictionary(sides[0].basis, sides[0].centred).check()
    return chosen


def _large_enough(chosen: Dictionary) -> bool:
    try:
        chosen.check()
    except BadRequest:
        return False
    return True


def _check_draws(lists: int, draws: int) -> None:
    """Null lists for a labeller are those of random directions: there must be enough of them."""
    if draws < nulls_needed(lists):
        raise BadRequest(f"expected draws >= {nulls_needed(lists)} for {lists} lists, got {draws}; ask for more draws")


def _bases(
    model: Model, sides: Sequence[Side], corpus: str | None, draws: int, seed: int
) -> dict[tuple[str, bool], tuple[Against, int]]:
    """Every basis that is needed, with its nulls; and how many tokens of the corpus were read for it."""
    made = {}
    for name, centred in dict.fromkeys((side.basis, side.centred) for side in sides):
        chosen, basis = model.bases.dictionary(name, centred), model.bases[name]
        read, cooccurrence = 0, None
        if corpus is not None and name.startswith("token_"):
            cooccurrence, read = counted(model, corpus, np.flatnonzero(chosen.keep))
        nulls = score_nulls(
            chosen,
            labels=basis.labels,
            cooccurrence=cooccurrence,
            draws=draws,
            seed=seed,
            law=Hyperplane() if centred else None,
        )
        made[name, centred] = (Against(chosen, nulls, basis.labels, cooccurrence), read)
    return made


def _scored(side: Side, against: Against, seed: int) -> Scored:
    chosen = against.dictionary
    within = basis_lists(chosen, side.rows, draws=ROTATED, seed=seed, intruders=True) if side.whole else None
    steady = np.full(len(side.rows), np.nan)
    steady[side.shown] = side.stability
    lists = chosen.lists(side.rows)
    scores = score_lists(
        side.rows,
        lists,
        chosen,
        against.nulls,
        within=within,
        stability=steady,
        labels=against.labels,
        cooccurrence=against.corpus,
        seed=seed,
    )
    shown = scores.part(side.shown)
    poles = np.where(scores.pole[:, None] == 1, lists.top, lists.bottom)[side.shown, : chosen.scored]
    return Scored(side, against, shown, poles, scores.p_basis)


def _family_q(sides: Sequence[Side]) -> dict[str, Float[np.ndarray, " r"]]:
    """The q-values of an atlas; nothing where the request is the family."""
    if any(side.q is None for side in sides):
        return {}
    return {name: np.concatenate([side.q[name] for side in sides if side.q]) for name in Q_VALUES}


def _labels(found: Sequence[Scored], labeller: Labeller | None, seed: int) -> tuple[Labelled, list[str | None]]:
    """Every list named blind, among lists of random directions of the same bases."""
    length = min(one.lists.shape[1] for one in found)
    lists = [words(one.against, row[:length]) for one in found for row in one.lists]
    wanted = max(NULL_LISTS, nulls_needed(len(lists)))
    null_lists: list[list[str]] = []
    for against in dict.fromkeys(one.against for one in found):
        share = sum(len(one.lists) for one in found if one.against is against) / len(lists)
        members = against.nulls.p_dir.scores.members[: int(np.ceil(wanted * share - 1e-9))]
        null_lists += [words(against, row[:length]) for row in members]
    named = labelled(lists, null_lists, labeller or tokens_themselves, seed=seed)
    return named, [label or None for label in named.labels]


def _alike(found: Sequence[Scored]) -> list[str]:
    """Sides whose singular vectors score no better, on the mean, than rotated bases of their subspace."""
    return [f"{one.side.site} {one.side.name}" for one in found if one.p_basis >= ALIKE]


def _request(
    where: str | None,
    atlas: Atlas | None,
    among: int,
    draws: int,
    seed: int,
    found: Sequence[Scored],
    alike: list[str],
) -> dict[str, Any]:
    stored = [f"{one.side.site} {one.side.name}" for one in found if not one.side.exact]
    return {
        "analysis": "score",
        "place": where,
        "atlas": None if atlas is None else str(atlas.folder),
        "family": "the directions of this request" if any(one.side.q is None for one in found) else "the atlas",
        "chosen_among": among,
        "draws": draws,
        "seed": seed,
        "null": f"{draws} random directions per basis; {ROTATED} of rotated bases per side of a head",
        "intruder_p_least": 1 / (draws + 1),
        "rotated_alike": alike,
        "stored_rows": stored,
        "rule": rule_text(),
        "svd_specific": rule_text(SVD_SPECIFIC),
        "aligned_rule": rule_text(ALIGNED),
        "policy": "none: weights only",
    }


def _told_of_labels(named: Labelled, labeller: Labeller | None) -> dict[str, Any]:
    return {
        "labeller": "the tokens themselves" if labeller is None else getattr(labeller, "__name__", "a labeller"),
        "false_label_rate": named.false_rate,
        "false_label_low": named.low,
        "false_label_high": named.high,
        "null_lists": named.nulls,
        "null_labels": list(named.null_labels),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _title(model: Model, where: str | None, atlas: Atlas | None, n: int, draws: int) -> str:
    place = where or "" if atlas is None else f"{where or ''} · atlas {atlas.folder.name}"
    return (
        f"{model.name} {place}".rstrip()
        + f" · frame {model.frame} · {n} lists scored · {draws} random directions per basis"
    )


def _says(
    found: Sequence[Scored],
    scores: Scores,
    verdict: Verdict,
    named: Labelled,
    labeller: Labeller | None,
    alike: list[str],
    among: int,
    atlas: Atlas | None,
) -> str:
    places = {str(one.side.site) for one in found}
    said = verdict_text(verdict, scores, places=len(places))
    if atlas is not None and found[0].side.q is not None:
        said += f" q is over all {len(atlas):,} directions of the atlas."
    else:
        said += " q is over these lists."
    if among > len(scores.p_dir):
        said += f" They are the strongest of {among}."
    if alike:
        said += f" Rotated bases score like the singular vectors, on the mean, at {_listed(alike)}."
    if labeller is None:
        return said + " Labels are the first words of a list, which claim nothing."
    return said + (
        f" The labeller named {sum(map(bool, named.labels))} of {len(named.labels)} lists, and {named.false_rate:.0%} "
        f"of {named.nulls} lists of random directions mixed in blind ({named.low:.0%}–{named.high:.0%})."
    )


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _next(model: Model, found: Sequence[Scored], verdict: Verdict) -> str:
    """What the first interpretable direction, or the first of all, reads and writes."""
    sites = [(one.side.site, int(d)) for one in found for d in one.side.dyads]
    first = int(np.argmax(verdict.interpretable))
    site, dyad = sites[first]
    return f"covector svd {model.words} {site} --rank {max(10, dyad + 1)}{model.framing}"


def _picture(table: Table) -> Scatter:
    """Coherence against held-out detection, coloured by the verdict, in the band of random directions."""
    verdicts = [str(v) for v in table["verdict"]]
    low, high = np.asarray(table["heldout_low"]), np.asarray(table["heldout_high"])
    return Scatter(
        x=np.asarray(table["z"]),
        y=np.asarray(table["heldout"]),
        x_name="coherence",
        y_name="held-out detection",
        x_unit="sd of random directions",
        y_unit="AUC",
        labels=[f"{d} {s}" for d, s in zip(table["direction"], table["side"], strict=True)],
        groups=["not interpretable" if v.startswith("no: ") else v for v in verdicts],
        interval=(low, high),
        band=(0.0, float(np.nanmax(np.asarray(table["heldout_level"])))),
        band_name="95 % of random directions",
    )
