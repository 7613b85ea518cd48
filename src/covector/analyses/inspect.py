"""What a checkpoint is: sizes, family, anatomy, and every canonical tensor with where and how it is stored."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from covector.arch.adapter import AdaptedWeights
from covector.model.opened import Model
from covector.model.spec import Attention, ModelSpec, Norm
from covector.model.weights import Weights, canonical_axes, split_name
from covector.render import Column, Table

# Bytes per stored element of the dtypes that are read.
_WIDTH = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class _Group:
    """Canonical tensors of one role over all layers."""

    role: str
    stored: str
    words: str
    shape: tuple[int, ...]
    dtype: str
    count: int


def inspect(model: Model) -> Table:
    """One row per role of canonical tensor (`W_Q`, `mlp_norm.gain`, …): shape, storage dtype, stored name, layout.

    The numbers are read from file headers; no weight is touched. Sizes and anatomy stand in `meta["spec"]`.
    """
    weights = model.stored
    groups = list(_groups(weights))
    size = [g.count * int(np.prod(g.shape)) * _WIDTH.get(g.dtype, 4) / 2**20 for g in groups]
    columns = [
        Column("role", [g.role for g in groups], about="canonical name"),
        Column("shape", [" ".join(map(str, g.shape)) for g in groups], about="canonical shape, input × output"),
        Column("layers", np.array([g.count for g in groups]), about="how many layers have it"),
        Column("dtype", [g.dtype for g in groups], about="storage dtype"),
        Column("MiB", np.array(size, dtype=float), "MiB", 2, about="stored size over all layers"),
        Column("stored", [g.stored for g in groups], about="name in the checkpoint, {i} the layer"),
        Column("layout", [g.words for g in groups], about="axes of the stored tensor, in words"),
    ]
    parameters = sum(g.count * int(np.prod(g.shape)) for g in groups)
    return Table(
        columns=columns,
        meta=model.meta
        | {"analysis": "inspect", "spec": model.spec.to_dict(), "parameters": parameters}
        | {"ignored": list(weights.ignored) if isinstance(weights, AdaptedWeights) else []},
        title=f"{model.name} · {model.spec.family} · {parameters:,} parameters · {sum(size):.1f} MiB"
        f" · frame {model.frame}",
        says=_anatomy(model.spec),
        not_says="Read from headers: it does not say that the loader reads these tensors rightly; --check proves that."
        + _remarks(model),
        next=f"covector inspect {model.words} --check",
        key=("role",),
    )


def _groups(weights: Weights) -> Iterable[_Group]:
    found: dict[str, list[str]] = {}
    for name in weights.places if isinstance(weights, AdaptedWeights) else weights.names():
        if name == "W_U" and weights.spec.tied:
            continue
        found.setdefault(split_name(name)[1], []).append(name)
    for role, names in found.items():
        first = names[0]
        layer = split_name(first)[0]
        stored, words = first, " ".join(canonical_axes(role))
        if isinstance(weights, AdaptedWeights):
            stored, words = weights.places[first].tensor, weights.places[first].layout.words
        if layer is not None:
            stored = re.sub(rf"(^L|\.){layer}\.", r"\g<1>{i}.", stored, count=1)
        yield _Group(role, stored, words, weights[first].shape, weights.stored(first), len(names))


def _anatomy(spec: ModelSpec) -> str:
    """One sentence: sizes and what kind of blocks."""
    parts = [f"{spec.n_layers} layers of d_model {spec.d_model}"]
    attn = spec.attention
    if attn:
        groups = "" if attn.n_kv_heads == attn.n_heads else f" on {attn.n_kv_heads} key/value heads"
        parts.append(f"{attn.n_heads} heads{groups} of size {attn.d_head}{_attention_kind(attn)}")
    mlp = next((b.mlp for b in spec.blocks if b.mlp), None)
    if mlp:
        parts.append(f"{'gated ' if mlp.gated else ''}MLP {mlp.d_mlp} ({mlp.activation})")
    parts.append(_norms(spec))
    if spec.n_vocab:
        parts.append(f"{spec.n_vocab} tokens{', tied' if spec.tied else ''}")
    else:
        names = ", ".join(i.name for i in spec.assembly.inputs)
        parts.append(f"inputs {names}; outputs {', '.join(o.name for o in spec.outputs)}")
    return "; ".join(parts) + f"; context {spec.n_ctx}."


def _attention_kind(attn: Attention) -> str:
    kinds = [f"rotary {attn.rotary.dim}"] if attn.rotary else []
    kinds += ["q/k norms"] if attn.qk_norm else []
    kinds += [f"soft-cap {attn.softcap:g}"] if attn.softcap else []
    kinds += [] if attn.causal else ["not causal"]
    return f" ({', '.join(kinds)})" if kinds else ""


def _norms(spec: ModelSpec) -> str:
    def kind(norm: Norm) -> str:
        return "LayerNorm" if norm.kind == "layer" else "RMSNorm"

    subs = [s for b in spec.blocks for s in b.sublayers]
    places = [("before", [s.reads for s in subs if s.reads]), ("behind", [s.post for s in subs if s.post])]
    places += [("after the sum of", [s.after for s in subs if s.after])]
    words = [f"{kind(norms[0])} {where} each sublayer" for where, norms in places if norms]
    parallel = "parallel blocks, " if any(b.parallel for b in spec.blocks) else ""
    return parallel + (" and ".join(words) or "no norms")


def _remarks(model: Model) -> str:
    unknown = model.identity.get("unknown_keys") or []
    text = f" Config keys that nobody knows: {', '.join(unknown)}." if unknown else ""
    if isinstance(model.stored, AdaptedWeights) and model.stored.ignored:
        text += f" Ignored by name: {len(model.stored.ignored)} tensors."
    return text
