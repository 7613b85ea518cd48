"""The command that was typed, as it can be typed again."""

import re
import shlex
from collections.abc import Collection, Sequence
from contextvars import ContextVar

TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def retyped(*more: str, without: Collection[str] = (), flags: Collection[str] = ()) -> str:
    """The command that runs, with `more` behind it; options (with their value) and flags of these names left out."""
    kept = _kept(TYPED.get(), frozenset(without), frozenset(flags))
    if "--" in kept:  # what stands behind it is no option; said again without it, in the order of a person
        at = kept.index("--")
        words, options = _split(kept[:at])
        kept = [*words, *kept[at + 1 :], *options]
    return " ".join(["covector", *map(_quoted, [*kept, *more])])


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and its options from the first on."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return [*words[:first]], [*words[first:]]


def _kept(words: Sequence[str], without: frozenset[str], flags: frozenset[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        name = word.partition("=")[0]
        if not skip and name not in without and name not in flags:
            kept.append(word)
        skip = not skip and word in without
    return kept


def _quoted(word: str) -> str:
    """As a person would quote it: labels hold single quotes."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)
