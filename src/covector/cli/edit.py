"""`covector edit`: change directions of a model, and see what it does: on target prompts, and to everything else."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covector.cli.edit_choice import (
    BudgetKL,
    Concepts,
    EditDtype,
    Every,
    Keep,
    Lora,
    MaxKL,
    Mu,
    Optimise,
    OverBudget,
    Raise,
    Save,
    Sites,
    check_budget,
    save_all,
    wish_of,
)
from covector.cli.options import (
    At,
    Bos,
    Dtype,
    Fill,
    FrameName,
    Json,
    Layout,
    ModelRef,
    Out,
    Plot,
    Prompts,
    Quiet,
    RunDevice,
    Seed,
    Strict,
    Template,
)
from covector.cli.tasks import Centred, Output, check_prompts, observable_of, pairs_of
from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.analyses.choose_edit import Chosen, Judging
    from covector.analyses.choose_wish import Wish
    from covector.analyses.edit_setup import Setup
    from covector.model.opened import Model
    from covector.render import Table

Edits = Annotated[
    list[str] | None,
    typer.Argument(help="What is changed: 'L9H6.ov:0*0' removes dyad 0; *0.3 keeps 30 %; several; @edit.json."),
]
Observe = Annotated[
    list[str] | None, typer.Option("--observe", help="Weighted tokens to measure: \"' she' - ' he'\" (repeatable).")
]
# What a row is, and what is worth asking for after it.
NEXT = {"effect": "dyad", "dyad": "control", "control": "prompt", "prompt": "effect", "token": "effect"}
# Of an edit that is chosen: the dyads and their ε, and ways to choose them at equal ‖ΔM‖.
CHOICES = ("chosen", "curve")
NO_PICTURE = ("prompt", "dyad", "chosen")
NeutralText = Annotated[
    list[str] | None,
    typer.Option(
        "--neutral", help="Text for side effects: FILE, FILE.jsonl with text and topic, or TOPIC=FILE (repeatable)."
    ),
]


def edit(
    model: ModelRef,
    edits: Edits = None,
    concept: Concepts = None,
    sites: Sites = "L*H*.ov,L*.mlp.out",
    keep: Keep = 0.0,
    mu: Mu = None,
    every: Every = False,
    budget_kl: BudgetKL = None,
    optimise: Optimise = False,
    max_kl: MaxKL = None,
    raise_: Raise = False,
    observe: Observe = None,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    bos: Bos = "auto",
    at: At = "end",
    neutral: NeutralText = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of neutral text that are looked at.")] = 1024,
    dose: Annotated[
        str, typer.Option("--dose", help="Shares of the edit, with commas; 1 is always measured.")
    ] = "0.25,0.5,0.75,1",
    draws: Annotated[int, typer.Option("--draws", help="Random changes behind every p, of each kind.")] = 100,
    by: Annotated[
        str,
        typer.Option(
            "--by", help="A row: effect (a measure), prompt, dyad, control, token (next); with --concept chosen, curve."
        ),
    ] = "effect",
    save_to: Save = None,
    lora: Lora = None,
    over_budget: OverBudget = False,
    edit_dtype: EditDtype = "float32",
    reflect: Annotated[bool, typer.Option("--reflect", help="Allow ε below −1, which turns a direction around.")] = (
        False
    ),
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 40,
    centred: Centred = False,
    output: Output = None,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    dtype: Dtype = "float64",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Change directions of a model: predicted and measured effect, side effects, and what random changes would do."""
    from covector.cli.output import emit, refuse_plot, write
    from covector.cli.retyped import retyped
    from covector.study.edit import Edit

    if by not in (*NEXT, *CHOICES):
        raise BadRequest(f"--by: expected {', '.join((*NEXT, *CHOICES))}, got '{by}'")
    if by in NO_PICTURE:
        refuse_plot(plot, f"edit --by {by}")
    if bool(edits) == bool(concept):
        got = "both" if edits else "neither"
        raise BadRequest(
            f"expected an edit such as 'L9H6.ov:0*0' (dyad 0 removed), or --concept to find one; got {got}"
        )
    if by in CHOICES and not concept:
        raise BadRequest(f"--by {by} shows how --concept finds an edit; expected --concept, got a typed edit")
    wish = wish_of(concept or [], sites, keep, mu, every, budget_kl, optimise, max_kl, raise_)
    changes = [Edit.parse(text, reflects=reflect) for text in edits or []]
    saving, prompted = save_to is not None or lora is not None, bool(template or prompts)
    measures = bool(observe) or (wish is None and (neutral is not None or not saving))
    doses = numbers(dose)
    check_measured(by, bool(observe), prompted, measures, neutral is not None)
    if prompted:
        check_prompts(template, fill, prompts)
    from covector.analyses.choose_edit import Judging
    from covector.analyses.edit_setup import set_up
    from covector.cli.opening import opened as open_model
    from covector.run.neutral import read_neutral

    start = time.perf_counter()
    documents = read_neutral(neutral) if neutral else None
    opened = open_model(model, layout, frame=frame, strict=strict, device=device, dtype=dtype)
    observables = [observable_of(task, opened, output, centred) for task in observe or []]
    pairs = pairs_of(opened, template, fill, prompts, bos) if prompted else []
    once, flags = ("--by", "--plot", "--out", "--save", "--lora"), ("--json", "-q", "--quiet", "--over-budget")

    def show(table: "Table") -> None:
        emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)

    table = None
    if wish is not None:
        judging = Judging(observables[0] if observables else None, pairs, documents, tokens, at, bos, dtype, seed)
        table, found = choose(opened, wish, judging, by, saving, quiet)
        more = ("--save", "edited") if by == "curve" else ("--by", "curve")
        table = dataclasses.replace(table, next=retyped(*more, without=once, flags=flags))
        if found is not None:
            changes = [found.edit]
            if found.beyond and saving and not over_budget:
                show(table)
            check_budget(found, saving=saving, over_budget=over_budget)
    setup = None
    if measures and by not in CHOICES:  # refuses what cannot be measured before anything is written
        setup = set_up(opened, changes, observables, pairs, neutral=documents,
                       doses=[1.0] if by == "token" else doses, draws=draws, seed=seed,
                       at=at, bos=bos, dtype=dtype, tokens=tokens)  # fmt: skip
    saved = save_all(model, changes, save_to, lora, layout=layout, frame=frame, dtype=edit_dtype)
    if setup is not None:
        left = (*once, "--dose") if by == "token" else once  # doses of either sign are for tokens alone
        again = retyped(*(("--by", NEXT[by]) if observe else ("--save", "edited")), without=left, flags=flags)
        after = saved.next if saved and not observe else again
        made = said_next(setup, doses) if by == "token" else measured(setup, by, out, quiet)
        whole = dataclasses.replace(made, next=after)
        write(whole, out=out, plot=plot)
        out = plot = None
        table = whole if json else on_screen(whole)
    elif saved:
        table = dataclasses.replace(table, next=saved.next) if table else saved
    assert table is not None
    show(table)


def check_measured(by: str, observed: bool, prompted: bool, measures: bool, text: bool) -> None:
    """Raise BadRequest, before anything is loaded, for options that do not say what to measure."""
    if observed != prompted:
        raise BadRequest(
            "expected either --template with --fill, or --prompts FILE, to --observe on, got none"
            if observed
            else "expected --observe \"' she' - ' he'\" for the prompts, got none"
        )
    if measures and not observed and not text:
        raise BadRequest(
            "expected what to measure the edit on: --observe \"' she' - ' he'\" with --template and --fill, or "
            "--prompts FILE; --neutral FILE for side effects alone; to write it alone, --save DIR or --lora DIR"
        )
    if by in NEXT and by != "effect" and not observed:
        raise BadRequest(f"--by {by} shows what happens on prompts: expected --observe with prompts, got none")


def choose(
    model: "Model", wish: "Wish", judging: "Judging", by: str, saving: bool, quiet: bool
) -> "tuple[Table, Chosen | None]":
    """The table that says how an edit is found, and the edit; none where ways are compared and nothing is written."""
    from covector.analyses.choose_edit import chosen, compared
    from covector.cli.progress import Progress

    with Progress(quiet) as progress:
        table = compared(model, wish, judging, progress) if by == "curve" else None
        if table is not None and not saving:
            return table, None
        found = chosen(model, wish, judging, progress)
    return table or found.table, found


def measured(setup: "Setup", by: str, out: Path | None, quiet: bool) -> "Table":
    """The table of one kind for what an edit does; those of the other kinds go into the folder `out`."""
    from covector.analyses.edit_effect import table_of
    from covector.analyses.edit_measures import measure
    from covector.analyses.edit_tables import by_control, by_dyad, by_prompt
    from covector.cli.output import save
    from covector.cli.progress import Progress

    with Progress(quiet) as progress:
        effects = measure(setup, progress)
    made = {"effect": table_of, "prompt": by_prompt, "dyad": by_dyad, "control": by_control}
    if out is not None and setup.observables:
        for other in (of for name, of in made.items() if name != by):
            save(dataclasses.replace(other(effects), next=""), out)  # the main result has the next command
    return made[by](effects)


def said_next(setup: "Setup", doses: list[float]) -> "Table":
    """What comes next after every prompt, at doses of either sign."""
    from covector.analyses.edit_tokens import by_token

    return by_token(setup, doses)


def on_screen(table: "Table") -> "Table":
    """The table without the columns that a screen has no room for; files and JSON have them."""
    hidden = ("unit", "after", "q") if "edit" in table.key else ("unit", "after", "edit")
    kept = [c for c in table.columns if c.name not in hidden]
    return dataclasses.replace(table, columns=kept) if table.meta["analysis"] == "edit_effect" else table


def numbers(text: str) -> list[float]:
    """Numbers with commas between. BadRequest for other text."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise BadRequest(f"--dose: expected numbers with commas, such as 0.25,0.5,1, got '{text}'") from error
