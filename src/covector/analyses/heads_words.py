"""What a table of heads says in words, what it cannot see, and its picture."""

from typing import Any

import numpy as np

from covector.analyses.head_grid import head_grid
from covector.model.address import Site
from covector.model.circuits import cautions
from covector.model.opened import Model
from covector.render import Column, Grid, Table, clip, shown

# Scores with q below this carry a star.
STARRED = 0.05


def sentence(columns: list[Column], level: float) -> str:
    """How many heads stand out, score by score, at this false-discovery rate."""
    found = {c.name: c for c in columns}
    n = len(found["head"])

    def significant(name: str) -> np.ndarray:
        return np.nan_to_num(found[f"{name}_q"].numbers, nan=1.0) < level

    sign = found["eta"].numbers
    parts = [f"{int((significant('eta') & (sign > 0)).sum())} of {n} heads have eigenvalues more positive"
             f" than chance gives, {int((significant('eta') & (sign < 0)).sum())} more negative"]  # fmt: skip
    if "copy" in found:
        parts.append(
            f"{int(significant('copy').sum())} copy tokens, {int(significant('suppress').sum())} suppress them"
        )
    if "favours" in found:
        labels = [str(v) for v in found["favours"].values if v]
        told = ", ".join(f"{labels.count(t)} the {t} position" for t in dict.fromkeys(labels))
        parts.append(f"by positions alone QK favours {told}" if told else "by positions alone no QK favours one")
    return f"At a false-discovery rate of {level:.0%}: {'; '.join(parts)}."


def caveats(view: Model, columns: list[Column], measured: dict[str, Any], left_out: list[str]) -> str:
    """What the scores cannot see, and what was left out and why."""
    names = {c.name for c in columns}
    parts = [
        "It does not say what a head does in context: nothing was run, no norm, bias or other layer stands between"
    ]
    parts += left_out
    if measured and measured["sources"] < measured["of_sources"]:
        parts.append(f"copying was counted on {measured['sources']} of {measured['of_sources']} tokens drawn at random")
    if "favours" not in names:
        parts.append("no favoured positions: this model has no learned positions to read them from")
    known = dict.fromkeys(c for i, b in enumerate(view.stored.spec.blocks) if b.attn
                          for c in cautions(view.stored.spec, Site(i, 0, "ov")))  # fmt: skip
    return "; ".join([*parts, *known]) + "."


def head_line(row: dict[str, Any], width: int) -> str:
    """``L3H0 │ OV 9.55 │ η −.98*(.18) full +.97*(.24) │ copy .27* supp .00 │ current .89 │ source tokens``."""
    parts = [f"{row['head']:<5}", f"OV {_short(row['norm'])}"]
    parts.append(f"η {_score(row, 'eta', signed=True)}")
    if "copy" in row:
        parts[-1] += f" full {_score(row, 'eta_full', signed=True)}"
        parts.append(f"copy {_score(row, 'copy')} supp {_score(row, 'suppress')}")
    if "favours" in row:
        label = f"{row['favours']} {_decimals(row['share'])}" if row["favours"] else ""
        parts.append(f"{label:<13}")
    if "salient" in row:
        parts.append(" ".join(map(shown, row["salient"] or [])))
    return clip(" │ ".join(parts), width)


def _score(row: dict[str, Any], name: str, *, signed: bool = False) -> str:
    """A score of −1 … 1, its star, and what chance stays below where the row has it."""
    value, level = row[name], row.get(f"{name}_level")
    text = "–" if value is None else _decimals(value, signed)
    star = "*" if (row[f"{name}_q"] if row[f"{name}_q"] is not None else 1.0) < STARRED else " "
    return f"{text:>5}{star}" + ("" if level is None else f"({_decimals(level)})")


def _decimals(value: float, signed: bool = False) -> str:
    """Two decimals without a leading zero: ``.27``, ``−.98``, ``1``."""
    text = f"{abs(value):.2f}".removeprefix("0")
    sign = "−" if value < 0 and text.strip(".0") else "+" if signed else ""
    return sign + text


def _short(value: float) -> str:
    return f"{value:.3g}".rjust(5)


def picture(table: Table) -> Grid:
    """Layers × heads, coloured by η of the full circuit where there is one, else by η of OV."""
    name = "eta_full" if "eta_full" in table else "eta"
    told = "η of the full circuit" if name == "eta_full" else "η of OV"
    level = float(np.max(table[f"{name}_level"]))
    return head_grid(list(table["head"]), np.asarray(table[name]), value_name=told, chance=level)
