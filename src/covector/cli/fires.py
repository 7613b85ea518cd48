"""`covector fires`: where in a text a dyad or a vector is active."""

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covector.cli.options import FrameName, Json, Layout, Out, Plot, Quiet, RunDevice, Seed

if TYPE_CHECKING:
    import numpy as np

    from covector.study.feature import Feature

# Hook points whose vectors are not of the stream: no direction of an atlas is like them.
_OF_NEURONS = ("gate", "mlp_pre", "mlp_post")


def fires(
    model: Annotated[str, typer.Argument(help="Hub name, local folder, demo-lm, or an atlas.")],
    place: Annotated[str, typer.Argument(help="A dyad (L22H10:1, L3.mlp.in:0); with --vector a hook (L5.resid_post).")],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="Plain text to run, UTF-8.")],
    side: Annotated[
        str, typer.Option("--side", help="read: what drives it; write: what it adds; query, key for QK.")
    ] = "read",
    vector: Annotated[
        Path | None, typer.Option("--vector", metavar="FILE", help="safetensors with a vector, instead of a dyad.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Passages per pole.")] = 10,
    most: Annotated[int, typer.Option("--characters", help="Read so much of the text at most.")] = 1_000_000,
    draws: Annotated[int, typer.Option("--draws", help="Random directions run beside it.")] = 100,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE.html", help="Passages with coloured tokens as a page.")
    ] = None,
    frame: FrameName = "raw",
    layout: Layout = None,
    seed: Seed = 0,
    json: Json = False,
    out: Out = None,
    plot: Plot = None,
    device: RunDevice = "cpu",
    quiet: Quiet = False,
) -> None:
    """The passages of a text that drive a direction most, at both poles, beside random directions of the same space."""
    from covector.atlases import fired
    from covector.cli.opening import check_device
    from covector.cli.output import emit
    from covector.errors import BadRequest, in_words
    from covector.io.atomic import written
    from covector.render.passages import passages_page

    start = time.perf_counter()
    check_device(device)
    if most < 1:
        raise BadRequest(f"--characters: expected at least 1, got {most}")
    if page is not None and page.suffix != ".html":
        raise BadRequest(f"--page: expected a file name that ends in .html, got '{page.name}'")
    try:
        with text.open(encoding="utf-8-sig") as file:
            words = file.read(most)
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(
            f"--text: expected a UTF-8 text file at '{text}', got: {in_words(error)}; check the path"
        ) from error
    given = None if vector is None else _vector(vector)
    table = fired(
        model,
        place,
        words,
        layout=layout,
        frame=frame,
        device=device,
        side=side,
        vector=given,
        top=top,
        draws=draws,
        seed=seed,
    )
    if vector is not None and place.rpartition(".")[2] not in _OF_NEURONS:
        words = f"covector search {shlex.quote(model)} --vector {shlex.quote(str(vector))}"
        table = dataclasses.replace(table, next=words)
    if page is not None:
        with written(page) as beside:
            beside.write_text(passages_page(table), encoding="utf-8")
        sys.stderr.write(f"written: {page}\n")
    emit(table, as_json=json, out=out, plot=plot, quiet=quiet, seconds=time.perf_counter() - start)


def _vector(path: Path) -> "Feature | np.ndarray":
    """What a file holds: a feature that knows its observable, or the bare vector."""
    from covector.io.feature_file import load_feature, vector_in

    rows = vector_in(path)
    feature = load_feature(path) if rows.ndim == 1 else None
    return feature if feature is not None and feature.observable else rows
