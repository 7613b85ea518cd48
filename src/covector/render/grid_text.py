"""A grid in a terminal: each cell its text and value, on a colour only where the value exceeds chance."""

from typing import TYPE_CHECKING

import numpy as np

from covector.render.labels import cell_len, fill, label, pad, printable, wrap
from covector.render.number import number_text
from covector.render.picture import DIVERGING, SEQUENTIAL, Grid, axis_name, colour, ink_on
from covector.render.terminal import WIDTH, Line, styled

if TYPE_CHECKING:
    import rich.text

_WIDEST_LABEL = 24  # cells; row labels and cell texts are tokens, and few are longer
_WIDEST_TEXT = 16
_FAINT = 0.15  # of the scale; nearer to the centre the colour is almost white, and on a dark terminal would glare


def grid_text(grid: Grid, width: int = WIDTH) -> "rich.text.Text":
    """The grid as rich text of at most `width` cells a line, in panels of as many columns as fit.

    Without colour it says the same: every cell has its text and its value. A cell that chance explains has no colour.
    """
    values = [[number_text(v, grid.digits) for v in row] for row in grid.values.tolist()]
    texts = [[label(text) for text in row] for row in grid.cell_text or []]
    styles = _styles(grid)
    row_labels = [label(text) for text in grid.row_labels]
    heads = [label(text) for text in grid.column_labels]

    side = min(max(map(cell_len, [printable(grid.row_name), *row_labels])), _WIDEST_LABEL)
    value_room = max(cell_len(value) for row in values for value in row)
    text_room = min(max((cell_len(text) for row in texts for text in row), default=0), _WIDEST_TEXT)
    inner = text_room + 1 + value_room if texts else value_room
    inner = max(inner, min(max(map(cell_len, heads)), _WIDEST_TEXT))
    inner = max(min(inner, width - side - 3), 1)
    per_panel = max((width - side) // (inner + 3), 1)

    def cell(i: int, j: int) -> str:
        value = pad(values[i][j], value_room, right=True)
        return fill(f"{fill(texts[i][j], inner - value_room - 1)} {value}" if texts else value, inner, right=not texts)

    lines: list[Line] = [[(line, "dim")] for line in wrap(_legend(grid), width)]
    for first in range(0, len(heads), per_panel):
        panel = range(first, min(first + per_panel, len(heads)))
        lines += [[], [(fill(printable(grid.row_name), side), "dim")]]
        for j in panel:
            lines[-1] += [("  " + fill(heads[j], inner, right=not texts) + " ", "bold")]
        for i, name in enumerate(row_labels):
            lines.append([(fill(name, side), "")])
            for j in panel:
                lines[-1] += [(" ", ""), (f" {cell(i, j)} ", styles[i][j])]
    return styled(lines)


def _styles(grid: Grid) -> list[list[str]]:
    """The colours of the cells; none where chance, or nearness to the centre, says that there is nothing to see."""
    levels = grid.levels
    stops = SEQUENTIAL if grid.centre is None else DIVERGING
    quiet = grid.is_chance if grid.chance is not None else np.abs(levels) < _FAINT
    quiet = quiet | np.isnan(levels)

    def style(level: float, is_quiet: bool) -> str:
        if is_quiet:
            return "dim" if grid.chance is not None else ""
        background = colour(level, stops)
        return f"{ink_on(background)} on {background}"

    pairs = zip(levels.tolist(), quiet.tolist(), strict=True)
    return [[style(level, is_quiet) for level, is_quiet in zip(*row, strict=True)] for row in pairs]


def _legend(grid: Grid) -> str:
    low, high = (number_text(limit, grid.digits) for limit in grid.limits)
    text = f"{axis_name(grid.value_name, grid.unit)} from {low} to {high}"
    if grid.column_name:
        text = f"{printable(grid.column_name)} across; {text}"
    if grid.chance is not None:
        text += f"; within chance (±{number_text(grid.chance, grid.digits)}) uncoloured"
    return text
