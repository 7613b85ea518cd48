"""`covector rank`: how much of a place's rank a model needs."""

import time
from pathlib import Path
from typing import Annotated

import typer

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
    Seed,
    Strict,
    Template,
)
from covector.cli.tasks import Centred, Output, observable_of, pairs_of
from covector.errors import BadRequest


def rank(
    model: ModelRef,
    site: Annotated[str, typer.Argument(help="L3.mlp.in, L2H1.ov, or several at once: L2H*.ov.")],
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Text that loss and KL are taken on.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", help="Dyads that are kept: 1,2,4 (default: powers of two).")
    ] = None,
    share: Annotated[
        str | None, typer.Option("--share", help="Shares of the largest rank that are kept, as LASER counts: 0.01,0.1.")
    ] = None,
    rescale: Annotated[
        str | None, typer.Option("--rescale", help="Instead: factors of the leading gains, 1.5,1,0.5 (the others 1).")
    ] = None,
    renormalise: Annotated[
        bool, typer.Option("--renormalise", help="With --rescale: keep the sum of the gains (Σσ/Σσz).")
    ] = False,
    observe: Annotated[
        str | None, typer.Option("--observe", help="A task to measure on prompts: \"' she' - ' he'\".")
    ] = None,
    template: Template = None,
    fill: Fill = None,
    prompts: Prompts = None,
    bos: Bos = "auto",
    at: At = "end",
    draws: Annotated[int, typer.Option("--draws", help="Random subspaces per row, at equal ‖ΔM‖.")] = 20,
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
    """Truncate a place to its leading dyads, rank by rank, or rescale its gains: what it costs, against chance."""
    from covector.analyses.rank_sweep import rank_sweep
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit
    from covector.cli.steer import text_of

    start = time.perf_counter()
    words = text_of(text)
    if words is None:
        raise BadRequest("--text: expected a file that loss and KL are taken on, got none")
    asked = bool(template or prompts)
    if (observe is None) == asked:
        raise BadRequest("--observe needs prompts (--template with --fill, or --prompts), and they need --observe")
    opened = open_model(model, layout, strict=strict, device=device)
    table = rank_sweep(
        opened,
        site,
        keep=[_whole(k) for k in _listed(keep, "--keep")],
        share=_listed(share, "--share"),
        rescale=_listed(rescale, "--rescale"),
        renormalise=renormalise,
        text=words,
        observable=None if observe is None else observable_of(observe, opened, output, centred),
        pairs=pairs_of(opened, template, fill, prompts, bos) if asked else (),
        at=at,
        draws=draws,
        seed=seed,
    )
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)


def _listed(text: str | None, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise BadRequest(f"{option}: expected numbers with commas, such as 1,2,4, got '{text}'") from error


def _whole(value: float) -> int:
    if value != int(value) or value < 0:
        raise BadRequest(f"--keep: expected whole numbers of dyads, 0 or more, got {value:g}")
    return int(value)
