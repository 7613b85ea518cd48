"""How commands and Python name what is shown: made once, here, for every view and for the report."""

import shlex
from collections.abc import Mapping
from typing import Any


def typed(value: str) -> str:
    """One word of a shell line, in double quotes where that reads better."""
    if shlex.quote(value) == value:
        return value
    return shlex.quote(value) if set(value) & set('"$`\\!') else f'"{value}"'


def opening(manifest: Mapping[str, Any]) -> str:
    """The expression that opens the model of an atlas, in the frame that the atlas was built in."""
    ref, _, layout = str(manifest["reference"]).partition(" --layout ")
    frame = str(manifest["meta"]["frame"])
    ref, layout = ("".join(shlex.split(text)) for text in (ref, layout))
    more = (f", {layout!r}" if layout else "") + (f", frame={frame!r}" if frame != "raw" else "")
    return f"covector.open({ref!r}{more})"


def names(shown: str, folder: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    """``shown`` and ``atlas`` as words of a shell line, ``folder`` as a Python text, ``model`` as an expression.

    `shown`: what was typed, an atlas or a model; `folder`: the atlas, which some commands need.
    """
    return {"shown": typed(shown), "atlas": typed(folder), "folder": repr(folder), "model": opening(manifest)}
