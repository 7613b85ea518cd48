"""Neutral text: documents by topic as windows of tokens, on which the side effects of a change are measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covector.axes import Bool, Int
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.prompts import start_ids
from covector.run.text import BATCH_TOKENS, LONGEST, SEPARATOR

# Tokens that are looked at, all topics together, and the least per topic.
MOST_TOKENS, LEAST_TOKENS = 1024, 128
NEUTRAL = "neutral"


@dataclass(frozen=True, eq=False)
class Neutral:
    """Windows in batches, and for every token in order of the batches its topic and its window.

    Shorter windows of a batch are filled up at their end; ``kept`` says which tokens are theirs.
    """

    batches: tuple[Int[np.ndarray, "batch position"], ...]
    kept: tuple[Bool[np.ndarray, "batch position"], ...]
    topics: tuple[str, ...]
    topic: Int[np.ndarray, " n"]
    window: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """Tokens."""
        return len(self.topic)

    @property
    def size(self) -> int:
        """Tokens of one run over all windows, with what fills them up."""
        return sum(tokens.size for tokens in self.batches)


def neutral_text(
    model: Model,
    documents: Mapping[str, Sequence[str]] | Int[np.ndarray, "batch position"],
    *,
    bos: str = "auto",
    most: int = MOST_TOKENS,
) -> Neutral:
    """The first tokens of every topic, in equal shares of `most`; documents begin with the start token.

    ``<|endoftext|>`` separates documents. A window is a document, or a piece of one of at most 256 tokens. Token ids
    [batch, position] are taken as they are. Raises BadRequest for a text of fewer than two tokens.
    """
    if isinstance(documents, np.ndarray):
        found = {NEUTRAL: list(documents)}
    else:
        share = max(most // max(len(documents), 1), LEAST_TOKENS)
        found = {topic: _windows(model, texts, topic, bos, share) for topic, texts in documents.items()}
    labelled = [(topic, ids) for topic, windows in found.items() for ids in windows]
    if not labelled:
        raise BadRequest("--neutral: expected a text of at least two tokens, got none; check the file")
    names = tuple(found)
    batches, kept, order = [], [], []
    for rows in _grouped([len(ids) for _, ids in labelled], _looks_back(model)):
        length = max(len(labelled[i][1]) for i in rows)
        tokens, own = np.zeros((len(rows), length), dtype=np.int64), np.zeros((len(rows), length), dtype=bool)
        for row, i in enumerate(rows):
            tokens[row, : len(labelled[i][1])] = labelled[i][1]
            own[row, : len(labelled[i][1])] = True
        batches.append(tokens)
        kept.append(own)
        order += [i for i in rows for _ in labelled[i][1]]
    topic = np.array([names.index(labelled[i][0]) for i in order])
    return Neutral(tuple(batches), tuple(kept), names, topic, np.array(order))


def _looks_back(model: Model) -> bool:
    """Whether a token sees none after it, so that windows may be filled up at their end."""
    return all(block.attn.causal for block in model.spec.blocks if block.attn)


def _grouped(lengths: Sequence[int], may_fill: bool) -> Iterator[list[int]]:
    """Windows that run together: of like length, longest first, at most 512 tokens with what fills them up."""
    some: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if some and (
            (len(some) + 1) * lengths[some[0]] > BATCH_TOKENS or (not may_fill and lengths[i] != lengths[some[0]])
        ):
            yield some
            some = []
        some.append(i)
    yield some


def _windows(model: Model, texts: Sequence[str], topic: str, bos: str, most: int) -> list[Int[np.ndarray, " p"]]:
    if model.vocabulary is None:
        raise BadRequest(f"{model.name} has no tokenizer: expected a model that can read a text; give token ids")
    length, left, found = min(model.spec.n_ctx, LONGEST), most, []
    for text in (piece.strip("\n") for whole in texts for piece in whole.split(SEPARATOR)):
        if left < 2:
            break
        if not text:
            continue
        ids = np.array(start_ids(model, bos) + model.vocabulary.encode(text), dtype=np.int64)[:left]
        some = [ids[at : at + length] for at in range(0, len(ids), length)]
        found += [w for w in some if len(w) > 1]
        left -= len(ids)
    if not found:
        raise BadRequest(f"--neutral: expected at least two tokens of text for {topic}, got fewer; check the file")
    return found


def read_neutral(given: Sequence[str]) -> dict[str, list[str]]:
    """Documents by topic from FILE (plain text), FILE.jsonl ({"text", "topic"} a line), or NAME=FILE (repeatable).

    Raises BadRequest, with the line, for anything else.
    """
    found: dict[str, list[str]] = {}
    for one in given:
        name, equals, rest = one.partition("=")
        named = bool(equals) and bool(name) and not Path(one).expanduser().exists()
        path = Path(rest if named else one).expanduser()
        for topic, text in _documents(path):
            found.setdefault(name if named else topic, []).append(text)
    return found


def _documents(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--neutral: expected a UTF-8 text at '{path}', got: {error}; check the path") from error
    if path.suffix != ".jsonl":
        return [(NEUTRAL, text)]
    return [_document(path, i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]


def _document(path: Path, i: int, line: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
        text, topic = value["text"], value.get("topic", NEUTRAL)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(
            f"{path}, line {i}: expected a JSON object with 'text', and 'topic' if wanted: {error!r}"
        ) from error
    if not isinstance(text, str) or not isinstance(topic, str):
        raise BadRequest(f"{path}, line {i}: expected 'text' and 'topic' to be texts, got {text!r} and {topic!r}")
    return topic, text
