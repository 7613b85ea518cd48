"""Heads in which a few leading dyads are topics and the others have nothing to do with any: does the basis tell?"""

from dataclasses import dataclass

import numpy as np

import covector
from covector.arch.toy import random_model
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from truths.planted import units


@dataclass(frozen=True)
class Apart:
    """A vocabulary with `topics` of 60 tokens, and heads whose `leading` dyads each lie `tilt` degrees off one of them.

    Tokens of a topic have the cosine `alike`. The other dyads of a head are orthogonal to the centre of every topic,
    so that only the leading ones meet one. Gains fall from 4 to 1: no two are alike.
    """

    tilt: float
    alike: float = 0.7
    d: int = 128
    d_head: int = 32
    vocabulary: int = 6000
    topics: int = 2
    members: int = 60
    leading: int = 2
    layers: int = 4
    heads: int = 2

    @property
    def directions(self) -> int:
        """How many directions the heads have, both sides."""
        return 2 * self.d_head * self.layers * self.heads

    @property
    def planted(self) -> int:
        """How many of them are topics."""
        return 2 * self.leading * self.layers * self.heads

    def tokens(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A unit row for every token, and the centres of the topics, orthonormal."""
        centres = np.linalg.qr(rng.standard_normal((self.d, self.topics)))[0].T
        rows, inside = rng.standard_normal((self.vocabulary, self.d)), self.topics * self.members
        shared = np.sqrt(self.alike * self.d) * np.repeat(centres, self.members, axis=0)
        rows[:inside] = shared + np.sqrt(1 - self.alike) * rows[:inside]
        return units(rows), centres

    def basis(self, rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
        """Orthonormal rows [d_head, d]: the leading ones each beside one of the centres, the others off all of them."""
        rows, angle = rng.standard_normal((self.d_head, self.d)), np.radians(self.tilt)
        rows = np.linalg.qr((rows - rows @ centres.T @ centres).T)[0].T
        rows[: self.leading] = np.cos(angle) * centres[: self.leading] + np.sin(angle) * rows[: self.leading]
        return rows


def topics_apart(world: Apart, seed: int = 0) -> tuple[Model, dict[tuple[str, str], np.ndarray]]:
    """The model, and for both sides of every head the basis that was planted: its leading rows are topics."""
    rng = np.random.default_rng((seed, 78))
    weights = random_model(
        seed=seed, n_layers=world.layers, d_model=world.d, n_heads=world.heads, d_head=world.d_head, d_mlp=0,
        norm=None, n_vocab=world.vocabulary, positions="none", biases=False,
    )  # fmt: skip
    (into, read), (out, written) = world.tokens(rng), world.tokens(rng)
    arrays, bases = dict(weights.arrays) | {"W_E": into, "W_U": out.T}, {}
    for layer in range(world.layers):
        reads = [world.basis(rng, read) for _ in range(world.heads)]
        writes = [world.basis(rng, written) for _ in range(world.heads)]
        arrays[f"L{layer}.W_V"] = np.stack([basis.T * np.linspace(4, 1, world.d_head) for basis in reads])
        arrays[f"L{layer}.W_O"] = np.stack(writes)
        for h, pair in enumerate(zip(reads, writes, strict=True)):
            bases |= {(f"L{layer}H{h}.ov", side): basis for side, basis in zip(("read", "write"), pair, strict=True)}
    return covector.open(ArrayWeights(weights.spec, arrays)), bases
