"""Chance for couplings: random read-outs as alike as those of the tasks, read through the same heads.

Source: `docs/theory/observables.md`, equation 13.
"""

from collections.abc import Sequence

import numpy as np

from covector.analyses.shared import standardised
from covector.analyses.virtual_chain import chain_of
from covector.analyses.virtual_heads import Sphere, readout
from covector.axes import Float
from covector.linalg.chance.streams import generator
from covector.model.opened import Model
from covector.study.observable import Observable

# Cosines closer than this are equal: where read-outs have no freedom every draw has the task's own cosine.
TIE = 1e-12


def null_cosines(
    view: Model, tasks: Sequence[Observable], draws: int, seed: int
) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "draws m m head"]]:
    """Cosines of the tasks' read-outs, and those of the features of random read-outs with these cosines, by head."""
    read = [readout(view, task) for task in tasks]
    F = np.stack([f / np.linalg.norm(f) for f, _ in read])
    drawn = random_alike(read[0][1], F, draws, seed)
    chain, _ = chain_of(view)
    found = np.empty((draws, len(tasks), len(tasks), chain.n_heads))
    for head in range(chain.n_heads):
        Y = drawn @ chain.operator((head,)).T
        sizes = np.linalg.norm(Y, axis=2, keepdims=True)
        Y = np.divide(Y, sizes, out=np.zeros_like(Y), where=sizes > 0)
        found[:, :, :, head] = Y @ Y.transpose(0, 2, 1)
    return np.clip(F @ F.T, -1, 1), found


def random_alike(
    sphere: Sphere, rows: Float[np.ndarray, "m d"], draws: int, seed: int
) -> Float[np.ndarray, "draws m d"]:
    """Unit directions, even in all of them, with the cosines that the unit `rows` have among each other.

    Rows = T Q with T lower triangular; Q is replaced by as many random orthonormal rows.
    """
    upper = np.linalg.qr(rows.T).R
    T = (upper * np.where(np.diag(upper) < 0, -1.0, 1.0)[:, None]).T
    rng = generator(seed, "pairs of directions")
    Q = np.stack([sphere.draw(rng, draws) for _ in rows], axis=1)
    for i in range(len(rows)):
        # Twice, so that what is left of the directions before it is rounding of 1.
        for _ in range(2):
            along = np.einsum("nd,njd->nj", Q[:, i], Q[:, :i])
            Q[:, i] -= np.einsum("nj,njd->nd", along, Q[:, :i])
        Q[:, i] /= np.linalg.norm(Q[:, i], axis=1, keepdims=True)
    return T @ Q


def chances(
    cosine: Float[np.ndarray, " n"], null: Float[np.ndarray, "draws n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Monte-Carlo p of every head (and pair) alone, and of the best of all; never 0."""
    C = np.concatenate([cosine[None], null])
    p = np.mean(np.abs(C) >= np.abs(cosine) - TIE, axis=0)
    t = standardised(C[:, :, None])[:, :, 0]
    return p, np.mean(np.max(t, axis=1, keepdims=True) >= t[0], axis=0)
