"""The workbench: opens a model and hands its parts to analyses; what Python users and the faces call.

model = covector.open("gpt2")
model.spec, model.bases["token_out"], model.map("L9H6.ov")
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.config import Config
from covector.arch.family import family_of
from covector.errors import UnsupportedConfig, UnsupportedFamily
from covector.io.checkpoint import Checkpoint, open_checkpoint
from covector.model.frames import Frame
from covector.model.opened import Model


def open(ref: Any, layout: str | Path | None = None, *, frame: str = "raw", strict: bool = False) -> Model:
    """Open a model without building it: tensors are read one by one, when they are asked for.

    `ref`: a hub name (``gpt2``, ``name@revision``), a local folder, ``demo-lm``, a transformers or a TransformerLens
    model in memory. `layout`: the ``layout.toml`` of a home-made model (default: the one beside the weights). `strict`
    refuses configuration keys that no adapter knows.

    Raises UnknownModel, HubUnreachable, UnsupportedFamily, UnsupportedConfig, CheckpointMismatch, CorruptCheckpoint,
    UnsafeCheckpoint, UnknownFrame, FrameUnavailable.
    """
    checkpoint = open_checkpoint(ref, layout)
    model = _declared(checkpoint) if checkpoint.layout else _known(checkpoint, strict)
    return model if frame == "raw" else model.framed(frame)


def _known(checkpoint: Checkpoint, strict: bool) -> Model:
    """A model of a family that has an adapter."""
    config = Config(checkpoint.config, f"{checkpoint.where}/config.json")
    kind = checkpoint.config.get("model_type")
    if not kind:
        raise UnsupportedFamily(
            f"{checkpoint.where}: expected a config.json with a model_type, it has none; a home-made transformer opens "
            "with a layout.toml beside its weights"
        )
    family = family_of(str(kind), checkpoint.where)
    spec, tensors = family.spec(config), family.tensors(config)
    unknown = config.unknown()
    if strict and unknown:
        raise UnsupportedConfig(
            f"{config.where}: --strict expects known keys only, these are unknown: {', '.join(unknown)}; "
            "leave --strict out if they do not change the function"
        )
    weights = adapt(spec, tensors, checkpoint.tensors, prefixes=family.prefixes, ignored=family.ignored)
    labels = {"token": checkpoint.vocabulary.labels} if checkpoint.vocabulary else {}
    return _opened(checkpoint, weights, labels, {"unknown_keys": list(unknown)} if unknown else {})


def _opened(
    checkpoint: Checkpoint, weights: AdaptedWeights, labels: Mapping[str, tuple[str, ...]], more: Mapping[str, Any]
) -> Model:
    identity = {
        "revision": checkpoint.revision or None,
        "files": dict(checkpoint.tensors.headers),
        "flags": dict(checkpoint.flags) or None,
        "versions": versions(),
        **more,
    }
    return Model(checkpoint.name, weights, weights, Frame(), labels, checkpoint.vocabulary, identity)


def _declared(checkpoint: Checkpoint) -> Model:
    raise NotImplementedError(checkpoint)


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"covector": own_version(), "numpy": np.__version__}


def own_version() -> str:
    """covector's version, from the installed package."""
    try:
        return version("covector")
    except PackageNotFoundError:
        return "not installed"
