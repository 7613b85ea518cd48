"""Pairs of prompts run on the reference decoder, made into worlds: a linearised model per batch, secant stand-ins."""

from collections.abc import Sequence

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.search import World
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair, batches
from covector.study.observable import Observable


def worlds_of(
    model: Model,
    observable: Observable,
    pairs: Sequence[Pair],
    *,
    at: str = "end",
    policies: Policies | None = None,
    by_slot: bool = True,
) -> tuple[list[World], Float[np.ndarray, "n 2"]]:
    """A world per batch of pairs of equal length, and the observable measured on (clean, corrupt) of every pair.

    `at`: the slot at which the output is read. `by_slot` False takes all positions together. The pairs come in the
    order of their batches. Float64.
    """
    check_reading(model, observable.output, pairs, at)
    decoder = Decoder(model.weights, device=model.device)
    made, measured = [], []
    for batch in batches(pairs):
        runs = (captured(decoder, batch.clean), captured(decoder, batch.corrupt))
        positions, rows = batch.at(at), np.arange(len(batch.pairs))
        measured.append(np.stack([observable.of(r[f"out.{observable.output}"][rows, positions]) for r in runs], axis=1))
        linear = Linearised(model.weights, runs, policies or Policies.all("secant"))
        names = [[pair.slot_of(t) if by_slot else "*" for t in range(len(pair))] for pair in batch.pairs]
        made.append(World(linear, linear.start(observable.vector[None], observable.output, positions), names))
    return made, np.concatenate(measured)


def check_reading(model: Model, output: str, pairs: Sequence[Pair], at: str, option: str = "--at") -> None:
    """Raise BadRequest where an agent's output would be read at a position that it is not meant for.

    `option` is what says the position on a command line.
    """
    assembly = model.spec.assembly
    names = [source.name for source in assembly.inputs]
    meant = next((out.at for out in model.spec.outputs if out.name == output), "")
    if assembly.mode != "interleaved" or meant not in names:
        return
    for pair in pairs:
        stands = names[pair.position(at) % len(names)]
        if stands != meant:
            raise BadRequest(
                f"{option} {at}: expected a position where the output {output} is read, a {meant}, got {stands} "
                f"{pair.position(at) // len(names)}; give {option} {meant} for the last one"
            )
