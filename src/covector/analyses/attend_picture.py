"""Why a head looks there, as a picture: dyads with their level of chance, writers of either side, writers × writers."""

import numpy as np

from covector.errors import BadRequest
from covector.render import Curve, Grid, Scatter, Table

SPLITS = ("dyads", "writers", "pairs", "tokens", "keys")
CONTRAST = "part of the contrast"
# Writers in the picture, largest first; more cannot be read. Parts below ROUNDING of the largest are shown as 0.
SHOWN, ROUNDING = 40, 1e-12


def attend_picture(table: Table) -> Curve | Grid | Scatter:
    """The picture that fits the split."""
    by = str(table.meta["by"])
    return {"keys": _keys, "writers": _writers, "pairs": _pairs}.get(by, _dyads)(table)


def check_by(by: str) -> None:
    """Raise BadRequest for a split that there is not."""
    if by not in SPLITS:
        raise BadRequest(f"expected --by {', '.join(SPLITS)}, got '{by}'")


def _keys(table: Table) -> Curve:
    x = np.asarray(table["position"], dtype=float)
    even = float(table.column("weight").chance_level or 0.0)
    return Curve(x, np.asarray(table["weight"])[None], ("attention weight",), "key position", "weight", "tokens", "",
                 band=(0.0, even), band_name="even")  # fmt: skip


def _dyads(table: Table) -> Scatter:
    """Each dyad's part over its index, and how much the largest part of a random basis has."""
    parts = [str(part) for part in table["part"]]
    rows = [i for i, part in enumerate(parts) if part.startswith("dyad ")]
    index = np.array([int(parts[i].removeprefix("dyad ")) for i in rows], dtype=float)
    contrast, bar = np.asarray(table["contrast"])[rows], float(np.asarray(table["chance"])[rows[0]])
    names = [f"dyad {i:.0f}" if abs(c) > bar else "" for i, c in zip(index, contrast, strict=True)]
    return Scatter(index, contrast, "dyad, largest σ first", CONTRAST, "", "", names,
                   band=(-bar, bar), band_name="largest of a random basis")  # fmt: skip


def _writers(table: Table) -> Grid:
    """Writers × the side on which they are read, in the order of the model."""
    sizes = {str(part): 0.0 for part in table["part"]}
    for part, value in zip(table["part"], table["contrast"], strict=True):
        sizes[str(part)] = max(sizes[str(part)], abs(float(value)))
    first = sorted(sizes, key=lambda name: -sizes[name])[:SHOWN]
    rows, sides = sorted(first, key=_depth), ["query", "key"]
    values = np.full((len(rows), 2), np.nan)
    for side, part, value in zip(table["side"], table["part"], table["contrast"], strict=True):
        if part in rows:
            values[rows.index(str(part)), sides.index(str(side))] = value
    return Grid(_rounded(values), rows, sides, value_name=CONTRAST, row_name="writer", column_name="read by the")


def _pairs(table: Table) -> Grid:
    """Query writers × key writers: the pairs that the table tells apart."""
    rows = [i for i, key in enumerate(table["key"]) if not str(key).endswith(" other pairs")]
    queries, keys = (sorted({str(table[side][i]) for i in rows}, key=_depth) for side in ("query", "key"))
    values = np.full((len(queries), len(keys)), np.nan)
    for i in rows:
        values[queries.index(str(table["query"][i])), keys.index(str(table["key"][i]))] = table["contrast"][i]
    return Grid(_rounded(values), queries, keys, value_name=CONTRAST, row_name="written for the query",
                column_name="written for the key")  # fmt: skip


def _rounded(values: np.ndarray) -> np.ndarray:
    """Without what is rounding alone."""
    return np.where(np.abs(values) < ROUNDING * np.nanmax(np.abs(values)), 0.0, values)


def _depth(name: str) -> tuple[int, int, str]:
    """Embeddings, then layer by layer heads before the MLP, then constants."""
    if not (name.startswith("L") and name[1:2].isdigit()):
        return (10**6 if name.startswith("b_") else -1, 0, name)
    layer, _, rest = name[1:].replace("H", ".H", 1).partition(".")
    rest = rest.lstrip(".")
    return (int(layer), int(rest[1:]) if rest[1:].isdigit() else 10**6, rest)
