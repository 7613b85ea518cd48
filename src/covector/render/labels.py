"""How a token is shown: every character visible, and measured in the cells a terminal gives it.

`shown` is one to one: two different tokens never look the same, because spaces at the ends become `·`, whatever
cannot be seen becomes an escape, and a backslash or `·` that could be mistaken for one is escaped itself. Nothing
that `shown` returns can steer a terminal, so every text from a checkpoint passes here before it is printed.
Widths are those of `rich.cells`: two cells for 日, none for a combining mark.
"""

import unicodedata

from rich.cells import cell_len

__all__ = ["cell_len", "clip", "escaped", "fill", "label", "pad", "printable", "shown", "wrap"]

SPACE = "·"
ELLIPSIS = "…"
EMPTY = "⟨empty⟩"
_CIRCLE = "◌"
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# General categories that draw nothing or act on their neighbours: controls, formats (bidi overrides, joiners),
# surrogates, private use, unassigned, line and paragraph separators, and all spaces but the plain one.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
# Letters and marks by category, yet invisible (Default_Ignorable_Code_Point of Unicode): grapheme joiner, Hangul and
# Khmer fillers, Mongolian and general variation selectors, and U+2800, the Braille pattern without dots.
_INVISIBLE = frozenset(map(ord, "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")).union(
    range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0)
)
_ESCAPE_HEADS = ("\\", "n", "r", "t", "x", "u", "U")


def shown(token: str | bytes) -> str:
    r"""The token as one printable line: `·she`, `\n`, `\x07`, `日本`, `\xe6\x97` for bytes that are no text.

    Bytes are read as UTF-8 and the invalid ones escaped; U+FFFD, by which tokenizers mark such bytes, stays as it is.
    Injective on non-empty texts without surrogates. A combining mark with nothing to sit on gets a dotted circle.
    """
    text = token.decode("utf-8", "surrogateescape") if isinstance(token, bytes) else token
    if text.isascii() and text.isalnum():  # most of a vocabulary, and it needs nothing
        return text
    if not text:
        return EMPTY
    start = len(text) - len(text.lstrip(" " + SPACE))
    end = max(len(text.rstrip(" " + SPACE)), start)
    return _edge(text[:start]) + _visible(text[start:end]) + _edge(text[end:])


def label(token: str) -> str:
    """The token as `shown`, but nothing where there is none: a cell may stay empty."""
    return shown(token) if token else ""


def clip(text: str, width: int) -> str:
    """The text, cut to at most `width` cells and ended by `…` where something was cut; never half a wide character."""
    if cell_len(text) <= width:
        return text
    if width <= 0:
        return ""
    return _head(text, width - 1) + ELLIPSIS


def pad(text: str, width: int, *, right: bool = False) -> str:
    """The text filled with spaces to `width` cells, flush right if `right`; longer texts come back unchanged."""
    space = " " * max(width - cell_len(text), 0)
    return space + text if right else text + space


def fill(text: str, width: int, *, right: bool = False) -> str:
    """The text in exactly `width` cells: clipped if longer, filled with spaces if shorter."""
    return pad(clip(text, width), width, right=right)


def wrap(text: str, width: int) -> list[str]:
    """The text as lines of at most `width` cells, broken between words, and inside a word only if it must be."""
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while cell_len(word) > width:
            piece = _head(word, width) or word[0]  # a wide character in a one-cell line must still move on
            lines.append(piece)
            word = word[len(piece) :]
        line = word
    return [*lines, line] if line else lines


def printable(text: str) -> str:
    """Prose with every unseen character escaped; unlike `shown` it leaves spaces and backslashes alone."""
    if text.isprintable():
        return text
    return "".join(escaped(c) if _is_unseen(c) else c for c in text)


def escaped(character: str) -> str:
    r"""The character as an escape: `\n`, `\x07`, `\u200d`; a byte carried by `surrogateescape` as its `\xNN`."""
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _head(text: str, width: int) -> str:
    taken, cells = 0, 0
    for character in text:
        cells += cell_len(character)
        if cells > width:
            break
        taken += 1
    return text[:taken]


def _visible(text: str) -> str:
    """Escapes from the right, because a backslash needs one exactly if what follows would make it an escape."""
    out: list[str] = []
    for character, before in zip(reversed(text), reversed(" " + text[:-1]), strict=False):
        after = out[-1] if out else ""
        if (
            _is_unseen(character)
            or (character == "\\" and after[:1] in _ESCAPE_HEADS)
            or (character == _CIRCLE and after and _is_mark(after[0]))
        ):
            out.append("\\\\" if character == "\\" else escaped(character))
        elif _is_mark(character) and (before == " " or _is_unseen(before)):
            out.append(_CIRCLE + character)
        else:
            out.append(character)
    return "".join(reversed(out))


def _edge(text: str) -> str:
    """Spaces at an end of the token as `·`; a real middle dot there as its escape."""
    return "".join(SPACE if c == " " else "\\xb7" for c in text)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def _is_unseen(character: str) -> bool:
    if character == " ":
        return False
    return unicodedata.category(character) in _UNSEEN or ord(character) in _INVISIBLE
