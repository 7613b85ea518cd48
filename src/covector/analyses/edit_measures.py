"""The long work of an edit's effect: the edit at every dose, its controls, its gradient, and neutral text."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from covector.analyses.clock import Clock, Tell
from covector.analyses.edit_controls import (
    DYADS,
    NORM,
    OUTPUT,
    Piece,
    dyad_changes,
    effect_sizes,
    pieces_of,
    random_changes,
    sources,
)
from covector.analyses.edit_setup import Part, Setup
from covector.axes import Float
from covector.model.overlay import Change
from covector.run.edit_runs import begins, drifts, scaled

CONTROLS = (OUTPUT, NORM, DYADS)


@dataclass(frozen=True, eq=False)
class Side:
    """What neutral text says of one change, or many: KL, and change of the loss, per token."""

    kl: Float[np.ndarray, "k n"]
    loss: Float[np.ndarray, "k n"]


@dataclass(frozen=True, eq=False)
class Measured:
    """One part of an edit, measured.

    ``logits`` at dose 1; ``effects`` of every dose, ``controls`` by kind: [draw, dose, observable, side, n], at all
    doses for OUTPUT and at dose 1 for the others. ``slopes`` [observable, side, piece] are means over names. ``side``
    holds the doses, ``control_kl`` the mean KL of every control per topic, and over all tokens last. ``sizes``:
    √E‖Δoutput‖² by changed matrix.
    """

    part: Part
    logits: Float[np.ndarray, "side n token"]
    effects: Float[np.ndarray, "dose observable side n"]
    controls: Mapping[str, Float[np.ndarray, "draws _ observable side n"]]
    pieces: list[Piece]
    slopes: Float[np.ndarray, "observable side piece"]
    alone: Float[np.ndarray, "piece observable side n"]
    side: Side | None
    control_kl: Mapping[str, Float[np.ndarray, "draws topic"]]
    sizes: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Effects:
    """All parts, and the sham: the whole edit at dose 0 (change of every observable, and KL)."""

    setup: Setup
    parts: tuple[Measured, ...]
    before: Float[np.ndarray, "observable side n"]
    loss: Float[np.ndarray, " token"] | None
    sham: Float[np.ndarray, "observable side n"]
    sham_kl: float


# Directions measured by themselves, those of largest prediction first; of the others it stands alone.
ALONE = 64


def measure(setup: Setup, tell: Tell | None = None) -> Effects:
    """Run everything. The order of the work does not show in the numbers."""
    inputs = setup.inputs(sources(setup.parts))
    changes = [_controls(setup, part, inputs, i) for i, part in enumerate(setup.parts)]
    pieces = [pieces_of(setup, part) if setup.observables else [] for part in setup.parts]
    runs, tokens = _work(setup, changes, pieces)
    clock = Clock(runs, tell, work=tokens)
    before = setup.observed(None)
    first = setup.parts[0].change
    sizes = [effect_sizes(setup, part, inputs) for part in setup.parts]
    parts = [
        _part(setup, part, some, own, before, size, clock)
        for part, some, own, size in zip(setup.parts, changes, pieces, sizes, strict=True)
    ]
    sham = setup.observed(scaled(first, 0.0)) - before
    loss, sham_kl = None, float("nan")
    if setup.neutral is not None:
        kl, _, loss = drifts(setup.bench.decoder, setup.neutral, [scaled(first, 0.0)], begins_at(setup), clock.tick)
        sham_kl = float(np.abs(kl).max())
    return Effects(setup, tuple(parts), before, loss, sham, sham_kl)


def begins_at(setup: Setup) -> int | None:
    """The block that runs of edited models begin with."""
    return begins(setup.model.stored.spec, [part.change for part in setup.parts])


def _controls(setup: Setup, part: Part, inputs: Mapping[str, np.ndarray], index: int) -> dict[str, list[Change]]:
    return {
        OUTPUT: random_changes(setup, part, inputs, OUTPUT, index),
        NORM: random_changes(setup, part, inputs, NORM, index),
        DYADS: dyad_changes(setup, part, index),
    }


def _work(setup: Setup, changes: list[dict[str, list[Change]]], pieces: list[list[Piece]]) -> tuple[int, int]:
    """(runs, tokens) that will be run."""
    doses, text = len(setup.doses), setup.neutral
    on_prompts, on_text = 0, int(text is not None)
    for some, own in zip(changes, pieces, strict=True):
        n = sum(map(len, some.values()))
        on_prompts += doses * (1 + len(some[OUTPUT])) + n - len(some[OUTPUT]) + min(len(own), ALONE)
        on_text += (doses + n) * (text is not None)
    on_prompts *= bool(setup.observables)
    size, batches = (0, 0) if text is None else (text.size, len(text.batches))
    return on_prompts + on_text * batches, on_prompts * setup.bench.tokens + on_text * size


def _part(
    setup: Setup,
    part: Part,
    changes: Mapping[str, list[Change]],
    pieces: list[Piece],
    before: Float[np.ndarray, "observable side n"],
    sizes: Mapping[str, float],
    clock: Clock,
) -> Measured:
    clock.begin(f"{part.name}: doses")
    effects = np.stack([_effect(setup, scaled(part.change, t), before, clock) for t in setup.doses.tolist()])
    controls = {}
    for kind, some in changes.items():
        clock.begin(f"{part.name}: {kind}")
        doses = setup.doses.tolist() if kind == OUTPUT else [1.0]
        each = [[_effect(setup, scaled(c, t), before, clock) for t in doses] for c in some]
        controls[kind] = np.array(each).reshape(len(some), len(doses), *before.shape)
    clock.begin(f"{part.name}: directions")
    vectors = np.array([o.vector for o in setup.observables]).reshape(-1, setup.base.shape[-1])
    slopes = setup.bench.slopes([p.change for p in pieces], vectors, setup.weights)
    alone = np.full((len(pieces), *before.shape), np.nan)
    for i in np.argsort(-np.abs(slopes).max(axis=(0, 1), initial=0.0), kind="stable")[:ALONE]:
        alone[i] = _effect(setup, pieces[i].change, before, clock)
    side, control_kl = _neutral(setup, part, changes, clock)
    logits = setup.bench.logits(part.change)
    return Measured(part, logits, effects, controls, pieces, slopes, alone, side, control_kl, sizes)


def _effect(
    setup: Setup, change: Change, before: Float[np.ndarray, "observable side n"], clock: Clock
) -> Float[np.ndarray, "observable side n"]:
    found = setup.observed(change) - before
    if setup.observables:
        clock.tick(setup.bench.tokens)
    return found


def _neutral(
    setup: Setup, part: Part, changes: Mapping[str, list[Change]], clock: Clock
) -> tuple[Side | None, dict[str, Float[np.ndarray, "draws topic"]]]:
    text = setup.neutral
    if text is None:
        return None, {}
    clock.begin(f"{part.name}: neutral text")
    own = [scaled(part.change, t) for t in setup.doses.tolist()]
    every = [*own, *(c for kind in CONTROLS for c in changes[kind])]
    kl, loss, _ = drifts(setup.bench.decoder, text, every, begins_at(setup), clock.tick)
    means = np.stack([*(kl[:, text.topic == i].mean(axis=1) for i in range(len(text.topics))), kl.mean(axis=1)], axis=1)
    found, at = {}, len(own)
    for kind in CONTROLS:
        found[kind] = means[at : at + len(changes[kind])]
        at += len(changes[kind])
    return Side(kl[: len(own)], loss[: len(own)]), found
