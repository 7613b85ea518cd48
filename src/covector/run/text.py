"""A text as the windows that a model can run: ids cut to its context, batch by batch, with their places in the text."""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Int
from covector.errors import BadRequest
from covector.model.opened import Model

# Tokens per forward pass. More are slower: measured on a model of 8 heads, 28,700 tokens take 2.0 s of one core with
# 512, 3.6 s with 2048, because scores and patterns no longer fit a cache.
BATCH_TOKENS = 512
# Windows are no longer than this, whatever the context: scores grow with the square (512 takes twice as long).
LONGEST = 256
# What separates documents in plain text collections.
SEPARATOR = "<|endoftext|>"
# A byte that is no text by itself, as vocabularies write it.
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Windows:
    """Windows of equal length [batch, position], and where each row begins in `ids`, the whole text."""

    tokens: Int[np.ndarray, "batch position"]
    starts: Int[np.ndarray, " batch"]


def text_ids(model: Model, text: str) -> Int[np.ndarray, " n"]:
    """Ids of a text. ``<|endoftext|>`` and the newlines around it separate pieces, and are no part of it.

    Raises BadRequest for a model without a tokenizer, or a text of fewer than two tokens.
    """
    return text_pieces(model, text)[0]


def text_pieces(model: Model, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
    """`text_ids`, and the indices into them at which its pieces begin. Raises what that raises."""
    if model.vocabulary is None:
        raise BadRequest(f"{model.name} has no tokenizer: expected a model that can read a text; give one with tokens")
    pieces = [model.vocabulary.encode(piece) for piece in (p.strip("\n") for p in text.split(SEPARATOR)) if piece]
    ids = [i for piece in pieces for i in piece]
    if len(ids) < 2:
        raise BadRequest(f"expected a text of at least two tokens, got {len(ids)}; check the file")
    return np.array(ids, dtype=np.int64), np.cumsum([0, *(len(p) for p in pieces[:-1])])


def windows(model: Model, ids: Int[np.ndarray, " n"]) -> Iterator[Windows]:
    """Consecutive windows over the text, a batch at a time; a last piece of fewer than two tokens is dropped."""
    length = min(model.spec.n_ctx, LONGEST)
    starts = np.arange(0, len(ids) - 1, length)
    whole = starts[starts + length <= len(ids)]
    rows = max(1, BATCH_TOKENS // length)
    for first in range(0, len(whole), rows):
        some = whole[first : first + rows]
        yield Windows(ids[some[:, None] + np.arange(length)], some)
    if len(whole) < len(starts):
        yield Windows(ids[None, starts[-1] :], starts[-1:])


def readable(labels: Sequence[str]) -> list[str]:
    """Texts of consecutive tokens; a character whose bytes are spread over several stands whole at the last of them.

    Bytes that make no character are escaped (``\\xe6``).
    """
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    texts = [decoder.decode(_bytes(label)) for label in labels]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def _bytes(label: str) -> bytes:
    parts = _BYTE.split(label)  # texts at even places, hexadecimal bytes at odd ones
    return b"".join(
        bytes([int(part, 16)]) if odd % 2 else part.encode("utf-8", "surrogatepass") for odd, part in enumerate(parts)
    )
