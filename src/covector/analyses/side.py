"""One side of a decomposition read against a basis: the extreme labels of both poles, and what chance gives.

The score of a direction v and a vector e is their cosine; ζ = √d·cos is the same in standard deviations of a random
direction. Three questions are kept apart (`covector.linalg.chance.questions`): p_dir, p_cov, p_svd.

Source: `docs/theory/chance.md`, equations 1–8.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.norms import without_mean
from covector.linalg.topk import poles
from covector.model.bases import Basis

SCORES = ("cosine", "raw")


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
    directions have no part along 1: vectors are centred too, and the laws use d − 1. `keep` leaves labels out of the
    lists, and out of the count n. Scores are exact to float64; p values are upper bounds, or Monte-Carlo estimates
    with `exact`.
    """
    if score not in SCORES:
        raise BadRequest(f"expected score {' or '.join(SCORES)}, got '{score}'")
    kept = keep & basis.usable
    if not kept.any():
        raise BadRequest(f"basis {basis.name}: no vector is left after the filters; loosen them")
    rows = directions
    if basis.metric is not None:
        rows = _unit(rows @ basis.metric)
        subspace = None if subspace is None else np.linalg.qr((subspace @ basis.metric).T)[0].T
    vectors, lengths = _compared(basis, centred)
    kept &= lengths > 0
    d = rows.shape[1] - centred
    by_cosine = poles(rows, vectors, k, keep=kept, lengths=lengths)
    lists = by_cosine if score == "cosine" else poles(rows, basis.vectors, k, keep=kept)
    higher = by_cosine.top_score[:, 0] >= -by_cosine.bottom_score[:, 0]
    best = np.where(higher, by_cosine.top_score[:, 0], by_cosine.bottom_score[:, 0])
    if not kept.all():
        vectors, lengths = vectors[kept], lengths[kept]
    cosines = _cosines(rows if subspace is None else subspace, vectors, lengths)
    p_dir, p_svd, p_cov, error = _chances(
        np.abs(best), vectors, lengths, None if subspace is None else cosines, d, exact
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
    )


def _compared(basis: Basis, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """The vectors that directions are compared with, and their lengths; no copy unless they must lose their mean."""
    if not centred:
        return basis.vectors, basis.norms
    rows = without_mean(basis.vectors)
    return rows, np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))


def _chances(
    best: np.ndarray,
    vectors: np.ndarray,
    lengths: np.ndarray,
    projected: np.ndarray | None,
    d: int,
    exact: Exact | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(p_dir, p_svd, p_cov, standard error of p_dir). `projected`: unit vectors' coordinates in the subspace."""
    within = np.full(best.shape, np.nan) if projected is None else _within(best, projected, d, exact)
    if exact is None:
        return np.atleast_1d(chance.p_dir(best, d, len(lengths))), within, None, None
    units = vectors / lengths[:, None].astype(vectors.dtype)
    direct = chance.p_dir_exact(best, units, draws=exact.draws, seed=exact.seed)
    covariance = chance.p_cov(best, units, draws=exact.draws, seed=exact.seed)
    return np.atleast_1d(direct.value), within, np.atleast_1d(covariance.value), np.atleast_1d(direct.error)


def _within(best: np.ndarray, projected: np.ndarray, d: int, exact: Exact | None) -> np.ndarray:
    """p_svd: the chance of a random basis of the same subspace."""
    norms = np.sqrt(np.einsum("nr,nr->n", projected, projected, dtype=np.float64))
    reach = np.minimum(best, norms.max())  # float32 projections round; a direction cannot reach past its subspace
    if exact is None:
        return np.atleast_1d(chance.p_svd(reach, np.minimum(norms, 1.0), projected.shape[1], d))
    return np.atleast_1d(chance.p_svd_exact(reach, projected, d=d, draws=exact.draws, seed=exact.seed).value)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)


def _cosines(rows: np.ndarray, vectors: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Cosines [n, r] of every vector with unit rows, in the vectors' precision; one product over the vocabulary."""
    return vectors @ rows.T.astype(vectors.dtype) / lengths[:, None].astype(vectors.dtype)


def _skew(scores: np.ndarray) -> np.ndarray:
    """Σ_t z_t³ / n of the standardised cosines: which pole has the heavier tail. Orders poles on a screen, no more."""
    scores = scores - scores.mean(axis=0)
    spread = scores.std(axis=0)
    return np.mean(scores**3, axis=0) / np.where(spread > 0, spread, 1.0) ** 3
