"""Labels of an agent that no training touched: heads that agent.json names, heads and rows that look untouched.

Source: N9 of the theory page; `docs/theory/location.md`, equations 12–13.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Bool
from covector.linalg.untouched import untouched_head, untouched_rows
from covector.model.bases import undertrained
from covector.model.opened import Model
from covector.model.spec import output_bias

# Rows compared with each other by the square of their number.
MOST_ROWS = 20_000


@dataclass(frozen=True, eq=False)
class Untrained:
    """What is known against the labels of a basis. ``head`` says why a whole output head counts as untrained.

    ``untouched`` rows look as training found them; ``short`` ones have hardly any length (what decay leaves).
    """

    head: str
    untouched: Bool[np.ndarray, " token"]
    short: Bool[np.ndarray, " token"]

    @property
    def any(self) -> Bool[np.ndarray, " token"]:
        """Every label that something is known against."""
        return np.ones_like(self.short) if self.head else self.untouched | self.short

    def words(self, row: int) -> str:
        """Why a label counts as untrained, in words; empty where it does not."""
        if self.head:
            return "head"
        return "row untouched" if self.untouched[row] else "row short" if self.short[row] else ""


def untrained(model: Model, name: str) -> Untrained:
    """What is known against the labels of basis `name`, from the agent file and from the tensors as stored."""
    plain = name.partition(":")[0]
    label, _, side = plain.rpartition("_")
    basis = model.bases[plain]
    rows = basis.vectors
    short = undertrained(basis) & basis.usable
    if side != "out" or plain.startswith("token"):
        few = len(rows) <= MOST_ROWS and not plain.startswith("token")
        return Untrained("", untouched_rows(rows) if few else np.zeros(len(rows), dtype=bool), short)
    declared = label in (model.meta.get("untrained") or ())
    if declared:
        return Untrained("agent.json says so", np.zeros(len(rows), dtype=bool), short)
    bias = output_bias(label)
    stored = model.stored[bias].astype(np.float64) if bias in model.stored else None
    return Untrained(untouched_head(rows, stored), np.zeros(len(rows), dtype=bool), short)


def said(model: Model, names: list[str]) -> list[str]:
    """One clause per basis that something is known against."""
    parts = []
    for name in names:
        found, label = untrained(model, name), name.partition(":")[0].rpartition("_")[0]
        if found.head:
            parts.append(f"the {label} head was never trained ({found.head}): cells of {name} mean nothing")
        if found.untouched.any():
            parts.append(f"{int(found.untouched.sum())} of {len(found.short)} labels of {name} look untouched")
        if found.short.any() and not found.head:
            parts.append(f"{int(found.short.sum())} of {len(found.short)} labels of {name} have hardly any length")
    return parts
