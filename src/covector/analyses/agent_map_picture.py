"""The picture of all dyads against labels: a panel per block and matrix side, one colour scale, chance outlined."""

import re

import numpy as np

from covector.render import Grid, Table

# Columns and rows of cells that keep their labels readable.
WIDEST, HIGHEST = 60, 78
# Matrix sides from left to right; others follow in the order they come.
ORDER = ("mlp.in read", "mlp.gate read", "mlp.out write", "ov read", "ov write", "qk query", "qk key")
NAMES = {"mlp.in": "W_in", "mlp.gate": "W_gate", "mlp.out": "W_out", "ov": "OV", "qk": "QK"}


def panels(table: Table) -> Grid:
    """Rows: dyads, block below block (heads of a block below each other). Columns: labels, matrix beside matrix.

    Where labels are too many, those with the largest |cosine| anywhere. Empty cells (a matrix that a block has once,
    beside its other heads; the seams) are grey.
    """
    cells, sides, blocks = {}, dict[str, None](), dict[str, None]()
    best: dict[tuple[str, str], float] = {}
    for row in table.rows:
        block, matrix = _placed(row["site"])
        side, label = f"{matrix} {row['side']}", (row["basis"], row["label"])
        cells[block, side, row["dyad"], label] = row["cos"]
        sides[side], blocks[block] = None, None
        best[label] = max(best.get(label, 0.0), abs(row["cos"]))
    across = sorted(sides, key=lambda s: (ORDER.index(s) if s in ORDER else len(ORDER), s))
    down = sorted(blocks, key=_order)
    labels = _shown(best, max(WIDEST // len(across) - 1, 1), table)
    dyads = min(max(key[2] for key in cells) + 1, max(HIGHEST // len(down) - 1, 1))
    columns = [(s, label) for i, s in enumerate(across) for label in ([None] if i else []) + labels]
    rows = [(b, k) for i, b in enumerate(down) for k in ([None] if i else []) + list(range(dyads))]
    values = np.full((len(rows), len(columns)), np.nan)
    for i, (block, dyad) in enumerate(rows):
        for j, (side, label) in enumerate(columns):
            values[i, j] = cells.get((block, side, dyad, label), np.nan)
    few = f": the {len(labels)} labels with the largest |cos|" if len(labels) < len(best) else ""
    several = len({basis for basis, _ in labels}) > 1
    return Grid(
        values,
        [_row_name(b, k) for b, k in rows],
        [_column_name(s, label, labels[0], several) for s, label in columns],
        value_name="cos",
        unit="cos",
        chance=table.meta["level"],
        row_name="dyad",
        column_name=", ".join(table.meta["bases"]) + few,
        outlined=True,
    )


def _placed(site: str) -> tuple[str, str]:
    """(block and head, matrix): ``L0H1.ov`` → (``L0H1``, ``ov``); MLPs stand beside the block's first head."""
    found = re.match(r"(L\d+)(?:[HK](\d+))?\.(.*)", site)
    return (f"{found[1]}H{found[2] or 0}", found[3]) if found else ("", site)


def _order(block: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", block)))


def _shown(best: dict[tuple[str, str], float], most: int, table: Table) -> list[tuple[str, str]]:
    """The labels that are drawn: in the order of the bases, and all of them where they fit."""
    places = {name: i for i, name in enumerate(table.meta["bases"])}
    kept = sorted(best, key=lambda label: -best[label])[:most]
    first = {label: i for i, label in enumerate(_as_stored(table))}
    return sorted(kept, key=lambda label: (places[label[0]], first[label]))


def _as_stored(table: Table) -> list[tuple[str, str]]:
    """Labels in the order of the checkpoint."""
    return [(basis, label) for basis, labels in table.meta["order"].items() for label in labels]


def _row_name(block: str, dyad: int | None) -> str:
    if dyad is None:
        return ""
    return f"{block} · {dyad}" if dyad == 0 else str(dyad)


def _column_name(side: str, label: tuple[str, str] | None, first: tuple[str, str], several: bool) -> str:
    if label is None:
        return ""
    matrix, way = side.split(" ", 1)
    name = f"{label[0]}: {label[1]}" if several else label[1]
    return f"{NAMES.get(matrix, matrix)} {way} · {name}" if label == first else name
