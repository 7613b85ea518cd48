"""Tiny random checkpoints of any family, made from its own declaration: no transformers, no files."""

from collections.abc import Mapping

import numpy as np

from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.config import Config
from covector.arch.family import Family, families
from covector.arch.words import declared_shape, parse
from covector.io.tensors import ArrayTensors
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.weights import axis_sizes


def random_tensors(family: Family, seed: int = 0, **config: object) -> dict[str, np.ndarray]:
    """Stored tensors of the family's tiny config: float64, gains around 1, everything else with standard deviation 0.3.

    `config` overrides keys. An optional copy of a tied table is left out; of two spellings the first is made.
    """
    values = Config(dict(family.tiny()) | config)
    spec, rng = family.spec(values), np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    held: set[str] = set()
    for pattern, words in family.tensors(values).items():
        for layer in range(spec.n_layers) if "{i}" in pattern else (None,):
            first = pattern.split(" | ")[0]
            name = first if layer is None else first.replace("{i}", str(layer))
            layout = parse(words, default_role=name.rsplit(".", 1)[-1])
            if layout.ignored or (layout.optional and (spec.tied or set(layout.roles) & held)):
                continue
            held |= set(layout.roles) if layer is None else set()
            free = spec.n_ctx + spec.assembly.position_offset
            shape = [free if n is None else n for n in declared_shape(layout, axis_sizes(spec, layer))]
            mean = 1.0 if layout.roles[0].endswith("gain") else 0.0
            made[name] = mean + 0.3 * rng.standard_normal(shape)
    return made


def random_weights(name: str, seed: int = 0, **config: object) -> AdaptedWeights:
    """Canonical weights of a tiny random checkpoint of the family called `name`."""
    family = families()[name]
    values = Config(dict(family.tiny()) | config)
    source = ArrayTensors(random_tensors(family, seed, **config), where=f"random {name}")
    return adapt(family.spec(values), family.tensors(values), source, prefixes=family.prefixes)


def random_model(
    name: str, seed: int = 0, labels: Mapping[str, tuple[str, ...]] | None = None, **config: object
) -> Model:
    """An opened model of a tiny random checkpoint."""
    weights = random_weights(name, seed, **config)
    return Model(f"random-{name}", weights, weights, Frame(), labels or {})
