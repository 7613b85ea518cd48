"""The result every analysis returns: named columns with units, where they come from, and what they say.

A table is a value. It checks itself when made, selections are new tables, and the ways to look at it (terminal, JSON,
CSV, Parquet, pandas, notebook, picture) are the modules beside this one, reached through its methods.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from covector.errors import BadRequest, BadTable
from covector.render import files, html, plot, terminal
from covector.render.column import Column
from covector.render.picture import Curve, Graph, Grid, Picture, Scatter
from covector.render.plain import plain
from covector.render.plotly_plot import plotly_figure
from covector.render.sheet import row_dicts

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length with their provenance, their two sentences, the next command and their picture.

    `meta` is translated to plain JSON values; the key "table" is reserved. `key` names the columns that tell the rows
    apart; they are never dropped in a narrow terminal. `lines` turns a row (a dict) and a width into what the
    terminal prints for it, None gives an aligned grid. `picture` is a value, or a function of the table that makes
    it; only a function survives a selection. Raises BadTable for unequal lengths, a name used twice, a key or a
    chance level that names no column, keys that do not tell the rows apart, or meta that JSON cannot hold.
    """

    columns: Sequence[Column]
    meta: Mapping = field(default_factory=dict)
    title: str = ""
    says: str = ""
    not_says: str = ""
    next: str = ""
    picture: Picture | Callable[["Table"], Picture] | None = None
    lines: Callable | None = None
    key: Sequence[str] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "columns", tuple(self.columns))
        set_field(self, "key", (self.key,) if isinstance(self.key, str) else tuple(self.key))
        if files.RESERVED in self.meta:
            raise BadTable(f"meta has the key '{files.RESERVED}', under which files describe the columns: rename it")
        set_field(self, "meta", plain(self.meta, "meta"))
        _check_columns(self.columns)
        _check_names(self.columns, self.key)

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def __getitem__(self, name: str) -> np.ndarray | Sequence:
        """The values of a column: a read-only array of numbers, or a list."""
        return self.column(name).values

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, left to right."""
        return tuple(c.name for c in self.columns)

    @property
    def rows(self) -> list[dict]:
        """One dict per row, of plain Python values; None where a number is not defined. Built anew at each call."""
        return row_dicts(self.columns)

    def column(self, name: str) -> Column:
        """The column of that name. Raises BadTable, listing the names, if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise BadTable(f"this table has no column '{name}': its columns are {', '.join(self.names)}")

    def head(self, n: int = 10) -> "Table":
        """The first `n` rows."""
        if n < 0:
            raise BadRequest(f"head takes a number of rows from 0 on, came {n}")
        return self.take(np.arange(min(n, len(self))))

    def where(self, mask: np.ndarray | list) -> "Table":
        """The rows for which the mask, one truth value per row, is true."""
        mask = np.asarray(mask)
        if mask.shape != (len(self),) or mask.dtype != bool:
            raise BadRequest(
                f"where takes {len(self)} truth values, one per row, came {mask.dtype} of shape {mask.shape}: "
                "compare a column, as in table.where(table['p'] < 0.01)"
            )
        return self.take(np.flatnonzero(mask))

    def take(self, indices: np.ndarray | list) -> "Table":
        """The rows `indices`, in that order; the sentences stay as they were made, for the whole table."""
        index = np.asarray(indices, dtype=np.int64)
        if index.size and not -len(self) <= index.min() <= index.max() < len(self):
            raise BadRequest(f"this table has {len(self)} rows, row {index.max()} was asked for")
        picture = self.picture if callable(self.picture) else None
        return dataclasses.replace(self, columns=tuple(c.taken(index) for c in self.columns), picture=picture)

    def to_json(self, indent: int | None = None) -> str:
        """One strict JSON object `{"meta": {...}, "rows": [...]}`; NaN and infinities are null."""
        return files.to_json(self, indent)

    def to_csv(self) -> str:
        """The values as comma-separated lines under a header."""
        return files.to_csv(self)

    def to_pandas(self) -> "pandas.DataFrame":
        """A pandas frame with `meta` in its `attrs`. Raises MissingExtra without pandas."""
        return files.to_pandas(self)

    def save(self, path: str | Path) -> Path:
        """Write to .json, .csv or .parquet, by suffix, all at once; returns the path."""
        return files.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Table":
        """The table that `save` wrote, without its picture and line format (CSV: the values alone)."""
        columns, meta, words = files.read(path)
        try:
            return cls(columns, meta, **words)
        except BadTable as error:
            raise BadTable(f"cannot read {path} as a table: {error}") from error

    def show(self, width: int | None = None, file: terminal.TextOut | None = None) -> None:
        """Print to `file` (standard output): coloured in a terminal, plain and always the same elsewhere."""
        terminal.show(self, width=width, file=file)

    @property
    def drawn(self) -> Picture | None:
        """The table's picture as a value, made if need be; None where there is none."""
        picture = self.picture(self) if callable(self.picture) else self.picture
        return picture if isinstance(picture, Grid | Curve | Scatter | Graph) else None

    def plot(self, path: str | Path | None = None) -> "plot.Drawing":
        """The table's picture, drawn, and written to `path` (.png, .svg, .html) if one is given.

        Raises BadRequest if there is no picture or another suffix, MissingExtra without matplotlib.
        """
        picture = self.drawn
        if picture is None:
            raise BadRequest(
                "this result has no picture (nor has a selection of rows or a loaded file): leave --plot out"
            )
        drawing = plot.Drawing(picture, title=self.title, caption=(self.says, self.not_says))
        if path is not None:
            drawing.save(path)
        return drawing

    def plotly(self) -> "Figure":
        """The table's picture as a plotly figure, to be looked at and changed in a notebook.

        Raises BadRequest if there is no picture, MissingExtra without plotly.
        """
        if self.drawn is None:
            raise BadRequest("this result has no picture (nor has a selection of rows or a loaded file)")
        return plotly_figure(self.drawn, self.title)

    def _repr_html_(self) -> str:
        return html.table_html(self)


def load(path: str | Path) -> Table:
    """The table saved under `path` (.json, .csv, .parquet)."""
    return Table.load(path)


def _check_columns(columns: Sequence[Column]) -> None:
    names = [c.name for c in columns]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise BadTable(f"the columns of a table have different names, '{twice[0]}' is used twice: rename one")
    lengths = {c.name: len(c) for c in columns}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise BadTable(f"the columns of a table have one length, came {told}")


def _check_names(columns: Sequence[Column], key: Sequence[str]) -> None:
    by_name = {c.name: c for c in columns}
    for column in columns:
        level = column.chance_column
        if level and not (level in by_name and by_name[level].is_number):
            raise BadTable(f"column '{column.name}' has its chance level in '{level}', no column of numbers here")
    for name in key:
        if name not in by_name:
            raise BadTable(f"the key names column '{name}', this table has {', '.join(by_name)}")
    rows = list(zip(*(map(repr, by_name[name].plain_values()) for name in key), strict=True))
    if len(set(rows)) < len(rows):
        raise BadTable(f"the key ({', '.join(key)}) has two rows with the same values: add a column that differs")
