"""Changes between models as people ask for them: two checkpoints, or a model and an adapter's folder.

base = covector.open("gpt2")
covector.diff(base, covector.open("finetuned/")).show()
covector.diff(base, covector.adapted(base, "lora/")).show()
"""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from covector.arch.adapter import AdaptedWeights
from covector.errors import BadRequest
from covector.io.lora import Adapted, is_adapter, read_lora
from covector.model.change import ChangeModel
from covector.model.change import change as change_between
from covector.model.opened import Model
from covector.workbench import open as open_model


def adapted(base: Model, folder: str | Path) -> Model:
    """The model with the LoRA adapter of a folder (PEFT layout) added, tensor by tensor as they are asked for.

    Exact: the sums are float64. Raises BadRequest for a model that was not read from a checkpoint, and what
    `covector.io.lora.read_lora` raises.
    """
    stored = base.stored
    if not isinstance(stored, AdaptedWeights):
        raise BadRequest(
            f"{base.name}: expected a model read from a checkpoint as an adapter's base, got one in memory"
        )
    lora = read_lora(folder)
    weights = dataclasses.replace(stored, source=Adapted(stored.source, lora))
    identity = {
        **base.identity,
        "files": {**dict(base.identity.get("files") or {}), "adapter_model.safetensors": lora.header},
        "adapter": {"folder": str(folder), "rank": lora.rank, "scale": lora.scale, "base": lora.base or None},
    }
    name = str(folder)
    opened = Model(name, weights, weights, labels=base.labels, vocabulary=base.vocabulary, identity=identity)
    return opened if base.frame.name == "raw" else opened.framed(base.frame)


def changed(base: Model, other: Any, layout: str | Path | None = None) -> ChangeModel:
    """The change from a model to another one, opened if it is not: a checkpoint, or an adapter's folder.

    Raises what `covector.open`, `adapted` and `covector.model.change.change` raise.
    """
    if is_adapter(other):
        return change_between(base, adapted(base, other), exact=True)
    opened = other if isinstance(other, Model) else open_model(other, layout, frame=str(base.frame))
    return change_between(base, opened, exact="adapter" in opened.identity)


def reopened(base: Model, words: str) -> ChangeModel:
    """The change to what `words` (of a recorded result) open."""
    ref, _, layout = words.partition(" --layout ")
    one, two = ("".join(shlex.split(text)) for text in (ref, layout))
    return changed(base, one, two or None)
