"""The null draws of one basis: what random directions, and directions of the basis' own covariance, score on it.

They do not depend on any site, so they are drawn once per basis and serve every direction of the atlas.
"""

from collections.abc import Iterator

import numpy as np

from covector.atlas.judge import null_scores
from covector.atlas.plan import Against, Options, Unit, tensors_of
from covector.axes import Float
from covector.io.atlas_parts import Part
from covector.linalg.chance.haar import unit_rows
from covector.linalg.chance.laws import Haar, Law, Matched, root_of_moment
from covector.linalg.chance.streams import generator
from covector.linalg.norms import without_mean
from covector.linalg.topk import poles
from covector.model.bases import Basis
from covector.model.opened import Model

# Vectors per step of the second moment, and null directions at a time: 2048 of d = 4096 in float64 are 64 MB.
ROWS = 2048
# The streams of numbers that the laws are drawn from.
PURPOSES = {"haar": "directions", "cov": "matched"}


def draw_nulls(model: Model, unit: Unit, options: Options) -> Part:
    """The part of a null unit: the largest |cos| that each null direction reaches, sorted.

    ``haar`` are directions of the whole space (or of the hyperplane without 1), ``cov`` those with the second moment
    of the basis' unit vectors. The same seed gives the same draws.
    """
    against = unit.basis
    assert against is not None
    basis = against.of(model)
    arrays = {}
    for name in PURPOSES:
        rows = null_directions(model, against, name, options)
        arrays[f"{name}.max"] = np.sort(np.concatenate([_largest(basis, some) for some in rows]))
    arrays |= null_scores(model, against, options) if options.scores else {}
    return Part(unit.name, arrays, {"basis": str(against), "tensors": tensors_of(model, unit)})


def _largest(basis: Basis, rows: Float[np.ndarray, "r d"]) -> Float[np.ndarray, " r"]:
    """The largest |cos| of each row."""
    usable = basis.usable
    lengths = np.where(usable, basis.norms, 1.0)
    found = poles(rows, basis.vectors, 1, keep=None if usable.all() else usable, lengths=lengths)
    return np.maximum(found.top_score[:, 0], -found.bottom_score[:, 0])


def null_directions(model: Model, against: Against, name: str, options: Options) -> Iterator[Float[np.ndarray, "r d"]]:
    """Unit rows of a law (``haar``, ``cov``), `ROWS` at a time, of one stream."""
    law = _law(model, against, name)
    stream = generator(options.seed, PURPOSES[name])
    for start in range(0, options.draws, ROWS):
        rows = unit_rows(law.draw(stream, min(ROWS, options.draws - start), model.spec.d_model))
        yield unit_rows(without_mean(rows)) if name == "haar" and against.centred else rows


def _law(model: Model, against: Against, name: str) -> Law:
    if name == "haar":
        return Haar()
    return Matched(root_of_moment(second_moment(against.of(model))))


def second_moment(basis: Basis) -> Float[np.ndarray, "d d"]:
    """EᵀE/n of the unit vectors of a basis, float64 in Fortran order, without a copy of it."""
    usable = np.flatnonzero(basis.usable)
    total = np.zeros((basis.vectors.shape[1],) * 2, order="F")
    for start in range(0, len(usable), ROWS):
        at = usable[start : start + ROWS]
        rows = basis.vectors[at].astype(np.float64)
        rows /= basis.norms[at, None]
        total += (rows.T @ rows).T
    total /= len(usable)
    return total
