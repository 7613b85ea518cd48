"""Edges between heads of the circuit, dyad by dyad: composition of weights, and which dyads of the reader carry it.

With f the functional on what a reader's edge reads and x what the writer changes there, in the reader's read space, the
share of the edge is Σ fⱼxⱼ over its dyads, exactly. Whether one dyad carries it is asked of random bases of the
same space: they split the same sum.

Source: `docs/theory/heads.md`, equations 14–18; theory page §4.2, §4.7; Merullo et al. 2024 (arXiv 2406.09519).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.ioi_roles import Group, attentions, on_output, stages
from covector.axes import Float
from covector.linalg.chance.streams import generator
from covector.linalg.composition import Composition, composition, read_end, written_end
from covector.model.address import Site
from covector.model.opened import Model
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Functional, Linearised
from covector.propagation.search import World, head_shares, read_directions
from covector.study.path import Step

ROTATIONS = 1000


@dataclass(frozen=True)
class Kind:
    """A kind of edge: who writes, entered how and where, and who reads, through what, where; `stage` is the reader's.

    Stage counts roles from the output (0: name movers).
    """

    writer: str
    enters: tuple[str, str]
    reader: str
    way: str
    slot: str
    stage: int


KINDS = (
    Kind("S-inhibition", ("v", "S2"), "name mover", "q", "end", 0),
    Kind("duplicate token", ("q", "S2"), "S-inhibition", "v", "S2", 1),
    Kind("induction", ("q", "S2"), "S-inhibition", "v", "S2", 1),
    Kind("previous token", ("v", "S1"), "induction", "k", "S1+1", 2),
)


@dataclass(frozen=True, eq=False)
class Edge:
    """One edge: composition with chance, rank among all heads in front; share of the difference, dyad by dyad."""

    kind: Kind
    writer: str
    reader: str
    score: float
    level: float
    z: float
    p: float
    rank: int
    aligned: tuple[int, int, float, float]
    shares: Float[np.ndarray, " dyad"]
    p_top: float
    by_chance: float

    @property
    def share(self) -> float:
        """Of the mean difference: the writer's typed edge straight into the reader's."""
        return float(self.shares.sum())


def layer_of(head: str) -> int:
    """12 of L12H3."""
    return int(head[1:].split("H")[0])


def site_of(head: str, kind: str) -> Site:
    """The site of a head's map."""
    layer, number = head[1:].split("H")
    return Site(int(layer), int(number), kind)


def composed(model: Model, writers: Sequence[str], reader: str, way: str) -> Composition:
    """Composition of heads' OV with a reader's OV (v) or QK (q, k)."""
    norm = model.spec.blocks[layer_of(reader)].sublayer("attn")
    centred = bool(norm and norm.reads and norm.reads.kind == "layer")
    m = model.map(site_of(reader, "ov" if way == "v" else "qk"))
    read = read_end(m.T if way == "k" else m, centred=centred)
    ends = [written_end(model.map(site_of(w, "ov")), centred=centred) for w in writers]
    return composition(ends, [read], model.spec.d_model - centred)


def edge(model: Model, groups: Sequence[Group], kind: Kind, writer: str, reader: str, seed: int = 0) -> Edge:
    """An edge with its numbers; the writer must stand in a layer before the reader's."""
    heads = [f"L{i}H{h}" for i, b in enumerate(model.spec.blocks) if b.attn for h in range(b.attn.n_heads)]
    before = [h for h in heads if layer_of(h) < layer_of(reader)]
    found, i = composed(model, before, reader, kind.way), before.index(writer)
    parts = [_split(group.world, kind, writer, reader) for group in groups]
    n = sum(len(f) for f, _ in parts)
    C = sum((f.T @ x for f, x in parts), np.zeros((parts[0][0].shape[1],) * 2)) / n
    shares = np.diag(C).copy()
    top, null = float(np.abs(shares).max(initial=0.0)), _rotated(C, seed)
    best = _aligned(model, writer, reader, kind.way)
    return Edge(kind, writer, reader, float(np.sqrt(found.squared[i, 0])), float(found.level[i, 0]),
                float(found.z[i, 0]), float(found.p[i, 0]), 1 + int(np.sum(found.squared[:, 0] > found.squared[i, 0])),
                (*best, float(found.p_aligned[i, 0])), shares,
                float((1 + np.sum(null >= top * (1 - 1e-9))) / (1 + len(null))),
                float(np.quantile(null, 0.95)))  # fmt: skip


def _aligned(model: Model, writer: str, reader: str, way: str) -> tuple[int, int, float]:
    """The dyads of writer and reader that are aligned best, and their cosine."""
    m = model.map(site_of(reader, "ov" if way == "v" else "qk"))
    C = written_end(model.map(site_of(writer, "ov"))).rows @ read_end(m.T if way == "k" else m).rows.T
    i, j = np.unravel_index(int(np.argmax(np.abs(C))), C.shape)
    return int(i), int(j), float(abs(C[i, j]))


def _rotated(C: Float[np.ndarray, "r r"], seed: int) -> Float[np.ndarray, " draws"]:
    """Largest part of the same sum in random bases of the read space."""
    rng, found = generator(seed, "ioi rotations"), []
    for _ in range(ROTATIONS):
        Q = np.linalg.qr(rng.standard_normal(C.shape))[0]
        found.append(np.abs(np.sum((Q @ C) * Q, axis=1)).max(initial=0.0))
    return np.array(found)


def _split(
    world: World, kind: Kind, writer: str, reader: str
) -> tuple[Float[np.ndarray, "batch r"], Float[np.ndarray, "batch r"]]:
    """f and x of an edge, in the reader's read directions, prompt by prompt."""
    model, mask = world.model, world.mask(kind.slot)
    to, of = (_component(model, head) for head in (reader, writer))
    h = int(reader.split("H")[1])
    pulled = model.heads(on_output(model, stages(world)[kind.stage][1], to), to).of(kind.way)[:, :, h]
    F = np.einsum("btk,dk,bt->bd", pulled, model.head_weight(to, kind.way)[h], mask)
    rows = read_directions(model, Step(kind.way, to.layer, h))
    x = np.stack([_brought(world, row * mask[..., None], kind, to, of, writer) for row in rows], axis=1)
    return F @ rows.T, x


def _brought(
    world: World, on_normed: Functional, kind: Kind, to: Component, of: Component, writer: str
) -> Float[np.ndarray, " batch"]:
    """What the writer's edge changes of a functional on what the reader reads behind its norm, straight through."""
    model, (enters, slot) = world.model, kind.enters
    G = model.read(on_normed, to)
    for s in range(to.reads, of.writes, -1):
        G = model.before(G, s)
    pulled = model.heads(model.out(model.before(G, of.writes), of), of)
    shares = head_shares(model, pulled, of, enters)[:, :, int(writer.split("H")[1])]
    return np.sum(shares * world.mask(slot), axis=1)


def _component(model: Linearised, head: str) -> Component:
    return next(c for c in attentions(model) if c.layer == layer_of(head))
