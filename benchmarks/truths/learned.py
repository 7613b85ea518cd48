"""What the bundled model was trained on, word by word, and what of it some direction of its blocks carries."""

import copy
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.demo.corpus import load_truth
from covector.io.atlas import Atlas
from covector.linalg import chance
from covector.linalg.svd import svd
from covector.model.opened import Model
from truths.planted import LEVEL, units

GROUPS = 999


@dataclass(frozen=True)
class Concept:
    """Token ids with weights that are known to belong together, and what its null exchanges.

    ``among`` are ids that random groups are drawn from; None for contrasts, whose weights are shuffled instead.
    """

    name: str
    kind: str
    weights: Mapping[int, float]
    among: tuple[int, ...] | None


@dataclass(frozen=True)
class Line:
    """What the atlas has of a concept."""

    concept: Concept
    place: str
    side: str
    cos: float
    beyond: int
    p: float
    auc: float


def concepts(model: Model) -> list[Concept]:
    """Topics, word classes and contrasts of the truth, as far as their words are one token behind a space."""
    truth, data = load_truth(), load_truth().data
    labels = {label: i for i, label in enumerate(model.bases["token_in"].labels)}

    def ids(words: Sequence[str]) -> tuple[int, ...]:
        return tuple(labels[f" {w}"] for w in words if f" {w}" in labels)

    def plain(name: str, kind: str, words: Sequence[str], among: tuple[int, ...]) -> Concept:
        return Concept(name, kind, dict.fromkeys(ids(words), 1.0), among)

    def contrast(name: str, kind: str, plus: Sequence[str], minus: Sequence[str]) -> Concept:
        return Concept(name, kind, dict.fromkeys(ids(plus), 1.0) | dict.fromkeys(ids(minus), -1.0), None)

    of_topics, pool = ids(truth.topic_words), ids(truth.pool)
    found = [plain(topic, "topic", words, of_topics) for topic, words in data["topics"].items()]
    she, he = ([*dict.fromkeys(data["pronouns"][g].values())] for g in ("female", "male"))
    pairs = data["gendered_occupations"]
    found += [contrast("she − he", "gender", she, he)]
    found += [contrast("female − male names", "gender", data["names"]["female"], data["names"]["male"])]
    found += [contrast("female − male occupations", "gender", [p["female"] for p in pairs], [p["male"] for p in pairs])]
    rates = {i: rate for word, rate in data["biased_occupations"].items() for i in ids([word])}
    mean = sum(rates.values()) / len(rates)
    found += [Concept("occupations by rate", "gender", {i: rate - mean for i, rate in rates.items()}, None)]
    classes = {"names": truth.gender_of_name, "occupations": truth.p_female, "countries": data["capitals"]}
    classes |= {"capitals": data["capitals"].values(), **data["classes"]}
    found += [plain(name, "class", list(words), pool) for name, words in classes.items()]
    return [c for c in found if len(c.weights) >= 4]


class Traced:
    """Every direction inside the blocks, and the vectors that concepts are made of (one embedding, tied)."""

    def __init__(self, model: Model, atlas: Atlas) -> None:
        told = atlas.columns("site", "side", "dyad", "kind")
        at = np.flatnonzero(~np.isin(told["kind"], ("embed", "pos")))
        self.places = [f"{told['site'][i]}:{told['dyad'][i]}" for i in at]
        self.sides = told["side"][at]
        self.rows = atlas.vectors[at].astype(np.float64)
        vectors = model.bases["token_in"].vectors.astype(np.float64)
        self.tokens = units(vectors - vectors.mean(axis=0))

    def with_rows(self, rows: np.ndarray) -> "Traced":
        """The same tokens with other directions, of no place."""
        other = copy.copy(self)
        other.places, other.sides, other.rows = ["?"] * len(rows), np.array(["?"] * len(rows)), units(rows)
        return other

    def cosines(self, weights: np.ndarray) -> np.ndarray:
        """[query, direction] of weighted lists [query, token]."""
        return units(weights @ self.tokens) @ self.rows.T


def traced(known: Traced, concept: Concept, groups: int = GROUPS) -> Line:
    """The direction nearest to a concept, held against random concepts of as many words.

    ``beyond`` counts directions with q < .05 (Haar, over all); ``p`` is the chance that the best direction of a random
    concept comes as near; ``auc``: of the direction nearest to every second word, the chance that it ranks one of the
    other words above a word that is not of the concept.
    """
    rng = np.random.default_rng(zlib.crc32(concept.name.encode()))
    ids, values = np.array(list(concept.weights)), np.array(list(concept.weights.values()))
    weights = np.zeros((groups + 1, len(known.tokens)))
    weights[0, ids] = values
    for row in weights[1:]:
        if concept.among is None:
            row[ids] = rng.permutation(values)
        else:
            row[rng.choice(concept.among, len(ids), replace=False)] = values
    scores = known.cosines(weights)
    best = np.abs(scores).max(axis=1)
    at = int(np.abs(scores[0]).argmax())
    q = chance.bh(np.asarray(chance.tail(np.minimum(np.abs(scores[0]), 1.0), known.rows.shape[1])))
    p = float((1 + (best[1:] >= best[0]).sum()) / (groups + 1))
    return Line(concept, known.places[at], known.sides[at], float(scores[0, at]), int((q < LEVEL).sum()), p,
                heldout(known, concept, ids, values))  # fmt: skip


def heldout(known: Traced, concept: Concept, ids: np.ndarray, values: np.ndarray) -> float:
    """AUC of the words that did not choose the direction; for a contrast, of its positive words above its negative."""
    chosen = np.zeros(len(ids), dtype=bool)
    for sign in (1, -1):
        chosen[np.flatnonzero(np.sign(values) == sign)[::2]] = True
    weights = np.zeros((1, len(known.tokens)))
    weights[0, ids[chosen]] = values[chosen]
    scores = known.cosines(weights)[0]
    at = int(np.abs(scores).argmax())
    ranked = known.tokens @ known.rows[at] * np.sign(scores[at])
    wanted = ids[~chosen & (values > 0)]
    others = ids[~chosen & (values < 0)] if concept.among is None else np.setdiff1d(concept.among, ids)
    above = ranked[wanted][:, None] - ranked[others]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


@dataclass(frozen=True)
class Facts:
    """Countries and capitals: pairs, and how well dyads and whole heads join them, beside shuffled pairs."""

    pairs: int
    dyad: float
    p_dyad: float
    head: str
    right: int
    by_chance: float
    p_head: float


def facts(model: Model, shuffles: int = GROUPS) -> Facts:
    """Whether some dyad of a head reads a country and writes its capital, and whether a head as a whole does.

    Countries and capitals are taken relative to their means. ``dyad``: mean over pairs of the largest
    cos(read, country)·cos(write, capital) of any dyad. ``right``: pairs whose capital gets the largest share of what
    the best ``head`` writes for the country; the best head is chosen for each shuffle too.
    """
    labels = {label: i for i, label in enumerate(model.bases["token_in"].labels)}
    pairs = [(labels[f" {a}"], labels[f" {b}"]) for a, b in load_truth().data["capitals"].items()
             if f" {a}" in labels and f" {b}" in labels]  # fmt: skip
    vectors = model.bases["token_in"].vectors.astype(np.float64)
    country, capital = (units(vectors[list(ids)] - vectors[list(ids)].mean(axis=0)) for ids in zip(*pairs, strict=True))
    joint, chosen, heads = [], [], model.sites("L*H*.ov")
    for site in heads:
        found = svd(model.map(site))
        read, written = country @ found.U, capital @ found.Vh.T
        joint.append(np.einsum("ik,jk->ijk", read, written).max(axis=2))
        chosen.append(((read * found.S) @ written.T).argmax(axis=1))
    best, rng = np.max(joint, axis=0), np.random.default_rng(0)
    orders = [np.arange(len(pairs)), *(rng.permutation(len(pairs)) for _ in range(shuffles))]
    dyads = np.array([best[np.arange(len(pairs)), order].mean() for order in orders])
    right = np.array([[int((pick == order).sum()) for pick in chosen] for order in orders])
    most = right.max(axis=1)
    return Facts(
        len(pairs), float(dyads[0]), _p(dyads), str(heads[int(right[0].argmax())]), int(most[0]),
        float(most[1:].mean()), _p(most),
    )  # fmt: skip


def _p(values: np.ndarray) -> float:
    """Chance of the first value among the others."""
    return float((1 + (values[1:] >= values[0]).sum()) / len(values))


def line_text(line: Line, q: float) -> str:
    """One row of the table of concepts."""
    found = "yes" if q < LEVEL and line.beyond else "no"
    return (
        f"| {line.concept.name} | {len(line.concept.weights)} | {line.place} {line.side} | {abs(line.cos):.2f} | "
        f"{line.beyond} | {line.p:.3f} | {line.auc:.2f} | {found} |"
    )


def concept_lines(model: Model, atlas: Atlas, groups: int = GROUPS) -> list[str]:
    """The rows of the table of concepts; found is by both nulls, the second with BH over the rows."""
    known = Traced(model, atlas)
    lines = [traced(known, concept, groups) for concept in concepts(model)]
    q = chance.bh(np.array([line.p for line in lines]))
    return [line_text(line, value) for line, value in zip(lines, q, strict=True)]


def count_text(lines: Sequence[str], kinds: Sequence[str]) -> str:
    """How many of each kind were found."""
    counts = [
        f"{sum(line.endswith('yes |') for line, k in zip(lines, kinds, strict=True) if k == kind)} of "
        f"{sum(k == kind for k in kinds)} {words}"
        for kind, words in (("topic", "topics"), ("gender", "contrasts of gender"), ("class", "classes of words"))
    ]
    return f"Found: {', '.join(counts)}."
