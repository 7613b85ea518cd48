"""Hook points at the module boundaries of a transformers model: where each passes, how it is cut out and put back."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from covector.model.spec import Block, ModelSpec
from covector.run.hf_modules import HFMLP, HFAttention, HFBlock
from covector.run.hooks import Tap

Parts = tuple[Tensor, ...]


def _whole(x: Tensor) -> Parts:
    return (x,)


def _unwhole(parts: Parts) -> Tensor:
    return parts[0]


@dataclass(frozen=True)
class Boundary:
    """One side of one module (or of several that take the same tensor), and the hook points that pass there.

    ``split`` takes [batch, position, width] apart, one part per name in ``names``; ``join`` is its inverse. ``index``
    picks from a tuple that the module returns. Where ``changeable`` is false the tensor is only a copy of what is
    computed with, or is shared with another hook point: it can be captured, not replaced.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    side: Literal["input", "output"]
    split: Callable[[Tensor], Parts] = _whole
    join: Callable[[Parts], Tensor] = _unwhole
    index: int = 0
    changeable: bool = True


def boundaries(
    spec: ModelSpec, blocks: tuple[HFBlock, ...], norms: Mapping[str, nn.Module], eager: bool
) -> list[Boundary]:
    """Every boundary of the model, in the order in which hooks on the same module must act."""
    made = [Boundary(("resid_in",), (blocks[0].module,), "input")]
    for layer, block in enumerate(blocks):
        made += _block(f"L{layer}.", spec.blocks[layer], block, norms, eager)
    return made


def _block(at: str, anatomy: Block, block: HFBlock, norms: Mapping[str, nn.Module], eager: bool) -> Iterator[Boundary]:
    yield Boundary((f"{at}resid_pre",), (block.module,), "input")
    attn, mlp = block.attn, block.mlp
    readers = (mlp.w_in,) if mlp.gate in (None, mlp.w_in) else (mlp.w_in, mlp.gate)
    attn_norm, mlp_norm = norms.get(f"{at}attn_norm"), norms.get(f"{at}mlp_norm")
    alone = attn_norm is None or attn_norm is not mlp_norm
    yield Boundary((f"{at}attn_in",), (attn_norm,) if attn_norm else attn.reads, "input", changeable=alone)
    yield Boundary((f"{at}attn_normed",), attn.reads, "input")
    yield from _attention(at, attn, eager)
    yield from _added(at, "attn", anatomy, attn.out, norms)
    stream = (mlp_norm,) if mlp_norm else readers
    if not anatomy.parallel:
        yield Boundary((f"{at}resid_mid",), stream[:1], "input", changeable=False)
    yield Boundary((f"{at}mlp_in",), stream, "input", changeable=alone)
    yield Boundary((f"{at}mlp_normed",), readers, "input")
    yield from _mlp(at, mlp)
    yield from _added(at, "mlp", anatomy, mlp.out, norms)
    yield Boundary((f"{at}resid_post",), (block.module,), "output")


def _attention(at: str, attn: HFAttention, eager: bool) -> Iterator[Boundary]:
    def merge(parts: Parts) -> Tensor:
        return parts[0].flatten(-2)

    def heads(flat: Tensor) -> Parts:
        return (attn.heads(flat),)

    names = tuple(f"{at}{name}" for name in "qkv")
    if attn.fused:
        yield Boundary(names, attn.reads, "output", attn.split, attn.join)
    else:
        for name, module in zip(names, attn.reads, strict=True):
            yield Boundary((name,), (module,), "output", heads, merge)
    if eager:
        yield Boundary((f"{at}pattern",), (attn.module,), "output", index=1, changeable=False)
    yield Boundary((f"{at}z",), (attn.out,), "input", heads, merge)
    yield Boundary((f"{at}attn_out",), (attn.out,), "output")


def _mlp(at: str, mlp: HFMLP) -> Iterator[Boundary]:
    if mlp.gate is mlp.w_in:  # gate_up_proj: the gate's half first
        yield Boundary((f"{at}gate", f"{at}mlp_pre"), (mlp.w_in,), "output", _halves, _cat)
    else:
        if mlp.gate is not None:
            yield Boundary((f"{at}gate",), (mlp.gate,), "output")
        yield Boundary((f"{at}mlp_pre",), (mlp.w_in,), "output")
    yield Boundary((f"{at}mlp_post",), (mlp.out,), "input")
    yield Boundary((f"{at}mlp_out",), (mlp.out,), "output")


def _added(at: str, name: str, anatomy: Block, out: nn.Module, norms: Mapping[str, nn.Module]) -> Iterator[Boundary]:
    """What is added to the stream: a post norm's output, else the projection's; behind a scale no module shows it."""
    post = norms.get(f"{at}{name}_post")
    sub = anatomy.sublayer(name)
    if post is not None or (sub is not None and sub.scale == 1):
        yield Boundary((f"{at}{name}_added",), (out if post is None else post,), "output")


def _halves(flat: Tensor) -> Parts:
    return flat.chunk(2, dim=-1)


def _cat(parts: Parts) -> Tensor:
    return torch.cat(parts, dim=-1)


@contextmanager
def attached(places: Iterable[Boundary], tap: Tap, lead: tuple[int, int]) -> Iterator[None]:
    """Plain PyTorch hooks for whatever the tap wants, removed on leaving; `lead` is (batch, positions)."""
    handles = []
    try:
        for place in places:
            if not any(name in tap.wanted or name in tap.intervene for name in place.names):
                continue
            handles += _Passing(place, tap, lead).attach()
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Passing:
    """Takes a tensor through the tap once, however many modules it is given to."""

    place: Boundary
    tap: Tap
    lead: tuple[int, int]
    last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.last is None or self.last[0] is not x:
            self.last = (x, self._through(x))
        return self.last[1]

    def _through(self, x: Tensor) -> Tensor:
        # OPT lays batch and positions in one axis before its MLP.
        rows = x.unflatten(0, self.lead) if x.ndim == 2 else x
        parts = self.place.split(rows)
        changed = tuple(self.tap(name, part) for name, part in zip(self.place.names, parts, strict=True))
        if all(name not in self.tap.intervene for name in self.place.names):
            return x
        # Modules take views of what they are given (Conv1D): whatever an intervention returns is laid out in order.
        return self.place.join(changed).reshape(x.shape).to(x.dtype).contiguous()

    def before(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The pre-hook: the module's first argument goes through."""
        if args:
            return (self(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self(kwargs["hidden_states"])}

    def after(self, _: nn.Module, __: tuple, given: Tensor | tuple) -> Tensor | tuple:
        """The forward hook: what the module returns goes through, or one item of it."""
        if isinstance(given, tuple):
            index = self.place.index
            return (*given[:index], self(given[index]), *given[index + 1 :])
        return self(given)

    def attach(self) -> list[RemovableHandle]:
        """Register on every module of the boundary."""
        if self.place.side == "input":
            return [m.register_forward_pre_hook(self.before, with_kwargs=True) for m in self.place.modules]
        return [m.register_forward_hook(self.after) for m in self.place.modules]
