"""The reference decoder: runs any model from its anatomy and canonical weights, and can be differentiated.

Written in reading order, to be read in one sitting: assemble the stream, let each sublayer of each block read it and
add to it, normalise, read the outputs. It knows no family. What transformers does not have (declared layouts, toys,
home-made agents) runs here; what it has is compared with it.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from covector.errors import BadRequest, CheckpointMismatch, UnsupportedConfig
from covector.model.change import ChangeWeights
from covector.model.spec import MLP, Attention, Block, ModelSpec, Norm, Output, Sublayer, output_bias, output_weight
from covector.model.weights import Weights, required
from covector.run.assembly import assemble, spread_mask
from covector.run.attention import LayerTap, attend
from covector.run.device import placed
from covector.run.hooks import Intervention, Tap, hook_names, output_hook, tap
from covector.run.pieces import Part, activation, as_tensor, need, normalize, softcap
from covector.run.runner import Inputs, Run, check_changes


@dataclass(frozen=True)
class Places:
    """Where the rows of a sequence stand: position numbers for W_pos and rotary turns, and the padding mask."""

    positions: Tensor
    mask: Tensor | None


class Decoder:
    """Runs a model from canonical weights.

    Tensors are read when first used and kept, widened exactly (float64), or rounded once (a float64 gain in float32).
    Everything is computed on `device`, captured tensors stay there. Raises UnsupportedConfig at once for an anatomy
    whose meaning is not settled, CheckpointMismatch for weights that lack a tensor which it needs, BadRequest for a
    device that is not there.
    """

    def __init__(
        self, weights: Weights, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu"
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise BadRequest(f"dtype: expected torch.float32 or torch.float64, got {dtype}; the decoder is a reference")
        self.weights, self.dtype, self.device = weights, dtype, placed(device, dtype)
        self.spec: ModelSpec = weights.spec
        self._kept: dict[str, Tensor | None] = {}
        _check(self.spec)
        _check_complete(weights)

    @property
    def hooks(self) -> tuple[str, ...]:
        """Every hook point, in the order of the computation."""
        return hook_names(self.spec)

    @property
    def changeable(self) -> tuple[str, ...]:
        """The hook points that `intervene` accepts: all of them."""
        return self.hooks

    def part(self, name: str) -> Tensor | None:
        """A canonical tensor in the decoder's dtype, or None where the model has none of that name."""
        if name not in self._kept:
            self._kept[name] = self._read(name)
        return self._kept[name]

    def _read(self, name: str) -> Tensor | None:
        if name in self.weights:
            return as_tensor(self.weights[name], self.dtype, self.device)
        if name == "W_U" and self.spec.tied:
            return need(self.part, "W_E").T
        return None

    def run(
        self,
        inputs: Inputs | None = None,
        *,
        resid_in: Float[Tensor, "batch position d_model"] | None = None,
        first: int = 0,
        at: Int[Tensor, " batch"] | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        capture: Iterable[str] = (),
        intervene: Mapping[str, Intervention] | None = None,
    ) -> Run:
        """One forward pass.

        `inputs`: token ids [batch, position], or a mapping from input names to ids [batch, time] or vectors
        [batch, time, n]; the inputs of an interleaved agent may stop inside the last timestep. `resid_in` starts from
        an assembled stream instead, or from the one that enters block `first`. `at` is one position per row: outputs
        and the final stream are computed there alone [batch, 1, …]. `positions` [batch, position] number the rows
        (from 0 by default); `mask` [batch, position or timestep] is 0 on padding. `capture` names hook points (``*``
        allowed), `intervene` maps hook points to functions of the tensor.

        Differentiable in whatever floating input requires it. Raises BadRequest for inputs that do not fit.
        """
        here = tap(self.hooks, capture, intervene)
        if first and resid_in is None:
            raise BadRequest(f"run: expected resid_in, the stream that enters block {first}, got inputs alone")
        positions = None if positions is None else torch.as_tensor(positions, device=self.device)
        stream = self._start(inputs, resid_in, positions)
        stream = here("resid_in", stream) if first == 0 else stream
        places = self._places(stream, positions, mask)
        for layer, block in list(enumerate(self.spec.blocks))[first:]:
            stream = self._block(stream, layer, block, places, here)
        if at is not None:
            stream = stream[torch.arange(len(stream), device=self.device), at.to(self.device)][:, None]
        final = here("final_normed", self._normed(stream, self.spec.final_norm, "final_norm"))
        outputs = {out.name: here(output_hook(out.name), self._output(final, out)) for out in self.spec.outputs}
        return Run(outputs, final, here.cache)

    def _start(self, inputs: Inputs | None, resid_in: Tensor | None, positions: Tensor | None) -> Tensor:
        if (inputs is None) == (resid_in is None):
            got = "neither" if inputs is None else "both"
            raise BadRequest(f"run: expected either inputs or resid_in, got {got}; a sequence starts in one place")
        if resid_in is not None:
            return resid_in.to(self.device, self.dtype)
        named = inputs if isinstance(inputs, Mapping) else {self.spec.assembly.inputs[0].name: inputs}
        here = {name: torch.as_tensor(value, device=self.device) for name, value in named.items()}
        return assemble(self.spec.assembly, here, self.part, positions)

    def _places(self, stream: Tensor, positions: Tensor | None, mask: Tensor | None) -> Places:
        length = stream.shape[1]
        if positions is None:
            positions = torch.arange(length, device=stream.device)[None]
        if mask is not None:
            mask = spread_mask(self.spec.assembly, torch.as_tensor(mask, device=stream.device), length)
        return Places(positions, mask)

    def _block(self, stream: Tensor, layer: int, block: Block, places: Places, at: Tap) -> Tensor:
        here = _Layer(f"L{layer}.", self, at)
        stream = entering = here.tap("resid_pre", stream)
        for place, sub in enumerate(block.sublayers):
            if place and not block.parallel:
                stream = here.tap("resid_mid", stream)
            added = _sublayer(entering if block.parallel else stream, sub, here, places)
            stream = _norm(stream + added, sub.after, f"{sub.name}_after", here.part)
        return here.tap("resid_post", stream)

    def _normed(self, x: Tensor, norm: Norm | None, name: str) -> Tensor:
        return _norm(x, norm, name, self.part)

    def _output(self, x: Tensor, out: Output) -> Tensor:
        if out.transform:
            at = f"out.{out.name}.transform"
            x = activation(out.transform)(_affine(x, need(self.part, f"{at}.W"), self.part(f"{at}.b")))
        x = self._normed(x, out.transform_norm, f"out.{out.name}.norm")
        x = _affine(x, need(self.part, output_weight(out.name)), self.part(output_bias(out.name)))
        x = softcap(out.scale * x, out.softcap)
        return activation(out.activation)(x) if out.activation else x

    @contextmanager
    def edited(self, changes: Mapping[str, np.ndarray]) -> Iterator["Decoder"]:
        """A decoder in which these canonical tensors are others; this one is not touched.

        Raises BadRequest for a name that the model does not have, or an array of another shape.
        """
        check_changes(self.weights, changes)
        yield self.with_parts({n: as_tensor(a, self.dtype, self.device) for n, a in changes.items()})

    def with_parts(self, parts: Mapping[str, Tensor]) -> "Decoder":
        """A decoder with these canonical tensors in place of its own; the rest is shared, this one is not touched.

        Differentiable in them. A ``W_U`` that is tied follows ``W_E`` unless it is given.
        """
        other = Decoder(self.weights, self.dtype, self.device)
        other._kept = self._kept | dict(parts)
        if "W_E" in parts and self.spec.tied and "W_U" not in parts:
            other._kept["W_U"] = need(other.part, "W_E").T
        return other


def _norm(x: Tensor, norm: Norm | None, name: str, part: Part) -> Tensor:
    return normalize(x, norm, part(f"{name}.gain"), part(f"{name}.bias")) if norm else x


@dataclass(frozen=True)
class _Layer:
    """The tensors and hook points of one block, by role."""

    prefix: str
    decoder: Decoder
    at: Tap

    def part(self, role: str) -> Tensor | None:
        return self.decoder.part(self.prefix + role)

    def tap(self, role: str, value: Tensor) -> Tensor:
        return self.at(self.prefix + role, value)


def _sublayer(stream: Tensor, sub: Sublayer, here: _Layer, places: Places) -> Tensor:
    """What one sublayer adds to the stream."""
    name, part, at = sub.name, here.part, here.tap
    x = at(f"{name}_normed", _norm(at(f"{name}_in", stream), sub.reads, f"{name}_norm", part))
    if isinstance(sub.part, Attention):
        out = attend(x, sub.part, part, at, positions=places.positions, mask=places.mask)
    else:
        out = feed_forward(x, sub.part, part, at)
    out = _norm(out, sub.post, f"{name}_post", part)
    return at(f"{name}_added", out * sub.scale if sub.scale != 1 else out)


def feed_forward(
    x: Float[Tensor, "batch position d_model"], mlp: MLP, part: Part, tap: LayerTap
) -> Float[Tensor, "batch position d_model"]:
    """What the MLP computes from its (normed) input, hook ``mlp_out`` included."""
    act, bias = activation(mlp.activation), part("b_in")
    gate = tap("gate", _affine(x, need(part, "W_gate"), part("b_gate"))) if mlp.gated else None
    pre = tap("mlp_pre", _affine(x, need(part, "W_in"), None if mlp.bias_after_gate else bias))
    post = act(pre) if gate is None else act(gate) * pre
    if mlp.bias_after_gate and bias is not None:
        post = post + bias
    return tap("mlp_out", _affine(tap("mlp_post", post), need(part, "W_out"), part("b_out")))


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else x @ weight + bias


def _check(spec: ModelSpec) -> None:
    """Refuse an anatomy whose meaning the spec does not settle, and activations that are not implemented."""
    for layer, block in enumerate(spec.blocks):
        if block.parallel and any(s.after for s in block.sublayers):
            raise UnsupportedConfig(f"block {layer}: expected no norm after the addition in a parallel block, got one")
        for sub in block.sublayers:
            if isinstance(sub.part, MLP):
                activation(sub.part.activation)
            elif sub.part.window is not None and not sub.part.causal:
                raise UnsupportedConfig(f"block {layer}: expected a window in causal attention only, got it without")
    for out in spec.outputs:
        for name in (out.transform, out.activation):
            if name:
                activation(name)


def _check_complete(weights: Weights) -> None:
    behind = weights
    # What holds, frames or edits other weights; a change has a base as well, and is where this ends.
    while not isinstance(behind, ChangeWeights) and (hasattr(behind, "of") or hasattr(behind, "base")):
        behind = getattr(behind, "of", None) or behind.base  # type: ignore[attr-defined]
    if isinstance(behind, ChangeWeights):
        raise BadRequest("a change of weights is no model and cannot be run: name one of the two models it is between")
    spec = weights.spec
    heads = (f"out.{out.name}.transform.W" for out in spec.outputs if out.transform)
    for name in (*required(spec), *heads):
        if name not in weights and not (name == "W_U" and spec.tied):
            raise CheckpointMismatch(
                f"{spec.family}: expected a tensor for {name}, the anatomy needs it and the weights have none; "
                "declare it, or change the anatomy"
            )
