"""`covector locate`: where a basis, or a few of its labels, is read or written most strongly."""

import dataclasses
import sys
import time
from typing import Annotated

import typer

from covector.cli.options import (
    AgentNames,
    Device,
    Dtype,
    FrameName,
    Json,
    Layout,
    ModelRef,
    Out,
    Plot,
    Quiet,
    Seed,
    Strict,
)

# What 120 columns hold with addresses in full; the rest (p, q, p_energy, rank) is in --json and --out.
ON_SCREEN = ("site", "side", "gain", "gain_level", "z", "familywise", "first", "cos", "cos_level", "label", "dyad",
             "p_cos", "energy", "energy_level")  # fmt: skip


def locate(
    model: ModelRef,
    basis: Annotated[
        str,
        typer.Argument(
            help="token_out, action_out, state_in, …; variants :centred; with --by dyads several, with commas."
        ),
    ],
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
    by: Annotated[
        str,
        typer.Option(
            "--by", help="places; dyads: × label; contrasts: what a softmax sees of each; clusters: of dyads by labels."
        ),
    ] = "places",
    dyads: Annotated[int, typer.Option("--dyads", help="With --by: how many dyads of every place.")] = 8,
    contrast: Annotated[
        list[str] | None,
        typer.Option("--contrast", help="With --by contrasts: one more, 'left + right - forward' (repeatable)."),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option("--map", help="What is read of a grid: by a dyad L0.mlp.in:0, a feature's file, a task (--path)."),
    ] = None,
    path: Annotated[
        str | None, typer.Option("--path", help="With --map 'forward - left': where it is taken, 'L0H1>out'.")
    ] = None,
    curve: Annotated[
        list[str] | None,
        typer.Option("--curve", help="A dyad along the timesteps: L0H0.qk:0.key (repeatable); or components of them."),
    ] = None,
    total: Annotated[
        bool, typer.Option("--total", help="With action_out --by dyads: also run it, each dyad removed alone.")
    ] = False,
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; 0 for all. Files hold them all.")] = 15,
    draws: Annotated[int, typer.Option("--draws", help="Random rotations, directions, draws of means.")] = 1000,
    agent: AgentNames = None,
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
    from covector.cli.locate_agent import Asked, looked
    from covector.cli.opening import as_agent
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, write
    from covector.cli.run_options import check_run_options
    from covector.errors import BadRequest

    start = time.perf_counter()
    check_run_options(device, dtype)
    if top < 0:
        raise BadRequest(f"--top: expected a number of rows >= 0, got {top}; 0 shows all")
    concepts, left = tuple(concept or ()), tuple(without or ())
    asked = Asked(
        by, sites, side, dyads, tuple(contrast or ()), grid, path, tuple(curve or ()), concepts, left, draws, seed
    )
    kind = asked.kind
    if total and kind != "dyads":
        raise BadRequest("--total: expected action_out --by dyads with it; it measures what removing each dyad does")
    opened = as_agent(open_model(model, layout, frame=frame, strict=strict), agent)
    if kind == "places":
        found = locate_in(opened, basis, side=side, sites=sites, concept=concepts, without=left, draws=draws, seed=seed)
        on_screen, unit = ON_SCREEN, "strongest"
    else:
        (found, on_screen), unit = looked(opened, basis, asked), "first"
    if total:
        from covector.rollouts import with_total_effects

        found = with_total_effects(found, model, agent=agent, layout=layout, tell=None if quiet else _say)
    seconds = time.perf_counter() - start
    write(found, out=out, plot=plot)
    shown = found
    if not json:
        last = min(top or len(found), len(found))
        more = f" · {unit} {last}" if last < len(found) else ""
        columns = tuple(c for c in found.columns if c.name in on_screen)
        columns = tuple(c for c in columns if not _empty(c.name, c.values))
        key = tuple(name for name in found.key if name in {c.name for c in columns})
        shown = dataclasses.replace(found, columns=columns, key=key, title=found.title + more).head(last)
    emit(shown, as_json=json, out=None, plot=None, quiet=quiet, seconds=seconds)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _empty(name: str, values) -> bool:
    """Whether a column says nothing here: no label untrained, one basis only, nothing that is written."""
    if name == "untrained":
        return not any(values)
    if name == "basis":
        return len(set(values)) == 1
    return name in ("direct", "straight") and all(v != v for v in values)
