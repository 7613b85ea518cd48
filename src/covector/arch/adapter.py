"""The adapter: stored tensors and their layouts in words → canonical weights, lazily, every tensor accounted for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from covector.arch.words import Layout, check_shape, cut, parse
from covector.errors import CheckpointMismatch
from covector.model.spec import ModelSpec
from covector.model.weights import TensorSource, axis_sizes, check_complete, frozen, split_name


@dataclass(frozen=True)
class Place:
    """Where a canonical tensor is stored: the stored name, its layout, the role inside it."""

    tensor: str
    layout: Layout
    role: str


@dataclass(frozen=True)
class AdaptedWeights:
    """Canonical weights read from stored tensors, one at a time, as they are asked for.

    ``W_U`` of a tied model is the transpose of ``W_E`` (one tensor, stored and counted once). Gains of a norm with an
    offset come with the offset added, in float64, so that nothing is rounded.
    """

    spec: ModelSpec
    source: TensorSource
    places: Mapping[str, Place]
    ignored: tuple[str, ...]

    def __getitem__(self, name: str) -> np.ndarray:
        """The canonical array, read-only; a view of the file where no arithmetic is needed."""
        if name == "W_U" and self.spec.tied:
            return frozen(self["W_E"].T)
        place = self.places[name]
        layer, role = split_name(name)
        array = cut(place.layout, role, self.source.read(place.tensor), axis_sizes(self.spec, layer, (role,)))
        offset = self._offset(name)
        return frozen(array if offset == 0 else array.astype(np.float64) + offset)

    def __contains__(self, name: object) -> bool:
        """Whether the model has such a tensor."""
        return name in self.places or (name == "W_U" and self.spec.tied)

    def names(self) -> tuple[str, ...]:
        """Every canonical name, in the order of the declaration, layer by layer."""
        tied = ("W_U",) if self.spec.tied and "W_U" not in self.places else ()
        return (*self.places, *tied)

    def stored(self, name: str) -> str:
        """The dtype that the file stores this tensor in."""
        return self.source.info(self.place(name).tensor)[0]

    def origin(self, name: str) -> tuple[str, str]:
        """The stored name of a tensor, and the sha256 of its stored bytes."""
        stored = self.place(name).tensor
        return stored, self.source.sha256(stored)

    def position(self, name: str) -> tuple[str, int]:
        """Which file a tensor stands in, and where: for reading files in their order. ("", 0) for memory."""
        where = getattr(self.source, "position", None)
        return where(self.place(name).tensor) if where else ("", 0)

    def release(self, name: str) -> None:
        """Say that a tensor is not needed for now: its pages of the file may go."""
        self.source.release(self.place(name).tensor)

    def place(self, name: str) -> Place:
        """Where a canonical tensor is stored (the embedding's place for a tied ``W_U``)."""
        return self.places["W_E" if name == "W_U" and self.spec.tied else name]

    def _offset(self, name: str) -> float:
        if not name.endswith(".gain"):
            return 0.0
        norm = self.spec.norms().get(name.removesuffix(".gain"))
        return norm.offset if norm else 0.0


def adapt(
    spec: ModelSpec,
    tensors: Mapping[str, str],
    source: TensorSource,
    *,
    prefixes: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
) -> AdaptedWeights:
    """Match every stored tensor to the declared layouts; ``"a | b"`` is a tensor that goes by either name.

    Raises CheckpointMismatch, naming the tensor: missing, of another shape than config and words say, declared twice,
    or neither used nor ignored by name.
    """
    names = set(source.names())
    prefix = _prefix(tensors, names, prefixes)
    places: dict[str, Place] = {}
    seen: set[str] = set()
    for pattern, words in tensors.items():
        for layer in range(spec.n_layers) if "{i}" in pattern else (None,):
            tensor, layout = _find(pattern, words, layer, prefix, names, prefixes)
            if tensor not in names:
                if layout.optional or layout.ignored:
                    continue
                raise CheckpointMismatch(
                    f"{source.where}: expected tensor '{tensor}' ({layout.words}), it is missing; "
                    f"{_near(tensor, names)}"
                )
            if layout.ignored:
                seen.add(tensor)
                continue
            sizes = axis_sizes(spec, layer, layout.roles)
            check_shape(layout, tensor, source.info(tensor)[1], sizes, source.where)
            seen.add(tensor)
            for role in layout.roles:
                _place(
                    places,
                    role if layer is None else f"L{layer}.{role}",
                    Place(tensor, layout, role),
                    source.where,
                )
    left = _left_over(names - seen, ignored, source.where)
    weights = AdaptedWeights(spec, source, places, left)
    _check_tied(weights)
    check_complete(weights, source.where)
    return weights


def _find(
    pattern: str, words: str, layer: int | None, prefix: str, names: set[str], prefixes: tuple[str, ...]
) -> tuple[str, Layout]:
    stems = (pattern if layer is None else pattern.replace("{i}", str(layer))).split(" | ")
    layout = parse(words, default_role=stems[0].rsplit(".", 1)[-1])
    for lead in (prefix, "", *prefixes):
        for stem in stems:
            if lead + stem in names:
                return lead + stem, layout
    return prefix + stems[0], layout


def _prefix(tensors: Mapping[str, str], names: set[str], prefixes: tuple[str, ...]) -> str:
    """The prefix under which the declared names are found: checkpoints of a bare model leave it out."""
    stems = [stem for p in tensors for stem in p.replace("{i}", "0").split(" | ")]
    return max(("", *prefixes), key=lambda lead: sum(lead + s in names for s in stems))


def _place(places: dict[str, Place], name: str, place: Place, where: str) -> None:
    if name in places:
        raise CheckpointMismatch(
            f"{where}: {name} is declared twice, by '{places[name].tensor}' and '{place.tensor}'; remove one"
        )
    places[name] = place


def _left_over(left: set[str], ignored: tuple[str, ...], where: str) -> tuple[str, ...]:
    unused = sorted(n for n in left if not any(re.fullmatch(p, n) for p in ignored))
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise CheckpointMismatch(
            f"{where}: expected every tensor to be used or ignored by name, nothing reads "
            f"{', '.join(unused[:3])}{more}; "
            "the layout family or the config does not describe this checkpoint fully"
        )
    return tuple(sorted(left))


def _check_tied(weights: AdaptedWeights) -> None:
    """A config that ties and a file that stores another unembedding contradict each other."""
    if not (weights.spec.tied and "W_U" in weights.places):
        return
    place = weights.places["W_U"]
    same = weights.source.sha256(place.tensor) == weights.source.sha256(weights.places["W_E"].tensor)
    if not same:
        raise CheckpointMismatch(
            f"{weights.source.where}: the config ties the unembedding to the embedding, but '{place.tensor}' differs "
            f"from '{weights.places['W_E'].tensor}'; set tie_word_embeddings to false if the stored one is meant"
        )


def _near(tensor: str, names: set[str]) -> str:
    """The stored names most like the missing one, for the error text."""
    tail = tensor.split(".")[-3:]
    near = sorted(names, key=lambda n: (-len(set(tail) & set(n.split("."))), n))[:3]
    return f"the file has {', '.join(near)} …" if near else "the file holds no tensors"
