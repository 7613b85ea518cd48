"""The circuit of `ioi` looked at in other ways: its edges, its paths, and what removing its heads and dyads does."""

from collections.abc import Sequence

import numpy as np

from covector.analyses.ioi import LEVEL, Circuit, circuit, clustered, ioi_table
from covector.analyses.ioi_ablation import removed
from covector.analyses.ioi_edges import KINDS, Edge, edge, layer_of
from covector.analyses.ioi_prompts import Task
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.interval import half_width
from covector.model.opened import Model
from covector.propagation.search import find_paths
from covector.render import Column, Table

SHOWS = ("roles", "edges", "paths", "ablation")
# Heads of a role that edges and ablations are shown of.
FOREMOST = 2
SHORT = {"name mover": "mover", "S-inhibition": "SI", "duplicate token": "duplicate", "induction": "induction",
         "previous token": "previous"}  # fmt: skip
# Sides of a role's head that can be removed.
SIDES = {"name mover": ("ov", "qk"), "negative name mover": ("ov", "qk"), "S-inhibition": ("ov",),
         "duplicate token": ("ov", "qk"), "induction": ("ov", "qk"), "previous token": ("ov",)}  # fmt: skip


def ioi_shown(
    model: Model, tasks: Sequence[Task], show: str = "roles", *, expansions: int = 60, draws: int = 19, seed: int = 0
) -> Table:
    """One of the tables: ``roles`` (`ioi`), ``edges``, ``paths``, ``ablation``. Raises BadRequest for another."""
    if show not in SHOWS:
        raise BadRequest(f"--show: expected {', '.join(SHOWS)}, got '{show}'")
    found = circuit(model, tasks, seed=seed)
    if show == "edges":
        return edges(model, found, seed=seed)
    if show == "paths":
        return task_paths(model, found, expansions)
    return ablation(model, found, draws=draws, seed=seed) if show == "ablation" else ioi_table(model, found, seed=seed)


def foremost(found: Circuit, role: str) -> list[str]:
    """The heads of a role that are looked at: those found, else the one that comes nearest."""
    one = next(e for e in found.evidence if e.role == role)
    return found.found(role)[:FOREMOST] or [found.shares.heads[int(one.order[0])]]


def edges(model: Model, found: Circuit, *, seed: int = 0) -> Table:
    """One row per edge between heads of the circuit: composition of weights beside the share, dyad by dyad.

    ``score``, ``z``, ``p``: how much of what the writer writes the reader reads there, against a random rotation; ``q``
    over the edges shown; ``rank`` among all heads before the reader. ``share``: of the difference, straight from the
    writer's typed edge into the reader's, on to the output by the typed paths. ``top``: the reader's dyad with most of
    it, ``top_share``; ``p_top``: a random basis of the same read space has a part as large. ``cos``: the best pair of
    dyads, writer > reader, ``p_cos`` over all pairs. Raises BadRequest where no two heads stand one behind the other.
    """
    made = [
        edge(model, found.groups, kind, writer, reader, seed)
        for kind in KINDS
        for reader in foremost(found, kind.reader)
        for writer in foremost(found, kind.writer)
        if layer_of(writer) < layer_of(reader)
    ]
    if not made:
        raise BadRequest(f"{model.name}: the foremost heads of these roles do not stand one behind the other")
    return _edge_table(model, found, made, seed)


def _edge_table(model: Model, found: Circuit, made: Sequence[Edge], seed: int) -> Table:
    from_ = [e.writer in found.found(e.kind.writer) and e.reader in found.found(e.kind.reader) for e in made]
    p = np.array([e.p for e in made])
    total = float(found.total.mean())
    tops = [int(np.argmax(np.abs(e.shares))) for e in made]
    moved = [e.kind.stage < 2 for e in made]  # nothing changes at S1: previous-token heads have no share
    top_share = np.array([e.shares[t] if m else np.nan for e, t, m in zip(made, tops, moved, strict=True)])
    columns = [
        Column("edge", [f"{e.writer} > {e.reader}.{e.kind.way}" for e in made], about="writer, reader and its way in"),
        Column("roles", [f"{SHORT[e.kind.writer]} > {SHORT[e.kind.reader]}" for e in made], about="SI: S-inhibition"),
        Column("found", ["yes" if f else "" for f in from_], about="both heads were found in these roles"),
        Column("score", np.array([e.score for e in made]), "", 3, "composition, 0 to 1", chance="by_chance"),
        Column("by_chance", np.array([e.level for e in made]), "", 3, "a random rotation stays below with 95 %"),
        Column("z", np.array([e.z for e in made]), "sd", 1, "score² in standard deviations of its null"),
        Column("p", p, about="random rotation of reader against writer"),
        Column("rank", np.array([e.rank for e in made]), about="among all heads before the reader"),
        Column("share", np.array([e.share if m else np.nan for e, m in zip(made, moved, strict=True)]), "logits", 3,
               "of the difference, straight"),
        Column("of_total", np.array([e.share if m else np.nan for e, m in zip(made, moved, strict=True)])
               / (total or np.nan), "", 3, "share over the difference"),
        Column("top", np.array(tops), about="the reader's dyad with most of it"),
        Column("top_share", top_share, "logits", 3, "its part", chance="top_chance"),
        Column("top_chance", np.array([e.by_chance for e in made]), "logits", 3, "largest part in random bases, 95 %"),
        Column("p_top", np.array([e.p_top if m else np.nan for e, m in zip(made, moved, strict=True)]),
               about="random bases of the read space"),
        Column("dyads", [f"{e.aligned[0]} > {e.aligned[1]}" for e in made], about="pair of dyads aligned best"),
        Column("cos", np.array([e.aligned[2] for e in made]), "cos", 3, "their cosine", chance=_level(model, made)),
        Column("p_cos", np.array([e.aligned[3] for e in made]), about="union over all pairs of dyads"),
    ]  # fmt: skip
    beyond, single = int(np.sum(p < LEVEL)), int(np.sum((np.array([e.p_top for e in made]) < LEVEL) & np.array(moved)))
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "ioi_edges", "kind": "accounting", "policy": "secant", "seed": seed,
                           "total": total, "done": found.done, "null": "random rotations"},
        title=f"{model.name} · IO − S · {len(made)} edges between heads of the circuit · clean − corrupt {total:+.3f}",
        says=f"{beyond} of {len(made)} edges compose beyond chance; in {single} of {int(np.sum(moved))} one dyad of "
        "the reader carries more than any of a random basis."
        + ("" if found.done else " The task is not done here: these heads are only the nearest to their roles."),
        not_says="Weights that compose need not be used, and a share through one edge leaves out what goes through "
        "MLPs or other heads between the two.",
        next=f"covector observe ioi {model.words} --show ablation",
        key=("edge", "roles"),
    )  # fmt: skip


def _level(model: Model, made: Sequence[Edge]) -> float:
    return float(chance.threshold(model.spec.d_model, max(1, max(len(e.shares) for e in made)) ** 2))


def task_paths(model: Model, found: Circuit, expansions: int = 60, least: float = 0.01) -> Table:
    """Typed paths by |share| of the difference in IO − S, best first; see `covector observe paths`."""
    every = find_paths([g.world for g in found.groups], expansions, least)
    of = np.array([t.names for g in found.groups for t in g.tasks])
    total = every.total.share
    parts = sorted(every.parts, key=lambda part: (-abs(part.share), str(part.path)))
    parts = [part for part in parts if abs(part.share) >= least * abs(total)]
    each = [clustered(part.shares, of) for part in parts]
    error = np.array([float(half_width(e)) for e in each])
    share = np.array([part.share for part in parts])
    columns = [
        Column("path", [str(part.path) for part in parts], about="earliest component first; @ where it reads"),
        Column("share", share, "logits", 3, "of the difference, through this path and all that feed it"),
        Column("of_total", share / (total or np.nan), "", 3, "share over the difference"),
        Column("low", share - error, "logits", 3, "95 % interval over pairs of names"),
        Column("high", share + error, "logits", 3, "95 % interval over pairs of names"),
        Column("complete", ["yes" if part.complete else "" for part in parts], about="begins at the embeddings"),
    ]
    net = total - every.remainder
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "ioi_paths", "kind": "accounting", "policy": "secant", "total": total,
                           "expanded": every.expanded, "remainder": every.remainder, "done": found.done},
        title=f"{model.name} · IO − S · clean − corrupt {total:+.3f} = complete paths {net:+.3f} + not looked into "
        f"{every.remainder:+.3f}",
        says=f"{len(every.complete)} complete paths carry {net / total:.0%} of the difference."
        if total else "There is no difference to account for.",
        not_says="Shares account for these prompts; they are not what patching one place does.",
        next=f"covector observe ioi {model.words} --show edges",
        key=("path",),
    )  # fmt: skip


def ablation(model: Model, found: Circuit, *, draws: int = 19, seed: int = 0) -> Table:
    """One row per head and side: the effect on IO − S of removing it, one dyad of it, and random directions.

    ``head`` and ``dyad`` are clean − changed; ``random`` the largest of `draws` random directions of the same space.
    ``p`` is that of the dyad among them. Measured by running the changed weights.
    """
    chosen = [(role, head, side) for role in SIDES for head in foremost(found, role) for side in SIDES[role]]
    of = np.array([t.names for g in found.groups for t in g.tasks])
    done = {key: removed(model, found.groups, *key, draws=draws, seed=seed) for key in {c[1:] for c in chosen}}
    made = [done[c[1:]] for c in chosen]
    heads, dyads = ([clustered(getattr(m, what), of) for m in made] for what in ("of_head", "of_dyad"))
    error = np.array([float(half_width(d)) for d in dyads])
    mean = np.array([d.mean() for d in dyads])
    level = np.array([np.max(np.abs(m.random), initial=0.0) for m in made])
    p = np.array([(1 + np.sum(np.abs(m.random) >= abs(d))) / (1 + len(m.random))
                  for m, d in zip(made, mean, strict=True)])  # fmt: skip
    columns = [
        Column("role", [c[0] for c in chosen]),
        Column("place", [f"{c[1]}.{c[2]}" for c in chosen], about="head and side"),
        Column("found", ["yes" if c[1] in found.found(c[0]) else "" for c in chosen]),
        Column("head", np.array([h.mean() for h in heads]), "logits", 3, "IO − S lost without the head's side"),
        Column("dyad", np.array([m.dyad for m in made]), about="its dyad of the largest share"),
        Column("effect", mean, "logits", 3, "IO − S lost without that dyad", chance="random"),
        Column("random", level, "logits", 3, f"largest of {draws} random directions of the same space"),
        Column("low", mean - error, "logits", 3, "95 % interval over pairs of names"),
        Column("high", mean + error, "logits", 3, "95 % interval over pairs of names"),
        Column("p", p, about="of the dyad among random directions"),
        Column("share", np.array([m.share for m in made]), "logits", 3, "of the difference, through the dyad"),
        Column("of_side", np.array([m.share / m.whole if m.whole else np.nan for m in made]), "", 3,
               "over that of the side"),
    ]  # fmt: skip
    best = int(np.argmax(np.abs(columns[3].numbers)))
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "ioi_ablation", "kind": "measurement", "draws": draws, "seed": seed,
                           "done": found.done, "clean": float(found.clean.mean())},
        title=f"{model.name} · IO − S {found.clean.mean():+.3f} in clean prompts · heads and dyads removed",
        says=f"Without {columns[1].values[best]} {columns[3].numbers[best]:+.3f} are lost; "
        f"{int(np.sum(p <= LEVEL))} of {len(made)} dyads do more than random directions of their space.",
        not_says="Other heads may take over what is removed, so a small effect does not say that a head is not used.",
        next=f"covector observe ioi {model.words} --show paths",
        key=("role", "place"),
    )  # fmt: skip
