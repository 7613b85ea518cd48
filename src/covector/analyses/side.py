"""One side of a decomposition read against a basis: the extreme labels of both poles, and what chance gives.

The score of a direction v and a vector e is their cosine; ζ = √d·cos is the same in standard deviations of a random
direction. Three questions are kept apart (`covector.linalg.chance.questions`): p_dir, p_cov, p_svd.

Source: `docs/theory/chance.md`, equations 1–5.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.norms import lengths as row_lengths
from covector.linalg.topk import poles
from covector.model.bases import Basis

SCORES = ("cosine", "raw")
# Rows of a decomposition depart from orthonormality by rounding: a few hundred times the 2e-16 of one product.
ALREADY_ORTHONORMAL = 1e-12


@dataclass(frozen=True)
class Exact:
    """Monte-Carlo instead of the closed upper bounds: how many draws, from which seed."""

    draws: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class SideReading:
    """What the directions of one side score against a basis; r directions, k labels per pole.

    ``best`` is the signed cosine of largest size, ``best_id`` its label. ``tau`` is the |cos| that a random direction
    exceeds with chance α; ``d`` the dimension the law uses. ``p_cov`` is None unless it was simulated.
    """

    basis: Basis
    d: int
    n: int
    tau: float
    top: Int[np.ndarray, "r k"]
    top_score: Float[np.ndarray, "r k"]
    bottom: Int[np.ndarray, "r k"]
    bottom_score: Float[np.ndarray, "r k"]
    best: Float[np.ndarray, " r"]
    best_id: Int[np.ndarray, " r"]
    p_dir: Float[np.ndarray, " r"]
    p_svd: Float[np.ndarray, " r"]
    p_cov: Float[np.ndarray, " r"] | None
    p_error: Float[np.ndarray, " r"] | None
    skew: Float[np.ndarray, " r"]
    rows: Float[np.ndarray, "r d"]

    def zeta_of(self, label: int) -> Float[np.ndarray, " r"]:
        """√d·cos of every direction with one label, compared as the lists are. Raises BadRequest for a null label."""
        if not self.basis.usable[label]:
            raise BadRequest(
                f"'{self.basis.labels[label]}' has no direction in {self.basis.name}: ask for another label"
            )
        vector = self.basis.vectors[label].astype(np.float64)
        return np.sqrt(self.d) * (self.rows @ vector) / self.basis.norms[label]

    @property
    def zeta(self) -> Float[np.ndarray, " r"]:
        """√d·cos of the best label: its distance from zero in standard deviations of a random direction."""
        return np.sqrt(self.d) * self.best


def read_side(
    directions: Float[np.ndarray, "r d"],
    subspace: Float[np.ndarray, "s d"] | None,
    basis: Basis,
    *,
    k: int,
    keep: Bool[np.ndarray, " token"],
    centred: bool,
    score: str = "cosine",
    alpha: float = 0.05,
    exact: Exact | None = None,
) -> SideReading:
    """Score unit directions (rows) against a basis.

    `subspace` are orthonormal rows spanning everything the map can read or write on this side (p_svd draws other
    bases of it); None says that it is the whole stream, where p_svd is not defined (NaN). `centred` says that the
    directions have no part along 1: pass vectors without one (`Bases.centred`), the laws use d − 1. Under a metric
    they use the dimension of its range. `keep` leaves labels out of the
    lists, and out of the count n. Scores are exact to float64; p values are upper bounds, or Monte-Carlo estimates
    with `exact`.
    """
    if score not in SCORES:
        raise BadRequest(f"expected score {' or '.join(SCORES)}, got '{score}'")
    kept = keep & basis.usable
    if not kept.any():
        raise BadRequest(f"basis {basis.name}: no vector is left after the filters; loosen them")
    rows, law = directions, _law(basis, centred)
    if basis.metric is not None:
        rows = _unit(rows @ basis.metric)
        subspace = None if subspace is None else orthonormal(subspace @ basis.metric)
    vectors, lengths = basis.vectors, basis.norms
    d = rows.shape[1] if law is None else law.shape[1]
    if subspace is not None and len(subspace) >= d:
        subspace = None
    by_cosine = poles(rows, vectors, k, keep=kept, lengths=lengths)
    lists = by_cosine if score == "cosine" else poles(rows, basis.vectors, k, keep=kept)
    higher = by_cosine.top_score[:, 0] >= -by_cosine.bottom_score[:, 0]
    best = np.where(higher, by_cosine.top_score[:, 0], by_cosine.bottom_score[:, 0])
    if not kept.all():
        vectors, lengths = vectors[kept], lengths[kept]
    cosines = _cosines(rows if subspace is None else subspace, vectors, lengths)
    p_dir, p_svd, p_cov, error = _chances(
        np.abs(best), vectors, lengths, None if subspace is None else cosines, d, law, exact
    )
    return SideReading(
        basis=basis,
        d=d,
        n=len(lengths),
        tau=float(chance.threshold(d, len(lengths), alpha)),
        top=lists.top,
        top_score=lists.top_score,
        bottom=lists.bottom,
        bottom_score=lists.bottom_score,
        best=best,
        best_id=np.where(higher, by_cosine.top[:, 0], by_cosine.bottom[:, 0]),
        p_dir=p_dir,
        p_svd=p_svd,
        p_cov=p_cov,
        p_error=error,
        skew=_skew(cosines if subspace is None else cosines @ (subspace @ rows.T).astype(cosines.dtype)),
        rows=rows,
    )


def orthonormal(rows: Float[np.ndarray, "s d"]) -> Float[np.ndarray, "r d"]:
    """Orthonormal rows with the same span, as many as the rows' numerical rank; these rows if they are so already."""
    if np.abs(rows @ rows.T - np.eye(len(rows))).max(initial=0.0) < ALREADY_ORTHONORMAL:
        return rows
    _, values, spanning = np.linalg.svd(rows, full_matrices=False)
    return spanning[values > max(rows.shape) * np.finfo(float).eps * values.max(initial=0.0)]


def _law(basis: Basis, centred: bool) -> Float[np.ndarray, "d_model d"] | None:
    """An orthonormal basis (columns) of the space that directions live in, or None when that is all of the stream.

    Centred directions have no part along 1; whitened ones lie in the range of the metric, which is smaller than the
    stream when the basis has fewer vectors than dimensions.
    """
    if basis.metric is not None:
        values, axes = np.linalg.eigh(basis.metric)
        keep = values > values[-1] * len(values) * np.finfo(float).eps
        return None if keep.all() else axes[:, keep]
    if not centred:
        return None
    d = basis.vectors.shape[1]
    return np.linalg.qr(np.concatenate([np.ones((d, 1)), np.eye(d)[:, : d - 1]], axis=1))[0][:, 1:]


def _chances(
    best: np.ndarray,
    vectors: np.ndarray,
    lengths: np.ndarray,
    projected: np.ndarray | None,
    d: int,
    law: np.ndarray | None,
    exact: Exact | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(p_dir, p_svd, p_cov, standard error of p_dir). `projected`: unit vectors' coordinates in the subspace."""
    within = np.full(best.shape, np.nan) if projected is None else _within(best, projected, d, exact)
    if exact is None:
        return np.atleast_1d(chance.p_dir(best, d, len(lengths))), within, None, None
    units = vectors / lengths[:, None].astype(vectors.dtype)
    units = units if law is None else units @ law.astype(units.dtype)  # draws live where the directions do
    direct = chance.p_dir_exact(best, units, draws=exact.draws, seed=exact.seed)
    covariance = chance.p_cov(best, units, draws=exact.draws, seed=exact.seed)
    return np.atleast_1d(direct.value), within, np.atleast_1d(covariance.value), np.atleast_1d(direct.error)


def _within(best: np.ndarray, projected: np.ndarray, d: int, exact: Exact | None) -> np.ndarray:
    """p_svd: the chance of a random basis of the same subspace."""
    norms = row_lengths(projected)
    reach = np.minimum(best, norms.max())  # float32 projections round; a direction cannot reach past its subspace
    if exact is None:
        return np.atleast_1d(chance.p_svd(reach, np.minimum(norms, 1.0), projected.shape[1], d))
    return np.atleast_1d(chance.p_svd_exact(reach, projected, d=d, draws=exact.draws, seed=exact.seed).value)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)


def _cosines(rows: np.ndarray, vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Cosines [n, r] of every vector with unit rows, in the vectors' precision; one product over the vocabulary."""
    made = vectors @ rows.T.astype(vectors.dtype)
    made /= lengths[:, None].astype(vectors.dtype)
    return made


def _skew(scores: np.ndarray) -> np.ndarray:
    """Σ_t z_t³ / n of the standardised cosines: which pole has the heavier tail. Orders poles on a screen, no more."""
    scores = scores - scores.mean(axis=0)
    spread = scores.std(axis=0)
    return np.mean(scores * scores * scores, axis=0) / np.where(spread > 0, spread, 1.0) ** 3
