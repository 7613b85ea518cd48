"""The options of `covector edit --concept …`, which finds its edit, and what is written to disk."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.analyses.choose_edit import Chosen
    from covector.analyses.choose_wish import Wish
    from covector.render import Table
    from covector.study.edit import Edit


Concepts = Annotated[
    list[str] | None,
    typer.Option("--concept", help="Find the edit: directions that write these tokens (repeatable: their span)."),
]
Sites = Annotated[str, typer.Option("--sites", help="Where a concept's directions are looked for.")]
Keep = Annotated[float, typer.Option("--keep", help="What is left of a direction found: 0 nothing, 0.3, 2 twice.")]
Mu = Annotated[float | None, typer.Option("--mu", help="Price of a change: small changes all, large only the closest.")]
Every = Annotated[bool, typer.Option("--every", help="Every dyad in proportion, not only those beyond chance.")]
BudgetKL = Annotated[
    float | None, typer.Option("--budget-kl", help="KL per token of --neutral that may be spent; finds --mu.")
]
Optimise = Annotated[bool, typer.Option("--optimise", help="Choose ε by gradients, for --max-kl.")]
MaxKL = Annotated[float | None, typer.Option("--max-kl", help="KL per token that --optimise may spend.")]
Raise = Annotated[bool, typer.Option("--raise", help="--optimise raises what is observed instead of lowering it.")]
Save = Annotated[
    Path | None,
    typer.Option("--save", metavar="DIR", help="Write the edited checkpoint, with edit.json, to a new folder."),
]
Lora = Annotated[Path | None, typer.Option("--lora", metavar="DIR", help="Write the edit as a LoRA adapter (PEFT).")]
OverBudget = Annotated[
    bool, typer.Option("--over-budget", help="Write it even where held-out text costs more KL than was allowed.")
]
EditDtype = Annotated[
    str, typer.Option("--edit-dtype", help="Of edited tensors in --save: float32, float64, float16, bfloat16, stored.")
]


def wish_of(
    concepts: Sequence[str], sites: str, keep: float, mu: float | None, every: bool, budget_kl: float | None,
    optimise: bool, max_kl: float | None, raises: bool,
) -> "Wish | None":  # fmt: skip
    """What is wished of an edit that is to be found; None without a concept.

    Raises BadRequest, before anything is loaded, for options that contradict each other.
    """
    chooses = {
        "--keep": keep != 0.0, "--mu": mu is not None, "--every": every, "--optimise": optimise,
        "--budget-kl": budget_kl is not None, "--max-kl": max_kl is not None, "--raise": raises,
    }  # fmt: skip
    if not concepts:
        for name in (name for name, given in chooses.items() if given):
            raise BadRequest(f"{name} belongs to --concept, which finds an edit; a typed edit says it itself: *0.3")
        return None
    from covector.analyses.choose_wish import Wish

    if max_kl is not None and not optimise:
        raise BadRequest("--max-kl belongs to --optimise; --budget-kl bounds a change in proportion")
    if budget_kl is not None and optimise:
        raise BadRequest("--budget-kl bounds a change in proportion; --optimise takes --max-kl")
    where = tuple(one.strip() for one in sites.split(","))
    return Wish(tuple(concepts), where, keep, mu, every, max_kl if optimise else budget_kl, optimise, raises)


def check_budget(found: "Chosen", *, saving: bool, over_budget: bool) -> None:
    """Say on standard error that the held-out half of the text exceeds the budget.

    Raises BadRequest where it would be written all the same.
    """
    if not found.beyond:
        return
    from covector.analyses.choose_tables import beyond_budget

    if saving and not over_budget:
        raise BadRequest(
            f"{beyond_budget(found.choice)} Nothing was written; give a smaller budget, more --tokens, or "
            "--over-budget to write it all the same"
        )
    sys.stderr.write(f"{beyond_budget(found.choice)}\n")


def save_all(
    model: str, edits: "Sequence[Edit]", folder: Path | None, adapter: Path | None, *, layout: Path | None, frame: str,
    dtype: str,
) -> "Table | None":  # fmt: skip
    """Write the checkpoint and the adapter that were asked for; the table of the last, None where nothing was."""
    from covector.saving import save_adapter, save_edited
    from covector.study.edit import Edit

    table = None
    if folder is not None:
        table = save_edited(model, Edit.together(edits), folder, layout=layout, frame=frame, dtype=dtype)
        sys.stderr.write(f"written: {folder} ({table.says})\n")
    if adapter is not None:
        table = save_adapter(model, Edit.together(edits), adapter, layout=layout, frame=frame)
        sys.stderr.write(f"written: {adapter} ({table.says})\n")
    return table
