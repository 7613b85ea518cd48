"""Values at cells of a grid: whether neighbours are alike (Moran's I), and whether more than chance makes them.

    I = n/W · Σ_ij w_ij z_i z_j / Σ_i z_i²,   z = x − mean(x), W = Σ_ij w_ij

with w_ij = 1 for cells that share an edge. Two nulls answer two questions. *Permuted cells*: are these values placed at
random on the grid, E I = −1/(n − 1)? *Random directions*: is this map smoother than the map of a direction that means
nothing, given that what neighbouring cells are embedded as may be alike already?

Source: Moran 1950; Q3 of the theory page; `docs/theory/location.md`, equations 14–16.
"""

from collections.abc import Sequence

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator

# Fewer cells have too few orders for a p below 5 % to mean much.
FEWEST_CELLS = 6


def neighbours(cells: Int[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n n"]:
    """Which pairs of cells (x, y) share an edge. Raises BadRequest if a cell is named twice."""
    if len({tuple(cell) for cell in cells.tolist()}) < len(cells):
        raise BadRequest(f"a map has one value per cell, {len(cells)} cells came and some are the same; name each once")
    apart = np.abs(cells[:, None] - cells[None]).sum(axis=-1)
    return apart == 1


def morans_i(values: Float[np.ndarray, "*batch n"], near: Bool[np.ndarray, "n n"]) -> Float[np.ndarray, "*batch"]:
    """Moran's I of each row of values; NaN for a constant map, or where no two cells are neighbours. Exact."""
    z = values - values.mean(axis=-1, keepdims=True)
    power = np.sum(z * z, axis=-1)
    # A map as flat as rounding is constant.
    flat = power <= np.square(1e-12 * np.abs(values).max(axis=-1, initial=0.0)) * values.shape[-1]
    pairs, n = float(near.sum()), values.shape[-1]
    if pairs == 0:
        return np.full(power.shape, np.nan)
    cross = np.sum((z @ near.astype(np.float64)) * z, axis=-1)
    return np.asarray(np.divide(n * cross, pairs * power, out=np.full(power.shape, np.nan), where=~flat))


def permuted_i(
    maps: Sequence[Float[np.ndarray, "..."]], cells: Sequence[Int[np.ndarray, "..."]], *, draws: int, seed: Seed
) -> Float[np.ndarray, "draws m"]:
    """Moran's I of every map [n] when its values are put on its cells [n, 2] in a random order: a column each.

    In a draw all maps are permuted by the same keys on the grid, so maps that have the same cells are permuted alike
    and their dependence is kept for a max-T. Raises BadRequest for draws < 1.
    """
    if draws < 1:
        raise BadRequest(f"a null needs draws >= 1, got {draws}; 1000 resolve a familywise 5 %")
    grid = sorted({tuple(cell) for some in cells for cell in some.tolist()})
    at = {cell: i for i, cell in enumerate(grid)}
    keys = generator(seed, "cells").random((draws, len(grid)))
    made = np.empty((draws, len(maps)))
    for column, (values, here) in enumerate(zip(maps, cells, strict=True)):
        order = np.argsort(keys[:, [at[tuple(cell)] for cell in here.tolist()]], axis=1)
        made[:, column] = morans_i(values[order], neighbours(here))
    return made


def standardised(
    observed: Float[np.ndarray, " m"], null: Float[np.ndarray, "draws m"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "draws m"]]:
    """Both in standard deviations of each map's own null, so that a max-T does not favour maps of few cells."""
    mean, sd = null.mean(axis=0), null.std(axis=0)
    scale = np.where(sd > 0, sd, 1.0)
    return (observed - mean) / scale, (null - mean) / scale
