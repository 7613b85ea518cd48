"""`covector observe …`, continued: what norms do to a feature, and predictions beside measurements."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.observe import observe
from covector.cli.options import (
    At,
    Bos,
    Fill,
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
from covector.errors import BadRequest, in_words

Top = Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")]


@observe.command("layernorm")
def layernorm(
    model: ModelRef,
    task: Task,
    path: Annotated[
        str | None, typer.Argument(help="A path such as L1H0>L2H3@NAME (default: every head).", show_default=False)
    ] = None,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    bos: Bos = "auto",
    at: At = "end",
    top: Top = 25,
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
    """How far norms turn a task's features, against the exact law for random directions; gains, scales, rankings."""
    check_prompts(template, fill, prompts)
    from covector.analyses.layernorm import layernorm as measure
    from covector.cli.opening import opened as open_model

    start = time.perf_counter()
    opened = open_model(model, layout, strict=strict, device=device)
    pairs = pairs_of(opened, template, fill, prompts, bos)
    table = measure(opened, observable_of(task, opened, output, centred), pairs, path, at=at, seed=seed)
    _show(continued(table, template, fill, prompts), top, json, out, plot, quiet, start)


Hold = Annotated[str, typer.Option("--hold", help="What held-out prompts do not share: names, templates, both.")]
Train = Annotated[float, typer.Option("--train", help="Share of names (templates) that features are made from.")]


@observe.command("predict")
def predict(
    model: ModelRef,
    task: Task,
    path: Annotated[str, typer.Argument(help="heads, or a path such as L1H0@NAME>L2H3.")] = "heads",
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    hold: Hold = "names",
    train: Train = 0.5,
    bos: Bos = "auto",
    at: At = "end",
    top: Top = 25,
    centred: Centred = False,
    output: Output = None,
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    runner: RunnerName = "decoder",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Predicted beside measured on held-out prompts: the effect of patching heads, or what a path's feature says."""
    check_prompts(template, fill, prompts)
    from covector.cli.opening import opened as open_model
    from covector.cli.opening import runner_of

    start = time.perf_counter()
    if path != "heads" and runner != "decoder":
        raise BadRequest(
            f"--runner {runner}: it measures what patching heads does, a path is read in the decoder; leave it out"
        )
    opened = open_model(model, layout, strict=strict, device=device)
    other = runner_of(runner, model, layout, device=device)
    observable = observable_of(task, opened, output, centred)
    split = _split(opened, template, fill, prompts, bos, hold, train, seed)
    if path == "heads":
        from covector.analyses.predict import predict_heads

        table = predict_heads(opened, observable, split.train, split.test, at=at, held=split.held, runner=other)
    else:
        from covector.analyses.predict_path import predict_path

        table = predict_path(opened, observable, path, split.train, split.test, at=at, held=split.held)
    _show(continued(table, template, fill, prompts), top, json, out, plot, quiet, start)


@observe.command("neurons")
def neurons(
    model: ModelRef,
    task: Task,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    top: Annotated[int, typer.Option("--top", help="Neurons shown and measured, and as many at random.")] = 20,
    source: Annotated[
        str, typer.Option("--source", help="What a neuron is given instead: corrupt, zero, mean.")
    ] = "corrupt",
    bos: Bos = "auto",
    at: At = "end",
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
    """Which single neurons write for the task, against chance; with prompts, what taking them away does."""
    from covector.cli.output import refuse_plot

    if template or prompts:
        check_prompts(template, fill, prompts)
    else:
        refuse_plot(plot, "observe neurons without prompts")
    from covector.analyses.neurons import neurons as measure
    from covector.cli.opening import opened as open_model

    start = time.perf_counter()
    opened = open_model(model, layout, strict=strict, device=device)
    pairs = pairs_of(opened, template, fill, prompts, bos) if template or prompts else []
    observable = observable_of(task, opened, output, centred)
    table = measure(opened, observable, pairs, top=top, source=source, at=at, seed=seed)
    _show(continued(table, template, fill, prompts), len(table), json, out, plot, quiet, start)


@observe.command("regions")
def regions(
    model: ModelRef,
    task: Task,
    mlp: Annotated[str, typer.Argument(help="The MLP: L2.mlp.")],
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Plain text: made from its first half.")
    ] = None,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    most: Annotated[int, typer.Option("--positions", help="Positions of the text that are used at most.")] = 2048,
    bos: Bos = "auto",
    at: At = "end",
    top: Top = 25,
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
    """How many linear features an MLP is for a task (--text), or its pieces and boundary between prompts."""
    from covector.analyses.regions import regions as measure
    from covector.analyses.regions import segments
    from covector.cli.opening import opened as open_model

    start = time.perf_counter()
    if (text is None) == (not template and prompts is None):
        raise BadRequest("expected either --text FILE, or pairs of prompts (--template with --fill, or --prompts)")
    if text is None:
        check_prompts(template, fill, prompts)
    opened = open_model(model, layout, strict=strict, device=device)
    observable = observable_of(task, opened, output, centred)
    if text is None:
        table = segments(opened, observable, mlp, pairs_of(opened, template, fill, prompts, bos), at=at)
    else:
        table = measure(opened, observable, mlp, _read(text), most=most, seed=seed)
    _show(continued(table, template, fill, prompts), top, json, out, plot, quiet, start)


@observe.command("probes")
def probes(
    model: ModelRef,
    task: Task,
    path: Annotated[str, typer.Argument(help="The path whose feature is compared: L2H3@NAME, L1.mlp@NAME+1.")],
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    hold: Hold = "both",
    train: Train = 0.5,
    draws: Annotated[int, typer.Option("--draws", help="Draws of training pairs behind every mean.")] = 20,
    bos: Bos = "auto",
    at: At = "end",
    top: Top = 60,
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
    """A path's feature against probes fitted to examples, on prompts with other names and templates."""
    check_prompts(template, fill, prompts)
    from covector.analyses.probes import probes as measure
    from covector.cli.opening import opened as open_model

    start = time.perf_counter()
    opened = open_model(model, layout, strict=strict, device=device)
    observable = observable_of(task, opened, output, centred)
    split = _split(opened, template, fill, prompts, bos, hold, train, seed)
    table = measure(opened, observable, path, split.train, split.test, at=at, held=split.held, draws=draws, seed=seed)
    _show(continued(table, template, fill, prompts), top, json, out, plot, quiet, start)


def _read(text: Path) -> str:
    try:
        with text.open(encoding="utf-8-sig") as file:
            return file.read(1_000_000)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(
            f"--text: expected a UTF-8 text file at '{text}', got: {in_words(error)}; check the path"
        ) from error


def _split(model, template, fill, prompts, bos: str, hold: str, train: float, seed: int):
    """Pairs to make features from, and held-out pairs, from the options that name them."""
    from covector.analyses.held_out import split_filled, split_pairs
    from covector.run.prompts import parse_fill

    if prompts is not None:
        return split_pairs(pairs_of(model, template, fill, prompts, bos), share=train, seed=seed)
    if not template:
        raise BadRequest("expected either --template with --fill, or --prompts FILE")
    return split_filled(model, template, parse_fill(fill or []), hold=hold, share=train, bos=bos, seed=seed)


def _show(table, top: int, json: bool, out, plot, quiet: bool, start: float) -> None:
    """Files have every row, the screen the first."""
    from covector.cli.output import emit

    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
