"""Weighted lists of tokens as they are typed: ``"' she' - ' he'"``, ``"0.5*' nurse' + ' teacher'"``, ``@list.json``.

A quoted text stands for itself, spaces included; shown forms (``·she``, ``Ġshe``, ``▁she``) are understood. A bare word
stands for its single-token variants: with and without the leading space, as typed and capitalised. Between quotes,
a backslash starts an escape as tokens are shown (``\\n``, ``\\x07``, ``\\u200d``) or keeps a quote (``\\'``).

Source: `docs/theory/search.md`, equation 1.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from covector.errors import BadRequest, in_words

_TERM = re.compile(
    r"""\s*(?P<sign>[+\-−])?\s*(?:(?P<weight>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*)?"""
    r"""(?:'(?P<single>(?:[^'\\]|\\.)*)'|"(?P<double>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s+*'"−-][^\s+*'"]*))\s*""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"""\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([nrt\\'"]))""")
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}
_SPACE_MARKS = ("·", "Ġ", "▁")


@dataclass(frozen=True)
class Term:
    """One weighted text; `quoted` says that it is meant letter by letter."""

    weight: float
    text: str
    quoted: bool


@dataclass(frozen=True)
class Expression:
    """A weighted list of texts, and the words it was typed in."""

    terms: tuple[Term, ...]
    typed: str

    def __str__(self) -> str:
        return self.typed


def parse(text: str) -> Expression:
    """The expression that `text` is; ``@FILE`` reads a JSON object {text: weight} or a list of texts.

    Raises BadRequest, showing where it stops making sense.
    """
    text = text.strip()
    if text.startswith("@"):
        return Expression(_from_file(Path(text[1:])), text)
    terms, at = [], 0
    while at < len(text):
        found = _TERM.match(text, at)
        if not found or (terms and not found["sign"] and not _begins_after_space(text, at)):
            raise BadRequest(
                f"expected tokens such as \"' fire' + 0.5*' smoke' - ' water'\", cannot read {text[at:]!r} in {text!r}"
            )
        quoted = found["bare"] is None
        literal = found["bare"] if found["bare"] is not None else _unescaped(found["single"] or found["double"] or "")
        if not literal:
            raise BadRequest(f"expected a token between the quotes, got an empty text in {text!r}")
        sign = -1.0 if found["sign"] in ("-", "−") else 1.0
        marked = not quoted and literal.startswith(_SPACE_MARKS)
        weight = sign * float(found["weight"] or 1.0)
        if not math.isfinite(weight):
            raise BadRequest(f"expected finite weights, got {found['weight']} in {text!r}")
        terms.append(Term(weight, with_space(literal) if marked else literal, quoted or marked))
        at = found.end()
    if not terms:
        raise BadRequest("expected at least one token, got an empty expression; type for example \"' fire'\"")
    return Expression(tuple(terms), text)


def of_weights(weights: Mapping[str, int | float] | Sequence[str], typed: str = "") -> Expression:
    """The expression of a mapping from literal texts to weights, or of a list of texts, each once."""
    pairs = weights.items() if isinstance(weights, Mapping) else [(text, 1.0) for text in weights]
    terms = tuple(Term(float(weight), str(text), True) for text, weight in pairs)
    if not terms or not all(t.text and math.isfinite(t.weight) for t in terms):
        raise BadRequest(f"expected texts with finite weights, got {dict(pairs) if pairs else 'none'}")
    return Expression(terms, typed or written(terms))


def written(terms: Sequence[Term]) -> str:
    """The terms in the grammar that `parse` reads."""
    parts = []
    for term in terms:
        sign = "-" if math.copysign(1.0, term.weight) < 0 else "+"
        weight = "" if abs(term.weight) == 1 else f"{abs(term.weight)!r}*"
        parts.append(f"{sign} {weight}{_quoted(term.text) if term.quoted else term.text}")
    return " ".join(parts).removeprefix("+ ")


def with_space(text: str) -> str:
    """The text that a shown form (``·she``, ``Ġshe``, ``▁she``) stands for."""
    return " " + text[1:] if len(text) > 1 and text.startswith(_SPACE_MARKS) else text


def variants(word: str, known: Mapping[str, int] | frozenset[str]) -> tuple[str, ...]:
    """Single tokens that a bare word may mean, those with a leading space first."""
    forms = dict.fromkeys(space + form for space in (" ", "") for form in (word, word.capitalize()))
    return tuple(form for form in forms if form in known)


def _begins_after_space(text: str, at: int) -> bool:
    """A bare list of words, ``fire flame smoke``, is a sum."""
    return text[at - 1].isspace() and text[at] not in "*"


def _unescaped(text: str) -> str:
    r"""Escapes as tokens are shown; a backslash that starts none stands for itself."""

    def meant(found: re.Match[str]) -> str:
        code = found[1] or found[2] or found[3]
        if code:
            return chr(int(code, 16)) if int(code, 16) <= 0x10FFFF else found[0]
        return _CONTROLS.get(found[4], found[4])

    return _ESCAPE.sub(meant, text)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _from_file(path: Path) -> tuple[Term, ...]:
    try:
        values = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(
            f"expected a JSON file of tokens at '{path}', got: {in_words(error)}; check the path after @"
        ) from error
    if not isinstance(values, dict | list) or not all(isinstance(v, str) for v in values):
        raise BadRequest(
            f"{path}: expected an object of token: weight or a list of tokens, got {type(values).__name__}"
        )
    if isinstance(values, dict) and not all(_is_number(v) for v in values.values()):
        wrong = next(text for text, v in values.items() if not _is_number(v))
        raise BadRequest(f"{path}: expected a finite number for every token, got {values[wrong]!r} for {wrong!r}")
    if not values:
        raise BadRequest(f"{path}: expected at least one token, got an empty {type(values).__name__}")
    return of_weights(values).terms


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
