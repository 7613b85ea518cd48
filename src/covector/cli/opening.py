"""What a command's first argument opens: a model, or the model of an atlas."""

import dataclasses
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.model.opened import Model
    from covector.render import Table


def opened(
    ref: str,
    layout: Path | None = None,
    *,
    frame: str = "raw",
    strict: bool = False,
    device: str = "cpu",
    dtype: str = "float64",
) -> "Model":
    """The model that `ref` names; of an atlas folder the model that it was built from, in the atlas' frame.

    `device` and `dtype` are how it will run; a device that cannot be had is refused before anything is read.
    Raises what `covector.workbench.open` and `covector.atlases.model_of` raise: the checkpoint is gone, or is another;
    BadRequest for the device.
    """
    check_device(device, dtype)
    found = _opened(ref, layout, frame, strict)
    return found if device == "cpu" else found.on(device)


def atlas_of(ref: str, *, quiet: bool = False) -> Path:
    """The folder of an atlas: the one that `ref` names; of a model its own in the cache, built first where need be.

    What is built is what ``covector atlas MODEL`` and ``covector view MODEL`` build; Ctrl-C and the same command again
    goes on. Raises BadRequest for what is neither an atlas nor a model that opens, and what
    `covector.building.build_atlas` raises.
    """
    folder = Path(ref).expanduser()
    if (folder / "manifest.json").is_file() or ref.endswith(".atlas"):
        return folder
    from covector.errors import CovectorError
    from covector.io.atlas import Atlas
    from covector.io.cache import atlas_folder
    from covector.workbench import open as open_model

    try:
        model, kept = open_model(ref), atlas_folder(ref)
    except CovectorError as error:
        raise BadRequest(f"no atlas at '{ref}', and as a model: {error}") from error
    try:
        if dict(Atlas(kept).manifest["meta"].get("files") or {}) == dict(model.meta.get("files") or {}):
            return kept
    except CovectorError:
        if not quiet:
            sys.stderr.write(f"the atlas of {ref} is built first, once: {kept}\n")
    _build(model, kept, quiet)
    return kept


def _build(model: "Model", kept: Path, quiet: bool) -> None:
    from covector.building import build_atlas
    from covector.cli.progress import Progress

    progress = Progress(quiet)
    try:
        build_atlas(model, kept, progress=progress)
    except BadRequest as error:
        raise BadRequest(f"{error} (it is the cache's own: remove the folder, and it is built again)") from error
    except KeyboardInterrupt:
        progress.close()
        sys.stderr.write("covector: interrupted; the same command goes on where it stopped\n")
        sys.stderr.flush()
        os._exit(130)  # threads that are in the middle of a part need not be waited for: parts are whole or not there
    progress.close()


def as_typed(table: "Table", folder: Path, ref: str) -> "Table":
    """The table with the atlas in its next command named as it was typed, not by its folder in the cache."""
    whole = rf"(?<!\S){re.escape(shlex.quote(str(folder)))}(?!\S)"
    return dataclasses.replace(table, next=re.sub(whole, lambda _: shlex.quote(ref), table.next))


def as_agent(model: "Model", path: Path | None) -> "Model":
    """The model with the names, and the untrained heads, of an agent file; as it is without one.

    The file goes into the commands that results propose. Raises BadAgent.
    """
    if path is None:
        return model
    from covector.io.agent_file import read_agent
    from covector.study.agent import state_labels

    found = read_agent(path)
    given = {"state": state_labels(found), "action": found.actions}
    labels = {name: names for name, names in given.items() if names and name not in model.labels}
    untrained = {"untrained": list(found.untrained)} if found.untrained else {}
    return dataclasses.replace(
        model,
        labels={**model.labels, **labels},
        identity={**model.identity, **untrained},
        typed=f"{model.words} --agent {shlex.quote(str(path))}",
    )


def runner_of(runner: str, ref: str, layout: Path | None, *, dtype: str = "float64", device: str = "cpu"):
    """None for ``decoder``, or the transformers runner of a model. Raises BadRequest for another name, or an atlas."""
    if runner not in ("decoder", "transformers"):
        raise BadRequest(f"--runner: expected decoder or transformers, got '{runner}'")
    if runner == "decoder":
        return None
    if (Path(ref).expanduser() / "manifest.json").is_file():
        raise BadRequest(f"--runner transformers: expected a model, got the atlas {ref}; name its checkpoint")
    from covector.workbench import transformers_runner

    return transformers_runner(ref, layout, dtype=dtype, device=device)


def check_device(device: str, dtype: str = "float64") -> None:
    """Raise BadRequest for a device that is not there; torch is asked where it is not the CPU."""
    if device == "cpu":
        return
    from covector.run.device import placed

    placed(device, dtype)


def _opened(ref: str, layout: Path | None, frame: str, strict: bool) -> "Model":
    folder = Path(ref).expanduser()
    if (folder / "manifest.json").is_file():
        from covector.atlases import model_of, open_atlas

        model = model_of(open_atlas(folder))
        return model if frame in ("raw", str(model.frame)) else model.framed(frame)
    from covector.workbench import open as open_model

    return open_model(ref, layout, frame=frame, strict=strict)
