"""Writes the card of a small agent from its figures; every number in the card comes from there."""

from collections.abc import Mapping, Sequence
from typing import Any

OWN = "MiniGrid-DoorKey-6x6-v0"

HEAD = """---
license: mit
library_name: transformers
pipeline_tag: reinforcement-learning
---

# {name}

{about}

This file is written by `train_demo_dt.py`; every figure below is in `figures.json` beside it. What a checkpoint does
not say (environment, how it is seen, targets, context) is in `agent.json`.
"""

ABOUT = """A decision transformer small enough to ship inside covector: it fetches a key, opens a door and walks to a
goal, as fast or as slowly as it is asked to. An episode returns 1 − 0.9 · steps / 100 when the goal is reached and 0
otherwise, so that a target return says when to arrive.

**It is a toy.** It has met one room of 4 × 4 cells with a wall, a door, a key and a goal. It was trained to imitate
trajectories of mixed quality by their return, and nothing else; what covector's methods find in it was measured
afterwards."""

OTHER = "A small decision transformer, made by covector's script from an expert's trajectories."

MANNERS = {
    "expert": "the expert alone",
    "noisy": "each action replaced by a random one, at a rate drawn from 0 to 1",
    "late": "waits and wanders until a drawn step, then as the expert",
    "random": "uniformly random actions",
}


def card(figures: Mapping[str, Any]) -> str:
    """The card as Markdown, from the figures that `train_demo_dt.py` collected."""
    training = figures["training"]
    is_own = training["environment"] == OWN
    name = "demo-dt" if is_own else f"A decision transformer for {training['environment']}"
    about = ABOUT if is_own else OTHER
    parts = [HEAD.format(name=name, about=about), _made(training), _data(training), _play(figures), _limits(figures)]
    return "\n".join(parts)


def _made(training: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    return f"""## How it was made

| | |
|---|---|
| architecture | transformers' DecisionTransformerModel: {training["layers"]} layers, {training["heads"]} head, width \
{training["width"]}; return-to-go, state and action of the last {training["context"]} timesteps |
| parameters | {training["parameters"]:,}, shipped in float16 |
| environment | `{training["environment"]}`, at most {training["most_steps"]} steps |
| training | {training["steps"]:,} steps of {training["batch"]} windows, cross-entropy of the actions; final loss on \
trajectories not trained on {training["history"][-1]["held_out"]:.3f} nats |
| time | {training["minutes"]:.1f} minutes of wall time, {training["cpu_minutes"]:.1f} of processor time on \
{training["threads"]} thread, of which {training["playing_minutes"]:.1f} minutes playing |
| command | `{training["command"]}` (seeds fixed in the script) |
| versions | {versions} |
| licence | MIT, as covector |

The weights can be made again with that command; another torch or another processor gives other last digits.
"""


def _data(training: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {name} | {MANNERS[name]} | {row['n']:,} | {row['mean']:.3f} | "
        f"{' · '.join(f'{q:.3f}' for q in row['quarters'])} |"
        for name, row in training["manners"].items()
    )
    return f"""## What it learned from

{training["trajectories"]:,} trajectories, {training["timesteps"]:,} timesteps, by the expert `{training["expert"]}`, \
which sees the whole state.

| manner | | trajectories | mean return | quartiles |
|---|---|---|---|---|
{rows}
"""


def _play(figures: Mapping[str, Any]) -> str:
    play = figures["play"]
    rows = [_row(f"target {row['target']:g}", row) for row in play["targets"]]
    rows += [_row("expert", play["expert"]), _row("random policy", play["random"])]
    met = figures["training"].get("starts_met")
    again = (
        f" The seeds are not the trainer's, but the environment has few beginnings: {met:.0%} of these episodes begin "
        "as some trajectory did."
        if met is not None
        else " The seeds are not the trainer's."
    )
    return f"""## How it plays

Greedy roll-outs (the largest logit), {play["episodes"]} episodes each on the same seeds, with the shipped float16 \
weights widened to float32; 95 % intervals.{again}

| | return | success | length |
|---|---|---|---|
{chr(10).join(rows)}
"""


def _row(name: str, row: Mapping[str, Any]) -> str:
    def shown(value: float, interval: Sequence[float], digits: int) -> str:
        return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"

    success, length = row["success"], row["length"]
    return (
        f"| {name} | {shown(row['return']['mean'], row['return']['interval'], 3)} "
        f"| {shown(success['rate'], success['interval'], 3)} | {shown(length['mean'], length['interval'], 1)} |"
    )


def _limits(figures: Mapping[str, Any]) -> str:
    training = figures["training"]
    unmet = training["states"] - training["states_met"]
    text = """## Limits

- The state and return heads (`predict_state`, `predict_return`) were never trained: they hold what they began with, and
  `agent.json` says so.
- The position table of the GPT-2 inside has a row per token, of which transformers only ever uses row 0.
"""
    if training["is_grid"]:
        text += f"""- {unmet} of the {training["states"]} state numbers are never lit in the data; their embedding is 0
  (index 49 · plane + 7 · x + y, with the planes of MiniGrid's OneHotPartialObsWrapper).
- Waiting is the action `done`, which MiniGrid ignores; `late` trajectories taught it.
"""
    return text
