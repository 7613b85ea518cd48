"""Dyad beside head: IO − S with a head's output gone, with one of its dyads gone, and with a random direction gone.

On the OV side a dyad goes by W_O → W_O(I − v vᵀ), the whole head by W_O → 0; on the QK side by W_Q → (I − u uᵀ)W_Q, the
whole head by a query of zero, so that it looks everywhere alike. What is random is a direction of the same space (what
the head writes; what its queries read), removed in the same way.

Source: theory page §4.5; SV-20.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from covector.analyses.ioi_edges import layer_of, site_of
from covector.analyses.ioi_roles import Group, attentions, on_output
from covector.axes import Float
from covector.linalg.chance.streams import generator
from covector.linalg.svd import svd
from covector.model.opened import Model
from covector.run.decoder import Decoder


@dataclass(frozen=True, eq=False)
class Removed:
    """Effects on IO − S (clean − changed), pair of names by pair of names; `dyad` is the one of largest share."""

    head: str
    side: str
    dyad: int
    share: float
    whole: float
    of_head: Float[np.ndarray, " n"]
    of_dyad: Float[np.ndarray, " n"]
    random: Float[np.ndarray, " draws"]


def removed(model: Model, groups: Sequence[Group], head: str, side: str, *, draws: int = 19, seed: int = 0) -> Removed:
    """Remove a head's side (``ov`` or ``qk``), its dyad of the largest |share| of the difference, random directions."""
    found = svd(model.map(site_of(head, side)))
    rows = found.Vh if side == "ov" else found.U.T
    parts = np.concatenate([_shares(group, head, side, rows) for group in groups]).mean(axis=0)
    dyad = int(np.argmax(np.abs(parts)))
    rng = generator(seed, f"ioi ablation {head} {side}")
    some = rng.standard_normal((draws, len(rows))) @ rows
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    decoder = Decoder(model.weights, device=model.device)
    changes = [_whole(model, head, side), *(_without(model, head, side, v) for v in (rows[dyad], *some))]
    effects = [_effect(decoder, groups, layer_of(head), change) for change in changes]
    random = np.array([e.mean() for e in effects[2:]])
    return Removed(head, side, dyad, float(parts[dyad]), float(parts.sum()), effects[0], effects[1], random)


def _shares(group: Group, head: str, side: str, rows: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "batch r"]:
    """Shares of the difference through each dyad of a head's output, or of its queries; all paths behind."""
    world, model = group.world, group.world.model
    c = next(c for c in attentions(model) if c.layer == layer_of(head))
    h, every = int(head.split("H")[1]), model.adjoint(world.start)
    G = on_output(model, every, c)
    if side == "ov":
        added = model.change(c.hook("z"))[:, :, h] @ model.need(c.hook("W_O"))[h]
        return np.einsum("btr,btr->br", G @ rows.T, added @ rows.T)
    F = model.heads(G, c).q[:, :, h] @ model.head_weight(c, "q")[h].T
    return np.einsum("btr,btr->br", F @ rows.T, model.change(c.hook("attn_normed")) @ rows.T)


def _whole(model: Model, head: str, side: str) -> dict[str, np.ndarray]:
    names = ("W_O",) if side == "ov" else ("W_Q", "b_Q")
    changes = {}
    for name in (f"L{layer_of(head)}.{role}" for role in names):
        if name in model.weights:
            changes[name] = np.array(model.weights[name], dtype=np.float64)
            changes[name][int(head.split("H")[1])] = 0
    return changes


def _without(model: Model, head: str, side: str, v: Float[np.ndarray, " d"]) -> dict[str, np.ndarray]:
    """A direction taken out of what a head writes, or of what its queries read."""
    name, h = f"L{layer_of(head)}.{'W_O' if side == 'ov' else 'W_Q'}", int(head.split("H")[1])
    W = np.array(model.weights[name], dtype=np.float64)
    W[h] -= np.outer(W[h] @ v, v) if side == "ov" else np.outer(v, v @ W[h])
    return {name: W}


def _effect(
    decoder: Decoder, groups: Sequence[Group], layer: int, changes: Mapping[str, np.ndarray]
) -> Float[np.ndarray, " n"]:
    """IO − S of the clean prompts, less the same with other weights; from the changed layer on."""
    found = []
    for group in groups:
        base = group.world.model.runs[0]
        at = np.array([t.pair.slots["end"] for t in group.tasks])
        with decoder.edited(changes) as other, torch.no_grad():
            run = other.run(resid_in=torch.from_numpy(base[f"L{layer}.resid_pre"]), first=layer,
                            at=torch.from_numpy(at))  # fmt: skip
        y, rows = run.logits[:, 0].cpu().numpy(), np.arange(len(at))
        io, s = ([getattr(t, name) for t in group.tasks] for name in ("io", "s"))
        found.append(group.measured[:, 0] - (y[rows, io] - y[rows, s]))
    return np.concatenate(found)
