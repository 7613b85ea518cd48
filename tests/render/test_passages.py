"""Passages as a page: colours by strength, everything escaped, nothing loaded."""

import re
from types import SimpleNamespace

from covector.render.passages import passages_page
from covector.render.picture import colour

EVIL = "<script>alert(1)</script>\x1b[2J\u202e&\"'"


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


def sheet(*rows: dict, words: str = "t") -> SimpleNamespace:
    return SimpleNamespace(title=words, says=words, not_says=words, rows=list(rows))


def test_every_text_is_escaped_and_nothing_is_loaded() -> None:
    html = passages_page(sheet(row(EVIL, EVIL, strengths=[1.0, 2.0], at=1), words=EVIL))
    for bad in ("<script", "\x1b", "\u202e"):
        assert bad not in html
    assert html.count("&lt;script&gt;") == 6
    assert not re.search(r"https?:|//|src=|@import|url\(|<script|<link", html)
    assert "default-src 'none'" in html


def test_colours_run_equally_far_on_both_sides_of_zero_over_all_passages() -> None:
    html = passages_page(sheet(row("a", "b", strengths=[-4.0, 0.0], at=0), row("c", strengths=[2.0], at=0)))
    backgrounds = re.findall(r'background:(#\w+);[^"]*" title="([^"]+)"', html)
    assert backgrounds == [(colour(-1), "-4.00 sd"), (colour(0), "+0.00 sd"), (colour(0.5), "+2.00 sd")]


def test_the_token_that_fires_is_framed_and_one_that_was_not_measured_is_bare() -> None:
    html = passages_page(sheet(row("x", "y", "", strengths=[None, 1.0, 3.0], at=2)))
    spans = re.findall(r"<span[^>]*>[^<]*</span>", html)
    assert ["outline" in s for s in spans] == [False, False, True]
    assert "background" not in spans[0]
    assert "not measured" in spans[0]
    assert spans[2].endswith(">&lt;0xE6&gt;</span>")  # a piece of a character shows its bytes
    assert "token 1,234" in html


def test_newlines_are_shown_and_no_passages_is_said() -> None:
    assert ">a¶b<" in passages_page(sheet(row("a\nb", strengths=[1.0], at=0)))
    assert "(no passages)" in passages_page(sheet())
