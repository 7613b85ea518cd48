"""How an agent acts: the timesteps that it sees as inputs of the model, for many episodes at once, and its choice.

Rows of a batch are episodes. The newest timestep stands last; what stands in front of a young episode is hidden by the
mask or filled, as the agent file says. In the last timestep of an interleaved sequence the action is not known yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float, Int
from covector.errors import BadAgent
from covector.model.spec import ModelSpec
from covector.run.decoder import Decoder
from covector.study.agent import Agent


@dataclass(frozen=True)
class Sight:
    """What the model is given: inputs by name, the mask over timesteps and position numbers (None: as usual)."""

    inputs: Mapping[str, Tensor]
    mask: Tensor | None
    positions: Tensor | None
    last: Int[np.ndarray, " batch"]


class Context:
    """The last timesteps of every episode of a batch, the newest in the last column."""

    def __init__(self, agent: Agent, spec: ModelSpec, slots: int) -> None:
        assembly, state, out = spec.assembly, spec.input("state"), spec.output("action")
        assert state, "check_fit comes first"
        assert out, "check_fit comes first"
        self.agent, self.spec, self.steps = agent, spec, np.zeros(slots, dtype=np.int64)
        self.interleaved = assembly.mode == "interleaved"
        self.names = [i.name for i in assembly.inputs]
        # Whether the last timestep stops before its action, which is what is asked for.
        self.unknown = self.interleaved and "action" in self.names and agent.given == "same step"
        self.time = assembly.time.name if assembly.time else None
        width, fill = agent.context, agent.padding.fill
        known = {*self.names, "timestep", *([self.time] if self.time else [])}
        for name in fill:
            if name not in known:
                raise BadAgent(f"{agent.where}: padding: expected {', '.join(sorted(known))}, got '{name}'; rename it")
        self._check(agent, spec)
        self.most = agent.most_time if agent.most_time is not None else assembly.time.n - 1 if assembly.time else 0
        action = spec.input("action")
        vector = not agent.discrete
        self.states = np.full((slots, width, state.n), fill.get("state", 0.0), dtype=np.float32)
        self.returns = np.zeros((slots, width), dtype=np.float32)
        self.times = np.full((slots, width), int(fill.get(self.time or "", fill.get("timestep", 0))), dtype=np.int64)
        shape = (slots, width, out.n) if vector else (slots, width)
        self.actions = np.full(shape, fill.get("action", 0), dtype=np.float32 if vector else np.int64)
        self.blank = (self.states[0].copy(), self.times[0].copy(), self.actions[0].copy())
        self.filled_return = fill.get("return", 0.0)
        if action is not None and vector and action.n != out.n:
            raise BadAgent(f"expected as many numbers of an action in as out, got {action.n} and {out.n}")

    def _check(self, agent: Agent, spec: ModelSpec) -> None:
        tokens = agent.context * (len(self.names) if self.interleaved else 1)
        if spec.assembly.positions == "learned" and tokens - self.unknown > spec.n_ctx:
            raise BadAgent(
                f"{agent.where}: context: expected timesteps that fit the model's {spec.n_ctx} positions, got "
                f"{agent.context} of {tokens // agent.context} tokens"
            )
        time = spec.assembly.time
        if time is not None and agent.most_time is not None and agent.most_time >= time.n:
            raise BadAgent(
                f"{agent.where}: timestep.most: expected a row of the time table, 0–{time.n - 1}, got {agent.most_time}"
            )

    def begin(self, slot: int, state: Float[np.ndarray, " state"], target: float) -> None:
        """An episode's first timestep in one row; what the row held before is gone."""
        self.states[slot], self.times[slot], self.actions[slot] = self.blank
        asked = target / self.agent.scale
        self.returns[slot] = asked if self.filled_return == "target" else float(self.filled_return)
        self.states[slot, -1], self.returns[slot, -1], self.times[slot, -1] = state, asked, 0
        if not (self.agent.given == "previous" and self.agent.padding.fill):
            self.actions[slot, -1] = 0
        self.steps[slot] = 1

    def follow(
        self,
        rows: Int[np.ndarray, " live"],
        actions: np.ndarray,
        states: Float[np.ndarray, "live state"],
        rewards: Float[np.ndarray, " live"],
    ) -> None:
        """The next timestep of some rows: what was done, what was seen and gained then."""
        before = self.returns[rows, -1]
        if self.agent.given == "same step":
            self.actions[rows, -1] = actions
        for held in (self.states, self.returns, self.times, self.actions):
            held[rows, :-1] = held[rows, 1:]
        self.states[rows, -1] = states
        self.returns[rows, -1] = before - rewards / self.agent.scale
        self.times[rows, -1] = np.minimum(self.steps[rows], self.most)
        self.actions[rows, -1] = actions if self.agent.given == "previous" else 0
        self.steps[rows] += 1

    def sight(self, rows: Int[np.ndarray, " live"]) -> Sight:
        """What the model is given for these rows now; masked padding is cut where no row needs it."""
        width = self.agent.context
        known = np.minimum(self.steps[rows], width)
        first = width - int(known.max(initial=1)) if self.agent.padding.masked else 0
        held = {"state": self.states, "return": self.returns, "action": self.actions, self.time: self.times}
        inputs = {}
        for name in (*self.names, *([self.time] if self.time else [])):
            value = held[name][rows, first:]
            if name == "action" and self.unknown:
                value = value[:, :-1]
            if value.shape[1]:
                inputs[name] = torch.from_numpy(value)
        steps = width - first
        length = steps * len(self.names) - self.unknown if self.interleaved else steps
        last = np.full(len(rows), self._state_at(length))
        mask = positions = None
        if self.agent.padding.masked and (known < steps).any():
            mask = torch.from_numpy(np.arange(steps)[None] >= steps - known[:, None])
            if self.spec.assembly.positions == "learned":
                tokens = len(self.names) if self.interleaved else 1
                gap = (steps - known[:, None]) * tokens
                positions = torch.from_numpy(np.maximum(np.arange(length)[None] - gap, 0))
        return Sight(inputs, mask, positions, last)

    def _state_at(self, length: int) -> int:
        if not self.interleaved:
            return length - 1
        step = len(self.names)
        return (length - 1) // step * step + self.names.index("state")


def action_values(decoder: Decoder, sight: Sight) -> Tensor:
    """The action output where it is read now [batch, action]: logits of discrete actions, else the action itself."""
    run = decoder.run(
        sight.inputs, mask=sight.mask, positions=sight.positions, at=torch.from_numpy(np.asarray(sight.last))
    )
    return run.outputs["action"][:, 0]


def chosen(agent: Agent, values: Float[np.ndarray, "batch action"]) -> np.ndarray:
    """The action taken: the largest logit (the first of equals), or the numbers themselves."""
    return values.argmax(axis=1) if agent.discrete else values
