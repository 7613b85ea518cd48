"""Sizes and shapes of a spectrum: norms, ways to count its dimensions, its power law. On singular values alone.

Four counts of "how many dimensions" weigh the tail differently. For k equal values all of them are k; otherwise
stable rank ≤ participation ≤ effective rank ≤ k, from the one that a single large value rules to the one that sees
the whole tail.

Source: `docs/theory/spectra.md`, equations 1–3 and 11.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest

# Fewer values than this have no power law worth fitting; the threshold of WeightWatcher (`min_evals`).
FEWEST_FOR_POWER_LAW = 50


@dataclass(frozen=True)
class Sizes:
    """Norms of a map, in the map's units, and counts of its dimensions, unitless.

    spectral, frobenius, nuclear   σ₁, √Σσ², Σσ
    stable          Σσ²/σ₁²
    participation   (Σσ²)²/Σσ⁴
    effective       exp of the entropy of σ²/Σσ²
    condition       σ₁/σ_k, k the last value given
    """

    spectral: float
    frobenius: float
    nuclear: float
    stable: float
    participation: float
    effective: float
    condition: float


@dataclass(frozen=True)
class PowerLaw:
    """A power law λ^−α fitted to the tail λ ≥ x_min of the squared singular values.

    `distance` is the Kolmogorov–Smirnov distance of the tail to the law, `tail` how many values it has, `error` the
    standard error of α, (α − 1)/√tail. A small distance does not say that the law is one.
    """

    alpha: float
    x_min: float
    distance: float
    tail: int
    error: float


def sizes(S: Float[np.ndarray, " r"]) -> Sizes:
    """Norms and dimension counts of a map with singular values `S`, largest first, cut at numerical rank.

    Exact to rounding. A map of zeros (no values) has norms 0 and counts NaN.
    Raises BadRequest for values that are negative, not finite, or not falling.
    Source: `docs/theory/spectra.md`, equations 1–3.
    """
    check_spectrum(S)
    S = S[S > 0]
    if not S.size:
        return Sizes(0.0, 0.0, 0.0, *(float("nan"),) * 4)
    top = float(S[0])
    stable, participation, effective = (float(count[0]) for count in counts(S[None]))
    return Sizes(
        spectral=top,
        frobenius=top * float(np.linalg.norm(S / top)),
        nuclear=float(S.sum()),
        stable=stable,
        participation=participation,
        effective=effective,
        condition=top / float(S[-1]),
    )


def counts(
    spectra: Float[np.ndarray, "n r"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(stable rank, participation, effective rank) of several spectra at once, none of them all zero.

    Source: `docs/theory/spectra.md`, equations 2 and 3.
    """
    power = (spectra / spectra.max(axis=1, keepdims=True)) ** 2  # scaled: squares neither over- nor underflow
    total = power.sum(axis=1)
    share = power / total[:, None]
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1)
    return total, total**2 / np.sum(power**2, axis=1), np.exp(entropy)


def power_law(S: Float[np.ndarray, " r"]) -> PowerLaw | None:
    """The power law of the squared singular values' upper tail; None for fewer than 50 values above zero.

    α by maximum likelihood, 1 + n/Σ ln(λᵢ/x_min), with x_min the value (all but the largest are tried) at which the
    Kolmogorov–Smirnov distance of the tail to its own law is least; tails with α ≤ 1 do not count. This is the fit of
    WeightWatcher. It costs r² operations. α does not change with the scale of the map.
    Raises BadRequest as `sizes` does. Source: `docs/theory/spectra.md`, equation 11.
    """
    check_spectrum(S)
    rising = S[S > 0][::-1]
    if rising.size < FEWEST_FOR_POWER_LAW:
        return None
    logs = 2 * np.log(rising)
    n = rising.size - np.arange(rising.size - 1)
    excess = np.cumsum(logs[::-1])[::-1][:-1] - n * logs[:-1]
    # Equal values (an orthogonal map) have no tail at all: rounding alone decides the sign of their excess.
    found = excess > n * 1e-12
    if not found.any():
        return None
    alpha = 1 + n / np.where(found, excess, np.inf)
    distance = np.array([_distance(logs[i:], a) if a > 1 else 1.0 for i, a in enumerate(alpha.tolist())])
    best = int(np.argmin(distance))
    return PowerLaw(
        alpha=float(alpha[best]),
        x_min=float(rising[best] ** 2),
        distance=float(distance[best]),
        tail=int(n[best]),
        error=float((alpha[best] - 1) / np.sqrt(n[best])),
    )


def check_spectrum(S: Float[np.ndarray, " r"]) -> None:
    """Raise BadRequest unless the values are finite, >= 0 and falling."""
    if not np.all(np.isfinite(S)) or (S.size and (S.min() < 0 or np.any(np.diff(S) > 0))):
        raise BadRequest(
            f"expected singular values, finite, >= 0, largest first, came {S.size} values from {S[:1]} to {S[-1:]}; "
            "sort them falling"
        )


def _distance(logs: Float[np.ndarray, " r"], alpha: float) -> float:
    """Kolmogorov–Smirnov distance, from below each point, of a rising tail to the law that begins at its first."""
    law = -np.expm1(-(alpha - 1) * (logs - logs[0]))
    return float(np.abs(law - np.arange(logs.size) / logs.size).max())
