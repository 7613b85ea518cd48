"""Measures a small agent: greedy roll-outs at several targets, beside the expert and a random policy.

    python -m covector.demo.evaluate_demo_dt [FOLDER] [--seed 1000000] [--episodes 300] [--write]

All play the same seeds, which the trainer did not. Weights are widened to float32 before they run.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from transformers import DecisionTransformerModel

from covector.demo import DEMO_DT
from covector.demo.demo_dt_card import card
from covector.demo.experts import Expert, named
from covector.demo.trajectories import World, open_world

EVALUATION_SEED = 1_000_000  # the trainer plays the seeds from 0 on, and far fewer
EPISODES = 300
AT_ONCE = 100
NORMAL = 1.959963984540054  # two-sided 95 %

Tick = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """One episode: its return, its length, and whether it was a success by the agent file's rule."""

    total: float
    length: int
    success: bool


def evaluate(
    model: torch.nn.Module, agent: Mapping[str, Any], targets: Sequence[float], episodes: int, seed: int
) -> list[list[Outcome]]:
    """Greedy episodes under the agent file `agent`, one list per target; seeds `seed`, `seed` + 1, …, for every target.

    `model` is a DecisionTransformerModel, or what answers like one. The largest logit is taken, the first of equals.
    """
    world = world_of(agent)
    envs = [world.make() for _ in range(min(AT_ONCE, episodes))]
    found = []
    for target in targets:
        seeds = list(range(seed, seed + episodes))
        done: list[Outcome] = []
        for i in range(0, episodes, AT_ONCE):
            done += _batch(model, agent, world, envs, seeds[i : i + AT_ONCE], target)
        found.append(done)
    for env in envs:
        env.close()
    return found


def world_of(agent: Mapping[str, Any]) -> World:
    """The environment that an agent file names."""
    kwargs = agent["environment"].get("kwargs", {})
    return open_world(agent["environment"]["id"], kwargs.get("max_steps", kwargs.get("max_episode_steps")))


def normalised(agent: Mapping[str, Any], states: np.ndarray) -> np.ndarray:
    """States as the model is given them, float32."""
    if agent["state"] == "as is":
        return states
    return ((states - np.array(agent["state"]["mean"])) / np.array(agent["state"]["std"])).astype(np.float32)


@torch.inference_mode()
def _batch(
    model: torch.nn.Module,
    agent: Mapping[str, Any],
    world: World,
    envs: Sequence[gymnasium.Env],
    seeds: Sequence[int],
    target: float,
) -> list[Outcome]:
    """Episodes side by side, all at the same step, so that no context needs padding."""
    n, context, scale = len(seeds), agent["context"], agent["return"]["scale"]
    live, outcomes = list(range(n)), {}
    states = np.zeros((n, world.most_steps, world.state), np.float32)
    actions = np.zeros((n, world.most_steps, world.actions), np.float32)
    returns = np.full((n, world.most_steps, 1), target / scale, np.float32)
    totals = np.zeros(n)
    for i, seed in enumerate(seeds):
        states[i, 0] = normalised(agent, world.encode(world.see(envs[i].reset(seed=seed)[0])))
    for step in range(world.most_steps):
        span = slice(max(0, step + 1 - context), step + 1)
        logits = model(
            states=torch.from_numpy(states[live, span]),
            actions=torch.from_numpy(actions[live, span]),  # the last is not known yet, and no earlier place sees it
            returns_to_go=torch.from_numpy(returns[live, span]),
            timesteps=torch.arange(span.start, span.stop).expand(len(live), -1),
        ).action_preds[:, -1]
        for i, action in zip(live.copy(), logits.argmax(-1).tolist(), strict=True):
            observed, reward, terminated, truncated, _ = envs[i].step(action)
            totals[i] += float(reward)
            actions[i, step, action] = 1.0
            if terminated or truncated or step + 1 == world.most_steps:
                success = succeeds(agent, float(totals[i]), float(reward))
                outcomes[i] = Outcome(float(totals[i]), step + 1, success)
                live.remove(i)
            else:
                states[i, step + 1] = normalised(agent, world.encode(world.see(observed)))
                returns[i, step + 1] = (target - totals[i]) / scale
        if not live:
            break
    return [outcomes[i] for i in range(n)]


def succeeds(agent: Mapping[str, Any], total: float, last: float) -> bool:
    """The agent file's rule."""
    (rule, level), *_ = agent["success"].items()
    return last > level if rule == "last_reward_above" else total >= level


def play_alone(agent: Mapping[str, Any], policy: Expert, episodes: int, seed: int) -> list[Outcome]:
    """Episodes of a policy that sees the environment itself."""
    world = world_of(agent)
    env, found = world.make(), []
    for i in range(episodes):
        env.reset(seed=seed + i)
        total = 0.0
        for step in range(world.most_steps):
            _, reward, terminated, truncated, _ = env.step(policy(env))
            total += float(reward)
            if terminated or truncated or step + 1 == world.most_steps:
                found.append(Outcome(total, step + 1, succeeds(agent, total, float(reward))))
                break
    env.close()
    return found


def uniform(seed: int) -> Expert:
    """A policy that takes each action equally often."""
    random = np.random.default_rng([seed, 2])
    return lambda env: int(random.integers(env.action_space.n))


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Mean return, success rate and mean length, each with its 95 % interval (normal; Wilson's for the rate)."""
    rate, n = float(np.mean([o.success for o in outcomes])), len(outcomes)
    return {
        "n": n,
        "return": _mean([o.total for o in outcomes]),
        "success": {"rate": rate, "interval": _wilson(rate, n)},
        "length": _mean([o.length for o in outcomes]),
    }


def _mean(values: Sequence[float | int]) -> dict[str, Any]:
    mean, half = float(np.mean(values)), NORMAL * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": mean, "interval": [mean - half, mean + half]}


def _wilson(rate: float, n: int) -> list[float]:
    middle = (rate + NORMAL**2 / (2 * n)) / (1 + NORMAL**2 / n)
    half = NORMAL / (1 + NORMAL**2 / n) * math.sqrt(rate * (1 - rate) / n + NORMAL**2 / (4 * n**2))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def figures_of(
    model: torch.nn.Module,
    agent: Mapping[str, Any],
    expert: Expert,
    episodes: int,
    seed: int,
    tick: Tick = lambda _: None,
) -> dict[str, Any]:
    """Everything the card says about how the agent plays."""
    found: dict[str, Any] = {"episodes": episodes, "seed": seed, "targets": []}
    for target in agent["return"]["targets"]:
        outcomes = evaluate(model, agent, [target], episodes, seed)[0]
        found["targets"].append({"target": target} | summary(outcomes))
        tick(line(f"target {target:g}", found["targets"][-1]))
    for name, policy in (("expert", expert), ("random", uniform(seed))):
        found[name] = summary(play_alone(agent, policy, episodes, seed))
        tick(line(name, found[name]))
    return found


def line(name: str, row: Mapping[str, Any]) -> str:
    """One row of the figures, for the terminal."""
    return (
        f"{name:12} return {row['return']['mean']:7.3f}  success {row['success']['rate']:.3f}  "
        f"length {row['length']['mean']:6.1f}  ({row['n']} episodes)"
    )


def open_agent(folder: Path) -> tuple[DecisionTransformerModel, dict[str, Any]]:
    """The model in float32 and its agent file."""
    model = DecisionTransformerModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, json.loads((folder / "agent.json").read_text(encoding="utf-8"))


def write(folder: Path, figures: Mapping[str, Any]) -> None:
    """Put the figures and the card that they make beside the weights."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(figures), encoding="utf-8")


def main() -> None:
    """Print how it plays; with --write renew them in the folder, what is said of its training kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=DEMO_DT)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--write", action="store_true", help="renew figures.json and README.md in the folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, agent = open_agent(arguments.folder)
    before = json.loads((arguments.folder / "figures.json").read_text(encoding="utf-8"))
    expert = named(before["training"]["expert"])
    played = figures_of(model, agent, expert, arguments.episodes, arguments.seed, print)
    if arguments.write:
        write(arguments.folder, {"training": before["training"], "play": played})


if __name__ == "__main__":
    main()
