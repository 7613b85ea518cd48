"""Claim: batched roll-outs cost at most 1.3 times the environment's steps and the model's forward passes alone.

The bundled agent demo-dt in its environment (or, where it is not there, an untrained agent of its size), 32 episodes at
a time, 64 seeds, float32. Interleaved, one thread, processor time, medians of 9:

* ours: `run.episodes.play`: everything that a roll-out does;
* environment: the same environments, begun from the same seeds and stepped with the same actions, nothing else;
* model: the same batches of the same inputs through the same decoder in the same order, nothing else.

Exits with 1 when ours/(environment + model) > 1.3. Run: ``python benchmarks/rollouts_cost_their_steps.py``; the folder
of another agent (with an agent.json, or FILE as second argument and LAYOUT as third) may follow.
"""

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import process_time

import torch

import covector
from covector.demo import DEMO_DT
from covector.io.agent_file import need_agent
from covector.run import episodes
from covector.run.acting import Sight, action_values
from covector.run.decoder import Decoder
from covector.run.environments import make
from covector.run.episodes import Episode, Stage, play
from covector.study.agent import Agent

SEEDS, ROUNDS, AT_MOST = range(64), 9, 1.3
UNTRAINED = {
    "environment": {"id": "MiniGrid-DoorKey-6x6-v0", "kwargs": {"max_steps": 60}},
    "observation": {"key": "image", "encoding": "minigrid-one-hot", "axes": "x y channel -> channel x y"},
    "state": "as is",
    "return": {"target": 1.0},
    "context": 10,
}


def untrained(folder: Path) -> str:
    """A random agent of demo-dt's size."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=980, act_dim=7, hidden_size=128, n_layer=3, n_head=1, max_ep_len=100, action_tanh=False
    )
    DecisionTransformerModel(config).save_pretrained(folder)
    (folder / "agent.json").write_text(json.dumps(UNTRAINED))
    return str(folder)


def parts(decoder: Decoder, agent: Agent) -> tuple[dict[str, Callable[[], object]], int]:
    """What is timed, and how many steps it is."""
    stage, sights = Stage(agent), list[Sight]()
    plain = episodes.action_values

    def noted(runner: Decoder, sight: Sight) -> torch.Tensor:
        sights.append(sight)
        return plain(runner, sight)

    episodes.action_values = noted
    played = [t.episode for t in play(decoder, stage, SEEDS, agent.target)]
    episodes.action_values = plain
    world = make(agent)

    def environment() -> None:
        step_through(world.env, agent, played)

    def model() -> None:
        with torch.inference_mode():
            for sight in sights:
                action_values(decoder, sight)

    ours = {"ours": lambda: play(decoder, stage, SEEDS, agent.target), "environment": environment, "model": model}
    return ours, sum(e.length for e in played)


def step_through(env, agent: Agent, played: Sequence[Episode]) -> None:
    """The environment alone: begun and stepped; an episode begins anew as often as the agent file made it."""
    start = agent.environment.start
    for episode in played:
        env.reset(seed=episode.seed)
        while any(list(getattr(env.unwrapped, k)) != list(v) for k, v in start.items()):
            env.reset()
        for action in episode.actions:
            env.step(action)


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        given = sys.argv[1:]
        ref = given[0] if given else "demo-dt" if (DEMO_DT / "agent.json").exists() else untrained(Path(name))
        opened = covector.open(ref, layout=given[2] if len(given) > 2 else None)
        agent = need_agent(ref, DEMO_DT if ref == "demo-dt" else Path(ref), given[1] if len(given) > 1 else None)
        decoder = Decoder(opened.weights, torch.float32)
        contestants, steps = parts(decoder, agent)
        times: dict[str, list[float]] = {told: [] for told in contestants}
        for run in contestants.values():
            run()
        for _ in range(ROUNDS):
            for told, run in contestants.items():
                start = process_time()
                run()
                times[told].append(process_time() - start)
    alone = [e + m for e, m in zip(times["environment"], times["model"], strict=True)]
    ratios = [a / b for a, b in zip(times["ours"], alone, strict=True)]
    ratio = median(times["ours"]) / median(alone)
    print(
        f"{platform.machine()}, torch {torch.__version__}, 1 thread, processor time, {ROUNDS} rounds; "
        f"{'an untrained agent' if ref.startswith(tempfile.gettempdir()) else ref} in {agent.environment.id}, "
        f"{len(SEEDS)} episodes, {steps:,} steps"
    )
    print("  " + ", ".join(f"{told} {median(values):.3f} s" for told, values in times.items()))
    print(f"  ours/(environment + model) {ratio:.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f}; claimed: "
          f"at most {AT_MOST})")  # fmt: skip
    return int(ratio > AT_MOST)


if __name__ == "__main__":
    sys.exit(main())
