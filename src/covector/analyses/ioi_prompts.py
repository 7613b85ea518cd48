"""Prompts of the indirect-object task: two people, one of whom gives; who gets it?

A pair differs in one token, the second naming of the giver (S2): clean ``Mary and John … John gave a ring to`` (Mary),
corrupt ``Mary and John … Mary gave a ring to`` (John). So whatever carries the difference begins at S2.

Templates and names: GitHub `redwoodresearch/Easy-Transformer`, MIT, in `ioi_data`; Wang et al. 2022 (arXiv 2211.00593).
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covector.errors import BadRequest, CovectorError, NotOneToken
from covector.linalg.chance.streams import generator
from covector.model.opened import Model
from covector.run.prompts import Pair, fill_template

DATA = Path(__file__).parent / "ioi_data" / "ioi.json"
SLOTS = ("IO", "S1", "S2", "end")
_PIECES = re.compile(r" ?[\w<>']+| ?[^\w\s]")


@dataclass(frozen=True)
class Task:
    """One pair of prompts: ids of the two names, and which pair of names it is (what statistics count)."""

    pair: Pair
    io: int
    s: int
    names: int


@dataclass(frozen=True)
class LabelWords:
    """Reads words of a model that has labels and no tokenizer: one label, one word."""

    labels: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text; NotOneToken for a word that is no label."""
        return [self.one(word) for word in _PIECES.findall(text)]

    def one(self, text: str) -> int:
        """Id of one word."""
        if text not in self.labels:
            raise NotOneToken(f"expected one of the {len(self.labels)} labels, got {text!r}; use other words")
        return self.labels.index(text)


def packaged() -> Mapping[str, list[str]]:
    """The published lists: names, places, objects, templates with [A] (indirect object) and [B] (subject)."""
    return json.loads(DATA.read_text(encoding="utf-8"))


def ioi_tasks(
    model: Model,
    *,
    names: Sequence[str] = (),
    templates: Sequence[str] = (),
    pairs: int = 12,
    orders: int = 3,
    bos: str = "auto",
    seed: int = 0,
) -> list[Task]:
    """`pairs` pairs of names, no name in two of them, in each of `orders` templates and both orders (ABB, BAB).

    Templates have [A] and [B] as published, the text ends before the last [A]; places and objects are drawn. Templates
    and names that the vocabulary cannot read, or not as one token, are passed over. Raises BadRequest where fewer than
    two pairs of names or no template are left, or for a template without both names.
    """
    told, rng = packaged(), generator(seed, "ioi prompts")
    if model.vocabulary is None and model.labels.get("token"):
        model = dataclasses.replace(model, vocabulary=LabelWords(model.labels["token"]))
    given = list(templates) or told["templates_baba"]
    ways = _readable(model, [_slots(_filled(t, told, model, rng), t) for t in given])[:orders]
    if not ways:
        raise BadRequest(f"{model.name} cannot read any of {len(given)} templates; give your own with --template")
    known = _single(model, names or told["names"], ways[0])
    if len(known) < 4:
        raise BadRequest(
            f"expected at least four names of one token, {model.name} has {len(known)} of those tried "
            f"({', '.join(known) or 'none'}); give others with --names FILE"
        )
    chosen = [known[i] for i in rng.permutation(len(known))]
    couples = list(zip(chosen[0::2], chosen[1::2], strict=False))[:pairs]
    return [
        _task(model, way, a, b, i, bos) for i, (a, b) in enumerate(couples) for one in ways for way in (one, _swap(one))
    ]


def _slots(text: str, template: str) -> str:
    """[A], [B] as slots by order: ``[S1] and [IO] … [S2] gave a ring to``."""
    if text.count("[B]") < 2 or text.count("[A]") < 1:
        raise BadRequest(f"template '{template}': expected [A] (who gets it) and [B] (who gives) twice, and [A] last")
    end = text.rfind("[A]")
    if end > text.rfind("[B]"):
        text = text[:end].rstrip()
    return text.replace("[A]", "[IO]", 1).replace("[B]", "[S1]", 1).replace("[B]", "[S2]")


def _swap(way: str) -> str:
    """The same with the two names of the beginning exchanged."""
    return way.replace("[IO]", "[#]").replace("[S1]", "[IO]").replace("[#]", "[S1]")


def _filled(template: str, told: Mapping[str, list[str]], model: Model, rng: np.random.Generator) -> str:
    """Places and objects put in: drawn among those that the vocabulary can read."""
    for slot, words in (("[PLACE]", told["places"]), ("[OBJECT]", told["objects"])):
        if slot in template:
            fit = [w for w in words if _encodes(model, f" {w}")] or words
            template = template.replace(slot, str(rng.choice(fit)))
    return template


def _encodes(model: Model, text: str) -> bool:
    try:
        return bool(model.vocabulary and model.vocabulary.encode(text))
    except CovectorError:
        return False


def _readable(model: Model, ways: Sequence[str]) -> list[str]:
    """Templates whose fixed words the vocabulary can read."""
    if not isinstance(model.vocabulary, LabelWords):
        return list(ways)
    return [way for way in ways if _encodes(model, re.sub(r" ?\[\w+\]", "", way))]


def _single(model: Model, names: Sequence[str], way: str) -> list[str]:
    """Names that are one token where the template has them."""
    found, vocabulary = [], model.vocabulary
    if vocabulary is None:
        raise BadRequest(f"{model.name} has no tokenizer: expected a model that can read prompts")
    before = way[: way.index("[S1]")] if way.index("[S1]") < way.index("[IO]") else way[: way.index("[IO]")]
    for name in dict.fromkeys(names):
        try:
            if len(vocabulary.encode(before + name)) - len(vocabulary.encode(before.rstrip(" "))) == 1:
                found.append(name)
        except CovectorError:
            continue
    return found


def _task(model: Model, way: str, io: str, s: str, names: int, bos: str) -> Task:
    pair = fill_template(model, way, {"IO": ([io], [io]), "S1": ([s], [s]), "S2": ([s], [io])}, bos)[0]
    ids = [pair.clean[pair.slots[slot]] for slot in ("IO", "S1")]
    differ = [i for i, (x, y) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if x != y]
    if differ != [pair.slots["S2"]]:
        raise BadRequest(
            f"'{pair.texts[0]}' and '{pair.texts[1]}' differ at tokens {differ}: expected the second naming alone; "
            "choose names of one token"
        )
    return Task(pair, ids[0], ids[1], names)
