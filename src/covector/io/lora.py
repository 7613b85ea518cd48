"""A LoRA adapter as it is published: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

Read by ourselves, nothing of it is executed. Every key that changes the function is either implemented or refused by
name; every tensor must find its matrix in the base. What comes back is the base with ``scale · B A`` added to the
stored matrices that the adapter names, one at a time, when they are asked for.

Source: Hu et al., "LoRA" (2021); the file layout of github.com/huggingface/peft, `src/peft/utils/save_and_load.py`;
`docs/theory/changes.md`, equation 10.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from covector.axes import Float
from covector.errors import CheckpointMismatch, CorruptCheckpoint, UnknownModel, UnsupportedConfig
from covector.io.safetensors_file import SafetensorsFile
from covector.model.weights import TensorSource

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Keys that do not change what the tensors mean: how it was trained, or which tensors there are (they are read anyway).
HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type", "lora_dropout",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "peft_version", "runtime_config",
    "megatron_core", "eva_config", "loftq_config", "qalora_group_size", "ensure_weight_tying",
})  # fmt: skip
READ = frozenset({"peft_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "bias", "init_lora_weights"})
# Initialisations after which the base is the published one; others (pissa, olora, loftq, corda) train on another.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_LEAD = "base_model.model."
_KINDS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
_COPIES = (".base_layer.weight", ".weight")


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter: the factors of what is added to each stored matrix, under the name of its module.

    ``left`` [n, r] and ``right`` [r, m] give ``scale · left @ right`` in the orientation of the stored matrix.
    ``copies`` are whole matrices that were saved beside the factors (embeddings); they have to be the base's own.
    """

    folder: Path
    rank: int
    scale: float
    factors: Mapping[str, tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "r m"]]]
    base: str
    header: str
    copies: Mapping[str, np.ndarray] = field(default_factory=dict)

    def digest(self, module: str) -> str:
        """sha256 of what is added to a module's matrix."""
        left, right = self.factors[module]
        held = np.ascontiguousarray(left).tobytes() + np.ascontiguousarray(right).tobytes()
        return hashlib.sha256(repr(self.scale).encode() + held).hexdigest()


def is_adapter(ref: object) -> bool:
    """Whether a reference is a folder with an adapter in it."""
    return isinstance(ref, str | Path) and (Path(ref).expanduser() / CONFIG).is_file()


def read_lora(folder: str | Path) -> Lora:
    """The adapter in a folder.

    Raises UnknownModel for no such folder, CorruptCheckpoint for files that do not parse or factors that do not fit
    each other, UnsupportedConfig (naming the key) for what is not implemented.
    """
    place = Path(folder).expanduser()
    if not (place / CONFIG).is_file() or not (place / TENSORS).is_file():
        raise UnknownModel(
            f"expected {CONFIG} and {TENSORS} in '{place}', got a folder without both; name the adapter's"
        )
    config = _config(place / CONFIG)
    rank, scale, turned = _checked(config, place / CONFIG)
    file = SafetensorsFile(place / TENSORS)
    halves: dict[str, dict[str, np.ndarray]] = {}
    copies: dict[str, np.ndarray] = {}
    for name in file.entries:
        module, kind = _split(name, place / TENSORS)
        if kind in _COPIES:
            copies[module] = file.read(name)
        else:
            halves.setdefault(module, {})[kind] = file.read(name)
    if not halves:
        raise CorruptCheckpoint(f"{place / TENSORS}: expected lora_A and lora_B tensors, it holds none; save it again")
    factors = {module: _factors(module, found, rank, turned, place / TENSORS) for module, found in halves.items()}
    base = str(config.get("base_model_name_or_path") or "")
    return Lora(place, rank, scale, factors, base, file.header_sha256, copies)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{path}: expected a JSON object, it does not parse ({error}); save it again"
        ) from error
    if not isinstance(values, dict):
        raise CorruptCheckpoint(f"{path}: expected a JSON object, got {type(values).__name__}; save it again")
    return values


def _checked(config: Mapping[str, Any], path: Path) -> tuple[int, float, bool]:
    """(rank, scale, whether B A is stored turned). Raises UnsupportedConfig, CorruptCheckpoint."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedConfig(f"{path}: expected peft_type LORA, got {kind!r}; other adapters are not read")
    for key, value in config.items():
        if key not in HARMLESS | READ and value not in (None, False, "", {}, []):
            raise UnsupportedConfig(
                f"{path}: {key} = {value!r} changes the function and is not implemented; merge the adapter into its "
                "base and compare the checkpoints"
            )
    if config.get("bias", "none") != "none":
        raise UnsupportedConfig(
            f"{path}: expected bias 'none', got {config['bias']!r}; merge the adapter into its base"
        )
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        raise UnsupportedConfig(
            f"{path}: init_lora_weights = {config['init_lora_weights']!r} trains on a changed base, and this is only "
            "the rest of the change; convert it to a plain LoRA, or merge it"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if not (isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1 and _is_number(alpha)):
        raise CorruptCheckpoint(f"{path}: expected r >= 1 and a number lora_alpha, got r = {rank!r}, {alpha!r}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return rank, float(scale), bool(config.get("fan_in_fan_out"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _split(name: str, path: Path) -> tuple[str, str]:
    """Module and kind of an adapter's tensor."""
    for kind in (*_KINDS, *_COPIES):
        if name.endswith(kind):
            return name.removeprefix(_LEAD).removesuffix(kind), kind
    raise UnsupportedConfig(
        f"{path}: '{name}' is neither lora_A nor lora_B of a matrix or an embedding; magnitudes and biases are not "
        "read: merge the adapter into its base"
    )


def _factors(
    module: str, found: Mapping[str, np.ndarray], rank: int, turned: bool, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(left, right) of one matrix as it is stored: B, A; turned over for input × output storage and for embeddings."""
    kinds = tuple(kind for kind in _KINDS if kind in found)
    if kinds not in (_KINDS[:2], _KINDS[2:]):
        raise CorruptCheckpoint(
            f"{path}: expected lora_A and lora_B for {module}, got {', '.join(kinds)}; save it again"
        )
    A, B = (found[kind].astype(np.float64) for kind in kinds)
    if A.ndim != 2 or B.ndim != 2 or not len(A) == B.shape[1] == rank:
        raise CorruptCheckpoint(
            f"{path}: expected A [{rank}, in] and B [out, {rank}] for {module}, got {A.shape} and {B.shape}; is this "
            f"the adapter of another {CONFIG}?"
        )
    return (A.T, B.T) if turned or kinds == _KINDS[2:] else (B, A)


class Adapted:
    """Stored tensors with an adapter's changes added, as a source of tensors; the sums are float64.

    A tied embedding is changed on both ends, as merging the adapter does (run unmerged, it reads the old one out).
    Raises CheckpointMismatch where the adapter names a module that the base does not store, or of another shape,
    UnsupportedConfig where it holds a whole matrix other than the base's.
    """

    def __init__(self, of: TensorSource, lora: Lora) -> None:
        self.of, self.lora = of, lora
        self.modules = {_stored_name(of, module): module for module in lora.factors}
        for name, module in self.modules.items():
            left, right = lora.factors[module]
            _, shape = of.info(name)
            if shape != (len(left), right.shape[1]):
                raise CheckpointMismatch(
                    f"{lora.folder}: the change of '{module}' is {(len(left), right.shape[1])}, '{name}' of {of.where} "
                    f"is {tuple(shape)}; is fan_in_fan_out right, and is this its base?"
                )
        for module, copy in lora.copies.items():
            if not np.array_equal(of.read(_stored_name(of, module)), copy):
                raise UnsupportedConfig(
                    f"{lora.folder}: holds the whole matrix of '{module}', which is not that of {of.where}: trained "
                    "whole modules are not read; merge the adapter into its base"
                )

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"{self.of.where} with {self.lora.folder}"

    def names(self) -> tuple[str, ...]:
        """Every tensor name of the base."""
        return self.of.names()

    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Storage dtype in the base, and shape."""
        return self.of.info(name)

    def read(self, name: str) -> np.ndarray:
        """The values, the adapter's change added in float64 where it has one."""
        if name not in self.modules:
            return self.of.read(name)
        left, right = self.lora.factors[self.modules[name]]
        return self.of.read(name).astype(np.float64) + self.lora.scale * (left @ right)

    def sha256(self, name: str) -> str:
        """Digest of the base's bytes, and of what is added to them."""
        digest = self.of.sha256(name)
        if name not in self.modules:
            return digest
        return hashlib.sha256(f"{digest} {self.lora.digest(self.modules[name])}".encode()).hexdigest()

    def release(self, name: str) -> None:
        """Say that the tensor is not needed for now."""
        self.of.release(name)


def _stored_name(of: TensorSource, module: str) -> str:
    """The stored tensor of a module: its own name, or the same without what a task's class puts in front."""
    names = set(of.names())
    parts = module.split(".")
    for first in range(len(parts)):
        name = ".".join([*parts[first:], "weight"])
        if name in names:
            return name
    longer = [name for name in names if name.endswith(f".{module}.weight")]
    if len(longer) == 1:
        return longer[0]
    raise CheckpointMismatch(
        f"{of.where}: expected a matrix for the adapter's module '{module}', it stores none; is this its base?"
    )
