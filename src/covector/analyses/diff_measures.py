"""What is measured of a site's change, and of random changes of it: the same function for both.

Where the change lies in the old map's dyads, how far the leading subspaces turn, how many new dyads resemble no old
one, and how near the change's leading dyad comes to a label. Everything is taken at its most extreme (both sides, both
poles, every label, every old dyad), in the change and in each random change alike.

Source: `docs/theory/changes.md`, equations 2–9.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from covector.axes import Float
from covector.linalg import chance
from covector.linalg.chance.streams import Seed
from covector.linalg.change import angles, bands, difference, leading, nearest
from covector.linalg.change_null import RandomChanges
from covector.linalg.dyads import Dyads
from covector.linalg.maps import Dense, Factored, Map, frobenius
from covector.linalg.svd import SVD, svd
from covector.model.address import Site
from covector.model.bases import Basis
from covector.model.change import ChangeModel
from covector.model.circuits import side_centred


class Measures(NamedTuple):
    """`inside`: share of ‖ΔM‖² between the old map's leading dyads on both sides; `turn`: largest principal angle of
    the leading subspaces, degrees; `intruders`: leading new dyads that resemble no old one; `label`: |cos| of the
    change's leading dyad with its nearest label, over the |cos| that a random direction stays below with 95 %.
    """

    inside: float
    turn: float
    intruders: float
    label: float


@dataclass(frozen=True, eq=False)
class Labels:
    """A basis that one side of a change is compared with: unit vectors, and the level of a random direction."""

    basis: Basis
    centred: bool
    at: int

    @cached_property
    def units(self) -> Float[np.ndarray, "token d_model"]:
        """Unit vectors of the usable labels."""
        return self.basis.unit()[self.basis.usable]

    @cached_property
    def level(self) -> float:
        """|cos| that the best label of a random direction stays below with 95 %."""
        n, d = self.units.shape
        return float(chance.threshold(d - self.centred, n))

    def rows(self, found: SVD | Dyads) -> Float[np.ndarray, "r d"]:
        """The directions of this side."""
        return (found.U.T, found.Vh)[self.at]

    def best(self, found: SVD | Dyads) -> float:
        """Largest |cos| of the leading dyad with any label, over the level."""
        rows = self.rows(found)[:1]
        if not rows.size:
            return 0.0
        return float(np.abs(self.units @ rows.T.astype(self.units.dtype)).max() / self.level)


class Asked(NamedTuple):
    """What is asked of a change: the labels of its sides, how many dyads lead, and below what a new one intrudes."""

    labels: Sequence[Labels]
    top: int
    below: float


@dataclass(frozen=True, eq=False)
class Changed:
    """One site: old map, new map and their difference, and the dyads of the old map (all of them)."""

    site: Site
    base: Map
    other: Map
    change: Factored | Dense

    @property
    def tables(self) -> bool:
        """Whether the map is a table of labels outside the blocks: only its side in the stream is decomposed."""
        return self.site.layer is None

    @cached_property
    def old(self) -> SVD:
        """Every dyad of the old map."""
        return svd(self.base, stream_only=self.tables)

    @cached_property
    def delta(self) -> SVD:
        """The leading dyad of the change, the gains of the others beyond it."""
        return svd(self.change, 1, stream_only=self.tables)

    def measures(self, change: Map, delta: SVD | Dyads, new: Map, asked: Asked) -> Measures:
        """What is measured of this change, or of a random one in its place."""
        labels, top, below = asked
        found = leading(new, top, self.tables)
        turned = angles(self.old, found, top)
        return Measures(
            # A table has one side in the stream: what it reads or writes there, whatever label it belongs to.
            float(_inside(bands(self.old, change, top), self.old)),
            max((float(a[0]) for a in turned.values()), default=0.0),
            float(np.count_nonzero(nearest(self.old, found, top) < below)),
            max((one.best(delta) for one in labels), default=0.0),
        )

    def measured(self, asked: Asked) -> Measures:
        """What is measured of the change itself."""
        return self.measures(self.change, self.delta, self.other, asked)

    def null(self, asked: Asked, draws: int, seed: Seed) -> Float[np.ndarray, "draws 4"]:
        """The same of random changes of equal norm and equal rank, one row per draw."""
        random = RandomChanges(self.other, self.base, frobenius(self.change), seed)
        made = []
        for i in range(draws):
            change, new = random.draw(i)
            made.append(self.measures(change, leading(change, 1, self.tables), new, asked))
        return np.array(made).reshape(draws, len(Measures._fields))


def _inside(shares: Float[np.ndarray, "3 3"], old: SVD) -> float:
    if not old.U.shape[1]:
        return shares[2, 0]
    return shares[0, 2] if not len(old.Vh) else shares[0, 0]


def at_site(model: ChangeModel, site: Site) -> Changed:
    """One site of a change, its three maps."""
    base, other = model.sides(site)
    return Changed(site, base, other, difference(other, base, stored="float64" if model.exact else None))


def labels_of(model: ChangeModel, site: Site, change: Map) -> list[Labels]:
    """What each side of a site's change is compared with, where it lies in the stream."""
    found = []
    for at, space in enumerate((change.reads, change.writes)):
        if space.kind == "residual":
            name = model.bases.default("read" if at == 0 or site.kind == "qk" else "write")
            centred = side_centred(model.stored.spec, model.frame, site, second=at == 1)
            found.append(Labels(model.bases.centred(name) if centred else model.bases[name], centred, at))
    return found
