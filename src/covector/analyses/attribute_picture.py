"""What an answer is made of, as a picture: layers × heads, heads × tokens, tokens, or the lens by depth."""

import re

import numpy as np

from covector.errors import BadRequest
from covector.render import Curve, Grid, Table

# Heads in the picture with their tokens, largest first; more cannot be read.
SHOWN = 24
NAME = "contribution"


def attribute_picture(table: Table) -> Grid | Curve:
    """The picture that fits the split. Raises BadRequest where there is nothing to draw."""
    return _PICTURES[str(table.meta["by"])](table)


def check_by(by: str) -> None:
    """Raise BadRequest for a split that there is not."""
    if by not in _PICTURES:
        raise BadRequest(f"expected --by {', '.join(_PICTURES)}, got '{by}'")


def _unit(table: Table) -> str:
    """Of the contributions; their column is called as their unit is."""
    return next(column.unit for column in table.columns if column.is_number)


def _values(table: Table) -> np.ndarray:
    return np.asarray(next(column for column in table.columns if column.is_number).values)


def _components(table: Table) -> Grid:
    """Layers × what writes there; embeddings and biases are no layer and have rows of their own."""
    found = [(_place(part), float(value)) for part, value in zip(table["part"], _values(table), strict=True)]
    rows = sorted({place[0] for place, _ in found})
    columns = sorted({place[1] for place, _ in found}, key=_column)
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in found:
        values[rows.index(row), columns.index(column)] = value
    labels = [{-1: "embed", _LAST: "biases", _LAST + 1: "rest"}.get(row, f"L{row}") for row in rows]
    return Grid(values, labels, columns, value_name=NAME, unit=_unit(table), row_name="layer", column_name="component")


_LAST = 10**6


def _place(part: str) -> tuple[int, str]:
    """Row and column of a part."""
    found = re.fullmatch(r"L(\d+)(?:\.?)(H\d+|mlp|b_O)", part)
    if found:
        return int(found[1]), found[2]
    return {"embed": -1, "biases": _LAST}.get(part, _LAST + 1), "whole"


def _column(name: str) -> tuple[int, int]:
    return (0, int(name[1:])) if name.startswith("H") else (1, ["b_O", "mlp", "whole"].index(name))


def _heads(table: Table) -> Grid:
    """Heads × the tokens that they fetch from; parts that have no source token are left out."""
    tokens = [str(word) for word in table.meta["tokens"]]
    rows: dict[str, np.ndarray] = {}
    for part, of, value in zip(table["part"], table["of"], _values(table), strict=True):
        if re.fullmatch(r"L\d+H\d+", part):
            rows.setdefault(part, np.zeros(len(tokens)))[int(of.split(" ", 1)[0])] = value
    if not rows:
        raise BadRequest("--plot: expected heads with source tokens, this selection has none; give --by component")
    first = sorted(rows, key=lambda name: -float(np.abs(rows[name]).sum()))[:SHOWN]
    return Grid(np.stack([rows[name] for name in first]), first, tokens, value_name=NAME, unit=_unit(table),
                row_name="head, largest first", column_name="token it fetches from")  # fmt: skip


def _tokens(table: Table) -> Grid:
    """One row: what each token brings, biases last."""
    names = [str(of) if str(part).isdigit() else str(part) for part, of in zip(table["part"], table["of"], strict=True)]
    return Grid(np.asarray(_values(table))[None], ["all paths"], names, value_name=NAME, unit=_unit(table),
                column_name="token")  # fmt: skip


def _lens(table: Table) -> Curve:
    """The observable by depth; nothing is added before 0, the embeddings."""
    values = np.asarray(_values(table))
    return Curve(np.arange(len(values), dtype=float), values[None], (str(table.meta["observable"]),),
                 "sublayers added (0: embeddings)", "read from the stream", "", _unit(table))  # fmt: skip


_PICTURES = {"component": _components, "head": _heads, "token": _tokens, "lens": _lens}
