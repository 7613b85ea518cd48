"""Episodes played many at once are those that a loop over one environment plays, written down from what was published.

The reference for transformers' decision transformers is the algorithm of their documentation (`get_action`): the whole
history normalised, cut to the context, zeros in front, the attention mask over what is real, the return asked for less
the rewards divided by the scale.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from transformers import DecisionTransformerModel

import covector
from covector.arch.declared import declared
from covector.errors import EnvironmentFailed
from covector.io.agent_file import parse_agent
from covector.io.tensors import ArrayTensors
from covector.run.decoder import Decoder
from covector.run.episodes import Episode, Stage, play
from covector.study.agent import Agent
from little_worlds import (
    ACTIONS,
    BROKEN,
    MEAN,
    SCALE,
    STATES,
    STD,
    TARGET,
    Drift,
    agent_values,
    drift,
    fragile_drift,
    random_agent,
    smooth_drift,
)

sys.path.append(str(Path(__file__).parents[1] / "layouts"))
from stand_ins import cartpole, cartpole_inputs, layout, minigrid, noise

SEEDS = range(100, 114)
# Both sides in float32, one batched and one not, through at most 12 steps of a contracting world: measured 3e-6.
CLOSE = 1e-4


def published(model: DecisionTransformerModel, env: gymnasium.Env, seed: int, context: int) -> tuple[list, float, int]:
    """(actions, return, length) of one episode by the algorithm of transformers' documentation."""
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    mean, std = torch.from_numpy(MEAN).float(), torch.from_numpy(STD).float()
    first, _ = env.reset(seed=seed)
    states = torch.from_numpy(first).float()[None]
    actions, asked = torch.zeros((0, ACTIONS)), torch.tensor([[TARGET / SCALE]])
    times, total, done = torch.tensor([[0]]), 0.0, []
    for step in range(1, 1000):
        actions = torch.cat([actions, torch.zeros((1, ACTIONS))])
        came = get_action(model, (states - mean) / std, actions, asked, times, context)
        taken = int(came.argmax()) if discrete else came.numpy()
        actions[-1] = torch.eye(ACTIONS)[taken] if discrete else came
        seen, reward, terminated, truncated, _ = env.step(taken)
        done.append(taken)
        total += reward
        if terminated or truncated:
            return done, total, step
        states = torch.cat([states, torch.from_numpy(seen).float()[None]])
        asked = torch.cat([asked, asked[:, -1:] - reward / SCALE], dim=1)
        times = torch.cat([times, torch.tensor([[step]])], dim=1)
    raise AssertionError("an episode without end")


def get_action(model, states, actions, asked, times, context: int) -> torch.Tensor:
    """As published, `max_length` being the context."""
    states, actions = states.reshape(1, -1, STATES)[:, -context:], actions.reshape(1, -1, ACTIONS)[:, -context:]
    asked, times = asked.reshape(1, -1, 1)[:, -context:], times[:, -context:]
    padding = context - states.shape[1]
    mask = torch.cat([torch.zeros(padding), torch.ones(states.shape[1])]).long()[None]
    states = torch.cat([torch.zeros((1, padding, STATES)), states], dim=1).float()
    actions = torch.cat([torch.zeros((1, padding, ACTIONS)), actions], dim=1).float()
    asked = torch.cat([torch.zeros((1, padding, 1)), asked], dim=1).float()
    times = torch.cat([torch.zeros((1, padding), dtype=torch.long), times], dim=1)
    with torch.no_grad():
        _, found, _ = model(
            states=states, actions=actions, rewards=torch.zeros(1, context, 1), returns_to_go=asked, timesteps=times,
            attention_mask=mask, return_dict=False,
        )  # fmt: skip
    return found[0, -1]


def played(folder: Path, agent: Agent, factory: Callable[[], Any], seeds=SEEDS, slots: int = 4, **how: Any) -> list:
    decoder = Decoder(covector.open(folder).weights, torch.float32)
    return play(decoder, Stage(agent, factory, slots), list(seeds), agent.target, **how)


@pytest.mark.parametrize("context", [3, 20])
@pytest.mark.parametrize(("discrete", "tanh"), [(True, False), (True, True), (False, True), (False, False)])
def test_batched_episodes_are_those_of_the_published_loop(tmp_path, discrete, tanh, context):
    values = agent_values(discrete, context)
    model, factory = random_agent(tmp_path, tanh=tanh, values=values), drift if discrete else smooth_drift
    found = [t.episode for t in played(tmp_path, parse_agent(values, "here"), factory)]
    wanted = [published(model, factory(), seed, context) for seed in SEEDS]
    assert [e.seed for e in found] == list(SEEDS)
    assert [e.length for e in found] == [length for _, _, length in wanted]
    assert len({e.length for e in found}) > 3, "episodes of one length test little"
    np.testing.assert_allclose([e.total for e in found], [total for _, total, _ in wanted], atol=CLOSE)
    for episode, (actions, _, _) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(episode.actions, actions, atol=CLOSE if not discrete else 0)
    if discrete:
        assert len({a for e in found for a in e.actions}) > 1, "an agent that always does the same tests little"


def test_each_input_of_the_published_loop_matters(tmp_path):
    """The agreement above says something: other statistics, another target, scale, context give other episodes."""
    values = agent_values(False, 20)
    random_agent(tmp_path, tanh=True, values=values)
    agent = parse_agent(values, "here")
    usual = [t.episode.total for t in played(tmp_path, agent, smooth_drift)]
    assert agent.mean is not None
    assert agent.std is not None
    for other in (
        replace(agent, mean=agent.mean + 0.1), replace(agent, std=2 * agent.std), replace(agent, target=5.0),
        replace(agent, scale=2.0), replace(agent, context=3), replace(agent, most_time=1),
    ):  # fmt: skip
        total = [t.episode.total for t in played(tmp_path, other, smooth_drift)]
        assert np.abs(np.subtract(total, usual)).max() > 10 * CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("discrete", [True, False])
def test_episodes_do_not_depend_on_their_batch(tmp_path, discrete):
    values = agent_values(discrete)
    random_agent(tmp_path, tanh=not discrete, values=values)
    agent, factory = parse_agent(values, "here"), drift if discrete else smooth_drift
    whole = [played(tmp_path, agent, factory, range(40), slots) for slots in (1, 7, 32, 64)]
    for other in whole[1:]:
        for a, b in zip(whole[0], other, strict=True):
            assert (a.episode.seed, a.episode.length) == (b.episode.seed, b.episode.length)
            np.testing.assert_allclose(a.episode.total, b.episode.total, atol=CLOSE)
    again = played(tmp_path, agent, factory, range(40), 7)
    assert [t.episode for t in again] == [t.episode for t in whole[1]]


def test_every_seed_is_one_episode_counted_once(tmp_path):
    values = agent_values(True)
    random_agent(tmp_path, tanh=False, values=values)
    begun: list[int] = []

    class Counted(Drift):
        def reset(self, *, seed=None, options=None):
            begun.append(int(seed))
            return super().reset(seed=seed, options=options)

    told: list[int] = []
    found = played(
        tmp_path, parse_agent(values, "here"), lambda: Counted(True), range(20), 6, keep=True, tick=told.append
    )
    assert sorted(begun) == list(range(20))
    assert told[-1] == 20
    assert told == sorted(told)
    for t in found:
        assert len(t.states) == len(t.rewards) == len(t.episode.actions) == t.episode.length
        np.testing.assert_allclose(t.rewards.sum(), t.episode.total)


def test_how_an_episode_ends_is_told(tmp_path):
    values = agent_values(True)
    random_agent(tmp_path, tanh=False, values=values)
    agent = parse_agent(values, "here")
    for t in played(tmp_path, agent, drift, range(30)):
        env = drift()
        env.reset(seed=t.episode.seed)
        ends = [env.step(a)[2:4] for a in t.episode.actions]
        assert not any(a or b for a, b in ends[:-1])
        assert t.episode.terminated == ends[-1][0]
        assert t.episode.success == (not ends[-1][0])
        assert t.episode.failed_at == (t.episode.length if ends[-1][0] else None)


def test_an_environment_that_breaks_down_names_its_seed_and_spares_the_others(tmp_path):
    values = agent_values(True)
    random_agent(tmp_path, tanh=False, values=values)
    agent = parse_agent(values, "here")
    sound = {t.episode.seed: t.episode for t in played(tmp_path, agent, drift, range(50), 4)}
    assert all(sound[seed].length >= 2 for seed in BROKEN), "the breakdown is in the second step"
    with pytest.raises(EnvironmentFailed, match=r"seed 3 .*broke down after 1 steps: RuntimeError: the floor gave way"):
        played(tmp_path, agent, fragile_drift, range(50))
    broken: list[EnvironmentFailed] = []
    left = played(tmp_path, agent, fragile_drift, range(50), broken=broken)
    assert [t.episode.seed for t in left] == [s for s in range(50) if s not in BROKEN]
    assert all(f"seed {seed} " in str(error) for seed, error in zip(BROKEN, broken, strict=True))
    for t in left:
        assert t.episode.length == sound[t.episode.seed].length


def test_a_reward_that_is_no_number_is_a_breakdown(tmp_path):
    values = agent_values(True)
    random_agent(tmp_path, tanh=False, values=values)

    class Undefined(Drift):
        def step(self, action):
            x, _, *ends = super().step(action)
            return x, float("nan"), *ends

    with pytest.raises(EnvironmentFailed, match="expected a finite reward, got nan"):
        played(tmp_path, parse_agent(values, "here"), lambda: Undefined(True))


# Home-made agents


class Recorded(gymnasium.Env):
    """An environment that shows given observations and rewards whatever is done, and ends after a given step."""

    def __init__(self, seen: np.ndarray, rewards: np.ndarray, actions: int, lengths: np.ndarray) -> None:
        self.seen, self.rewards, self.lengths = seen, rewards, lengths
        self.action_space = gymnasium.spaces.Discrete(actions)

    def reset(self, *, seed=None, options=None):
        self.row, self.time = int(seed), 0
        return self._shown(), {}

    def step(self, action):
        self.time += 1
        over = self.time >= self.lengths[self.row]
        return self._shown(), float(self.rewards[self.row, self.time - 1]), False, bool(over), {}

    def _shown(self):
        return self.seen[self.row, min(self.time, self.seen.shape[1] - 1)]


def home_made(name: str, tensors: dict[str, np.ndarray], agent: Agent, env: gymnasium.Env, rows: int) -> list[Episode]:
    weights = declared(layout(name), ArrayTensors(tensors, where=name), f"{name}.toml")[0]
    stage = Stage(agent, lambda: env.__class__(env.seen, env.rewards, env.action_space.n, env.lengths), 3)
    return [t.episode for t in play(Decoder(weights), stage, list(range(rows)), agent.target)]


def test_a_summed_agent_without_a_causal_mask_sees_unpadded_windows():
    """As the card of dt-cartpole says: the last steps, fewer at the start, the previous action (0 at the start)."""
    rng, rows, steps, context = np.random.default_rng(0), 6, 9, 4
    tensors = noise("dt-cartpole")
    middle = cartpole(tensors, cartpole_inputs(rng)).mean((0, 1))
    tensors["action_head.bias"] = tensors["action_head.bias"] - middle  # so that no action is taken always
    mean, std = np.array([0.1, 0.2, -0.1, 0.0]), np.array([1.0, 0.5, 2.0, 1.5])
    env = Recorded(
        rng.normal(size=(rows, steps + 1, 4)), rng.normal(size=(rows, steps)), 2, np.array([9, 2, 5, 1, 7, 9])
    )
    agent = parse_agent(
        {
            "environment": {"id": "recorded"},
            "state": {"mean": mean.tolist(), "std": std.tolist()},
            "return": {"target": 3.0},
            "context": context,
            "action": {"given": "previous"},
            "timestep": {"most": 999},
        },
        "here",
    )
    found = home_made("dt-cartpole", tensors, agent, env, rows)
    assert [e.length for e in found] == env.lengths.tolist()
    for row, episode in enumerate(found):
        before, asked = [0], [3.0]
        for t, action in enumerate(episode.actions):
            window = slice(max(0, t + 1 - context), t + 1)
            inputs = {
                "state": ((env.seen[row] - mean) / std)[None, window],
                "action": np.array(before)[None, window],
                "return": np.array(asked)[None, window],
                "time": np.arange(t + 1)[None, window],
            }
            assert action == int(np.argmax(cartpole(tensors, inputs)[0, -1]))
            before.append(action)
            asked.append(asked[-1] - env.rewards[row, t])
    assert {a for e in found for a in e.actions} == {0, 1}


def test_visible_filling_stands_in_front_as_the_card_of_the_memory_agent_says():
    """Zero states, action 7, the target return and timestep 0 in front, all of them seen; the last action is absent."""
    rng, rows, steps, context = np.random.default_rng(1), 7, 12, 9
    tensors = noise("dt-minigrid-memory")
    env = Recorded(
        rng.normal(size=(rows, steps + 1, 980)), rng.normal(size=(rows, steps)), 7, np.array([12, 3, 10, 7, 12, 8, 11])
    )
    values = json.loads((Path(__file__).parents[2] / "examples/agents/dt-minigrid-memory.json").read_text())
    values |= {"environment": {"id": "recorded"}, "observation": {}}
    found = home_made("dt-minigrid-memory", tensors, parse_agent(values, "here"), env, rows)
    for row, episode in enumerate(found):
        states = np.concatenate([np.zeros((context, 980)), env.seen[row]])
        actions = [7] * context + list(episode.actions)
        asked = np.concatenate([np.ones(context), 1 - np.concatenate([[0], np.cumsum(env.rewards[row])])])
        times = [0] * context + list(range(steps))
        for t, action in enumerate(episode.actions):
            window = slice(t + 1, t + 1 + context)
            inputs = {
                "state": states[None, window],
                "action": np.array(actions)[None, t + 1 : t + context],
                "return": asked[None, window],
                "time": np.array(times)[None, window],
            }
            assert action == int(np.argmax(minigrid(tensors, inputs)[0, -1]))
    assert len({a for e in found for a in e.actions}) > 2
