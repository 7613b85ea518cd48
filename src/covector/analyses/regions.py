"""An MLP as a few linear features: how many, by its gates, explain what it writes for a task on text not used for them.

The MLP's local feature at a point is its derivative for the task's functional; inside one ReLU region it is constant
and exact. Points are grouped by their gates, each weighted by what its neuron writes for the task, and a group's
feature is the mean of its members'. With pairs of prompts instead: the pieces and the decision boundary between them.

Source: theory page §1.4, §4.3; `docs/theory/observables.md`, equations 4, 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.propagate import DATA_FREE
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.boundary import Clusters, between, clusters, pieces
from covector.linalg.chance.streams import generator
from covector.model.activations import activation, derivative
from covector.model.opened import Model
from covector.model.spec import MLP
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Linearised
from covector.render import Column, Curve, Scatter, Table
from covector.run.along import along
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair, batches
from covector.study.observable import Observable
from covector.study.path import parse_path

COUNTS = (1, 2, 4, 8, 16, 32, 64)
# Local features that are compared with each other.
COMPARED = 300


@dataclass(frozen=True, eq=False)
class TaskMLP:
    """One MLP read by a task's data-free direct functional (w, norms without their scale): a function of its input z.

    z is what stands behind the MLP's norm (hook ``mlp_normed``); float64.
    """

    linear: Linearised
    c: Component
    on_out: Float[np.ndarray, " d_model"]

    @property
    def mlp(self) -> MLP:
        """Its anatomy."""
        assert self.c.mlp is not None
        return self.c.mlp

    def pre(self, z: Float[np.ndarray, "n d_model"], gate: bool = False) -> Float[np.ndarray, "n d_mlp"]:
        """Pre-activations, or those of the gate."""
        b = self.linear.part(self.c.hook("b_gate" if gate else "b_in"))
        a = z @ self.linear.need(self.c.hook("W_gate" if gate else "W_in"))
        return a if b is None or (self.mlp.bias_after_gate and not gate) else a + b

    def value(self, z: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, " n"]:
        """What it writes for the task, b_out included."""
        act = activation(self.mlp.activation)
        post = act(self.pre(z, gate=True)) * self.pre(z) if self.mlp.gated else act(self.pre(z))
        b_in, b_out = self.linear.part(self.c.hook("b_in")), self.linear.part(self.c.hook("b_out"))
        post = post + b_in if self.mlp.bias_after_gate and b_in is not None else post
        return post @ self.writes + (0.0 if b_out is None else float(b_out @ self.on_out))

    @property
    def writes(self) -> Float[np.ndarray, " d_mlp"]:
        """What each neuron writes for the task per unit."""
        return self.linear.need(self.c.hook("W_out")) @ self.on_out

    def gates(self, z: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n m"]:
        """The local slopes of all neurons, each times what it writes; a gated MLP's two factors one after the other."""
        act, slope = activation(self.mlp.activation), derivative(self.mlp.activation)
        if not self.mlp.gated:
            return slope(self.pre(z)) * self.writes
        g, p = self.pre(z, gate=True), self.pre(z)
        return np.concatenate([act(g) * self.writes, slope(g) * p * self.writes], axis=1)

    def features(self, gates: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n d_model"]:
        """Local features (derivatives by z) from gates; linear, so that a mean of gates gives the mean feature."""
        names = ("W_in", "W_gate") if self.mlp.gated else ("W_in",)
        return gates @ np.concatenate([self.linear.need(self.c.hook(n)) for n in names], axis=1).T


def task_mlp(model: Model, observable: Observable, place: str) -> TaskMLP:
    """The MLP called ``L2.mlp``, read by the observable. Raises BadRequest for a place that is no MLP, BadSite."""
    path = parse_path(place, model.spec)
    if len(path.steps) != 1 or path.steps[0].kind != "mlp":
        raise BadRequest(f"expected one MLP, such as L2.mlp, got '{place}'")
    linear = Linearised(model.weights, (), DATA_FREE)
    G = linear.unread(observable.vector[None], observable.output)[1]
    c = next(c for c in linear.components if c.mlp and c.layer == path.steps[0].layer)
    for s in range(linear.end, c.writes - 1, -1):
        G = linear.before(G, s)
    return TaskMLP(linear, c, linear.out(G, c)[0, 0])


@dataclass(frozen=True, eq=False)
class LocalModel:
    """Groups of points by their gates, each with one feature and one constant."""

    groups: Clusters
    features: Float[np.ndarray, "k d_model"]
    constants: Float[np.ndarray, " k"]
    means: Float[np.ndarray, " k"]

    def of(self, z: Float[np.ndarray, "n d_model"], group: np.ndarray) -> Float[np.ndarray, " n"]:
        """Its value at points of given groups."""
        return np.einsum("nd,nd->n", z, self.features[group]) + self.constants[group]


def local_model(mlp: TaskMLP, z: Float[np.ndarray, "n d_model"], k: int, rng: np.random.Generator) -> LocalModel:
    """k groups of training points by gates; a feature is the mean of its group's, a constant the group's mean rest."""
    gates, y = mlp.gates(z), mlp.value(z)
    groups = clusters(gates, k, rng)
    of = groups.of(gates)
    means = np.array([y[of == i].mean() if np.any(of == i) else y.mean() for i in range(k)])
    held = np.stack([gates[of == i].mean(axis=0) if np.any(of == i) else gates.mean(axis=0) for i in range(k)])
    features = mlp.features(held)
    rest = y - np.einsum("nd,nd->n", z, features[of])
    constants = np.array([rest[of == i].mean() if np.any(of == i) else rest.mean() for i in range(k)])
    return LocalModel(groups, features, constants, means)


def explained(y: Float[np.ndarray, " n"], guess: Float[np.ndarray, " n"]) -> float:
    """1 − residual over total sum of squares; below 0 where the guess is worse than the mean."""
    return float(1 - np.sum((y - guess) ** 2) / max(float(np.sum((y - y.mean()) ** 2)), 1e-300))


def regions(
    model: Model,
    observable: Observable | str,
    place: str,
    text: str,
    *,
    counts: Sequence[int] = COUNTS,
    most: int = 2048,
    seed: int = 0,
) -> Table:
    """One row per number of features: the share of variance of n·MLP that they explain on the later half of a text.

    ``held_out``: features from the first half, a point's feature chosen by its gates; ``train`` the same on the first
    half; ``constants``: the groups' means alone, without features; ``random``: each point's group drawn at random.
    meta: quantiles of cosines between local features (with what random directions have), and least squares on z.
    Typed prediction: no feature saw the text that it is tested on. Positions 0 are left out.
    Raises BadRequest for too short a text or no MLP, BadSite, NotOneToken, UnknownBasis.
    """
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    mlp = task_mlp(model, observable, place)
    hook = mlp.c.hook("mlp_normed")
    z = along(model, text, [hook], most=most)[hook].astype(np.float64)
    half = len(z) // 2
    counts = [k for k in counts if k <= half // 4]
    if not counts:
        raise BadRequest(f"expected a text of at least 8 positions for one feature, got {len(z)}; give a longer one")
    train, test = z[:half], z[half:]
    y, aim = mlp.value(train), mlp.value(test)
    rows = []
    for k in counts:
        made = local_model(mlp, train, k, generator(seed, "regions", k))
        own, there = made.groups.of(mlp.gates(train)), made.groups.of(mlp.gates(test))
        shuffled = generator(seed, "random groups", k).integers(0, k, len(test))
        rows.append((explained(y, made.of(train, own)), explained(aim, made.of(test, there)),
                     explained(aim, made.means[there]), explained(aim, made.of(test, shuffled))))  # fmt: skip
    fitted, *_ = np.linalg.lstsq(np.column_stack([train, np.ones(half)]), y, rcond=None)
    least = explained(aim, np.column_stack([test, np.ones(len(test))]) @ fitted)
    return _table(model, observable, mlp, place, counts, np.array(rows), cosines(mlp, test, seed), least, len(z), seed)


def cosines(mlp: TaskMLP, z: Float[np.ndarray, "n d_model"], seed: int) -> Float[np.ndarray, " m"]:
    """Cosines between the local features of at most 300 points, every pair."""
    chosen = generator(seed, "compared").permutation(len(z))[:COMPARED]
    f = mlp.features(mlp.gates(z[np.sort(chosen)]))
    f = f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-300)
    return (f @ f.T)[np.triu_indices(len(f), 1)]


def _table(
    model: Model,
    observable: Observable,
    mlp: TaskMLP,
    place: str,
    counts: Sequence[int],
    rows: Float[np.ndarray, "r 4"],
    near: Float[np.ndarray, " n"],
    least: float,
    positions: int,
    seed: int,
) -> Table:
    quantiles = {f"{q:.0%}": float(np.quantile(near, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    level = float(np.asarray(chance.quantile(0.05, model.spec.d_model)))
    best = int(np.argmax(rows[:, 1]))
    names = ("train", "held_out", "constants", "random")
    abouts = ("on the text that they were made from", "prediction: on the later half", "the groups' means alone",
              "each point's group drawn at random")  # fmt: skip
    spread = ", ".join(f"{q} {value:+.2f}" for q, value in quantiles.items())
    return Table(
        columns=[Column("features", np.array(counts), "", 0, "how many"),
                 *(Column(n, rows[:, i], "", 3, f"share of variance explained: {a}")
                   for i, (n, a) in enumerate(zip(names, abouts, strict=True)))],
        meta=model.meta | {"analysis": "regions", "observable": str(observable), "place": place, "seed": seed,
                           "positions": positions, "kind": "prediction", "cosines": quantiles, "chance cos": level,
                           "least squares": least, "activation": mlp.mlp.activation},
        title=f"{model.name} · {observable} · {place} · {positions} positions, features from the first half · "
        f"cosines between local features: {spread} (chance ±{level:.2f})",
        says=f"One feature explains {rows[0, 1]:.0%} of what {place} writes for {observable} on the later half, "
        f"{counts[best]} explain {rows[best, 1]:.0%} (their groups' means alone {rows[best, 2]:.0%}); least squares "
        f"on its input {least:.0%}. Half of all pairs of local features have a cosine above {quantiles['50%']:+.2f}.",
        not_says="Which feature applies is read from the point's own gates, so many groups are close to the MLP "
        f"itself; the later layers are left out{'; ' + observable.warning if observable.warning else ''}.",
        next=f'covector observe regions {model.words} {observable.typed} {place} with pairs of prompts',
        picture=_picture,
        key=("features",),
    )  # fmt: skip


def _picture(table: Table) -> Curve:
    names = ("held_out", "train", "constants", "random")
    return Curve(np.asarray(table["features"], dtype=float), np.stack([np.asarray(table[n]) for n in names]), names,
                 "features", "share of variance explained", "", "")  # fmt: skip


def segments(
    model: Model, observable: Observable | str, place: str, pairs: Sequence[Pair], *, at: str = "end"
) -> Table:
    """One row per pair: the way of an MLP's input (behind its norm, at a slot) from corrupt to clean prompt.

    ``pieces``: regions of gates on the way; ``linear``: how far the length-weighted mean of the pieces' features is
    from the exact difference (0 to rounding for ReLU, for others what smoothness costs). ``root``: where n·MLP changes
    its sign, bracketed; NaN with the reason in ``why`` where it does not. ``boundary_cos``: the feature there against
    the mean of the others', with what directions at random have. Accounting. Raises BadRequest, BadSite.
    """
    if not pairs:
        raise BadRequest("expected pairs of prompts, got none; give --template and --fill, or --prompts FILE")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    mlp = task_mlp(model, observable, place)
    order, ends = _ends(model, mlp, pairs, at)
    values = np.stack([mlp.value(ends[:, side]) for side in (0, 1)], axis=1)
    rows, features = [], []
    for i, (clean, corrupt) in enumerate(ends):
        gate = mlp.mlp.gated
        a = [mlp.pre(x[None], gate)[0] for x in (corrupt, clean)]
        walked = pieces(a[0], a[1])
        f = _mean_feature(mlp, corrupt, clean, walked.at)
        difference = values[i, 0] - values[i, 1]
        try:
            t, why = between(lambda x: float(mlp.value(x[None])[0]), corrupt, clean).t, ""
        except BadRequest as error:
            t, why = float("nan"), str(error).split(":")[0]
        middle = corrupt + (t if t == t else 0.5) * (clean - corrupt)
        features.append(mlp.features(mlp.gates(middle[None]))[0] if t == t else np.full(len(f), np.nan))
        rows.append((len(walked.lengths), float(f @ (clean - corrupt)) - difference, t, why))
    return _segments_table(model, observable, place, order, values, rows, np.stack(features), at)


def _mean_feature(
    mlp: TaskMLP, low: Float[np.ndarray, " d"], high: Float[np.ndarray, " d"], at: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " d"]:
    """Features at the middles of the pieces, weighted by their lengths."""
    middle = 0.5 * (at[1:] + at[:-1])
    return np.diff(at) @ mlp.features(mlp.gates(low + middle[:, None] * (high - low)))


def _ends(
    model: Model, mlp: TaskMLP, pairs: Sequence[Pair], at: str
) -> tuple[list[Pair], Float[np.ndarray, "n 2 d_model"]]:
    decoder, order, found = Decoder(model.weights, device=model.device), list[Pair](), []
    for batch in batches(pairs):
        places, rows = batch.at(at), np.arange(len(batch.pairs))
        runs = [captured(decoder, tokens)[mlp.c.hook("mlp_normed")] for tokens in (batch.clean, batch.corrupt)]
        found.append(np.stack([run[rows, places] for run in runs], axis=1))
        order += batch.pairs
    return order, np.concatenate(found)


def _segments_table(
    model: Model,
    observable: Observable,
    place: str,
    pairs: Sequence[Pair],
    values: Float[np.ndarray, "n 2"],
    rows: Sequence[tuple],
    features: Float[np.ndarray, "n d_model"],
    at: str,
) -> Table:
    crossed = np.array([row[2] == row[2] for row in rows])
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-300)
    near = np.full(len(rows), np.nan)
    for i in np.flatnonzero(crossed):
        others = [j for j in np.flatnonzero(crossed) if j != i]
        mean = unit[others].sum(axis=0) if others else np.zeros(unit.shape[1])
        near[i] = unit[i] @ mean / np.linalg.norm(mean) if others else np.nan
    level = float(np.asarray(chance.quantile(0.05, model.spec.d_model)))
    columns = [
        Column("pair", [f"{p.texts[0]} | {p.texts[1]}" if p.texts[0] else str(i) for i, p in enumerate(pairs)],
               about="clean and corrupt prompt"),
        Column("clean", values[:, 0], "", 3, "n·MLP there, before 1/σ"),
        Column("corrupt", values[:, 1], "", 3, "n·MLP there"),
        Column("pieces", np.array([row[0] for row in rows]), "", 0, "regions of gates on the way"),
        Column("linear", np.array([row[1] for row in rows]), "", 4, "pieces' mean feature less the exact difference"),
        Column("root", np.array([row[2] for row in rows]), "", 4, "where n·MLP is 0, as a share of the way"),
        Column("boundary_cos", near, "cos", 3, "feature there against the mean of the other pairs'", chance=level),
        Column("why", [row[3] for row in rows], about="why there is no such point"),
    ]  # fmt: skip
    counts = columns[3].numbers
    told = f"{int(crossed.sum())} of {len(rows)} pairs have a point where n·MLP is 0"
    low = f"{np.nanmin(near):+.2f}" if crossed.sum() > 1 else ""
    alike = f"; a feature there has a cosine of at least {low} with the mean of the others'" if low else ""
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "segments", "observable": str(observable), "place": place, "at": at,
                           "pairs": len(rows), "kind": "accounting", "crossed": int(crossed.sum())},
        title=f"{model.name} · {observable} · {place} at {at} · {len(rows)} pairs · "
        f"{counts.min()} to {counts.max()} pieces on the way",
        says=f"Between two prompts {place} passes {np.median(counts):.0f} regions (median); {told}{alike}.",
        not_says="It is the boundary of this MLP's direct share, not of the model's answer; points on the straight "
        f"way between two prompts need not be reached by any{'; ' + observable.warning if observable.warning else ''}.",
        next=f'covector observe regions {model.words} {observable.typed} {place} --text FILE',
        picture=lambda t: Scatter(np.asarray(t["corrupt"]), np.asarray(t["clean"]), "corrupt", "clean", "", "",
                                  labels=list(t["pair"])),
    )  # fmt: skip
