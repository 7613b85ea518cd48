"""What a reference opens: a folder, a bundled model, a hub name, or a model that is already in memory.

A checkpoint is its configuration, its tensors, its vocabulary, and its identity. Nothing of it is executed, and nothing
is read before it is asked for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from covector.demo import DEMO_DT, DEMO_LM
from covector.errors import CorruptCheckpoint, UnknownModel
from covector.io.hub import resolve
from covector.io.tensors import StateDictTensors, TensorSource, open_folder
from covector.io.vocabulary import Vocabulary, read_vocabulary

BUNDLED = {"demo-lm": DEMO_LM, "demo-dt": DEMO_DT}


@dataclass(frozen=True)
class Checkpoint:
    """One opened reference. ``layout`` is the declaration to read it by, when there is one."""

    name: str
    tensors: TensorSource
    config: Mapping[str, Any]
    folder: Path | None = None
    revision: str = ""
    layout: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Its tokens as text, or None."""
        return read_vocabulary(self.folder) if self.folder else None

    @property
    def where(self) -> str:
        """How errors name it."""
        return self.name


def open_checkpoint(ref: Any, layout: str | Path | None = None) -> Checkpoint:
    """Open a reference: bundled name, local folder, hub name (``name@revision``), or a model in memory.

    `layout` (or a ``layout.toml`` beside the weights) declares a home-made model. Raises UnknownModel, HubUnreachable,
    CorruptCheckpoint.
    """
    if not isinstance(ref, str | Path):
        return _in_memory(ref)
    name, revision = str(ref), ""
    if name in BUNDLED:
        folder = BUNDLED[name]
    elif name and Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
    elif _looks_local(name):
        raise UnknownModel(
            f"expected a folder with a checkpoint, there is none at '{name}'; give a folder that holds config.json and "
            f"*.safetensors, a hub name such as gpt2, or a bundled model ({', '.join(BUNDLED)})"
        )
    else:
        found = resolve(name)
        folder, name, revision = found.folder, found.name, found.commit
    return Checkpoint(name, open_folder(folder), _config(folder), folder, revision, _layout(folder, layout))


def _layout(folder: Path, given: str | Path | None) -> Path | None:
    if given is None:
        beside = folder / "layout.toml"
        return beside if beside.exists() else None
    path = Path(given)
    if not path.is_file():
        raise UnknownModel(f"expected a layout file at '{path}', there is none; give the path of a layout.toml")
    return path


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{path}: expected a JSON object, it does not parse ({error}); fetch it again"
        ) from error
    if not isinstance(values, dict):
        raise CorruptCheckpoint(f"{path}: expected a JSON object, got {type(values).__name__}; fetch it again")
    return values


def _looks_local(name: str) -> bool:
    """Whether a text can only be meant as a path: hub names have at most one slash and no dots in front."""
    return name.startswith(("/", "./", "../", "~", ".")) or name.count("/") > 1 or name.endswith("/")


def _in_memory(model: Any) -> Checkpoint:
    """A transformers model (``.config``) or a TransformerLens model (``.cfg``), recognised by what they carry."""
    if hasattr(model, "cfg") and hasattr(model, "tl_parameters"):
        return _bridge(model)
    if hasattr(model, "cfg") and hasattr(model, "state_dict"):
        # The last norm's class, because cfg.final_rms does not say what folding has put there.
        last = {"ln_final": type(model.ln_final).__name__} if hasattr(model, "ln_final") else {}
        return _transformer_lens(model, model.state_dict(), vars(model.cfg) | last)
    if hasattr(model, "config") and hasattr(model, "state_dict"):
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        return Checkpoint(name, StateDictTensors(model, where=name), model.config.to_dict())
    raise UnknownModel(
        f"expected a name, a folder, or a transformers or TransformerLens model in memory, got {type(model).__name__}"
    )


def _bridge(bridge: Any) -> Checkpoint:
    """A TransformerBridge: its tensors under TransformerLens' names, the configuration of the model that it runs."""
    config = getattr(getattr(bridge, "original_model", None), "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise UnknownModel(
            "expected a TransformerLens bridge over a transformers model, this one runs "
            f"{type(getattr(bridge, 'original_model', None)).__name__}; declare its tensors in a layout.toml"
        )
    # It repeats each key/value head for every query head that reads it.
    every = bridge.cfg.n_heads // (getattr(bridge.cfg, "n_key_value_heads", None) or bridge.cfg.n_heads)
    grouped = (".attn.W_K", ".attn.W_V", ".attn.b_K", ".attn.b_V")
    tensors = {n: t[::every] if n.endswith(grouped) else t for n, t in bridge.tl_parameters().items()}
    values = config.to_dict()
    return _transformer_lens(bridge, tensors, values | {"bridged_model_type": values.get("model_type")})


def _transformer_lens(model: Any, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Checkpoint:
    flags = {k: getattr(model.cfg, k, None) for k in ("normalization_type", "default_prepend_bos", "model_name")}
    name = str(flags["model_name"] or "TransformerLens model")
    values = {**config, "model_type": "transformer_lens"}
    return Checkpoint(name, StateDictTensors(tensors, where=name), values, flags=flags)
