"""The null draws of one basis: what random directions, and directions of the basis' own covariance, score on it.

They do not depend on any site, so they are drawn once per basis and serve every direction of the atlas.
"""

import numpy as np

from covector.atlas.judge import null_scores
from covector.atlas.plan import Against, Options, Unit, tensors_of
from covector.axes import Float
from covector.io.atlas_parts import Part
from covector.linalg.chance.haar import haar_directions
from covector.linalg.chance.laws import matched_directions
from covector.linalg.norms import without_mean
from covector.linalg.topk import poles
from covector.model.bases import Basis
from covector.model.opened import Model

# Vectors per step of the second moment: 8192 of d = 1024 in float64 are 64 MB.
ROWS = 8192


def draw_nulls(model: Model, unit: Unit, options: Options) -> Part:
    """The part of a null unit: the largest |cos| that each null direction reaches, sorted.

    ``haar`` are directions of the whole space (or of the hyperplane without 1), ``cov`` those with the second moment
    of the basis' unit vectors. The same seed gives the same draws.
    """
    against = unit.basis
    assert against is not None
    basis = against.of(model)
    arrays = {}
    for law, rows in null_directions(model, against, options).items():
        usable = basis.usable
        found = poles(rows, basis.vectors, 1, keep=None if usable.all() else usable, lengths=_lengths(basis))
        arrays[f"{law}.max"] = np.sort(np.maximum(found.top_score[:, 0], -found.bottom_score[:, 0]))
    arrays |= null_scores(model, against, options) if options.scores else {}
    return Part(unit.name, arrays, {"basis": str(against), "tensors": tensors_of(model, unit)})


def null_directions(model: Model, against: Against, options: Options) -> dict[str, Float[np.ndarray, "draws d"]]:
    """Unit rows of each law."""
    haar = haar_directions(options.draws, model.spec.d_model, options.seed)
    if against.centred:
        haar = without_mean(haar)
        haar /= np.linalg.norm(haar, axis=1, keepdims=True)
    return {"haar": haar, "cov": matched_directions(second_moment(against.of(model)), options.draws, options.seed)}


def second_moment(basis: Basis) -> Float[np.ndarray, "d d"]:
    """EᵀE/n of the unit vectors of a basis, float64, without a copy of it."""
    usable = np.flatnonzero(basis.usable)
    total = np.zeros((basis.vectors.shape[1],) * 2)
    for start in range(0, len(usable), ROWS):
        at = usable[start : start + ROWS]
        rows = basis.vectors[at].astype(np.float64) / basis.norms[at, None]
        total += rows.T @ rows
    return total / len(usable)


def _lengths(basis: Basis) -> np.ndarray:
    return np.where(basis.usable, basis.norms, 1.0)
