"""`covector patch`: what happens when activations of one prompt are put into the run of another."""

import time
from typing import Annotated

import typer

from covector.cli.observe import Centred, Output, Task, continued, observable_of, pairs_of
from covector.cli.options import (
    At,
    Bos,
    Dtype,
    Fill,
    Json,
    Layout,
    ModelRef,
    Out,
    Plot,
    Prompts,
    Quiet,
    Seed,
    Strict,
    Template,
)  # fmt: skip


def patch(
    model: ModelRef,
    task: Task,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
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
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """How far a task falls when heads, streams, queries … are taken from another prompt: measured, place by place."""
    from covector.analyses.patch import patch as measure
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit
    from covector.cli.run_options import check_run_options

    start = time.perf_counter()
    check_run_options("cpu", dtype)
    opened = open_model(model, layout, strict=strict)
    pairs = pairs_of(opened, template, fill, prompts, bos)
    observable = observable_of(task, opened, output, centred)
    table = measure(
        opened,
        observable,
        pairs,
        what=what,
        source=source,
        at=at,
        slots=tuple(slot or ()),
        dtype=dtype,
        seed=seed,
        route=tuple(to) if to else () if direct else None,
    )
    table = continued(table, template, fill, prompts)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
