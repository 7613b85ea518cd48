"""Do directions fall into groups? Average linkage, silhouettes, and the same for directions that mean nothing.

A direction's profile are its cosines with labels; two dyads are alike if their profiles are, whatever their signs:
distance 1 − |cos|. The null turns the directions of each place at random within their own span, so that what the place
reads (its subspace, and how many directions it has) stays and only the choice of axes in it is lost.

Source: `docs/theory/location.md`, "Clusters of dyads"; Rousseeuw 1987 (silhouette), Sokal and Rohlf 1962 (cophenetic).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import cophenet, fcluster, linkage
from scipy.spatial.distance import squareform

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.streams import Seed, generator

# Numbers of clusters among which the mean silhouette chooses.
MOST = 8


@dataclass(frozen=True, eq=False)
class Clusters:
    """``labels`` from 0 by falling size, ``own`` silhouette of each row, their ``mean``, the cophenetic correlation."""

    labels: Int[np.ndarray, " n"]
    own: Float[np.ndarray, " n"]
    mean: float
    cophenetic: float

    @property
    def count(self) -> int:
        """How many clusters."""
        return int(self.labels.max()) + 1


def clusters(profiles: Float[np.ndarray, "n m"], most: int = MOST) -> Clusters:
    """Average linkage cut into 2 to `most` clusters, whichever has the largest mean silhouette.

    Raises BadRequest for fewer than 4 profiles, or one of length zero.
    """
    distance = apart(profiles)
    tree = linkage(squareform(distance, checks=False), "average")
    found: Clusters | None = None
    corr = float(cophenet(tree, squareform(distance, checks=False))[0]) if np.ptp(distance) > 0 else 0.0
    for k in range(2, min(most, len(profiles) - 1) + 1):
        labels = fcluster(tree, k, "maxclust") - 1
        if labels.max() < 1:
            continue
        own = silhouettes(distance, labels)
        if found is None or own.mean() > found.mean + 1e-12:
            found = Clusters(_by_size(labels), own, float(own.mean()), corr)
    if found is None:
        return Clusters(np.zeros(len(profiles), dtype=int), np.zeros(len(profiles)), 0.0, corr)
    return found


def apart(profiles: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n n"]:
    """1 − |cos| of every pair of profiles."""
    lengths = np.linalg.norm(profiles, axis=1, keepdims=True)
    if len(profiles) < 4 or not np.all(lengths > 0):
        raise BadRequest(
            f"clusters: expected 4 or more profiles that are not zero, got {len(profiles)}; name more dyads"
        )
    units = profiles / lengths
    distance = 1 - np.minimum(np.abs(units @ units.T), 1.0)
    np.fill_diagonal(distance, 0.0)
    return distance


def silhouettes(distance: Float[np.ndarray, "n n"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """(b − a)/max(a, b) of each row: a the mean distance to its own cluster, b to the nearest other; 0 if alone."""
    member = np.eye(labels.max() + 1)[labels]
    sizes = member.sum(axis=0)
    sums = distance @ member
    n = np.arange(len(labels))
    own = sums[n, labels] / np.maximum(sizes[labels] - 1, 1)
    others = sums / np.maximum(sizes, 1)
    others[n, labels] = np.inf
    nearest = others.min(axis=1)
    scale = np.maximum(own, nearest)
    value = np.divide(nearest - own, scale, out=np.zeros(len(labels)), where=scale > 0)
    return np.where(sizes[labels] > 1, value, 0.0)


def turned_clusters(
    places: Sequence[Float[np.ndarray, "r d"]], labels: Float[np.ndarray, "m d"], *, draws: int, seed: Seed,
    most: int = MOST,
) -> Float[np.ndarray, "draws 2"]:  # fmt: skip
    """Mean silhouette and cophenetic correlation when the directions of each place are turned within their span.

    The choice of the number of clusters is repeated in each draw. Raises BadRequest for draws < 1.
    """
    if draws < 1:
        raise BadRequest(f"a null needs draws >= 1, got {draws}; 200 resolve 5 %")
    made = np.empty((draws, 2))
    projected = [rows @ labels.T for rows in places]
    for draw in range(draws):
        rng = generator(seed, "clusters", draw)
        turned = [draw_frames(rng, 1, len(p), len(p))[0] @ p for p in projected]
        found = clusters(np.concatenate(turned), most)
        made[draw] = found.mean, found.cophenetic
    return made


def _by_size(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    sizes = np.bincount(labels)
    order = np.argsort(-sizes, kind="stable")
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    return place[labels]
