"""Typed paths found best first, each with its exact share of the difference between two inputs.

The functional of a prefix (a path from some component to the output) is split over everything that feeds the component:
each earlier head through its values, queries and keys, each MLP, and the embeddings, position by position. With secant
stand-ins the shares of the parts sum to the share of the prefix, so at any moment the parts that are not yet split,
together with the paths that have reached the embeddings, sum to the whole difference: nothing is lost, and what has
not been looked into is known. The part with the largest |share| is split first.

Source: `docs/theory/observables.md`, equation 10; theory page §4.5, §4.7.
"""

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from covector.axes import Float
from covector.errors import BadSite
from covector.linalg.svd import svd
from covector.model.address import Site
from covector.model.circuits import map_at
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Functional, HeadPull, Linearised
from covector.study.path import EDGES, Path, Step

# One per world; worlds differ in batch and length.
Functionals = Sequence[Float[np.ndarray, "_ _ d_model"]]


@dataclass(frozen=True, eq=False)
class World:
    """One batch of prompts of equal length: its linearised model, its functional at the end, and its slots' names.

    ``names[i][t]`` is the slot of position t of prompt i; positions of one name are taken together.
    """

    model: Linearised
    start: Functional
    names: Sequence[Sequence[str]]

    def mask(self, slot: str | None) -> Float[np.ndarray, "batch position"]:
        """1 where a position has this slot's name; everywhere for None."""
        shape = (len(self.names), len(self.names[0]))
        if slot is None:
            return np.ones(shape)
        return np.array([[float(name == slot) for name in row] for row in self.names])


@dataclass(frozen=True, eq=False)
class Part:
    """A path with its share of the difference, prompt by prompt, in the observable's units."""

    path: Path
    shares: Float[np.ndarray, " n"]

    @property
    def share(self) -> float:
        """Mean over prompts."""
        return float(self.shares.mean())

    @property
    def complete(self) -> bool:
        """Whether it begins at the embeddings, so that nothing of it is left to split."""
        return bool(self.path.steps) and self.path.steps[0].kind == "embed"


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found: the total, every part that was made, and which of them were not split."""

    total: Part
    parts: tuple[Part, ...]
    frontier: tuple[Part, ...]
    expanded: int

    @property
    def complete(self) -> tuple[Part, ...]:
        """Paths from the embeddings to the output."""
        return tuple(part for part in self.frontier if part.complete)

    @property
    def unsplit(self) -> tuple[Part, ...]:
        """Parts that were not looked into."""
        return tuple(part for part in self.frontier if not part.complete)

    @property
    def remainder(self) -> float:
        """Net share of the parts that were not looked into."""
        return sum((part.share for part in self.unsplit), 0.0)

    @property
    def closure(self) -> float:
        """What the frontier lacks of the total: rounding."""
        return self.total.share - sum((part.share for part in self.frontier), 0.0)


@dataclass(order=True)
class _Entry:
    rank: tuple[float, str]
    part: Part = field(compare=False)
    functionals: Functionals | None = field(compare=False, default=None)


def find_paths(worlds: Sequence[World], expansions: int, least: float = 0.0, *, dyads: bool = False) -> Found:
    """Split the largest parts `expansions` times, or until none of at least `least` of |total| is left to split.

    `dyads`: a head's edge is first split into the dyads that it reads along, and those into what feeds them.
    """
    total = share_of(worlds, Path(()))
    bar = least * abs(total.share)
    queue = [_Entry((-np.inf, ""), total, [w.start for w in worlds])]
    parts: list[Part] = []
    frontier: list[Part] = []
    done = 0
    while queue and done < expansions:
        entry = heapq.heappop(queue)
        path, done = entry.part.path, done + 1
        if dyads and _is_whole_edge(path):
            children = split_dyads(worlds, path)
        else:
            children = split(worlds, entry.functionals or [functional(w, path) for w in worlds], path)
        for child in children:
            parts.append(child)
            if child.complete or abs(child.share) < bar:
                frontier.append(child)
            else:
                heapq.heappush(queue, _Entry((-abs(child.share), str(child.path)), child))
    return Found(total, tuple(parts), (*frontier, *(e.part for e in queue)), done)


def share_of(worlds: Sequence[World], path: Path) -> Part:
    """The exact share of one path."""
    return Part(
        path, np.concatenate([np.sum(functional(w, path) * _read_change(w, path), axis=(1, 2)) for w in worlds])
    )


def _read_change(world: World, path: Path) -> Functional:
    """The change of the state that a path's functional is on."""
    if not path.steps:
        return world.model.change(_last_hook(world.model))
    if path.steps[0].kind == "embed":
        return world.model.change("resid_in")
    c = component(world.model, path.steps[0])
    return world.model.change(c.hook(f"{c.sub.name}_in"))


def _is_whole_edge(path: Path) -> bool:
    return bool(path.steps) and path.steps[0].kind in EDGES and path.steps[0].dyad is None


def split_dyads(worlds: Sequence[World], path: Path) -> Iterator[Part]:
    """The first step of a path, a head's edge, split into the dyads that it reads along behind its norm; no zeros."""
    step, rest = path.steps[0], Path(path.steps[1:])
    shares = []
    for world in worlds:
        model, c = world.model, component(world.model, step)
        F, state = functional(world, rest), component(model, rest.steps[0]).reads if rest.steps else model.end
        for s in range(state, c.writes, -1):
            F = model.before(F, s)
        G = model.out(model.before(F, c.writes), c)
        whole = normed_functional(model, G, step) * world.mask(step.slot)[..., None]
        reads = read_directions(model, step)
        change = model.change(c.hook("attn_normed"))
        shares.append(np.sum((whole @ reads.T) * (change @ reads.T), axis=1))
    for dyad, share in enumerate(np.concatenate(shares).T):
        if share.any():
            yield Part(rest.before(dataclasses.replace(step, dyad=dyad)), share)


def functional(world: World, path: Path) -> Functional:
    """The functional of a path on the state that its first component reads (for ``embed``, on state 0)."""
    F, state = world.start, world.model.end
    for step in reversed(path.steps):
        F, state = through(world, F, state, step)
    return F


def through(world: World, F: Functional, state: int, step: Step) -> tuple[Functional, int]:
    """A functional on a state as one on the state that an earlier component reads, through that component alone."""
    model = world.model
    target = 0 if step.kind == "embed" else component(model, step).writes
    for s in range(state, target, -1):
        F = model.before(F, s)
    mask = world.mask(step.slot)[..., None]
    if step.kind == "embed":
        return F * mask, 0
    c = component(model, step)
    G = model.out(model.before(F, target), c)
    return model.read(normed_functional(model, G, step) * mask, c), c.reads


def normed_functional(model: Linearised, G: Functional, step: Step) -> Functional:
    """A functional on a component's output as one on its normed input, through this step's edge (and dyad) alone.

    A head's edge reads inside the span of the read directions of its map, so its part through dyad i is its projection
    on direction i, and the parts of all dyads sum to it, rotary turns included.
    """
    c = component(model, step)
    if c.mlp:
        return model.through_mlp(G, c)
    pulled = model.heads(G, c).of(step.kind)[:, :, step.head]
    F = pulled @ model.head_weight(c, step.kind)[step.head or 0].T
    if step.dyad is None:
        return F
    reads = read_directions(model, step)
    if step.dyad >= len(reads):
        raise BadSite(f"{step}: this map has {len(reads)} dyads (from 0)")
    return (F @ reads[step.dyad])[..., None] * reads[step.dyad]


def read_directions(model: Linearised, step: Step) -> Float[np.ndarray, "r d_model"]:
    """What the dyads of a head's OV (v), or of its QK (query side q, key side k), read behind the norm; unit rows."""
    found = svd(map_at(model.weights, Site(step.layer, step.head, "ov" if step.kind == "v" else "qk")))
    return found.Vh if step.kind == "k" else found.U.T


def component(model: Linearised, step: Step) -> Component:
    """The sublayer that a step goes through."""
    return next(c for c in model.components if c.layer == step.layer and c.sub.name == step.sublayer)


def split(worlds: Sequence[World], functionals: Functionals, path: Path) -> Iterator[Part]:
    """Everything that feeds the first component of a path, one part per component, edge and slot; zeros left out."""
    shares: dict[Step, list[np.ndarray]] = {}
    sizes = [len(w.names) for w in worlds]
    for i, (world, F) in enumerate(zip(worlds, functionals, strict=True)):
        state = component(world.model, path.steps[0]).reads if path.steps else world.model.end
        for step, values in _feeding(world, F, state):
            shares.setdefault(step, [np.zeros(n) for n in sizes])[i] = values
    for step, values in shares.items():
        yield Part(path.before(step), np.concatenate(values))


def _feeding(world: World, F: Functional, state: int) -> Iterator[tuple[Step, np.ndarray]]:
    model = world.model
    for s in range(state, 0, -1):
        F = model.before(F, s)
        for c in model.components:
            if c.writes == s:
                yield from _through_component(world, model.out(F, c), c)
    yield from _by_slot(world, np.sum(F * model.change("resid_in"), axis=-1), Step("embed"))


def _through_component(world: World, G: Functional, c: Component) -> Iterator[tuple[Step, np.ndarray]]:
    model = world.model
    if c.mlp:
        values = np.sum(model.through_mlp(G, c) * model.change(c.hook("mlp_normed")), axis=-1)
        yield from _by_slot(world, values, Step("mlp", c.layer))
        return
    pulled = model.heads(G, c)
    for kind in ("v", "q", "k"):
        values = head_shares(model, pulled, c, kind)
        for head in range(values.shape[2]):
            yield from _by_slot(world, values[:, :, head], Step(kind, c.layer, head))


def head_shares(
    model: Linearised, pulled: HeadPull, c: Component, kind: str
) -> Float[np.ndarray, "batch position head"]:
    """What each head's values, queries or keys bring at each position where they are read."""
    attn = c.attn
    assert attn is not None
    change = model.change(c.hook(kind))
    change = change if kind == "q" else change[:, :, [attn.kv_of(h) for h in range(attn.n_heads)]]
    return np.sum(pulled.of(kind) * change, axis=-1)


def _by_slot(
    world: World, values: Float[np.ndarray, "batch position"], step: Step
) -> Iterator[tuple[Step, Float[np.ndarray, " batch"]]]:
    """Values of positions summed by the name of their slot; slots where nothing happens are left out."""
    for slot in dict.fromkeys(name for row in world.names for name in row):
        share = np.sum(values * world.mask(slot), axis=1)
        if share.any():
            yield Step(step.kind, step.layer, step.head, step.dyad, slot), share


def _last_hook(model: Linearised) -> str:
    return f"L{model.spec.n_layers - 1}.resid_post" if model.end else "resid_in"
