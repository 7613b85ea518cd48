"""An edit as a LoRA adapter in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

The change of a stored matrix is low-rank as it is, ΔW = left·right, so nothing is fitted: the factors are written down,
at scale 1. Modules whose change has fewer rows than the largest are filled up with zeros.

Source: `docs/theory/edits.md`, equation 10; the layout of github.com/huggingface/peft.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from covector.arch.adapter import AdaptedWeights
from covector.arch.stored import seats
from covector.errors import BadRequest
from covector.io.atomic import written_folder
from covector.io.safetensors_write import rounded_to, write_safetensors
from covector.model.overlay import Change
from covector.model.weights import split_name

_LEAD = "base_model.model."


def lora_factors(weights: AdaptedWeights, change: Change) -> dict[str, tuple[np.ndarray, np.ndarray, bool]]:
    """For every stored matrix that changes: A [k, inputs], B [outputs, k], and whether it is stored inputs first.

    x ↦ x Aᵀ Bᵀ is what the change adds; exact, float64. Raises BadRequest for changes of biases and embeddings, which
    such an adapter cannot hold.
    """
    if change.shifts:
        raise BadRequest(
            f"an adapter holds changes of matrices only, this edit changes {change.shifts[0].tensor}; save a checkpoint"
        )
    made: dict[str, tuple[np.ndarray, np.ndarray, bool]] = {}
    for update in change.updates:
        if split_name(update.tensor)[0] is None:
            raise BadRequest(
                f"an adapter is expected to change matrices of blocks, this edit changes {update.tensor}; "
                "save a checkpoint"
            )
        here = seats(weights, update.tensor, update.head)
        A = np.zeros((update.left.shape[1], here.n_inputs))
        B = np.zeros((here.n_outputs, update.left.shape[1]))
        A[:, here.inputs], B[here.outputs] = update.left.T, update.right.T
        if here.tensor in made:
            A0, B0, _ = made[here.tensor]
            A, B = np.concatenate([A0, A]), np.concatenate([B0, B], axis=1)
        made[here.tensor] = A, B, here.inputs_first
    return made


def write_lora(
    folder: Path,
    factors: Mapping[str, tuple[np.ndarray, np.ndarray, bool]],
    *,
    base: str,
    prefix: str,
    edit: str,
    task: str,
) -> Path:
    """Write the adapter folder. `prefix` stands before stored names that lack it in the model class' own.

    Raises BadRequest for modules of both orientations, which one adapter cannot declare, and for a folder with content.
    """
    orientations = {first for _, _, first in factors.values()}
    if len(orientations) != 1:
        raise BadRequest(
            "an adapter is expected to change modules of one kind, this edit changes both; save a checkpoint"
        )
    rank = max(len(A) for A, _, _ in factors.values())
    modules, tensors = [], {}
    for name, (A, B, _) in factors.items():
        module = (name if name.startswith(prefix) else prefix + name).removesuffix(".weight")
        modules.append(module)
        fill = rank - len(A)
        A, B = np.pad(A, ((0, fill), (0, 0))), np.pad(B, ((0, 0), (0, fill)))
        tensors[f"{_LEAD}{module}.lora_A.weight"] = rounded_to(A, "float32")
        tensors[f"{_LEAD}{module}.lora_B.weight"] = rounded_to(B, "float32")
    config = {
        "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base, "r": rank, "lora_alpha": rank,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": orientations.pop(), "target_modules": modules,
        "inference_mode": True,
    }  # fmt: skip
    with written_folder(folder) as place:
        write_safetensors(place / "adapter_model.safetensors", tensors, {"format": "pt"})
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (place / "edit.json").write_text(edit + "\n", encoding="utf-8")
    return folder
