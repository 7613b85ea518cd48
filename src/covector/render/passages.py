"""Passages with every token coloured by how strongly it fires: blue below, orange above, as in the grids.

The page is one file that loads nothing; every text in it is escaped.
"""

from html import escape
from typing import Any, Protocol, runtime_checkable

from covector.render.html import page
from covector.render.labels import printable
from covector.render.picture import DIVERGING, colour, ink_on

# Spaces at the ends of tokens are kept, lines break as they must.
_LINE = "line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere"


@runtime_checkable
class Passages(Protocol):
    """What is drawn: rows and sentences.

    A row has `tokens` and `strengths` of equal length (None: not measured), `at` (the index of the one that fires),
    `token` (its label), `z`, `pole` and `position`.
    """

    @property
    def title(self) -> str:
        """One line that names it."""
        ...

    @property
    def says(self) -> str:
        """What it says."""
        ...

    @property
    def not_says(self) -> str:
        """What it does not say."""
        ...

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict per passage."""
        ...


def passages_page(table: Passages) -> str:
    """The passages of a table as a page of its own that loads nothing.

    Colours run from the strongest − to the strongest + of all passages shown, equally far on both sides.
    """
    rows = table.rows
    reach = max((abs(v) for row in rows for v in row["strengths"] if v is not None), default=1.0) or 1.0
    body = "".join(_passage(row, reach) for row in rows) or "<p>(no passages)</p>"
    return page(table.title, body, (table.says, table.not_says))


def _passage(row: dict[str, Any], reach: float) -> str:
    told = f"{row['pole']} {row['z']:+.1f} sd · token {row['position']:,}"
    tokens = [t or (row["token"] if i == row["at"] else "") for i, t in enumerate(row["tokens"])]
    pairs = zip(tokens, row["strengths"], strict=True)
    spans = "".join(_token(t, v, reach, fires=i == row["at"]) for i, (t, v) in enumerate(pairs))
    return f'<p style="color:#767676;margin-top:1.2em">{escape(told)}</p><p style="{_LINE}">{spans}</p>\n'


def _token(text: str, strength: float | None, reach: float, *, fires: bool) -> str:
    shown = escape(printable(text.replace("\r\n", "\n").replace("\n", "¶")), quote=True)
    if strength is None:
        return f'<span title="not measured: the first of its window">{shown}</span>'
    background = colour(strength / reach, DIVERGING)
    frame = ";outline:2px solid #1c1c1c" if fires else ""
    style = f"background:{background};color:{ink_on(background)};padding:.1em 0;border-radius:.2em{frame}"
    return f'<span style="{style}" title="{strength:+.2f} sd">{shown}</span>'
