"""Recipes: the choices between a checkpoint and a printed list of labels, and the lists that each of them gives.

A list of labels depends on the frame of the weights, on the side of a head that is looked at, on the basis and whether
it is taken relative to its mean, on raw products or cosines, and on which labels are shown at all. Publications tell
some of this. A recipe is one choice of each.

Source: §1.5–1.8 of the theory page; `docs/replicate.md`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from covector.axes import Bool, Float
from covector.errors import BadRequest, FrameUnavailable
from covector.linalg.svd import svd
from covector.linalg.topk import Poles, poles
from covector.model.address import Site
from covector.model.bases import Basis, left
from covector.model.circuits import side_centred
from covector.model.frames import PRESERVING, VIEWS, Frame, check_available
from covector.model.opened import Model

FRAMES = (*PRESERVING, *VIEWS)
SIDES = ("write", "read")
SCORES = ("raw", "cosine")
LABELS = ("all", "ascii")


@dataclass(frozen=True, order=True)
class Recipe:
    """One way to make a list. `side` is that of heads: an MLP has one side in the stream, ``in`` read, ``out`` written.

    `basis` may carry ``:centred``. `labels` is ``ascii`` where the others are left out.
    """

    frame: str
    side: str
    basis: str
    score: str
    labels: str

    def __str__(self) -> str:
        """As lines and sentences name it."""
        score = {"raw": "product", "cosine": "cosine"}[self.score]
        return f"{self.frame}, {self.side}, {self.basis}, {score}, {self.labels}"

    @property
    def words(self) -> dict[str, str]:
        """Its choices by name."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Lookup:
    """What lists of one recipe are taken from: a basis, who is kept of it, and what orders them."""

    basis: Basis
    keep: Bool[np.ndarray, " token"]
    score: str

    def lists(self, rows: Float[np.ndarray, "r d"], k: int) -> Poles:
        """The k extreme labels per pole of unit rows."""
        keep = self.keep & self.basis.usable
        lengths = np.where(self.basis.usable, self.basis.norms, 1.0) if self.score == "cosine" else None
        return poles(rows, self.basis.vectors, k, keep=keep, lengths=lengths)


def recipes(model: Model, kinds: Sequence[str]) -> list[Recipe]:
    """Every recipe that this model has and that could differ for maps of these kinds.

    Frames that the anatomy does not allow are left out; so is the read side where no head is asked about, a second
    name of the same basis, and the filter where all labels are ASCII. Raises BadRequest for a model without tokens.
    """
    if "token_out" not in model.bases:
        raise BadRequest(f"{model.name}: expected a model with token outputs, the published lists are of tokens")
    labels = LABELS if not all(map(str.isascii, model.bases["token_out"].labels)) else LABELS[:1]
    made = []
    for frame in frames_of(model):
        named = ["token_out"]
        if "token_in" in model.bases and not same_tables(model, frame):
            named.append("token_in")
        for side in SIDES if "ov" in kinds else SIDES[:1]:
            for basis in (variant for name in named for variant in (name, f"{name}:centred")):
                made += [Recipe(frame, side, basis, score, kept) for score in SCORES for kept in labels]
    return made


def same_tables(model: Model, frame: str) -> bool:
    """Whether token_in and token_out are one table in this frame: tied, and the unembedding not folded."""
    return model.stored.spec.tied and frame in ("raw", *VIEWS)


def stated(model: Model, words: Mapping[str, str]) -> Recipe:
    """The recipe that a source tells, as this model has it. Raises BadRequest for choices that are none."""
    told = {"frame": "raw", "side": "write", "basis": "token_out", "score": "raw", "labels": "all"} | dict(words)
    known = {"frame": FRAMES, "side": SIDES, "score": SCORES, "labels": LABELS}
    wrong = [f"{n} {told[n]}" for n, choices in known.items() if told[n] not in choices]
    if wrong or len(told) > len(known) + 1:
        raise BadRequest(f"--published: expected a recipe of frame, side, basis, score, labels; it has {told}")
    if same_tables(model, told["frame"]):
        told["basis"] = told["basis"].replace("token_in", "token_out")
    return Recipe(**told)


def frames_of(model: Model) -> list[str]:
    """Frames that this model's anatomy allows."""
    found = []
    for name in FRAMES:
        try:
            check_available(model.stored, Frame(name))
        except FrameUnavailable:
            continue
        found.append(name)
    return found


class Kitchen:
    """Makes lists of one model by any recipe; decompositions and bases are made once per frame."""

    def __init__(self, model: Model, places: Mapping[str, int]) -> None:
        """`places`: addresses, each with the number of dyads that are wanted there."""
        self.model, self.places = model, dict(places)
        self._views: dict[str, Model] = {}
        self._dyads: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def view(self, frame: str) -> Model:
        """The model in a frame, its bases kept."""
        if frame not in self._views:
            self._views[frame] = self.model.framed(frame)
        return self._views[frame]

    def direction(self, recipe: Recipe, address: str, dyad: int) -> Float[np.ndarray, " d"] | None:
        """The residual side of a dyad, a unit row; None where the map has no such dyad."""
        key = (recipe.frame, address)
        if key not in self._dyads:
            found = svd(self.view(recipe.frame).map(address), self.places[address], stream_only=True)
            self._dyads[key] = found.U.T, found.Vh
        read, write = self._dyads[key]
        side = read if self.side(recipe, address) == "read" else write
        return side[dyad] if dyad < len(side) else None

    def side(self, recipe: Recipe, address: str) -> str:
        """The side that lies in the stream: an MLP has one, a head that of the recipe."""
        kind = self.model.site(address).kind
        return {"in": "read", "gate": "read", "out": "write"}.get(kind, recipe.side)

    def lookup(self, recipe: Recipe, address: str) -> Lookup:
        """What lists of a place are taken from; vectors lose their part along 1 where the directions have none."""
        view = self.view(recipe.frame)
        return self._lookup(recipe, self._centred(view, self.model.site(address), recipe))

    def lookups(self, recipe: Recipe) -> Iterator[tuple[Lookup, list[str]]]:
        """The lookups of a recipe, each with the places it serves."""
        view = self.view(recipe.frame)
        of = {address: self._centred(view, self.model.site(address), recipe) for address in self.places}
        for centred in sorted(set(of.values())):
            yield self._lookup(recipe, centred), [address for address, value in of.items() if value == centred]

    def _centred(self, view: Model, site: Site, recipe: Recipe) -> bool:
        return side_centred(view.stored.spec, view.frame, site, second=self.side(recipe, str(site)) == "write")

    def _lookup(self, recipe: Recipe, centred: bool) -> Lookup:
        bases = self.view(recipe.frame).bases
        basis = bases.centred(recipe.basis) if centred else bases[recipe.basis]
        plain = bases[recipe.basis.partition(":")[0]]
        keep = left(basis, plain, ("ascii",) if recipe.labels == "ascii" else ())
        return Lookup(basis, keep, recipe.score)
