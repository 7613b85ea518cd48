"""`covector search`: concept tracing over every direction of an atlas."""

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import AtlasRef, Json, Out, Plot, Quiet, Seed

# Options that a search by place, of the same thing, is typed without.
_NOT_BY_SITE = ("--by", "--top", "--out", "--plot")


def search(
    atlas: AtlasRef,
    query: Annotated[
        str | None, typer.Argument(help="\"' fire' + ' flame' - ' water'\", 0.5*' a', bare words, or @FILE.json.")
    ] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", metavar="FILE", help="safetensors with a vector [d] or vectors [k, d].")
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option("--like", help="A direction of the atlas: L22H10.ov:1, …:1.read. Repeated: the span of several."),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", help="direction, or site: a row per side of a site, all its dyads.")
    ] = "direction",
    dyads: Annotated[
        int | None,
        typer.Option("--dyads", help="With --by site: fit by so many leading dyads (all; of an MLP all fit anything)."),
    ] = None,
    top: Annotated[int, typer.Option("--top", help="How many directions to show.")] = 20,
    side: Annotated[
        str, typer.Option("--side", help="read,write,query,key: which sides to look at.")
    ] = "read,write,query,key",
    kind: Annotated[
        str, typer.Option("--kinds", "--kind", help="ov,qk,mlp.in,mlp.out,embed,…: which maps (all inside blocks).")
    ] = "",
    alpha: Annotated[float, typer.Option("--alpha", help="Chance of one false find in the whole search.")] = 0.05,
    expand: Annotated[int, typer.Option("--expand", help="Search again with the tokens found, so many times.")] = 0,
    last: Annotated[bool, typer.Option("--last", help="A phrase stands for its last token, not for the mean.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Score MLP and embedding directions in float64 too (heads' always are).")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Which directions of a model read or write a concept; thresholds are those of as many random directions."""
    from covector.atlases import trace
    from covector.cli.opening import as_typed, atlas_of
    from covector.cli.output import emit
    from covector.cli.retyped import retyped
    from covector.errors import BadRequest

    start = time.perf_counter()
    if query is not None and vector is not None:
        raise BadRequest("expected tokens or --vector, got both; leave one out")
    folder = atlas_of(atlas, quiet=quiet)
    table = trace(
        folder,
        vector if vector is not None else query,
        like=like or None,
        by=by,
        last=last,
        expand=expand,
        dyads=dyads,
        top=top,
        sides=_listed(side),
        kinds=_listed(kind),
        alpha=alpha,
        exact=exact,
        seed=seed,
    )
    if not table.next:  # nothing was found
        flags = ("--json", "-q", "--quiet", "--exact")
        more = (
            retyped("--by", "site", without=_NOT_BY_SITE, flags=flags)
            if by == "direction"
            else f"covector glance {shlex.quote(atlas)}"
        )
        table = dataclasses.replace(table, next=more)
    table = as_typed(table, folder, atlas)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(" ", "").split(",") if word)
