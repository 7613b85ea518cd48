"""Vectors with prescribed readings: the smallest one, and the one that stays where activations lie.

Rows: features are the rows of F [m, d], a vector δ reads F δᵀ. Source: `docs/theory/steering.md`, equations 1–4;
theory page §4.6.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from covector.axes import Float
from covector.errors import BadRequest

# Features whose Gram matrix (of unit rows) is worse conditioned than this ask for contradicting things.
WORST = 1e10


def prescribed(
    F: Float[np.ndarray, "m d"], a: Float[np.ndarray, " m"], covariance: Float[np.ndarray, "d d"] | None = None
) -> Float[np.ndarray, " d"]:
    """The vector δ with F δᵀ = a: a (F Fᵀ)⁻¹ F, the shortest; with a covariance a (F Σ Fᵀ)⁻¹ F Σ, the likeliest.

    "Likeliest" is the smallest δ Σ⁻¹ δᵀ; Σ = identity gives the shortest. Exact to rounding times the condition of
    the Gram matrix (OP-29). Raises BadRequest for a zero feature or features that depend on one another.
    """
    scale = np.linalg.norm(F, axis=1)
    if len(F) == 0 or not np.all(scale > 0):
        raise BadRequest("expected features that are not zero, got none or a zero one: nothing there moves the task")
    unit = F / scale[:, None]
    moved = unit if covariance is None else unit @ covariance
    gram = moved @ unit.T
    size = np.sqrt(np.diag(gram))
    if not np.all(size > 0) or np.linalg.cond(gram / np.outer(size, size)) > WORST:
        raise BadRequest(
            f"expected {len(F)} independent features, got some that nearly agree: no vector moves one without the "
            "other; want fewer things, or prescribe proportional ones"
        )
    return np.linalg.solve(gram, a / scale) @ moved


def shrunk_covariance(X: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "d d"], float]:
    """(1 − s)·S + s·(tr S/d)·I of the rows of X, with s chosen by Ledoit and Wolf; and s.

    S divides by n. Source: Ledoit and Wolf, J. Multivariate Analysis 88 (2004). Raises BadRequest for fewer than two
    rows, or rows that do not vary.
    """
    if len(X) < 2:
        raise BadRequest(f"expected at least two rows to take a covariance of, got {len(X)}; give a longer text")
    X = X - X.mean(axis=0)
    n, d = X.shape
    S = X.T @ X / n
    mean = np.trace(S) / d
    if mean == 0:
        raise BadRequest("expected rows that vary, all are the same; give a longer text")
    spread = np.sum(S * S) - d * mean * mean
    noise = (np.sum(np.sum(X * X, axis=1) ** 2) / n - np.sum(S * S)) / n
    shrink = 1.0 if spread <= 0 else float(np.clip(noise / spread, 0.0, 1.0))
    return (1 - shrink) * S + shrink * mean * np.eye(d), shrink


def random_vectors(
    n: int, length: float, rng: np.random.Generator, covariance: Float[np.ndarray, "d d"] | None = None, d: int = 0
) -> Float[np.ndarray, "n d"]:
    """Gaussian vectors of a covariance (identity of size d without one), brought to a common length."""
    if covariance is not None:
        values, vectors = np.linalg.eigh(covariance)
        drawn = rng.standard_normal((n, len(values))) * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    else:
        drawn = rng.standard_normal((n, d))
    return length * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def clustered_interval(values: Float[np.ndarray, " n"], clusters: Sequence[str]) -> tuple[float, float, float]:
    """Mean over clusters of their means, and a 95 % interval by Student's t over clusters; NaN bounds for one.

    Prompts of one name are no independent samples: names are.
    """
    means = np.array([np.mean([v for v, c in zip(values, clusters, strict=True) if c == k])
                      for k in dict.fromkeys(clusters)])  # fmt: skip
    mean = float(means.mean())
    if len(means) < 2:
        return mean, float("nan"), float("nan")
    half = float(student.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    return mean, mean - half, mean + half


def first_miss(
    doses: Float[np.ndarray, " n"], effects: Float[np.ndarray, " n"], slope: float, off: float = 0.2
) -> float:
    """The smallest dose at which `slope`·dose misses the effect by more than `off` of the prediction.

    `doses` grow in size and have one sign; between two of them the relative error is taken as linear in the dose. NaN
    where none of them is missed, or the slope is 0; the first dose where that one is missed already.
    """
    if slope == 0 or len(doses) == 0:
        return float("nan")
    error = np.abs(effects / (slope * doses) - 1)
    over = np.flatnonzero(error > off)
    if len(over) == 0:
        return float("nan")
    i = int(over[0])
    if i == 0:
        return float(doses[0])
    return float(doses[i - 1] + (doses[i] - doses[i - 1]) * (off - error[i - 1]) / (error[i] - error[i - 1]))
