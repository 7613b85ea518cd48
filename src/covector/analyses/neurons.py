"""Single neurons as a baseline: which write for or against a task, and what taking them away does.

Source: theory page §1.4; `docs/theory/observables.md`, equations 2, 4, 7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.propagate import DATA_FREE
from covector.axes import Float, Int
from covector.errors import BadRequest, BadSite
from covector.linalg import chance
from covector.linalg.agreement import agreement
from covector.linalg.chance.streams import generator
from covector.linalg.interval import cluster_sums, half_width
from covector.linalg.sign_flips import sign_flips
from covector.model.opened import Model
from covector.propagation.linearised import Linearised
from covector.render import Column, Scatter, Table
from covector.run.clusters import clusters_of, no_interval, pairs_told
from covector.run.decoder import Decoder
from covector.run.neurons import Neuron, NeuronRun
from covector.run.prompts import Pair, batches
from covector.study.observable import Observable

LEVEL = 0.05
SOURCES = ("corrupt", "zero", "mean")


@dataclass(frozen=True, eq=False)
class Writes:
    """What every neuron writes for an observable, per unit of its activation; one entry per neuron."""

    neurons: list[Neuron]
    per_unit: Float[np.ndarray, " n"]
    cosine: Float[np.ndarray, " n"]

    def names(self) -> list[str]:
        """Addresses, ``L2N17``."""
        return [f"L{layer}N{i}" for layer, i in self.neurons]


def writes(model: Model, observable: Observable) -> Writes:
    """Per neuron: its row of W_out read by the task's data-free direct functional, and their cosine. Exact.

    Raises BadSite for a model without MLPs.
    """
    linear = Linearised(model.weights, (), DATA_FREE)
    G, state = linear.unread(observable.vector[None], observable.output)[1], linear.end
    found: list[tuple[list[Neuron], np.ndarray, np.ndarray]] = []
    for c in reversed(linear.components):
        for s in range(state, c.writes, -1):
            G = linear.before(G, s)
        state = c.writes
        if c.mlp:
            on_out = linear.out(linear.before(G, state), c)[0, 0]
            W = linear.need(c.hook("W_out"))
            each = W @ on_out
            sizes = np.linalg.norm(W, axis=1) * np.linalg.norm(on_out)
            cosine = np.divide(each, sizes, out=np.zeros_like(each), where=sizes > 0)
            found.append(([(c.layer, i) for i in range(len(W))], each, cosine))
    if not found:
        raise BadSite(f"expected a model with MLPs, {model.name} has none")
    found = found[::-1]
    return Writes(
        [n for layer in found for n in layer[0]],
        np.concatenate([layer[1] for layer in found]),
        np.concatenate([layer[2] for layer in found]),
    )


def neurons(
    model: Model,
    observable: Observable | str,
    pairs: Sequence[Pair] = (),
    *,
    top: int = 20,
    source: str = "corrupt",
    at: str = "end",
    seed: int = 0,
) -> Table:
    """One row per neuron, largest |cos| first: how well its row of W_out is read by the task, against chance.

    ``cos`` with the data-free direct functional, behind the final norm's gain and centring; p: that a direction at
    random is as near (d − 1 where norms centre), q over all neurons of the model, p_max for the nearest of all.
    With `pairs`, ``effect``: clean − changed when the neuron's activation (at every position) is the corrupt run's,
    zero, or its mean over all prompts of the batch, for the `top` neurons by |cos| and as many drawn at random
    (``control``), beside ``guess``, what it writes directly, w/σ held: accounting. meta: both sets taken away together.
    Raises BadRequest, BadSite, NotOneToken, UnknownBasis.
    """
    if source not in SOURCES or top < 1:
        raise BadRequest(f"expected --source {', '.join(SOURCES)} and at least one neuron, got {source} and {top}")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    found = writes(model, observable)
    final = model.spec.final_norm
    d = model.spec.d_model - int(final is not None and final.kind == "layer")
    p = np.asarray(chance.tail(found.cosine, d))
    order = np.argsort(-np.abs(found.cosine), kind="stable")
    first, rest = order[:top], order[top:]
    control = np.sort(generator(seed, "neurons").permutation(rest)[:top])
    measured = _Measured.of(
        model, observable, found, [int(i) for i in (*first, *control)], len(first), pairs, source, at
    )
    return _table(model, observable, found, p, d, first, control, measured, len(pairs), source, at, seed)


@dataclass(frozen=True, eq=False)
class _Measured:
    """Effects [neuron, pair] by index of the neuron, those of whole sets, the difference, and the direct guesses."""

    effect: Mapping[int, Float[np.ndarray, " n"]]
    guess: Mapping[int, Float[np.ndarray, " n"]]
    together: Float[np.ndarray, "k n"]
    whole: Float[np.ndarray, " n"]
    pairs: tuple[Pair, ...]

    @classmethod
    def of(
        cls,
        model: Model,
        observable: Observable,
        found: Writes,
        wanted: Sequence[int],
        first: int,
        pairs: Sequence[Pair],
        source: str,
        at: str,
    ) -> "_Measured | None":
        if not pairs:
            return None
        every = [found.neurons[i] for i in wanted]
        sets = [[n] for n in every] + [s for s in (every[:first], every[first:]) if s]
        effects, wholes, guesses = [], [], []
        decoder = Decoder(model.weights, device=model.device)
        ordered: list[Pair] = []
        for batch in batches(pairs):
            ordered += batch.pairs
            run = NeuronRun(decoder, observable, batch.clean, batch.corrupt, batch.at(at))
            new = run.source(source)
            effects.append(np.stack([run.clean - value for value in run.changed(sets, new)]))
            wholes.append(run.clean - run.corrupt)
            scale = run.scale(model, batch.at(at))
            per_unit = np.array([found.per_unit[i] for i in wanted])
            guesses.append(per_unit[:, None] * scale * run.direct(every, new, batch.at(at)))
        effect, guess = np.concatenate(effects, axis=1), np.concatenate(guesses, axis=1)
        return cls(
            {int(i): effect[j] for j, i in enumerate(wanted)},
            {int(i): guess[j] for j, i in enumerate(wanted)},
            effect[len(wanted) :],
            np.concatenate(wholes),
            tuple(ordered),
        )


def _table(
    model: Model,
    observable: Observable,
    found: Writes,
    p: Float[np.ndarray, " n"],
    d: int,
    first: Int[np.ndarray, " k"],
    control: Int[np.ndarray, " r"],
    measured: _Measured | None,
    pairs: int,
    source: str,
    at: str,
    seed: int,
) -> Table:
    rows = np.concatenate([first, control]) if measured else first
    n, names, q = len(p), found.names(), chance.bh(p)
    level = float(np.asarray(chance.threshold(d, n)))
    columns = [
        Column("neuron", [names[i] for i in rows], about="layer and neuron"),
        Column("kind", ["nearest" if j < len(first) else "control" for j in range(len(rows))],
               about="of the nearest by |cos|, or drawn at random from the others"),
        Column("cos", found.cosine[rows], "cos", 3, "its row of W_out and the task's direct functional", chance=level),
        Column("per_unit", found.per_unit[rows], "", 4, "what one unit of activation writes, before 1/σ"),
        Column("p", p[rows], about="chance that a direction at random is as near"),
        Column("q", q[rows], about="Benjamini–Hochberg over all neurons of the model"),
        Column("p_max", np.minimum(1.0, n * p[rows]), about=f"the same for the nearest of {n}"),
    ]  # fmt: skip
    meta = {"analysis": "neurons", "observable": str(observable), "neurons": n, "d": d, "pairs": pairs, "seed": seed,
            "source": source, "at": at, "kind": "prediction", "beyond": int(np.sum(q < LEVEL))}  # fmt: skip
    told, title = "", ""
    if measured:
        more, told, facts = _effects(measured, rows, len(first), seed)
        columns += more
        meta |= facts | {"kind": "measurement; guess: accounting"}
        title = f" · {pairs_told(measured.pairs)} · from {source}"
    best = int(first[0])
    return Table(
        columns=columns,
        meta=model.meta | meta,
        title=f"{model.name} · {observable} · {n} neurons · {meta['beyond']} beyond chance (q < {LEVEL}) · "
        f"|cos| of the nearest by chance {level:.2f}{title}",
        says=f"{names[best]} writes nearest to {observable}, cos {found.cosine[best]:+.2f}; {meta['beyond']} of {n} "
        f"neurons do so beyond chance at a false-discovery rate of {LEVEL:.0%}.{told}",
        not_says="It does not say what makes a neuron fire, nor what it does through later components but for the "
        f"effects that are measured{no_interval(measured.pairs) if measured else ''}"
        f"{'; ' + observable.warning if observable.warning else ''}.",
        next=f"covector observe regions {model.words} {observable.typed} L{found.neurons[best][0]}.mlp --text FILE",
        picture=_picture if measured else None,
        key=("neuron",),
    )


def _effects(
    measured: _Measured, rows: Int[np.ndarray, " k"], first: int, seed: int
) -> tuple[list[Column], str, dict[str, object]]:
    """Columns, a sentence and meta of what was measured."""
    effects = np.stack([measured.effect[int(i)] for i in rows])
    guess = np.stack([measured.guess[int(i)] for i in rows]).mean(axis=1)
    mean, total = effects.mean(axis=1), float(measured.whole.mean())
    clusters = clusters_of(measured.pairs)
    error = half_width(effects, clusters)
    p = sign_flips(cluster_sums(effects, clusters), seed)
    columns = [
        Column("effect", mean, "logits", 3, "clean − changed, mean over pairs"),
        Column("low", mean - error, "logits", 3, "lower end of a 95 % interval over names"),
        Column("high", mean + error, "logits", 3, "upper end"),
        Column("guess", guess, "logits", 3, "what it writes directly, 1/σ of the clean run (accounting)"),
        Column("p_effect", p, about="sign flips over names: the effect has no sign"),
        Column("q_effect", chance.bh(p), about="Benjamini–Hochberg over the neurons measured"),
    ]
    sets = measured.together.mean(axis=1)
    sizes = [float(np.abs(part).mean()) if len(part) else float("nan") for part in (mean[:first], mean[first:])]
    facts = {
        "total": total, "together": {"nearest": float(sets[0]), "control": float(sets[1]) if len(sets) > 1 else None},
        "mean size": {"nearest": sizes[0], "control": sizes[1]}, "guess": str(agreement(guess, mean)),
    }  # fmt: skip
    beside = f", {sets[1]:+.3f} for as many at random" if len(sets) > 1 else ""
    told = (
        f" Alone they move {sizes[0]:.3f} of {total:.3f} logits on average ({sizes[1]:.3f} at random); the {first} "
        f"nearest together {sets[0]:+.3f}{beside}."
    )
    return columns, told, facts


def _picture(table: Table) -> Scatter:
    return Scatter(np.abs(np.asarray(table["cos"])), np.asarray(table["effect"]), "|cos| with the task", "effect", "",
                   "logits", labels=list(table["neuron"]), groups=list(table["kind"]),
                   interval=(np.asarray(table["low"]), np.asarray(table["high"])))  # fmt: skip
