"""A table and a grid in a terminal: what stands where, how wide it is, and that nothing in it steers the terminal."""

import io
import math

import numpy as np
import pytest
from rich.text import Text

from covector.errors import BadRequest
from covector.render import Column, Grid, Table, cell_len, grid_text
from covector.render.terminal import grid_lines, table_text

TABLE = Table(
    [
        Column("site", ["L9H6.ov", "L9H6.ov"]),
        Column("dyad", [0, 1]),
        Column("gain", [12.25, math.nan], unit="σ", digits=1),
        Column("cos", [0.4312, 0.1], unit="cos", digits=3, chance="level"),
        Column("level", [0.122, 0.12], digits=3),
        Column("writes", [[" the", " radio", "日本"], ["\n", "\x1b[31m", ""]]),
        Column("note", ["a sentence about this dyad that is rather long and goes on " * 2, None]),
    ],
    title="What L9H6.ov writes",
    says="Dyad 0 writes towards ·the and ·radio, with cosine 0.431 where chance alone reaches 0.122.",
    not_says="It does not say when the head attends.",
    next="covector spectrum demo-lm L9H6.ov --a-long-option that-would-not-fit-into-forty-cells",
    key=("site", "dyad"),
)


class Terminal(io.StringIO):
    """A buffer that says a person is looking."""

    def isatty(self) -> bool:
        return True


def printed(table: Table, width: int | None = None, out: io.StringIO | None = None) -> str:
    out = out or io.StringIO()
    table.show(width=width, file=out)
    return out.getvalue()


def test_a_result_opens_with_its_sentences_and_ends_with_the_next_command():
    lines = printed(TABLE).splitlines()
    assert lines[:3] == [TABLE.title, TABLE.says, TABLE.not_says]
    assert lines[-1] == f"next: {TABLE.next}"


def test_numbers_stand_flush_right_with_unit_and_chance_level():
    lines = printed(TABLE).splitlines()
    names, units, first, second = lines[4:8]
    assert names.split() == ["site", "dyad", "gain", "cos", "writes", "note"]
    assert units.split() == ["σ", "(chance)"]
    assert first.index("0.431 (0.122)") == second.index("0.100 (0.120)")
    assert names.index("gain") + 4 == first.index("12.2") + 4 == second.index("–") + 1


def test_a_common_chance_level_stands_in_the_header():
    table = Table([Column("best", [0.4, 0.1], unit="cos", digits=2, chance=0.25)])
    assert printed(table).splitlines()[1].strip() == "cos, chance 0.25"


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_every_line_but_the_command_fits_the_width(width):
    lines = printed(TABLE, width).splitlines()
    assert max(map(cell_len, lines[:-1])) <= width
    assert lines[-1].endswith("forty-cells")


def test_what_does_not_fit_is_named_and_the_key_stays():
    before = [TABLE.column(name) for name in ("note", "writes", "gain")]
    table = Table([*before, Column("site", ["L9H6.ov", "L9H7.ov"])], key="site")
    assert printed(table, 24).splitlines() == [
        "note             site",
        "a sentence abo…  L9H6.ov",
        "–                L9H7.ov",
        "not shown in 24 columns:",
        "writes, gain",
    ]


def test_tokens_are_shown_and_cannot_steer_the_terminal():
    text = printed(TABLE)
    assert "·the ·radio 日本" in text
    assert r"\n \x1b[31m ⟨empty⟩" in text
    assert "\x1b" not in text


def test_elsewhere_than_in_a_terminal_the_text_is_plain_and_always_the_same(monkeypatch):
    first = printed(TABLE)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert printed(TABLE) == first
    assert "\x1b" not in first


def test_in_a_terminal_the_text_is_styled_and_as_narrow_as_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = printed(TABLE, out=Terminal())
    assert f"\x1b[1m{TABLE.title}\x1b[0m" in text
    assert Text.from_ansi(text).plain.rstrip() == printed(TABLE, 80).rstrip()


def test_an_output_that_lacks_a_letter_gets_an_escape():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Table([Column("token", ["日"])]).show(file=out)
    out.flush()
    assert b"\\u65e5" in raw.getvalue()


def test_an_analysis_may_declare_the_line_of_a_row():
    def line(row, width):
        return f"{row['site']}:{row['dyad']} in {width}"

    table = Table(TABLE.columns, lines=line)
    assert printed(table, 60) == "L9H6.ov:0 in 60\nL9H6.ov:1 in 60\n"


@pytest.mark.parametrize("wrap", [str, Text])
def test_a_declared_line_is_clipped_and_escaped(wrap):
    table = Table(TABLE.columns[:1], lines=lambda row, width: wrap("\x1b[2J" + "日" * 50 + "\nnext line"))
    assert printed(table, 20).splitlines()[:2] == ["\\x1b[2J" + "日" * 6 + "…", "next line"]


def test_a_declared_rich_line_keeps_its_style_and_fits():
    table = Table([Column("a", [1])], lines=lambda row, width: Text("日" * 50, style="red"))
    text = table_text(table, 21)
    assert text.plain == "日" * 10 + "…"
    assert any(span.style == "red" for span in text.spans) or "red" in str(text.markup)


def test_a_table_without_rows_says_so():
    assert "(no rows)" in printed(TABLE.head(0))
    assert printed(Table([], title="Nothing")).startswith("Nothing\n")


def test_a_number_within_chance_is_faint():
    table = Table([Column("c", [0.4, 0.1, -0.1, math.nan], unit="cos", chance=0.25)])
    styles = [line[0][1] for line in grid_lines(table, 80)[2:]]
    assert styles == ["", "dim", "dim", ""]


def test_a_width_without_room_is_refused():
    with pytest.raises(BadRequest, match="needs 20 columns of text at least, came 3"):
        printed(TABLE, 3)


def grid(**words):
    values = np.array([[0.43, -0.31, 0.05], [0.12, math.nan, -0.6]])
    labels = {"value_name": "cosine", "chance": 0.12, "row_name": "token", "column_name": "dyad", **words}
    return Grid(values, [" the", "日本"], ["0", "1", "2"], **labels)


def test_a_grid_without_colour_still_has_every_token_and_value():
    lines = grid_text(grid()).plain.splitlines()
    assert lines[0] == "dyad across; cosine from -0.60 to 0.60; within chance (±0.12) uncoloured"
    assert lines[2].split() == ["token", "0", "1", "2"]
    assert lines[3].split() == ["·the", "0.43", "-0.31", "0.05"]
    assert lines[4].split() == ["日本", "0.12", "–", "-0.60"]
    assert cell_len(lines[3]) == cell_len(lines[4])


def test_a_cell_shows_its_text_beside_its_value():
    texts = [[" she", "\n", "日"], ["a", "b", ""]]
    lines = grid_text(grid(cell_text=texts)).plain.splitlines()
    assert lines[3].split() == ["·the", "·she", "0.43", r"\n", "-0.31", "日", "0.05"]


def test_a_grid_is_coloured_only_beyond_chance():
    text = grid_text(grid())
    coloured = {text.plain[s.start : s.end].strip() for s in text.spans if " on " in str(s.style)}
    assert coloured == {"0.43", "-0.31", "-0.60"}


@pytest.mark.parametrize("width", [24, 40, 120])
def test_a_grid_that_is_too_wide_continues_below(width):
    wide = Grid(np.ones((2, 30)), [" the", "日本"], [f"dyad {i}" for i in range(30)])
    lines = grid_text(wide, width).plain.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert sum(line.count("dyad") for line in lines) == 30
    assert sum(line.count("1.00") for line in lines[1:]) == 60
