"""Heads by what they do on the way from the second naming to the answer: exact shares of typed paths.

A role is a class of paths typed by their heads, counted from the output; MLPs may stand between heads:

    name mover     …                                  > H.q@end > out
    S-inhibition   …                     > H.v@S2 > (name movers).q@end > out
    S2 reader      … H.q@S2 > (S-inhibition).v@S2 > (name movers).q@end > out

Each class is one backward pass that keeps only these edges, so shares are sums over all paths of the class and all
other heads of the role, exact. S2 readers are duplicate-token or induction heads by where they look.

Source: `docs/theory/observables.md`, equations 7–10; Wang et al. 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.ioi_prompts import Task
from covector.axes import Float
from covector.model.opened import Model
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Functional, Linearised, Policies
from covector.propagation.search import World, head_shares
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import batches

# Role: the edge through which its heads are entered, and where.
EDGES = {"name mover": ("q", "end"), "S-inhibition": ("v", "S2"), "S2 reader": ("q", "S2")}
# Role: (query, key) of the place where such a head looks.
LOOKS = {
    "name mover": ("end", "IO"),
    "negative name mover": ("end", "IO"),
    "S-inhibition": ("end", "S2"),
    "duplicate token": ("S2", "S1"),
    "induction": ("S2", "S1+1"),
    "previous token": ("S1+1", "S1"),
}


@dataclass(frozen=True, eq=False)
class Group:
    """Tasks of one length that ran together: their linearised model, and IO − S at the end of both prompts."""

    world: World
    tasks: tuple[Task, ...]
    measured: Float[np.ndarray, "batch 2"]


@dataclass(frozen=True, eq=False)
class Shares:
    """``direct`` and per role of `EDGES`: each head's share of the difference, task by task."""

    heads: tuple[str, ...]
    by_role: Mapping[str, Float[np.ndarray, "n head"]]


def groups_of(model: Model, tasks: Sequence[Task]) -> list[Group]:
    """Tasks run on the reference decoder, by length, secant stand-ins between clean and corrupt; float64."""
    decoder, by_pair, found = Decoder(model.weights, device=model.device), {id(t.pair): t for t in tasks}, []
    output = model.spec.outputs[0]
    for batch in batches([t.pair for t in tasks]):
        some = tuple(by_pair[id(pair)] for pair in batch.pairs)
        runs = (captured(decoder, batch.clean), captured(decoder, batch.corrupt))
        rows, at = np.arange(len(some)), batch.at("end")
        weights = np.zeros((len(some), output.n))
        weights[rows, [t.io for t in some]] += 1
        weights[rows, [t.s for t in some]] -= 1
        measured = np.stack([np.sum(r[f"out.{output.name}"][rows, at] * weights, axis=1) for r in runs], axis=1)
        linear = Linearised(model.weights, runs, Policies.all("secant"))
        names = [[pair.slot_of(t) for t in range(len(pair))] for pair in batch.pairs]
        found.append(Group(World(linear, linear.start(weights, output.name, at), names), some, measured))
    return found


def typed_shares(groups: Sequence[Group]) -> Shares:
    """Each head's share in every role of `EDGES`, and ``direct`` (all that it writes to the output)."""
    each = [[shares for shares, _ in stages(group.world)] for group in groups]
    heads = tuple(each[0][0])
    roles = ("direct", *EDGES)
    values = {r: np.concatenate([np.stack([one[i][h] for h in heads], axis=1) for one in each])
              for i, r in enumerate(roles)}  # fmt: skip
    return Shares(heads, values)


def stages(world: World) -> list[tuple[dict[str, Float[np.ndarray, " batch"]], list[Functional]]]:
    """Shares by head, and the functionals on all states behind them: the output first, then one role after the other.

    So the functionals of entry i are those that heads of role i write into (0: name movers, into the output).
    """
    model = world.model
    every = carried(model, {model.end: world.start})
    found = [({h: v for c in attentions(model) for h, v in _direct(model, every, c)}, every)]
    for kind, slot in EDGES.values():
        found.append(_entered(world, found[-1][1], kind, slot))
    return found


def attentions(model: Linearised) -> list[Component]:
    """Every attention, in order."""
    return [c for c in model.components if c.attn]


def carried(model: Linearised, tops: Mapping[int, Functional]) -> list[Functional]:
    """Functionals on states as functionals on all states, through the stream and MLPs, past no head."""
    shape = next(iter(tops.values()))
    found = [np.array(tops[s]) if s in tops else np.zeros_like(shape) for s in range(model.end + 1)]
    for s in range(model.end, 0, -1):
        here = model.before(found[s], s)
        found[s - 1] = found[s - 1] + here
        for c in model.components:
            if c.writes == s and c.mlp:
                found[c.reads] = found[c.reads] + model.pull(here, c)
    return found


def on_output(model: Linearised, every: Sequence[Functional], c: Component) -> Functional:
    """A functional on what a component adds, all that is behind it together, as one on its own output."""
    return model.out(model.before(every[c.writes], c.writes), c)


def _direct(model: Linearised, every: Sequence[Functional], c: Component) -> list[tuple[str, np.ndarray]]:
    values = np.sum(model.on_z(on_output(model, every, c), c) * model.change(c.hook("z")), axis=(1, 3))
    return [(f"L{c.layer}H{h}", values[:, h]) for h in range(values.shape[1])]


def _entered(
    world: World, every: Sequence[Functional], kind: str, slot: str
) -> tuple[dict[str, np.ndarray], list[Functional]]:
    """Shares of every head's edge at a slot, and the functionals on all states behind these edges."""
    model, mask = world.model, world.mask(slot)
    shares: dict[str, np.ndarray] = {}
    tops: dict[int, np.ndarray] = {}
    for c in attentions(model):
        pulled = model.heads(on_output(model, every, c), c)
        values = np.sum(head_shares(model, pulled, c, kind) * mask[..., None], axis=1)
        shares |= {f"L{c.layer}H{h}": values[:, h] for h in range(values.shape[1])}
        F = model.read(model.through_heads(pulled.of(kind) * mask[..., None, None], c, kind), c)
        tops[c.reads] = tops.get(c.reads, np.zeros_like(F)) + F
    return shares, carried(model, tops)


def attention(groups: Sequence[Group], query: str) -> list[Float[np.ndarray, "_ head _"]]:
    """Where every head looks from a slot of the clean prompts, group by group."""
    found = []
    for group in groups:
        at = np.array([t.pair.position(query) for t in group.tasks])
        run, rows = group.world.model.runs[0], np.arange(len(at))
        patterns = [run[c.hook("pattern")][rows, :, at] for c in attentions(group.world.model)]
        found.append(np.concatenate(patterns, axis=1))
    return found


def looks(groups: Sequence[Group], role: str) -> tuple[Float[np.ndarray, "n head"], list[np.ndarray]]:
    """Attention of every head at the role's place, task by task, and the whole rows (for the null)."""
    query, key = LOOKS[role]
    rows = attention(groups, query)
    own = []
    for group, A in zip(groups, rows, strict=True):
        at = np.array([t.pair.position(key) for t in group.tasks])
        own.append(A[np.arange(len(at)), :, at])
    return np.concatenate(own), [
        A[:, :, : max(1, int(max(t.pair.position(query) for t in g.tasks)) + 1)]
        for g, A in zip(groups, rows, strict=True)
    ]
