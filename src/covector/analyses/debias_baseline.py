"""The published way to a debiasing vector: heads whose features of the two tasks couple most negatively, and trial.

For every head, and every head read through a later one, the coupling C(bias → kept) of the two data-free features;
the bias' feature at the most negative ones is the vector, its token and size are found by trying.
Source: theory page §1.7 (debiasing search), §2.9; `docs/theory/observables.md`, equation 12.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.propagate import DATA_FREE
from covector.axes import Float
from covector.errors import CovectorError
from covector.model.opened import Model
from covector.propagation.entry import STREAMS, Spot, spot_of
from covector.propagation.linearised import Functional, Linearised
from covector.study.observable import Observable

# Virtual heads are all ordered pairs; beyond so many heads only the heads themselves are looked at (time, memory).
MOST_HEADS = 400


@dataclass(frozen=True, eq=False)
class Candidate:
    """A path whose features of both tasks couple, the bias' feature there, and where the stream is read."""

    path: str
    coupling: float
    feature: Float[np.ndarray, " d_model"]
    spot: Spot


def candidates(
    model: Model, bias: Sequence[Observable], keep: Sequence[Observable], most: int
) -> tuple[list[Candidate], int]:
    """(the `most` paths of most negative coupling, how many were looked at): heads and pairs of heads, no data.

    The tasks are the means of the observables. Only negative couplings are returned.
    """
    linear = Linearised(model.weights, (), DATA_FREE)
    G = np.concatenate([_mean(linear, side) for side in (bias, keep)])
    found: list[Candidate] = []
    looked = 0
    n_heads = sum(c.attn.n_heads for c in linear.components if c.attn)
    for path, spot, f in _heads(model, linear, G, linear.end, ""):
        found.append(_candidate(path, spot, f))
        looked += 1
        if n_heads <= MOST_HEADS:
            deeper = [_candidate(*more) for more in _heads(model, linear, f[:, None], spot.state, f">{path}")]
            looked += len(deeper)
            found += deeper
        found = sorted(found, key=lambda c: c.coupling)[:most]
    return [c for c in found if c.coupling < 0], looked


def _mean(linear: Linearised, observables: Sequence[Observable]) -> Functional:
    each = [linear.unread(o.vector[None], o.output)[1] for o in observables]
    return np.mean(each, axis=0)


def _heads(
    model: Model, linear: Linearised, G: Functional, state: int, behind: str
) -> Iterator[tuple[str, Spot, Float[np.ndarray, "two d_model"]]]:
    """Both tasks' features before the norm of every head that writes into a state."""
    for c in reversed([c for c in linear.components if c.writes <= state]):
        for s in range(state, c.writes, -1):
            G = linear.before(G, s)
        state = c.writes
        if c.attn:
            F = linear.read(linear.through_each_head(linear.out(linear.before(G, c.writes), c), c), c)
            spot = stream_at(model, c.layer, c.reads)
            for h in range(c.attn.n_heads):
                yield f"L{c.layer}H{h}{behind}", spot, F[:, h, 0]


def stream_at(model: Model, layer: int, state: int) -> Spot:
    """The place in a block where the stream is in this state."""
    for role in STREAMS:
        try:
            spot = spot_of(f"L{layer}.{role}", model.spec)
        except CovectorError:
            continue
        if spot.state == state:
            return spot
    raise AssertionError(f"block {layer} does not read state {state}")


def _candidate(path: str, spot: Spot, f: Float[np.ndarray, "two d_model"]) -> Candidate:
    size = float(f[0] @ f[0])
    coupling = float(f[0] @ f[1]) / size if size else 0.0
    return Candidate(f"{path}>out", coupling, f[0], spot)
