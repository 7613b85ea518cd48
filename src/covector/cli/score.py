"""`covector score`: what the token lists of directions score beside chance, and what the written rule says of them."""

import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from covector.cli.options import FrameName, Json, Layout, Out, Plot, Quiet, Seed
from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.analyses.labels import Labeller


def score(
    model: Annotated[str, typer.Argument(help="An atlas, or hub name, local folder, demo-lm.")],
    place: Annotated[
        str | None, typer.Argument(help="L22H10, L3.mlp.out:0-4; of an atlas, without it: what it calls interpretable.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Plain text, UTF-8, that NPMI is counted in.")
    ] = None,
    labeller: Annotated[
        str | None,
        typer.Option("--labeller", metavar="MODULE:FUNCTION", help="Names lists: takes words, returns a name or ''."),
    ] = None,
    most: Annotated[int, typer.Option("--characters", help="Read so much of the text at most.")] = 1_000_000,
    rank: Annotated[int, typer.Option("--rank", help="How many dyads, or directions of an atlas.")] = 10,
    draws: Annotated[int, typer.Option("--draws", help="Random directions per basis; they set the levels.")] = 2000,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    quiet: Quiet = False,
) -> None:
    """Token lists scored beside chance: coherence, held-out detection, intruders, spelling, a corpus, a labeller."""
    from covector.cli.output import emit
    from covector.scoring import score as scored

    start = time.perf_counter()
    table = scored(
        model,
        place,
        rank=rank,
        corpus=None if text is None else _text(text, most),
        labeller=None if labeller is None else _labeller(labeller),
        layout=layout,
        frame=frame,
        draws=draws,
        seed=seed,
    )
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)


def _text(path: Path, most: int) -> str:
    if most < 1:
        raise BadRequest(f"--characters: expected at least 1, got {most}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            return file.read(most)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--text: expected a UTF-8 text file at '{path}', got: {error}; check the path") from error


def _labeller(words: str) -> "Labeller":
    """The function that ``module:function`` names, looked for in the folder we are in too. Raises BadRequest."""
    module, _, name = words.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadRequest(f"--labeller: expected module:function, got '{words}': {error}; check the name") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise BadRequest(f"--labeller: expected '{words}' to be a function, it is {type(found).__name__}")

    def named(listed: Sequence[str]) -> str:
        try:
            return cast(str, found(listed))  # labelled refuses what is no text
        except Exception as error:
            raise BadRequest(f"--labeller {words}: it failed with {type(error).__name__}: {error}; mend it") from error

    named.__name__ = words
    return named
