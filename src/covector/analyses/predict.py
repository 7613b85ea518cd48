"""Prediction beside measurement: what features made elsewhere say of held-out prompts, and what patching them shows.

Every number says what it saw: `accounting` both runs, `fit` a working point of the same prompt, `prediction` nothing
but other prompts or the weights. Slope and r² are headlined for predictions alone.

Source: theory page §1.7, §2.10, §4.5; `docs/theory/observables.md`, equations 7–11.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from covector.analyses.head_norms import head_norms
from covector.analyses.patch import measured_by
from covector.analyses.patch_guesses import first_order
from covector.analyses.patch_places import places_of
from covector.analyses.shares import shares
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.agreement import Agreement, agreement
from covector.linalg.interval import half_width
from covector.model.opened import Model
from covector.propagation.linearised import Linearised, Policies
from covector.render import Column, Grid, Table
from covector.run.clusters import clusters_of, no_interval
from covector.run.decoder import Decoder
from covector.run.pairs import worlds_of
from covector.run.points import as_inputs, captured
from covector.run.prompts import Pair, batches
from covector.run.runner import Runner
from covector.run.sweep import sweep
from covector.study.observable import Observable

Kind = Literal["accounting", "fit", "prediction"]
AGREEMENTS = ("over_places", "but_largest", "over_all", "within")
# A head whose norm is among so many of the largest, and whose effect is below this share of the difference, is a
# false positive of its norm.
LARGE, NOTHING = 0.25, 0.02


@dataclass(frozen=True, eq=False)
class Beside:
    """A guess and a measurement of the same things, side by side, with what the guess was allowed to see.

    `guess` and `measured` are [place, n]: places, and prompts (or pairs) of the test part. ``units`` False: the guess
    is right up to one factor (no 1/σ), so that its slope means nothing.
    """

    name: str
    kind: Kind
    guess: Float[np.ndarray, "k n"]
    measured: Float[np.ndarray, "k n"]
    units: bool = True

    @property
    def over_places(self) -> Agreement:
        """Means over prompts, place by place."""
        return agreement(self.guess.mean(axis=1), self.measured.mean(axis=1))

    @property
    def over_all(self) -> Agreement:
        """Every place and prompt."""
        return agreement(self.guess.ravel(), self.measured.ravel())

    @property
    def within(self) -> Agreement:
        """Every place and prompt, less the mean of its place: does it know which prompts move a place more?"""
        less = [x - x.mean(axis=1, keepdims=True) for x in (self.guess, self.measured)]
        return agreement(less[0].ravel(), less[1].ravel())

    @property
    def but_largest(self) -> Agreement:
        """`over_places` without the place with the largest effect, which may carry all of the correlation."""
        guess, measured = self.guess.mean(axis=1), self.measured.mean(axis=1)
        rest = np.arange(len(guess)) != np.argmax(np.abs(measured))
        return agreement(guess[rest], measured[rest])

    def worst(self, n: int) -> list[tuple[int, int]]:
        """(place, prompt) where it is furthest off, in logits (after its own slope where it has no units)."""
        slope = 1.0 if self.units else self.over_all.slope
        off = np.abs(slope * self.guess - self.measured)
        order = np.argsort(-off, axis=None, kind="stable")[:n]
        return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, off.shape), strict=True)]

    def to_meta(self) -> dict:
        """Its agreements as JSON holds them."""
        found = {name: asdict(getattr(self, name)) for name in AGREEMENTS}
        return {"name": self.name, "kind": self.kind, "units": self.units} | found


def predict_heads(
    model: Model,
    observable: Observable | str,
    train: Sequence[Pair],
    test: Sequence[Pair],
    *,
    at: str = "end",
    held: str = "",
    runner: Runner | None = None,
) -> Table:
    """One row per head: the effect of patching it on held-out pairs (clean − patched), beside four guesses of it.

    ``train`` (prediction): the functional on the head's z, through all paths behind it, with secant stand-ins at the
    training pairs, mean by slot, times the change of z on the test pair. ``free`` (prediction): the direct path from
    weights alone, without 1/σ. ``fit``: the gradient at the test pair's clean run. ``accounting``: the secant share of
    everything through the head on the test pair. ``mean`` in meta: the mean training share, blind to the test prompt.
    ``why``: heads with a norm among the largest quarter and an effect below 2 % of the difference, explained by their
    exact OV and QK shares. Measured with the reference decoder, or with `runner`.
    Raises BadRequest, BadSite, NotOneToken, UnknownBasis.
    """
    if not train or not test:
        raise BadRequest(f"expected pairs for training and testing, got {len(train)} and {len(test)}")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    learned, mean = _learned(model, observable, train, at)
    tested = _Tested(model, observable, at, runner)
    for batch in batches(test):
        tested.add(batch.pairs, learned)
    measured = tested.joined("effect")
    every = [
        Beside("train", "prediction", tested.joined("train"), measured),
        Beside("free", "prediction", tested.joined("free"), measured, units=False),
        Beside("mean", "prediction", np.repeat(mean[:, None], measured.shape[1], axis=1), measured),
        Beside("fit", "fit", tested.joined("fit"), measured),
        Beside("accounting", "accounting", tested.joined("accounting"), measured),
    ]
    table = _table(model, observable, every, tested, train, test, at, held)
    return table if runner is None else measured_by(table, runner)


# A functional on z by head (in model order) for each slot name.
Learned = Mapping[str, Float[np.ndarray, " d_head"]]


def on_heads(linear: Linearised, G: np.ndarray) -> list[Float[np.ndarray, "batch position d_head"]]:
    """A functional on the last state as functionals on every head's z, through all paths behind it; model order."""
    every, found = linear.adjoint(G), list[np.ndarray]()
    for c in linear.components:
        if c.attn:
            Gz = linear.on_z(linear.out(linear.before(every[c.writes], c.writes), c), c)
            found += [Gz[:, :, h] for h in range(Gz.shape[2])]
    return found


def change_of_heads(linear: Linearised) -> list[Float[np.ndarray, "batch position d_head"]]:
    """What changes in every head's z between the runs."""
    found = []
    for c in linear.components:
        if c.attn:
            change = linear.change(c.hook("z"))
            found += [change[:, :, h] for h in range(change.shape[2])]
    return found


def _learned(
    model: Model, observable: Observable, train: Sequence[Pair], at: str
) -> tuple[list[Learned], Float[np.ndarray, " head"]]:
    """Per head the mean functional on its z by slot, and its mean share, over the training pairs."""
    worlds, _ = worlds_of(model, observable, train, at=at)
    sums: list[dict[str, np.ndarray]] = []
    counts: dict[str, int] = {}
    shared: list[np.ndarray] = []
    for world in worlds:
        functionals, changes = on_heads(world.model, world.start), change_of_heads(world.model)
        sums = sums or [{} for _ in functionals]
        shared.append(np.stack([np.sum(F * z, axis=(1, 2)) for F, z in zip(functionals, changes, strict=True)]))
        for i, names in enumerate(world.names):
            for t, name in enumerate(names):
                counts[name] = counts.get(name, 0) + 1
                for head, F in enumerate(functionals):
                    sums[head][name] = sums[head].get(name, 0.0) + F[i, t]
    mean = np.concatenate(shared, axis=1).mean(axis=1)
    return [{name: total / counts[name] for name, total in head.items()} for head in sums], mean


class _Tested:
    """The test pairs run, patched and read, batch by batch: [head, pair] arrays by name."""

    def __init__(self, model: Model, observable: Observable, at: str, runner: Runner | None) -> None:
        self.model, self.observable, self.at, self.runner = model, observable, at, runner
        self.decoder = Decoder(model.weights, device=model.device)
        self.places = places_of(model.spec, "heads")
        self.found: dict[str, list[np.ndarray]] = {}
        self.pairs: list[Pair] = []
        self.whole: list[np.ndarray] = []
        self.unknown: set[str] = set()

    def joined(self, name: str) -> Float[np.ndarray, "head n"]:
        """All batches of one kind."""
        return np.concatenate(self.found[name], axis=1)

    def add(self, pairs: Sequence[Pair], learned: Sequence[Learned]) -> None:
        """Run one batch of equal length."""
        (batch,) = batches(pairs)
        model, observable = self.model, self.observable
        base, other = captured(self.decoder, batch.clean), captured(self.decoder, batch.corrupt)
        seen, beside = base, other
        if self.runner is not None:
            seen, beside = captured(self.runner, batch.clean), captured(self.runner, batch.corrupt)
        at, rows = batch.at(self.at), np.arange(len(pairs))
        clean, corrupt = (observable.of(r[f"out.{observable.output}"][rows, at]) for r in (seen, beside))
        measured = dict(sweep(self.runner or self.decoder, seen, beside, self.places, {}, observable, at,
                              inputs=as_inputs(batch.clean)))  # fmt: skip
        linear = Linearised(model.weights, (base, other), Policies.all("secant"))
        changes = change_of_heads(linear)
        through = on_heads(linear, linear.start(observable.vector[None], observable.output, at))
        free = on_heads_directly(model, observable)
        known = [[self._of(head, pair) for pair in pairs] for head in learned]
        values = {
            "effect": np.stack([clean - measured[place] for place in self.places]),
            "train": np.stack([np.sum(np.stack(F) * z, axis=(1, 2)) for F, z in zip(known, changes, strict=True)]),
            "free": np.stack([z[rows, at] @ g for g, z in zip(free, changes, strict=True)]),
            "fit": first_order(model, observable, base, other, self.places, {}, at),
            "accounting": np.stack([np.sum(F * z, axis=(1, 2)) for F, z in zip(through, changes, strict=True)]),
        }
        for name, value in values.items():
            self.found.setdefault(name, []).append(value)
        self.whole.append(clean - corrupt)
        self.pairs += list(pairs)

    def _of(self, head: Learned, pair: Pair) -> Float[np.ndarray, "position d_head"]:
        """A learned functional laid out over a prompt; zero at slots that training did not have."""
        names = [pair.slot_of(t) for t in range(len(pair))]
        self.unknown |= set(names) - head.keys()
        none = np.zeros_like(next(iter(head.values())))
        return np.stack([head.get(name, none) for name in names])


def on_heads_directly(model: Model, observable: Observable) -> list[Float[np.ndarray, " d_head"]]:
    """Without data: functionals on every head's z by the direct path to the output, norms without their scale."""
    linear = Linearised(model.weights, (), Policies.all("ignore"))
    G = linear.unread(observable.vector[None], observable.output)[1]
    found: list[list[np.ndarray]] = []
    state = linear.end
    for c in reversed(linear.components):
        for s in range(state, c.writes, -1):
            G = linear.before(G, s)
        state = c.writes
        if c.attn:
            Gz = linear.on_z(linear.out(linear.before(G, state), c), c)
            found.append([Gz[0, 0, h] for h in range(Gz.shape[2])])
    return [g for layer in reversed(found) for g in layer]


def false_positives(
    norm: Float[np.ndarray, " head"],
    effect: Float[np.ndarray, " head"],
    ov: Float[np.ndarray, " head"],
    qk: Float[np.ndarray, " head"],
    total: float,
) -> list[str]:
    """Why a head with a large norm has no effect, in words; empty for every other head.

    By its exact direct shares: ``reads little that differs`` (OV and QK both below 2 %), ``OV against QK``
    (they cancel), ``undone later`` (it writes a difference directly that later components take back).
    """
    bar, large = NOTHING * abs(total), np.quantile(norm, 1 - LARGE)
    told = []
    for n, e, v, a in zip(norm, effect, ov, qk, strict=True):
        if n < large or abs(e) >= bar:
            told.append("")
        elif max(abs(v), abs(a)) < bar:
            told.append("reads little that differs")
        elif abs(v + a) < 0.5 * max(abs(v), abs(a)):
            told.append("OV against QK")
        else:
            told.append("undone later")
    return told


def _table(
    model: Model,
    observable: Observable,
    every: Sequence[Beside],
    tested: _Tested,
    train: Sequence[Pair],
    test: Sequence[Pair],
    at: str,
    held: str,
) -> Table:
    names, by = [str(p) for p in tested.places], {b.name: b for b in every}
    total, n = float(np.concatenate(tested.whole).mean()), len(tested.pairs)
    measured = by["train"].measured
    effect, error = measured.mean(axis=1), half_width(measured, clusters_of(tested.pairs))
    norms, direct = head_norms(model, observable, draws=1), shares(model, observable, test, at=at)
    norm = _aligned(norms, "head", "norm", names)
    ov, qk = (_aligned(direct, "component", column, names) for column in ("ov", "qk"))
    why = false_positives(norm, effect, ov, qk, total)
    columns = [
        Column("head", names, about="whose z is taken from the corrupt run"),
        Column("effect", effect, "logits", 3, "measured on held-out pairs: clean − patched"),
        Column("low", effect - error, "logits", 3, "lower end of a 95 % interval over names"),
        Column("high", effect + error, "logits", 3, "upper end"),
        Column("train", by["train"].guess.mean(axis=1), "logits", 3, "prediction: feature of the training pairs"),
        Column("free", by["free"].guess.mean(axis=1), "", 3, "prediction: weights alone, direct path, no 1/σ"),
        Column("fit", by["fit"].guess.mean(axis=1), "logits", 3, "gradient at the same clean prompt"),
        Column("accounting", by["accounting"].guess.mean(axis=1), "logits", 3, "secant share between the two prompts"),
        Column("norm", norm, "logits", 3, "length of its data-free feature"),
        Column("ov", ov, "logits", 3, "its direct share through other content"),
        Column("qk", qk, "logits", 3, "its direct share through other attention"),
        Column("why", why, about="a large norm without an effect"),
    ]
    best, free = by["train"], by["free"]
    lost = [f"{name} ({text})" for name, text in zip(names, why, strict=True) if text]
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "predict", "observable": str(observable), "train": len(train), "test": n,
                           "held": held, "at": at, "total": total, "kind": "prediction",
                           "beside": [b.to_meta() for b in every], "worst": _worst(best, names, tested.pairs),
                           "slots without training": sorted(tested.unknown)},
        title=f"{model.name} · {observable} · heads · {len(train)} pairs to train, "
        f"{n} with other {held or 'prompts'} · prediction: {best.over_places}",
        says="Features of the training pairs predict what patching heads does to the others with "
        f"{best.over_places} over heads ({best.but_largest} without {names[int(np.argmax(np.abs(effect)))]})"
        + (f", within a head over pairs with r² {best.within.r2:.2f}" if np.isfinite(best.within.r2) else "")
        + f"; weights alone with r² "
        f"{free.over_places.r2:.2f}, rank correlation {free.over_places.rank:.2f}. "
        + (f"Large norms without an effect: {', '.join(lost)}." if lost else "No large norm is without an effect."),
        not_says=f"It does not say that heads decide this: all effects are single, {total:.3f} logits are to be "
        f"explained{_missing(tested.unknown)}{no_interval(tested.pairs)}"
        f"{'; ' + observable.warning if observable.warning else ''}.",
        next=f'covector patch {model.words} {observable.typed} with the same prompts',
        picture=_picture,
        key=("head",),
    ).take(np.argsort(-np.abs(effect), kind="stable"))  # fmt: skip


def _aligned(table: Table, key: str, column: str, names: Sequence[str]) -> Float[np.ndarray, " n"]:
    by_name = dict(zip(table[key], np.asarray(table[column]), strict=True))
    return np.array([by_name[name] for name in names])


def _worst(beside: Beside, names: Sequence[str], pairs: Sequence[Pair]) -> list[dict]:
    return [
        {"place": names[i], "clean": pairs[j].texts[0], "corrupt": pairs[j].texts[1],
         "guess": float(beside.guess[i, j]), "measured": float(beside.measured[i, j])}
        for i, j in beside.worst(5)
    ]  # fmt: skip


def _missing(unknown: set[str]) -> str:
    return f"; slots that training did not have count nothing ({', '.join(sorted(unknown))})" if unknown else ""


def _picture(table: Table) -> Grid:
    """Norms and effects of heads side by side, each over its largest."""
    names = [tuple(map(int, name[1:].split("H"))) for name in table["head"]]
    layers, heads = sorted({p[0] for p in names}), sorted({p[1] for p in names})
    cells = np.full((len(layers), 2 * len(heads) + 1), np.nan)
    for column, first in (("norm", 0), ("effect", len(heads) + 1)):
        values = np.asarray(table[column])
        for (layer, head), value in zip(names, values / max(float(np.abs(values).max()), 1e-300), strict=True):
            cells[layers.index(layer), first + heads.index(head)] = value
    across = [*(f"norm H{h}" for h in heads), "", *(f"effect H{h}" for h in heads)]
    return Grid(cells, [f"L{i}" for i in layers], across, value_name="over the largest", row_name="layer",
                column_name="head")  # fmt: skip
