"""Draws the documents that demo-lm is trained on, and knows the probability of each.

The language is a small probabilistic grammar whose every number is in `truth.json`. A document is either prose
(5 to 7 sentences from templates with slots, all about one hidden topic) or a sequence (random words, said two or
three times). Both are written as pieces; a piece carries the log-probability of its text given the document so far.
The hidden topic is never observed, so a topic word gets its probability from the exact Bayes filter over topics:
what is recorded is log P(text), not log P(text, topic). Different derivations give different texts, hence the sum
over pieces is the exact log-probability of the document (`entropy.py` has its mean in closed form).
"""

import json
import math
import re
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

TRUTH_FILE = Path(__file__).parent / "truth.json"
PRONOUNS = ("subject", "Subject", "objective", "possessive")
_SLOT = re.compile(r"( ?)\{(\w+):(\w)\}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text, how probable it was given everything before it, and what it is.

    `role` is a slot class ("name", "topic", "subject", ...), "text" for fixed words, "start" for the choice of a
    template, "word" or "repeat" in a sequence, "stop" for the end of the document. `why` tells, for a pronoun, what
    fixes its gender ("name", "gendered occupation", "earlier pronoun") or, if nothing does, the occupation.
    """

    text: str
    log_probability: float
    role: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence, a whole sequence, or the stop: pieces under one kind."""

    kind: str
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The pieces, joined."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def log_probability(self) -> float:
        """Log-probability (nats) of this unit given the units before it."""
        return math.fsum(piece.log_probability for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its units in order and its hidden topic ("" for a sequence)."""

    units: tuple[Unit, ...]
    topic: str

    @property
    def text(self) -> str:
        """The document as plain text, without start or end token."""
        return "".join(unit.text for unit in self.units)

    @property
    def log_probability(self) -> float:
        """Exact log P(text) in nats, the end of the document included."""
        return math.fsum(unit.log_probability for unit in self.units)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a template: fixed `text` if `role` is "text", else a word of class `role` bound to `label`."""

    text: str
    role: str = "text"
    label: str = ""


def parse_template(template: str) -> tuple[Slot, ...]:
    """Split a template into fixed texts and slots; the space before a slot belongs to the slot."""
    slots, end = [], 0
    for match in _SLOT.finditer(template):
        if match.start() > end:
            slots.append(Slot(template[end : match.start()]))
        slots.append(Slot(match[1], match[2], match[3]))
        end = match.end()
    return (*slots, Slot(template[end:])) if end < len(template) else tuple(slots)


@dataclass(frozen=True)
class Truth:
    """`truth.json`, with what drawing needs worked out once. `data` is the file, untouched."""

    data: dict[str, Any]
    kinds: tuple[str, ...] = field(init=False)
    templates: dict[str, tuple[tuple[Slot, ...], ...]] = field(init=False)
    gender_of_name: dict[str, str] = field(init=False)
    p_female: dict[str, float] = field(init=False)
    topics: tuple[str, ...] = field(init=False)
    topic_words: tuple[str, ...] = field(init=False)
    word_given_topic: np.ndarray = field(init=False)
    pool: tuple[str, ...] = field(init=False)
    stubs: dict[str, dict[str, float]] = field(init=False)

    def __post_init__(self) -> None:
        """Derive the tables; `word_given_topic` is float64 [topic, topic word], rows sum to 1."""
        data, put = self.data, lambda name, value: object.__setattr__(self, name, value)
        put("kinds", tuple(data["kinds"]))
        put(
            "templates",
            {k: tuple(parse_template(t) for t in v["templates"]) for k, v in data["kinds"].items()},
        )
        put("gender_of_name", {n: g for g, names in data["names"].items() for n in names})
        pairs = data["gendered_occupations"]
        gendered = {p["female"]: 1.0 for p in pairs} | {p["male"]: 0.0 for p in pairs}
        put("p_female", gendered | data["biased_occupations"])
        put("topics", tuple(data["topics"]))
        put("topic_words", tuple(dict.fromkeys(w for words in data["topics"].values() for w in words)))
        table = np.zeros((len(self.topics), len(self.topic_words)))
        index = {w: i for i, w in enumerate(self.topic_words)}
        for row, words in zip(table, data["topics"].values(), strict=True):
            for rank, word in enumerate(words):
                row[index[word]] = 1 / (rank + data["topic_word_weight"]["offset"])
        put("word_given_topic", table / table.sum(1, keepdims=True))
        lists = [self.gender_of_name, self.p_female, self.topic_words]
        lists += [data["capitals"], data["capitals"].values(), *data["classes"].values()]
        put("pool", tuple(sorted({word for words in lists for word in words})))
        put("stubs", {"prefix": self._stubs(lambda word, cut: word[:cut])})
        self.stubs["suffix"] = self._stubs(lambda word, cut: word[cut:])

    def _stubs(self, keep: Callable[[str, int], str]) -> dict[str, float]:
        """P(stub): a word of the pool, equally likely, torn at a place inside it, equally likely.

        They are in the language to give the tokens between bytes and words, half of the vocabulary, something
        to do; without them those are never trained and crowd every readout.
        """
        words = [word for word in self.pool if len(word) > 1]
        table: dict[str, float] = {}
        for word in words:
            for cut in range(1, len(word)):
                stub = keep(word, cut)
                table[stub] = table.get(stub, 0.0) + 1 / (len(words) * (len(word) - 1))
        return table

    def occupations_given(self, gender: str) -> dict[str, float]:
        """P(occupation | gender), by Bayes from equally frequent occupations and their P(female)."""
        weights = {o: p if gender == "female" else 1 - p for o, p in self.p_female.items()}
        total = math.fsum(weights.values())
        return {o: w / total for o, w in weights.items() if w > 0}


@cache
def load_truth() -> Truth:
    """The truth that ships with the package."""
    return Truth(json.loads(TRUTH_FILE.read_text(encoding="utf-8")))


class _Author:
    """Draws documents one after the other from one random stream."""

    def __init__(self, truth: Truth, rng: np.random.Generator) -> None:
        self.truth, self.random = truth, rng.random
        data = truth.data
        self.classes: dict[str, list[str]] = {k: list(v) for k, v in data["classes"].items()}
        self.classes["name"] = list(truth.gender_of_name)
        self.capitals = list(data["capitals"].items())
        self.kind_sums = list(accumulate(k["share"] for k in data["kinds"].values()))
        self.topic_sums = [list(accumulate(row)) for row in truth.word_given_topic.tolist()]
        self.word_index = {w: i for i, w in enumerate(truth.topic_words)}
        self.stubs = {k: (list(t), list(t.values()), list(accumulate(t.values()))) for k, t in truth.stubs.items()}
        self.by_gender = {g: truth.occupations_given(g) for g in data["pronouns"]}
        # Of one sentence:
        self.bound: dict[tuple[str, str], str] = {}
        self.gender: dict[str, tuple[str, str]] = {}  # label -> (gender, what fixed it)
        # Of one document:
        self.topic, self.belief = 0, np.empty(0)

    def document(self) -> Document:
        """One document with its exact log-probability."""
        share = self.truth.data["document"]["sequence_share"]
        if self.random() < share:
            return Document((self.sequence(math.log(share)),), topic="")
        return self.prose(math.log1p(-share))

    # -- prose ---------------------------------------------------------------------------------------------

    def prose(self, log_p: float) -> Document:
        """A prose document; `log_p` is the log-probability that the document is prose."""
        counts = self.truth.data["document"]["sentences"]
        length = counts[int(self.random() * len(counts))]
        self.topic = int(self.random() * len(self.truth.topics))
        self.belief = np.full(len(self.truth.topics), 1 / len(self.truth.topics))
        units = []
        for i in range(length):
            # After i sentences the counts still possible are those ≥ i, equally likely; going on means > i.
            possible = sum(c >= i for c in counts)
            log_p += math.log(sum(c > i for c in counts) / possible)
            units.append(self.sentence(" " if i else "", log_p))
            log_p = 0.0
        stop = Piece("", -math.log(sum(c >= length for c in counts)), "stop")
        return Document((*units, Unit("stop", (stop,))), self.truth.topics[self.topic])

    def sentence(self, space: str, log_p: float) -> Unit:
        """A sentence, `space` in front; `log_p` is the log-probability that there is one."""
        kind = self.truth.kinds[bisect(self.kind_sums, self.random() * self.kind_sums[-1])]
        templates = self.truth.templates[kind]
        template = templates[int(self.random() * len(templates))]
        log_p += math.log(self.truth.data["kinds"][kind]["share"] / len(templates))
        self.bound, self.gender = {}, {}
        pieces = [Piece("", log_p, "start")]
        for i, slot in enumerate(template):
            lead = (space if i == 0 else "") + slot.text
            if slot.role == "text":
                pieces.append(Piece(lead, 0.0, "text"))
                continue
            word, log_q, why = self.fill(slot.role, slot.label)
            self.bound[slot.role, slot.label] = word
            pieces.append(Piece(lead + word, log_q, slot.role, why))
        return Unit(kind, tuple(pieces))

    def fill(self, role: str, label: str) -> tuple[str, float, str]:
        """The word for a slot, its log-probability, and for a pronoun what fixed its gender."""
        if role in PRONOUNS:
            return self.pronoun(role, label)
        if (role, label) in self.bound:
            return self.bound[role, label], 0.0, "repeat"
        if role == "occupation":
            return self.occupation(label)
        if role in ("country", "capital"):
            return self.capital(role, label)
        if role == "topic":
            return self.topic_word()
        if role in self.stubs:
            words, shares, sums = self.stubs[role]
            i = min(bisect(sums, self.random()), len(words) - 1)
            return words[i], math.log(shares[i]), ""
        words = self.classes[role]
        used = [w for (r, _), w in self.bound.items() if r == role]
        word = words[int(self.random() * len(words))]
        while word in used:  # within a sentence, words of a class are drawn without replacement
            word = words[int(self.random() * len(words))]
        if role == "name":
            self.gender[label] = (self.truth.gender_of_name[word], "name")
        return word, -math.log(len(words) - len(used)), ""

    def pronoun(self, role: str, label: str) -> tuple[str, float, str]:
        """The pronoun of `label`; drawn at the occupation's rate if nothing has fixed the gender."""
        log_p = 0.0
        if label in self.gender:
            gender, why = self.gender[label]
        else:
            why = self.bound["occupation", label]
            rate = self.truth.p_female[why]
            gender = "female" if self.random() < rate else "male"
            log_p = math.log(rate if gender == "female" else 1 - rate)
            self.gender[label] = (gender, "earlier pronoun")
        return self.truth.data["pronouns"][gender][role], log_p, why

    def occupation(self, label: str) -> tuple[str, float, str]:
        """An occupation: given the gender if the name told it, else uniform over all."""
        if label in self.gender:
            table = self.by_gender[self.gender[label][0]]
            word = list(table)[bisect(list(accumulate(table.values()))[:-1], self.random())]
            return word, math.log(table[word]), self.gender[label][0]
        words = list(self.truth.p_female)
        word = words[int(self.random() * len(words))]
        rate = self.truth.p_female[word]
        if rate in (0.0, 1.0):
            self.gender[label] = ("female" if rate else "male", "gendered occupation")
        return word, -math.log(len(words)), ""

    def capital(self, role: str, label: str) -> tuple[str, float, str]:
        """A country or capital; the second of the two is fixed by the first."""
        other = "capital" if role == "country" else "country"
        column = ("country", "capital").index(role)
        if (other, label) in self.bound:
            known = self.bound[other, label]
            return next(p for p in self.capitals if p[1 - column] == known)[column], 0.0, "fact"
        pair = self.capitals[int(self.random() * len(self.capitals))]
        return pair[column], -math.log(len(self.capitals)), ""

    def topic_word(self) -> tuple[str, float, str]:
        """A word of the hidden topic, not yet in this sentence; its probability is filtered over topics.

        `why` is "known" once the document has told its topic apart from all others.
        """
        used = [self.word_index[w] for (r, _), w in self.bound.items() if r == "topic"]
        i = self.draw_topic_word()
        while i in used:
            i = self.draw_topic_word()
        table = self.truth.word_given_topic
        known = self.belief.max() > 1 - 1e-12  # ruled-out topics have belief exactly 0; 1e-12 is rounding
        joint = self.belief * table[:, i]
        if used:
            # Topics that rule the used words in or out alike: 1 - (mass used up) is > 0 for all of them.
            joint = joint / (1 - table[:, used].sum(1))
        p = float(joint.sum())
        self.belief = joint / p
        return self.truth.topic_words[i], math.log(p), "known" if known else ""

    def draw_topic_word(self) -> int:
        """Index of a word drawn from the hidden topic."""
        sums = self.topic_sums[self.topic]
        return min(bisect(sums, self.random()), len(sums) - 1)

    # -- sequences -----------------------------------------------------------------------------------------

    def sequence(self, log_p: float) -> Unit:
        """Random distinct words, then the same words again; `log_p` is that of being a sequence.

        Where the first pass may end, the next word is either the first word again or a fresh one; both
        probabilities count the chance of going on. As words do not recur within a pass, the text tells which.
        """
        data = self.truth.data["document"]
        shortest, longest = data["sequence_words"]["shortest"], data["sequence_words"]["longest"]
        length = shortest + int(self.random() * (longest - shortest + 1))
        passes = data["sequence_passes"][int(self.random() * len(data["sequence_passes"]))]
        pool, chosen, pieces = self.truth.pool, [], []
        taken = set()
        while len(chosen) < length:
            word = pool[int(self.random() * len(pool))]
            if word in taken:
                continue
            possible = longest - max(len(chosen), shortest) + 1
            going_on = (possible - 1) / possible if len(chosen) >= shortest else 1.0
            log_p += math.log(going_on / (len(pool) - len(chosen)))
            pieces.append(Piece(" " + word, log_p, "word"))
            log_p = 0.0
            taken.add(word)
            chosen.append(word)
        for n in range(2, passes + 1):
            for i, word in enumerate(chosen):
                log_q = 0.0
                if i == 0:
                    log_q = -math.log(longest - length + 1) if n == 2 else self._another_pass(n)
                pieces.append(Piece(" " + word, log_q, "repeat", "first" if i == 0 else ""))
        choices = data["sequence_passes"]
        pieces.append(Piece("", -math.log(sum(c >= passes for c in choices)), "stop"))
        return Unit("sequence", tuple(pieces))

    def _another_pass(self, n: int) -> float:
        """Log-probability of an n-th pass after n - 1."""
        choices = self.truth.data["document"]["sequence_passes"]
        return math.log(sum(c >= n for c in choices) / sum(c >= n - 1 for c in choices))


def documents(seed: int, count: int, truth: Truth | None = None) -> Iterator[Document]:
    """`count` documents of the random stream `seed`; the same seed gives the same documents."""
    author = _Author(truth or load_truth(), np.random.default_rng(seed))
    return (author.document() for _ in range(count))
