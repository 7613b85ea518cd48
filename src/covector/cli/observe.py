"""`covector observe …`: which heads and paths decide a task, from weights alone and between prompts."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import (
    At,
    Bos,
    Device,
    Dtype,
    Fill,
    FrameName,
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
from covector.cli.sections import Sentences
from covector.cli.tasks import Centred, Output, Task, check_prompts, continued, observable_of, pairs_of

observe = typer.Typer(
    cls=Sentences,
    help="Which heads, paths and directions decide a task: a weighted list of tokens or actions.",
    no_args_is_help=True,
)


@observe.command("norms")
def norms(
    model: ModelRef,
    task: Task,
    centred: Centred = False,
    output: Output = None,
    draws: Annotated[
        int,
        typer.Option("--draws", help="Random directions, and as many observables of random labels, behind every p."),
    ] = 1000,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: Device = "cpu",
    dtype: Dtype = "float64",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Which heads could matter: the length of the task's feature at every head's input. No data at all."""
    from covector.analyses.head_norms import head_norms
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit
    from covector.cli.run_options import check_run_options

    start = time.perf_counter()
    check_run_options(device, dtype)
    opened = open_model(model, layout, frame=frame, strict=strict)
    table = head_norms(opened, observable_of(task, opened, output, centred), draws=draws, seed=seed)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)


@observe.command("shares")
def shares(
    model: ModelRef,
    task: Task,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    inputs: Inputs = None,
    bos: Bos = "auto",
    at: At = "end",
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 25,
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
    """What each component brings to the difference between two prompts, exactly; heads split into OV and QK."""
    check_prompts(template, fill, prompts, inputs)
    from covector.analyses.shares import shares as measure
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit

    start = time.perf_counter()
    opened = open_model(model, layout, strict=strict, device=device)
    pairs = pairs_of(opened, template, fill, prompts, bos, inputs)
    table = measure(opened, observable_of(task, opened, output, centred), pairs, at=at)
    table = continued(table, template, fill, prompts, inputs, at)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)


@observe.command("couple")
def couple(
    model: ModelRef,
    first: Task,
    second: Task,
    others: Annotated[list[str] | None, typer.Argument(help="More tasks: every pair of all is compared.")] = None,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    inputs: Inputs = None,
    bos: Bos = "auto",
    at: At = "end",
    token: Annotated[
        str, typer.Option("--token", help="Slot whose input heads read: NAME; all is every position but the first.")
    ] = "all",
    picture: Annotated[
        str,
        typer.Option("--picture", help="What --plot draws: heads, or with prompts readings (auto) or attributions."),
    ] = "auto",
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 48,
    draws: Annotated[int, typer.Option("--draws", help="Random sets of read-outs behind every chance and p.")] = 2000,
    centred: Centred = False,
    output: Output = None,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Are tasks using the same features? Coupling of their features at every head, without data; with prompts measured.

    With prompts (--template and --fill, --prompts or --inputs): the coefficient from the covariance of the clean
    inputs, the slope and r² of measured dot products, and the ratio of the tasks' attributions stand beside it.
    """
    with_prompts = any((template, fill, prompts, inputs))
    if with_prompts:
        check_prompts(template, fill, prompts, inputs)
    from covector.analyses.couple import couple as compare
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit

    start = time.perf_counter()
    opened = open_model(model, layout, frame=frame, strict=strict, device=device)
    tasks = [observable_of(task, opened, output, centred) for task in (first, second, *(others or ()))]
    pairs = pairs_of(opened, template, fill, prompts, bos, inputs) if with_prompts else []
    table = compare(
        opened, tasks[0], tasks[1], *tasks[2:], pairs=pairs, at=at, token=token, picture=picture, draws=draws, seed=seed
    )
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)


@observe.command("align")
def align(
    model: ModelRef,
    task: Task,
    head: Annotated[str, typer.Argument(help="The head: L9H7.")],
    top: Annotated[int, typer.Option("--top", help="Dyads on the screen, largest |cos| first; files have all.")] = 10,
    centred: Centred = False,
    output: Output = None,
    frame: FrameName = "raw",
    layout: Layout = None,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """The task's feature in a head's singular basis: which dyads carry it."""
    from covector.analyses.align import align as measure
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit

    start = time.perf_counter()
    opened = open_model(model, layout, frame=frame, strict=strict)
    table = measure(opened, observable_of(task, opened, output, centred), head)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)


@observe.command("feature")
def feature(
    model: ModelRef,
    task: Task,
    path: Annotated[
        str, typer.Argument(help="A path: 'L9H7>out', 'L6H6:2>L13H11>out'; with prompts 'L0H0@NAME>L0.mlp>out'.")
    ],
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    inputs: Inputs = None,
    bos: Bos = "auto",
    at: At = "end",
    policy: Annotated[
        str, typer.Option("--policy", help="With prompts: frozen (ratios f(x)/x held) or exact (gradients).")
    ] = "frozen",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the feature: safetensors, vector and metadata.")
    ] = None,
    normed: Annotated[bool, typer.Option("--normed", help="Read it behind the first head's norm.")] = False,
    centred: Centred = False,
    output: Output = None,
    layout: Layout = None,
    json: Json = False,
    device: Device = "cpu",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """The task's feature at the input of a path: its length after each step, from weights alone or at prompts."""
    given = bool(template or fill or prompts or inputs)
    if given:
        check_prompts(template, fill, prompts, inputs)
    from covector.analyses.feature_steps import feature_steps
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit
    from covector.cli.run_options import check_run_options
    from covector.io.feature_file import save_feature

    start = time.perf_counter()
    check_run_options(device, "float64")
    opened = open_model(model, layout, strict=strict)
    observable = observable_of(task, opened, output, centred)
    pairs = pairs_of(opened, template, fill, prompts, bos, inputs) if given else []
    found, table = feature_steps(
        opened,
        observable,
        path,
        normed=normed,
        saved="" if out is None else str(out),
        pairs=pairs,
        at=at,
        policy=policy,
    )
    if out is not None:
        typer.echo(f"written: {save_feature(found, out)}", err=True)
    table = continued(table, template, fill, prompts, inputs, at)
    emit(table, as_json=json, out=None, plot=None, quiet=quiet, seconds=time.perf_counter() - start)


@observe.command("paths")
def paths(
    model: ModelRef,
    task: Task,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    inputs: Inputs = None,
    bos: Bos = "auto",
    at: At = "end",
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 25,
    expand: Annotated[int, typer.Option("--expand", help="How many parts are split at most, largest first.")] = 100,
    least: Annotated[float, typer.Option("--least", help="Parts below this share of the total are not split.")] = 0.005,
    together: Annotated[bool, typer.Option("--together", help="Take all positions of a component together.")] = False,
    dyads: Annotated[bool, typer.Option("--dyads", help="Split a head into the dyads that it reads along.")] = False,
    path: Annotated[
        list[str] | None, typer.Option("--path", help="Measure this path alone: L0H0:2@NAME>L2.mlp>out (repeatable).")
    ] = None,
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
    """Which paths carry the task between two kinds of prompts: typed paths with exact shares of the difference."""
    check_prompts(template, fill, prompts, inputs)
    from covector.analyses.paths import paths as find
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit

    start = time.perf_counter()
    opened = open_model(model, layout, strict=strict, device=device)
    pairs = pairs_of(opened, template, fill, prompts, bos, inputs)
    observable = observable_of(task, opened, output, centred)
    table = find(
        opened, observable, pairs, at=at, expansions=expand, least=least, by_slot=not together, dyads=dyads,
        given=tuple(path or ()),
    )  # fmt: skip
    table = continued(table, template, fill, prompts, inputs, at)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)


@observe.command("virtual")
def virtual(
    model: ModelRef,
    task: Task,
    length: Annotated[int, typer.Option("--length", help="Heads on a path at most.")] = 3,
    top: Annotated[int, typer.Option("--top", help="How many paths: the first of all, proven.")] = 20,
    by: Annotated[str, typer.Option("--by", help="norm: longest feature; ratio: over what random read-outs have.")] = (
        "norm"
    ),
    budget: Annotated[
        int | None, typer.Option("--budget", help="Nodes that the search opens at most; then the gap is stated.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="Random read-outs behind every chance and p.")] = 1000,
    centred: Centred = False,
    output: Output = None,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Which chains of heads could matter: exact top of all paths through attention values. No data at all."""
    from covector.analyses.virtual_heads import virtual_heads
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit

    start = time.perf_counter()
    opened = open_model(model, layout, frame=frame, strict=strict)
    observable = observable_of(task, opened, output, centred)
    table = virtual_heads(opened, observable, length=length, top=top, by=by, budget=budget, draws=draws, seed=seed)
    emit(table, as_json=json, out=out, plot=None, quiet=quiet, seconds=time.perf_counter() - start)


@observe.command("shared")
def shared(
    model: ModelRef,
    first: Task,
    second: Task,
    length: Annotated[int, typer.Option("--length", help="Heads on a path at most, 1 to 3.")] = 3,
    top: Annotated[int, typer.Option("--top", help="Pairs, furthest above chance first.")] = 20,
    most: Annotated[int, typer.Option("--paths", help="Paths per head at most, largest gain first.")] = 64,
    draws: Annotated[int, typer.Option("--draws", help="Random pairs of read-outs behind every chance and p.")] = 500,
    centred: Centred = False,
    output: Output = None,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Do two tasks share features over chains of heads? Pairs of paths that end at one head, no data at all."""
    from covector.analyses.shared import shared as compare
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit

    start = time.perf_counter()
    opened = open_model(model, layout, frame=frame, strict=strict)
    tasks = [observable_of(task, opened, output, centred) for task in (first, second)]
    table = compare(opened, tasks[0], tasks[1], length=length, top=top, paths=most, draws=draws, seed=seed)
    emit(table, as_json=json, out=out, plot=None, quiet=quiet, seconds=time.perf_counter() - start)
