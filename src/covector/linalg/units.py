"""Are several lists of labels about one thing? Similarity of their centroids, the best choice of poles included.

Every singular direction has two poles and each pole a list of labels, hence a centroid. J is the mean similarity
between the centroids of m directions, one pole each, for the choice of poles that makes it largest. Choosing makes J
large by itself, so whatever J is compared with has its poles chosen the same way.

Source: `docs/theory/heads.md`, equation 11; F9 of the theory page.
"""

from itertools import product

import numpy as np

from covector.axes import Float, Int
from covector.errors import BadRequest

# Means of unit vectors shorter than this are rounding.
NOTHING = 1e-12
# 2^m choices are tried, all of them: 4096 at most.
MOST = 12


def centroids(
    units: Float[np.ndarray, "n d"], lists: Int[np.ndarray, "r p k"], own: Float[np.ndarray, "r d"]
) -> Float[np.ndarray, "r p d"]:
    """Return the mean of the unit vectors in both lists of every direction, without its part along `own`, at length
    one.

    What all labels of a list share is the direction that chose them; `own` holds these directions (rows, any length),
    and only what the labels have in common besides counts. Zero where nothing is left.
    """
    means = units[lists].mean(axis=-2)
    along = own / np.maximum(np.linalg.norm(own, axis=-1, keepdims=True), np.finfo(float).tiny)
    means = means - np.einsum("rpd,rd->rp", means, along)[..., None] * along[:, None]
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    return np.divide(means, lengths, out=np.zeros_like(means), where=lengths > NOTHING)


def joint_similarity(
    poles: Float[np.ndarray, "*batch m k d"],
) -> tuple[Float[np.ndarray, "*batch"], Int[np.ndarray, "*batch m"]]:
    """Return J and the pole chosen for each of m directions: the best of all 2^m choices, ties to the first pole.

    `poles` holds two centroids per direction [..., m, 2, d]. J = mean over pairs i ≠ j of ⟨cᵢ, cⱼ⟩, −1 … 1.
    Raises BadRequest unless 2 <= m <= 12.
    """
    *batch, m, sides, d = poles.shape
    if not 2 <= m <= MOST or sides != 2:
        raise BadRequest(f"expected 2 to {MOST} directions with two poles, got {m} with {sides}; ask for fewer")
    flat = poles.reshape(*batch, 2 * m, d)
    gram = flat @ np.swapaxes(flat, -1, -2)
    choices = np.array(list(product((0, 1), repeat=m)))
    chosen = np.zeros((len(choices), m, 2))
    np.put_along_axis(chosen, choices[:, :, None], 1.0, axis=2)
    chosen = chosen.reshape(len(choices), 2 * m)
    # Σ over all chosen pairs, less each centroid with itself.
    total = np.einsum("ca,...ca->...c", chosen, chosen @ gram)
    itself = np.einsum("ca,...a->...c", chosen, np.diagonal(gram, axis1=-2, axis2=-1))
    scores = (total - itself) / (m * (m - 1))
    best = scores.argmax(axis=-1)
    return np.take_along_axis(scores, best[..., None], axis=-1)[..., 0], choices[best]
