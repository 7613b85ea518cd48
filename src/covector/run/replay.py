"""Recorded episodes shown to a model again: what it would do at each step, and what passes inside it.

Along clean trajectories an edited model can be asked what it would have done, without the environment drifting away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float
from covector.model.spec import ModelSpec
from covector.model.weights import split_name
from covector.run.acting import Context, Sight, action_values
from covector.run.assembly import spread_mask
from covector.run.decoder import Decoder
from covector.run.edit_runs import SOURCES
from covector.run.episodes import Trajectory
from covector.study.agent import Agent


@dataclass(frozen=True, eq=False)
class Moments:
    """Some moments of recorded episodes as the model saw them: the sights, and which episode each row is of."""

    agent: Agent
    sights: tuple[Sight, ...]
    episodes: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        """How many moments."""
        return sum(map(len, self.episodes))

    @property
    def of(self) -> np.ndarray:
        """The episode of every moment, as its place in the list of trajectories."""
        return np.concatenate(self.episodes)


def moments(agent: Agent, spec: ModelSpec, trajectories: Sequence[Trajectory], most: int) -> Moments:
    """At most about `most` moments: every k-th step of every trajectory."""
    steps = sum(len(t.states) for t in trajectories)
    every = max(1, -(-steps // most))
    kept = [(rows, sight) for step, rows, sight in walked(agent, spec, trajectories) if step % every == 0]
    return Moments(agent, tuple(s for _, s in kept), tuple(r for r, _ in kept))


def walked(
    agent: Agent, spec: ModelSpec, trajectories: Sequence[Trajectory]
) -> Iterator[tuple[int, np.ndarray, Sight]]:
    """(step, trajectories that last as long, what the model was given then), as it happened."""
    context, live = Context(agent, spec, len(trajectories)), np.arange(len(trajectories))
    for i, trajectory in enumerate(trajectories):
        context.begin(i, trajectory.states[0], trajectory.episode.target)
    step = 0
    while len(live):
        yield step, live, context.sight(live)
        step += 1
        live = np.array([i for i in live.tolist() if len(trajectories[i].states) > step], dtype=np.int64)
        here = [trajectories[int(i)] for i in live]
        if here:
            done = np.array([t.episode.actions[step - 1] for t in here])
            gained = np.array([t.rewards[step - 1] for t in here], dtype=np.float32)
            context.follow(live, done, np.stack([t.states[step] for t in here]), gained)


def values(decoder: Decoder, seen: Moments) -> Float[np.ndarray, "moment action"]:
    """The action output at every moment; float64."""
    with torch.inference_mode():
        found = [action_values(decoder, sight).double().cpu().numpy() for sight in seen.sights]
    return np.concatenate(found)


def matrix_inputs(decoder: Decoder, seen: Moments, tensors: Sequence[str]) -> dict[str, np.ndarray]:
    """What each matrix multiplies at the moments, over all positions that are not padding; float64.

    ``W_O``: [rows, head, d_head]; the others [rows, n]; of a lookup its indices.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    for sight in seen.sights:
        hooks = {name: hook for name in tensors if (hook := _hook(name))}
        with torch.inference_mode():
            run = decoder.run(
                sight.inputs, mask=sight.mask, positions=sight.positions, capture=sorted(set(hooks.values()))
            )
        for name in tensors:
            if name not in hooks:
                value = sight.inputs[name.split(".")[1]]
                found[name].append(_given(value, sight))
                continue
            value = run.cache[hooks[name]]
            found[name].append(value[_real(decoder, sight, value)].double().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _hook(name: str) -> str | None:
    layer, role = split_name(name)
    if layer is not None:
        return f"L{layer}.{SOURCES[role]}"
    return None if name.startswith("in.") else "final_normed"


def _real(decoder: Decoder, sight: Sight, value: Tensor) -> Tensor:
    length = value.shape[1]
    if sight.mask is None:
        return torch.ones(value.shape[:2], dtype=torch.bool)
    return spread_mask(decoder.spec.assembly, sight.mask, length)


def _given(value: Tensor, sight: Sight) -> np.ndarray:
    kept = value if sight.mask is None else value[sight.mask[:, : value.shape[1]]]
    flat = kept.reshape(-1, *value.shape[2:]).numpy()
    return flat if flat.dtype.kind == "i" else flat.reshape(len(flat), -1).astype(np.float64)
