"""What a steering experiment is made of: prompts split by name, the place, the token, the vector and its units.

Source: theory page §1.7, §4.6; `docs/theory/steering.md`, equations 1–4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.propagate import propagate
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.steering import prescribed
from covector.model.opened import Model
from covector.propagation.entry import Spot, on_spot, spot_of
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.search import World, component, functional, through
from covector.run.clusters import cluster_by
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Batch, Pair, batches, both_sides, start_ids
from covector.study.feature import Feature
from covector.study.observable import Observable
from covector.study.path import Path, parse_path

# Doses at which the point of a 20 % miss is looked for, as fractions of the stream's length at the token.
GRID = np.geomspace(1e-3, 4.0, 28)


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of one length, both sides of every pair: unsteered activations, where to add and where to read.

    ``sides`` is +1 for clean prompts, −1 for corrupt ones, 0 where a pair compares nothing.
    """

    batch: Batch
    base: Mapping[str, np.ndarray]
    tokens: Int[np.ndarray, "n position"] | Mapping[str, np.ndarray]
    mask: Float[np.ndarray, "n position"]
    at: Int[np.ndarray, " n"]
    sides: Int[np.ndarray, " n"]
    clusters: tuple[str, ...]

    def rows(self, spot: Spot) -> Float[np.ndarray, "n d_model"]:
        """The stream at the steered token."""
        return np.sum(self.base[spot.hook] * self.mask[..., None], axis=1)

    def unsteered(self, observable: Observable) -> Float[np.ndarray, " n"]:
        """The observable of every prompt as it is."""
        return observable.of(self.base[f"out.{observable.output}"][np.arange(len(self.at)), self.at])


def prompts_of(decoder: Decoder, pairs: Sequence[Pair], token: str, at: str) -> list[Prompts]:
    """Both sides of all pairs, run once without steering; pairs of one length together."""
    found, cluster = [], cluster_by(pairs)
    for batch in batches(pairs):
        compared = any(p.differs for p in batch.pairs)
        tokens = both_sides(batch.pairs) if compared else batch.clean
        n, times = len(batch.pairs), 2 if compared else 1
        mask = np.zeros((times * n, len(batch.pairs[0])))
        mask[np.arange(times * n), np.tile(batch.at(token), times)] = 1
        sides = np.repeat([1, -1], n) if compared else np.zeros(n, dtype=np.int64)
        clusters = tuple(cluster(p) for p in batch.pairs) * times
        found.append(Prompts(batch, _wide(captured(decoder, tokens)), tokens, mask, np.tile(batch.at(at), times), sides,
                             clusters))  # fmt: skip
    return found


def _wide(run: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x.astype(np.float64) for name, x in run.items()}


def halves(pairs: Sequence[Pair], held: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs with no name in common (`cluster_by`); both all of them where all are one cluster.

    Raises BadRequest for a share outside (0, 1).
    """
    cluster = cluster_by(pairs)
    names = list(dict.fromkeys([cluster(p) for p in pairs]))
    out = held_out(names, held, seed)
    if not out:
        return list(pairs), list(pairs)
    return [p for p in pairs if cluster(p) not in out], [p for p in pairs if cluster(p) in out]


def held_out(names: list[str], held: float, seed: int) -> frozenset[str]:
    """A random share of names, at least one and not all; empty where there are fewer than two."""
    if not 0 < held < 1:
        raise BadRequest(f"--held: expected a share between 0 and 1, got {held:g}; 0.5 holds out half of the names")
    if len(names) < 2:
        return frozenset()
    n = int(np.clip(round(held * len(names)), 1, len(names) - 1))
    return frozenset(names[i] for i in np.random.default_rng(seed).permutation(len(names))[:n])


def gradients(
    model: Model, prompts: Prompts, observables: Sequence[Observable], spot: Spot
) -> Float[np.ndarray, "observable n d_model"]:
    """Gradient of each observable with respect to what is added at the token, per prompt; exact."""
    linear = Linearised(model.weights, (prompts.base,), Policies.all("exact"))
    found = []
    for o in observables:
        F = on_spot(linear, linear.start(o.vector[None], o.output, prompts.at), spot)
        found.append(np.sum(F * prompts.mask[..., None], axis=1))
    return np.stack(found)


def mean_gradients(
    model: Model, some: Sequence[Prompts], observables: Sequence[Observable], spot: Spot
) -> Float[np.ndarray, "observable d_model"]:
    """The mean over all prompts."""
    return np.concatenate([gradients(model, p, observables, spot) for p in some], axis=1).mean(axis=1)


def path_slope(
    model: Model, some: Sequence[Prompts], observable: Observable, path: Path, vector: Float[np.ndarray, " d_model"]
) -> float:
    """First-order effect of a unit of the vector through a path alone, norms and MLPs exact, pattern held; mean."""
    found = []
    policies = Policies("exact", "exact", "frozen", "exact")
    for p in some:
        linear = Linearised(model.weights, (p.base,), policies)
        names = [["*"] * p.mask.shape[1]] * len(p.mask)
        world = World(linear, linear.start(observable.vector[None], observable.output, p.at), names)
        found.append(np.sum(functional(world, path) * p.mask[..., None], axis=1) @ vector)
    return float(np.concatenate(found).mean())


def token_of(
    model: Model, decoder: Decoder, pairs: Sequence[Pair], observable: Observable, path: Path, at: str, bos: str
) -> str:
    """The slot that brings the path's first head most: largest contribution, of clean − corrupt where they differ.

    The start token and the position that is read are left out: the one takes attention that means nothing, at the
    other a vector goes straight to the output. Raises BadRequest for a path that does not begin with a head.
    """
    step = path.steps[0] if path.steps else None
    if step is None or step.head is None:
        raise BadRequest(f"--token auto: expected a path that begins with a head, got {path}; name the token")
    sums: dict[str, list[float]] = {}
    for batch in batches(pairs):
        runs = [_wide(captured(decoder, tokens)) for tokens in (batch.clean, batch.corrupt)]
        where = batch.at(at)
        parts = [_by_source(model, run, observable, path, where) for run in runs]
        change = parts[0] - parts[1] if any(p.differs for p in batch.pairs) else parts[0]
        for i, pair in enumerate(batch.pairs):
            for t in range(len(start_ids(model, bos)), len(pair)):
                if t != where[i]:
                    sums.setdefault(pair.slot_of(t), []).append(float(change[i, t]))
    if not sums:
        raise BadRequest("--token auto: expected prompts with a token between the first and the one read, got none")
    return max(sums, key=lambda name: abs(float(np.sum(sums[name]))))


def _by_source(
    model: Model, run: Mapping[str, np.ndarray], observable: Observable, path: Path, at: np.ndarray
) -> Float[np.ndarray, "batch position"]:
    """What the path's first head fetches from each position, read by the rest of the path; frozen stand-ins."""
    linear = Linearised(model.weights, (run,), Policies.all("frozen"))
    F = linear.start(observable.vector[None], observable.output, at)
    world = World(linear, F, [["*"] * F.shape[1]] * len(F))
    state, first = linear.end, path.steps[0]
    for step in reversed(path.steps[1:]):
        F, state = through(world, F, state, step)
    c = component(linear, first)
    for s in range(state, c.writes, -1):
        F = linear.before(F, s)
    assert c.attn is not None
    Gz = linear.on_z(linear.out(linear.before(F, c.writes), c), c)[:, :, first.head]
    v = run[c.hook("v")][:, :, c.attn.kv_of(first.head or 0)]
    return np.einsum("btk,bts,bsk->bs", Gz, run[c.hook("pattern")][:, first.head], v, optimize=True)


@dataclass(frozen=True, eq=False)
class Vector:
    """A steering vector of one unit, and what it was made from.

    ``times`` is how many of the feature one unit is (NaN for several wishes); ``path`` the path whose head it is read
    by, if any.
    """

    unit: Float[np.ndarray, " d_model"]
    about: str
    times: float = float("nan")
    path: Path | None = None


def feature_of(model: Model, observable: Observable, path: str) -> Feature:
    """The data-free feature of a path; positions in it are left to --token. Raises as `propagate`."""
    return propagate(model, observable, path)


def vector_of(
    model: Model,
    feature: Feature | None,
    wants: Sequence[float],
    F: Float[np.ndarray, "m d_model"],
    covariance: np.ndarray | None,
    shrink: float,
) -> Vector:
    """The closed form: one feature reads +1 per unit, or each of several functionals what is wanted of it."""
    how = "shortest" if covariance is None else f"whitened with the text's covariance, shrunk by {shrink:.2f}"
    if wants:
        return Vector(prescribed(F, np.array(wants, dtype=np.float64), covariance), f"closed form, {how}")
    assert feature is not None
    f = feature.vector.astype(np.float64)
    if not np.any(f):
        raise BadRequest(f"{feature.path}: expected a feature that is not zero, got zero; choose another path")
    path = parse_path(feature.path, model.spec) if feature.path else None
    return Vector(prescribed(f[None], np.ones(1), covariance), f"feature of {feature.path or 'a file'}, {how}",
                  float("nan") if covariance is not None else 1 / float(f @ f), path)  # fmt: skip


def spot_for(model: Model, at: str | None, feature: Feature | None) -> Spot:
    """The place that is named, or the stream that the feature reads. Raises BadRequest where neither says one."""
    if at is not None:
        return spot_of(at, model.spec)
    if feature is None or not feature.hook:
        raise BadRequest("--at: expected the place where the vector is added, such as L9.resid_pre, got none")
    layer, _, role = feature.hook.partition(".")
    if role.endswith("_normed"):
        raise BadRequest(f"the feature is read at {feature.hook}, behind a norm: name a place in the stream with --at")
    if not role:
        return spot_of("L0.resid_pre", model.spec)
    found = spot_of(feature.hook, model.spec) if not role.endswith("_in") else None
    parallel = model.spec.blocks[int(layer[1:])].parallel
    names = {"attn_in": "resid_pre", "mlp_in": "resid_pre" if parallel else "resid_mid"}
    first = model.spec.blocks[int(layer[1:])].sublayers[0].name
    role = "resid_pre" if role == f"{first}_in" else names.get(role, role)
    return found or spot_of(f"{layer}.{role}", model.spec)
