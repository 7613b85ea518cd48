"""`covector patch`: what happens when activations of one prompt are put into the run of another."""

import time
from typing import Annotated

import typer

from covector.cli.options import (
    At,
    Bos,
    Dtype,
    Fill,
    Inputs,
    Json,
    Layout,
    ModelRef,
    Out,
    Plot,
    Prompts,
    Quiet,
    RunDevice,
    RunnerName,
    Seed,
    Strict,
    Template,
)  # fmt: skip
from covector.cli.tasks import Centred, Output, Task, check_prompts, continued, observable_of, pairs_of


def patch(
    model: ModelRef,
    task: Task,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    inputs: Inputs = None,
    what: Annotated[str, typer.Option("--what", help="heads, ov, qk, resid, attn, mlp, q, k, v or pattern.")] = "heads",
    source: Annotated[
        str, typer.Option("--source", help="Where activations come from: corrupt, zero, mean, resample.")
    ] = "corrupt",
    slot: Annotated[
        list[str] | None,
        typer.Option("--slot", help="Only these positions, a row each: NAME, NAME+1, end (repeatable)."),
    ] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Straight to the output: all later components held (path patching).")
    ] = False,
    to: Annotated[
        list[str] | None, typer.Option("--to", help="Only these see the change: L9H6, L8.mlp (repeatable).")
    ] = None,
    first_order: Annotated[
        str,
        typer.Option(
            "--first-order",
            help="The guess beside it: plain, integrated (over --steps points of the line), softmax (exact; q, k).",
        ),
    ] = "plain",
    steps: Annotated[int, typer.Option("--steps", help="Points of the line with --first-order integrated.")] = 5,
    top: Annotated[int, typer.Option("--top", help="Rows on the screen, largest first; files have all.")] = 25,
    bos: Bos = "auto",
    at: At = "end",
    centred: Centred = False,
    output: Output = None,
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    dtype: Dtype = "float64",
    device: RunDevice = "cpu",
    runner: RunnerName = "decoder",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """How far a task falls when heads, streams, queries … are taken from another prompt: measured, place by place."""
    from covector.analyses.patch_words import check_guess, check_what
    from covector.cli.output import emit, refuse_plot

    check_what(what, source)
    check_guess(first_order, what, steps, through=bool(to))
    check_prompts(template, fill, prompts, inputs)
    if slot and what not in ("resid", "attn", "mlp"):
        refuse_plot(plot, f"--slot with --what {what}, layer by head by position,")
    from covector.analyses.patch import patch as measure
    from covector.cli.opening import opened as open_model
    from covector.cli.opening import runner_of
    from covector.cli.run_options import check_run_options

    start = time.perf_counter()
    check_run_options("cpu", dtype)
    opened = open_model(model, layout, strict=strict, device=device, dtype=dtype)
    other = runner_of(runner, model, layout, dtype=dtype, device=device)
    pairs = pairs_of(opened, template, fill, prompts, bos, inputs)
    observable = observable_of(task, opened, output, centred)
    table = measure(
        opened,
        observable,
        pairs,
        what=what,
        source=source,
        at=at,
        slots=tuple(slot or ()),
        runner=other,
        dtype=dtype,
        seed=seed,
        route=tuple(to) if to else () if direct else None,
        guess=first_order,
        steps=steps,
    )
    table = continued(table, template, fill, prompts, inputs, at)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
