"""Layers × heads as a picture: one value per head."""

from collections.abc import Sequence

import numpy as np

from covector.axes import Float
from covector.render import Grid


def head_grid(
    names: Sequence[str],
    values: Float[np.ndarray, " head"],
    *,
    value_name: str,
    unit: str = "",
    chance: float | None = None,
    centre: float | None = 0.0,
) -> Grid:
    """A grid of values by the heads' names (``L3H1``); heads that are missing stay empty."""
    places = [tuple(map(int, name[1:].split("H"))) for name in names]
    layers, across = sorted({p[0] for p in places}), sorted({p[1] for p in places})
    cells = np.full((len(layers), len(across)), np.nan)
    for value, (layer, head) in zip(values, places, strict=True):
        cells[layers.index(layer), across.index(head)] = value
    return Grid(
        values=cells,
        row_labels=[f"L{layer}" for layer in layers],
        column_labels=[f"H{head}" for head in across],
        value_name=value_name,
        unit=unit,
        chance=chance,
        centre=centre,
        row_name="layer",
        column_name="head",
    )
