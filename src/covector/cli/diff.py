"""`covector diff`: what changed between two checkpoints, or what an adapter adds, in directions."""

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covector.cli.options import FrameName, Json, Layout, ModelRef, Plot, Quiet, Seed, Strict
from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.model.change import ChangeModel


def diff(
    base: ModelRef,
    other: Annotated[str, typer.Argument(help="A checkpoint trained from it, or a LoRA adapter's folder (PEFT).")],
    site: Annotated[str | None, typer.Argument(help="One place in detail: L9H6.ov, L3.mlp.out, embed.")] = None,
    components: Annotated[
        bool, typer.Option("--components", help="With a place: what became of its old dyads, one by one.")
    ] = False,
    kinds: Annotated[str, typer.Option("--kinds", help="Which of ov,qk,mlp,embed, with commas.")] = "ov,qk,mlp,embed",
    leading: Annotated[int, typer.Option("--leading", help="Leading dyads that subspaces are made of.")] = 8,
    below: Annotated[
        float, typer.Option("--below", help="Intruder: |u·u'||v·v'| below this with every old dyad.")
    ] = 0.5,
    tested: Annotated[int, typer.Option("--tested", help="Most changed places that are tested.")] = 20,
    draws: Annotated[int, typer.Option("--draws", help="Random changes per place, of equal norm and rank.")] = 100,
    rank: Annotated[int, typer.Option("--rank", help="With a place: dyads of the change.")] = 10,
    k: Annotated[int, typer.Option("-k", help="Labels per side and pole.")] = 15,
    top: Annotated[int, typer.Option("--top", help="Rows on the screen; --json has all.")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Write an atlas of the change, to be searched.")
    ] = None,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    plot: Plot = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """What fine-tuning changed, in directions: every place, how much, along which tokens, against random changes."""
    from covector.analyses.diff import diff as compare
    from covector.analyses.diff_site import diff_components, diff_directions
    from covector.changes import changed
    from covector.cli.opening import opened as open_model
    from covector.cli.output import emit
    from covector.cli.progress import Progress

    start = time.perf_counter()
    asked = tuple(kind for kind in kinds.replace(" ", "").split(",") if kind)
    if components and site is None:
        raise BadRequest("--components shows one place: expected it after the two models, such as L9H6.ov")
    model = changed(open_model(base, layout, frame=frame, strict=strict), other, layout)
    search = None if out is None else _atlas(model, out, asked, seed, quiet)
    if site is None:
        with Progress(quiet) as progress:
            table = compare(model, kinds=asked, top=leading, below=below, tested=tested, draws=draws, seed=seed,
                            tell=progress)  # fmt: skip
    elif components:
        table = diff_components(model, site, top=leading, below=below, draws=draws, seed=seed)
    else:
        table = diff_directions(model, site, rank=rank, k=k, seed=seed)
    if search is not None:
        table = dataclasses.replace(table, next=search)
    moved = int((table.column("change").numbers > 0).sum()) if "change" in table else top
    emit(
        table,
        as_json=json,
        out=None,
        plot=plot,
        quiet=quiet,
        seconds=time.perf_counter() - start,
        top=min(top, max(moved, 1)),
    )


def _atlas(model: "ChangeModel", out: Path, kinds: tuple[str, ...], seed: int, quiet: bool) -> str | None:
    """Build the atlas of the change, or find it there, under the rules of `covector atlas`; how it is searched."""
    from covector.atlas.plan import Options
    from covector.building import build_atlas, example
    from covector.cli.progress import Progress

    if str(model.frame) != "raw":
        raise BadRequest(f"--out keeps the change of the weights as they are: expected frame raw, got {model.frame}")
    with Progress(quiet) as progress:
        built = build_atlas(model, out, options=Options(kinds, seed=seed, scores=False), progress=progress)
    assert built is not None, "one shard is all of it"
    if not quiet:
        sys.stderr.write(f"written: {out} ({len(built):,} directions of the change above the rounding of storage)\n")
    return f"covector search {shlex.quote(str(out))} {example(built)}" if len(built) else None
