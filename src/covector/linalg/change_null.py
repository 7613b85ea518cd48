"""Random changes of equal norm and equal rank: what a change of a map would look like if its directions meant nothing.

The arrays that are stored are what a training step changes, so they are what is drawn: each array's change keeps its
singular values (hence its norm and its rank) and gets Haar-random singular vectors. Of a product A·B both factors'
changes are drawn, and the change of the product is then scaled to the norm of the real one. Random d × d matrices
would be the wrong null for a head: whatever is added to W_O alone reads through the old W_V, and so lies in the old
read space by construction; the draws here share that.

Source: `docs/theory/changes.md`, equations 8–9; §2 F16 of the theory page.
"""

import numpy as np

from covector.axes import Float
from covector.errors import SpaceMismatch
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.dyads import numerical_rank
from covector.linalg.maps import Dense, Factored, Map, frobenius


class RandomChanges:
    """Draws of random changes of a map: draw number i is the same whatever else was drawn.

    Holds the singular values of each array's change. Costs two QR factorisations of the arrays' shapes per draw.
    """

    def __init__(self, other: Map, base: Map, size: float, seed: Seed) -> None:
        self.base, self.size, self.seed = base, size, seed
        self.gains = [_gains(one, two) for one, two in zip(_arrays(other), _arrays(base), strict=True)]

    def draw(self, index: int) -> tuple[Map, Map]:
        """(random change, changed map) number `index`; the change has the Frobenius norm `size`."""
        rng = generator(self.seed, "random change", index)
        arrays = _arrays(self.base)
        moved = [_rotated(a.shape, gains, rng) for a, gains in zip(arrays, self.gains, strict=True)]
        base = self.base
        if isinstance(base, Dense):
            W = moved[0] * (self.size / max(float(np.linalg.norm(moved[0])), np.finfo(float).tiny))
            change = Dense(W, base.reads, base.writes, base.stored)
            return change, Dense(base.W + W, base.reads, base.writes, base.stored)
        if not isinstance(base, Factored):
            raise SpaceMismatch("random changes are drawn for matrices and products, not for overlays; add it up first")
        (A, B), (dA, dB) = arrays, moved
        change = Factored(np.concatenate([dA, A], axis=1), np.concatenate([B + dB, dB]), base.reads, base.writes)
        t = self.size / max(frobenius(change), np.finfo(float).tiny)
        scaled = Factored(change.A, change.B * t, base.reads, base.writes, base.stored)
        both = np.concatenate([A, dA], axis=1), np.concatenate([B + t * dB, t * (B + dB)])
        return scaled, Factored(*both, base.reads, base.writes, base.stored)


def _arrays(m: Map) -> tuple[np.ndarray, ...]:
    made = (m.A, m.B) if isinstance(m, Factored) else (m.dense(),)
    return tuple(array.astype(np.float64, copy=False) for array in made)


def _gains(other: np.ndarray, base: np.ndarray) -> Float[np.ndarray, " r"]:
    """Singular values of an array's change, numerical zeros left out."""
    change = other - base
    if not change.any():
        return np.zeros(0)
    S = np.linalg.svd(change, compute_uv=False)
    return S[: numerical_rank(S, change.shape)]


def _rotated(
    shape: tuple[int, ...], gains: Float[np.ndarray, " r"], rng: np.random.Generator
) -> Float[np.ndarray, "n m"]:
    """A matrix of these singular values with Haar-random singular vectors."""
    if not gains.size:
        return np.zeros(shape)
    left, right = (draw_frames(rng, 1, n, gains.size)[0] for n in shape)
    return (left.T * gains) @ right
