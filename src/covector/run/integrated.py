"""Gradients taken on the way from one activation to another, and what attention does with changed queries or keys.

Both are better guesses of a patch than the gradient at its start.

Source: `docs/theory/observables.md`, equations 16–17.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.quadrature import gauss_legendre
from covector.run.decoder import Decoder
from covector.run.sweep import ROWS, Place, Worlds, replaced
from covector.study.observable import Observable


def integrated(
    decoder: Decoder,
    base: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
    places: Sequence[Place],
    masks: Mapping[str, Float[np.ndarray, "batch position"]],
    observable: Observable,
    at: Int[np.ndarray, " batch"],
    *,
    steps: int,
    direct: bool = False,
) -> Iterator[tuple[Place, Float[np.ndarray, " batch"]]]:
    """Per place, base − source times the observable's gradient, averaged along the straight line between them.

    Only the place itself moves along its line; what stands behind it follows at every node (`direct`: is held, as
    `sweep` does it with an empty route). With more nodes it tends to the effect of the patch, base − patched, exactly:
    `steps` Gauss–Legendre nodes leave an error that falls geometrically where the model is smooth, and with the square
    of the number at kinks (ReLU). One forward and one backward pass from the place's layer per node. The rest as in
    `sweep`. Raises BadRequest for steps below 1.
    """
    if steps < 1:
        raise BadRequest(f"expected at least one step along the line, got {steps}")
    by_hook: dict[str, list[Place]] = {}
    for place in places:
        by_hook.setdefault(place.hook, []).append(place)
    weights = torch.from_numpy(observable.vector).to(decoder.device, decoder.dtype)
    for hook, group in by_hook.items():
        new = torch.from_numpy(source[hook]).to(decoder.device, decoder.dtype)
        batch, length = base["resid_in"].shape[:2]
        most = max(1, ROWS // (batch * length))
        for some in (group[start : start + most] for start in range(0, len(group), most)):
            worlds = Worlds(decoder, base, len(some), np.tile(at, len(some)))
            own = worlds.repeated(hook).chunk(len(some))
            there = [replaced(v, new, p, masks[p.slot] if p.slot else None) for v, p in zip(own, some, strict=True)]
            line = (torch.cat(own), torch.cat(there))
            held = worlds.held(group[0]) if direct else {}
            total = torch.zeros_like(line[0])
            for node, weight in zip(*gauss_legendre(steps), strict=True):
                total += weight * _gradient(worlds, hook, torch.lerp(*line, node), held, weights, observable.output)
            values = (total * (line[0] - line[1])).reshape(len(some), batch, -1).sum(dim=-1)
            yield from zip(some, values.cpu().numpy().astype(np.float64), strict=True)


def _gradient(worlds: Worlds, hook: str, value: Tensor, held: Mapping, weights: Tensor, output: str) -> Tensor:
    """Of the observable, with respect to what passes a hook, where `value` passes there in every world."""
    leaf = value.detach().requires_grad_()
    outputs = worlds.forward(int(hook[1:].partition(".")[0]), {**held, hook: lambda _: leaf}, grad=True).outputs
    (found,) = torch.autograd.grad((outputs[output][:, 0] @ weights).sum(), leaf)
    return found


def changed_patterns(
    decoder: Decoder,
    base: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
    role: str,
    mask: Float[np.ndarray, "batch position"] | None = None,
) -> dict[str, Float[np.ndarray, "batch head position position"]]:
    """Attention weights of every layer, by hook, when all its queries (role ``q``) or keys (``k``) are the source's.

    `mask`: at these positions only. Norms, turns, caps and the softmax are computed, not approximated; each layer reads
    the base run's stream.
    """
    found, batch = {}, len(base["resid_in"])
    worlds = Worlds(decoder, base, 1, np.zeros(batch, dtype=np.int64))
    for layer, block in enumerate(decoder.spec.blocks):
        if block.attn is None:
            continue
        place, hook = Place(layer, role), f"L{layer}.pattern"
        new = torch.from_numpy(source[place.hook]).to(decoder.device, decoder.dtype)
        put = {place.hook: lambda value, new=new, place=place: replaced(value, new, place, mask)}
        found[hook] = worlds.forward(layer, put, [hook]).cache[hook].cpu().numpy()
    return found
