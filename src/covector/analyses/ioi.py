"""Which heads name the indirect object: name movers, S-inhibition, duplicate-token and induction heads, with nulls.

Source: Wang et al. 2022 (arXiv 2211.00593); theory page §4.1, §4.2, §4.7; `docs/ioi.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.ioi_edges import composed, layer_of
from covector.analyses.ioi_prompts import Task
from covector.analyses.ioi_roles import EDGES, LOOKS, Group, Shares, groups_of, looks, typed_shares
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.linalg.interval import half_width
from covector.model.opened import Model
from covector.render import Column, Table

LEVEL = 0.05
DRAWS = 2000
# Role on the screen: the class of paths that gives its share ("" none), and the sign of that share.
ROLES = {
    "name mover": ("name mover", 1.0),
    "negative name mover": ("name mover", -1.0),
    "S-inhibition": ("S-inhibition", 1.0),
    "duplicate token": ("S2 reader", 1.0),
    "induction": ("S2 reader", 1.0),
    "previous token": ("", 1.0),
}
FEEDING = "previous token"
SHOWN = 3


@dataclass(frozen=True, eq=False)
class Evidence:
    """One role's numbers, head by head: share of the difference with its p, attention at its place with its p."""

    role: str
    share: Float[np.ndarray, "cluster head"]
    p: Float[np.ndarray, " head"]
    looks: Float[np.ndarray, " head"]
    chance: float
    p_looks: Float[np.ndarray, " head"]

    @property
    def found(self) -> np.ndarray:
        """Which heads have both beyond chance."""
        return (self.p < LEVEL) & (self.p_looks < LEVEL)

    @property
    def order(self) -> np.ndarray:
        """Heads, what is found first, then by share in the role's direction (by attention where there is none)."""
        sign = ROLES[self.role][1]
        by = self.looks if not self.share.size else sign * self.share.mean(axis=0)
        return np.lexsort((-by, ~self.found))


@dataclass(frozen=True, eq=False)
class Circuit:
    """What was found: the groups that ran, the shares, the evidence of every role, and whether the task is done."""

    groups: tuple[Group, ...]
    shares: Shares
    evidence: tuple[Evidence, ...]
    clean: Float[np.ndarray, " cluster"]
    total: Float[np.ndarray, " cluster"]
    accuracy: float
    p: float

    @property
    def done(self) -> bool:
        """Whether the model prefers the indirect object beyond chance."""
        return self.p < LEVEL and float(self.clean.mean()) > 0 and self.accuracy > 0.5

    def found(self, role: str) -> list[str]:
        """Heads of a role that are beyond chance, foremost first; none where the task is not done."""
        one = next(e for e in self.evidence if e.role == role)
        return [self.shares.heads[i] for i in one.order if one.found[i]] if self.done else []


def circuit(model: Model, tasks: Sequence[Task], *, seed: int = 0) -> Circuit:
    """Run the tasks and weigh the evidence for every role. Statistics count pairs of names, not prompts.

    Share: one-sided sign flips over pairs of names, the largest head of each flip (max-T). Attention: the place
    replaced by one drawn among those that the query sees, for each prompt, the largest head of each draw. Raises
    BadRequest for no tasks, or a model without attention or tokens.
    """
    if not tasks or model.spec.outputs[0].name != "token" or not any(b.attn for b in model.spec.blocks):
        raise BadRequest(f"{model.name}: expected prompts, and a model with attention heads that says tokens")
    groups = tuple(groups_of(model, tasks))
    of = np.array([t.names for g in groups for t in g.tasks])
    shares = typed_shares(groups)
    measured = np.concatenate([g.measured for g in groups])
    clean, total = clustered(measured[:, 0], of), clustered(measured[:, 0] - measured[:, 1], of)
    evidence = [_evidence(role, groups, shares, of, seed) for role in ROLES if role != FEEDING]
    evidence.append(_feeding(model, groups, shares, evidence[-1], seed))
    p = float(flips(clean[:, None], seed)[0])
    return Circuit(groups, shares, tuple(evidence), clean, total, float(np.mean(measured[:, 0] > 0)), p)


def _evidence(role: str, groups: Sequence[Group], shares: Shares, of: np.ndarray, seed: int) -> Evidence:
    share_of, sign = ROLES[role]
    share = clustered(shares.by_role[share_of], of)
    return Evidence(role, share, flips(sign * share, seed), *_looking(role, groups, seed))


def _feeding(model: Model, groups: Sequence[Group], shares: Shares, after: Evidence, seed: int) -> Evidence:
    """Previous-token heads: nothing of the difference passes through them, so they are told by what they feed.

    p: K-composition with the foremost induction head beyond a random rotation, times the heads in front of it.
    """
    p = np.ones(len(shares.heads))
    reader = shares.heads[int(after.order[0])]
    if after.found.any():
        before = [h for h in shares.heads if layer_of(h) < layer_of(reader)]
        found = composed(model, before, reader, "k") if before else None
        for i, head in enumerate(before):
            assert found is not None
            p[shares.heads.index(head)] = min(1.0, float(found.p[i, 0]) * len(before))
    return Evidence(FEEDING, np.zeros((0, len(p))), p, *_looking(FEEDING, groups, seed))


def _looking(role: str, groups: Sequence[Group], seed: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Attention at the role's place, what the best head has at places drawn (95 %), and p."""
    own, rows = looks(groups, role)
    null = _elsewhere(rows, seed, role)
    p = (1 + np.sum(null[:, None] >= own.mean(axis=0), axis=0)) / (1 + len(null))
    return own.mean(axis=0), float(np.quantile(null, 1 - LEVEL)), p


def clustered(values: Float[np.ndarray, "n *more"], of: np.ndarray) -> Float[np.ndarray, "cluster *more"]:
    """Means of the prompts of each pair of names."""
    return np.stack([values[of == i].mean(axis=0) for i in np.unique(of)])


def flips(values: Float[np.ndarray, "cluster head"], seed: int) -> Float[np.ndarray, " head"]:
    """One-sided p of each head's mean under random signs of the clusters, the largest t of all heads in each draw.

    All 2ⁿ signs where there are at most 4096; then p is never below 2⁻ⁿ.
    """
    n = len(values)
    if 2**n <= 4096:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.concatenate([np.ones((1, n)), generator(seed, "ioi signs").choice([-1.0, 1.0], (DRAWS, n))])
    size = np.sqrt(np.sum(values**2, axis=0))
    # Signs leave Σx² alone, so the order of t is that of the sum over its root.
    t = np.divide(signs @ values, size, out=np.zeros((len(signs), values.shape[1])), where=size > 0)
    worst, own = t.max(axis=1), t[0]
    return np.mean(worst[:, None] >= own * (1 - 1e-12) - 1e-12, axis=0)


def _elsewhere(rows: Sequence[Float[np.ndarray, "_ _ _"]], seed: int, role: str) -> np.ndarray:
    """Largest mean attention of any head where each prompt's place is drawn among those that its query sees."""
    rng, n = generator(seed, f"ioi places {role}"), sum(map(len, rows))
    total = 0.0
    for A in rows:
        at = rng.integers(A.shape[2], size=(DRAWS, len(A)))
        total = total + np.stack([A[np.arange(len(A)), :, d].sum(axis=0) for d in at])
    return np.max(total / n, axis=1)


def ioi(model: Model, tasks: Sequence[Task], *, seed: int = 0) -> Table:
    """One row per role and head, the foremost heads of every role: share of clean − corrupt in IO − S, and attention.

    ``share`` is that of the role's class of typed paths through this head (`ioi_roles`), ``of_total`` over the measured
    difference; ``looks`` the attention at the role's place in the clean prompts. A head is *found* where the task is
    done and both are beyond chance at 5 %, the best of all heads in each null.
    Accounting: secant stand-ins saw both prompts. Raises BadRequest.
    """
    return ioi_table(model, circuit(model, tasks, seed=seed), seed=seed)


def ioi_table(model: Model, found: Circuit, *, seed: int = 0) -> Table:
    """The table of a circuit."""
    rows = [row for e in found.evidence for row in _rows(e, found)]
    total = float(found.total.mean())
    columns = [
        Column("role", [r[0] for r in rows], about="what such a head does"),
        Column("head", [r[1] for r in rows], about="layer and query head"),
        Column("found", [r[2] for r in rows], about="yes: task done, share and attention beyond chance"),
        Column("share", np.array([r[3] for r in rows]), "logits", 3, "of clean − corrupt, through its typed paths"),
        Column("of_total", np.array([r[3] for r in rows]) / total if total else np.full(len(rows), np.nan), "", 3,
               "share over the difference"),
        Column("low", np.array([r[4] for r in rows]), "logits", 3, "95 % interval over pairs of names"),
        Column("high", np.array([r[5] for r in rows]), "logits", 3, "95 % interval over pairs of names"),
        Column("p", np.array([r[6] for r in rows]), 
               about="sign flips over pairs of names, best head in each (previous token: K-composition)"),
        Column("looks", np.array([r[7] for r in rows]), "", 3, "attention at the role's place", chance="by_chance"),
        Column("by_chance", np.array([r[8] for r in rows]), "", 3, "best head at places drawn at random, 95 %"),
        Column("p_looks", np.array([r[9] for r in rows]), about="the same null"),
    ]  # fmt: skip
    motif = {role: float(found.shares.by_role[role].mean(axis=0).sum()) for role in EDGES}
    n, prompts = len(found.total), sum(len(g.tasks) for g in found.groups)
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "ioi", "observable": "IO − S of each prompt", "policy": "secant",
                           "kind": "accounting", "pairs_of_names": n, "prompts": prompts, "seed": seed, "total": total,
                           "clean": float(found.clean.mean()), "accuracy": found.accuracy, "p": found.p,
                           "typed_paths": motif, "looks": {k: list(v) for k, v in LOOKS.items()},
                           "texts": [list(t.pair.texts) for g in found.groups for t in g.tasks][:12],
                           "null": "sign flips over pairs of names, places drawn, max over heads"},
        title=f"{model.name} · IO − S · {n} pairs of names, {prompts} prompts · right in {found.accuracy:.0%} · "
        f"clean {found.clean.mean():+.3f} (p {found.p:.2g}) · clean − corrupt {total:+.3f}",
        says=_says(found, motif, total),
        not_says="Shares account for these prompts and are not what removing a head does (--show ablation). A head "
        "that looks elsewhere, or works together with another, is in no role here.",
        next=f"covector observe ioi {model.words} --show edges",
        key=("role", "head"),
    )  # fmt: skip


def _rows(e: Evidence, found: Circuit) -> list[tuple]:
    rows = []
    for i in e.order[: max(SHOWN, int(e.found.sum()) if found.done else 0)]:
        one = e.share[:, i] if len(e.share) else np.array([np.nan])
        error = float(half_width(one))
        told = "yes" if found.done and e.found[i] else ""
        rows.append((e.role, found.shares.heads[i], told, one.mean(), one.mean() - error,
                     one.mean() + error, e.p[i], e.looks[i], e.chance,
                     e.p_looks[i]))  # fmt: skip
    return rows


def _says(found: Circuit, motif: dict[str, float], total: float) -> str:
    if not found.done:
        return (
            f"Does not hold here: the indirect object is preferred in {found.accuracy:.0%} of prompts, IO − S is "
            f"{found.clean.mean():+.3f} (p {found.p:.2g}), so no circuit is claimed."
        )
    told = [f"{role}s {', '.join(found.found(role))}" for role in ROLES if found.found(role)]
    missing = [role for role in ROLES if not found.found(role)]
    chain = ", ".join(f"{role} {value / total:.0%}" for role, value in motif.items()) if total else "no difference"
    return (
        f"Found: {'; '.join(told) or 'no head of any role'}"
        f"{'; none beyond chance: ' + ', '.join(missing) if missing else ''}. "
        f"Typed paths carry of the difference: {chain}."
    )
