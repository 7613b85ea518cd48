"""Labels × dyads in a terminal, coloured by value."""

import shutil
import sys

from rich.console import Console

from covector.errors import BadRequest
from covector.render import Grid, Table, grid_text

# A grid wider than this is harder to read than a second one below it.
WIDEST = 160


def show_grid(table: Table, seconds: float) -> None:
    """Print a table's picture as text; values stay readable without colour."""
    picture = table.picture(table) if callable(table.picture) else table.picture
    if not isinstance(picture, Grid):
        raise BadRequest("--grid: expected a result whose picture is a grid, this one has none; leave --grid out")
    terminal = sys.stdout.isatty()
    width = min(WIDEST, shutil.get_terminal_size((120, 24)).columns) if terminal else 120
    text = grid_text(picture, width)
    sys.stdout.write(f"{table.title} · {seconds:.2f} s\n")
    if terminal:
        Console(width=width, highlight=False).print(text, soft_wrap=True)
    else:
        sys.stdout.write(text.plain + "\n")
