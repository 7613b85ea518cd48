"""Closed forms for the singular values of one large Gaussian matrix: Marchenko–Pastur in bulk, Tracy–Widom at the edge.

An n × m matrix of independent N(0, s²) entries, p = min(n, m), q = max(n, m), has σ²/(q s²) spread by the
Marchenko–Pastur law of ratio y = p/q on [(1 − √y)², (1 + √y)²], and its largest by Tracy–Widom's law with β = 1, which
lies around the upper edge. A *product* of two Gaussian matrices has neither law; see `random_matrix`.

Source: `docs/theory/spectra.md`, equations 5–7; Marchenko and Pastur 1967; Johnstone 2001 and Ma 2012 for centring and
scale; Ferrari and Spohn 2005 and Bornemann 2010 for the determinant of the Tracy–Widom law.
"""

import numpy as np
from scipy.special import airy, roots_legendre

from covector.axes import Float
from covector.errors import BadRequest

# Nodes of the Tracy–Widom determinant: 40 over 16 units leave an error of 1e-13 (measured against 80).
_TW_NODES, _TW_REACH = 40, 16.0
# Between these lie all quantiles from 1e-15 to 1 − 1e-7.
_TW_RANGE = (-9.0, 7.0)
# Shape, scale and shift of the gamma law with the first three moments of Tracy–Widom's (Chiani 2014).
_GAMMA, _GAMMA_SHIFT = (46.446, 0.186054), 9.84801
# Halvings of an interval in which a quantile is sought: 2⁻⁵⁰ of it is left.
_HALVINGS = 50


def mp_edges(n: int, m: int) -> tuple[float, float]:
    """Smallest and largest singular value of a large n × m matrix of unit-variance entries: √q ∓ √p.

    Exact in the limit of large sizes; the largest of a finite matrix lies within about p^(−1/6) of the upper.
    Raises BadRequest for sizes below 1. Source: `docs/theory/spectra.md`, equation 5.
    """
    p, q = _sizes(n, m)
    return float(np.sqrt(q) - np.sqrt(p)), float(np.sqrt(q) + np.sqrt(p))


def mp_cdf(sigma: Float[np.ndarray, " r"], n: int, m: int) -> Float[np.ndarray, " r"]:
    """Share of the min(n, m) singular values of a large n × m matrix of unit-variance entries that lie below `sigma`.

    Exact for the limit law. Source: `docs/theory/spectra.md`, equation 6.
    """
    p, q = _sizes(n, m)
    y = p / q
    cosine = (1 + y - np.asarray(sigma, dtype=np.float64) ** 2 / q) / (2 * np.sqrt(y))
    return _below(np.arccos(np.clip(cosine, -1.0, 1.0)), y)


def mp_quantiles(share: Float[np.ndarray, " r"], n: int, m: int) -> Float[np.ndarray, " r"]:
    """Singular values below which lie these shares (0 … 1) of a large n × m matrix of unit-variance entries.

    Exact for the limit law to 1e-12 of the largest. Raises BadRequest for shares outside [0, 1].
    """
    p, q = _sizes(n, m)
    share = np.asarray(share, dtype=np.float64)
    if np.any((share < 0) | (share > 1)):
        raise BadRequest(f"shares of a spectrum lie in [0, 1], came {share.min()} to {share.max()}")
    y = p / q
    low, high = np.zeros_like(share), np.full_like(share, np.pi)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_below = _below(middle, y) < share
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return np.sqrt(q * np.maximum(1 + y - 2 * np.sqrt(y) * np.cos((low + high) / 2), 0.0))


def tw_level(share: float, n: int, m: int) -> float:
    """The value that the largest singular value of an n × m Gaussian matrix of unit variance stays below with `share`.

    Tracy–Widom's law at Ma's centring and scale, whose error is of order p^(−2/3) of a width: against simulation the
    95 % level is right to 0.2 % from p = 16 on. Raises BadRequest unless 0 < share < 1.
    Source: `docs/theory/spectra.md`, equation 7.
    """
    p, q = _sizes(n, m)
    roots = np.sqrt(q - 0.5), np.sqrt(p - 0.5)
    width = sum(roots) * (1 / roots[0] + 1 / roots[1]) ** (1 / 3)
    return float(np.sqrt(max(sum(roots) ** 2 + width * tracy_widom_quantile(share), 0.0)))


def tracy_widom_cdf(s: float) -> float:
    """F₁(s), the Tracy–Widom distribution function for β = 1, right to 1e-12.

    The Fredholm determinant of 1 − Ai(s + x + y) over x, y > 0, by Gauss–Legendre nodes.
    """
    nodes, weights = roots_legendre(_TW_NODES)
    reach = max(_TW_REACH - s, _TW_REACH) / 2
    x, root = reach * (nodes + 1), np.sqrt(reach * weights)
    kernel = airy(s + x[:, None] + x)[0]
    return float(np.linalg.det(np.eye(_TW_NODES) - root[:, None] * kernel * root))


def tracy_widom_quantile(share: float) -> float:
    """The s with F₁(s) = share, for shares from 1e-15 to 1 − 1e-7. Raises BadRequest outside 0 < share < 1."""
    if not 0 < share < 1:
        raise BadRequest(f"a quantile's share lies between 0 and 1, came {share}; 0.95 is the usual one")
    low, high = _TW_RANGE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if tracy_widom_cdf(middle) < share else (low, middle)
    return (low + high) / 2


def tracy_widom_draws(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Draws of the Tracy–Widom law by Chiani's shifted gamma, whose distribution function is within 1e-3 of F₁."""
    return rng.gamma(*_GAMMA, size=shape) - _GAMMA_SHIFT


def _below(theta: Float[np.ndarray, "..."], y: float) -> Float[np.ndarray, "..."]:
    """The law at λ = 1 + y − 2√y cos θ: [(1+y)θ + 2√y sin θ − 2(1−y) arctan((1+√y)/(1−√y) tan(θ/2))] / 2πy."""
    root = np.sqrt(y)
    turn = np.arctan2((1 + root) * np.sin(theta / 2), (1 - root) * np.cos(theta / 2))
    return ((1 + y) * theta + 2 * root * np.sin(theta) - 2 * (1 - y) * turn) / (2 * np.pi * y)


def _sizes(n: int, m: int) -> tuple[int, int]:
    if min(n, m) < 1:
        raise BadRequest(f"a random matrix has at least one row and one column, came {n} × {m}")
    return min(n, m), max(n, m)
