"""`covector attribute`: what the answer to a prompt is made of."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import At, Bos, Json, Layout, ModelRef, Out, Plot, Quiet, RunDevice, Strict
from covector.cli.tasks import Centred, Output, Task, observable_of
from covector.errors import BadRequest


def attribute(
    model: ModelRef,
    task: Task,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The text to run.")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE", help="Instead of a text: a JSON object of an agent's inputs."),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", help="component, head (over source tokens), token (all held paths), lens.")
    ] = "component",
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 25,
    bos: Bos = "auto",
    at: At = "end",
    centred: Centred = False,
    output: Output = None,
    layout: Layout = None,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """What each component, source token or input token brings to a task on one prompt; the parts add up."""
    from covector.analyses.attribute_picture import check_by

    check_by(by)
    if (prompt is None) == (inputs is None):
        raise BadRequest("expected either --prompt TEXT or --inputs FILE")
    from covector.analyses.attribute import attribute as measure
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit
    from covector.run.inputs_file import read_input_pairs
    from covector.run.prompts import single

    start = time.perf_counter()
    opened = open_model(model, layout, strict=strict, device=device)
    observable = observable_of(task, opened, output, centred)
    asked = single(opened, prompt or "", bos) if inputs is None else read_input_pairs(opened, [str(inputs)])[0]
    table = measure(opened, observable, asked, by=by, at=at)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
