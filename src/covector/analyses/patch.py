"""What happens when activations of one prompt are put into the run of another: measured, beside the first-order guess.

Source: theory page §1.7, §4.5; `docs/theory/observables.md`, equations 16–17; identities OP-27, OP-28.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from covector.analyses.patch_guesses import exact_softmax, first_order
from covector.analyses.patch_places import every_slot, mask_of, places_of, put_in, receiver
from covector.analyses.patch_table import Asked, Patched, patch_table
from covector.analyses.patch_words import check_guess, check_what
from covector.axes import Float
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.render import Table
from covector.run.decoder import Decoder
from covector.run.integrated import integrated
from covector.run.pairs import check_reading
from covector.run.points import as_inputs, captured
from covector.run.prompts import Batch, Pair, batches, canonical_slot
from covector.run.runner import Runner
from covector.run.sweep import Place, feeds, sweep
from covector.study.observable import Observable


def patch(
    model: Model,
    observable: Observable | str,
    pairs: Sequence[Pair],
    *,
    what: str = "heads",
    source: str = "corrupt",
    at: str = "end",
    slots: Sequence[str] = (),
    route: Sequence[str] | None = None,
    guess: str = "plain",
    steps: int = 5,
    runner: Runner | None = None,
    dtype: str = "float64",
    seed: int = 0,
) -> Table:
    """One row per place: how far the observable falls when the clean run gets its activations there from elsewhere.

    `what`: heads (z), ov, qk (z with the other values under its own pattern, and the other way round), resid (the
    stream entering each block), attn, mlp (sublayer outputs), or q, k, v, pattern of each head. `source`: the corrupt
    prompt, zero, the mean over both prompts of all other pairs of this length, or another clean prompt (resample).
    `slots`: patch these positions alone, one row each (resid, attn, mlp: every slot by default; heads: all positions
    together). `route`: None lets everything behind the place follow; empty is path patching straight to the output, all
    later components held; heads (``L9H6``) and MLPs (``L8.mlp``) let those alone see the change.
    ``effect`` = clean − patched, mean over pairs, with a 95 % interval and sign-flip p over names (pairs of the same
    names under several templates count once), q over places;
    ``share`` of the whole clean − corrupt difference. ``first_order`` is the gradient at the clean run times the change
    (attribution patching) along the same route, not defined through receivers; ``fit``, since it saw both prompts.
    `guess` adds a better one in a column of its own. ``integrated``: the gradient averaged over `steps` Gauss–Legendre
    nodes of the straight line from the clean to the new activation of that place alone, equation 16; it tends to the
    effect as steps grow, and meta's ``error`` is the largest distance that is left. ``softmax`` (q and k): attention
    computed with the changed queries or keys, and first order behind it, equation 17.
    Measured through the reference decoder, exactly; or through `runner`, which runs every prompt from its beginning for
    every place (guesses are of the decoder all the same).
    Raises BadRequest for unknown words, no pairs, or a model without such places.
    """
    check_what(what, source)
    check_guess(guess, what, steps, through=bool(route))
    if not pairs:
        raise BadRequest("expected pairs of prompts, got none; give --template and --fill, or --prompts FILE")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    by_slot = tuple(slots) or (every_slot(pairs) if what in ("resid", "attn", "mlp") else ())
    for slot in slots:
        canonical_slot(pairs, slot)  # a slot that some prompt lacks is refused before anything runs
    receivers = None if route is None else tuple(receiver(text, model.spec) for text in route)
    places = _places(model, what, by_slot, receivers)
    decoder = Decoder(model.weights, getattr(torch, dtype), model.device)
    check_runner(runner, places)
    check_reading(model, observable.output, pairs, at)
    sweeping = _Sweep(model, observable, decoder, runner, tuple(places), by_slot, receivers, what=what, source=source,
                      at=at, seed=seed, named=not slots, guess=guess, steps=steps)  # fmt: skip
    # Means and donors are over all prompts of a length, so these may not depend on how many run at once.
    each = list(batches(pairs, 32 if source in ("corrupt", "zero") else len(pairs)))
    parts = [sweeping.of(batch) for batch in each]
    found = Patched(
        places,
        [pair for batch in each for pair in batch.pairs],
        np.concatenate([p.effects for p in parts], axis=1),
        {name: np.concatenate([p.guesses[name] for p in parts], axis=1) for name in parts[0].guesses},
        np.concatenate([p.whole for p in parts]),
    )
    told = "" if route is None else " straight to the output" if not route else f" through {', '.join(route)} alone"
    table = patch_table(model, observable, found, Asked(what + told, source, at, seed, steps))
    return table if runner is None else measured_by(table, runner)


def _places(model: Model, what: str, by_slot: Sequence[str], receivers: Sequence[Place] | None) -> list[Place]:
    """The places of a kind; of those, where receivers are named, the ones that feed some of them."""
    found = places_of(model.spec, what, by_slot)
    if not receivers:
        return found
    found = [p for p in found if p not in receivers and any(feeds(model.spec, p, r) for r in receivers)]
    if not found:
        told = ", ".join(str(r).removesuffix("_post") for r in receivers)
        raise BadRequest(f"--to {told}: expected receivers behind some {what}, nothing feeds them")
    return found


@dataclass(frozen=True, eq=False)
class _Sweep:
    """A patch as it was asked for, to be laid over batches of prompts."""

    model: Model
    observable: Observable
    decoder: Decoder
    runner: Runner | None
    places: tuple[Place, ...]
    by_slot: tuple[str, ...]
    receivers: tuple[Place, ...] | None
    what: str
    source: str
    at: str
    seed: int
    named: bool
    guess: str
    steps: int

    def of(self, batch: Batch) -> Patched:
        """Effects and guesses at every place, of the pairs of one batch."""
        base, other = (captured(self.decoder, tokens) for tokens in (batch.clean, batch.corrupt))
        new = self._new(base, other)
        seen, beside, put = base, other, new
        if self.runner is not None:
            seen, beside = (captured(self.runner, tokens) for tokens in (batch.clean, batch.corrupt))
            put = self._new(seen, beside)
        positions = batch.at(self.at)
        clean, corrupt = (self._read(run, positions) for run in (seen, beside))
        masks = {slot: mask_of(batch, slot, named=self.named) for slot in self.by_slot}
        values = dict(sweep(self.runner or self.decoder, seen, put, self.places, masks, self.observable, positions,
                            route=self.receivers, inputs=as_inputs(batch.clean)))  # fmt: skip
        effects = np.stack([clean - values[place] for place in self.places])
        return Patched(self.places, batch.pairs, effects, self._guesses(base, new, masks, positions), clean - corrupt)

    def _new(self, base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return put_in(self.model.spec, self.what, self.source, base, other, self.seed)

    def _read(self, run: Mapping[str, np.ndarray], positions: np.ndarray) -> Float[np.ndarray, " batch"]:
        rows = run[f"out.{self.observable.output}"][np.arange(len(positions)), positions]
        return self.observable.of(rows.astype(np.float64))

    def _guesses(
        self,
        base: Mapping[str, np.ndarray],
        new: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray],
        positions: np.ndarray,
    ) -> dict[str, Float[np.ndarray, "place batch"]]:
        """First order, and the better guess where one was asked for."""
        model, observable, route = self.model, self.observable, self.receivers
        found = {"first_order": first_order(model, observable, base, new, self.places, masks, positions, route=route)}
        if self.guess == "integrated":
            along = dict(integrated(self.decoder, base, new, self.places, masks, observable, positions,
                                    steps=self.steps, direct=route is not None))  # fmt: skip
            found["integrated"] = np.stack([along[place] for place in self.places])
        elif self.guess == "softmax":
            found["softmax"] = exact_softmax(
                model, self.decoder, observable, base, new, self.places, masks, positions, route
            )
        return found


def measured_by(table: Table, runner: Runner) -> Table:
    """The table with another runner than the decoder named in its title and meta."""
    by = {"class": type(runner).__name__, "dtype": str(runner.dtype).removeprefix("torch.")}
    return dataclasses.replace(table, meta={**table.meta, "runner": by}, title=f"{table.title} · through transformers")


def check_runner(runner: Runner | None, places: Sequence[Place]) -> None:
    """Raise BadRequest for places that a runner only shows."""
    fixed = [] if runner is None else [place.hook for place in places if place.hook not in runner.changeable]
    if fixed:
        raise BadRequest(
            f"--runner transformers: expected a place that its modules let be replaced, {fixed[0]} is only shown; "
            "use --runner decoder"
        )
