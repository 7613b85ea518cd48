"""`covector svd`: what a place reads and writes, dyad by dyad, with chance beside each score."""

import dataclasses
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
from covector.errors import BadRequest


def svd(
    model: ModelRef,
    site: Annotated[
        str, typer.Argument(help="L22H10 (its OV), L3H1.qk, L3K0.v, L3.mlp.in, L3.mlp.out, embed, unembed.")
    ],
    rank: Annotated[int, typer.Option("--rank", help="How many dyads, largest gain first.")] = 10,
    k: Annotated[int, typer.Option("-k", help="Labels per side and pole.")] = 15,
    basis: Annotated[
        str,
        typer.Option(
            "--basis",
            help="token_out, action_out, …; READ,WRITE for two; of three or more each; variants :pinv …",
        ),
    ] = "auto",
    score: Annotated[
        str, typer.Option("--score", help="Order of the lists: cosine (the same as ζ) or raw.")
    ] = "cosine",
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="Leave labels out: ascii (non-ASCII), trained (hardly trained)."),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option("--token", help="Also score this token on every dyad (repeatable): --token ' she'."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Monte-Carlo p values instead of upper bounds; adds p_cov.")
    ] = False,
    draws: Annotated[int, typer.Option("--draws", help="Draws for --exact.")] = 2000,
    grid: Annotated[bool, typer.Option("--grid", help="Labels × dyads, coloured by value.")] = False,
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
    """What a place reads and writes: its singular dyads against labelled bases, chance beside every score."""
    from covector.cli.opening import as_agent
    from covector.cli.opening import opened as open_model
    from covector.cli.run_options import check_run_options

    start = time.perf_counter()
    check_run_options(device, dtype)
    opened = as_agent(open_model(model, layout, frame=frame, strict=strict), agent)
    opened.hash_ahead()  # beside the imports that follow

    from covector.analyses.readout import readout
    from covector.cli.output import emit, write

    options = {"score": score, "without": tuple(without or ()), "exact": exact, "draws": draws, "seed": seed}
    if basis.count(",") > 1:
        from covector.analyses.readout_bases import readout_bases

        if token:
            raise BadRequest("--token goes with one basis or READ,WRITE, several were given; leave --token out")
        table = readout_bases(opened, site, basis, rank=rank, k=k, **options)
    else:
        table = readout(opened, site, rank=rank, k=k, basis=basis, tokens=tuple(token or ()), **options)
    seconds = time.perf_counter() - start
    if basis.count(",") > 1 and not json and not grid:
        write(table, out=out, plot=plot)
        kept = tuple(c for c in table.columns if c.name not in ("zeta", "means"))
        emit(dataclasses.replace(table, columns=kept), as_json=False, out=None, plot=None, quiet=quiet, seconds=seconds)
    elif grid and not json:
        from covector.cli.grid import show_grid

        show_grid(table, seconds)
        write(table, out=out, plot=plot)
    else:
        emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=seconds)
