"""A checkpoint's tokens as text: what each id stands for, and which ids a text becomes.

Read from ``tokenizer.json`` by the `tokenizers` library, or from ``vocab.json`` + ``merges.txt``. Texts carry their
real leading spaces (`` she``), whatever mark the tokenizer uses for them (Ġ, ▁).
"""

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from covector.errors import CorruptCheckpoint, NotOneToken

# A single byte of a SentencePiece vocabulary with byte fallback.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Name of the error handler that writes undecodable bytes as SentencePiece does.
_BYTES = "covector.bytes"
# How many near tokens an error shows.
_NEAR = 5


def _named_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"<0x{b:02X}>" for b in error.object[error.start : error.end]), error.end


codecs.register_error(_BYTES, _named_bytes)


@dataclass(frozen=True)
class Vocabulary:
    """Token texts by id, and an encoder. ``labels[id]`` is the text, or bytes-like escapes where it is no text."""

    labels: tuple[str, ...]
    tokenizer: Any = field(repr=False, default=None)
    raw: tuple[str, ...] = field(repr=False, default=())

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.labels)

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for i, text in enumerate(self.labels):
            found.setdefault(text, i)
        return found

    @cached_property
    def _raw_ids(self) -> Mapping[str, int]:
        return {text: i for i, text in enumerate(self.raw)}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without start or end tokens."""
        if self.tokenizer is None:
            raise NotOneToken(f"expected a tokenizer to encode '{text}', this checkpoint has none; give ids instead")
        ids = list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        if text.startswith(" ") and self._joined(ids) == " " + text:
            # The tokenizer puts a space of its own in front: leave ours out, so that the ids stand for `text`.
            return list(self.tokenizer.encode(text[1:], add_special_tokens=False).ids)
        return ids

    def _joined(self, ids: list[int]) -> str:
        return "".join(self.labels[i] for i in ids)

    def one(self, text: str) -> int:
        """Id of the single token that `text` is. Shown forms (``·she``, ``Ġshe``, ``▁she``) work too.

        Raises NotOneToken, showing the split and the nearest single tokens.
        """
        plain = text.replace("·", " ") if text.startswith("·") else text
        if plain in self._ids:
            return self._ids[plain]
        if text in self._raw_ids:
            return self._raw_ids[text]
        raise NotOneToken(self._not_one(plain))

    def _not_one(self, text: str) -> str:
        split = ""
        if self.tokenizer is not None:
            split = f" it is {' | '.join(repr(self.labels[i]) for i in self.encode(text))};"
        near = ", ".join(repr(t) for t in self._near(text))
        return f"expected a single token, got {text!r}:{split} near single tokens: {near or 'none'}"

    def _near(self, text: str) -> list[str]:
        """Single tokens with the same letters, or the longest common beginning."""
        bare = text.strip().casefold()
        same = [t for t in self._ids if t.strip().casefold() == bare]
        stems = sorted(
            (t for t in self._ids if len(t.strip()) > 1 and bare.startswith(t.strip().casefold())),
            key=lambda t: (-len(t.strip()), t),
        )
        return [*same, *(t for t in stems if t not in same)][:_NEAR]


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a checkpoint folder, or None when it has no tokenizer files that are understood."""
    from tokenizers import Tokenizer, models

    single, pair = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
    try:
        if single.exists():
            tokenizer = Tokenizer.from_file(str(single))
        elif all(p.exists() for p in pair):
            tokenizer = _byte_level(Tokenizer(models.BPE.from_file(*map(str, pair))))
        else:
            return None
        return _vocabulary(tokenizer)
    except Exception as error:  # the library raises bare Exception with its parse error
        raise CorruptCheckpoint(
            f"{folder}: expected a tokenizer that the tokenizers library reads, it says: {error}; "
            "save it again with a current transformers, or remove it to use ids"
        ) from error


def _byte_level(tokenizer: Any) -> Any:
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _vocabulary(tokenizer: Any) -> Vocabulary:
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    raw = [""] * max(size, max(ids.values(), default=-1) + 1)
    for text, i in ids.items():
        raw[i] = text
    description = json.loads(tokenizer.to_str())
    byte_level = "ByteLevel" in json.dumps([description.get("decoder"), description.get("pre_tokenizer")])
    special = {t["id"] for t in description.get("added_tokens", []) if t.get("special")}
    decode = _from_bytes if byte_level else _from_pieces
    labels = tuple(t if i in special else decode(t) for i, t in enumerate(raw))
    return Vocabulary(labels, tokenizer, tuple(raw))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, by their character."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(b): b for b in kept}
    table |= {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in kept)}
    return table


_ALPHABET = _byte_alphabet()


def _from_bytes(piece: str) -> str:
    if any(c not in _ALPHABET for c in piece):
        return piece
    # Bytes that are no text become escapes (\\xe6), so that every label is a text that JSON and Parquet can hold.
    return bytes(_ALPHABET[c] for c in piece).decode("utf-8", errors=_BYTES)


def _from_pieces(piece: str) -> str:
    found = _BYTE.fullmatch(piece)
    if found:
        return bytes([int(found[1], 16)]).decode("utf-8", errors=_BYTES)
    return piece.replace("▁", " ")
