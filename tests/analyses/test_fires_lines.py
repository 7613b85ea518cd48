"""Passages as lines of a terminal: never too wide, the token that fires always at one cell, strong ones coloured."""

from rich.cells import cell_len

from covector.analyses.fires_lines import passage_line
from covector.render.picture import colour


def row(*tokens: str, strengths: list, at: int, pole: str = "+") -> dict:
    return {
        "tokens": list(tokens),
        "strengths": strengths,
        "at": at,
        "token": tokens[at] or "<0xE6>",
        "pole": pole,
        "z": strengths[at],
        "position": 1234,
    }


def test_a_line_is_as_wide_as_it_may_be_whatever_the_script() -> None:
    for word in (" word", "日本語", "\n", "é", "\u202e", ""):
        for n in (0, 1, 40):
            given = row(*[word] * n, " it", *[word] * n, strengths=[0.0] * n + [5.0] + [0.1] * n, at=n)
            for width in (60, 97, 120):
                line = passage_line(given, width).plain
                assert cell_len(line) <= width
                assert line.isprintable()
                # The head takes 14 cells. Wherever it is cut, the token that fires begins at the same cell.
                assert cell_len(line[: line.index("«")]) == 14 + (width - 14) // 2 - 4


def test_spaces_stand_where_they_stand_in_the_text() -> None:
    assert "the br«ow»n dog" in passage_line(
        row("the", " br", "ow", "n", " dog", strengths=[0.0, 0.0, 9.0, 0.0, 0.0], at=2), 80
    )
    assert "the «dog» ran" in passage_line(row("the", " dog", " ran", strengths=[0.0, 9.0, 0.0], at=1), 80)


def test_strong_tokens_are_coloured_and_weak_ones_are_not() -> None:
    line = passage_line(row("a", "b", "c", strengths=[-5.0, 0.5, 10.0], at=2), 80, reach=10.0)
    styled = {line.plain[s.start : s.end]: str(s.style) for s in line.spans}
    assert colour(-0.5) in styled["a"]
    assert colour(1.0) in styled["c"]
    assert "on" not in styled.get("b", "")
