"""The dyads of one place against several bases at once: what each of them reads or writes of every basis.

covector.readout says what one basis says in full; here every basis has a line per dyad and side, and one q for all.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from covector.analyses.agent_map import means
from covector.analyses.agent_untrained import said
from covector.analyses.readout import readout
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.model.opened import Model
from covector.render import Column, Grid, Table

LEVEL = 0.05
# Labels of a pole on a line.
SHOWN = 3


def readout_bases(
    model: Model, address: str, bases: Sequence[str] | str, *, rank: int = 10, k: int = 5, **options: Any
) -> Table:
    """One row per dyad, side in the stream and basis: the nearest label with its chance, and both poles' labels.

    `options` are those of `readout` (frame, without, exact, draws, seed). `q` is Benjamini–Hochberg over all rows;
    `means` says what it is to meet this basis on this side. Raises what `readout` raises; BadRequest for no basis.
    """
    names = [n.strip() for n in (bases.split(",") if isinstance(bases, str) else bases) if n.strip()]
    names = list(dict.fromkeys(names))
    if not names:
        raise BadRequest("--basis: expected names of bases with commas, got none")
    tables = [readout(model, address, rank=rank, k=k, basis=name, **options) for name in names]
    sides = [s for s in ("read", "write") if f"{s}_cos" in tables[0]]
    if not sides:
        raise BadRequest(f"{address}: no side of it lies in the stream, so no basis can be met; leave --basis out")
    rows = [(t, name, side) for t, name in zip(tables, names, strict=True) for side in sides]
    n = len(tables[0])
    # Dyad by dyad, then side by side, then basis by basis.
    by_side = sorted(range(len(rows)), key=lambda j: sides.index(rows[j][2]))
    order = np.array([(i, j) for i in range(n) for j in by_side])
    table = Table(_columns(rows, order, str(model.site(address))), _meta(tables, names), key=("dyad", "side", "basis"))
    view = model if not options.get("frame") else model.framed(options["frame"])
    return replace(
        table,
        title=f"{model.name} {tables[0].meta['site']} · {n} dyads against {len(names)} bases · frame {view.frame}",
        says=_says(table, names),
        not_says="; ".join([tables[0].not_says.rstrip("."), *said(view, names)]) + ".",
        next=f"covector svd {model.words} {shlex.quote(address)} --basis {names[0]}{view.framing}",
        picture=by_dyad,
    )


def _columns(rows: list[tuple[Table, str, str]], order: np.ndarray, site: str) -> list[Column]:
    def number(name: str) -> Float[np.ndarray, " n"]:
        return np.array([rows[j][0][f"{rows[j][2]}_{name}"][i] for i, j in order.tolist()], dtype=float)

    def text(name: str) -> list[list[str]]:
        return [list(rows[j][0][f"{rows[j][2]}_{name}"][i])[:SHOWN] for i, j in order.tolist()]

    first = rows[0][0]
    zeta, cos = number("zeta"), number("cos")
    taus = [rows[j][0].column(f"{rows[j][2]}_cos").chance_level for _, j in order.tolist()]
    shown = {s: s for s in ("read", "write")} | ({"read": "query", "write": "key"} if site.endswith(".qk") else {})
    p = number("p_dir")
    return [
        Column("dyad", np.array([first["dyad"][i] for i, _ in order.tolist()])),
        Column("sigma", np.array([first["sigma"][i] for i, _ in order.tolist()]), about="gain σ of the dyad"),
        Column("side", [shown[rows[j][2]] for _, j in order.tolist()]),
        Column("basis", [rows[j][1] for _, j in order.tolist()]),
        Column("label", [rows[j][0][f"{rows[j][2]}_label"][i] for i, j in order.tolist()],
               about="the label with the largest |cosine|"),
        Column("cos", cos, "cos", 3, "its cosine", chance="cos_level"),
        Column("cos_level", np.array(taus), digits=3,
               about="|cos| that the best label of a random direction stays below with 95 %"),
        Column("zeta", zeta, "sd", 2, "√d·cos"),
        Column("p", p, about="chance that a random direction comes as near to any label of this basis"),
        Column("q", chance.bh(p), about="Benjamini–Hochberg over all rows"),
        Column("plus", text("plus"), about="labels, + pole"),
        Column("minus", text("minus"), about="labels, − pole"),
        Column("means", [means(shown[rows[j][2]], rows[j][1]) for _, j in order.tolist()]),
    ]  # fmt: skip


def _meta(tables: list[Table], names: list[str]) -> dict[str, Any]:
    meta = dict(tables[0].meta)
    meta["tensors"] = {k: v for t in tables for k, v in t.meta["tensors"].items()}
    per_basis = ("bases", "labels", "left_out", "dimension", "chance_zeta")
    return {k: v for k, v in meta.items() if k not in per_basis} | {
        "analysis": "readout_bases",
        "bases": names,
        "labels": {name: max(t.meta["labels"].values()) for name, t in zip(names, tables, strict=True)},
        "left_out": {name: max(t.meta["left_out"].values()) for name, t in zip(names, tables, strict=True)},
    }


def _says(table: Table, names: list[str]) -> str:
    parts = []
    for name in names:
        rows = [r for r in table.rows if r["basis"] == name]
        found = [r for r in rows if r["q"] <= LEVEL]
        parts.append(f"{name} {len(found)} of {len(rows)}")
    return f"Dyads beyond chance (false-discovery rate {LEVEL:.0%} over all): {', '.join(parts)}."


def by_dyad(table: Table) -> Grid:
    """Dyads × (side, basis): ζ of the nearest label, which stands in the cell."""
    rows = table.rows
    columns = list(dict.fromkeys((r["side"], r["basis"]) for r in rows))
    dyads = sorted({r["dyad"] for r in rows})
    # The bases have different levels: cells are coloured by |cos| over the level of their basis.
    values, texts = np.full((len(dyads), len(columns)), np.nan), [[""] * len(columns) for _ in dyads]
    for r in rows:
        i, j = dyads.index(r["dyad"]), columns.index((r["side"], r["basis"]))
        values[i, j], texts[i][j] = r["cos"] / r["cos_level"], r["label"]
    return Grid(
        values, [str(d) for d in dyads], [f"{side} {basis}" for side, basis in columns], texts,
        value_name="cos / level", unit="×", chance=1.0, row_name="dyad",
        column_name="nearest label; 1 is what the best label of a random direction stays below with 95 %",
    )  # fmt: skip
