"""What a checkpoint of an agent does not say: its environment, how it sees it, and what return it is asked for.

A decision transformer acts only with these: statistics of its states, the scale of its returns, its context. They
stand in an ``agent.json`` (`covector.io.agent_file`); without them an agent is read, not run.

Source: theory page F12; `docs/rollout.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from covector.axes import Float

# The planes of MiniGrid's OneHotPartialObsWrapper, in its order.
OBJECTS = ("unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent")
COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
DOORS = ("open", "closed", "locked")
CHANNELS = OBJECTS + COLOURS + DOORS
PLAIN_CHANNELS = ("object", "colour", "state")

Encoding = Literal["raw", "minigrid-one-hot"]


@dataclass(frozen=True)
class Environment:
    """A registered environment and how it is made; ``start`` are attributes that it must have at an episode's begin."""

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """How an observation becomes the numbers of the state: which key of it, which encoding, which order of axes.

    ``axes`` is written as ``x y channel -> channel x y``; flattened row by row afterwards.
    """

    key: str | None = None
    encoding: Encoding = "raw"
    axes: str = ""


@dataclass(frozen=True)
class Padding:
    """What stands in front while an episode is shorter than the context.

    ``masked``: nothing, the attention mask hides it. Else values for every input: a number, or ``target``.
    """

    masked: bool = True
    fill: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Success:
    """When an episode counts as a success; ``rule`` is one of the three, ``level`` its number."""

    rule: Literal["last_reward_above", "return_at_least", "survives"]
    level: float = 0.0

    def __str__(self) -> str:
        return {
            "last_reward_above": f"the episode ends with a reward above {self.level:g}",
            "return_at_least": f"the return is {self.level:g} or more",
            "survives": "the episode is not ended by a failure before its time is over",
        }[self.rule]

    def of(self, total: float, last: float, terminated: bool) -> bool:
        """Whether an episode of this return, last reward and end was one."""
        if self.rule == "survives":
            return not terminated
        return last > self.level if self.rule == "last_reward_above" else total >= self.level


@dataclass(frozen=True)
class Agent:
    """Everything that an agent needs to act, besides its weights.

    ``mean`` and ``std`` [state] normalise states (None: taken as they are). The return-to-go that the model is given is
    (``target`` − reward so far)/``scale``. ``context``: timesteps. ``given``: whether a timestep's action token holds
    the action of the ``same step`` (not yet known at the last) or the ``previous`` one. ``most_time``: the last row of
    the time table. ``untrained``: output heads that no training touched. ``where``: the file it came from.
    """

    environment: Environment
    target: float
    context: int
    mean: Float[np.ndarray, " state"] | None = None
    std: Float[np.ndarray, " state"] | None = None
    observation: Observation = field(default_factory=Observation)
    targets: tuple[float, ...] = ()
    scale: float = 1.0
    padding: Padding = field(default_factory=Padding)
    discrete: bool = True
    actions: tuple[str, ...] = ()
    given: Literal["same step", "previous"] = "same step"
    most_time: int | None = None
    success: Success | None = None
    score: tuple[float, float] | None = None
    states: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    source: str = ""
    where: str = ""

    def conduct(self) -> dict[str, Any]:
        """All that an episode depends on besides weights and seed, as plain values: what makes two agents the same."""
        none: tuple[float, ...] = ()
        return {
            "kwargs": dict(self.environment.kwargs), "start": dict(self.environment.start),
            "observation": [self.observation.key, self.observation.encoding, self.observation.axes],
            "means": list(none if self.mean is None else self.mean.tolist()),
            "deviations": list(none if self.std is None else self.std.tolist()),
            "target": self.target, "scale": self.scale, "context": self.context,
            "padding": "masked" if self.padding.masked else dict(self.padding.fill), "discrete": self.discrete,
            "given": self.given, "most_time": self.most_time,
            "success": None if self.success is None else [self.success.rule, self.success.level],
        }  # fmt: skip

    def normalised_score(self, total: float) -> float:
        """The return in percent of the way from a random policy to an expert; NaN where they are not known."""
        if self.score is None:
            return float("nan")
        low, high = self.score
        return 100 * (total - low) / (high - low)


def state_labels(agent: Agent) -> tuple[str, ...]:
    """Names of the state's numbers where they are known: given, or objects at places of a MiniGrid view."""
    if agent.states:
        return agent.states
    if agent.observation.axes.replace(" ", "") != "xychannel->channelxy":
        return ()
    names = CHANNELS if agent.observation.encoding == "minigrid-one-hot" else PLAIN_CHANNELS
    return tuple(f"{name} x{x} y{y}" for name in names for x in range(7) for y in range(7))
