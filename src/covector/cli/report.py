"""`covector report`: the explorer of an atlas as one file that opens from disk."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import Quiet
from covector.errors import BadRequest


def report(
    atlas: Annotated[str, typer.Argument(help="An atlas folder; or a model, whose atlas is then built first.")],
    other: Annotated[Path | None, typer.Argument(help="A second atlas folder, to compare with.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")] = Path("report.html"),
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="DIR", help="A folder that a command wrote with --out; repeatable."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Put the explorer of an atlas into one HTML file: it opens from disk, offline, can be sent and printed.

    Places, directions, concepts and a comparison are live; observables, edits, steering and agents show the results
    that --results names, with the commands that made them.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise BadRequest(f"--out: expected a file that ends in .html, got '{out.name}'")
    from covector.building import build_atlas
    from covector.cli.progress import Progress
    from covector.io.atlas import Atlas
    from covector.io.atomic import written
    from covector.web.bundle import Bundle
    from covector.web.report import report as written_report
    from covector.web.shown import Shown

    shown = Shown(atlas, None if other is None else str(other))
    if not shown.is_built:
        shown.folder.parent.mkdir(parents=True, exist_ok=True)
        with Progress(quiet) as progress:
            build_atlas(atlas, shown.folder, progress=progress)
    second = None if other is None else Bundle(Atlas(other))
    made = written_report(Bundle(Atlas(shown.folder)), atlas, other=second, results=results or [])
    with written(out) as beside:
        beside.write_bytes(made.content)
    if quiet:
        return
    told = " · ".join(f"{name} {size / 1e6:.2f}" for name, size in made.sizes.items() if size >= 5e3)
    words = ["covector", "view", atlas, *([] if other is None else [str(other)])]
    sys.stdout.write(
        f"{out}: {len(made.content) / 1e6:.1f} MB ({told}); it opens from disk and loads nothing\n"
        f"next: {shlex.join(words)}\n"
    )
