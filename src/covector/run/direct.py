"""What a change of one matrix does to the action straight away, and what it does in all.

Straight: what the changed matrix adds to the stream goes to the outputs alone; later blocks see the stream as it was.
In all: the edited model. Both at recorded moments.

Source: theory page F12, F13.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float
from covector.model.overlay import Change, Update
from covector.model.weights import split_name
from covector.run.decoder import Decoder
from covector.run.pieces import as_tensor
from covector.run.replay import Moments

# Matrices that write the stream, and what they multiply.
_WRITERS = {"W_O": "z", "W_out": "mlp_post"}


def writes_straight(decoder: Decoder, change: Change) -> bool:
    """Whether a straight effect is defined: the change is of matrices that write a stream nothing norms afterwards."""
    blocks = decoder.spec.blocks
    after = any(sub.after or sub.post for block in blocks for sub in block.sublayers)
    return not after and all(split_name(u.tensor)[1] in _WRITERS for u in change.updates) and not change.shifts


def straight_values(
    decoder: Decoder, seen: Moments, changes: Sequence[Change]
) -> Float[np.ndarray, "change moment action"]:
    """The action output when each change reaches the outputs alone; every change must be `writes_straight`."""
    last = f"L{decoder.spec.n_layers - 1}.resid_post"
    hooks = sorted({_hook(u) for change in changes for u in change.updates})
    parts = []
    with torch.inference_mode():
        for sight in seen.sights:
            run = decoder.run(sight.inputs, mask=sight.mask, positions=sight.positions, capture=[*hooks, last])
            at = torch.from_numpy(np.asarray(sight.last))
            rows = torch.arange(len(at))
            stream = run.cache[last][rows, at][:, None]
            here = {hook: run.cache[hook][rows, at] for hook in hooks}
            parts.append(torch.stack([_out(decoder, stream, change, here) for change in changes]))
    return torch.cat(parts, dim=1).double().cpu().numpy()


def _hook(update: Update) -> str:
    layer, role = split_name(update.tensor)
    return f"L{layer}.{_WRITERS[role]}"


def _out(decoder: Decoder, stream: Tensor, change: Change, here: dict[str, Tensor]) -> Tensor:
    for update in change.updates:
        x = here[_hook(update)]
        x = x if update.head is None else x[:, update.head]
        left, right = (as_tensor(a, stream.dtype, stream.device) for a in (update.left, update.right))
        stream = stream + (x @ left @ right)[:, None]
    return decoder.run(resid_in=stream, first=decoder.spec.n_layers).outputs["action"][:, 0]
