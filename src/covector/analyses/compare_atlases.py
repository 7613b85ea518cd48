"""Two atlases, place by place: which directions of one stand in the other, and which places turned most.

    covector.compare_atlases("base.atlas", "tuned.atlas").show()

A fine-tuned model beside its base, two seeds, two frames. Every measure stands beside what two unrelated models give.

Source: principal angles, Björck and Golub 1973; chance levels as in theory page F3 (SV-32) and §3.12.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance import expected_max_of_basis, median_max, threshold
from covector.render import Column, Grid, Table

# A direction has one in the other atlas where its nearest is this unlikely, best of all of that place.
LEVEL = 0.05
# Mean |cos| above which float16 rows cannot tell two places apart.
SAME = 0.9995
# A spread of agreement that a colour scale should not stretch.
ALIKE = 0.05

Place = tuple[str, str]


def compare_atlases(a: Atlas | str | Path, b: Atlas | str | Path) -> Table:
    """One row per place (site and side) that both atlases have; those that turned most come first.

    ``shared``: share of the subspace in common, ‖A Bᵀ‖²_F / r over the r leading directions that both have; unrelated
    ones have r/d. ``nearest`` and ``median``: |cos| of each direction of `a` with its nearest of the same place of
    `b`, beside the best of as many unrelated directions. ``found``: directions of `a` with one in `b` beyond chance
    (best of all of that place, `LEVEL` each). ``agreement``: where `nearest` lies between chance (0) and the same
    direction (1). ``turn``: the largest angle of a direction whose place in the list is fixed (alone in its block, not
    noisy); `turned` names it. float16 rows: angles under 2° are not told apart from none.
    Raises BadRequest where the spaces differ or no place is common, CorruptAtlas where a folder is none.
    """
    a, b = (x if isinstance(x, Atlas) else Atlas(x) for x in (a, b))
    d = _dimension(a, b)
    mine, other = _places(a), _places(b)
    common = [place for place in mine if place in other]
    if not common:
        raise BadRequest(
            f"expected atlases with places in common, {a.folder} has {next(iter(mine))[0]} … and {b.folder} "
            f"{next(iter(other))[0]} …; build both with the same --kinds"
        )
    fixed, records = _fixed(a), {r["site"]: r for r in a.sites}
    rows = [_row(place, records, _cosines(a, b, mine[place], other[place]), fixed[mine[place]], d) for place in common]
    rows.sort(key=lambda row: round(row["agreement"], 3))  # places that are alike keep the order of the atlas
    return Table(
        columns=_columns(rows),
        meta={
            **a.manifest["meta"], "analysis": "compare_atlases", "other": b.manifest["meta"], "level": LEVEL, "d": d,
            "only_here": len(mine) - len(common), "only_there": len(other) - len(common),
            "null": "unrelated orthonormal directions, best of the place",
        },
        title=f"{_name(a)} beside {_name(b)} · {len(rows)} places with their sides, d {d}",
        says=_says(rows),
        not_says="A direction is compared with those of the same place and side: heads that traded places look lost, "
        "and so do dyads of one block that turned into each other (`shared` does not change by that). A direction that "
        "turned need not change what the model does.",
        next=f"covector view {a.folder} {b.folder}",
        picture=_picture,
        key=("site", "side"),
    )  # fmt: skip


def nearest_dyads(a: Atlas, b: Atlas, site: str, side: str, most: int) -> list[tuple[int, int, float]]:
    """Rows of `a`, rows of `b` and |cos|: for each of the first `most` directions of a place its nearest in `b`.

    Raises BadRequest where one of them does not have the place.
    """
    mine, other = _places(a).get((site, side)), _places(b).get((site, side))
    if mine is None or other is None:
        raise BadRequest(f"expected a place that both atlases have, {site} {side} is none; see their comparison")
    return _nearest(a, b, mine[:most], other)


def all_nearest_dyads(a: Atlas, b: Atlas, most: int) -> dict[Place, list[tuple[int, int, float]]]:
    """`nearest_dyads` of every place that both have."""
    mine, other = _places(a), _places(b)
    return {place: _nearest(a, b, mine[place][:most], other[place]) for place in mine if place in other}


def _nearest(
    a: Atlas, b: Atlas, mine: Int[np.ndarray, " n"], other: Int[np.ndarray, " m"]
) -> list[tuple[int, int, float]]:
    cosines = _cosines(a, b, mine, other)
    best = cosines.argmax(axis=1)
    return [(int(i), int(other[j]), float(c)) for i, j, c in zip(mine, best, cosines.max(axis=1), strict=True)]


def _dimension(a: Atlas, b: Atlas) -> int:
    d, e = a.vectors.shape[1], b.vectors.shape[1]
    if d != e:
        raise BadRequest(
            f"expected two atlases of one space, {a.folder} has d_model {d} and {b.folder} {e}; compare models of one "
            "size"
        )
    return d


def _places(atlas: Atlas) -> Mapping[Place, Int[np.ndarray, " n"]]:
    """The rows of every site and side, strongest first, in the order of the atlas."""
    given = atlas.columns("site", "side", "dyad")
    rows: dict[Place, list[int]] = {}
    for i, place in enumerate(zip(given["site"], given["side"], strict=True)):
        rows.setdefault(place, []).append(i)
    return {p: np.array(r)[np.argsort(given["dyad"][r].astype(np.int64), kind="stable")] for p, r in rows.items()}


def _fixed(atlas: Atlas) -> np.ndarray:
    """Directions that storage precision and equal gains leave where they are."""
    fixed = np.ones(len(atlas), dtype=bool)
    if "noisy" in atlas.names:
        fixed &= ~atlas.column("noisy").astype(bool)
    if "block_first" in atlas.names:
        given = atlas.columns("block_first", "block_last")
        fixed &= given["block_first"] == given["block_last"]
    return fixed


def _cosines(a: Atlas, b: Atlas, mine: Int[np.ndarray, " n"], other: Int[np.ndarray, " m"]) -> Float[np.ndarray, "n m"]:
    """|cos| of the directions of one place with those of the same place of the other; one place in memory at a time."""
    return np.minimum(np.abs(_unit(a.vectors[mine]) @ _unit(b.vectors[other]).T), 1.0).astype(np.float64)


def _unit(rows: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Rows of length one again: float16 keeps it to a thousandth."""
    wide = rows.astype(np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _row(
    place: Place, records: Mapping[str, Any], cosines: Float[np.ndarray, "n m"], fixed: np.ndarray, d: int
) -> dict[str, Any]:
    n, m = cosines.shape
    r = min(n, m)
    best = cosines.max(axis=1)
    chance, reach = expected_max_of_basis(d, min(m, d)), float(threshold(d, m, LEVEL))
    turns = np.where(fixed, np.degrees(np.arccos(best)), -1.0)
    most = int(turns.argmax())
    record, nearest = records[place[0]], float(best.mean())
    return {
        "site": place[0], "side": place[1], "kind": record["kind"], "layer": record["layer"], "head": record["head"],
        "directions": n, "shared": min(float((cosines[:r, :r] ** 2).sum()) / r, 1.0), "shared_chance": r / d,
        "nearest": nearest, "nearest_chance": chance, "median": float(np.median(best)),
        "median_chance": median_max(d, m), "found": int((best > reach).sum()),
        "found_chance": LEVEL * n, "reach": reach,
        "agreement": (nearest - chance) / (1 - chance) if chance < 1 else np.nan,
        "turn": turns[most] if fixed.any() else np.nan, "turn_chance": float(np.degrees(np.arccos(min(chance, 1.0)))),
        "turned": f"{place[0]}:{most}" if fixed.any() else "",
    }  # fmt: skip


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    def of(name: str) -> np.ndarray:
        return np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)

    return [
        Column("site", [r["site"] for r in rows]),
        Column("side", [r["side"] for r in rows]),
        Column("kind", [r["kind"] for r in rows]),
        Column("layer", of("layer"), digits=0),
        Column("head", of("head"), digits=0),
        Column("agreement", of("agreement"), digits=3, chance=0.0, about="nearest, from chance (0) to the same (1)"),
        Column("nearest", of("nearest"), unit="cos", digits=3, chance="nearest_chance",
               about="mean |cos| of a direction with its nearest of the same place; in parentheses what chance gives"),
        Column("nearest_chance", of("nearest_chance"), digits=3, about="unrelated directions, best of as many"),
        Column("shared", of("shared"), digits=3, chance="shared_chance",
               about="share of the subspace in common, at the rank both have; in parentheses r/d, what chance gives"),
        Column("shared_chance", of("shared_chance"), digits=3, about="r/d"),
        Column("directions", of("directions"), digits=0, about="compared"),
        Column("found", of("found"), digits=0, chance="found_chance",
               about=f"have one in the other beyond chance (best of the place, {LEVEL} each)"),
        Column("found_chance", of("found_chance"), digits=1, about="so many by chance"),
        Column("turn", of("turn"), unit="°", digits=1, about="largest angle of a direction that is fixed: alone in its"
               " block, not noisy"),
        Column("turned", [r["turned"] for r in rows], about="the dyad that turned so far"),
        Column("turn_chance", of("turn_chance"), unit="°", digits=1, about="angle of unrelated directions, best of as"
               " many"),
        Column("median", of("median"), unit="cos", digits=3, chance="median_chance", about="median of the same"),
        Column("median_chance", of("median_chance"), digits=3, about="median best of as many unrelated directions"),
        Column("reach", of("reach"), digits=3, about=f"|cos| beyond chance (best of the place, {LEVEL})"),
    ]  # fmt: skip


def _name(atlas: Atlas) -> str:
    meta = atlas.manifest["meta"]
    return f"{meta['model']} ({meta['frame']})" if meta["frame"] != "raw" else str(meta["model"])


def _says(rows: Sequence[Mapping[str, Any]]) -> str:
    found, n = sum(r["found"] for r in rows), sum(r["directions"] for r in rows)
    first = f"{found:,} of {n:,} directions have one in the other atlas beyond chance ({LEVEL:.0%} would by chance). "
    if rows[0]["nearest"] >= SAME:
        return first + "No place turned: all directions are the same to the precision of an atlas."
    told = ", ".join(
        f"{r['site']} {r['side']} (mean |cos| {r['nearest']:.2f}, chance {r['nearest_chance']:.2f})"
        for r in _turned(rows)
    )
    if found <= LEVEL * n + 3 * np.sqrt(LEVEL * n) and not any(r["found"] > r["directions"] / 2 for r in rows):
        return first + "No place agrees: directions of two unrelated models are as near."
    return first + f"Turned most: {told}."


def _turned(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    yield from (r for r in rows[:3] if r["nearest"] < SAME)


def _picture(table: Table) -> Grid:
    """Places × layers, coloured by how far directions agree beyond chance."""
    rows = [r for r in table.rows if r["layer"] is not None] or table.rows
    layers = sorted({-1 if r["layer"] is None else int(r["layer"]) for r in rows})
    names = sorted({_row_name(r) for r in rows}, key=_order)
    values = np.full((len(names), len(layers)), np.nan)
    for r in rows:
        at = layers.index(-1 if r["layer"] is None else int(r["layer"]))
        values[names.index(_row_name(r)), at] = r["agreement"]
    return Grid(
        values=values,
        row_labels=names,
        column_labels=[f"L{layer}" if layer >= 0 else "–" for layer in layers],
        value_name="agreement: 0 chance, 1 the same",
        # Places that are all alike, or all lost, are shown so, and not by what little they differ.
        centre=0.5 if np.nanmax(values) - np.nanmin(values) < ALIKE else None,
        digits=2,
        row_name="place",
        column_name="layer",
    )


def _row_name(row: Mapping[str, Any]) -> str:
    kind = row["kind"] if row["layer"] is not None else row["site"]
    return (f"H{int(row['head'])}." if row["head"] is not None else "") + f"{kind} {row['side']}"


def _order(name: str) -> tuple[str, str, int]:
    """Heads of one kind and side together, by number."""
    head, _, rest = name.partition(".") if name[:1] == "H" and "." in name else ("", "", name)
    return rest.split(" ")[1] if " " in rest else "", rest, int(head[1:]) if head[1:].isdigit() else -1
