"""`covector attend`: why a head looks from one position to another."""

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import Bos, FrameName, Json, Layout, ModelRef, Out, Plot, Quiet, RunDevice, Seed, Strict
from covector.errors import BadRequest

PROMPT = "The text to run."
INPUTS = "Instead of a text: a JSON object of an agent's inputs, name to list."
PLACE = "a slot (end, end-2), a position, or a token's text"


def attend(
    model: ModelRef,
    head: Annotated[str, typer.Argument(help="The head: L9H9.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help=PROMPT)] = None,
    inputs: Annotated[Path | None, typer.Option("--inputs", metavar="FILE", help=INPUTS)] = None,
    start: Annotated[str, typer.Option("--from", help=f"The query: {PLACE}.")] = "end",
    to: Annotated[str | None, typer.Option("--to", help=f"The key: {PLACE} (default: the most looked at).")] = None,
    by: Annotated[str, typer.Option("--by", help="dyads, tokens, writers, pairs; keys: every key it sees.")] = "dyads",
    top: Annotated[int, typer.Option("--top", help="Rows on the screen (and pairs told apart); files have all.")] = 15,
    k: Annotated[int, typer.Option("-k", "--k", help="Tokens per list with --by tokens.")] = 8,
    bos: Bos = "auto",
    frame: FrameName = "raw",
    draws: Annotated[int, typer.Option("--draws", help="Random bases behind the chance of dyads.")] = 2000,
    seed: Seed = 0,
    layout: Layout = None,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Why does this head look from there to there? The score in parts that add up: dyads, writers, pairs of writers."""
    from covector.analyses.attend_picture import check_by

    check_by(by)
    if (prompt is None) == (inputs is None):
        raise BadRequest("expected either --prompt TEXT or --inputs FILE")
    from covector.analyses.attend import attend as explain
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, write
    from covector.run.inputs_file import read_inputs
    from covector.run.prompts import single

    begun = time.perf_counter()
    opened = open_model(model, layout, frame=frame, strict=strict, device=device)
    asked = single(opened, prompt, bos) if prompt is not None else read_inputs(opened, inputs or Path())
    table = explain(opened, head, asked, to, start, by=by, top=top, k=k, draws=draws, seed=seed)
    if inputs is not None:
        typed = table.next.replace("--inputs FILE", f"--inputs {shlex.quote(str(inputs))}")
        table = dataclasses.replace(table, next=typed)
    write(table, out=out, plot=plot)
    shown = table if json or by == "keys" else table.head(top + (by == "pairs"))
    emit(shown, as_json=json, out=None, plot=None, quiet=quiet, seconds=time.perf_counter() - begun)
