"""Little agents with something planted, for tests of what weights of agents say."""

import dataclasses

import numpy as np

from covector.arch.toy import agent_streams, random_weights
from covector.arch.toy import random_model as toy
from covector.model.opened import Model
from covector.model.weights import ArrayWeights

ACTIONS = ("left", "right", "forward")
CHANNELS, SIDE = ("wall", "key"), 5
CELLS = tuple(f"{name} x{x} y{y}" for name in CHANNELS for x in range(SIDE) for y in range(SIDE))
STEPS = 60


def little_agent(seed: int = 0, d_model: int = 48, n_layers: int = 2, **arrays: np.ndarray) -> Model:
    """An agent without norms, of 3 actions, 2 × 25 cells and 60 steps; `arrays` replace tensors (dots are ``__``)."""
    base = toy(
        seed=seed, d_model=d_model, n_layers=n_layers, n_heads=2, d_mlp=40, norm=None, agent="interleaved",
        positions="none", biases=False,
    ).spec  # fmt: skip
    assembly, outputs = agent_streams("interleaved", n_states=len(CELLS), n_steps=STEPS)
    spec = dataclasses.replace(base, assembly=assembly, outputs=outputs)
    held = dict(random_weights(spec, seed=seed, biases=False).arrays)
    held |= {name.replace("__", "."): value for name, value in arrays.items()}
    weights = ArrayWeights(spec, held)
    labels = {"action": ACTIONS, "state": CELLS}
    return Model("little", weights, weights, labels=labels, identity={"files": {}, "versions": {}})


def dyads_of(rows: np.ndarray, seed: int = 9, inner: int = 40) -> np.ndarray:
    """A written map [inner, d_model] whose singular directions are the given orthonormal rows, gains 3, 2.5, …."""
    left = np.linalg.qr(np.random.default_rng(seed).standard_normal((inner, len(rows))))[0]
    return left * (3 - 0.5 * np.arange(len(rows))) @ rows


def unit(row: np.ndarray) -> np.ndarray:
    """The row at length one."""
    return row / np.linalg.norm(row)
