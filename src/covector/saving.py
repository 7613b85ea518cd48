"""Edited models on disk: a checkpoint that transformers loads, or a LoRA adapter, each with its edit.json.

covector.save_edited("gpt2", "L9H6.ov:0*0", "edited/").show()
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covector.arch.adapter import AdaptedWeights
from covector.arch.config import Config
from covector.arch.family import family_of
from covector.arch.stored import stored_values
from covector.arch.words import parse
from covector.errors import BadRequest
from covector.io.checkpoint import Checkpoint, open_checkpoint
from covector.io.export import export_checkpoint
from covector.io.lora_write import lora_factors, write_lora
from covector.io.safetensors_write import WORDS, read_back
from covector.model.opened import Model
from covector.model.overlay import Overlay
from covector.render import Column, Table
from covector.study.edit import Edit
from covector.workbench import open as open_model

HALF = ("float16", "bfloat16")


def save_edited(
    ref: str | Path,
    edit: Edit | str,
    folder: str | Path,
    *,
    layout: str | Path | None = None,
    frame: str = "raw",
    dtype: str = "float32",
) -> Table:
    """Write the edited checkpoint of `ref` to a new folder: one row per stored tensor that changes, with its rounding.

    `dtype` is that of the edited tensors (float32, float64, float16, bfloat16, or ``stored``: each as it was); the
    others keep their bytes. Where the base is half precision and the edited tensors are not, config.json asks for
    float32, so that a plain load does not round them away.

    Raises what `covector.open` and `Edit.resolve` raise; BadRequest for a model that has no folder, a target with
    content, and an embedding that is untied in a layout of one's own.
    """
    checkpoint, model, edit = _opened(ref, layout, frame, edit)
    weights = _adapted(model)
    over = Overlay(model.stored, edit.change(model))
    changed = over.changed()
    if dtype not in (*WORDS, "stored"):
        raise BadRequest(f"dtype: expected {', '.join(WORDS)} or stored, got '{dtype}'")
    tensors = stored_values(weights, changed)
    config: dict[str, Any] = {}
    if weights.spec.tied and not over.spec.tied:
        tensors |= {_own_output(checkpoint): np.ascontiguousarray(changed["W_U"].T, dtype=np.float64)}
        if "W_E" not in over.change.tensors:
            del tensors[weights.place("W_E").tensor]
        config["tie_word_embeddings"] = False
    kept = {name: _dtype(weights, name) for name in tensors}
    chosen = max(set(kept.values()), key=lambda d: list(WORDS).index(d)) if dtype == "stored" else dtype
    key = next((k for k in ("dtype", "torch_dtype") if k in checkpoint.config), "dtype")
    if chosen not in HALF and any(d in HALF for d in kept.values()):
        config[key] = chosen
    export_checkpoint(
        checkpoint, tensors, Path(folder).expanduser(), dtype=chosen, edit=edit.bound(model).to_json(),
        card=_card(model, edit), config=config, beside=weights.place("W_E").tensor if "W_E" in weights else "",
    )  # fmt: skip
    return _saved(model, edit, weights, tensors, kept, chosen, folder)


def save_adapter(
    ref: str | Path,
    edit: Edit | str,
    folder: str | Path,
    *,
    layout: str | Path | None = None,
    frame: str = "raw",
) -> Table:
    """Write the edit as a LoRA adapter in PEFT's layout: one row per module, with the rank of its change.

    Exact but for the rounding of its factors to float32. Raises as `save_edited`, and BadRequest for an edit of an
    embedding or a bias, which an adapter cannot hold.
    """
    checkpoint, model, edit = _opened(ref, layout, frame, edit)
    if not checkpoint.config:
        raise BadRequest(f"{model.name}: expected a model that transformers builds, an adapter has no other use")
    weights, family = _adapted(model), family_of(str(checkpoint.config.get("model_type")), checkpoint.where)
    factors = lora_factors(weights, edit.change(model))
    task = "CAUSAL_LM" if family.hf_class.endswith(("CausalLM", "LMHeadModel")) else "FEATURE_EXTRACTION"
    prefix = family.prefixes[0] if family.prefixes else ""
    write_lora(
        Path(folder).expanduser(), factors, base=str(ref), prefix=prefix, edit=edit.bound(model).to_json(), task=task
    )  # fmt: skip
    rows = {
        "tensor": list(factors),
        "rank": [len(A) for A, _, _ in factors.values()],
        "change": [_norm_of(A, B) for A, B, _ in factors.values()],
    }
    return Table(
        (
            Column("tensor", rows["tensor"], about="the stored matrix that the module adds to"),
            Column("rank", rows["rank"], digits=0, about="rank of what is added"),
            Column("change", rows["change"], about="‖ΔW‖_F"),
        ),
        title=f"{model.name} · {edit} · LoRA adapter in {folder}",
        meta=model.meta | {"command": "edit", "edit": dict(edit.record()), "folder": str(folder)},
        says=f"{edit.in_words()}: saved as an adapter of rank {max(rows['rank'])} at scale 1, exact up to float32.",
        not_says="What it does to the model's behaviour; covector edit measures that.",
        next=f"covector diff {model.words} {folder}",
    )


def _opened(ref: str | Path, layout: str | Path | None, frame: str, edit: Edit | str) -> tuple[Checkpoint, Model, Edit]:
    model = open_model(str(ref), layout, frame=frame)
    _adapted(model)
    return open_checkpoint(str(ref), layout), model, Edit.parse(edit) if isinstance(edit, str) else edit


def _adapted(model: Model) -> AdaptedWeights:
    if not isinstance(model.stored, AdaptedWeights):
        raise BadRequest(f"{model.name}: expected a checkpoint's own tensors to put an edit into, these are made here")
    return model.stored


def _own_output(checkpoint: Checkpoint) -> str:
    """The stored name of an output matrix of its own, in a family that usually ties it."""
    if checkpoint.layout is not None:
        raise BadRequest(
            f"{checkpoint.name}: its layout ties the unembedding to the embedding, and the edit unties them; declare a "
            "W_U of its own in a copy of the layout, or edit inside the blocks"
        )
    config = Config(checkpoint.config, checkpoint.where)
    family = family_of(str(checkpoint.config.get("model_type")), checkpoint.where)
    for pattern, words in family.tensors(config).items():
        if "W_U" in parse(words, default_role=pattern.rsplit(".", 1)[-1]).roles:
            return pattern.split(" | ")[0]
    raise BadRequest(f"{checkpoint.name}: expected a family that can store an output of its own, {family.name} cannot")


def _dtype(weights: AdaptedWeights, tensor: str) -> str:
    known = tensor in weights.source.names()
    return weights.source.info(tensor if known else weights.place("W_E").tensor)[0]


def _norm_of(A: np.ndarray, B: np.ndarray) -> float:
    return float(np.sqrt(max(np.sum((A @ A.T) * (B.T @ B)), 0.0)))


def _saved(
    model: Model,
    edit: Edit,
    weights: AdaptedWeights,
    tensors: Mapping[str, np.ndarray],
    kept: Mapping[str, str],
    dtype: str,
    folder: str | Path,
) -> Table:
    names, changes, lost = list(tensors), [], []
    for name, values in tensors.items():
        known = name in weights.source.names()
        base = weights.source.read(name if known else weights.place("W_E").tensor).astype(np.float64)
        changes.append(float(np.linalg.norm(values - base)))
        lost.append(float(np.linalg.norm(read_back(values, dtype) - values)))
    share = [a / b if b else 0.0 for a, b in zip(lost, changes, strict=True)]
    worst = max(share, default=0.0)
    return Table(
        (
            Column("tensor", names, about="stored tensor that the edit changes"),
            Column("was", [kept[n] for n in names], about="its dtype in the base"),
            Column("is", [dtype] * len(names), about="its dtype here"),
            Column("change", changes, about="‖ΔW‖_F over the whole stored tensor"),
            Column("rounded", lost, about="‖what rounding to this dtype changes‖_F"),
            Column("share", share, about="rounded over change: how much of the edit rounding blurs"),
        ),
        title=f"{model.name} · {edit} · saved in {folder}",
        meta=model.meta
        | {"command": "edit", "edit": dict(edit.record()), "folder": str(folder), "dtype_of_edit": dtype},
        says=f"{edit.in_words()}: saved in {dtype}; rounding is {worst:.1g} of the change at most.",
        not_says="What it does to the model's behaviour; covector edit measures that.",
        next=f"covector diff {model.words} {folder}",
    )


def _card(model: Model, edit: Edit) -> str:
    version = model.identity.get("versions", {}).get("covector", "")
    return (
        f"# {model.name}, edited\n\n{edit.in_words()}.\n\n`{edit}`, made with covector {version}. The edit, its "
        "vectors and the hashes of the tensors that it was made for are in `edit.json`.\n"
    )
