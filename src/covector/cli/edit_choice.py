"""How `covector edit --concept …` finds its edit: in proportion, within a budget, or optimised."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.model.opened import Model
    from covector.render import Table
    from covector.run.prompts import Pair
    from covector.study.edit import Edit
    from covector.study.observable import Observable


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
EditDtype = Annotated[
    str, typer.Option("--edit-dtype", help="Of edited tensors in --save: float32, float64, float16, bfloat16, stored.")
]


class Wish(NamedTuple):
    """The options of `--concept`."""

    concepts: Sequence[str]
    sites: Sequence[str]
    keep: float
    mu: float | None
    every: bool
    budget_kl: float | None
    optimise: bool
    max_kl: float | None
    raises: bool
    tokens: int
    seed: int
    dtype: str
    bos: str
    at: str


class Found(NamedTuple):
    """The edit that was chosen, and the table that says how."""

    edit: "Edit"
    table: "Table"


def check_wish(wish: Wish) -> None:
    """Raise BadRequest, before anything is loaded, for options that contradict each other."""
    chooses = {
        "--keep": wish.keep != 0.0, "--mu": wish.mu is not None, "--every": wish.every, "--optimise": wish.optimise,
        "--budget-kl": wish.budget_kl is not None, "--max-kl": wish.max_kl is not None,
    }  # fmt: skip
    for name, given in chooses.items():
        if given and not wish.concepts:
            raise BadRequest(f"{name} belongs to --concept, which finds an edit; a typed edit says it itself: *0.3")
    if wish.raises and not wish.optimise:
        raise BadRequest("--raise belongs to --optimise; to amplify in proportion: --keep 2")
    if not wish.keep >= 0:
        raise BadRequest(f"--keep: expected a share of at least 0 (1 changes nothing, 2 doubles), got {wish.keep:g}")
    if wish.optimise and (wish.mu is not None or wish.keep != 0.0):
        raise BadRequest("--optimise finds ε itself: expected no --mu and no --keep beside it")
    if wish.optimise and wish.max_kl is None:
        raise BadRequest("--optimise: expected --max-kl, the KL per token that may be spent; for example 0.01")
    if wish.max_kl is not None and not wish.optimise:
        raise BadRequest("--max-kl belongs to --optimise; --budget-kl bounds a change in proportion")
    for name, value in (("--budget-kl", wish.budget_kl), ("--max-kl", wish.max_kl)):
        if value is not None and not value > 0:
            raise BadRequest(f"{name}: expected a KL above 0 (nothing but the unedited model has KL 0), got {value:g}")


def chosen(
    model: "Model",
    wish: Wish,
    documents: "Mapping[str, list[str]] | None",
    observables: "Sequence[Observable]",
    pairs: "Sequence[Pair]",
    by: str,
) -> Found:
    """Choose ε. The metric is the first observable on the prompts, else the concept's logits before its own tokens.

    The table is that of the dyads, or for `by` curve the comparison of ways at equal ‖ΔM‖.
    """
    from covector.analyses.choose import budget_of, dampened, optimised, related
    from covector.analyses.choose_candidates import candidates
    from covector.analyses.choose_curve import curve
    from covector.analyses.choose_metric import concept_logits, on_prompts, split
    from covector.analyses.choose_tables import chosen_table
    from covector.run.edit_runs import decoder_of
    from covector.run.neutral import neutral_text
    from covector.run.sampled import sampled

    found = candidates(model, list(wish.concepts), tuple(wish.sites))
    if not wish.optimise:
        related(found, wish.every or by == "curve")
    needs_text = by == "curve" or wish.optimise or wish.budget_kl is not None
    if documents is None and not needs_text:
        choice = dampened(found, keep=wish.keep, mu=wish.mu, every=wish.every)
        return Found(found.edit(choice.epsilon), chosen_table(choice))
    decoder = decoder_of(model, wish.dtype)
    if documents is not None:
        text = neutral_text(model, documents, bos=wish.bos, most=wish.tokens)
    else:
        text = neutral_text(model, sampled(model, decoder, wish.tokens, wish.seed))
        sys.stderr.write(f"no --neutral: side effects are counted on {len(text):,} tokens that the model says\n")
    budget = budget_of(decoder, text, wish.max_kl if wish.optimise else wish.budget_kl)
    if observables and pairs:
        metric = on_prompts(decoder, observables[0], pairs, wish.at)
    else:
        metric = concept_logits(model, wish.concepts, decoder, text)
    chosen_by, held = split(metric)
    if wish.optimise:
        choice = optimised(found, chosen_by, budget, raises=wish.raises, every=True)
    else:
        choice = dampened(found, keep=wish.keep, mu=wish.mu, every=wish.every, budget=budget)
    table = curve(found, chosen_by, held, budget) if by == "curve" else chosen_table(choice, budget, held)
    return Found(found.edit(choice.epsilon), table)


def save_all(
    model: str, edits: "Sequence[Edit]", folder: Path | None, adapter: Path | None, *, layout: Path | None, frame: str,
    dtype: str,
) -> "Table | None":  # fmt: skip
    """Write the checkpoint and the adapter that were asked for; the table of the last, None where nothing was."""
    from covector.saving import save_adapter, save_edited

    whole, table = None, None
    for edit in edits:
        both_plain = whole is not None and len(whole.steps) == len(edit.steps) == 1
        whole = edit if whole is None else whole + edit if both_plain else whole.then(edit)
    if whole is not None and folder is not None:
        table = save_edited(model, whole, folder, layout=layout, frame=frame, dtype=dtype)
        sys.stderr.write(f"written: {folder} ({table.says})\n")
    if whole is not None and adapter is not None:
        table = save_adapter(model, whole, adapter, layout=layout, frame=frame)
        sys.stderr.write(f"written: {adapter} ({table.says})\n")
    return table
