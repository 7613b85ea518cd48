"""`covector compare-atlases`: two atlases, place by place."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import Json, Out, Plot, Quiet


def compare_atlases(
    atlas: Annotated[Path, typer.Argument(help="Folder that covector atlas has made.")],
    other: Annotated[Path, typer.Argument(help="The atlas to compare with: its base, another seed, another frame.")],
    top: Annotated[int, typer.Option("--top", help="Rows on the screen, those that turned most; files have all.")] = 20,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Which directions of one atlas stand in another, place by place, beside what two unrelated models give."""
    from covector.analyses.compare_atlases import compare_atlases as compared
    from covector.cli.output import emit
    from covector.errors import BadRequest

    start = time.perf_counter()
    if top < 1:
        raise BadRequest(f"--top: expected at least 1 row, got {top}")
    table = compared(atlas, other)
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start, top=top)
