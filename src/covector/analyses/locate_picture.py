"""The picture of a location: the z of every place by depth, coloured by kind, over the band that chance gives."""

import re

import numpy as np

from covector.render import Scatter, Table

# Names in the picture; more cover each other.
NAMED = 8
# Kinds stand side by side inside a layer, this far apart.
APART = 0.09


def gain_by_depth(table: Table) -> Scatter:
    """x: layer (kinds side by side), y: z of the gain; the strongest places that chance does not explain are named."""
    rows = [row for row in table.rows if row["z"] is not None]
    groups = [_kind(row["site"], row["side"]) for row in rows]
    kinds = sorted(set(groups))
    at = [
        _layer(row["site"]) + APART * (kinds.index(g) - (len(kinds) - 1) / 2)
        for row, g in zip(rows, groups, strict=True)
    ]
    names = [row["site"] if i < NAMED and row["familywise"] < 0.05 else "" for i, row in enumerate(rows)]
    low, high = table.meta["z_level"]
    return Scatter(
        x=np.array(at),
        y=np.array([row["z"] for row in rows]),
        x_name="layer",
        y_name="gain above chance",
        x_unit="",
        y_unit="sd",
        labels=names,
        groups=groups,
        band=(low, high),
        band_name="95 % of rotated sets, one place",
    )


def _kind(site: str, side: str) -> str:
    """``OV write``, ``MLP in read``, ``QK key``; embeddings by name."""
    name = re.sub(r"^L\d+([HK]\d+)?\.", "", site)
    return f"{name.replace('mlp.', 'MLP ').replace('ov', 'OV').replace('qk', 'QK')} {side}"


def _layer(site: str) -> float:
    found = re.match(r"L(\d+)", site)
    return float(found[1]) if found else -1.0
