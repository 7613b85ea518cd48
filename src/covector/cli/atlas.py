"""`covector atlas`: decompose a whole model, once, into a folder that every other command can search."""

import os
import re
import shlex
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import FrameName, Layout, ModelRef, Quiet, Seed
from covector.errors import BadRequest

# Letters of a line where standard output is no terminal.
WIDEST = 120
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def atlas(
    model: ModelRef,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the atlas goes; begun ones go on.")],
    rank: Annotated[int | None, typer.Option("--rank", help="Dyads kept per site, largest gain first (all).")] = None,
    k: Annotated[int, typer.Option("-k", help="Tokens kept per pole.")] = 10,
    kinds: Annotated[
        str, typer.Option("--kinds", "--kind", help="Which of ov,qk,mlp,embed, separated by commas.")
    ] = "ov,qk,mlp,embed",
    memory: Annotated[
        str | None, typer.Option("--memory", help="Bound on memory, such as 4GiB; refused early if too little.")
    ] = None,
    shard: Annotated[str, typer.Option("--shard", help="Compute one share of the parts only, such as 3/8.")] = "1/1",
    engine: Annotated[str, typer.Option("--engine", help="threads, processes, or dask://host:port.")] = "threads",
    workers: Annotated[int | None, typer.Option("--workers", help="How many parts at a time (one per core).")] = None,
    draws: Annotated[int, typer.Option("--draws", help="Null directions per basis.")] = 10_000,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Judge token lists too; without it a few times faster.")
    ] = True,
    rotations: Annotated[int, typer.Option("--rotations", help="Random bases per head that are judged beside it.")] = 1,
    device: Annotated[
        str, typer.Option("--device", help="Where products with vocabularies are made: auto, cpu, cuda, cuda:N.")
    ] = "auto",
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Decompose every OV, QK, MLP and embedding of a model, score every direction, and keep it all in a folder.

    Ctrl-C and the same command again goes on. Shards computed elsewhere: copy their parts folders together and run
    the command without --shard; it finds them and finishes.
    """
    from covector.atlas.build import Shard
    from covector.atlas.plan import Options
    from covector.building import build_atlas, example, said
    from covector.cli.progress import Progress

    start = time.perf_counter()
    progress = Progress(quiet)
    try:
        built = build_atlas(
            model,
            out,
            frame=frame,
            layout=layout,
            options=Options(tuple(kinds.replace(" ", "").split(",")), rank, k, draws, seed, scores, rotations),
            on=engine,
            workers=workers,
            memory=None if memory is None else _bytes(memory),
            shard=Shard(*_shard(shard)),
            device=device,
            progress=progress,
        )
    except KeyboardInterrupt:
        progress.close()
        sys.stderr.write("covector: interrupted; the same command goes on where it stopped\n")
        sys.stderr.flush()
        os._exit(130)  # threads that are in the middle of a part need not be waited for: parts are whole or not there
    progress.close()
    if quiet:
        return
    if built is None:
        sys.stdout.write(f"shard {shard} of {out} is done; parts of other shards are missing, the last one assembles\n")
        return
    sites = len(built.sites)
    size = sum(f.stat().st_size for f in built.folder.iterdir()) / 2**20
    told = f"{len(built):,} directions of {sites} sites, {size:.1f} MiB, {time.perf_counter() - start:.1f} s"
    if progress.begun is None:  # nothing was left to do
        recorded = "its files are what was built" if "files" in built.manifest else "it has no digests of its files"
        told = f"complete already, {recorded}: {told}"
    sys.stdout.write(
        f"{out}: {told}\n{_wrapped(said(built))}next: covector search {shlex.quote(str(out))} {example(built)}\n"
    )


def _wrapped(text: str) -> str:
    """Lines no wider than the terminal, or 120 letters where it is none."""
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns) if sys.stdout.isatty() else WIDEST
    lines = (textwrap.wrap(line, max(width, 40), break_long_words=False) for line in text.splitlines())
    return "".join(f"{piece}\n" for line in lines for piece in line)


def _bytes(text: str) -> int:
    """Bytes in ``4GiB``, ``500M``, ``1.5 GB``; all units are powers of 1024."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if not found:
        raise BadRequest(f"--memory: expected a size such as 4GiB or 500MiB, got '{text}'")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found:
        raise BadRequest(f"--shard: expected a share such as 3/8, got '{text}'")
    return int(found[1]), int(found[2])
