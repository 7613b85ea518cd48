"""`covector study`: the questions of the literature, by name, asked of atlases."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli.options import Json, Out, Plot, Quiet, RunDevice, Seed
from covector.errors import BadRequest, MissingExtra, in_words


def study(
    name: Annotated[str | None, typer.Argument(help="Which study; without it all are listed.")] = None,
    atlases: Annotated[list[Path] | None, typer.Argument(help="Atlas folders (width and size take several).")] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Where frames keeps the atlases it builds (beside the atlas)."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Plain text (activations, frequency), UTF-8.")
    ] = None,
    without_model: Annotated[
        bool, typer.Option("--without-model", help="From the atlas alone; what needs the checkpoint is left out.")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    quiet: Quiet = False,
) -> None:
    """A named question with its design and null: are heads more interpretable than MLPs, is the SVD basis special, …

    covector study alone lists them. Each takes an atlas (covector atlas MODEL --out FOLDER).
    """
    from covector.analyses.studies import study_of
    from covector.cli.opening import check_device
    from covector.cli.output import emit, refuse_plot

    start = time.perf_counter()
    check_device(device)
    if name is None:
        refuse_plot(plot, "the list of studies")
        table = listed()
    else:
        found, given = study_of(name), list(atlases or ())
        _check(name, found.needs, len(given), text is not None)
        words = None if text is None else _read(text)
        options = {"seed": seed} if found.seeded else {}
        table = found.function(*_given(found.needs, given, cache, words, without_model, quiet, device), **options)
    seconds = time.perf_counter() - start
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=seconds)


def listed():
    """The studies with their questions, as a table."""
    from covector.analyses.studies import studies
    from covector.analyses.studies.study import NEEDS
    from covector.render import Column, Table

    known = list(studies().values())
    return Table(
        columns=[
            Column("study", [s.name for s in known]),
            Column("takes", [NEEDS[s.needs] for s in known]),
            Column("question", [s.question for s in known]),
        ],
        meta={"analysis": "studies"},
        title=f"{len(known)} studies of atlases",
        next="covector study kinds FOLDER",
        key=("study",),
        lines=_line,
    )


def _line(row: dict, width: int) -> str:
    from covector.render.labels import clip

    return clip(f"{row['study']:<12} {row['question']}", width)


def _check(name: str, needs: str, folders: int, has_text: bool) -> None:
    """Raise BadRequest unless a study gets as many atlases as it takes, and a text where it reads one."""
    several = needs in ("atlases", "sizes")
    if (not folders and needs != "toy") or (folders > 1 and not several):
        wanted = "atlas folders" if several else "one atlas folder"
        raise BadRequest(
            f"study {name}: expected {wanted}, got {folders}; covector atlas MODEL --out FOLDER builds one"
        )
    if has_text and needs not in ("text", "counts"):
        raise BadRequest(f"study {name}: expected no --text, it reads none; leave it out")
    if not has_text and needs == "text":
        raise BadRequest(f"study {name}: expected --text FILE, the text to run, got none; any plain text will do")


def _read(path: Path) -> str:
    """The first million characters of a text file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(1_000_000)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(
            f"--text: expected a UTF-8 text file at '{path}', got: {in_words(error)}; check the path"
        ) from error


def _given(
    needs: str, folders: list[Path], cache: Path | None, text: str | None, without_model: bool, quiet: bool, device: str
) -> list:
    """What a study's function is called with."""
    from covector.atlases import model_of, open_atlas

    opened = [open_atlas(folder.expanduser()) for folder in folders]
    if needs == "atlases":
        return [opened]
    if needs == "sizes":
        return [opened, [_parameters(model_of(atlas)) for atlas in opened]]
    if needs == "frames":
        return [opened[0], _maker(opened[0], cache, quiet)]
    if not opened or needs == "atlas" or (needs == "model" and without_model):
        return opened
    model = model_of(opened[0])
    if needs == "text":
        return [opened[0], model, _passed(model if device == "cpu" else model.on(device), text or "")]
    return [opened[0], model, *([_counts(model, text)] if needs == "counts" else [])]


def _parameters(model) -> int:
    """How many numbers a checkpoint's tensors hold (a tied table once)."""
    tied = {"W_U"} if model.stored.spec.tied else set()
    return sum(model.stored[name].size for name in model.stored.names() if name not in tied)


def _counts(model, text: str | None):
    """How often each token occurs in the text; None without one."""
    if text is None:
        return None
    import numpy as np

    from covector.run.text import text_ids

    return np.bincount(text_ids(model, text), minlength=model.spec.n_vocab)


def _passed(model, text: str):
    """Gives what passes hook points along the text."""
    import os

    # Idle torch threads that spin make everything twenty times slower where another program uses the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from covector.run.along import along
    except ImportError as error:
        raise MissingExtra(
            f"study activations runs the model: expected torch, {error.name} is missing; pip install 'covector[run]'"
        ) from error
    return lambda hooks: along(model, text, hooks)


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
