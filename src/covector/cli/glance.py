"""`covector glance` and `covector directions`: an atlas in numbers, as the explorer shows it."""

import time
from typing import Annotated

import typer

from covector.cli.opening import as_typed, atlas_of
from covector.cli.options import AtlasRef, Json, Out, Plot, Quiet
from covector.errors import BadRequest


def glance(
    atlas: AtlasRef,
    by: Annotated[
        str, typer.Option("--by", help="place: every map in a row; direction: the few to look at first.")
    ] = "place",
    top: Annotated[
        int | None, typer.Option("--top", help="Rows on the screen, files have all; by direction: how many.")
    ] = None,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """A whole model at a glance: what was found at every place of an atlas beside chance, or where to look first."""
    from covector.analyses.glance import glance as seen
    from covector.analyses.look_first import look_first
    from covector.cli.output import emit, refuse_plot

    start = time.perf_counter()
    if top is not None and top < 1:
        raise BadRequest(f"--top: expected at least 1 row, got {top}")
    if by not in ("place", "direction"):
        raise BadRequest(f"--by: expected place or direction, got '{by}'")
    if by == "direction":
        refuse_plot(plot, "glance --by direction")
    folder = atlas_of(atlas, quiet=quiet)
    table = as_typed(seen(folder) if by == "place" else look_first(folder, top or 9), folder, atlas)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)


def directions(
    atlas: AtlasRef,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kinds", "--kind", help="Only maps of this kind: ov,qk,mlp.in … (repeatable)."),
    ] = None,
    side: Annotated[str, typer.Option("--side", help="read, write, query or key.")] = "",
    site: Annotated[str, typer.Option("--site", help="A part of an address: L22H10, *.ov, mlp.out.")] = "",
    layers: Annotated[str, typer.Option("--layers", help="The first and the last: 3-7, or one: 3.")] = "",
    q: Annotated[float, typer.Option("--q", help="The largest q over the whole atlas.")] = 1.0,
    called: Annotated[
        str, typer.Option("--called", help="A verdict: interpretable, svd_specific, noisy, aligned.")
    ] = "",
    labels: Annotated[
        str, typer.Option("--labels", help="Part of a label in either pole's list; in quotes: exactly that.")
    ] = "",
    sort: Annotated[
        str, typer.Option("--sort", help="strength (|ζ|), sigma, q_dir, p_svd, coherence, layer, place, label …")
    ] = "strength",
    rising: Annotated[bool, typer.Option("--rising", help="The smallest first.")] = False,
    top: Annotated[int, typer.Option("--top", help="How many directions to list.")] = 20,
    json: Json = False,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """List the directions of an atlas that filters keep: the rows of the explorer's view of all directions."""
    from covector.analyses.directions import directions as listed
    from covector.cli.output import emit

    start = time.perf_counter()
    between, folder = _layers(layers), atlas_of(atlas, quiet=quiet)
    kinds = [name for given in kind or () for name in given.split(",")]
    table = listed(
        folder, kinds=kinds, side=side, site=site, layers=between, most_q=q, flag=called, labels=labels, sort=sort,
        rising=rising, top=top,
    )  # fmt: skip
    table = as_typed(table, folder, atlas)
    emit(table, as_json=json, out=out, plot=None, quiet=quiet, seconds=time.perf_counter() - start)


def _layers(text: str) -> tuple[int, int] | None:
    if not text.strip():
        return None
    first, dash, last = text.partition("-")
    try:
        return int(first), int(last if dash else first)
    except ValueError:
        raise BadRequest(f"--layers: expected two layers (3-7) or one (3), got '{text[:40]}'") from None
