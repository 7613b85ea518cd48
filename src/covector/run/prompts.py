"""Prompts as a model runs them: pairs of equal length with named slots, from a template and names or from JSONL.

A pair is two prompts that differ in what a task turns on (`clean`, `corrupt`). A *slot* is a position with a name: the
last token of what was filled in, ``NAME+1`` after it, ``end`` the last token. Pairs of one length run as a batch.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from covector.axes import Int
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.prompt_fields import fields_of, refuse_document

_SLOT = re.compile(r"\[([A-Za-z_]\w*)\]")
_SHIFT = re.compile(r"(.+?)([+-]\d+)?")
# Tokens that stand in front of a text, in the order in which vocabularies are searched for one.
STARTS = ("<|endoftext|>", "<s>", "<bos>", "<|begin_of_text|>", "[CLS]", "</s>")


@dataclass(frozen=True)
class Pair:
    """Two prompts of one length. ``slots`` are positions by name, ``end`` included; ``names`` what was filled in.

    ``filled``: of several slots, what was filled into each that differs between the sides (into all, if none does).
    Of an agent ``inputs`` hold both sides, input name → [time] indices or [time, n] vectors, and there are no ids; its
    slots name every position, those that were asked for first.
    """

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    slots: Mapping[str, int]
    texts: tuple[str, str]
    names: tuple[str, str] = ("", "")
    label: str = ""
    inputs: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = field(default=None, compare=False)
    filled: tuple[tuple[str, ...], tuple[str, ...]] = field(default=((), ()), compare=False)

    def __len__(self) -> int:
        """Positions of each prompt."""
        return len(self.clean) if self.inputs is None else self.slots["end"] + 1

    @property
    def shape(self) -> tuple:
        """What prompts that run together have in common."""
        if self.inputs is None:
            return (len(self.clean),)
        return tuple(sorted((name, value.shape) for name, value in self.inputs[0].items()))

    @property
    def differs(self) -> bool:
        """Whether the two sides are two."""
        if self.inputs is None:
            return self.clean != self.corrupt
        return any(not np.array_equal(self.inputs[0][name], self.inputs[1][name]) for name in self.inputs[0])

    def position(self, slot: str) -> int:
        """The position that ``NAME``, ``NAME+1``, ``end``, ``end-2`` or a number means; BadRequest for another."""
        found = _SHIFT.fullmatch(slot)
        base, shift = (found[1], int(found[2] or 0)) if found else (slot, 0)
        if base.isdecimal():
            at = int(base) + shift
        elif base in self.slots:
            at = self.slots[base] + shift
        else:
            raise BadRequest(f"expected a slot among {', '.join(self.slots)} or a number, got '{slot}'")
        if not 0 <= at < len(self):
            raise BadRequest(f"slot {slot} is position {at} of a prompt of {len(self)} tokens; choose one inside it")
        return at

    def slot_of(self, position: int) -> str:
        """The name of a position: the nearest slot at or before it, with its distance (``NAME+2``)."""
        if position == self.slots["end"]:
            return "end"
        before = [(at, name) for name, at in self.slots.items() if at <= position and name != "end"]
        if not before:
            return str(position)
        at, name = max(before) if self.inputs is None else max(before, key=lambda slot: slot[0])
        return name if at == position else f"{name}+{position - at}"


def canonical_slot(pairs: Sequence[Pair], slot: str) -> str:
    """The name by which a slot's position goes in `Pair.slot_of`. Raises BadRequest where pairs disagree or lack it."""
    names = {pair.slot_of(pair.position(slot)) for pair in pairs}
    if len(names) != 1:
        raise BadRequest(f"slot {slot} is called {' and '.join(sorted(names))} in different prompts; use one of these")
    return names.pop()


@dataclass(frozen=True)
class Batch:
    """Pairs of equal length as arrays [batch, position], of agents by input [batch, time] or [batch, time, n]."""

    pairs: tuple[Pair, ...]
    clean: Int[np.ndarray, "batch position"] | Mapping[str, np.ndarray]
    corrupt: Int[np.ndarray, "batch position"] | Mapping[str, np.ndarray]

    def at(self, slot: str) -> Int[np.ndarray, " batch"]:
        """Each prompt's position of a slot."""
        return np.array([pair.position(slot) for pair in self.pairs])


def batches(pairs: Sequence[Pair], size: int = 32) -> Iterator[Batch]:
    """Pairs grouped by length, in order of first appearance, at most `size` together."""
    by_shape: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        by_shape.setdefault(pair.shape, []).append(pair)
    for group in by_shape.values():
        for first in range(0, len(group), size):
            some = tuple(group[first : first + size])
            yield Batch(some, side_of(some, 0), side_of(some, 1))


def side_of(pairs: Sequence[Pair], side: int) -> Int[np.ndarray, "batch position"] | dict[str, np.ndarray]:
    """One side (0 clean, 1 corrupt) of pairs of one shape, as it runs."""
    given = [pair.inputs[side] for pair in pairs if pair.inputs is not None]
    if given:
        return {name: np.stack([inputs[name] for inputs in given]) for name in given[0]}
    return np.array([(pair.clean, pair.corrupt)[side] for pair in pairs])


def both_sides(pairs: Sequence[Pair]) -> Int[np.ndarray, "n position"] | dict[str, np.ndarray]:
    """The clean sides of pairs of one shape, then their corrupt sides, as one batch."""
    clean, corrupt = side_of(pairs, 0), side_of(pairs, 1)
    if isinstance(clean, dict) and isinstance(corrupt, dict):
        return {name: np.concatenate([value, corrupt[name]]) for name, value in clean.items()}
    return np.concatenate([np.asarray(clean), np.asarray(corrupt)])


def fill_template(
    model: Model,
    templates: str | Sequence[str],
    fills: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    bos: str = "auto",
) -> list[Pair]:
    """Pairs from templates with slots, ``So, [NAME] really is``; entry i of both lists of a slot make pair i.

    Template-major order. `bos`: ``auto`` puts the vocabulary's start token in front where its tokenizer does or it is
    known, ``yes`` insists, ``no`` leaves it out. Raises BadRequest for a slot without names, lists of different
    lengths, or two names that are split into different numbers of tokens (both are named).
    """
    pairs = []
    written = (templates,) if isinstance(templates, str) else tuple(templates)
    unused = [name for name in fills if not any(name in _SLOT.findall(template) for template in written)]
    if unused:
        known = ", ".join(f"[{name}]" for template in written for name in _SLOT.findall(template))
        raise BadRequest(f"--fill {unused[0]}: expected a slot of the template ({known or 'it has none'}); rename it")
    for template in (templates,) if isinstance(templates, str) else templates:
        wanted = _SLOT.findall(template)
        missing = [name for name in wanted if name not in fills]
        if missing or not wanted:
            told = f"no names for [{missing[0]}]" if missing else "no slot in it"
            raise BadRequest(
                f"template '{template}': expected slots such as [NAME] with --fill NAME=a.txt:b.txt, got {told}"
            )
        lengths = {name: tuple(map(len, fills[name])) for name in wanted}
        if len({n for both in lengths.values() for n in both}) != 1:
            raise BadRequest(
                f"expected as many names on both sides of every slot, got {lengths}; pair i uses line i of each"
            )
        for i in range(len(fills[wanted[0]][0])):
            sides = [{name: fills[name][side][i] for name in wanted} for side in (0, 1)]
            pairs.append(_filled(model, template, sides, bos))
    return pairs


def parse_fill(given: Sequence[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Names per slot from ``NAME=clean.txt:corrupt.txt`` or ``NAME=Mary,Lisa:John,Mark``; BadRequest for others."""
    found = {}
    for text in given:
        name, equals, sides = text.partition("=")
        clean, colon, corrupt = sides.partition(":")
        if not (name and equals and clean and colon and corrupt):
            raise BadRequest(f"--fill: expected NAME=clean.txt:corrupt.txt (or names with commas), got '{text}'")
        found[name.strip("[] ")] = (_names(clean), _names(corrupt))
    return found


def _names(text: str) -> list[str]:
    if Path(text).suffix == ".txt" or Path(text).expanduser().exists():
        return read_names(Path(text))
    return [name.strip() for name in text.split(",") if name.strip()]


def single(model: Model, text: str, bos: str = "auto") -> Pair:
    """One prompt, beside itself: for questions that compare nothing."""
    ids = tuple(start_ids(model, bos) + _encode(model, text))
    return Pair(ids, ids, {"end": len(ids) - 1}, (text, text))


def read_pairs(model: Model, path: Path, bos: str = "auto") -> list[Pair]:
    """Pairs of a JSONL file, one object a line: ``clean``, ``corrupt``, ``slots``, ``names``, ``label``.

    A slot's value is a position, or a text: its last token's position, which must be the same in both prompts.
    ``names`` (``["Sara", "Bob"]``, clean and corrupt) say what intervals and held-out halves count: pairs that share
    one are one piece of evidence. Without them the words in which the two texts differ are taken (`clusters_of`).
    A label is only a label. Other names of the two texts (``female_prompt``, ``male_prompt`` …) are in `fields_of`.
    Raises BadRequest, with the line, for anything that does not fit.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"expected a UTF-8 JSONL file of prompts at '{path}', got: {error}; check the path") from error
    refuse_document(text, path)
    lines = text.splitlines()
    pairs = [_from_line(model, line, f"{path}, line {i}", bos) for i, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise BadRequest(f"{path}: expected prompts, one JSON object a line, got none")
    return pairs


def read_names(path: Path) -> list[str]:
    """Names of a text file, one a line, blank lines left out. Raises BadRequest."""
    try:
        found = [line.strip() for line in path.expanduser().read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"expected names, one a line, in '{path}', got: {error}; check the path") from error
    return [name for name in found if name]


def start_ids(model: Model, bos: str) -> list[int]:
    """The start token as a list of one id, or of none; see `fill_template`. Raises BadRequest."""
    if bos not in ("auto", "yes", "no"):
        raise BadRequest(f"--bos: expected auto, yes or no, got '{bos}'")
    labels = model.labels.get("token", ())
    found = next((labels.index(t) for t in STARTS if t in labels), None)
    if bos == "yes" and found is None:
        raise BadRequest(f"--bos yes: {model.name} has no start token that is known; use --bos no")
    return [found] if found is not None and bos != "no" else []


def _encode(model: Model, text: str) -> list[int]:
    if model.vocabulary is None:
        raise BadRequest(f"{model.name} has no tokenizer: expected a model that can read prompts")
    return model.vocabulary.encode(text)


def _filled(model: Model, template: str, sides: Sequence[Mapping[str, str]], bos: str) -> Pair:
    texts, ids, slots = [], [], []
    for names in sides:
        text, places = _placed(template, names)
        ids.append(start_ids(model, bos) + _encode(model, text))
        texts.append(text)
        slots.append({name: _last_token(model, text, end, bos) for name, end in places.items()})
    if len(ids[0]) != len(ids[1]) or slots[0] != slots[1]:
        told = " and ".join(f"'{t}' ({len(i)} tokens)" for t, i in zip(texts, ids, strict=True))
        raise BadRequest(
            f"expected two prompts of equal length with slots at the same tokens, got {told}; choose other names"
        )
    names = tuple(" ".join(side.values()) for side in sides)
    differ = [name for name in sides[0] if sides[0][name] != sides[1][name]] or list(sides[0])
    filled = tuple(tuple(side[name] for name in differ) for side in sides)
    return Pair(
        tuple(ids[0]), tuple(ids[1]), slots[0] | {"end": len(ids[0]) - 1}, (texts[0], texts[1]), (names[0], names[1]),
        filled=(filled[0], filled[1]),
    )  # fmt: skip


def _placed(template: str, names: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """The text, and where what was filled in ends (the first time that a slot stands there)."""
    text, at, places = "", 0, dict[str, int]()
    for found in _SLOT.finditer(template):
        text += template[at : found.start()] + names[found[1]]
        places.setdefault(found[1], len(text))
        at = found.end()
    return text + template[at:], places


def _last_token(model: Model, text: str, end: int, bos: str) -> int:
    """Position of the last token of ``text[:end]`` in the whole text. Raises BadRequest where a token spans the end."""
    whole, first = _encode(model, text), _encode(model, text[:end])
    if not first or whole[: len(first)] != first:
        raise BadRequest(f"'{text}': no token ends after '{text[:end]}', a slot must end where a token does; reword it")
    return len(start_ids(model, bos)) + len(first) - 1


def _from_line(model: Model, line: str, where: str, bos: str) -> Pair:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BadRequest(f"{where}: expected a JSON object, got: {error}") from error
    fields = fields_of(value, where) if isinstance(value, dict) else ("clean", "corrupt")
    if not isinstance(value, dict) or not isinstance(value.get(fields[0]), str):
        raise BadRequest(
            f"{where}: expected an object with 'clean' (a text), and 'corrupt', 'slots', 'names', 'label' if wanted"
        )
    texts, places = (value[fields[0]], value.get(fields[1], value[fields[0]])), value.get("slots", {})
    if not isinstance(texts[1], str) or not isinstance(places, dict):
        raise BadRequest(
            f"{where}: expected 'corrupt' to be a text and 'slots' an object of name: text or token, got "
            f"{texts[1]!r} and {places!r}"
        )
    ids = [start_ids(model, bos) + _encode(model, text) for text in texts]
    if len(ids[0]) != len(ids[1]):
        raise BadRequest(f"{where}: expected prompts of equal length, got {len(ids[0])} and {len(ids[1])} tokens")
    slots = {name: _slot(model, at, ids, texts, where, bos) for name, at in places.items()}
    names, label = _given(value.get("names", []), where), str(value.get("label", ""))
    return Pair(tuple(ids[0]), tuple(ids[1]), slots | {"end": len(ids[0]) - 1}, texts, names, label)


def _given(names: object, where: str) -> tuple[str, str]:
    """The names of both sides that a line gives, one for both if it is alone; empty for none."""
    listed = [
        name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str) and name.strip()
    ]
    if len(listed) > 2 or (isinstance(names, list) and len(listed) != len(names)) or (not listed and names != []):
        raise BadRequest(f'{where}: expected \'names\' as ["clean name", "corrupt name"], got {names!r}')
    return (listed[0], listed[-1]) if listed else ("", "")


def _slot(model: Model, at: object, ids: Sequence[Sequence[int]], texts: Iterable[str], where: str, bos: str) -> int:
    if isinstance(at, int) and not isinstance(at, bool):
        place = at if at >= 0 else len(ids[0]) + at
        if not 0 <= place < len(ids[0]):
            raise BadRequest(f"{where}: slot {at} is outside prompts of {len(ids[0])} tokens; choose one inside")
        return place
    if not isinstance(at, str) or not at:
        raise BadRequest(f"{where}: expected a slot's text or token number, got {at!r}")
    found = {_last_token(model, text, text.index(at) + len(at), bos) for text in texts if at in text}
    if len(found) != 1:
        raise BadRequest(
            f"{where}: expected slot text {at!r} once at the same token of both prompts, found {len(found)} places"
        )
    return found.pop()
