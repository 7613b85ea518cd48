"""The laws a null direction can follow: Haar, or Gaussian of a given covariance brought to unit length.

The second asks more: "is this more than the principal structure of the basis?". Its covariance is the second moment
EᵀE/n of exactly those vectors that are scored, with no centring of its own. Reason: the common mean of unembedding
rows is part of their structure, so if scores are taken with uncentred rows, the null must reach along that mean too (a
centred covariance has nothing there and would call the mean itself a discovery); a caller who scores centred rows
passes them, and the second moment of those is the covariance.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.chance.haar import unit_rows
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.lapack import scipy_linalg
from covector.linalg.norms import without_mean

# Rows of a dictionary per step of the Gram sum: 8192 rows of 768 in float64 are 50 MB.
GRAM_ROWS = 8192

# A covariance may be this far from symmetric or positive, relative to its largest entry (it is often a float32 sum).
COVARIANCE_SLACK = 1e-5


@dataclass(frozen=True)
class Haar:
    """Every direction of the space alike."""

    def draw(self, rng: np.random.Generator, count: int, d: int) -> Float[np.ndarray, "draws d"]:
        """`count` rows whose directions follow the law; lengths are not 1."""
        return rng.standard_normal((count, d))


@dataclass(frozen=True, eq=False)
class Matched:
    """Directions v ∝ g·root with Gaussian g: covariance rootᵀ·root before normalising.

    With an orthonormal basis as root this is Haar inside the subspace that the basis spans.
    """

    root: Float[np.ndarray, "m d"]

    def draw(self, rng: np.random.Generator, count: int, d: int) -> Float[np.ndarray, "draws d"]:
        """`count` rows whose directions follow the law; lengths are not 1. Raises SpaceMismatch if d differs."""
        if self.root.shape[1] != d:
            raise SpaceMismatch(f"the law lives in {self.root.shape[1]} dimensions, the vectors in {d}; match them")
        return rng.standard_normal((count, len(self.root))) @ self.root


@dataclass(frozen=True)
class Hyperplane:
    """Every direction without a part along 1 alike: what a LayerNorm reads or a centred matrix writes."""

    def draw(self, rng: np.random.Generator, count: int, d: int) -> Float[np.ndarray, "draws d"]:
        """`count` rows whose directions follow the law; lengths are not 1."""
        return without_mean(rng.standard_normal((count, d)))


Law = Haar | Matched | Hyperplane


def covariance_root(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "m d"]:
    """A root of the second moment of the rows: rootᵀ·root = EᵀE/n, float64, m = min(n, d) rows.

    Not centred (the head of this file says why). Exact to rounding; directions whose variance is below 1e-16 of the
    largest are lost. Costs one Gram matrix and one d × d eigh when n > d, nothing otherwise.
    Raises BadRequest if the rows are all null or hold values that are not finite.
    """
    n, d = vectors.shape
    if n == 0 or not np.any(vectors) or not np.all(np.isfinite(vectors)):
        raise BadRequest(
            f"a basis needs finite vectors that are not all null, got shape {vectors.shape}; drop bad rows"
        )
    if n <= d:
        return np.asarray(vectors, dtype=np.float64) / np.sqrt(n)
    gram = np.zeros((d, d))
    for start in range(0, n, GRAM_ROWS):
        rows = np.asarray(vectors[start : start + GRAM_ROWS], dtype=np.float64)
        gram += rows.T @ rows
    return _root(gram / n)


def root_of_moment(moment: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """A root of a symmetric second moment, rootᵀ·root = moment. Destroys `moment` if it is in Fortran order.

    LAPACK works where the moment lies: it is the largest array here, and its work space is two more. Negative
    eigenvalues count as the rounding that they are.
    """
    values, columns = scipy_linalg().eigh(moment, overwrite_a=True, check_finite=False, driver="evd")
    columns *= np.sqrt(np.maximum(values, 0.0))
    return columns.T


def matched_directions(covariance: Float[np.ndarray, "d d"], n: int, seed: Seed) -> Float[np.ndarray, "n d"]:
    """n independent unit directions v ∝ Σ^½ g: controls that follow a given covariance, of activations for example.

    Returns unit rows, float64. `covariance` must be symmetric and positive semidefinite up to float32 rounding;
    raises BadRequest otherwise, or if it is null.
    """
    sigma = np.asarray(covariance, dtype=np.float64)
    scale = np.abs(sigma).max()
    if n < 1 or not scale > 0 or not np.isfinite(scale):
        raise BadRequest(f"expected n >= 1 and a finite covariance that is not null, got n = {n}, largest {scale:g}")
    skew = np.abs(sigma - sigma.T).max()
    if skew > COVARIANCE_SLACK * scale:
        raise BadRequest(f"a covariance is symmetric, this one differs from its transpose by {skew:.2g}; pass XᵀX/n")
    return unit_rows(Matched(_root(sigma)).draw(generator(seed, "matched"), n, len(sigma)))


def _root(sigma: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    values, columns = np.linalg.eigh((sigma + sigma.T) / 2)
    if values[0] < -COVARIANCE_SLACK * values[-1]:
        raise BadRequest(f"a covariance has no negative variance, the least is {values[0]:.2g}; pass XᵀX/n")
    return np.sqrt(np.maximum(values, 0.0))[:, None] * columns.T
