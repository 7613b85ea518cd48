"""`covector study`: the questions of the literature, by name, asked of atlases."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import Json, Out, Plot, Quiet, Seed
from covector.errors import BadRequest


def study(
    name: Annotated[str | None, typer.Argument(help="Which study; without it all are listed.")] = None,
    atlases: Annotated[list[Path] | None, typer.Argument(help="Atlas folders (width takes several).")] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Where frames keeps the atlases it builds (beside the atlas)."),
    ] = None,
    without_model: Annotated[
        bool, typer.Option("--without-model", help="From the atlas alone; what needs the checkpoint is left out.")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """A named question with its design and null: are heads more interpretable than MLPs, is the SVD basis special, …

    covector study alone lists them. Each takes an atlas (covector atlas MODEL --out FOLDER).
    """
    from covector.analyses.studies import study_of
    from covector.cli.output import emit

    start = time.perf_counter()
    if name is None:
        table = listed()
    else:
        found, given = study_of(name), list(atlases or ())
        if not given or (len(given) > 1 and found.needs != "atlases"):
            wanted = "atlas folders" if found.needs == "atlases" else "one atlas folder"
            raise BadRequest(
                f"study {name}: expected {wanted}, got {len(given)}; covector atlas MODEL --out FOLDER builds one"
            )
        options = {"seed": seed} if found.seeded else {}
        table = found.function(*_given(found.needs, given, cache, without_model, quiet), **options)
    seconds = time.perf_counter() - start
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=seconds)


def listed():
    """The studies with their questions, as a table."""
    from covector.analyses.studies import studies
    from covector.render import Column, Table

    known = list(studies().values())
    return Table(
        columns=[
            Column("study", [s.name for s in known]),
            Column("takes", [{"atlases": "atlases", "frames": "an atlas"}.get(s.needs, "an atlas") for s in known]),
            Column("question", [s.question for s in known]),
        ],
        meta={"analysis": "studies"},
        title=f"{len(known)} studies of atlases",
        next="covector study kinds FOLDER",
        key=("study",),
        lines=_line,
    )


def _line(row: dict, width: int) -> str:
    return f"{row['study']:<10} {row['question']}"[:width]


def _given(needs: str, folders: list[Path], cache: Path | None, without_model: bool, quiet: bool) -> list:
    """What a study's function is called with."""
    from covector.atlases import model_of, open_atlas

    opened = [open_atlas(folder.expanduser()) for folder in folders]
    if needs == "atlases":
        return [opened]
    if needs == "frames":
        return [opened[0], _maker(opened[0], cache, quiet)]
    return [opened[0]] if needs == "atlas" or without_model else [opened[0], model_of(opened[0])]


def _maker(atlas, cache: Path | None, quiet: bool):
    """Opens the atlas of another frame in the cache folder, or builds it there with the options of this one."""
    from covector.atlas.plan import Options
    from covector.atlases import model_of
    from covector.building import build_atlas
    from covector.cli.progress import Progress

    model, given = model_of(atlas), atlas.manifest["options"]
    options = Options(**{**given, "kinds": tuple(given["kinds"])})
    folder = cache or atlas.folder.with_name(f"{atlas.folder.name}.frames")

    def made(frame: str):
        progress = Progress(quiet)
        try:
            return build_atlas(model.framed(frame), folder / frame, options=options, progress=progress)
        finally:
            progress.close()

    return made
