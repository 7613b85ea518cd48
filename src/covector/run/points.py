"""Runs of the reference decoder as the working points that a linearised model is made from."""

from collections.abc import Mapping

import numpy as np
import torch

from covector.axes import Int
from covector.propagation.linearised import CAPTURED
from covector.run.hooks import Intervention
from covector.run.runner import Inputs, Runner


def captured(
    runner: Runner,
    tokens: Int[np.ndarray, "batch position"] | Mapping[str, np.ndarray],
    intervene: Mapping[str, Intervention] | None = None,
) -> dict[str, np.ndarray]:
    """Every activation that stand-ins are made from, and the outputs, by hook; float64 where the runner is.

    `tokens` are ids, or an agent's inputs by name ([batch, time] or [batch, time, n]). `intervene` changes hook points,
    as `Runner.run` does; what is captured is what went on. A runner that does not show some of these hook points
    leaves them out (the transformers runner: scores, and queries and keys after their turn).
    """
    wanted = CAPTURED | {"resid_pre", "resid_mid"}
    named = [n for n in runner.hooks if n.rpartition(".")[2] in wanted]
    with torch.no_grad():
        run = runner.run(as_inputs(tokens), capture=named, intervene=intervene)
    cache = {name: value.cpu().numpy() for name, value in run.cache.items()}
    return cache | {f"out.{name}": value.cpu().numpy() for name, value in run.outputs.items()}


def as_inputs(tokens: Int[np.ndarray, "batch position"] | Mapping[str, np.ndarray]) -> Inputs:
    """Arrays of ids, or of an agent's inputs by name, as a runner takes them."""
    if isinstance(tokens, Mapping):
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tokens.items()}
    return torch.from_numpy(np.ascontiguousarray(tokens))
