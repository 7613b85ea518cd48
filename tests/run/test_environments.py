"""What an agent meets: encodings as minigrid's own wrapper gives them, starts, fits, and what is said when it fails."""

import builtins
import importlib
import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from covector.arch.toy import random_model
from covector.errors import BadAgent, EnvironmentFailed, MissingExtra
from covector.io.agent_file import parse_agent
from covector.run.environments import check_fit, check_state, encoded, factory_at, make, one_hot, packages
from covector.study.agent import Agent, Environment, Observation
from little_worlds import MEAN, STD, Drift, agent_values, drift, smooth_drift


def agent_in(env: str, **more: Any) -> Agent:
    return replace(Agent(Environment(env), 1.0, 5), **more)


def test_one_hot_planes_are_those_of_minigrids_wrapper():
    minigrid = pytest.importorskip("minigrid.wrappers")
    images, planes = [], []
    for name in ("MiniGrid-DoorKey-6x6-v0", "MiniGrid-MemoryS7-v0", "MiniGrid-ObstructedMaze-1Dlh-v0"):
        plain = gymnasium.make(name)
        wrapped = minigrid.OneHotPartialObsWrapper(gymnasium.make(name))
        for seed in range(5):
            images.append(plain.reset(seed=seed)[0]["image"])
            planes.append(wrapped.reset(seed=seed)[0]["image"])
            for action in np.random.default_rng(seed).integers(0, 7, 20).tolist():
                images.append(plain.step(action)[0]["image"])
                planes.append(wrapped.step(action)[0]["image"])
    assert len({tuple(i[..., 0].ravel()) for i in images}) > 20
    np.testing.assert_array_equal(one_hot(np.stack(images)), np.stack(planes))


def test_what_is_no_minigrid_image_is_refused():
    with pytest.raises(EnvironmentFailed, match=r"expected images \[x, y, 3\]"):
        one_hot(np.zeros((2, 7, 7, 4), dtype=np.int64))
    with pytest.raises(EnvironmentFailed, match="up to 11"):
        one_hot(np.full((2, 7, 7, 3), 11))


def test_axes_are_reordered_then_flattened_then_normalised():
    seen = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2)
    agent = agent_in("x", observation=Observation(axes="x y channel -> channel x y"))
    by_hand = [[o[x, y, c] for c in range(2) for x in range(3) for y in range(4)] for o in seen]
    np.testing.assert_array_equal(encoded(agent, seen), by_hand)
    mean, std = np.linspace(-1, 1, 24), np.linspace(1, 2, 24)
    normal = encoded(replace(agent, mean=mean, std=std), seen)
    np.testing.assert_allclose(normal, (np.array(by_hand) - mean) / std, rtol=1e-6)
    assert normal.dtype == np.float32
    np.testing.assert_array_equal(encoded(agent_in("x"), seen), seen.reshape(2, -1))


@pytest.mark.parametrize("axes", ["x y", "x y -> x", "x y c -> c x z", "x x c -> c x x", "x y -> y x", "->"])
def test_axes_that_are_no_order_are_refused(axes):
    with pytest.raises(BadAgent, match=r"observation.axes: expected as 'x y channel -> channel x y' for 3 axes"):
        encoded(agent_in("x", observation=Observation(axes=axes)), np.zeros((2, 3, 4, 2)))


def test_an_episode_begins_anew_until_its_start_holds():
    class Coin(Drift):
        tries = 0

        def reset(self, *, seed=None, options=None):
            found = super().reset(seed=seed)
            self.side, self.tries = [int(self.np_random.integers(4))], self.tries + 1
            return found

    agent = replace(agent_in("coin"), environment=Environment("coin", start={"side": [2]}))
    world = make(agent, lambda: Coin(True))
    first = [world.begin(seed) for seed in range(20)]
    assert world.env.tries > 30
    assert world.env.side == [2]
    np.testing.assert_array_equal(first, [world.begin(seed) for seed in range(20)])
    never = make(replace(agent, environment=Environment("coin", start={"side": [9]})), lambda: Coin(True))
    with pytest.raises(EnvironmentFailed, match=r"starts with {'side': \[9\]}, 1000 did not \(seed 5\)"):
        never.begin(5)


def test_the_same_seed_is_the_same_episode_whatever_was_played_before():
    world = make(parse_agent(agent_values(True), ""), drift)

    def episode(seed: int) -> list:
        seen = [world.begin(seed)]
        for action in (0, 2, 1):
            seen.append(world.step(action)[0])
        return seen

    first = episode(5)
    episode(6)
    np.testing.assert_array_equal(first, episode(5))


def test_an_observation_is_taken_by_its_key():
    class Keyed(Drift):
        def reset(self, *, seed=None, options=None):
            x, info = super().reset(seed=seed)
            return {"image": x, "mission": "go"}, info

    found = make(agent_in("k", observation=Observation("image")), lambda: Keyed(True)).begin(0)
    np.testing.assert_array_equal(found, drift().reset(seed=0)[0])
    with pytest.raises(EnvironmentFailed, match="expected an observation with 'picture', got image, mission"):
        make(agent_in("k", observation=Observation("picture")), lambda: Keyed(True)).begin(0)


# Making


def test_an_unknown_environment_is_refused_with_near_ones():
    pytest.importorskip("minigrid")
    with pytest.raises(EnvironmentFailed, match=r"got 'CartPole-v9' .*near ones: .*CartPole-v1"):
        make(agent_in("CartPole-v9"))
    with pytest.raises(EnvironmentFailed, match=r"near ones: .*MiniGrid-DoorKey-6x6-v0"):
        make(agent_in("MiniGrid-DorKey-6x6-v0"))
    with pytest.raises(EnvironmentFailed, match="expected a registered environment, got 'Zzzzzzzzz'"):
        make(agent_in("Zzzzzzzzz"))


def test_wrong_keywords_are_refused_by_the_environment_that_does_not_take_them():
    agent = replace(agent_in("x"), environment=Environment("CartPole-v1", {"gravity_of": 3}))
    with pytest.raises(EnvironmentFailed, match=r"cannot be made with .*gravity_of.*mend environment.kwargs"):
        make(agent)


@pytest.mark.parametrize(("env", "package"), [("CartPole-v1", "gymnasium"), ("MiniGrid-Empty-5x5-v0", "minigrid")])
def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch, env, package):
    plain = importlib.import_module

    def absent(name: str, *more: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return plain(name, *more)

    monkeypatch.setattr("covector.run.environments.importlib.import_module", absent)
    with pytest.raises(MissingExtra, match=rf"expected the package {package}, .*pip install 'covector\[agents\]'"):
        make(agent_in(env))


def test_a_missing_simulator_is_said_with_the_command_that_installs_it(monkeypatch):
    plain = builtins.__import__

    def absent(name: str, *more: Any) -> Any:
        if name == "mujoco" or name.startswith("mujoco."):
            raise ModuleNotFoundError("No module named 'mujoco'", name="mujoco")
        return plain(name, *more)

    import sys

    for name in [n for n in sys.modules if n.startswith(("gymnasium.envs.mujoco", "mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'covector\[agents\]'"):
        make(agent_in("Hopper-v5"))


def test_a_newer_version_of_an_environment_is_no_warning():
    pytest.importorskip("mujoco")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        world = make(agent_in("Hopper-v4", discrete=False))
        world.begin(0)
        world.env.close()
    assert [str(w.message) for w in said] == []


def test_a_factory_is_found_by_module_and_name():
    assert factory_at("little_worlds:drift") is drift
    for text, said in (("little_worlds:none", "no attribute"), ("no_module:f", "No module"), ("m:", "No module")):
        with pytest.raises(EnvironmentFailed, match=rf"expected a factory 'package.module:function', got .*{said}"):
            factory_at(text)
    with pytest.raises(EnvironmentFailed, match="to be callable, it is tuple"):
        factory_at("little_worlds:BROKEN")


def test_versions_are_recorded_of_what_is_used():
    assert packages(agent_in("CartPole-v1"))["gymnasium"] == gymnasium.__version__
    assert "minigrid" not in packages(agent_in("CartPole-v1"))
    assert "minigrid" in packages(agent_in("MiniGrid-Empty-5x5-v0"))
    assert "mujoco" in packages(agent_in("Hopper-v4"))
    assert "mujoco" not in packages(agent_in("MiniGrid-Empty-5x5-v0"))


# Fit


def test_sizes_that_do_not_fit_are_said():
    spec = random_model(agent="interleaved").spec  # 5 states, 3 actions
    fitting, smooth = parse_agent(agent_values(True), "file"), parse_agent(agent_values(False), "file")
    check_fit(fitting, spec, make(fitting, drift))
    check_fit(smooth, spec, make(smooth, smooth_drift))
    check_state(fitting, spec, 5)
    with pytest.raises(BadAgent, match="expected states of 5 numbers, which the model reads, the environment gives 4"):
        check_state(fitting, spec, 4)
    short = replace(fitting, mean=MEAN[:4], std=STD[:4])
    with pytest.raises(BadAgent, match="file: expected 5 state means, which the model reads, got 4"):
        check_fit(short, spec, make(short, drift))
    with pytest.raises(BadAgent, match=r"expected 3 discrete actions, .*takes Box"):
        check_fit(fitting, spec, make(fitting, smooth_drift))
    with pytest.raises(BadAgent, match=r"expected 3 numbers per action, .*takes Discrete\(3\)"):
        check_fit(smooth, spec, make(smooth, drift))
    few = agent_in("CartPole-v1", states=())
    with pytest.raises(BadAgent, match=r"expected 3 discrete actions, .*takes Discrete\(2\)"):
        check_fit(few, spec, make(few))
    with pytest.raises(BadAgent, match="expected a model with a state input and an action output"):
        check_fit(fitting, random_model().spec, make(fitting, drift))
