"""A table in a terminal: title, the two sentences, the rows, and the command worth typing next.

What is printed is decided as lines of (text, style) parts, in cells, without a terminal. Only `show` knows whether
there is one: in a terminal the parts are styled, elsewhere the text is plain and always the same. Text from a
checkpoint never reaches the terminal unescaped.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np

from covector.errors import BadRequest
from covector.render.column import Column
from covector.render.labels import cell_len, clip, fill, printable, wrap
from covector.render.number import number_text
from covector.render.sheet import Sheet, row_dicts

if TYPE_CHECKING:
    import rich.text

WIDTH = 120  # the widest a result gets: two fit side by side on a desk, one on a laptop
_GAP = "  "
_NARROWEST = 8  # cells; a text column narrower than this shows nothing but ellipses
_LEAST = 20  # cells; below, not even a key and a number fit side by side
_HEAD, _DIM = "bold", "dim"
Line = list[tuple[str, str]]


@runtime_checkable
class TextOut(Protocol):
    """Whatever text can be written to: standard output, a file, a buffer."""

    def write(self, text: str, /) -> object:
        """Take the text."""
        ...

    def isatty(self) -> bool:
        """Whether a person is looking."""
        ...


def show(sheet: Sheet, *, width: int | None = None, file: TextOut | None = None) -> None:
    """Print the table to `file` (standard output), in `width` cells: 120, or the terminal's if that is narrower."""
    out = file or sys.stdout
    is_terminal = out.isatty()
    if width is None:
        width = min(WIDTH, max(_LEAST, shutil.get_terminal_size((WIDTH, 24)).columns)) if is_terminal else WIDTH
    text = table_text(sheet, width)
    if not is_terminal:
        encoding = getattr(out, "encoding", None) or "utf-8"
        out.write(text.plain.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        return
    from rich.console import Console

    console = Console(file=cast(Any, out), width=width, highlight=False)
    console.print(text, soft_wrap=True)


def table_text(sheet: Sheet, width: int = WIDTH) -> "rich.text.Text":
    """The whole table as one rich text whose lines fit `width` cells, but for the command, which is never broken."""
    if width < _LEAST:
        raise BadRequest(f"a table needs {_LEAST} columns of text at least, came {width}: give a larger width")
    head: list = [[(line, _HEAD)] for line in wrap(printable(sheet.title), width)]
    for sentence in (sheet.says, sheet.not_says):
        head += [[(line, _DIM)] for line in wrap(printable(sentence), width)]
    body = _declared_lines(sheet, sheet.lines, width) if sheet.lines else grid_lines(sheet, width)
    tail: list = [[("next: ", _DIM), (printable(sheet.next), "")]] if sheet.next else []
    parts = [part for part in (head, body, tail) if part]
    return styled([line for i, part in enumerate(parts) for line in ([[]] if i else []) + part])


def styled(lines: "Sequence[Line | rich.text.Text]") -> "rich.text.Text":
    """The lines as one rich text, without spaces at their ends."""
    from rich.text import Text

    rows = [line if isinstance(line, Text) else Text.assemble(*line) for line in lines]
    for row in rows:
        row.rstrip()
    return Text("\n").join(rows)


def grid_lines(sheet: Sheet, width: int) -> list[Line]:
    """The aligned grid: names, units and chance levels, one line per row.

    Numbers stand flush right and are never cut. If the grid is too wide, long texts are clipped, then columns left
    out from the right, keys never; a last line names them. The first text, which says what a row is about and is what
    one copies, is clipped only where not even one other column fits beside it.
    """
    every = [_Cells(column, level) for column, level in printed_columns(sheet)]
    shown, widths = _whole_first(sheet, every, width) or _clipped(sheet, every, width)
    left_out = [cells.column.name for cells in every if cells not in shown]
    lines = [_joined([(c.name, _HEAD) for c in shown], shown, widths)]
    if any(c.unit for c in shown):
        lines.append(_joined([(c.unit, _DIM) for c in shown], shown, widths))
    for i in range(len(sheet.columns[0]) if sheet.columns else 0):
        lines.append(_joined([(c.texts[i], _DIM if c.is_chance[i] else "") for c in shown], shown, widths))
    if sheet.columns and not len(sheet.columns[0]):
        lines.append([("(no rows)", _DIM)])
    if left_out:
        lines += [[(line, _DIM)] for line in wrap(f"not shown in {width} columns: {', '.join(left_out)}", width)]
    return lines


def _whole_first(sheet: Sheet, every: "list[_Cells]", width: int) -> "tuple[list[_Cells], list[int]] | None":
    """The columns that fit beside the first text in its whole width; None where there is none, or none fits."""
    if not every or every[0].column.is_number:
        return None
    shown = list(every)
    while (widths := _fitted(shown, width, whole=every[0])) is None:
        droppable = [cells for cells in shown[1:] if cells.column.name not in sheet.key]
        if len(shown) <= 2 or not droppable:
            return None
        shown.remove(droppable[-1])
    return shown, widths


def _clipped(sheet: Sheet, every: "list[_Cells]", width: int) -> "tuple[list[_Cells], list[int]]":
    """The columns that fit, every text clipped where need be."""
    shown = list(every)
    while (widths := _fitted(shown, width)) is None:
        droppable = [cells for cells in shown if cells.column.name not in sheet.key] or shown
        shown.remove(droppable[-1])
    return shown, widths


class _Cells:
    """A column as printed: its texts, each with its chance level, and which of them chance explains."""

    def __init__(self, column: Column, level: Column | None) -> None:
        self.column = column
        self.name = printable(column.name)
        self.unit = column.header()
        self.texts = column.texts()
        self.is_chance = within_chance(column, level)
        if level is not None:
            chance = [number_text(v, column.digits) for v in level.numbers.tolist()]
            room = max(map(len, chance), default=0)  # so that the values stay aligned whatever their level
            self.texts = [f"{t} {f'({c})':>{room + 2}}" for t, c in zip(self.texts, chance, strict=True)]
        self.width = max(map(cell_len, [self.name, self.unit, *self.texts]), default=0)


def printed_columns(sheet: Sheet) -> list[tuple[Column, Column | None]]:
    """The columns that are printed, each with the column of its chance levels, which is not printed by itself."""
    by_name = {c.name: c for c in sheet.columns}
    levels = {c.chance_column for c in sheet.columns} - set(sheet.key)
    return [(c, by_name.get(c.chance_column or "")) for c in sheet.columns if c.name not in levels]


def within_chance(column: Column, level: Column | None) -> list[bool]:
    """For each row, whether the number lies within its chance level (False where there is no level or number)."""
    bound = level.numbers if level is not None else column.chance_level
    if not column.is_number or bound is None:
        return [False] * len(column)
    return (np.abs(column.numbers) <= bound).tolist()


def _fitted(shown: list[_Cells], width: int, whole: _Cells | None = None) -> list[int] | None:
    """Widths that fit: the widest texts but `whole` cut to a common width; None if even narrow texts do not fit."""
    room = width - len(_GAP) * max(len(shown) - 1, 0)
    widths = [c.width for c in shown]
    if sum(widths) <= room:
        return widths
    fixed = sum(c.width for c in shown if c.column.is_number or c is whole)
    texts = [c.width for c in shown if not (c.column.is_number or c is whole)]
    if not texts and whole is not None:
        return None
    cap = room - fixed if texts else 0
    while cap >= _NARROWEST and fixed + sum(min(w, cap) for w in texts) > room:
        cap -= 1
    if len(shown) > 1 and cap < _NARROWEST:
        return None
    cap = max(cap, 1) if texts else room
    kept = [(c.column.is_number and texts) or c is whole for c in shown]
    return [w if keep else min(w, cap) for keep, w in zip(kept, widths, strict=True)]


def _joined(cells: Line, shown: list[_Cells], widths: list[int]) -> Line:
    line: Line = []
    for (text, style), column, width in zip(cells, shown, widths, strict=True):
        line += [(fill(text, width, right=column.column.is_number), style), (_GAP, "")]
    return line[:-1]


def _declared_lines(sheet: Sheet, line_of: Callable, width: int) -> "list[Line | rich.text.Text]":
    """What the analysis prints for each row, clipped to the width and escaped."""
    lines: list[Line | rich.text.Text] = []
    for row in row_dicts(sheet.columns):
        given = line_of(row, width)
        plain = given if isinstance(given, str) else given.plain
        if isinstance(given, str) or not all(map(str.isprintable, plain.split("\n"))):
            lines += [[(clip(printable(line), width), "")] for line in plain.split("\n")]
            continue
        for line in given.split("\n", allow_blank=True):
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
    return lines or [[("(no rows)", _DIM)]]
