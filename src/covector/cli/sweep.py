"""`covector sweep`: which directions, heads, units or concepts decide a metric, found by removing them."""

import time
from typing import Annotated

import typer

from covector.cli.edit import NeutralText, Observe
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
from covector.cli.tasks import Centred, Output, observable_of, pairs_of
from covector.errors import BadRequest

BY = ("dyads", "heads", "units", "concepts", "granularity")


def sweep(
    model: ModelRef,
    by: Annotated[
        str,
        typer.Option("--by", help="What is removed: dyads, heads (one after the other), units, concepts, granularity."),
    ] = "dyads",
    observe: Observe = None,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    bos: Bos = "auto",
    at: At = "end",
    concept: Annotated[
        list[str] | None,
        typer.Option("--concept", help="Weighted tokens: \"' fire' + ' flame'\" (repeatable; NAME=… names it)."),
    ] = None,
    neutral: NeutralText = None,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of text that are looked at.")] = 1024,
    sites: Annotated[
        str | None, typer.Option("--sites", help="Where, with commas (L*H*.ov,L*.mlp.out; units: heads alone).")
    ] = None,
    first: Annotated[
        int | None, typer.Option("--first", help="How many are measured, largest first (32; units 3, granularity 10).")
    ] = None,
    sample: Annotated[int, typer.Option("--sample", help="How many of the other dyads are measured too.")] = 64,
    draws: Annotated[int, typer.Option("--draws", help="Random changes, sets or orders behind every p.")] = 100,
    topic: Annotated[str | None, typer.Option("--topic", help="units: which topic of --neutral is the unit's.")] = None,
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 20,
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
    """Which directions or heads decide a task or a concept: removed one by one, with chance levels."""
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit
    from covector.cli.progress import Progress
    from covector.cli.sweep_forms import FIRST, SITES, Asked, check, named, run
    from covector.run.neutral import read_neutral

    start = time.perf_counter()
    if by not in BY:
        raise BadRequest(f"--by: expected {', '.join(BY)}, got '{by}'")
    where = sites or ("L*H*.ov" if by == "units" else SITES)
    many = FIRST[by] if first is None else first
    asked = Asked(by, tuple(observe or ()), *named(concept or []), tuple(neutral or ()), tuple(where.split(",")), many,
                  sample, draws, topic, tokens, seed, at, bos, dtype)  # fmt: skip
    check(asked, has_prompts=bool(template or prompts))
    documents = read_neutral(asked.neutral) if asked.neutral else None
    opened = open_model(model, layout, frame=frame, strict=strict, device=device, dtype=dtype)
    observables = [observable_of(task, opened, output, centred) for task in asked.observe]
    pairs = pairs_of(opened, template, fill, prompts, bos) if template or prompts else []
    progress = Progress(quiet)
    table = run(asked, opened, observables, pairs, documents, progress)
    progress.close()
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
