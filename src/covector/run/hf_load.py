"""The judge: a transformers model from a checkpoint folder, or from config and tensors; no network, eager attention."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.config import Config
from covector.arch.family import Family
from covector.errors import CheckpointMismatch
from covector.io.tensors import ArrayTensors
from covector.run.device import placed
from covector.run.pieces import as_tensor


def load_judge(
    folder: str | Path, hf_class: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """The transformers model of class `hf_class` with the weights in `folder`, ready to be hooked.

    In evaluation mode, without gradients, with the eager attention that returns its patterns. Opens no connection.
    Raises CheckpointMismatch if transformers would have to invent a tensor.
    """
    cls = getattr(transformers, hf_class)
    with _quiet():
        try:
            model, info = cls.from_pretrained(
                str(folder),
                local_files_only=True,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            text = " ".join(str(error).split())
            raise CheckpointMismatch(f"{folder}: expected a checkpoint that {hf_class} loads, got: {text}") from error
    _check_loaded(info["missing_keys"], str(folder), hf_class)
    return _ready(model.to(device))


def judge_of(ref: Any, folder: Path | None, hf_class: str, *, dtype: str, device: str) -> PreTrainedModel | None:
    """A transformers model in memory as it is, or that of a folder; None where there is neither."""
    if isinstance(ref, PreTrainedModel):
        return ref
    kind = getattr(torch, dtype)
    return None if folder is None else load_judge(folder, hf_class, dtype=kind, device=placed(device, kind))


def build_judge(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor | np.ndarray],
    hf_class: str,
    *,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """The transformers model that `config` (a config.json as a mapping) and named tensors describe.

    Raises CheckpointMismatch if a tensor is missing or has another shape than the config says.
    """
    model = _empty(config, hf_class, dtype)
    tensors = {name: as_tensor(value, dtype, "cpu") for name, value in state.items()}
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise CheckpointMismatch(f"tensors in memory: expected what {hf_class} needs, got: {text}") from error
    model.tie_weights()
    tied = {name for name in missing if _has_twin(model, name, tensors)}
    _check_loaded([*(set(missing) - tied), *unexpected], "tensors in memory", hf_class)
    return _ready(model)


def tiny_judge(
    family: Family,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    changes: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, AdaptedWeights]:
    """A tiny random model of a family, with every parameter moved off its initial value, and our reading of it.

    Gains lie around 1 and biases around 0, so that nothing in the proof can be right by being absent. `changes`
    replace keys of the family's tiny config.
    """
    config = {**family.tiny(), **(changes or {})}
    model = _ready(_empty(config, family.hf_class, dtype))
    draw = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=draw, dtype=torch.float64)
        gain = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
        # 0.3: attention patterns are neither flat nor one-hot, activations reach their curved part.
        value.copy_(gain + 0.3 * noise)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    read = Config(config, f"tiny {family.name}")
    source = ArrayTensors(arrays, where=f"tiny {family.name}")
    weights = adapt(family.spec(read), family.tensors(read), source, prefixes=family.prefixes, ignored=family.ignored)
    return model, weights


def _empty(config: Mapping[str, Any], hf_class: str, dtype: torch.dtype) -> PreTrainedModel:
    keys = dict(config)
    with _quiet():
        made = AutoConfig.for_model(keys.pop("model_type"), **keys)
        made._attn_implementation = "eager"
        return getattr(transformers, hf_class)(made).to(dtype)


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    return model.eval().requires_grad_(False)


def _has_twin(model: PreTrainedModel, name: str, given: Mapping[str, Tensor]) -> bool:
    """Whether a missing tensor shares its memory with one that was given (a tied unembedding)."""
    state = model.state_dict()
    return any(other in given and state[other].data_ptr() == state[name].data_ptr() for other in state)


def _check_loaded(wrong: Collection[str], where: str, hf_class: str) -> None:
    if wrong:
        raise CheckpointMismatch(
            f"{where}: expected the tensors of {hf_class}, these are missing or superfluous: "
            f"{', '.join(sorted(wrong)[:4])}; transformers would fill in random numbers"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and advice on standard error."""
    talk = transformers.utils.logging
    level, bar = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity(logging.ERROR)
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if bar:
            talk.enable_progress_bar()
