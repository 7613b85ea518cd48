"""The picture of a change: layers × kinds of map, each head a column, coloured by how much it changed."""

import re

import numpy as np

from covector.render import Grid, Table

_ORDER = ("ov", "qk", "in", "gate", "out")


def layers_by_kinds(table: Table) -> Grid:
    """Relative change of every place: layers down, kinds across; places outside the blocks have their own columns."""
    inside, outside = {}, {}
    for row in table.rows:
        found = re.fullmatch(r"L(\d+)(?:H(\d+))?\.(?:mlp\.)?(\w+)", row["site"])
        if found:
            inside[int(found[1]), _ORDER.index(found[3]), int(found[2] or 0)] = (row["change"], found[3], found[2])
        else:
            outside[row["site"]] = row["change"]
    columns = sorted({key[1:] for key in inside})
    names = {key[1:]: f"H{head} {kind}" if head else f"MLP {kind}" for key, (_, kind, head) in inside.items()}
    layers = sorted({key[0] for key in inside})
    cells = np.full((len(layers), len(columns)), np.nan)
    for key, (value, _, _) in inside.items():
        cells[layers.index(key[0]), columns.index(key[1:])] = np.nan if value is None else value
    labels, rows = [names[column] for column in columns], [f"L{layer}" for layer in layers]
    if outside:
        more = np.array([np.nan if value is None else value for value in outside.values()])
        beside, below = np.full((len(layers), len(more)), np.nan), np.full((1, len(columns)), np.nan)
        cells = np.block([[cells, beside], [below, more]])
        labels, rows = [*labels, *outside], [*rows, "outside"]
    return Grid(
        values=cells,
        row_labels=rows,
        column_labels=labels,
        value_name="relative change",
        unit="‖M‖",
        centre=None,
        row_name="layer",
        column_name="map",
    )
