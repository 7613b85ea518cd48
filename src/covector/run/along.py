"""What passes hook points along a text, as arrays: one row per position that the model has read."""

from collections.abc import Iterable

import numpy as np
import torch

from covector.axes import Float
from covector.errors import BadRequest, FrameUnavailable
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.text import text_ids, windows

# Positions kept: enough for covariances of 128 dimensions to a tenth of their entries, and 16 MB a hook at d = 1024.
MOST = 4096


def along(
    model: Model, text: str, hooks: Iterable[str], *, most: int = MOST, dtype: torch.dtype = torch.float32
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """What passes each hook point at the first `most` positions of a text, run in windows of the model's context.

    Rows are positions, further axes those of the hook (``head``, ``d_head`` for ``z``). The first position of each
    window sees nothing but itself and is left out. Values are exact to the precision of the run, float64 arrays.
    Raises BadRequest for most < 2, a text of fewer than two tokens, a model without a tokenizer, or hooks that are not
    there; FrameUnavailable in a frame that does not keep the model's function.
    """
    if most < 2:
        raise BadRequest(f"expected most >= 2 positions, got {most}; leave it out for {MOST}")
    if model.frame.bias or not model.frame.preserving:
        raise FrameUnavailable(f"a text runs through the model: expected a frame that keeps it, got {model.frame}")
    decoder, wanted = Decoder(model.weights, dtype, model.device), tuple(hooks)
    ids, found, read = text_ids(model, text), {name: [] for name in wanted}, 0
    with torch.no_grad():
        for some in windows(model, ids):
            passed = decoder.run(torch.from_numpy(some.tokens), capture=wanted).cache
            for name in wanted:
                rows = passed[name][:, 1:]
                found[name].append(rows.reshape(-1, *rows.shape[2:]).cpu().double().numpy())
            read += some.tokens[:, 1:].size
            if read >= most:
                break
    return {name: np.concatenate(parts)[:most] for name, parts in found.items()}
