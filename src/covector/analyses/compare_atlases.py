"""Two atlases, place by place: which directions of one stand in the other, and which places turned most.

    covector.compare_atlases("base.atlas", "tuned.atlas").show()

A fine-tuned model beside its base, two seeds, two frames. Every measure stands beside what two unrelated models give.

Source: principal angles, Björck and Golub 1973; chance levels as in theory page F3 (SV-32) and §3.12.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import bdtrc

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance import expected_max_of_basis, max_in_frame, threshold
from covector.render import Column, Grid, Table

# A direction has one in the other atlas where its nearest is this unlikely, best of all of that place.
LEVEL = 0.05
# The angle that two unit rows can have by being stored: each component of both is rounded by 2⁻¹¹ of itself.
RESOLVED = 0.06
# The part of a float16 unit row along 1 that is rounding: Σ 2⁻¹¹|vᵢ|/√d is no more than this.
ROUNDED = 2.0**-11
# Rows of float16 span a direction where a singular value is above this share of the largest: rounding leaves 1e-3.
SPANNED = 5e-3
# Draws behind the median of the nearest and of the largest angle of unrelated directions: known to a degree.
DRAWS = 4096
# A spread of agreement that a colour scale should not stretch.
ALIKE = 0.05

Place = tuple[str, str]


def compare_atlases(a: Atlas | str | Path, b: Atlas | str | Path) -> Table:
    """One row per place (site and side) that both atlases have; those that turned most come first.

    ``shared``: share of the subspace in common, ‖A Bᵀ‖²_F / r over the r leading directions that both have; unrelated
    ones have r/d, d one less where both have no part along **1**. ``nearest`` and ``median``: |cos| of each direction
    of `a` with its nearest of the same place of `b`, beside the best of as many unrelated directions. ``found``:
    directions of `a` with one in `b` beyond chance (best of all of that place, `LEVEL` each). ``agreement``: where
    `nearest` lies between chance (0) and the same direction (1). ``turn``: the largest angle of a direction that is
    fixed, and whose nearest is (alone in its block, not noisy), beside the median largest of as many unrelated ones;
    `turned` names it. Where `b` keeps fewer directions (its --rank), the leading ones of `a` are compared. float16
    rows: angles up to 0.06° are not told apart from none.
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
    mine = {place: mine[place][: _most(b, len(other[place]))] for place in common}
    fixed, records = (_fixed(a), _fixed(b)), {r["site"]: r for r in a.sites}
    pairs = (_pair(a, b, mine[place], other[place], fixed) for place in common)
    rows = [_row(place, records[place[0]], pair) for place, pair in zip(common, pairs, strict=True)]
    rows.sort(key=lambda row: 2.0 if row["alike"] else row["agreement"])  # alike: in the order of the atlas
    return Table(
        columns=_columns(rows),
        meta={
            **a.manifest["meta"], "analysis": "compare_atlases", "other": b.manifest["meta"], "level": LEVEL, "d": d,
            "only_here": len(_places(a)) - len(common), "only_there": len(other) - len(common),
            "turned": sum(not row["alike"] for row in rows),
            "null": "unrelated orthonormal directions, best of the place", "draws": DRAWS, "seed": 0,
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


def _most(b: Atlas, kept: int) -> int | None:
    """How many directions of a place can have one in `b`: as many as it was asked to keep; None: all."""
    rank = b.manifest["options"].get("rank")
    return kept if rank is not None and kept >= rank else None


def _cosines(a: Atlas, b: Atlas, mine: Int[np.ndarray, " n"], other: Int[np.ndarray, " m"]) -> Float[np.ndarray, "n m"]:
    """|cos| of the directions of one place with those of the same place of the other; one place in memory at a time."""
    return _products(_unit(a.units(mine, np.float32)), _unit(b.units(other, np.float32)))


def _products(rows: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    return np.minimum(np.abs(rows @ others.T), 1.0).astype(np.float64)


def _unit(rows: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Rows of length one again: float16 keeps it to a thousandth."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class _Pair:
    """One place in both atlases: of each direction of the first the |cos| with its nearest, and whether both are fixed.

    ``d``: dimension of the space that they live in; ``m``: directions of the second; ``r``: that both have.
    """

    nearest: Float[np.ndarray, " n"]
    fixed: Bool[np.ndarray, " n"]
    shared: float
    r: int
    m: int
    d: int


def _pair(
    a: Atlas,
    b: Atlas,
    mine: Int[np.ndarray, " n"],
    other: Int[np.ndarray, " m"],
    fixed: tuple[Bool[np.ndarray, " p"], Bool[np.ndarray, " q"]],
) -> _Pair:
    rows, others = _unit(a.units(mine, np.float32)), _unit(b.units(other, np.float32))
    cosines = _products(rows, others)
    r, partner = min(cosines.shape), cosines.argmax(axis=1)
    # In float32 a cosine near 1 is an angle to 0.03° at best: those that are kept once more in float64.
    near = np.einsum("nd,nd->n", _unit(rows.astype(np.float64)), _unit(others[partner].astype(np.float64)))
    whole = "+bias" not in f"{a.manifest['meta']['frame']} {b.manifest['meta']['frame']}"
    return _Pair(
        nearest=np.minimum(np.abs(near), 1.0),
        fixed=fixed[0][mine] & fixed[1][other[partner]],
        shared=_shared(cosines[:r, :r] if whole else _products(_basis(rows[:r]), _basis(others[:r]))),
        r=r,
        m=len(other),
        d=rows.shape[1] - (_centred(rows) and _centred(others)),
    )


def _shared(cosines: Float[np.ndarray, "n m"]) -> float:
    return min(float((cosines**2).sum()) / min(cosines.shape), 1.0)


def _basis(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "r d"]:
    """An orthonormal basis of what the rows span: without their bias, read directions are not orthonormal."""
    _, sizes, basis = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    return basis[sizes > SPANNED * sizes[0]]


def _centred(rows: Float[np.ndarray, "n d"]) -> bool:
    """Whether the rows have no part along 1, to float16."""
    return bool(np.abs(rows.sum(axis=1)).max() <= ROUNDED * np.sqrt(rows.shape[1]))


@lru_cache(maxsize=64)
def _unrelated(d: int, m: int) -> tuple[float, Float[np.ndarray, " draws"]]:
    """|cos| of a direction with its nearest of m unrelated orthonormal ones: the mean, exact, and draws of it."""
    return expected_max_of_basis(d, m), max_in_frame(d, m, draws=DRAWS, seed=0)


def _row(place: Place, record: Mapping[str, Any], pair: _Pair) -> dict[str, Any]:
    n, m = len(pair.nearest), min(pair.m, pair.d)
    (chance, unrelated), reach = _unrelated(pair.d, m), float(threshold(pair.d, pair.m, LEVEL))
    turns = np.where(pair.fixed, np.degrees(np.arccos(pair.nearest)), -1.0)
    most, k = int(turns.argmax()), int(pair.fixed.sum())
    # Half of the time the least near of k directions is nearer than this.
    least = np.quantile(unrelated, -np.expm1(np.log(0.5) / k)) if k else np.nan
    nearest = float(pair.nearest.mean())
    return {
        "site": place[0], "side": place[1], "kind": record["kind"], "layer": record["layer"], "head": record["head"],
        "directions": n, "shared": pair.shared, "shared_chance": pair.r / pair.d,
        "nearest": nearest, "nearest_chance": chance, "median": float(np.median(pair.nearest)),
        "median_chance": float(np.median(unrelated)), "found": int((pair.nearest > reach).sum()),
        "found_chance": LEVEL * n, "reach": reach,
        "agreement": (nearest - chance) / (1 - chance) if chance < 1 else np.nan,
        "turn": turns[most] if k else np.nan, "turn_chance": float(np.degrees(np.arccos(least))),
        "turned": f"{place[0]}:{most}" if k else "",
        "alike": bool(np.degrees(np.arccos(pair.nearest.min())) <= RESOLVED),
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
        Column("found_chance", of("found_chance"), digits=1, about="as many by chance, at most"),
        Column("turn", of("turn"), unit="°", digits=1, about="largest angle of a direction that is fixed, and its"
               " nearest: alone in its block, not noisy"),
        Column("turned", [r["turned"] for r in rows], about="the dyad that turned so far"),
        Column("turn_chance", of("turn_chance"), unit="°", digits=1, about="median largest angle of as many"
               " unrelated directions"),
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
    turned = [r for r in rows if not r["alike"]]
    if not turned:
        return first + "No place turned: all directions are the same to the precision of an atlas."
    if not _agrees(rows, found, n):
        return first + "No place agrees: directions of two unrelated models are as near."
    told = ", ".join(
        f"{r['site']} {r['side']} (mean |cos| {_near_one(r['nearest'])}, chance {r['nearest_chance']:.2f})"
        for r in turned[:3]
    )
    return first + f"Turned most: {told}."


def _agrees(rows: Sequence[Mapping[str, Any]], found: int, n: int) -> bool:
    """Whether more directions are found than chance gives, over all or at the best of the places, at `LEVEL` together.

    Binomial tails: the shares of one place are no wider than that of independent directions.
    """
    tails = [bdtrc(r["found"] - 1, r["directions"], LEVEL) for r in rows]
    return bool(min(bdtrc(found - 1, n, LEVEL), *tails) * (len(rows) + 1) < LEVEL)


def _near_one(cosine: float) -> str:
    """Two decimals, and as many more as tell it from 1."""
    away = 1 - cosine
    return f"{cosine:.{max(2, 1 - int(np.floor(np.log10(away)))) if 0 < away < 1 else 2}f}"


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
