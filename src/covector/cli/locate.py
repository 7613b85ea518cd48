"""`covector locate`: where a basis, or a few of its labels, is read or written most strongly."""

import dataclasses
import time
from typing import Annotated

import typer

from covector.cli.options import Device, Dtype, FrameName, Json, Layout, ModelRef, Out, Plot, Quiet, Seed, Strict

# What 120 columns hold with addresses in full; the rest (p, q, p_energy, rank) is in --json and --out.
ON_SCREEN = ("site", "side", "gain", "gain_level", "z", "familywise", "first", "cos", "cos_level", "label", "dyad",
             "p_cos", "energy", "energy_level")  # fmt: skip


def locate(
    model: ModelRef,
    basis: Annotated[str, typer.Argument(help="token_out, token_in, action_out, position_in, …; variants :centred …")],
    concept: Annotated[
        list[str] | None,
        typer.Option("--concept", help="Only this label of the basis (repeatable): --concept ' she' --concept ' he'."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="Leave labels out: ascii (non-ASCII), trained (hardly trained)."),
    ] = None,
    sites: Annotated[
        str, typer.Option("--sites", help="Where to look: 'L2-3H*.ov,L*.mlp.out'; * for every head and MLP.")
    ] = "*",
    side: Annotated[str, typer.Option("--side", help="both, read (with queries and keys) or write.")] = "both",
    top: Annotated[int, typer.Option("--top", help="Places on the screen; 0 for all. Files hold them all.")] = 15,
    draws: Annotated[int, typer.Option("--draws", help="Random rotations, and bootstrap samples.")] = 1000,
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
    """Where labelled directions are read or written most strongly, by gain, energy and largest cosine.

    Every place is compared with random rotations of the same directions; the familywise p counts that all were tried.
    """
    from covector.analyses.locate import locate as locate_in
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, write
    from covector.cli.run_options import check_run_options
    from covector.errors import BadRequest

    start = time.perf_counter()
    check_run_options(device, dtype)
    if top < 0:
        raise BadRequest(f"--top: expected a number of places >= 0, got {top}; 0 shows all")
    opened = open_model(model, layout, frame=frame, strict=strict)
    table = locate_in(
        opened,
        basis,
        side=side,
        sites=sites,
        concept=tuple(concept or ()),
        without=tuple(without or ()),
        draws=draws,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    write(table, out=out, plot=plot)
    shown = table
    if not json:
        last = min(top or len(table), len(table))
        more = f" · strongest {last}" if last < len(table) else ""
        columns = tuple(c for c in table.columns if c.name in ON_SCREEN)
        shown = dataclasses.replace(table, columns=columns, title=table.title + more).head(last)
    emit(shown, as_json=json, out=None, plot=None, quiet=quiet, seconds=seconds)
