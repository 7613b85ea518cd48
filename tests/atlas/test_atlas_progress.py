"""What share of the work is said to be done: what units cost, and those that are under way."""

import numpy as np
import pytest

from covector.arch.adapter import adapt
from covector.arch.config import Config
from covector.arch.family import families
from covector.arch.words import declared_shape, parse
from covector.atlas import build as builder
from covector.atlas.plan import Options, Unit, units
from covector.io.tensors import ArrayTensors
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.weights import axis_sizes


def shaped(**config: int | None) -> Model:
    """A GPT-2 of these sizes without its values; its attention is one stored tensor a layer."""
    family = families()["gpt2"]
    tensors = family.tensors(values := Config({**family.tiny(), **config}))
    spec, arrays = family.spec(values), {}
    for pattern, words in tensors.items():
        layout = parse(words, default_role="")
        for layer in range(spec.n_layers) if "{i}" in pattern else (None,):
            name = pattern.split(" | ")[0].replace("{i}", str(layer))
            sizes = axis_sizes(spec, layer, layout.roles) | {"position": spec.n_ctx}
            shape = declared_shape(layout, sizes)
            arrays[name] = np.broadcast_to(np.ones((), "float16"), shape)
    weights = adapt(spec, tensors, ArrayTensors(arrays), prefixes=family.prefixes)
    return Model("shapes", weights, weights, Frame())


def told(costs: list[float], workers: int) -> list[tuple[float, float]]:
    """Units that take exactly what they cost, on equally fast workers: (time, time left as the share tells it)."""
    some = [Unit(str(i), cost=cost) for i, cost in enumerate(costs)]
    shares: list[float] = []
    pace = builder._Pace(some, some, workers, lambda done, of, share, name: shares.append(share))
    free, ends = [0.0] * workers, list[tuple[float, Unit]]()
    for unit in some:
        at = min(range(workers), key=free.__getitem__)
        free[at] += unit.cost
        ends.append((free[at], unit))
    ends.sort(key=lambda end: end[0])
    for _, unit in ends:
        pace.done(unit)
    assert shares[0] == 0
    assert shares[-1] == 1
    return [(time, time / share * (1 - share)) for (time, _), share in zip(ends, shares[1:], strict=True)]


@pytest.mark.parametrize(
    ("costs", "workers"),
    [
        ([42.0] + [2.0] * 14, 2),  # the null draws beside fourteen units, which end first
        ([42.0] + [2.0] * 30, 2),
        ([1.0] * 20, 3),
        ([9.0, 1.0, 1.0, 7.0, 2.0, 2.0, 5.0], 1),
        ([1.0, 2.0, 3.0, 4.0], 8),
    ],
)
def test_the_time_left_is_that_of_the_worker_who_ends_last(costs, workers):
    """To a tenth of a unit: one that has not come back is not thought to be done."""
    found = told(costs, workers)
    for time, left in found:
        assert left == pytest.approx(found[-1][0] - time, abs=0.1 * max(costs) + 1e-9)


def test_what_was_there_before_does_not_count_as_quick():
    """A run that goes on: half was there, so the time left is reckoned from the other half alone."""
    some = [Unit(str(i), cost=1.0) for i in range(8)]
    shares: list[float] = []
    pace = builder._Pace(some, some[4:], 1, lambda done, of, share, name: shares.append(share))
    pace.done(some[4])
    assert shares == pytest.approx([0.5, 0.625])


# Seconds on one core, measured: (widths, dyads kept, draws, judged) → of a unit.
LAYER = {"n_embd": 1024, "n_layer": 1, "n_head": 16, "n_inner": 4096, "vocab_size": 50257, "n_positions": 64}
SMALL = {"n_embd": 128, "n_layer": 1, "n_head": 4, "n_inner": 512, "vocab_size": 1910, "n_positions": 64}
MEASURED = [
    (LAYER, Options(draws=10_000), {"null.token_in": 86.5, "L0.ov+L0.qk": 29.9, "L0.mlp.in": 5.1, "L0.mlp.out": 5.4}),
    (LAYER, Options(draws=2000, scores=False), {"null.token_in": 7.5, "L0.ov+L0.qk": 6.6, "L0.mlp.in": 1.8}),
    (LAYER, Options(rank=32, draws=2000), {"null.token_in": 19.3, "L0.ov+L0.qk": 24.2, "L0.mlp.in": 1.3, "embed": 9.5}),
    (SMALL, Options(draws=10_000), {"null.token_in": 4.6, "L0.ov+L0.qk": 0.3, "L0.mlp.in": 0.045}),
    (SMALL, Options(draws=10_000, scores=False), {"null.token_in": 1.1, "L0.ov+L0.qk": 0.06}),
    (SMALL, Options(rank=8, draws=2000), {"null.token_in": 0.92, "L0.ov+L0.qk": 0.25}),
]


@pytest.mark.parametrize("at", range(len(MEASURED)))
def test_what_units_are_said_to_cost_is_what_they_were_measured_to_take(at):
    sizes, options, seconds = MEASURED[at]
    seconds_of = {unit.name: unit.cost for unit in units(shaped(**sizes), options)}
    for name, took in seconds.items():
        within = 1.3 if sizes is LAYER else 2.0  # small units are made of what is not counted
        assert took / within < seconds_of[name] < within * took, name
