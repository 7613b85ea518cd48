"""`covector study`: the questions of the literature, by name, asked of atlases."""

import time
from pathlib import Path
from typing import Annotated

import typer

from covector.cli import study_options as of
from covector.cli.options import Json, Out, Plot, Quiet, RunDevice
from covector.errors import BadRequest, MissingExtra, in_words


def study(
    name: Annotated[str | None, typer.Argument(help="Which study; without it all are listed.")] = None,
    atlases: Annotated[
        list[str] | None,
        typer.Argument(help="Folders that covector atlas has made, or models (width and size take several)."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Where atlases of frames are kept (frames): beside the atlas."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Plain text (activations, frequency), UTF-8.")
    ] = None,
    without_model: Annotated[
        bool, typer.Option("--without-model", help="From the atlas alone; what needs the checkpoint is left out.")
    ] = False,
    kinds: of.Kinds = None,
    cosine: of.Cosine = None,
    rule: of.Rule = None,
    leading: of.Leading = None,
    number: of.Number = None,
    windows: of.Windows = None,
    sites: of.Sites = None,
    bases: of.Bases = None,
    frames: of.Frames = None,
    path: of.Path = None,
    k: of.Labels = None,
    rotations: of.Rotations = None,
    draws: of.Draws = None,
    seed: of.Seed = None,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    quiet: Quiet = False,
) -> None:
    """A named question with its design and null: are heads more interpretable than MLPs, is the SVD basis special, …

    covector study alone lists them. Each takes an atlas, or a model: its atlas is built first, in the cache.
    """
    from covector.analyses.studies import study_of
    from covector.cli.opening import as_typed, atlas_of, check_device
    from covector.cli.output import emit, refuse_plot

    start = time.perf_counter()
    check_device(device)
    typed = {
        "kinds": kinds, "cosine": cosine, "rule": rule, "leading": leading, "number": number, "windows": windows,
        "sites": sites, "bases": bases, "frames": frames, "path": path, "-k": k, "rotations": rotations,
        "draws": draws, "seed": seed, "text": text, "cache": cache, "without_model": without_model,
        "device": None if device == "cpu" else device,
    }  # fmt: skip
    if name is None:
        of.refuse_alone(typed)
        refuse_plot(plot, "the list of studies")
        table = listed()
    else:
        found, refs = study_of(name), list(atlases or ())
        _check(name, found.needs, len(refs))
        options = of.keywords(found, typed, len(refs))
        words = _text(name, found.needs, text)
        folders = [atlas_of(ref, quiet=quiet) for ref in refs]
        table = found.function(*_given(found.needs, folders, cache, words, without_model, quiet, device), **options)
        for folder, ref in zip(folders, refs, strict=True):
            table = as_typed(table, folder, ref)
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
        next="covector study kinds MODEL",
        key=("study",),
        lines=_line,
    )


def _line(row: dict, width: int) -> str:
    from covector.render.labels import clip

    return clip(f"{row['study']:<12} {row['question']}", width)


def _check(name: str, needs: str, atlases: int) -> None:
    """Raise BadRequest unless a study gets as many atlases as it takes."""
    several = needs in ("atlases", "sizes")
    if (not atlases and needs != "toy") or (atlases > 1 and not several):
        wanted = "atlas folders or models" if several else "one atlas folder or model"
        raise BadRequest(
            f"study {name}: expected {wanted}, got {atlases}; covector atlas MODEL --out FOLDER builds one"
        )


def _text(name: str, needs: str, path: Path | None) -> str | None:
    """The text of a study that reads one. Raises BadRequest or MissingExtra, before any atlas is built."""
    if path is None and needs == "text":
        raise BadRequest(f"study {name}: expected --text FILE, the text to run, got none; any plain text will do")
    if needs == "text":
        _along()
    return None if path is None else _read(path)


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

    opened = [open_atlas(folder) for folder in folders]
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
    along = _along()
    return lambda hooks: along(model, text, hooks)


def _along():
    """What runs a model along a text. Raises MissingExtra without torch."""
    import os

    # Idle torch threads that spin make everything twenty times slower where another program uses the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from covector.run.along import along
    except ImportError as error:
        raise MissingExtra(
            f"study activations runs the model: expected torch, {error.name} is missing; pip install 'covector[run]'"
        ) from error
    return along


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
