"""`covector edit`: change directions of a model, and see what it does: on target prompts, and to everything else."""

import dataclasses
import time
from typing import Annotated

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
    Raise,
    Save,
    Sites,
    Wish,
    check_wish,
    chosen,
    save_all,
)
from covector.cli.observe import Centred, Output, check_prompts, observable_of, pairs_of
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
from covector.errors import BadRequest

Edits = Annotated[
    list[str] | None,
    typer.Argument(help="What is changed: 'L9H6.ov:0*0' removes dyad 0; *0.3 keeps 30 %; several; @edit.json."),
]
Observe = Annotated[
    list[str] | None, typer.Option("--observe", help="Weighted tokens to measure: \"' she' - ' he'\" (repeatable).")
]
# What a row is, and what is worth asking for after it.
NEXT = {"effect": "dyad", "dyad": "control", "control": "prompt", "prompt": "effect"}
# Of an edit that is chosen: the dyads and their ε, and ways to choose them at equal ‖ΔM‖.
CHOICES = ("chosen", "curve")
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
            "--by", help="What a row is: effect (a measure), prompt, dyad, control; with --concept chosen, curve."
        ),
    ] = "effect",
    save_to: Save = None,
    lora: Lora = None,
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
    from covector.cli.output import emit, refuse_plot, save, write
    from covector.cli.progress import Progress
    from covector.cli.retyped import retyped

    if by not in (*NEXT, *CHOICES):
        raise BadRequest(f"--by: expected {', '.join((*NEXT, *CHOICES))}, got '{by}'")
    if by in ("prompt", "dyad", "chosen"):
        refuse_plot(plot, f"edit --by {by}")
    if bool(edits) == bool(concept):
        got = "both" if edits else "neither"
        raise BadRequest(
            f"expected an edit such as 'L9H6.ov:0*0' (dyad 0 removed), or --concept to find one; got {got}"
        )
    wish = Wish(concept or [], [x.strip() for x in sites.split(",")], keep, mu, every, budget_kl, optimise, max_kl,
                raise_, tokens, seed, dtype, bos, at)  # fmt: skip
    check_wish(wish)
    from covector.study.edit import Edit

    changes = [Edit.parse(text, reflects=reflect) for text in edits or []]
    saving = save_to is not None or lora is not None
    measures = bool(observe) or not (concept or saving)
    doses = numbers(dose)
    if measures and not (template or prompts):
        raise BadRequest(
            "expected either --template with --fill, or --prompts FILE, and --observe \"' she' - ' he'\", to measure "
            "the edit on; to write it alone, --save DIR or --lora DIR"
        )
    if measures:
        check_prompts(template, fill, prompts)
    from covector.analyses.edit_effect import table_of
    from covector.analyses.edit_measures import measure
    from covector.analyses.edit_setup import set_up
    from covector.analyses.edit_tables import by_control, by_dyad, by_prompt
    from covector.cli.opening import opened as open_model
    from covector.run.neutral import read_neutral

    start = time.perf_counter()
    documents = read_neutral(neutral) if neutral else None
    opened = open_model(model, layout, frame=frame, strict=strict, device=device, dtype=dtype)
    observables = [observable_of(task, opened, output, centred) for task in observe or []]
    pairs = pairs_of(opened, template, fill, prompts, bos) if measures else []
    table = None
    if concept:
        found = chosen(opened, wish, documents, observables, pairs, by)
        changes, table = [found.edit], found.table
    setup = None
    if measures and by not in CHOICES:  # refuses what cannot be measured before anything is written
        setup = set_up(opened, changes, observables, pairs, neutral=documents, doses=doses, draws=draws, seed=seed,
                       at=at, bos=bos, dtype=dtype, tokens=tokens)  # fmt: skip
    saved = save_all(model, changes, save_to, lora, layout=layout, frame=frame, dtype=edit_dtype)
    once, flags = ("--by", "--plot", "--out", "--save", "--lora"), ("--json", "-q", "--quiet")
    if setup is None:
        shown = table or saved
        assert shown is not None
        if table:
            after = retyped(*(("--save", "edited") if by == "curve" else ("--by", "curve")), without=once, flags=flags)
            shown = dataclasses.replace(table, next=saved.next if saved else after)
        emit(shown, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
        return
    progress = Progress(quiet)
    effects = measure(setup, progress)
    progress.close()
    made = {"effect": table_of, "prompt": by_prompt, "dyad": by_dyad, "control": by_control}
    if out is not None:
        for other in (f for name, f in made.items() if name != by):
            save(other(effects), out)
    again = retyped("--by", NEXT[by], without=once, flags=flags)
    table = dataclasses.replace(made[by](effects), next=again)
    write(table, out=out, plot=plot)
    shown = table if json else on_screen(table)
    emit(shown, as_json=json, out=None, plot=None, quiet=quiet, seconds=time.perf_counter() - start, top=top)


def on_screen(table):
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
