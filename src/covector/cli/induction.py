"""`covector induction`: break … A B … A → B for one token and no other, and see what else it does."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.edit import NeutralText
from covector.cli.options import Dtype, Json, Layout, ModelRef, Out, Plot, Quiet, RunDevice, Seed, Strict
from covector.errors import BadRequest


def induction(
    model: ModelRef,
    token: Annotated[str | None, typer.Option("--token", help="The token B whose copying is broken.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every token in turn (the default without --token).")] = False,
    heads: Annotated[
        list[str] | None, typer.Option("--heads", help="Heads to edit: L1H0 (repeatable; default: those found).")
    ] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            "--tokens", help="Tokens that strings are made of, as text (repeatable; default: like frequency)."
        ),
    ] = None,
    keep: Annotated[float, typer.Option("--keep", help="Share of the token's value that is kept: 0 to below 1.")] = 0.0,
    way: Annotated[
        str, typer.Option("--way", help="least: the least change; dyads: dyads of OV dampened in proportion.")
    ] = "least",
    pairs: Annotated[int, typer.Option("--pairs", help="Strings per token.")] = 32,
    draws: Annotated[int, typer.Option("--draws", help="Other tokens at most, each taken as the target in turn.")] = (
        200
    ),
    length: Annotated[int | None, typer.Option("--length", help="Tokens of a string (default: up to 14).")] = None,
    first: Annotated[
        str, typer.Option("--start", help="Token in front of strings: auto, no, or a label such as '<s>'.")
    ] = "auto",
    ridge: Annotated[float, typer.Option("--ridge", help="Added to Σ, as a share of its mean diagonal.")] = 1e-6,
    neutral: NeutralText = None,
    by: Annotated[str, typer.Option("--by", help="What a row is: target, token (under --token's edit), head.")] = (
        "target"
    ),
    save_edit: Annotated[
        Path | None, typer.Option("--save-edit", metavar="FILE", help="Write the edit as JSON: covector edit @FILE.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; files have all.")] = 30,
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    dtype: Dtype = "float64",
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Break … A B … A → B for one token B and no other: what falls, for which tokens, and what else changes."""
    from covector.analyses.selective_measures import measure, set_up
    from covector.analyses.selective_tables import BY, table_of
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit, refuse_plot, save
    from covector.cli.progress import Progress
    from covector.io.atomic import written
    from covector.run.neutral import read_neutral

    start = time.perf_counter()
    if by not in BY:
        raise BadRequest(f"--by: expected {', '.join(BY)}, got '{by}'")
    if every and token is not None:
        raise BadRequest("expected --token for one token or --all for every one, got both")
    if save_edit is not None and token is None:
        raise BadRequest("--save-edit: expected --token, whose edit is written, got none")
    if save_edit is not None and not save_edit.expanduser().parent.is_dir():
        raise BadRequest(f"--save-edit: expected a folder that is there, '{save_edit.parent}' is not; make it first")
    if by == "head":
        refuse_plot(plot, "induction --by head")
    documents = read_neutral(neutral) if neutral else None
    opened = open_model(model, layout, strict=strict, device=device, dtype=dtype)
    setup = set_up(opened, token, heads=heads or (), tokens=tokens or (), pairs=pairs, keep=keep, draws=draws, way=way,
                   neutral=documents, start=first, length=length, ridge=ridge, dtype=dtype, seed=seed)  # fmt: skip
    with Progress(quiet) as progress:
        found = measure(setup, progress)
    if save_edit is not None:
        with written(save_edit) as beside:
            beside.write_text(setup.edit(0).bound(setup.model).to_json(), encoding="utf-8")
        typer.echo(f"written: {save_edit}", err=True)
    if out is not None:
        for other in (name for name in BY if name != by):
            save(table_of(found, other), out)
    table = table_of(found, by)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
