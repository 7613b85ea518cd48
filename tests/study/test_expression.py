"""The grammar of weighted lists: what is typed is what is meant, and what cannot be read is shown."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covector.errors import BadRequest
from covector.render.labels import shown
from covector.study.expression import Expression, Term, of_weights, parse, variants, with_space, written


def pairs(text: str) -> list[tuple[float, str]]:
    return [(term.weight, term.text) for term in parse(text).terms]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("' she' - ' he'", [(1, " she"), (-1, " he")]),
        ("0.5*' nurse' + ' teacher'", [(0.5, " nurse"), (1, " teacher")]),
        ("- 2 * ' a'", [(-2, " a")]),
        ("+' a'-' b'", [(1, " a"), (-1, " b")]),
        ("' a' − .5*' b'", [(1, " a"), (-0.5, " b")]),
        ("1e-3*' a' + 2.E+1*' b'", [(0.001, " a"), (20, " b")]),
        ("\" it's\" - '\"'", [(1, " it's"), (-1, '"')]),
        ("fire flame  smoke", [(1, "fire"), (1, "flame"), (1, "smoke")]),
        ("fire - 2*well-known", [(1, "fire"), (-2, "well-known")]),
        ("2 fires", [(1, "2"), (1, "fires")]),
    ],
)
def test_weights_signs_and_quotes_are_read_as_typed(typed: str, meant: list[tuple[float, str]]) -> None:
    assert pairs(typed) == meant
    assert str(parse(typed)) == typed


@pytest.mark.parametrize("form", ["·she", "▁she", "Ġshe"])
def test_a_token_may_be_typed_as_it_is_shown(form: str) -> None:
    assert parse(form).terms == (Term(1.0, " she", True),)
    assert parse(f"2*{form} - ·he").terms[0].text == " she"


def test_a_mark_alone_is_the_mark() -> None:
    assert parse("·").terms == (Term(1.0, "·", True),)
    assert with_space("Ġ") == "Ġ"


def test_a_bare_word_is_open_and_a_quoted_one_is_not() -> None:
    assert [t.quoted for t in parse("she ' she' ·she").terms] == [False, True, True]


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (r"'\n'", "\n"),
        (r"'a\tb'", "a\tb"),
        (r"'it\'s'", "it's"),
        (r"'\\n'", r"\n"),
        (r"'\x07'", "\x07"),
        (r"'\u200d'", "\u200d"),
        (r"'\q'", r"\q"),
        (r"'\U00110000'", r"\U00110000"),
    ],
)
def test_escapes_between_quotes_mean_what_shown_tokens_mean(typed: str, text: str) -> None:
    assert pairs(typed) == [(1, text)]


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="'\u25cc"), min_size=1).filter(
        lambda t: t == t.strip(" ·") and t[-1] != "\\"
    )
)
def test_every_token_can_be_typed_between_quotes_as_it_is_shown(text: str) -> None:
    # Edges apart (there · stands for a space, and a backslash keeps the quote) and the circle under lone marks.
    if "\u25cc" not in shown(text):
        assert pairs(f"'{shown(text)}'") == [(1, text)]


@given(
    st.lists(
        st.tuples(
            st.floats(-1e9, 1e9, allow_subnormal=False).filter(bool), st.text(st.characters(codec="utf-8"), min_size=1)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read_back(terms: list[tuple[float, str]]) -> None:
    made = tuple(Term(weight, text, True) for weight, text in terms)
    assert parse(written(made)).terms == made


def test_lists_and_mappings_are_expressions() -> None:
    assert of_weights([" a", " b"]).terms == (Term(1.0, " a", True), Term(1.0, " b", True))
    assert parse(str(of_weights({" a": 0.25, "it's": -1.0}))).terms == of_weights({" a": 0.25, "it's": -1.0}).terms


def test_a_file_holds_a_list_or_weights(tmp_path: Path) -> None:
    path = tmp_path / "fire.json"
    path.write_text(json.dumps({" fire": 1, " water": -0.5}))
    assert pairs(f"@{path}") == [(1, " fire"), (-0.5, " water")]
    assert parse(f" @{path} ") == Expression((Term(1.0, " fire", True), Term(-0.5, " water", True)), f"@{path}")
    path.write_text('[" fire"]')
    assert pairs(f"@{path}") == [(1, " fire")]


def test_bare_words_have_variants_with_the_leading_space_first() -> None:
    assert variants("she", {"she": 0, " she": 1, " She": 2, "SHE": 3}) == (" she", " She", "she")
    assert variants("xyzzy", {}) == ()


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "expected at least one token, got an empty expression"),
        ("' a' +", "cannot read '+'"),
        ("' a", 'cannot read "\' a"'),
        ("' a'' b'", "cannot read \"' b'\""),
        ("3*", "cannot read '*'"),
        ("''", "expected a token between the quotes, got an empty text"),
        ("' a' * 2", "cannot read '* 2'"),
        ("1e999*' a'", "expected finite weights, got 1e999"),
    ],
)
def test_what_cannot_be_read_is_shown(typed: str, told: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(told)):
        parse(typed)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "expected a JSON file of tokens at"),
        ("{", "expected a JSON file of tokens at"),
        ("3", "expected an object of token: weight or a list of tokens, got int"),
        ("[1]", "expected an object of token: weight or a list of tokens, got list"),
        ('{" a": "x"}', "expected a finite number for every token, got 'x' for ' a'"),
        ('{" a": true}', "expected a finite number for every token, got True for ' a'"),
        ('{" a": NaN}', "expected a finite number for every token, got nan for ' a'"),
        ("[]", "expected at least one token, got an empty list"),
        ('[""]', "expected texts with finite weights"),
    ],
)
def test_a_file_that_holds_no_tokens_is_refused(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "q.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadRequest, match=re.escape(told)):
        parse(f"@{path}")
