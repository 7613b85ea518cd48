"""Runs of the reference decoder as the working points that a linearised model is made from."""

from collections.abc import Mapping

import numpy as np
import torch

from covector.axes import Int
from covector.propagation.linearised import CAPTURED
from covector.run.decoder import Decoder
from covector.run.hooks import Intervention, hook_names


def captured(
    decoder: Decoder,
    tokens: Int[np.ndarray, "batch position"] | Mapping[str, np.ndarray],
    intervene: Mapping[str, Intervention] | None = None,
) -> dict[str, np.ndarray]:
    """Every activation that stand-ins are made from, and the outputs, by hook; float64 where the decoder is.

    `tokens` are ids, or an agent's inputs by name ([batch, time] or [batch, time, n]). `intervene` changes hook points,
    as `Decoder.run` does; what is captured is what went on.
    """
    wanted = CAPTURED | {"resid_pre", "resid_mid"}
    named = [n for n in hook_names(decoder.spec) if n.rpartition(".")[2] in wanted]
    with torch.no_grad():
        if isinstance(tokens, Mapping):
            inputs = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tokens.items()}
        else:
            inputs = torch.from_numpy(np.ascontiguousarray(tokens))
        run = decoder.run(inputs, capture=named, intervene=intervene)
    cache = {name: value.numpy() for name, value in run.cache.items()}
    return cache | {f"out.{name}": value.numpy() for name, value in run.outputs.items()}
