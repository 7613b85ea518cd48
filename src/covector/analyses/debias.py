"""Take a bias out with one vector, and what it costs the task to keep: closed form beside the published search.

Level and gap apart: the level is the mean over names of both sides (does the model say nurse rather than doctor?), the
gap clean − corrupt (does it say so more after Mary than after John?). A constant vector moves the level directly, the
gap only through what is not linear. Source: theory page §1.7, §2.9, §4.6; `docs/theory/steering.md`, equations 7, 8.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.analyses.debias_baseline import candidates
from covector.analyses.patch_places import every_slot
from covector.analyses.steer_setup import Prompts, gradients, held_out, prompts_of
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.chance.streams import generator
from covector.linalg.sign_flips import sign_flips
from covector.linalg.steering import clustered_interval, prescribed, random_vectors, shrunk_covariance
from covector.model.opened import Model
from covector.propagation.entry import Spot, spot_of
from covector.render import Column, Table
from covector.run.clusters import cluster_by, counted, names_of, no_interval, what_counts
from covector.run.decoder import Decoder
from covector.run.prompts import Pair
from covector.run.steered import steered
from covector.study.observable import Observable

# Sizes that are tried, as fractions of the stream's length at the token.
SIZES = (0.1, 0.2, 0.4, 0.7, 1.0)
MEASURES = ("bias level", "bias gap", "kept level", "kept gap")


@dataclass(frozen=True, eq=False)
class Shift:
    """A vector at a place and token, by name; `delta` is what is added."""

    name: str
    spot: Spot
    token: str
    delta: Float[np.ndarray, " d_model"]


@dataclass(frozen=True, eq=False)
class Split:
    """One side of the split: prompts and the observables measured on them."""

    prompts: list[Prompts]
    bias: tuple[Observable, ...]
    keep: tuple[Observable, ...]


def debias(
    model: Model,
    bias: Sequence[Observable | str],
    keep: Sequence[Observable | str],
    pairs: Sequence[Pair],
    *,
    place: str | None = None,
    token: str = "NAME",
    at: str = "end",
    held: float = 0.5,
    strength: float = 1.0,
    heads: int = 3,
    draws: int = 40,
    seed: int = 0,
) -> Table:
    """One row per vector and measure: before, after and change on held-out names, templates and observables.

    `bias`: observables to bring to level 0 (times `strength`), `keep`: those to leave alone; the means of each.
    Vectors, all decided by training prompts: the closed form with first-order changes (−strength·level, 0), at `place`
    (default: the block's input where it does best in training); the same whitened with the stream's covariance over
    training prompts; one that also asks the bias gap to vanish and the kept gap to stay; the published search: the
    bias feature at the `heads` paths of most negative coupling, token (start token and the one read left out) and size
    by trial. Controls of the closed form's length: random (`draws`), the gradient, the mean difference.
    Names, templates and observables are each split by `held`; what there is only one of is not, and the table says so.
    ``p`` is by sign flips over held-out names, ``q`` Holm over vectors. Measured with the decoder in float64.
    Raises BadRequest for no prompts, no observables, or pairs that do not differ.
    """
    if not pairs or not bias or not keep:
        raise BadRequest("expected prompts, and observables on both sides: --bias … --keep … --template … --fill …")
    if not any(p.differs for p in pairs):
        raise BadRequest("expected pairs of prompts that differ (female and male names), got equal ones")
    groups = [tuple(Observable.parse(o, model) if isinstance(o, str) else o for o in group) for group in (bias, keep)]
    decoder = Decoder(model.weights, device=model.device)
    train, test, told = _split(decoder, pairs, groups, token, at, held, seed)
    spots = [spot_of(place, model.spec)] if place else _inputs(model)
    shifts = list(_closed(model, decoder, train, spots, token, strength))
    found, looked = candidates(model, train.bias, train.keep, heads)
    slots = [
        s for s in every_slot([p for t in train.prompts for p in t.batch.pairs]) if s != "end" and not s.isdecimal()
    ]
    for c in found:
        best = _tried(decoder, train, f"search {c.path}", c.spot, slots or [token], -c.feature, at)
        shifts.append(best)
    first = shifts[0]
    controls = list(_controls(model, train, first, draws, seed))
    rows = list(_rows(decoder, test, shifts, controls))
    trained = values_of(decoder, train, first, np.stack([np.zeros_like(first.delta), first.delta])).mean(axis=2)
    return _table(model, rows, first, test, train, trained, told, looked, held, strength, draws, seed, groups, pairs)


def _inputs(model: Model) -> list[Spot]:
    return [spot_of(f"L{layer}.resid_pre", model.spec) for layer in range(model.spec.n_layers)]


def _split(
    decoder: Decoder,
    pairs: Sequence[Pair],
    groups: Sequence[Sequence[Observable]],
    token: str,
    at: str,
    held: float,
    seed: int,
) -> tuple[Split, Split, list[str]]:
    """Training and held-out prompts and observables, and in words what is held out."""
    cluster = cluster_by(pairs)
    names, templates = ({f(p): None for p in pairs} for f in (cluster, template))
    out_names, out_templates = held_out(list(names), held, seed), held_out(list(templates), held, seed + 1)
    outs = [held_out([str(o) for o in group], held, seed + 2 + i) for i, group in enumerate(groups)]
    told = [f"{len(out)} of {n} {word}" for word, out, n in (
        (what_counts(pairs), out_names, len(names)), ("templates", out_templates, len(templates)),
        ("bias observables", outs[0], len(groups[0])), ("kept observables", outs[1], len(groups[1])))]  # fmt: skip
    made = []
    for test in (False, True):
        some = [p for p in pairs if (not out_names or (cluster(p) in out_names) == test)
                and (not out_templates or (template(p) in out_templates) == test)]  # fmt: skip
        if not some:
            raise BadRequest("expected every name in every template, so that both can be held out; fill them all")
        chosen = [tuple(o for o in group if not out or (str(o) in out) == test)
                  for group, out in zip(groups, outs, strict=True)]  # fmt: skip
        made.append(Split(prompts_of(decoder, some, token, at), *chosen))
    return made[0], made[1], told


def template(pair: Pair) -> str:
    """A prompt without the names that were filled in."""
    text = pair.texts[0]
    for name in pair.names[0].split() or names_of(pair)[0]:
        text = text.replace(name, "[]")
    return text


def values_of(
    decoder: Decoder, split: Split, shift: Shift, deltas: Float[np.ndarray, "world d_model"]
) -> Float[np.ndarray, "two world n"]:
    """(bias, kept): mean over the observables of each, every prompt, steered by every delta at the shift's place."""
    both = (*split.bias, *split.keep)
    each = []
    for p in split.prompts:
        mask = np.zeros_like(p.mask)
        mask[np.arange(len(mask)), np.tile(p.batch.at(shift.token), len(mask) // len(p.batch.pairs))] = 1
        each.append(steered(decoder, p.base, shift.spot, deltas, mask, both, p.at))
    values, n = np.concatenate(each, axis=2), len(split.bias)
    return np.stack([values[:n].mean(axis=0), values[n:].mean(axis=0)])


def _sides(split: Split) -> np.ndarray:
    return np.concatenate([p.sides for p in split.prompts])


def _closed(
    model: Model, decoder: Decoder, train: Split, spots: Sequence[Spot], token: str, strength: float
) -> Iterator[Shift]:
    """The three closed forms, each where it does best in training."""
    sides = _sides(train)
    made: dict[str, list[Shift]] = {}
    for spot in spots:
        g = [np.concatenate([gradients(model, p, group, spot).mean(axis=0) for p in train.prompts])
             for group in (train.bias, train.keep)]  # fmt: skip
        start = values_of(decoder, train, Shift("", spot, token, np.zeros(model.spec.d_model)),
                          np.zeros((1, model.spec.d_model)))[:, 0]  # fmt: skip
        level = -strength * float(start[0].mean())
        gap = -strength * float(start[0][sides > 0].mean() - start[0][sides < 0].mean())
        F = np.stack([x.mean(axis=0) for x in g])
        D = np.stack([x[sides > 0].mean(axis=0) - x[sides < 0].mean(axis=0) for x in g])
        x = np.concatenate([p.base[spot.hook][:, 1:].reshape(-1, model.spec.d_model) for p in train.prompts])
        forms = {
            "closed form": (F, [level, 0.0], None),
            "closed form, whitened": (F, [level, 0.0], shrunk_covariance(x)[0]),
            "closed form, gap too": (np.concatenate([F, D]), [level, 0.0, gap, 0.0], None),
        }
        for name, (rows, a, covariance) in forms.items():
            try:
                delta = prescribed(rows, np.array(a), covariance)
            except BadRequest:  # nothing at this place moves the tasks apart
                continue
            made.setdefault(name, []).append(Shift(name, spot, token, delta))
    if "closed form" not in made:
        raise BadRequest(f"nothing on token {token} moves the bias and not the kept task; choose another --token")
    for some in made.values():
        yield min(some, key=lambda s: _cost(decoder, train, s, s.delta[None])[0])


def _cost(decoder: Decoder, train: Split, shift: Shift, deltas: np.ndarray) -> Float[np.ndarray, " world"]:
    """What training minimises: |bias level after| + |change of the kept level|."""
    after = values_of(decoder, train, shift, np.concatenate([np.zeros((1, deltas.shape[1])), deltas])).mean(axis=2)
    return np.abs(after[0, 1:]) + np.abs(after[1, 1:] - after[1, 0])


def _tried(
    decoder: Decoder, train: Split, name: str, spot: Spot, slots: Sequence[str], feature: np.ndarray, at: str
) -> Shift:
    """Token and size of least cost in training, both signs."""
    best: tuple[float, Shift] | None = None
    unit = feature / np.linalg.norm(feature)
    for slot in slots:
        try:
            positions = [p.batch.at(slot) for p in train.prompts]
        except BadRequest:  # not in every prompt
            continue
        if any(np.any(where == p.batch.at(at)) for where, p in zip(positions, train.prompts, strict=True)):
            continue
        length = _length(train, spot, positions)
        deltas = np.array([sign * size * length * unit for size in SIZES for sign in (1, -1)])
        costs = _cost(decoder, train, Shift(name, spot, slot, unit), deltas)
        i = int(np.argmin(costs))
        if best is None or costs[i] < best[0]:
            best = (float(costs[i]), Shift(name, spot, slot, deltas[i]))
    if best is None:
        raise BadRequest("expected a token in every prompt besides the first and the one read, got none")
    return best[1]


def _length(split: Split, spot: Spot, positions: Sequence[np.ndarray]) -> float:
    """Mean length of the stream at a slot."""
    found = [np.linalg.norm(p.base[spot.hook][np.arange(len(p.mask)), np.tile(where, len(p.mask) // len(where))],
                            axis=-1) for p, where in zip(split.prompts, positions, strict=True)]  # fmt: skip
    return float(np.concatenate(found).mean())


def _controls(model: Model, train: Split, first: Shift, draws: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, deltas) of the closed form's length, at its place; those with a direction against the bias."""
    length = float(np.linalg.norm(first.delta))
    yield "random", random_vectors(draws, length, generator(seed, "debias random"), d=len(first.delta))
    x = np.concatenate([np.sum(p.base[first.spot.hook] * p.mask[..., None], axis=1) for p in train.prompts])
    sides = _sides(train)
    g = np.concatenate([gradients(model, p, train.bias, first.spot).mean(axis=0) for p in train.prompts]).mean(axis=0)
    wanted = float(np.sign(g @ first.delta))
    for name, v in (("gradient", g), ("mean difference", x[sides > 0].mean(axis=0) - x[sides < 0].mean(axis=0))):
        if np.any(v):
            yield name, (length * wanted * np.sign(g @ v) * v / np.linalg.norm(v))[None]


def _rows(
    decoder: Decoder, test: Split, shifts: Sequence[Shift], controls: Sequence[tuple[str, np.ndarray]]
) -> Iterator[dict[str, Any]]:
    first = shifts[0]
    for shift in shifts:
        values = values_of(decoder, test, shift, np.stack([np.zeros_like(shift.delta), shift.delta]))
        yield from _measures(test, shift, values)
    for name, deltas in controls:
        values = values_of(decoder, test, first, np.concatenate([np.zeros((1, deltas.shape[1])), deltas]))
        control = dataclasses.replace(first, name=name, delta=deltas[0])
        each = [list(_measures(test, control, values[:, [0, i]])) for i in range(1, values.shape[1])]
        for rows in zip(*each, strict=True):
            row = dict(rows[0])
            if len(rows) > 1:
                changes = np.array([r["change"] for r in rows])
                row |= {
                    "change": float(changes.mean()),
                    "after": row["before"] + float(changes.mean()),
                    "p": float("nan"),
                }
                row["low"], row["high"] = map(float, np.quantile(changes, [0.025, 0.975]))
            yield row


def _measures(test: Split, shift: Shift, values: Float[np.ndarray, "two 2 n"]) -> Iterator[dict[str, Any]]:
    """Level and gap of both tasks, before and after."""
    where = [np.tile(p.batch.at(shift.token), len(p.mask) // len(p.batch.pairs)) for p in test.prompts]
    length = float(np.concatenate([np.linalg.norm(p.base[shift.spot.hook][np.arange(len(w)), w], axis=-1)
                                   for p, w in zip(test.prompts, where, strict=True)]).mean())  # fmt: skip
    sides, names = _sides(test), [c for p in test.prompts for c in p.clusters]
    clean = [c for c, side in zip(names, sides, strict=True) if side > 0]
    for j, task in enumerate(("bias", "kept")):
        for kind in ("level", "gap"):
            if kind == "level":
                each, keys = values[j], names
            else:
                each, keys = values[j][:, sides > 0] - values[j][:, sides < 0], clean
            change, low, high = clustered_interval(each[1] - each[0], keys)
            means = np.array([clustered_interval(x, keys)[0] for x in each])
            by_name = np.array([np.mean([v for v, k in zip(each[1] - each[0], keys, strict=True) if k == key])
                                for key in dict.fromkeys(keys)])  # fmt: skip
            p = float(sign_flips(by_name[None], 0)[0])
            yield {"vector": shift.name, "measure": f"{task} {kind}", "before": means[0], "after": means[1],
                   "change": change, "low": low, "high": high, "p": p, "place": f"{shift.spot}@{shift.token}",
                   "size": float(np.linalg.norm(shift.delta)) / length}  # fmt: skip


def _table(
    model: Model,
    rows: list[dict[str, Any]],
    first: Shift,
    test: Split,
    train: Split,
    trained: Float[np.ndarray, "2 2"],
    told: list[str],
    looked: int,
    held: float,
    strength: float,
    draws: int,
    seed: int,
    groups: Sequence[Sequence[Observable]],
    pairs: Sequence[Pair],
) -> Table:
    def of(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=np.float64)

    p, measures = of("p"), np.array([row["measure"] for row in rows])
    q = np.full(len(rows), np.nan)
    for measure in MEASURES:
        here = (measures == measure) & np.isfinite(p)
        q[here] = chance.holm(p[here]) if here.any() else np.nan
    columns = [
        Column(
            "vector", [row["vector"] for row in rows], about="what is added; controls have the closed form's length"
        ),
        Column("measure", list(measures), about="level: mean over names; gap: clean − corrupt"),
        Column("before", of("before"), "logits", 3, "held-out prompts, unsteered"),
        Column("after", of("after"), "logits", 3, "steered"),
        Column("change", of("change"), "logits", 3, "after − before"),
        Column("low", of("low"), "logits", 3, "95 % interval over names; of random vectors: over draws"),
        Column("high", of("high"), "logits", 3, "upper end"),
        Column("p", p, about="sign flips over names: no change"),
        Column("q", q, about="Holm over vectors, measure by measure"),
        Column("size", of("size"), "‖x‖", 3, "length added over the stream's mean length at the token"),
        Column("place", [row["place"] for row in rows], about="where it is added, at which token"),
    ]
    by = {(row["vector"], row["measure"]): row for row in rows}
    level, kept = by["closed form", "bias level"], by["closed form", "kept level"]
    gap, null = by["closed form", "bias gap"], by["random", "bias level"]
    tested = [p for t in test.prompts for p in t.batch.pairs]
    told_of = counted(tested)
    return Table(
        columns=columns,
        meta=model.meta | {
            "analysis": "debias", "operation": "add", "hook": first.spot.hook, "layer": first.spot.layer,
            "token": first.token, "bias": [str(o) for o in groups[0]], "keep": [str(o) for o in groups[1]],
            "held_out": told, "held": held, "held_bias": [str(o) for o in test.bias],
            "held_keep": [str(o) for o in test.keep], "strength": strength, "paths_looked_at": looked,
            "pairs": len(pairs), "train_pairs": sum(len(t.batch.pairs) for t in train.prompts), "draws": draws,
            "seed": seed, "kind": "prediction",
            "trained": {"bias": trained[0].tolist(), "kept": trained[1].tolist()}, "vector": first.delta.tolist(),
            "null": "random vectors of the closed form's length",
        },
        title=f"{model.name} · {len(groups[0])} bias, {len(groups[1])} kept observables · held out: {', '.join(told)} "
        f"· closed form at {first.spot} on {first.token}",
        says=f"On {told_of} held out the closed form takes the bias level from {level['before']:+.3f} to "
        f"{level['after']:+.3f} (random vectors of its length move it by {null['low']:+.3f} to {null['high']:+.3f}) "
        f"and the kept level from {kept['before']:+.3f} to {kept['after']:+.3f}; the bias gap goes from "
        f"{gap['before']:+.3f} to {gap['after']:+.3f}."
        f" In training the bias level went from {trained[0, 0]:+.3f} to {trained[0, 1]:+.3f}."
        f"{_best(by)}",
        not_says="One vector for all names shifts levels; a gap changes only where the model is not linear. It says "
        f"nothing of other prompts or tasks{_not_held(told)}{no_interval(tested)}.",
        next=f"covector observe paths {model.words} {groups[0][0].typed} with the same prompts",
        key=("vector", "measure"),
    )  # fmt: skip


def _best(by: dict[tuple[str, str], dict[str, Any]]) -> str:
    """What the published search does to the same numbers."""
    tried = [v for v, m in by if m == "bias level" and v.startswith("search ")]
    if not tried:
        return " No head couples negatively, so that the published search has nothing to try."
    name = min(tried, key=lambda v: abs(by[v, "bias level"]["after"]) + abs(by[v, "kept level"]["change"]))
    return (f" The published search's best, {name.removeprefix('search ')}: {by[name, 'bias level']['after']:+.3f} and "
            f"{by[name, 'kept level']['after']:+.3f}.")  # fmt: skip


def _not_held(told: list[str]) -> str:
    alone = [t.split(" ", 3)[3] for t in told if t.startswith("0 of")]
    return f"; there is one of each of {', '.join(alone)}, so these are not held out" if alone else ""
