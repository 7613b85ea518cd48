"""`covector debias`: take a bias out with one vector, and see what it costs."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from covector.cli.options import (
    Bos,
    Fill,
    Json,
    Layout,
    ModelRef,
    Out,
    Prompts,
    Quiet,
    RunDevice,
    Seed,
    Strict,
    Template,
)
from covector.cli.steer import Read, Where
from covector.cli.tasks import Centred, Output, check_prompts, continued, observable_of, pairs_of


def debias(
    model: ModelRef,
    bias: Annotated[
        list[str], typer.Option("--bias", help="Task to bring to 0: \"' nurse' - ' doctor'\" (repeatable).")
    ],
    keep: Annotated[
        list[str], typer.Option("--keep", help="Task to leave alone: \"' actress' - ' actor'\" (repeatable).")
    ],
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    bos: Bos = "auto",
    place: Where = None,
    token: Annotated[str, typer.Option("--token", help="The slot that the closed form is added to.")] = "NAME",
    read: Read = "end",
    held: Annotated[float, typer.Option("--held", help="Share of names, templates and tasks held out.")] = 0.5,
    strength: Annotated[float, typer.Option("--strength", help="Share of the bias level to take off.")] = 1.0,
    heads: Annotated[int, typer.Option("--heads", help="Paths that the published search tries.")] = 3,
    draws: Annotated[int, typer.Option("--draws", help="Random vectors of equal length.")] = 40,
    gguf: Annotated[
        Path | None, typer.Option("--gguf", metavar="FILE", help="Write the closed form as a control vector.")
    ] = None,
    centred: Centred = False,
    output: Output = None,
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    device: RunDevice = "cpu",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Level and gap of a bias and of a task to keep, before and after one vector; held-out names, templates, tasks."""
    check_prompts(template, fill, prompts)
    from covector.analyses.debias import debias as measure
    from covector.analyses.steer_export import export_table
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, write

    start = time.perf_counter()
    opened = open_model(model, layout, strict=strict, device=device)
    sides = [[observable_of(task, opened, output, centred) for task in tasks] for tasks in (bias, keep)]
    pairs = pairs_of(opened, template, fill, prompts, bos)
    options: dict[str, Any] = {
        "place": place,
        "token": token,
        "at": read,
        "held": held,
        "strength": strength,
        "heads": heads,
    }
    table = measure(opened, sides[0], sides[1], pairs, draws=draws, seed=seed, **options)
    table = continued(table, template, fill, prompts)
    write(table, out=out, plot=None)
    if gguf is not None:
        typer.echo(f"written: {export_table(opened, table, gguf)}", err=True)
    emit(table, as_json=json, out=None, plot=None, quiet=quiet, seconds=time.perf_counter() - start)
