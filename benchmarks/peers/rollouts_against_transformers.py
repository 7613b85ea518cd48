"""Claim: batched roll-outs cost less than half of transformers' loop of one at a time.

The bundled agent demo-dt in its environment (`--untrained`: a random agent of its size), 16 seeds, float32. One
process, one thread, processor time, the two taking turns:

* transformers: `DecisionTransformerModel` and the `get_action` loop of its documentation: the history cut to the
  context, zeros in front, an attention mask, one environment, one episode after the other;
* covector: `run.episodes.play` on the reference decoder, up to 16 episodes at a time.

Both act by the largest logit and their episodes are held against each other: the same actions on every seed. Exits with
1 when the median ratio is below 2 or an episode differs. Run in covector's own environment, which has both.
"""

import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import torch
from transformers import DecisionTransformerModel
from transformers.utils.logging import disable_progress_bar

import covector
from covector.demo import DEMO_DT
from covector.io.agent_file import need_agent
from covector.run.decoder import Decoder
from covector.run.environments import encoded, make
from covector.run.episodes import Stage, play
from covector.study.agent import Agent

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rollouts_cost_their_steps import untrained

SEEDS, ROUNDS, AT_LEAST = range(16), 3, 2.0


def one_at_a_time(model: DecisionTransformerModel, agent: Agent) -> list[list[int]]:
    """Every seed's actions, by the loop that transformers documents."""
    world, found = make(agent), []
    for seed in SEEDS:
        states = torch.from_numpy(encoded(agent, world.begin(seed)[None]))
        actions, asked = torch.zeros((0, model.config.act_dim)), torch.tensor([[agent.target / agent.scale]])
        times, done, over = torch.zeros((1, 1), dtype=torch.long), list[int](), False
        while not over:
            actions = torch.cat([actions, torch.zeros((1, model.config.act_dim))])
            taken = int(get_action(model, states, actions, asked, times, agent.context).argmax())
            actions[-1, taken] = 1
            done.append(taken)
            seen, reward, terminated, truncated = world.step(taken)
            over = terminated or truncated
            states = torch.cat([states, torch.from_numpy(encoded(agent, seen[None]))])
            asked = torch.cat([asked, asked[:, -1:] - reward / agent.scale], dim=1)
            times = torch.cat([times, torch.tensor([[len(done)]])], dim=1)
        found.append(done)
    return found


def get_action(model, states, actions, asked, times, context: int) -> torch.Tensor:
    """The action output at the last of `context` timesteps, zeros in front."""
    states, actions, asked, times = (x[-context:] for x in (states, actions, asked[0, :, None], times[0]))
    front = context - len(states)
    mask = torch.cat([torch.zeros(front), torch.ones(len(states))]).long()[None]
    states, actions, asked = (torch.cat([torch.zeros(front, x.shape[1]), x])[None] for x in (states, actions, asked))
    times = torch.cat([torch.zeros(front, dtype=torch.long), times])[None]
    with torch.inference_mode():
        out = model(
            states=states.float(), actions=actions, rewards=torch.zeros(1, context, 1), returns_to_go=asked.float(),
            timesteps=times, attention_mask=mask, return_dict=False,
        )  # fmt: skip
    return out[1][0, -1]


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = untrained(Path(name)) if "--untrained" in sys.argv else str(DEMO_DT)
        model = DecisionTransformerModel.from_pretrained(folder, dtype=torch.float32).eval()
        agent, decoder = need_agent(folder, Path(folder)), Decoder(covector.open(folder).weights, torch.float32)
        stage = Stage(agent)
        ours = lambda: [list(t.episode.actions) for t in play(decoder, stage, SEEDS, agent.target)]  # noqa: E731
        theirs = lambda: one_at_a_time(model, agent)  # noqa: E731
        first, other = ours(), theirs()
        seconds: dict[str, list[float]] = {"covector": [], "transformers": []}
        for _ in range(ROUNDS):
            for told, run in (("covector", ours), ("transformers", theirs)):
                start = process_time()
                run()
                seconds[told].append(process_time() - start)
    ratios = [b / a for a, b in zip(seconds["covector"], seconds["transformers"], strict=True)]
    differ = sum(a != b for a, b in zip(first, other, strict=True))
    steps = int(np.sum([len(a) for a in first]))
    print(
        f"{platform.machine()}, 1 thread, processor time, {ROUNDS} rounds; {agent.environment.id}, {len(SEEDS)} "
        f"episodes, {steps:,} steps; transformers {version('transformers')}, torch {torch.__version__}"
    )
    for told, values in seconds.items():
        print(f"  {told:14s} {median(values):7.3f} s ({1e3 * median(values) / steps:.2f} ms a step)")
    print(
        f"  transformers over covector: {median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f}; claimed: "
        f"at least {AT_LEAST}); {differ} of {len(SEEDS)} episodes differ"
    )
    return int(median(ratios) < AT_LEAST or differ > 0)


if __name__ == "__main__":
    disable_progress_bar()
    sys.exit(main())
