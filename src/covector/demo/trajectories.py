"""Trajectories of mixed quality from an expert: what a decision transformer learns from.

Every episode draws how it is played. ``expert``: the expert alone. ``noisy``: each action is replaced by a uniformly
random one at a rate drawn from 0 to 1. ``late``: waits (and wanders, at a drawn rate) until a drawn step, then plays as
the expert does. ``random``: uniformly random throughout. A low return is so reached on purpose as well as by accident,
and a return-to-go says something about what to do.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np

from covector.axes import Float, Int
from covector.demo.experts import DONE, Expert

OBJECTS, COLOURS = 11, 6  # planes of MiniGrid's OneHotPartialObsWrapper before the three door states
PLANES = OBJECTS + COLOURS + 3
VIEW = 7
MANNERS = {"expert": 0.1, "noisy": 0.35, "late": 0.45, "random": 0.1}
MOST_STEPS = 100

Manner = Literal["expert", "noisy", "late", "random"]


@dataclass(frozen=True)
class World:
    """An environment of discrete actions: its id, how it is made, how long an episode may last, what is seen of it."""

    id: str
    kwargs: dict[str, Any]
    most_steps: int
    actions: int
    state: int  # numbers per state
    is_grid: bool  # a MiniGrid view, seen as one-hot planes; else a vector of numbers

    def make(self) -> gymnasium.Env:
        """A fresh environment."""
        return gymnasium.make(self.id, disable_env_checker=True, **self.kwargs)

    def see(self, observed: Any) -> np.ndarray:
        """What is kept of an observation: the view [x, y, 3] as bytes, or the vector as float32."""
        return np.asarray(observed["image"], np.uint8) if self.is_grid else np.asarray(observed, np.float32)

    def encode(self, seen: np.ndarray) -> Float[np.ndarray, "*batch token"]:
        """The state that the agent is given, float32, before statistics are taken out."""
        return one_hot(seen) if self.is_grid else seen


def open_world(name: str, most_steps: int | None = None) -> World:
    """The environment of that id; `most_steps` where an episode has to end (MiniGrid: 100 unless said).

    Raises ValueError for actions that are not discrete, or observations that are neither a view nor a vector.
    """
    is_grid = name.startswith(("MiniGrid-", "BabyAI-"))
    if is_grid:
        importlib.import_module("minigrid")  # registers its environments
        kwargs: dict[str, Any] = {"max_steps": most_steps or MOST_STEPS}
    else:
        kwargs = {"max_episode_steps": most_steps} if most_steps else {}
    env = gymnasium.make(name, disable_env_checker=True, **kwargs)
    space, seen = env.action_space, env.observation_space
    if not isinstance(space, gymnasium.spaces.Discrete) or space.start != 0:
        raise ValueError(f"{name}: expected discrete actions 0, 1, …, got {space}; choose another environment")
    if is_grid:
        state, steps = VIEW * VIEW * PLANES, kwargs["max_steps"]
    elif isinstance(seen, gymnasium.spaces.Box) and len(seen.shape) == 1:
        state, steps = seen.shape[0], most_steps or (env.spec and env.spec.max_episode_steps) or 0
    else:
        raise ValueError(f"{name}: expected a MiniGrid view or a vector of numbers as observation, got {seen}")
    if not steps:
        raise ValueError(f"{name}: expected an environment whose episodes end; say --max-steps")
    return World(name, kwargs, int(steps), int(space.n), int(state), is_grid)


def one_hot(view: np.ndarray) -> Float[np.ndarray, "*batch token"]:
    """MiniGrid's views [..., x, y, 3] as 0 and 1, index 49·plane + 7·x + y: 11 objects, 6 colours, 3 door states."""
    plane = np.moveaxis(view.astype(np.int64), -1, -3) + np.array([0, OBJECTS, OBJECTS + COLOURS])[:, None, None]
    out = np.zeros((*view.shape[:-3], PLANES, *view.shape[-3:-1]), np.float32)
    np.put_along_axis(out, plane, 1.0, axis=-3)
    return out.reshape(*view.shape[:-3], -1)


@dataclass(frozen=True)
class Trajectory:
    """One episode: what was seen before each action, the action, the reward it brought, and how it was played."""

    seen: np.ndarray  # [step, ...]
    actions: Int[np.ndarray, " position"]
    rewards: Float[np.ndarray, " position"]
    terminated: bool
    manner: Manner

    @property
    def returns_to_go(self) -> Float[np.ndarray, " position"]:
        """Rewards from each step to the end, summed."""
        return self.rewards[::-1].cumsum()[::-1]


class Player:
    """How one episode is played."""

    def __init__(self, manner: Manner, world: World, random: np.random.Generator) -> None:
        self.manner, self.world, self.random = manner, world, random
        self.rate = {"expert": 0.0, "random": 1.0}.get(manner, float(random.random()))
        self.starts = int(random.integers(world.most_steps)) if manner == "late" else 0

    def act(self, step: int, expert: Callable[[], int]) -> int:
        """The action of a step; the expert is asked only where its answer is taken."""
        is_late = step < self.starts
        is_random = self.random.random() < self.rate and (self.manner != "late" or is_late)
        if is_late and not is_random and self.world.is_grid and self.world.actions > DONE:
            return DONE
        if is_late or is_random:  # without an action that does nothing, waiting is wandering
            return int(self.random.integers(self.world.actions))
        return expert()


def play(env: gymnasium.Env, world: World, expert: Expert, manner: Manner, seed: int) -> Trajectory:
    """The episode of this seed, which decides both the environment and the player."""
    player = Player(manner, world, np.random.default_rng([seed, 1]))
    observed, _ = env.reset(seed=seed)
    seen, actions, rewards = [], [], []
    for step in range(world.most_steps):
        seen.append(world.see(observed))
        actions.append(player.act(step, lambda: expert(env)))
        observed, reward, terminated, truncated, _ = env.step(actions[-1])
        rewards.append(float(reward))
        if terminated or truncated:
            return Trajectory(np.stack(seen), np.array(actions), np.array(rewards), bool(terminated), manner)
    return Trajectory(np.stack(seen), np.array(actions), np.array(rewards), False, manner)


def collect(
    world: World, expert: Expert, seeds: Sequence[int], tick: Callable[[int], None] = lambda _: None
) -> list[Trajectory]:
    """One episode per seed, the manner of each drawn from its seed; `tick(episodes done)` after each."""
    env, found = world.make(), []
    for seed in seeds:
        drawn = np.random.default_rng([seed, 0]).random()
        place = int(np.searchsorted(np.cumsum([*MANNERS.values()])[:-1], drawn, side="right"))
        found.append(play(env, world, expert, list(MANNERS)[place], seed))  # pyright: ignore[reportArgumentType]
        tick(len(found))
    env.close()
    return found
