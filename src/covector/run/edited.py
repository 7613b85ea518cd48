"""Edits on a running model: as weights, as weights with doses that can be differentiated, and as hooks.

All three are the same function of the input; tests hold them to each other. An edit of block L leaves everything
before it alone: `first_block` says from where a run differs from the base's.

Source: `docs/theory/edits.md`, equations 3, 8 and 9.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from covector.errors import BadRequest
from covector.model.overlay import Change, Overlay, Shift, Update
from covector.model.spec import ModelSpec
from covector.model.weights import split_name
from covector.run.decoder import Decoder
from covector.run.hooks import Intervention
from covector.run.pieces import as_tensor

# What a matrix multiplies, and where its product passes; heads of W_O add up in one place.
_PLACES = {
    "W_Q": ("attn_normed", "q"),
    "W_K": ("attn_normed", "k"),
    "W_V": ("attn_normed", "v"),
    "W_O": ("z", "attn_out"),
    "W_in": ("mlp_normed", "mlp_pre"),
    "W_gate": ("mlp_normed", "gate"),
    "W_out": ("mlp_post", "mlp_out"),
}
_BIASES = {
    "b_Q": "q",
    "b_K": "k",
    "b_V": "v",
    "b_O": "attn_out",
    "b_in": "mlp_pre",
    "b_gate": "gate",
    "b_out": "mlp_out",
}


def laid_over(decoder: Decoder, change: Change) -> Decoder:
    """A decoder whose weights have the change in them; the given one is not touched. Raises BadRequest as `Overlay`."""
    whole = Overlay(decoder.weights, change).changed()
    return decoder.with_parts({n: as_tensor(a, decoder.dtype, decoder.device) for n, a in whole.items()})


def dosed(decoder: Decoder, pieces: Sequence[Change], doses: Float[Tensor, " k"]) -> Decoder:
    """A decoder with dose tᵢ of every change in its weights, W + Σ tᵢ ΔWᵢ: differentiable in the doses.

    With one dyad's removal as a piece, dose 1 removes it and −tᵢ is its ε.
    """
    Overlay(decoder.weights, Change(sum((p.updates for p in pieces), ()), sum((p.shifts for p in pieces), ())))
    parts: dict[str, Tensor] = {}
    for piece, dose in zip(pieces, doses, strict=True):
        for one in (*piece.updates, *piece.shifts):
            if one.tensor not in parts:
                parts[one.tensor] = _own(decoder, one.tensor)
            part = parts[one.tensor]
            delta = dose * _delta(one, decoder)
            parts[one.tensor] = part + (delta if one.head is None else _in_head(delta, one.head, len(part)))
    if decoder.spec.tied and len({"W_E", "W_U"}.intersection(parts)) == 1:
        other = "W_U" if "W_E" in parts else "W_E"
        parts[other] = _own(decoder, other)
    return decoder.with_parts(parts)


def _own(decoder: Decoder, name: str) -> Tensor:
    found = decoder.part(name)
    if found is None:
        raise BadRequest(f"edit: expected a tensor of {decoder.spec.family}, it has no {name}; see Weights.names()")
    return found


def _delta(one: Update | Shift, decoder: Decoder) -> Tensor:
    if isinstance(one, Shift):
        return as_tensor(one.values, decoder.dtype, decoder.device)
    left, right = (as_tensor(a, decoder.dtype, decoder.device) for a in (one.left, one.right))
    return left @ right


def _in_head(delta: Tensor, head: int, heads: int) -> Tensor:
    """The change in its slice, zeros in the others: [head, …]."""
    zero = torch.zeros_like(delta)
    return torch.stack([delta if h == head else zero for h in range(heads)])


def first_block(spec: ModelSpec, change: Change) -> int:
    """The first block that a change touches: 0 for embeddings, the number of blocks for outputs alone."""
    layers = []
    for name in change.tensors:
        layer, role = split_name(name)
        reads_last = role == "W_U" or role.startswith("out.") or role == "b_U"
        layers.append(layer if layer is not None else spec.n_layers if reads_last else 0)
    return min(layers, default=spec.n_layers)


def hooked(spec: ModelSpec, change: Change) -> dict[str, Intervention]:
    """The change as interventions: to the product that passes, what the changed matrix would have added.

    For one run: what a matrix multiplies is noted where it passes, and used behind it. Exact up to rounding. Raises
    BadRequest for matrices outside the blocks, whose product no hook shows alone.
    """
    noted: dict[str, Tensor] = {}
    made: dict[str, list[Intervention]] = {}
    for update in change.updates:
        layer, role = split_name(update.tensor)
        if layer is None or role not in _PLACES:
            raise BadRequest(
                f"edit of {update.tensor}: expected a matrix of a block for an edit by hooks; lay it over the weights"
            )
        source, place = (f"L{layer}.{name}" for name in _PLACES[role])
        made.setdefault(source, []).append(_note(noted, source))
        made.setdefault(place, []).append(_add(noted, source, update, by_head=role in ("W_Q", "W_K", "W_V")))
    for shift in change.shifts:
        layer, role = split_name(shift.tensor)
        if layer is None or role not in _BIASES:
            raise BadRequest(f"edit of {shift.tensor}: expected a bias inside a block for an edit by hooks")
        mlp = spec.blocks[layer].mlp
        place = "mlp_post" if role == "b_in" and mlp and mlp.bias_after_gate else _BIASES[role]
        made.setdefault(f"L{layer}.{place}", []).append(_shift(shift))
    return {name: _all(steps) for name, steps in made.items()}


def _all(steps: Sequence[Intervention]) -> Intervention:
    def through(value: Tensor) -> Tensor:
        for step in steps:
            value = step(value)
        return value

    return through


def _note(noted: dict[str, Tensor], name: str) -> Intervention:
    def keep(value: Tensor) -> Tensor:
        noted[name] = value
        return value

    return keep


def _add(noted: Mapping[str, Tensor], source: str, update: Update, *, by_head: bool) -> Intervention:
    def add(value: Tensor) -> Tensor:
        read = noted[source]
        read = read[..., update.head, :] if source.endswith(".z") else read
        left, right = (as_tensor(a, value.dtype, value.device) for a in (update.left, update.right))
        return _placed(value, read @ left @ right, update.head if by_head else None)

    return add


def _shift(shift: Shift) -> Intervention:
    def add(value: Tensor) -> Tensor:
        moved = as_tensor(shift.values, value.dtype, value.device)
        return _placed(value, moved, shift.head)

    return add


def _placed(value: Tensor, more: Tensor, head: int | None) -> Tensor:
    """`value` with `more` added, to one head's slice [batch, position, head, …] where `head` is given."""
    if head is None:
        return value + more
    made = value.clone()
    made[..., head, :] = made[..., head, :] + more
    return made


def gradients(
    decoder: Decoder, values: Callable[[Decoder], Tensor], tensors: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """∂ value / ∂ W of canonical tensors, for each entry of what `values` makes of a decoder [n]; float64.

    One run, one backward pass per entry. A tied embedding counts on the side that is named. Exact to rounding.
    """
    names = list(dict.fromkeys(tensors))
    if decoder.spec.tied and not {"W_E", "W_U"}.isdisjoint(names):
        names = list(dict.fromkeys([*names, "W_E", "W_U"]))
    leaves = {name: _own(decoder, name).detach().clone().requires_grad_() for name in names}
    each = []
    for value in values(decoder.with_parts(leaves)):
        found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)
        each.append({name: g.double().cpu().numpy() for name, g in zip(names, found, strict=True)})
    return each


def slopes(decoder: Decoder, values: Callable[[Decoder], Tensor], pieces: Sequence[Change]) -> Float[np.ndarray, "n k"]:
    """d value / d dose of every piece at dose 0, for each entry of `values`: ∂f/∂tₖ = ⟨∂f/∂W, ΔWₖ⟩ (equation 9).

    Exact to rounding, the same as differentiating `dosed`.
    """
    each = gradients(decoder, values, [name for piece in pieces for name in piece.tensors])
    pairings = [[sum(_pairing(g[x.tensor], x) for x in (*p.updates, *p.shifts)) for p in pieces] for g in each]
    return np.array(pairings, dtype=np.float64).reshape(len(each), len(pieces))


def _pairing(grad: np.ndarray, one: Update | Shift) -> float:
    """⟨∂f/∂W, ΔW⟩ through the thin factors."""
    here = grad if one.head is None else grad[one.head]
    if isinstance(one, Shift):
        return float(here @ one.values)
    return float(np.sum(one.left * (here @ one.right.T)))
