"""The planner: its ways are as short as any, by a search through the environment itself."""

import copy
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("minigrid")

from covector.demo import experts  # noqa: E402
from covector.demo.experts import named, steps_to_goal, to_goal  # noqa: E402

MAZES = [
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-Empty-Random-5x5-v0",
    "MiniGrid-LavaGapS5-v0",
    "MiniGrid-SimpleCrossingS9N1-v0",
]


def make(name: str) -> Any:
    return gymnasium.make(name, disable_env_checker=True, max_steps=10_000).unwrapped


def shortest_by_playing(env: Any, most: int) -> int | None:
    """Breadth-first search that plays copies of the environment; knows nothing of its rules, puts things down too."""

    def key(env: Any) -> tuple:
        held = (env.carrying.type, env.carrying.color) if env.carrying else None
        return env.grid.encode().tobytes(), tuple(int(c) for c in env.agent_pos), int(env.agent_dir), held

    waiting, met = [env], {key(env)}
    for length in range(1, most + 1):
        following = []
        for here in waiting:
            for action in range(6):
                there = copy.deepcopy(here)
                _, reward, terminated, _, _ = there.step(action)
                if reward > 0:
                    return length
                if not terminated and key(there) not in met:
                    met.add(key(there))
                    following.append(there)
        waiting = following
    return None


def length_of(env: Any, most: int = 200) -> int:
    for step in range(1, most + 1):
        _, reward, terminated, _, _ = env.step(to_goal(env))
        if terminated:
            assert reward > 0
            return step
    raise AssertionError("no goal")


@pytest.mark.parametrize("name", MAZES[:3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_planner_is_as_short_as_a_search_that_plays_the_environment(name: str, seed: int) -> None:
    env = make(name)
    env.reset(seed=seed)
    planned = steps_to_goal(env)
    assert planned is not None
    assert shortest_by_playing(copy.deepcopy(env), planned) == planned  # not found earlier, found then
    assert length_of(env) == planned


@pytest.mark.parametrize("name", [*MAZES, "MiniGrid-DoorKey-6x6-v0"])
def test_the_planner_solves_every_seed_in_the_length_it_foretells(name: str) -> None:
    env = make(name)
    for seed in range(40):
        env.reset(seed=seed)
        planned = steps_to_goal(env)
        assert length_of(env) == planned


def test_the_planner_goes_on_from_wherever_chance_has_led() -> None:
    env, random = make("MiniGrid-DoorKey-6x6-v0"), np.random.default_rng(0)
    opened = 0
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(int(random.integers(60))):  # keys are dropped elsewhere, doors closed again
            env.step(int(random.integers(7)) if random.random() < 0.7 else to_goal(env))
            if env.grid.get(*env.agent_pos) is not None and env.grid.get(*env.agent_pos).type == "goal":
                break
        else:
            opened += any(c is not None and c.type == "door" and not c.is_locked for c in env.grid.grid)
            planned = steps_to_goal(env)
            assert length_of(env) == planned
    assert opened  # the sample has doors that were unlocked before the planner came


def test_each_step_of_the_planner_shortens_the_way_by_one() -> None:
    env = make("MiniGrid-DoorKey-6x6-v0")
    env.reset(seed=3)
    steps = steps_to_goal(env)
    while steps:
        env.step(to_goal(env))
        assert steps_to_goal(env) == steps - 1
        steps -= 1


def test_without_a_way_the_planner_waits() -> None:
    env = make("MiniGrid-DoorKey-5x5-v0")
    env.reset(seed=0)
    for x in range(env.width):
        for y in range(env.height):
            thing = env.grid.get(x, y)
            if thing is not None and thing.type == "key":
                env.grid.set(x, y, None)
    assert steps_to_goal(env) is None
    assert to_goal(env) == experts.DONE


def test_an_expert_is_named_by_module_and_function() -> None:
    assert named("covector.demo.experts:to_goal") is to_goal
    with pytest.raises(ValueError, match="expected an expert as module:function, got 'to_goal'"):
        named("to_goal")
