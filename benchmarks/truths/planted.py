"""Dyads of graded strength planted in random maps, and what an atlas says of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.building import build_atlas
from covector.io.atlas import Atlas
from covector.model.weights import ArrayWeights

LEVEL = 0.05
INSIDE = ("ov", "qk", "mlp")
N_VOCAB, MEMBERS, D_HEAD, D_MLP = 600, 20, 16, 256
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0)


def units(rows: np.ndarray) -> np.ndarray:
    """Rows at length one."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@dataclass(frozen=True)
class World:
    """A made-up vocabulary: `topics` of 20 tokens each, whose cosine is `alike` within a topic; others stand alone.

    Topic dyads are planted `tilt` degrees off the centre of their topic.
    """

    d: int = 64
    topics: int = 4
    alike: float = 0.6
    tilt: float = 0.0
    layers: int = 12

    def members(self, topic: int) -> tuple[int, ...]:
        """Ids of the tokens of a topic."""
        return tuple(range(topic, self.topics * MEMBERS, self.topics))

    def tokens(self, rng: np.random.Generator) -> np.ndarray:
        """A unit row for every token."""
        centres, rows = rng.standard_normal((self.topics, self.d)), rng.standard_normal((N_VOCAB, self.d))
        for topic, centre in enumerate(centres):
            ids = list(self.members(topic))
            rows[ids] = np.sqrt(self.alike) * centre + np.sqrt(1 - self.alike) * rows[ids]
        return units(rows)

    def target(self, rng: np.random.Generator, tokens: np.ndarray, group: bool) -> tuple[np.ndarray, tuple[int, ...]]:
        """A unit direction to plant, and the tokens that it stands for."""
        if not group:
            token = int(rng.integers(self.topics * MEMBERS, N_VOCAB))
            return tokens[token], (token,)
        ids = self.members(int(rng.integers(self.topics)))
        centre, aside = units(tokens[list(ids)].sum(axis=0)), rng.standard_normal(self.d)
        aside, angle = units(aside - centre * (aside @ centre)), np.radians(self.tilt)
        return np.cos(angle) * centre + np.sin(angle) * aside, ids


WORLD = World()
# Wide enough for a dyad beside its topic's centre to be told from random directions: in 64 they meet topics too often.
WIDE = World(d=128, topics=2, alike=0.7, tilt=55.0, layers=8)


@dataclass(frozen=True)
class Plant:
    """One planted dyad at one side of a site: what it reads or writes there, and the token or the topic it is."""

    site: str
    side: str
    group: bool
    truth: np.ndarray
    members: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The kind of its site: ov, mlp.in or mlp.out."""
        return self.site.partition(".")[2]


def planted_model(strength: float, seed: int = 0, world: World = WORLD) -> tuple[ArrayWeights, list[Plant]]:
    """A random model with one dyad more in every OV, MLP-in and MLP-out map, and what was planted.

    `strength` is the gain of the planted dyad over the largest gain of the random map. In even layers it reads one
    token and writes another, in odd ones it reads and writes a topic. In a head it is added to both factors, W_V + a·c
    and W_O + c·b: the rank stays, and so does the noise below it.
    """
    rng = np.random.default_rng((seed, 77))
    weights = random_model(
        seed=seed, n_layers=world.layers, d_model=world.d, n_heads=1, d_head=D_HEAD, d_mlp=D_MLP, norm=None,
        n_vocab=N_VOCAB, positions="none", biases=False,
    )  # fmt: skip
    into, out = world.tokens(rng), world.tokens(rng)
    arrays = dict(weights.arrays) | {"W_E": into, "W_U": out.T}
    plants: list[Plant] = []
    for layer in range(world.layers):
        group = bool(layer % 2)
        made = {side: world.target(rng, rows, group) for side, rows in (("read", into), ("write", out))}
        W_V, W_O = arrays[f"L{layer}.W_V"], arrays[f"L{layer}.W_O"]
        root = np.sqrt(strength * np.linalg.norm(W_V[0] @ W_O[0], 2))
        inner = units(rng.standard_normal(D_HEAD))
        arrays[f"L{layer}.W_V"] = W_V + root * np.outer(made["read"][0], inner)
        arrays[f"L{layer}.W_O"] = W_O + root * np.outer(inner, made["write"][0])
        plants += [Plant(f"L{layer}H0.ov", side, group, *found) for side, found in made.items()]
        for name, kind, side, rows in (("W_in", "in", "read", into), ("W_out", "out", "write", out)):
            truth, ids = world.target(rng, rows, group)
            neurons, matrix = units(rng.standard_normal(D_MLP)), arrays[f"L{layer}.{name}"]
            dyad = np.outer(truth, neurons) if side == "read" else np.outer(neurons, truth)
            arrays[f"L{layer}.{name}"] = matrix + strength * np.linalg.norm(matrix, 2) * dyad
            plants.append(Plant(f"L{layer}.mlp.{kind}", side, group, truth, ids))
    return ArrayWeights(weights.spec, arrays), plants


@dataclass(frozen=True)
class Recovered:
    """What an atlas says of one planted dyad: is it called, and how near is the nearest direction of its site."""

    plant: Plant
    called: bool
    cos: float


def recovered(atlas: Atlas, plants: Sequence[Plant]) -> list[Recovered]:
    """For every plant: whether a direction of its site has q_dir < .05 and names it, and |cos| of the nearest one."""
    told = atlas.columns("site", "side", "q_dir", "top_id", "bottom_id", "cos")
    found = []
    for plant in plants:
        at = np.flatnonzero((told["site"] == plant.site) & (told["side"] == plant.side))
        nearest = [told["top_id" if told["cos"][i] > 0 else "bottom_id"][i][0] for i in at]
        called = np.isin(nearest, plant.members) & (told["q_dir"][at] < LEVEL)
        cos = np.abs(atlas.vectors[at].astype(np.float64) @ plant.truth).max()
        found.append(Recovered(plant, bool(called.any()), float(cos)))
    return found


def atlas_of(model: Any, folder: Path, **options: Any) -> Atlas:
    """The atlas of a model's blocks on one worker."""
    chosen = Options(**({"kinds": INSIDE, "draws": 50, "scores": False} | options))
    atlas = build_atlas(model, folder, options=chosen, workers=1)
    assert atlas is not None
    return atlas


@dataclass(frozen=True)
class Verdicts:
    """What the written rules say of planted topics, and of every direction that is not a planted one."""

    interpretable: int
    aligned: int
    topics: int
    others_called: int
    others: int


def verdicts(atlas: Atlas, plants: Sequence[Plant]) -> Verdicts:
    """Counts over the planted topics whose site the atlas has; the direction nearest to a truth stands for it."""
    told = atlas.columns("site", "side", "interpretable", "aligned")
    stored, other, topics = atlas.vectors.astype(np.float64), np.ones(len(atlas), bool), []
    for plant in plants:
        at = np.flatnonzero((told["site"] == plant.site) & (told["side"] == plant.side))
        if len(at):
            nearest = at[np.abs(stored[at] @ plant.truth).argmax()]
            other[nearest] = False
            topics += [nearest] if plant.group else []
    called = told["interpretable"] | told["aligned"]
    return Verdicts(
        interpretable=int(told["interpretable"][topics].sum()), aligned=int(told["aligned"][topics].sum()),
        topics=len(topics), others_called=int(called[other].sum()), others=int(other.sum()),
    )  # fmt: skip
