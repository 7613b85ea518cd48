"""The proof of a loader as a table: every piece of our reading against the model that owns the weights."""

import numpy as np
import torch

from covector.errors import NotProven
from covector.model.opened import Model
from covector.render import Column, Table
from covector.run.proof import Check, first_failure

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


def proof(model: Model, checks: list[Check], judge: str, left_out: tuple[str, ...] = ()) -> Table:
    """One row per piece: the largest difference, and what is allowed; `left_out` says what the run could not show.

    Raises NotProven, naming the first piece that fails.
    """
    failed = first_failure(checks)
    if failed is not None:
        raise NotProven(
            f"{model.name}: expected {failed.name} ({failed.compared}) within {failed.tolerance:.0e}, "
            f"it differs by {failed.difference:.3g}{f' at {failed.worst}' if failed.worst else ''}; "
            f"the loader does not read this checkpoint as {judge} does: do not trust its numbers"
        )
    pieces = _by_kind(checks)
    columns = [
        Column("piece", list(pieces), about="hook point, over all layers"),
        Column("compared", [group[0].compared for group in pieces.values()]),
        Column("places", np.array([len(group) for group in pieces.values()]), about="how many were compared"),
        Column("difference", np.array([max(c.difference for c in g) for g in pieces.values()]),
               about="largest difference over the larger of 1 and the judge's largest value"),
        Column("allowed", np.array([max(c.tolerance for c in g) for g in pieces.values()])),
    ]  # fmt: skip
    worst = max(checks, key=lambda c: c.difference / c.tolerance)
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "proof", "judge": judge, "proven": True, "pieces": len(checks)},
        title=f"{model.name} · proven against {judge} · {len(checks)} comparisons",
        says=f"Every piece agrees; the closest to its limit is {worst.name}: {worst.difference:.1e} of "
        f"{worst.tolerance:.0e}.",
        not_says="; ".join(
            ["It says that the weights are read as the judge reads them, not that the checkpoint is good", *left_out]
        )
        + ".",
        next=f"covector svd {model.words} L0H0",
        key=("piece",),
    )


def _by_kind(checks: list[Check]) -> dict[str, list[Check]]:
    """Checks of one hook point together, whatever their layer."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        parts = ["L{i}" if p[:1] == "L" and p[1:].isdigit() else p for p in check.name.split(".")]
        groups.setdefault(".".join(parts), []).append(check)
    return groups
