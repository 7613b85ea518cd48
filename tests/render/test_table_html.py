"""The notebook view: everything escaped, nothing loaded."""

import re

from covector.render import Column, Table
from covector.render.html import page, table_html

EVIL = "<script>alert(1)</script>\x1b\u202e&\"'"


def test_every_text_is_escaped():
    table = Table(
        [Column(EVIL, [EVIL], unit=EVIL, about=EVIL)],
        {EVIL: EVIL},
        title=EVIL,
        says=EVIL,
        not_says=EVIL,
        next=EVIL,
    )
    for html in (table._repr_html_(), page(EVIL, "", [EVIL])):
        assert "<script" not in html
        assert "\x1b" not in html
        assert "\u202e" not in html
        assert "&lt;script&gt;" in html


def test_nothing_is_loaded_from_anywhere():
    table = Table([Column("a", [1])], {"model": "m"}, title="t")
    for html in (table._repr_html_(), page("t", "")):
        assert not re.search(r"https?:|//|src=|@import|url\(", html)


def test_a_cosine_has_its_chance_level_beside_it_and_is_faint_within():
    columns = [Column("c", [0.4, 0.1], unit="cos", digits=2, chance="level"), Column("level", [0.25, 0.2], digits=2)]
    html = Table(columns)._repr_html_()
    assert '<td class="n"><bdi>0.40</bdi> <small>(0.25)</small></td>' in html
    assert '<td class="n chance"><bdi>0.10</bdi> <small>(0.20)</small></td>' in html
    assert html.count("<th ") == 1


def test_tokens_are_shown_as_in_the_terminal():
    html = Table([Column("tokens", [[" the", "\n"]])])._repr_html_()
    assert "<bdi>·the \\n</bdi>" in html


def test_a_long_table_is_cut_and_says_so():
    html = table_html(Table([Column("i", list(range(100)))]), most_rows=7)
    assert html.count("<td") == 7
    assert "… 93 more rows" in html
