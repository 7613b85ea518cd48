"""Episodes: an agent in its environment, many at once, each from its own seed and counted once.

A batch keeps its slots full: where an episode ends the next seed begins. Which episodes share a batch, and in which
order, depends on the seeds alone, so that the same request gives the same bits whoever runs it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from covector.errors import CovectorError, EnvironmentFailed
from covector.run.acting import Context, action_values, chosen
from covector.run.decoder import Decoder
from covector.run.environments import Factory, World, check_fit, check_state, encoded, make
from covector.study.agent import Agent

SLOTS = 32


@dataclass(frozen=True)
class Episode:
    """One episode: its seed, the return asked for and achieved, its length, how it ended, and what was done.

    ``success`` is None where the agent file has no rule. ``actions`` are indices, or vectors as tuples.
    """

    seed: int
    target: float
    total: float
    length: int
    terminated: bool
    success: bool | None
    actions: tuple[Any, ...]

    @property
    def failed_at(self) -> int | None:
        """The step at which it ended in failure; None for one that did not (its time is then censored)."""
        return self.length if self.terminated and not self.success else None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """An episode with what was seen: encoded states [step, state] and rewards [step]."""

    episode: Episode
    states: np.ndarray
    rewards: np.ndarray


@dataclass(eq=False)
class Stage:
    """An agent's environments, made once and begun anew for every episode. `factory` makes them where given."""

    agent: Agent
    factory: Factory | None = None
    slots: int = SLOTS

    def __post_init__(self) -> None:
        self.worlds: list[World] = []

    def world(self, slot: int) -> World:
        """The environment of a slot."""
        while len(self.worlds) <= slot:
            self.worlds.append(make(self.agent, self.factory))
        return self.worlds[slot]

    def renew(self, slot: int) -> None:
        """Make the environment of a slot anew: what state a broken one is in nobody knows."""
        with contextlib.suppress(Exception):
            self.worlds[slot].env.close()
        self.worlds[slot] = make(self.agent, self.factory)

    def close(self) -> None:
        """Give back what the environments hold."""
        for world in self.worlds:
            world.env.close()
        self.worlds = []


def play(
    decoder: Decoder,
    stage: Stage,
    seeds: Sequence[int],
    target: float,
    *,
    keep: bool = False,
    tick: Callable[[int], None] | None = None,
    broken: list[EnvironmentFailed] | None = None,
) -> list[Trajectory]:
    """One episode per seed, in the order of the seeds; states and rewards only with `keep`. `tick(episodes done)`.

    Raises EnvironmentFailed, naming the seed, when an environment breaks down; with a list `broken` that error is added
    to it instead, the episode is left out and the others go on. Raises BadAgent where the environment does not fit.
    """
    check_fit(stage.agent, decoder.spec, stage.world(0))
    batch = _Batch(decoder, stage, list(seeds), target, keep, broken)
    with torch.inference_mode():
        while batch.live:
            ended = batch.advance()
            if tick is not None and ended:
                tick(len(batch.done))
    return [batch.done[i] for i in sorted(batch.done)]


class _Batch:
    """The slots of a batch and the episodes that run in them."""

    def __init__(
        self, decoder: Decoder, stage: Stage, seeds: list[int], target: float, keep: bool,
        broken: list[EnvironmentFailed] | None,
    ) -> None:  # fmt: skip
        self.decoder, self.stage, self.seeds, self.target, self.keep = decoder, stage, seeds, target, keep
        self.broken = broken
        self.agent = stage.agent
        self.slots = min(stage.slots, len(seeds))
        self.context = Context(stage.agent, decoder.spec, self.slots)
        self.done: dict[int, Trajectory] = {}
        self.waiting = list(range(len(seeds)))[::-1]
        self.of: list[int | None] = [None] * self.slots
        self.totals = np.zeros(self.slots)
        self.lengths = np.zeros(self.slots, dtype=np.int64)
        self.actions: list[list[Any]] = [[] for _ in range(self.slots)]
        self.seen: list[list[np.ndarray]] = [[] for _ in range(self.slots)]
        self.rewards: list[list[float]] = [[] for _ in range(self.slots)]
        for slot in range(self.slots):
            self._begin(slot)

    @property
    def live(self) -> list[int]:
        """Slots in which an episode runs."""
        return [s for s, i in enumerate(self.of) if i is not None]

    def _begin(self, slot: int) -> None:
        first = None
        while first is None:
            self.of[slot] = i = self.waiting.pop() if self.waiting else None
            if i is None:
                return
            self.totals[slot], self.lengths[slot] = 0.0, 0
            first = self._guarded(slot, lambda world, i=i: world.begin(self.seeds[i]))
        state = encoded(self.agent, first[None])[0]
        check_state(self.agent, self.decoder.spec, len(state))
        self.context.begin(slot, state, self.target)
        self.actions[slot], self.seen[slot], self.rewards[slot] = [], [state] if self.keep else [], []

    def advance(self) -> int:
        """One step of every live episode; how many ended."""
        rows = np.array(self.live)
        values = action_values(self.decoder, self.context.sight(rows)).cpu().numpy()
        taken = chosen(self.agent, values)
        acts = taken.tolist() if self.agent.discrete else list(taken)
        came = [self._guarded(s, lambda world, a=a: world.step(a)) for s, a in zip(rows.tolist(), acts, strict=True)]
        whole = [j for j, c in enumerate(came) if c is not None]
        if len(whole) < len(rows):
            for slot in np.delete(rows, whole).tolist():
                self._begin(slot)
            rows, taken, came = rows[whole], taken[whole], [came[j] for j in whole]
            if not whole:
                return 0
        states = encoded(self.agent, np.stack([c[0] for c in came]))
        rewards = np.array([c[1] for c in came])
        self.totals[rows] += rewards
        self.lengths[rows] += 1
        self.context.follow(rows, taken, states, rewards.astype(np.float32))
        ended = 0
        for j, slot in enumerate(rows.tolist()):
            self.actions[slot].append(int(taken[j]) if self.agent.discrete else tuple(map(float, taken[j])))
            if self.keep:
                self.rewards[slot].append(float(rewards[j]))
            _, reward, terminated, truncated = came[j]
            if terminated or truncated:
                self._end(slot, reward, terminated)
                ended += 1
            elif self.keep:
                self.seen[slot].append(states[j])
        return ended

    def _end(self, slot: int, last: float, terminated: bool) -> None:
        i = self.of[slot]
        assert i is not None, "only live slots end"
        total, rule = float(self.totals[slot]), self.agent.success
        success = None if rule is None else rule.of(total, last, terminated)
        episode = Episode(
            self.seeds[i], self.target, total, int(self.lengths[slot]), terminated, success, tuple(self.actions[slot])
        )
        self.done[i] = Trajectory(episode, np.array(self.seen[slot]), np.array(self.rewards[slot]))
        self._begin(slot)

    def _guarded(self, slot: int, act: Callable[[World], Any]) -> Any:
        try:
            return act(self.stage.world(slot))
        except CovectorError:
            raise
        except Exception as error:
            i = self.of[slot]
            seed = self.seeds[i] if i is not None else "?"
            failure = EnvironmentFailed(
                f"{self.agent.environment.id}: expected the episode of seed {seed} to run, it broke down after "
                f"{int(self.lengths[slot])} steps: {type(error).__name__}: {error}"
            )
            if self.broken is None:
                raise failure from error
            self.broken.append(failure)
            self.stage.renew(slot)
            return None


def asked(agent: Agent, target: float | None) -> Agent:
    """The agent with another target return."""
    return agent if target is None else dataclasses.replace(agent, target=target)
