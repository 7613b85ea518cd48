"""`covector steer`: add a vector to one token's stream, predicted beside measured."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from covector.cli.options import (
    Bos,
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
    Seed,
    Strict,
    Template,
)
from covector.cli.tasks import Centred, Output, check_prompts, observable_of, pairs_of
from covector.errors import BadRequest, in_words

Where = Annotated[
    str | None, typer.Option("--at", help="Where it is added: L9.resid_pre (default: the stream the feature reads).")
]
Read = Annotated[str, typer.Option("--read", help="Where the output is read: a slot (end, NAME+1) or a position.")]


def steer(
    model: ModelRef,
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Weighted labels to measure; the first is what doses are stated in.")
    ] = None,
    feature: Annotated[
        Path | None, typer.Option("--feature", metavar="FILE", help="A vector or feature (safetensors).")
    ] = None,
    path: Annotated[
        str | None, typer.Option("--path", help="A path, whose data-free feature it is: 'L9H7>out'.")
    ] = None,
    want: Annotated[
        list[str] | None,
        typer.Option("--want", help="Closed form: \"' she' - ' he'=+2\", to first order (repeatable)."),
    ] = None,
    whiten: Annotated[bool, typer.Option("--whiten", help="Closed form with the covariance of --text.")] = False,
    place: Where = None,
    token: Annotated[
        str, typer.Option("--token", help="The slot it is added to, or auto: what the path's head fetches most.")
    ] = "auto",
    scale: Annotated[
        str | None, typer.Option("--scale", help="Doses with commas: -2,-1,1,2 (default: up to ‖x‖).")
    ] = None,
    unit: Annotated[
        str, typer.Option("--unit", help="Of doses: predicted logits, stream (fraction of ‖x‖) or feature (multiples).")
    ] = "logits",
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    inputs: Inputs = None,
    bos: Bos = "auto",
    read: Read = "end",
    held: Annotated[float, typer.Option("--held", help="Share of names held out for measuring.")] = 0.5,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Neutral text: KL and covariance are taken on it.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="Random vectors behind p, of each kind.")] = 40,
    split: Annotated[
        bool, typer.Option("--split", help="What reads the vector first, at the largest dose, both signs.")
    ] = False,
    gguf: Annotated[
        Path | None, typer.Option("--gguf", metavar="FILE", help="Write the largest dose as a control vector.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 30,
    centred: Centred = False,
    output: Output = None,
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Add a vector to one token's stream: dose–response on held-out names, controls, and where the prediction fails."""
    from covector.cli.output import emit, refuse_plot, write
    from covector.cli.retyped import retyped

    check_prompts(template, fill, prompts, inputs)
    if split:
        refuse_plot(plot, "steer --split")
    from covector.analyses.steer import table_of
    from covector.analyses.steer_experiment import set_up
    from covector.analyses.steer_export import export
    from covector.analyses.steer_split import split_of
    from covector.cli.opening import opened as open_model
    from covector.io.feature_file import load_feature

    start = time.perf_counter()
    opened = open_model(model, layout, strict=strict, device=device)
    wishes = [wish_of(text) for text in want or []]
    given = None if feature is None else load_feature(feature)
    asked = [name for name, _ in wishes] + [task for task in tasks or [] if not wishes]
    if not asked and given is not None and given.observable:
        asked = [given.observable]  # a feature says what it is of
    if not asked or (wishes and tasks):
        raise BadRequest("expected tasks to measure, or --want TASK=AMOUNT for each, and not both")
    words = text_of(text)
    options: dict[str, Any] = {
        "feature": given, "path": path, "place": place, "token": token,
        "wants": [amount for _, amount in wishes], "at": read, "scales": numbers(scale), "unit": unit, "whiten": whiten,
        "text": words, "held": held, "bos": bos, "seed": seed,
    }  # fmt: skip
    pairs = pairs_of(opened, template, fill, prompts, bos, inputs)
    setup = set_up(opened, [observable_of(t, opened, output, centred) for t in asked], pairs, **options)
    table = split_of(setup) if split else table_of(setup, draws=draws, seed=seed, text=words)
    if not split:
        again = retyped("--split", without=("--plot", "--gguf", "--out", "--draws"), flags=("--json", "-q", "--quiet"))
        table = dataclasses.replace(table, next=again)
    write(table, out=out, plot=plot)
    if gguf is not None:
        typer.echo(f"written: {export(setup, gguf)}", err=True)
    shown = table if json else table.head(top)
    emit(shown, as_json=json, out=None, plot=None, quiet=quiet, seconds=time.perf_counter() - start)


def wish_of(text: str) -> tuple[str, float]:
    """A task and an amount from ``' she' - ' he'=+2``; BadRequest for other text."""
    task, equals, amount = text.rpartition("=")
    try:
        wished = float(amount)
    except ValueError:
        wished = float("nan")
    if not equals or not task.strip() or not math.isfinite(wished):
        raise BadRequest(f"--want: expected \"' she' - ' he'=+2\", got '{text}'")
    return task.strip(), wished


def numbers(text: str | None) -> list[float]:
    """Numbers with commas between; none for None. BadRequest for other text."""
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise BadRequest(f"--scale: expected numbers with commas, such as -2,-1,1,2, got '{text}'") from error


def text_of(path: Path | None) -> str | None:
    """What a file says; BadRequest where it cannot be read."""
    if path is None:
        return None
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(
            f"--text: expected a UTF-8 text at '{path}', got: {in_words(error)}; check the path"
        ) from error
