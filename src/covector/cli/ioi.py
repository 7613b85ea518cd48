"""`covector observe ioi`: which heads name the indirect object."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.observe import observe
from covector.cli.options import Bos, Json, Layout, ModelRef, Out, Plot, Quiet, RunDevice, Seed, Strict


@observe.command("ioi")
def ioi(
    model: ModelRef,
    show: Annotated[
        str, typer.Option("--show", help="roles; edges (dyads between heads); paths; ablation (dyad beside head).")
    ] = "roles",
    names: Annotated[
        Path | None, typer.Option("--names", metavar="FILE", help="Names of your own, one a line, instead of 99.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", help="With [A] who gets it and [B] who gives, twice; repeatable, instead of 15."),
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", help="Pairs of names: what intervals and p count.")] = 10,
    templates: Annotated[int, typer.Option("--templates", help="Templates per pair, each in both orders.")] = 2,
    expand: Annotated[int, typer.Option("--expand", help="paths: how many parts are split at most.")] = 60,
    draws: Annotated[int, typer.Option("--draws", help="ablation: random directions beside each dyad.")] = 19,
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 30,
    bos: Bos = "auto",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Which heads name the indirect object: name movers, S-inhibition, duplicate-token, induction; with nulls."""
    from covector.analyses.ioi_prompts import ioi_tasks
    from covector.analyses.ioi_tables import ioi_shown
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, refuse_plot
    from covector.run.prompts import read_names

    start = time.perf_counter()
    refuse_plot(plot, "observe ioi")
    opened = open_model(model, layout, strict=strict, device=device)
    tasks = ioi_tasks(
        opened,
        names=() if names is None else read_names(names),
        templates=tuple(template or ()),
        pairs=pairs,
        orders=templates,
        bos=bos,
        seed=seed,
    )
    table = ioi_shown(opened, tasks, show, expansions=expand, draws=draws, seed=seed)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
