"""Tables and pictures as HTML that loads nothing: everything escaped, all style inside."""

from collections.abc import Mapping, Sequence
from html import escape

from covector.render.column import Column
from covector.render.labels import printable
from covector.render.number import number_text
from covector.render.sheet import Sheet
from covector.render.terminal import printed_columns, within_chance

_MOST_ROWS = 60  # as pandas shows; a notebook cell with thousands of rows cannot be scrolled past
# No colours but the reader's own: the table is legible in a light and in a dark notebook.
_STYLE = """
.covector{font-size:13px;line-height:1.45;max-width:72em}
.covector p{margin:.15em 0;opacity:.75}
.covector .title{font-weight:600;opacity:1}
.covector table{border-collapse:collapse;margin:.6em 0}
.covector th,.covector td{padding:.15em .7em;text-align:left;border:0;background:none;white-space:pre}
.covector th{font-weight:600;border-bottom:1px solid currentColor;vertical-align:bottom}
.covector th small{display:block;font-weight:400;opacity:.7}
.covector .n{text-align:right;font-variant-numeric:tabular-nums}
.covector .chance{opacity:.55}
.covector td small{opacity:.7}
.covector details{opacity:.75}
"""
_PAGE_STYLE = """
body{margin:2rem auto;padding:0 1rem;max-width:70rem;font-family:system-ui,sans-serif;line-height:1.5;
color:#1c1c1c;background:#fff}
h1{font-size:1.15rem}p{color:#555;margin:.2em 0}svg{max-width:100%;height:auto;margin:1rem 0}
"""
# The page may style itself and nothing else: no script, no request, even if a label should slip through.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def table_html(sheet: Sheet, most_rows: int = _MOST_ROWS) -> str:
    """The table as a fragment for a notebook: title, sentences, up to `most_rows` rows, next command, provenance."""
    n = len(sheet.columns[0]) if sheet.columns else 0
    columns = printed_columns(sheet)
    first = range(min(n, most_rows))
    cells = [_cells(column.taken_first(len(first)), level) for column, level in columns]
    rows = "".join(f"<tr>{''.join(column[i] for column in cells)}</tr>" for i in first)
    head = "".join(_head(column) for column, _ in columns)
    parts = [
        _paragraph(sheet.title, "title"),
        _paragraph(sheet.says),
        _paragraph(sheet.not_says),
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>",
        _paragraph(f"… {n - most_rows} more rows") if n > most_rows else "",
        f"<p>next: <code>{_text(sheet.next)}</code></p>" if sheet.next else "",
        _provenance(sheet.meta),
    ]
    return f'<div class="covector"><style>{_STYLE}</style>{"".join(parts)}</div>'


def page(title: str, body: str, sentences: Sequence[str] = ()) -> str:
    """A page of its own around `body`, which must be markup already; title and sentences are escaped."""
    told = "".join(_paragraph(sentence) for sentence in sentences)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(title)}</title><style>{_PAGE_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>{told}\n{body}\n</body></html>\n"
    )


def _cells(column: Column, level: Column | None) -> list[str]:
    """The cells of a column, numbers flush right, those within chance faint, row-wise chance levels beside them."""
    classes = ["n", "n chance"] if column.is_number else ["", "chance"]
    beside = [""] * len(column)
    if level is not None:
        beside = [f" <small>({number_text(v, column.digits)})</small>" for v in level.numbers[: len(column)].tolist()]
    is_chance = within_chance(column, level and level.taken_first(len(column)))
    return [
        f'<td class="{classes[faint]}"><bdi>{_text(text)}</bdi>{small}</td>'
        for text, small, faint in zip(column.texts(), beside, is_chance, strict=True)
    ]


def _head(column: Column) -> str:
    unit = f"<small>{_text(column.header())}</small>" if column.header() else ""
    about = f' title="{_text(column.about)}"' if column.about else ""
    return f'<th class="{"n" if column.is_number else ""}"{about}>{_text(column.name)}{unit}</th>'


def _provenance(meta: Mapping) -> str:
    if not meta:
        return ""
    lines = "".join(f"<tr><td>{_text(key)}</td><td>{_text(str(value))}</td></tr>" for key, value in meta.items())
    return f"<details><summary>where this comes from</summary><table>{lines}</table></details>"


def _paragraph(text: str, name: str = "") -> str:
    return f'<p class="{name}">{_text(text)}</p>' if text else ""


def _text(text: str) -> str:
    return escape(printable(text), quote=True)
