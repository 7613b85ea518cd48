"""What passes in small random models, as linearised models take it: runs by hook, and a question to ask of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from covector.model.weights import Weights
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.search import World
from covector.run.decoder import Decoder
from covector.run.hooks import hook_names
from covector.run.random_inputs import random_inputs

Runs = list[dict[str, np.ndarray]]


def length_of(weights: Weights) -> int:
    """Six positions; for agents three timesteps."""
    assembly = weights.spec.assembly
    return 3 * len(assembly.inputs) if assembly.mode == "interleaved" else 6


def runs_of(weights: Weights, seeds: Sequence[int] = (1, 2), batch: int = 2) -> Runs:
    """Everything that passes on random inputs of equal length, one run per seed."""
    given = [random_inputs(weights.spec, length=length_of(weights), batch=batch, seed=seed) for seed in seeds]
    return [run_of(weights, inputs) for inputs in given]


def run_of(weights: Weights, inputs: Mapping[str, torch.Tensor] | np.ndarray, **more: object) -> dict[str, np.ndarray]:
    """Everything that passes on these inputs, outputs included; `more` goes to the decoder (interventions)."""
    named = torch.from_numpy(inputs) if isinstance(inputs, np.ndarray) else inputs
    with torch.no_grad():
        run = Decoder(weights).run(named, capture=hook_names(weights.spec), **more)  # type: ignore[arg-type]
    outputs = {f"out.{name}": value for name, value in run.outputs.items()}
    return {name: value.numpy() for name, value in {**run.cache, **outputs}.items()}


def question(weights: Weights, seed: int = 0) -> tuple[np.ndarray, str]:
    """Random weights [1, n] on the labels of the first output, and its name."""
    out = weights.spec.outputs[0]
    return np.random.default_rng(seed).standard_normal((1, out.n)), out.name


def world_of(weights: Weights, runs: Runs, policy: str = "secant", at: Sequence[int] = (5, 3), seed: int = 0) -> World:
    """A world of these runs, the question read at positions `at`, every position a slot of its own number."""
    n, output = question(weights, seed)
    linear = Linearised(weights, tuple(runs), Policies.all(policy))  # type: ignore[arg-type]
    batch, length = runs[0]["resid_in"].shape[:2]
    return World(linear, linear.start(n, output, np.array(at)), [[str(t) for t in range(length)]] * batch)


def asked(weights: Weights, run: Mapping[str, np.ndarray], at: Sequence[int] = (5, 3), seed: int = 0) -> np.ndarray:
    """The question's value in a run, prompt by prompt."""
    n, output = question(weights, seed)
    return run[f"out.{output}"][np.arange(len(at)), list(at)] @ n[0]
