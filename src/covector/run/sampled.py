"""Text that a model says by itself: neutral text where none is given.

KL(base ‖ edited) per token of the base's own samples is the KL rate between the two as processes, up to sampling.
"""

from collections.abc import Callable

import numpy as np
import torch

from covector.axes import Int
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.prompts import start_ids

LENGTH = 64


def sampled(
    model: Model,
    decoder: Decoder,
    tokens: int,
    seed: int,
    tick: Callable[[int], None] = lambda _: None,
) -> Int[np.ndarray, "batch position"]:
    """Windows drawn token by token at temperature 1, from the start token, or a uniformly drawn one where none is.

    At least `tokens` of them in all. The same seed gives the same text.
    """
    start = start_ids(model, "auto")
    batch, length = _shape(model, tokens)
    draw = np.random.default_rng(seed)
    rows = np.tile(start, (batch, 1)) if start else draw.integers(0, model.spec.n_vocab, (batch, 1))
    with torch.no_grad():
        while rows.shape[1] < length:
            at = torch.full((batch,), rows.shape[1] - 1)
            p = decoder.run(torch.from_numpy(rows), at=at).logits[:, 0].double().softmax(-1).cpu().numpy()
            chosen = (p.cumsum(axis=1) < draw.random((batch, 1))).sum(axis=1)
            tick(rows.size)
            rows = np.concatenate([rows, np.minimum(chosen, p.shape[1] - 1)[:, None]], axis=1)
    return rows.astype(np.int64)


def sampling_work(model: Model, tokens: int) -> int:
    """Tokens that are run until so many are drawn: every step runs what is there."""
    batch, length = _shape(model, tokens)
    return batch * length * (length - 1) // 2


def _shape(model: Model, tokens: int) -> tuple[int, int]:
    """Windows, and the tokens of each."""
    length = max(min(LENGTH, model.spec.n_ctx), 2)
    return max(2, -(-tokens // length)), length
