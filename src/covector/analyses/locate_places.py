"""What is located, and where it is looked for: labels of a basis, and the sides of maps that lie in the stream."""

from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.location import hyperplane
from covector.model.address import Site
from covector.model.bases import Basis, left, undertrained
from covector.model.circuits import side_centred
from covector.model.opened import Model

# Every map inside the blocks once: a head's query, key, value and output weights are parts of its qk and ov.
EVERYWHERE = ("L*H*.ov", "L*H*.qk", "L*.mlp.*")
SIDES = ("both", "read", "write")


@dataclass(frozen=True)
class Place:
    """One side of one site; `centred` where its directions have no part along 1 in the model's frame."""

    site: Site
    side: str
    centred: bool


@dataclass(frozen=True, eq=False)
class Chosen:
    """The labels that are located: rows of a basis, and of the same basis seen from the hyperplane without 1.

    `left_out` of the labels asked for have no direction; `hardly_trained` of the rows look as if nothing trained them.
    """

    whole: Basis
    without_one: Basis
    rows: Int[np.ndarray, " n"]
    left_out: int
    hardly_trained: int

    @property
    def labels(self) -> list[str]:
        """Their names."""
        return [self.whole.labels[i] for i in self.rows]

    def units(self, centred: bool) -> Float[np.ndarray, "n d"]:
        """Their vectors at length one; `centred`: without their part along 1, in d_model − 1 coordinates."""
        basis = self.without_one if centred else self.whole
        vectors = basis.vectors[self.rows] / basis.norms[self.rows, None].astype(basis.vectors.dtype)
        return hyperplane(vectors) if centred else vectors


def chosen(model: Model, name: str, concept: tuple[str, ...], without: tuple[str, ...] = ()) -> Chosen:
    """The usable rows of a basis that the filters leave, or the labels asked for.

    Raises UnknownBasis, NotOneToken; BadRequest for a whitened basis, an asked label that is zero, or nothing usable.
    """
    whole, without_one, plain = model.bases[name], model.bases.centred(name), name.partition(":")[0]
    if whole.metric is not None:
        raise BadRequest(f"{name}: gains are of directions as they are, not behind whitening; use {plain}:centred")
    usable: Bool[np.ndarray, " token"] = whole.usable & without_one.usable
    hardly = undertrained(model.bases[plain])
    asked = np.flatnonzero(left(whole, model.bases[plain], without))
    if concept:
        tokens = model.vocabulary if name.startswith("token_") else None
        asked = np.array(list(dict.fromkeys(tokens.one(t) if tokens else whole.index(t) for t in concept)))
        null = [whole.labels[i] for i in asked if not usable[i]]
        if null:
            raise BadRequest(f"'{null[0]}' has no direction in {name} (its vector is zero); leave it out")
    rows = asked[usable[asked]]
    if not len(rows):
        raise BadRequest(f"basis {name}: none of its {len(asked)} vectors has a direction; choose another basis")
    return Chosen(whole, without_one, rows, len(asked) - len(rows), int(hardly[rows].sum()))


def places(model: Model, sites: str, side: str) -> tuple[Place, ...]:
    """Sides in the residual stream of every site named, in the order of the model.

    Raises BadSite; BadRequest for an unknown side, or if there is no such place.
    """
    if side not in SIDES:
        raise BadRequest(f"expected side {', '.join(SIDES)}, got '{side}'")
    patterns = EVERYWHERE if sites.strip() == "*" else sites.split(",")
    named = dict.fromkeys(site for pattern in patterns for site in model.sites(pattern))
    made = [place for site in sorted(named, key=_depth) for place in _sides(model, site)]
    kept = tuple(p for p in made if side == "both" or (p.side == "write") == (side == "write"))
    if not kept:
        verb = "reads or writes" if side == "both" else f"{side}s"
        raise BadRequest(f"expected sites of which one {verb} the stream, '{sites}' has none; try --sites '*'")
    return kept


def _depth(site: Site) -> tuple[int, bool]:
    return (-1 if site.layer is None else site.layer, site.in_mlp)


def _sides(model: Model, site: Site) -> list[Place]:
    """A QK map reads the stream twice, as query and as key; it writes none."""
    m, names = model.map(site), ("query", "key") if site.kind == "qk" else ("read", "write")
    return [
        Place(site, name, side_centred(model.stored.spec, model.frame, site, second))
        for name, space, second in zip(names, (m.reads, m.writes), (False, True), strict=True)
        if space.kind == "residual"
    ]
