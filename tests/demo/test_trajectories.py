"""Trajectories of mixed quality: what is seen, what is done, and that a seed decides both."""

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("minigrid")

from covector.demo.experts import DONE, to_goal  # noqa: E402
from covector.demo.trajectories import MANNERS, Player, collect, one_hot, open_world, play  # noqa: E402

DOOR = "MiniGrid-DoorKey-6x6-v0"


def test_states_are_those_of_minigrids_wrapper_plane_by_plane() -> None:
    from minigrid.wrappers import OneHotPartialObsWrapper

    plain, wrapped = (gymnasium.make(DOOR, disable_env_checker=True) for _ in range(2))
    wrapped = OneHotPartialObsWrapper(wrapped)
    random = np.random.default_rng(0)
    for seed in range(5):
        view, planes = plain.reset(seed=seed)[0]["image"], wrapped.reset(seed=seed)[0]["image"]
        for _ in range(20):
            state = one_hot(view[None])[0]
            for plane, x, y in [(1, 2, 3), (8, 3, 1), (11 + 4, 0, 6), (11 + 6 + 2, 5, 0)]:
                assert state[49 * plane + 7 * x + y] == planes[x, y, plane]
            assert np.array_equal(state, planes.transpose(2, 0, 1).reshape(-1))
            action = int(random.integers(7))
            view, planes = plain.step(action)[0]["image"], wrapped.step(action)[0]["image"]


def test_returns_to_go_are_sums_of_the_rewards_still_to_come() -> None:
    for trajectory in collect(open_world("CartPole-v1", 30), lambda env: 0, range(3)):
        n = len(trajectory.actions)
        assert trajectory.returns_to_go.tolist() == list(range(n, 0, -1))  # one reward per step


def test_a_seed_decides_a_trajectory_whatever_was_played_before() -> None:
    world = open_world(DOOR)
    alone = collect(world, to_goal, [7])[0]
    after = collect(world, to_goal, [3, 4, 7])[2]
    assert alone.manner == after.manner
    assert np.array_equal(alone.actions, after.actions)
    assert np.array_equal(alone.seen, after.seen)


def test_manners_come_at_their_rates_and_in_their_order_of_quality() -> None:
    found = collect(open_world("MiniGrid-Empty-5x5-v0", 50), to_goal, range(250))
    for manner, rate in MANNERS.items():
        n = sum(t.manner == manner for t in found)
        assert abs(n - 250 * rate) < 4 * np.sqrt(250 * rate * (1 - rate))  # four binomial standard errors
    mean = {m: np.mean([t.rewards.sum() for t in found if t.manner == m]) for m in MANNERS}
    assert mean["expert"] > max(mean["noisy"], mean["late"])
    assert mean["random"] < min(mean["noisy"], mean["late"])


def test_late_trajectories_play_as_the_expert_once_they_begin() -> None:
    world, env = open_world(DOOR), open_world(DOOR).make()
    for seed in range(5):
        starts = Player("late", world, np.random.default_rng([seed, 1])).starts
        trajectory = play(env, world, to_goal, "late", seed)
        env.reset(seed=seed)
        for step, action in enumerate(trajectory.actions.tolist()):
            if step >= starts:
                assert action == to_goal(env)
            env.step(action)


def test_waiting_is_the_action_that_minigrid_ignores() -> None:
    env = gymnasium.make(DOOR, disable_env_checker=True)
    env.reset(seed=0)
    before = env.unwrapped.grid.encode(), env.unwrapped.agent_pos, env.unwrapped.agent_dir, env.unwrapped.carrying
    env.step(DONE)
    after = env.unwrapped.grid.encode(), env.unwrapped.agent_pos, env.unwrapped.agent_dir, env.unwrapped.carrying
    assert np.array_equal(before[0], after[0])
    assert tuple(before[1]) == tuple(after[1])
    assert before[2:] == after[2:]


@pytest.mark.parametrize(
    ("name", "text"),
    [("Pendulum-v1", "expected discrete actions"), ("FrozenLake-v1", "expected a MiniGrid view or a vector")],
)
def test_worlds_that_the_script_cannot_serve_are_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: {text}"):
        open_world(name)
