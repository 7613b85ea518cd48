"""Signals over many places, side by side: how far out each one's strongest value stands, how lopsided it is.

One column per signal, one row per place (tokens of a text). What one signal shows is compared with what others,
random ones, show over the same places.

Source: `docs/theory/fires.md`, equations 3–4.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest

# A signal that varies by less than this part of its size is constant up to the rounding of float32 (6e-8 a number).
FLAT = 1e-6


@dataclass(frozen=True, eq=False)
class Traces:
    """One number per signal: mean and sd (population), greatest |z|, skew (third moment of z), share of the + pole.

    z = (a − mean) / sd, 0 everywhere for a constant signal. `share` is the part of Σ a² that comes from a > 0
    (½ for a signal that is 0 everywhere).
    """

    mean: Float[np.ndarray, " r"]
    sd: Float[np.ndarray, " r"]
    peak: Float[np.ndarray, " r"]
    skew: Float[np.ndarray, " r"]
    share: Float[np.ndarray, " r"]


def traces(values: Float[np.ndarray, "n r"]) -> Traces:
    """The statistics of every column; float64, one column at a time, so that nothing of the size of `values` is made.

    Raises BadRequest if there are no places, or a value is not finite.
    """
    if not len(values):
        raise BadRequest("expected values at one place at least, got none")
    found = np.array([_trace(values[:, i]) for i in range(values.shape[1])])
    return Traces(*found.T)


def standardised(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """z of one signal, float64."""
    a = np.asarray(values, dtype=np.float64)
    if not np.isfinite(a).all():
        raise BadRequest("expected finite activations, got infinities or NaN; run the model in a wider dtype")
    mean, sd = a.mean(), a.std()
    return (a - mean) / sd if sd > FLAT * abs(mean) else np.zeros_like(a)


def _trace(values: np.ndarray) -> tuple[float, float, float, float, float]:
    a, z = np.asarray(values, dtype=np.float64), standardised(values)
    squares = a * a
    whole = squares.sum()
    share = squares[a > 0].sum() / whole if whole else 0.5
    return float(a.mean()), float(a.std()), float(np.abs(z).max()), float((z * z * z).mean()), float(share)


def level(null: Float[np.ndarray, " draws"], alpha: float = 0.05) -> float:
    """What a further draw from the same law exceeds with probability at most `alpha`, exactly k/(draws + 1).

    It is the k-th largest draw, k = ⌊alpha·(draws + 1)⌋. Raises BadRequest where that is 0: too few draws.
    """
    k = int(np.floor(alpha * (len(null) + 1) + 1e-9))
    if k < 1:
        raise BadRequest(
            f"expected {int(np.ceil(1 / alpha)) - 1} draws or more for a level of {alpha}, got {len(null)}"
        )
    return float(np.sort(null)[-k])


def histograms(values: Float[np.ndarray, "n r"], edges: Float[np.ndarray, " k"]) -> Float[np.ndarray, "r m"]:
    """How many places of each signal have their z between neighbouring edges; m = k − 1."""
    return np.array([np.histogram(standardised(values[:, i]), edges)[0] for i in range(values.shape[1])], dtype=float)
