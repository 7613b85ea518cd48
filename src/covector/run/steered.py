"""Vectors added to running prompts: the observables that come out, dose by dose, and what happens to other text.

Every dose is a world of its own; worlds start from the stream that enters the changed block and run as one batch.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.propagation.entry import Spot
from covector.run.decoder import Decoder
from covector.run.hooks import Intervention
from covector.run.sweep import ROWS
from covector.study.observable import Observable

# whole: added; direct: added to the last stream alone; indirect: added, and taken off again from the last stream.
Arm = Literal["whole", "direct", "indirect"]


def steered(
    decoder: Decoder,
    base: Mapping[str, np.ndarray],
    spot: Spot,
    deltas: Float[np.ndarray, "world d_model"],
    mask: Float[np.ndarray, "batch position"],
    observables: Sequence[Observable],
    at: Int[np.ndarray, " batch"],
    arm: Arm = "whole",
) -> Float[np.ndarray, "observable world batch"]:
    """The observables of every prompt when each delta is added where `mask` is 1; outputs read at positions `at`.

    `base`: captured activations of the unsteered prompts, `resid_pre` among them. Exact: everything behind is computed
    again. Raises BadRequest for ``direct`` and ``indirect`` in a model that normalises behind its additions: there
    nothing goes straight through the stream.
    """
    layer = spot.layer if arm != "direct" else decoder.spec.n_layers - 1
    stream = torch.from_numpy(base[f"L{layer}.resid_pre"]).to(decoder.device, decoder.dtype)
    size = max(1, ROWS // max(1, stream.shape[0] * stream.shape[1]))
    found = []
    for start in range(0, len(deltas), size):
        some = deltas[start : start + size]
        with torch.no_grad():
            run = decoder.run(
                resid_in=stream.repeat(len(some), 1, 1),
                first=layer,
                at=torch.from_numpy(np.tile(at, len(some))),
                intervene=changes(decoder, spot, some, mask, arm),
            )
        values = [o.of(run.outputs[o.output][:, 0].cpu().double().numpy()) for o in observables]
        found.append(np.stack(values).reshape(len(observables), len(some), -1))
    return np.concatenate(found, axis=1)


def changes(
    decoder: Decoder,
    spot: Spot,
    deltas: Float[np.ndarray, "world d_model"],
    mask: Float[np.ndarray, "batch position"],
    arm: Arm = "whole",
) -> dict[str, Intervention]:
    """The interventions that add each delta to its copy of the prompts (world-major rows); raises as `steered`."""
    moved = torch.from_numpy(
        (deltas[:, None, None] * mask[None, ..., None]).reshape(-1, mask.shape[1], deltas.shape[1])
    )
    moved = moved.to(decoder.device, decoder.dtype)
    last = f"L{decoder.spec.n_layers - 1}.resid_post"

    def plus(x: Tensor) -> Tensor:
        return x + moved

    if arm == "whole":
        return {spot.hook: plus}
    if any(sub.after for block in decoder.spec.blocks for sub in block.sublayers):
        raise BadRequest("this model normalises behind its additions: nothing goes straight through the stream")
    straight = spot.reader is None
    if arm == "direct":
        return {last: plus if straight else lambda x: x}
    if spot.hook == last:
        return {}
    return {spot.hook: plus, last: (lambda x: x - moved) if straight else (lambda x: x)}


def drift(
    decoder: Decoder,
    tokens: Int[np.ndarray, "batch position"],
    spot: Spot,
    deltas: Float[np.ndarray, "world d_model"],
    position: int,
) -> Float[np.ndarray, " world"]:
    """KL(unsteered ‖ steered) of the next token in nats, mean over prompts and positions from the steered one on."""
    mask = np.zeros(tokens.shape)
    mask[:, position] = 1
    ids, found = torch.from_numpy(np.ascontiguousarray(tokens)).to(decoder.device), []
    with torch.no_grad():
        plain = decoder.run(ids).logits[:, position:].double().log_softmax(-1)
        for delta in deltas:
            run = decoder.run(ids, intervene=changes(decoder, spot, delta[None], mask))
            other = run.logits[:, position:].double().log_softmax(-1)
            found.append(float((plain.exp() * (plain - other)).sum(-1).mean()))
    return np.array(found)
