"""What a direction reads of a grid world, as maps: one per object, over the cells that the agent sees.

Scores of labels ``key x3 y5`` are laid out on their cells. Whether a map has a shape is asked twice: are its values
placed at random on the cells (permutations), and is it smoother than the map of a random direction (neighbouring cells
may be embedded alike, and then every map is smooth)?

Source: Q3 of the theory page; `docs/theory/location.md`, equations 14–16.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from covector.analyses.agent_direction import Direction
from covector.analyses.agent_direction import direction as named
from covector.analyses.agent_untrained import untrained
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.location import hyperplane
from covector.linalg.spatial import FEWEST_CELLS, morans_i, neighbours, permuted_i, standardised
from covector.model.opened import Model
from covector.render import Column, Grid, Table

LEVEL = 0.05
# Maps in the picture, and side by side in it: with more the cells are too small to print their values.
DRAWN, ACROSS = 6, 3
_CELL = re.compile(r"(.+) x(\d+) y(\d+)")


@dataclass(frozen=True, eq=False)
class _Channel:
    """One object (or colour, or state of a door): its usable cells, their unit vectors, and what it scores there."""

    name: str
    cells: Int[np.ndarray, "n 2"]
    units: Float[np.ndarray, "n d"]
    cos: Float[np.ndarray, " n"]


def grid_map(
    model: Model, direction: Direction | str, basis: str = "state_in", *, draws: int = 2000, seed: int = 0
) -> Table:
    """One row per channel: its map of cosines with `direction`, how smooth it is, and its strongest cell.

    `direction` is a side of a dyad (``L0.mlp.in:0``, ``L0H0.qk:0.key``), or what `covector.analyses.agent_direction`
    makes of an observable or a feature.
    `basis` has labels ``OBJECT xX yY`` (MiniGrid views: the agent stands at x 3, y 6 and looks to y 0). Cells without
    a direction (never lit) and cells that look untrained are left out; a channel with fewer than 6 cells has no I.

    `I` is Moran's, neighbours sharing an edge. `p`: permutations of the values over the cells; `familywise`: that any
    channel reaches as much (max-T, in standard deviations of each channel's null). `I_level`: what a random direction's
    map of that channel stays below with 95 %; `p_direction` that it reaches I, `fam_direction` in any channel.
    `cos` is that of the strongest cell, `cos_level` what the best cell of all channels stays below by chance (union
    bound). `map`: √d·cos by cell, rows y from 0, NaN where left out. Exact but for the simulated p of `draws` draws.
    Raises UnknownBasis, BadSite, BadRank; BadRequest for labels that name no cells.
    """
    direction = named(model, direction) if isinstance(direction, str) else direction
    channels, left_out, d = _channels(model, direction, basis)
    near = [neighbours(c.cells) for c in channels]
    observed = np.array([morans_i(c.cos, w) for c, w in zip(channels, near, strict=True)])
    measured = np.array([len(c.cells) >= FEWEST_CELLS for c in channels]) & np.isfinite(observed)
    kept = [c for c, ok in zip(channels, measured, strict=True) if ok]
    if not kept:
        raise BadRequest(f"{basis}: no channel has {FEWEST_CELLS} trained cells beside each other; nothing to map")
    permuted = permuted_i([c.cos for c in kept], [c.cells for c in kept], draws=draws, seed=seed)
    random = chance.haar_directions(draws, d, (seed, 1))
    others = np.stack([morans_i(random @ c.units.T, w) for c, w, ok in zip(channels, near, measured, strict=True)
                       if ok], axis=1)  # fmt: skip
    columns = _columns(channels, observed, measured, (permuted, others), d)
    grid = np.concatenate([c.cells for c in channels])
    meta = {
        "analysis": "grid_map", "policy": "none: weights only", "direction": direction.name, "read_at": direction.said,
        "basis": basis, "left_out": left_out, "width": int(grid[:, 0].max()) + 1, "height": int(grid[:, 1].max()) + 1,
        "dimension": d, "cells": sum(len(c.cells) for c in channels), "draws": draws, "seed": seed,
        "null": "values permuted over cells; and Haar directions", "contiguity": "cells that share an edge",
    }  # fmt: skip
    tensors = dict.fromkeys((*direction.tensors, *model.bases[basis].tensors))
    table = Table(columns, model.meta | meta | {"tensors": model.origins(*tensors)}, key=("channel",))
    strongest = np.lexsort((-np.abs(table["cos"]), np.nan_to_num(table["familywise"], nan=2.0)))
    table = table.take(strongest)
    return replace(
        table,
        title=f"{model.name} · {direction.name} against {basis} · {len(table)} channels, {meta['cells']} cells · frame "
        f"{model.frame} · {draws} draws",
        says=_says(table),
        not_says=_not_says(table, model, direction),
        next=f"covector locate {model.words} action_out --by contrasts{model.framing}",
        picture=maps,
    )


def _channels(model: Model, direction: Direction, basis: str) -> tuple[list[_Channel], dict[str, int], int]:
    """Channels in the order of the labels, counts of labels left out, and the dimension of the law."""
    found = model.bases.centred(basis) if direction.centred else model.bases[basis]
    places = [_CELL.fullmatch(label) for label in found.labels]
    if found.metric is not None or not all(places):
        odd = next((label for label, at in zip(found.labels, places, strict=True) if not at), basis)
        raise BadRequest(
            f"{basis}: a map needs labels 'OBJECT xX yY', got '{odd}'; name them in the layout or agent.json"
        )
    known = untrained(model, basis)
    usable = found.usable & ~known.any
    vectors = hyperplane(found.unit().astype(np.float64)) if direction.centred else found.unit().astype(np.float64)
    row = hyperplane(direction.row[None])[0] if direction.centred else direction.row
    by_name: dict[str, list[int]] = {}
    for i, at in enumerate(places):
        if at and usable[i]:
            by_name.setdefault(at[1], []).append(i)
    made = []
    for name, rows in by_name.items():
        cells = np.array([[int(at[2]), int(at[3])] for i in rows if (at := places[i])])
        made.append(_Channel(name, cells, vectors[rows], np.clip(vectors[rows] @ row, -1.0, 1.0)))
    if not made:
        raise BadRequest(f"{basis}: no label has a trained direction; nothing to map")
    out = {"no direction": int((~found.usable).sum()), "untrained": int((found.usable & known.any).sum())}
    return made, out, vectors.shape[1]


def _columns(
    channels: list[_Channel], observed: np.ndarray, measured: np.ndarray, nulls: tuple[np.ndarray, np.ndarray], d: int
) -> list[Column]:
    size = np.concatenate([c.cells for c in channels]).max(axis=0) + 1
    cells = sum(len(c.cells) for c in channels)
    peak = [int(np.abs(c.cos).argmax()) for c in channels]
    cos = np.array([c.cos[i] for c, i in zip(channels, peak, strict=True)])
    level = float(chance.threshold(d, cells, LEVEL))
    laws = []
    for null in nulls:
        z, z_null = standardised(observed[measured], null)
        p = np.array([chance.monte_carlo_p(o, n).value for o, n in zip(observed[measured], null.T, strict=True)])
        laws.append((_spread(p, measured), _spread(chance.max_t(z, z_null), measured)))
    (p, familywise), (p_direction, fam_direction) = laws
    value = np.where(measured, observed, np.nan)
    return [
        Column("channel", [c.name for c in channels]),
        Column("cells", np.array([len(c.cells) for c in channels]), about="trained cells with a direction"),
        Column("I", value, digits=2, about="Moran's I: likeness of neighbouring cells", chance="I_level"),
        Column("I_level", _spread(np.quantile(nulls[1], 1 - LEVEL, axis=0), measured), digits=2,
               about="I that the map of a random direction stays below with 95 %"),
        Column("expected", np.array([-1 / max(len(c.cells) - 1, 1) for c in channels]), digits=2,
               about="mean of I when values are permuted over the cells"),
        Column("p", p, about="chance that permuted values reach this I"),
        Column("familywise", familywise, about="that permuted values reach as much in any channel (max-T)"),
        Column("p_direction", p_direction, about="chance that a random direction's map reaches this I"),
        Column("fam_direction", fam_direction, about="the same in any channel (max-T)"),
        Column("peak", [f"x{c.cells[i][0]} y{c.cells[i][1]}" for c, i in zip(channels, peak, strict=True)],
               about="the cell with the largest |cos|"),
        Column("cos", cos, "cos", 3, "its cosine", chance=level),
        Column("mean", np.array([np.sqrt(d) * c.cos.mean() for c in channels]), "sd", 2, "mean of √d·cos over cells"),
        Column("map", [_laid(c, d, size) for c in channels], "sd", 1, "√d·cos by cell, rows y from 0 (None: left out)"),
    ]  # fmt: skip


def _spread(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    made = np.full(len(at), np.nan)
    made[at] = values
    return made


def _laid(channel: _Channel, d: int, size: np.ndarray) -> list[list[float | None]]:
    made: list[list[float | None]] = [[None] * int(size[0]) for _ in range(int(size[1]))]
    for (x, y), cos in zip(channel.cells.tolist(), channel.cos.tolist(), strict=True):
        made[y][x] = float(np.sqrt(d) * cos)
    return made


def _says(table: Table) -> str:
    rows, level = table.rows, table.column("cos").chance_level or 1.0
    shaped = [r["channel"] for r in rows if (r["familywise"] or 1.0) <= LEVEL]
    also = [r["channel"] for r in rows if (r["familywise"] or 1.0) <= LEVEL and (r["fam_direction"] or 1.0) <= LEVEL]
    beyond = sorted((r for r in rows if abs(r["cos"]) > level), key=lambda r: -abs(r["cos"]))
    first = (
        f"{len(shaped)} of {len(rows)} maps have a shape ({', '.join(shaped)}; familywise {LEVEL:.0%})"
        if shaped else f"No map of {len(rows)} has a shape that permuted cells do not have (familywise {LEVEL:.0%})"
    )  # fmt: skip
    second = f"{len(also)} of them more than a random direction's map has" if shaped else ""
    third = (
        f"{len(beyond)} channels have a cell beyond chance, the first {beyond[0]['channel']} {beyond[0]['peak']} "
        f"(cos {beyond[0]['cos']:+.2f})" if beyond else "no cell is beyond chance"
    )  # fmt: skip
    return "; ".join(filter(None, (first, second, third))) + "."


def _not_says(table: Table, model: Model, direction: Direction) -> str:
    out = table.meta["left_out"]
    parts = ["It does not say that the agent uses what it reads there (nothing was run)"]
    parts += [f"the direction is {direction.said}"] if direction.said else []
    parts += ["the states' own norm, other tokens and earlier blocks stand between an input and a later block"] \
        if model.spec.n_layers > 1 or model.stored.spec.assembly.norm else []  # fmt: skip
    parts += [f"{k} labels left out ({why})" for why, k in out.items() if k]
    return "; ".join(parts) + "."


def maps(table: Table) -> Grid:
    """Small multiples: the maps of the channels that come first, y downwards as the agent looks up.

    Over each band of maps stands what they are of, from left to right.
    """
    rows, width, height = table.rows[:DRAWN], table.meta["width"], table.meta["height"]
    across = min(ACROSS, len(rows))
    bands = [rows[i : i + across] for i in range(0, len(rows), across)]
    values = np.full((len(bands) * (height + 1), across * (width + 1) - 1), np.nan)
    names: list[str] = []
    for b, band in enumerate(bands):
        names += [" | ".join(row["channel"] for row in band), *(f"y{y}" for y in range(height))]
        for k, row in enumerate(band):
            laid = np.array([[np.nan if v is None else v for v in line] for line in row["map"]], dtype=float)
            top, left = b * (height + 1) + 1, k * (width + 1)
            values[top : top + height, left : left + width] = laid
    columns = [name for k in range(across) for name in ([""] if k else []) + [f"x{x}" for x in range(width)]]
    level = table.column("cos").chance_level or 0.0
    agent = (width, height) == (7, 7)
    return Grid(
        values, names, columns, value_name="√d·cos", unit="sd", digits=1, outlined=True,
        chance=float(np.sqrt(table.meta["dimension"]) * level),
        column_name=table.meta["direction"] + ("; the agent stands at x3 y6 and looks up" if agent else ""),
    )  # fmt: skip
