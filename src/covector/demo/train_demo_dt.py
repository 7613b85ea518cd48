"""Makes a small agent: trajectories of mixed quality, training, float16 checkpoint, agent file, figures, card.

    python -m covector.demo.train_demo_dt                                                   # demo-dt itself
    python -m covector.demo.train_demo_dt --env MiniGrid-Empty-5x5-v0 --out my-agent/       # one of your own

MiniGrid environments that are solved by reaching a goal square have a planner (experts.py). For others, vectors of
numbers and discrete actions among them, give one: `--expert module:function`, a function that takes the environment
and returns an action. The agent reads return-to-go, state and action of the last steps (transformers'
DecisionTransformerModel) and learns the actions by cross-entropy; its state and return heads are not trained. Same
arguments, same libraries and one thread give the same weights.
"""

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import DecisionTransformerConfig, DecisionTransformerModel
from transformers.utils import logging

from covector.demo import DEMO_DT
from covector.demo.evaluate_demo_dt import EPISODES, EVALUATION_SEED, figures_of, normalised, open_agent, write
from covector.demo.experts import Expert, named, read
from covector.demo.trajectories import MANNERS, Trajectory, World, collect, open_world

ENVIRONMENT = "MiniGrid-DoorKey-6x6-v0"
EXPERT = "covector.demo.experts:to_goal"
TARGETS = [0.9, 0.7, 0.5, 0.3, 0.0]
TRAJECTORIES = 8000
WATCHED = 200  # more trajectories, played only to watch the loss
STEPS = 6000
BATCH = 64
CONTEXT = 10
WIDTH, LAYERS, HEADS = 128, 3, 1
PEAK_RATE = 1e-3
WARM_UP = 200
WEIGHTS_SEED, BATCH_SEED = 0, 1
# At width 128 transformers' 0.02 leaves the blocks near zero for long (see train_demo_lm.py).
INITIAL = 0.05
GRID_ACTIONS = ["left", "right", "forward", "pickup", "drop", "toggle", "done"]
UNTRAINED = ["state", "return"]


@dataclass(frozen=True)
class Data:
    """Trajectories end to end, with the first step and the length of each."""

    seen: np.ndarray
    actions: np.ndarray
    returns: np.ndarray
    first: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, found: Sequence[Trajectory], scale: float) -> "Data":
        """Join trajectories; returns-to-go are divided by `scale`."""
        length = np.array([len(t.actions) for t in found])
        returns = np.concatenate([t.returns_to_go for t in found]) / scale
        seen = np.concatenate([t.seen for t in found])
        actions = np.concatenate([t.actions for t in found])
        return cls(seen, actions, returns.astype(np.float32), length.cumsum() - length, length)

    def windows(
        self, world: World, agent: dict[str, Any], random: np.random.Generator, count: int
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What the model is given, and the actions [row, step] that were taken, −1 behind a window's end.

        A trajectory is drawn, then its last step; every trajectory counts alike, so short ones are not drowned.
        """
        which = random.integers(len(self.length), size=count)
        last = random.integers(self.length[which])
        start = np.maximum(0, last + 1 - agent["context"])
        step = start[:, None] + np.arange(agent["context"])
        is_there = step <= last[:, None]
        step = np.minimum(step, last[:, None])
        at = self.first[which][:, None] + step
        taken = torch.from_numpy(self.actions[at])
        given = {
            "states": torch.from_numpy(normalised(agent, world.encode(self.seen[at]))),
            "actions": torch.nn.functional.one_hot(taken, world.actions).float(),
            "returns_to_go": torch.from_numpy(self.returns[at])[..., None],
            "timesteps": torch.from_numpy(step),
        }
        return given, taken.masked_fill(torch.from_numpy(~is_there), -1)


def agent_file(world: World, found: Sequence[Trajectory], targets: Sequence[float] | None) -> dict[str, Any]:
    """What a checkpoint does not say: environment, encoding, statistics, targets, context (docs/rollout.md)."""
    totals = np.array([t.rewards.sum() for t in found])
    best = totals[[t.manner == "expert" for t in found]] if any(t.manner == "expert" for t in found) else totals
    scale = float(max(1.0, np.abs(totals).max()))
    # From what the expert usually reaches to the worst, in five steps of two digits.
    asked = targets or [float(f"{t:.2g}") for t in np.linspace(np.median(best), totals.min(), 5)]
    told: dict[str, Any] = {"environment": {"id": world.id, "kwargs": world.kwargs}}
    if world.is_grid:
        axes = "x y channel -> channel x y"
        told["observation"] = {"key": "image", "encoding": "minigrid-one-hot", "axes": axes}
        told["state"] = "as is"
    else:
        states = np.concatenate([t.seen for t in found]).astype(np.float64)
        told["observation"] = {"encoding": "raw"}
        told["state"] = {"mean": states.mean(0).tolist(), "std": (states.std(0) + 1e-6).tolist()}
    names = GRID_ACTIONS[: world.actions] if world.is_grid else [f"action {i}" for i in range(world.actions)]
    level = {"last_reward_above": 0} if world.is_grid else {"return_at_least": float(0.95 * best.mean())}
    return told | {
        "return": {"target": asked[0], "targets": list(asked), "scale": scale},
        "context": CONTEXT,
        "padding": "masked",
        "action": {"kind": "discrete", "names": names, "given": "same step"},
        "timestep": {"most": world.most_steps - 1},
        "success": level,
        "untrained": UNTRAINED,
        "source": "written by covector.demo.train_demo_dt beside the weights that it trained",
    }


def new_model(world: World, seen: np.ndarray) -> DecisionTransformerModel:
    """An untrained agent, seeded. `seen`: the data's states; numbers that are 0 in all of them get no embedding."""
    torch.manual_seed(WEIGHTS_SEED)
    config = DecisionTransformerConfig(
        state_dim=world.state,
        act_dim=world.actions,
        hidden_size=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        max_ep_len=world.most_steps,
        n_positions=3 * CONTEXT,  # only its row 0 is ever used; its length bounds the sequence
        vocab_size=1,
        bos_token_id=None,
        eos_token_id=None,
        action_tanh=False,  # logits of discrete actions
        initializer_range=INITIAL,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = DecisionTransformerModel(config)
    if world.is_grid:  # a plane that is never lit has no gradient: zero says so, noise would look like a finding
        lit = np.zeros(world.state, bool)
        for part in np.array_split(seen, 1 + len(seen) // 4096):
            lit |= world.encode(part).any(0)
        with torch.no_grad():
            model.embed_state.weight[:, torch.from_numpy(~lit)] = 0.0
    return model


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero, as a share of the peak."""
    warm = min(WARM_UP, max(1, steps // 5))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    world: World, agent: dict[str, Any], data: Data, watched: Data, steps: int
) -> tuple[DecisionTransformerModel, list[dict[str, float | int]]]:
    """The trained model, float32, and its loss on watched trajectories (nats per action) as it went."""
    model = new_model(world, data.seen).train()
    heads = tuple(f"predict_{name}" for name in UNTRAINED)
    learned = [p for name, p in model.named_parameters() if not name.startswith(heads)]
    groups = [
        {"params": [p for p in learned if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in learned if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    random = np.random.default_rng(BATCH_SEED)
    progress, history, recent = Progress(steps), [], []
    for step in range(1, steps + 1):
        given, taken = data.windows(world, agent, random, BATCH)
        loss = loss_of(model, given, taken)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step % max(20, steps // 20) == 0 or step == steps:
            with torch.no_grad():
                held_out = loss_of(model, *watched.windows(world, agent, np.random.default_rng(0), 512)).item()
            history.append({"step": step, "loss": float(np.mean(recent)), "held_out": held_out})
            progress.say(step, f"loss {np.mean(recent):.3f}, on trajectories not trained on {held_out:.3f}")
            recent = []
    return model.eval(), history


def loss_of(model: DecisionTransformerModel, given: dict[str, torch.Tensor], taken: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the actions taken, nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):  # float32 takes 1.5 times as long
        logits = model(**given).action_preds
    return cross_entropy(logits.float().flatten(0, 1), taken.flatten(), ignore_index=-1)


class Progress:
    """Lines that say how far a loop is and how long it still takes."""

    def __init__(self, total: int, every_s: float = 0.0) -> None:
        self.total, self.every_s, self.began, self.said = total, every_s, time.monotonic(), 0.0

    def say(self, done: int, text: str) -> None:
        """Print `done` of the total with `text`, unless a line was printed less than `every_s` ago."""
        passed = time.monotonic() - self.began
        if done < self.total and passed - self.said < self.every_s:
            return
        self.said = passed
        left = passed / done * (self.total - done)
        print(f"{done}/{self.total}  {text}  {passed:.0f} s, {left:.0f} s left", flush=True)


def gather(world: World, expert: Expert, trajectories: int) -> list[Trajectory]:
    """Trajectories of the seeds from 0 on, with progress."""
    progress = Progress(trajectories, every_s=10.0)
    return collect(world, expert, range(trajectories), lambda done: progress.say(done, "trajectories"))


def save(model: DecisionTransformerModel, agent: dict[str, Any], folder: Path) -> None:
    """Write the checkpoint in Hugging Face layout, weights in float16, and the agent file."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written as 0600, which a wheel would keep
    (folder / "agent.json").write_text(json.dumps(agent, indent=2) + "\n", encoding="utf-8")


def facts_of_training(
    model: DecisionTransformerModel, world: World, expert: str, found: Sequence[Trajectory], data: Data
) -> dict[str, Any]:
    """What the card says about how the agent was made."""
    manners = {}
    for manner in MANNERS:
        totals = [t.rewards.sum() for t in found if t.manner == manner]
        if totals:
            quarters = np.quantile(totals, [0.25, 0.5, 0.75]).tolist()
            manners[manner] = {"n": len(totals), "mean": float(np.mean(totals)), "quarters": quarters}
    lit = np.abs(model.embed_state.weight.detach().float().numpy()).any(0)
    packages = ["torch", "transformers", "gymnasium", *(["minigrid"] if world.is_grid else [])]
    return {
        "environment": world.id,
        "most_steps": world.most_steps,
        "expert": expert,
        "command": shlex.join(["python", "-m", "covector.demo.train_demo_dt", *sys.argv[1:]]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "width": WIDTH,
        "layers": LAYERS,
        "heads": HEADS,
        "context": CONTEXT,
        "trajectories": len(data.length),
        "timesteps": int(data.length.sum()),
        "manners": manners,
        "is_grid": world.is_grid,
        "states": world.state,
        "states_met": int(lit.sum()),
        "actions": np.bincount(data.actions, minlength=world.actions).tolist(),
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


def starts_met(world: World, trajectories: int, episodes: int) -> float:
    """Share of the card's episodes that begin as some trajectory did: seeds differ, small mazes repeat."""
    env = world.make()

    def start(seed: int) -> tuple[Any, Any]:
        env.reset(seed=seed)
        return read(env)

    trained = {start(seed) for seed in range(trajectories)}
    return float(np.mean([start(EVALUATION_SEED + i) in trained for i in range(episodes)]))


def main() -> None:
    """Make an agent; fewer `--steps` and `--trajectories` give a rehearsal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default=ENVIRONMENT, help="id of an environment with discrete actions")
    parser.add_argument(
        "--expert", default=EXPERT, help="module:function that takes the environment, returns an action"
    )
    parser.add_argument("--out", type=Path, help="folder for the agent (default, for the default --env: demo-dt's own)")
    parser.add_argument("--max-steps", type=int, help="longest episode (default: 100 in MiniGrid, else its own)")
    parser.add_argument("--targets", help="returns to ask for, the best first: 0.9,0.5,0 (default: from the data)")
    parser.add_argument("--trajectories", type=int, default=TRAJECTORIES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--episodes", type=int, default=EPISODES, help="per target, in the card")
    arguments = parser.parse_args()
    if arguments.out is None and arguments.env != ENVIRONMENT:
        parser.error("expected --out FOLDER for an agent of another environment")
    try:
        expert, world = named(arguments.expert), open_world(arguments.env, arguments.max_steps)
        own = TARGETS if arguments.env == ENVIRONMENT else None
        targets = [float(t) for t in arguments.targets.split(",")] if arguments.targets else own
    except (ValueError, ImportError, AttributeError, gymnasium.error.Error) as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    make(arguments, world, expert, targets)


def make(arguments: argparse.Namespace, world: World, expert: Expert, targets: list[float] | None) -> None:
    """The whole work: trajectories, training, checkpoint, figures."""
    folder, began, worked = arguments.out or DEMO_DT, time.monotonic(), time.process_time()
    found = gather(world, expert, arguments.trajectories + WATCHED)
    agent = agent_file(world, found[:-WATCHED], targets)
    data, watched = (Data.of(part, agent["return"]["scale"]) for part in (found[:-WATCHED], found[-WATCHED:]))
    playing = time.monotonic() - began
    model, history = train(world, agent, data, watched, arguments.steps)
    minutes = {"minutes": (time.monotonic() - began) / 60, "cpu_minutes": (time.process_time() - worked) / 60}
    facts = facts_of_training(model, world, arguments.expert, found[:-WATCHED], data)
    facts |= {"steps": arguments.steps, "history": history, "playing_minutes": playing / 60} | minutes
    if world.is_grid:
        facts["starts_met"] = starts_met(world, arguments.trajectories, arguments.episodes)
    save(model, agent, folder)
    model, agent = open_agent(folder)
    played = figures_of(model, agent, expert, arguments.episodes, EVALUATION_SEED, lambda text: print(text, flush=True))
    write(folder, {"training": facts, "play": played})


if __name__ == "__main__":
    main()
