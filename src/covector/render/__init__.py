"""Results and their faces: a table of named columns, shown in a terminal, a notebook, a file or a picture."""

from covector.render.column import Column
from covector.render.grid_text import grid_text
from covector.render.labels import cell_len, clip, fill, label, pad, shown
from covector.render.number import number_text
from covector.render.picture import Curve, Graph, Grid, Picture, Scatter
from covector.render.plain import plain
from covector.render.table import Table, load

__all__ = [
    "Column",
    "Curve",
    "Graph",
    "Grid",
    "Picture",
    "Scatter",
    "Table",
    "cell_len",
    "clip",
    "fill",
    "grid_text",
    "label",
    "load",
    "number_text",
    "pad",
    "plain",
    "shown",
]
