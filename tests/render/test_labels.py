"""How a token is shown: visible, one to one, harmless, and measured in terminal cells."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covector.render.labels import cell_len, clip, fill, label, pad, printable, shown, wrap

# Whole planes of text, plus the characters on which an escape could go wrong.
TOKENS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(list(" ·\\nrtxuU07◌\u0301\n\x1b\u200d日é"))),
    min_size=1,
)


def read_back(text: str) -> str:
    """The token that `shown` came from, by the rules it states."""
    escape = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[nrt\\])|◌(?=.)", re.DOTALL)
    single = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}

    def original(match: re.Match) -> str:
        code = match[1]
        if code is None:
            return "" if is_mark(text[match.end()]) else match[0]
        return single[code] if code in single else chr(int(code[1:], 16))

    left = len(text) - len(text.lstrip("·"))
    right = len(text) - left - len(text[left:].rstrip("·"))
    return " " * left + escape.sub(original, text[left : len(text) - right]) + " " * right


def is_mark(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character).startswith("M")


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" she", "·she"),
        ("the", "the"),
        ("  ", "··"),
        ("a b ", "a b·"),
        ("日本", "日本"),
        ("\n", r"\n"),
        ("\x07", r"\x07"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u00a0", r"\xa0"),
        ("\u200d", r"\u200d"),
        ("\u202e", r"\u202e"),
        ("\ufe0f", r"\ufe0f"),
        ("\U000e0100", r"\U000e0100"),
        ("�", "�"),
        ("\u0301", "◌\u0301"),
        ("\n\u0301", "\\n◌\u0301"),
        ("e\u0301", "e\u0301"),
        ("", "⟨empty⟩"),
    ],
)
def test_a_token_is_shown_with_every_character_visible(token, expected):
    assert shown(token) == expected


def test_a_written_escape_and_a_written_middle_dot_are_told_from_real_ones():
    assert shown(r"\n") == r"\\n"
    assert shown("·") == r"\xb7"
    assert shown(" ·") == r"·\xb7"
    assert shown(r"\frac") == r"\frac"
    assert shown("a·b") == "a·b"


@given(TOKENS)
def test_two_different_tokens_never_look_the_same(token):
    assert read_back(shown(token)) == token


@given(TOKENS)
def test_nothing_shown_can_steer_a_terminal(token):
    assert shown(token).isprintable()
    assert len(shown(token).splitlines()) == 1


def test_bytes_that_are_no_text_are_shown_as_escapes():
    assert shown(b"\xe6\x97") == r"\xe6\x97"
    assert shown(b" caf\xc3\xa9") == "·café"
    assert shown("\udce6") == r"\xe6"


def test_a_cell_may_be_empty_where_a_token_may_not():
    assert label("") == ""
    assert label(" a") == "·a"


def test_prose_keeps_its_spaces_and_backslashes_but_no_control():
    assert printable(" a \\n b") == " a \\n b"
    assert printable("red\x1b[31m\u202e") == r"red\x1b[31m\u202e"


def test_width_is_counted_in_terminal_cells():
    assert cell_len("日本") == 4
    assert cell_len("e\u0301") == 1
    assert cell_len("🙂") == 2


def test_clipping_never_halves_a_wide_character():
    assert clip("日本語", 6) == "日本語"
    assert clip("日本語", 5) == "日本…"
    assert clip("日本語", 4) == "日…"
    assert clip("e\u0301tude", 2) == "e\u0301…"
    assert clip("abc", 0) == ""


@given(st.text(), st.integers(0, 12))
def test_filled_text_has_exactly_the_width_asked_for(text, width):
    assert cell_len(fill(printable(text), width)) == width


def test_padding_sets_the_text_left_or_right_and_cuts_nothing():
    assert pad("日", 4) == "日  "
    assert pad("7", 3, right=True) == "  7"
    assert pad("long", 2) == "long"


def test_wrapped_lines_fit_and_lose_no_word():
    text = "chance alone reaches 0.122 日本日本日本日本 end"
    lines = wrap(text, 10)
    assert all(cell_len(line) <= 10 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("", 10) == []
    assert wrap("日本", 1) == ["日", "本"]
