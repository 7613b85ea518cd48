"""Where a result goes: the terminal, standard output as JSON, a folder, a picture."""

import dataclasses
import json
import sys
from pathlib import Path

from covector.cli.retyped import TYPED, retyped
from covector.errors import BadRequest
from covector.render import Table
from covector.render.files import write_beside
from covector.render.picture_data import picture_data

# Options that say where a result goes and how it is shown: the same command without them gives the same result.
_WHERE, _HOW = ("--out", "--plot"), ("--json", "-q", "--quiet")


def emit(
    table: Table,
    *,
    as_json: bool,
    out: Path | None,
    plot: Path | None,
    quiet: bool,
    seconds: float | None = None,
    top: int | None = None,
) -> None:
    """Show a table the way that the options ask for, and write it where they say.

    `top`: rows on the screen; files and JSON have all of them.
    """
    write(table, out=out, plot=plot)
    if as_json:
        sys.stdout.write(table.to_json() + "\n")
        return
    timed = f"{table.title} · {seconds:.2f} s" if seconds is not None else table.title
    shown = dataclasses.replace(table if top is None else table.head(top), title=timed)
    if quiet:
        shown = dataclasses.replace(shown, says="", not_says="", next="")
    shown.show()


def refuse_plot(plot: Path | None, what: str) -> None:
    """Raise BadRequest, before anything is computed, where a picture is asked of what has none."""
    if plot is not None:
        raise BadRequest(f"--plot: {what} has no picture; leave --plot out")


def write(table: Table, *, out: Path | None, plot: Path | None) -> None:
    """Draw and save what the options name, and say so on standard error. Files are written beside and renamed."""
    if out is not None:
        save(table, out)
    if plot is not None:
        table.plot(plot)
    for path in (p for p in (out, plot) if p is not None):
        sys.stderr.write(f"written: {path}\n")


def save(table: Table, folder: Path) -> None:
    """JSON and Parquet of a table in a folder, which is made if need be; the values of its picture beside them.

    ``meta["command"]`` tells what was typed, without where it went and how it was shown.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(
            f"--out: expected a folder that can be made at '{folder}', got {error.strerror}; name another"
        ) from error
    name = str(table.meta.get("analysis", "result"))
    if TYPED.get():
        typed = retyped(without=_WHERE, flags=_HOW)
        table = dataclasses.replace(table, meta={**table.meta, "command": typed}, picture=table.drawn)
    table.save(folder / f"{name}.json")
    table.save(folder / f"{name}.parquet")
    drawn = table.drawn
    if drawn is not None:
        text = json.dumps(picture_data(drawn), ensure_ascii=False, allow_nan=False)
        write_beside(folder / f"{name}.picture.json", text.encode())
