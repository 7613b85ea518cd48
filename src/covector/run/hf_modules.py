"""Where a transformers model computes what: its blocks, projections and norms, found in the modules themselves.

The judge of a loader must not be read with the loader's eyes. So nothing here looks at the layouts in words: a
projection is known by the attribute name that transformers gives it, a fused one is taken apart as transformers' own
code does, and a norm is known by what flows through it in a traced run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covector.errors import UnsupportedFamily
from covector.model.spec import ModelSpec

# Attribute names of projections in transformers' modeling files.
_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_FUSED = ("c_attn", "query_key_value", "qkv_proj")
_ATTN_OUT = ("o_proj", "out_proj", "c_proj", "dense")
_HEAD_SIZES = ("head_dim", "head_size", "attention_head_size")
_MLP_IN = ("c_fc", "fc_in", "fc1", "up_proj", "dense_h_to_4h")
_MLP_OUT = ("c_proj", "fc_out", "fc2", "down_proj", "dense_4h_to_h")


@dataclass(frozen=True)
class HFAttention:
    """The modules of one attention: those that read the stream, the one that writes to it, and the head size."""

    module: nn.Module
    reads: tuple[nn.Module, ...]
    out: nn.Module
    d_head: int
    fused: str | None

    def heads(self, flat: Tensor) -> Tensor:
        """[batch, position, head * d_head] as [batch, position, head, d_head], as every family here views it."""
        return flat.unflatten(-1, (-1, self.d_head))

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """q, k, v [batch, position, head, d_head] out of a fused projection, as its own forward takes them."""
        if self.fused == "query_key_value":  # (heads, 3 * d_head), then three chunks of each head
            return flat.unflatten(-1, (-1, 3 * self.d_head)).chunk(3, dim=-1)
        if self.fused == "c_attn":  # three equal parts, heads inside each
            return tuple(self.heads(part) for part in flat.chunk(3, dim=-1))
        q = self.out_width
        kv = (flat.shape[-1] - q) // 2  # qkv_proj: all queries, then keys, then values
        return tuple(self.heads(part) for part in flat.split((q, kv, kv), dim=-1))

    def join(self, parts: tuple[Tensor, ...]) -> Tensor:
        """The inverse of `split`."""
        if self.fused == "query_key_value":
            return torch.cat(parts, dim=-1).flatten(-2)
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)

    @property
    def out_width(self) -> int:
        """Rows of W_O: all heads side by side. (Conv1D stores input x output, Linear output x input.)"""
        weight = self.out.get_parameter("weight")
        return weight.shape[1] if isinstance(self.out, nn.Linear) else weight.shape[0]


@dataclass(frozen=True)
class HFMLP:
    """The modules of one MLP; ``gate`` is `w_in` itself where gate and input are fused, None where nothing gates."""

    w_in: nn.Module
    out: nn.Module
    gate: nn.Module | None


@dataclass(frozen=True)
class HFBlock:
    """One block of the judge."""

    module: nn.Module
    attn: HFAttention
    mlp: HFMLP


def find_blocks(model: nn.Module) -> tuple[HFBlock, ...]:
    """The blocks in order: the longest list of modules that each hold an attention.

    Raises UnsupportedFamily when there is none, or when a block's projections have names that are not known here.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and _attention_in(m[0])]
    if not lists:
        raise UnsupportedFamily(
            f"{type(model).__name__}: expected a list of blocks with {', '.join((*_FUSED, 'q_proj', 'query'))}, "
            "found none; prove this model against recorded pairs instead"
        )
    return tuple(_block(b) for b in max(lists, key=len))


def _attention_in(block: nn.Module) -> nn.Module | None:
    wanted = (*_FUSED, *(names[0] for names in _SEPARATE))
    return next((m for m in block.modules() if any(hasattr(m, name) for name in wanted)), None)


def _block(block: nn.Module) -> HFBlock:
    attn = _attention_in(block) or block
    fused = next((name for name in _FUSED if hasattr(attn, name)), None)
    names = (fused,) if fused else next((n for n in _SEPARATE if hasattr(attn, n[0])), ())
    out = _first(attn, _ATTN_OUT) or _deep(block, "attention.output.dense")
    size = next((getattr(attn, name) for name in _HEAD_SIZES if hasattr(attn, name)), None)
    holder = getattr(block, "mlp", block)
    w_in = _first(holder, _MLP_IN) or _first(holder, ("gate_up_proj",)) or _deep(block, "intermediate.dense")
    w_out = _first(holder, _MLP_OUT) or _deep(block, "output.dense")
    if not names or out is None or size is None or w_in is None or w_out is None:
        raise UnsupportedFamily(
            f"{type(block).__name__}: expected an output projection, a head size and an MLP under transformers' usual "
            f"names, found {', '.join(n for n, _ in block.named_modules() if n)}; add its name in run/hf_modules.py"
        )
    gate = _first(holder, ("gate_proj", "gate_up_proj"))
    reads = tuple(getattr(attn, name) for name in names)
    return HFBlock(block, HFAttention(attn, reads, out, size, fused), HFMLP(w_in, w_out, gate))


def _first(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _deep(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


@dataclass(frozen=True)
class _Seen:
    """What one module took in and gave out; the tensors are kept so that no memory is used twice."""

    taken: Tensor
    given: Tensor


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of the same values."""
    return a.data_ptr() == b.data_ptr() and a.numel() == b.numel()


def find_norms(
    model: nn.Module, blocks: tuple[HFBlock, ...], spec: ModelSpec, forward: Callable[[], object]
) -> dict[str, nn.Module]:
    """The judge's norm modules by canonical prefix (``L0.attn_norm``), found by what flows through them.

    `forward` runs the model once. A norm that reads for a sublayer gives what its projections take; a norm of q takes
    what W_Q gives; and so on. Norms that the spec names and nothing in the run corresponds to are left out.
    """
    seen = _trace(model, blocks, forward)
    norms = [m for m in seen if "norm" in type(m).__name__.lower()]

    def giving(to: Tensor) -> nn.Module | None:
        return next((m for m in norms if _same(seen[m].given, to)), None)

    def taking(of: Tensor) -> nn.Module | None:
        return next((m for m in norms if _same(seen[m].taken, of)), None)

    found: dict[str, nn.Module | None] = {"embed_norm": giving(seen[blocks[0].module].taken)}
    for layer, block in enumerate(blocks):
        for name, first, last, after in (
            ("attn", block.attn.reads[0], block.attn.out, seen[block.mlp.w_in].taken),
            ("mlp", block.mlp.w_in, block.mlp.out, seen[block.module].given),
        ):
            found[f"L{layer}.{name}_norm"] = giving(seen[first].taken)
            found[f"L{layer}.{name}_post"] = taking(seen[last].given)
            found[f"L{layer}.{name}_after"] = giving(after)
        for read, name in zip(block.attn.reads, ("q_norm", "k_norm"), strict=False):
            found[f"L{layer}.{name}"] = taking(seen[read].given)
    found["final_norm"] = taking(seen[blocks[-1].module].given)
    wanted = spec.norms()
    return {name: module for name, module in found.items() if module is not None and name in wanted}


def _trace(model: nn.Module, blocks: tuple[HFBlock, ...], forward: Callable[[], object]) -> dict[nn.Module, _Seen]:
    watched = {m for b in blocks for m in (b.module, *b.attn.reads, b.attn.out, b.mlp.w_in, b.mlp.out)}
    watched |= {m for m in model.modules() if "norm" in type(m).__name__.lower()}
    seen: dict[nn.Module, _Seen] = {}

    def note(module: nn.Module, args: tuple, kwargs: dict, given: Tensor | tuple) -> None:
        taken = args[0] if args else next(iter(kwargs.values()))
        seen[module] = _Seen(taken, given[0] if isinstance(given, tuple) else given)

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in watched]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return seen
