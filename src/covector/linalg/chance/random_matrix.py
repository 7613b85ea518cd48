"""Spectra of random maps: what singular values a matrix, or a product of two, has when nothing was learned.

The null of one matrix is a Gaussian matrix of its shape; the null of a product A·B kept in factors (OV, QK) is the
product of two independent Gaussian factors, whose law is *not* Marchenko–Pastur. Both are simulated from small matrices
that have exactly the same singular values in law, so a draw costs r³ (product of inner size r) or p² (one matrix), and
no d × d matrix is ever made.

A null has unit-variance entries. What a trained map is compared with is the null at some scale, and there are two:
`norm_band` is of noise of the same Frobenius norm, `bulk_scale` gives noise with the same median singular value, which
is the noise that a spectrum with a few large values stands on. Both are found from S alone, the same way in the map
and in every draw, so every statistic here is free of the scale and its null is that of the shape.

Source: `docs/theory/spectra.md`, equations 4–14; Dumitriu and Edelman 2002 for the bidiagonal model.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from scipy.special import ndtri

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.estimate import Estimate, monte_carlo_p
from covector.linalg.chance.marchenko_pastur import mp_edges, mp_quantiles
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.spectra import check_spectrum, counts

# Draws per generator. Fixed, so that a longer null begins with the shorter one.
BLOCK = 64

# Matrices up to this short side are drawn whole (1 ms each at 256). Above, the values below the topmost few are set to
# the Marchenko–Pastur quantiles (the median lies within 0.3 % of its own, the smallest may be tens of per cent off
# where the matrix is nearly square: nothing here reads them); the topmost are drawn from the corner of the
# bidiagonal model that holds their vectors, p^(1/3) rows times a constant.
WHOLE = 256
TOP, CORNER = 12, 30.0


@dataclass(frozen=True, eq=False)
class SpectrumNull:
    """Singular values of random maps of one shape, entries (of each factor) of variance 1.

    shape    (n, m), `inner` the size between two factors, None for one matrix
    values   [draws, k], falling in each row; k = min(n, m, inner)
    """

    shape: tuple[int, int]
    inner: int | None
    values: Float[np.ndarray, "draws r"]

    def __post_init__(self) -> None:
        self.values.flags.writeable = False

    @property
    def rank(self) -> int:
        """How many singular values a map of this shape has."""
        return self.values.shape[1]

    @property
    def draws(self) -> int:
        """How many random maps were drawn."""
        return self.values.shape[0]

    @cached_property
    def medians(self) -> Float[np.ndarray, " draws"]:
        """The median singular value of each draw."""
        return np.median(self.values, axis=1)

    @cached_property
    def largest_over_median(self) -> Float[np.ndarray, " draws"]:
        """σ₁ of each draw over its median singular value, free of scale."""
        return self.values[:, 0] / self.medians

    @cached_property
    def largest_over_norm(self) -> Float[np.ndarray, " draws"]:
        """σ₁ of each draw over its Frobenius norm, free of scale."""
        return self.values[:, 0] / np.linalg.norm(self.values, axis=1)

    @cached_property
    def counts(self) -> tuple[Float[np.ndarray, " draws"], ...]:
        """Stable rank, participation and effective rank of each draw."""
        return counts(self.values)


@dataclass(frozen=True)
class Spikes:
    """Singular values above what noise with the same median reaches.

    count   how many exceed `edge`
    edge    the level that the largest value of such noise stays below with `1 − level`, in the map's units
    bulk    where that noise ends in the mean, in the map's units
    p       chance that the largest of such noise is as far above its median as σ₁ is; its Monte-Carlo error `error`
    """

    count: int
    edge: float
    bulk: float
    p: float
    error: float


@lru_cache(maxsize=8)
def spectrum_null(n: int, m: int, inner: int | None = None, *, draws: int, seed: Seed) -> SpectrumNull:
    """Singular values of `draws` random n × m matrices, or products n × inner · inner × m, of unit-variance entries.

    Exact in law (equations 8 and 9), but for single matrices with min(n, m) > 256, whose values below the twelve
    largest are the limit law's. Depends on nothing but its arguments; a longer null begins with the shorter one.
    Costs 0.2 ms a draw at inner = 64, 1 ms at min(n, m) = 256; the last eight nulls are kept. Raises BadRequest for
    sizes or draws below 1.
    Source: `docs/theory/spectra.md`, equations 8 and 9.
    """
    if min(n, m, draws, 1 if inner is None else inner) < 1:
        raise BadRequest(f"expected sizes and draws >= 1, got {n} × {m}, inner {inner}, {draws} draws")
    blocks = []
    for block in range(-(-draws // BLOCK)):
        rng = generator(seed, f"spectrum {n} {m} {inner}", block)
        blocks.append(_matrices(rng, n, m) if inner is None else _products(rng, n, m, inner))
    return SpectrumNull((n, m), inner, np.concatenate(blocks)[:draws])


def mean_square(n: int, m: int, inner: int | None = None) -> float:
    """Mean of Σσ² for unit-variance entries: n·m, or n·m·inner for a product. Exact (SV-34)."""
    return float(n) * m * (1 if inner is None else inner)


def bulk_scale(S: Float[np.ndarray, " r"], null: SpectrumNull) -> float:
    """The factor at which the median singular value of random maps is that of S, values cut as zeros counted.

    For one large matrix this is the noise s of the bulk: s² by median matching. 0 if half of the values are zero.
    Raises BadRequest for more values than a map of that shape has.
    """
    return _median(S, null) / float(np.median(null.medians))


def norm_band(null: SpectrumNull, share: float = 0.95) -> Float[np.ndarray, "2 r"]:
    """The lower and upper level between which each singular value of random maps of norm 1 lies with `share`.

    Every draw is scaled to norm 1; the levels stand at the ranks that leave (1 − share)/2 of further draws on either
    side. Beyond the `TOP` largest values of one matrix whose shorter side is above `WHOLE` they are the limit law's
    (`docs/theory/spectra.md`, equation 14): 97 % of noise lies within at 300 × 1200, 94 % at 500 × 600.
    """
    tail = (1 - share) / 2
    values = null.values / np.linalg.norm(null.values, axis=1, keepdims=True)
    levels = np.quantile(values, [tail, 1 - tail], axis=0, method="weibull")
    if null.inner is None and min(null.shape) > WHOLE:  # whose draws have the limit law's own values there
        levels[:, TOP:] = _limit_band(*null.shape, -float(ndtri(tail)))[:, TOP:]
    return levels


def _limit_band(n: int, m: int, deviations: float) -> Float[np.ndarray, "2 r"]:
    """The levels of one large matrix of norm 1: how many values lie below one varies by √(ln p)/π."""
    p = min(n, m)
    below, reach = p - np.arange(p) - 0.5, deviations * np.sqrt(np.log(p)) / np.pi
    shares = [np.clip((below + sign * reach) / p, 0.0, 1.0) for sign in (-1, 1)]
    return np.stack([mp_quantiles(share, n, m) for share in shares]) / np.sqrt(n * m)


def largest_at_same_norm(S: Float[np.ndarray, " r"], null: SpectrumNull, level: float = 0.05) -> float:
    """What σ₁ of a random map of the same shape and Frobenius norm stays below with 1 − level, in the units of S.

    Each draw is scaled to S's own norm, so σ₁ above it is the same statement as a stable rank below chance.
    """
    return float(np.linalg.norm(S) * np.quantile(null.largest_over_norm, 1 - level))


def count_levels(null: SpectrumNull, level: float = 0.05) -> tuple[float, float, float]:
    """(stable rank, participation, effective rank) that a random map of this shape stays above with 1 − level."""
    stable, participation, effective = (float(np.quantile(count, level)) for count in null.counts)
    return stable, participation, effective


def spikes(S: Float[np.ndarray, " r"], null: SpectrumNull, level: float = 0.05) -> Spikes:
    """Singular values of S that stand above noise with the same median, at familywise `level`.

    The statistic is σ/median(σ), its null that of the largest in random maps of this shape, so a random map shows one
    or more spikes with probability `level`, whatever its scale. Many true spikes raise the median, which makes the
    count an understatement. Where half of the values are zero, noise of the same median is nothing: the edge is 0 and
    every value above it counts. A map of zeros has no answer (edge and p NaN, count 0).
    Raises as `bulk_scale` does. Source: `docs/theory/spectra.md`, equation 10.
    """
    middle = _median(S, null)
    if not S.any():
        return Spikes(0, *(float("nan"),) * 4)
    edge = middle * float(np.quantile(null.largest_over_median, 1 - level))
    found = monte_carlo_p(S[0] / middle if middle > 0 else np.inf, null.largest_over_median)
    return Spikes(
        count=int(np.count_nonzero(edge < S)),
        edge=edge,
        bulk=middle * float(np.median(null.largest_over_median)),
        p=float(found.value),
        error=float(found.error),
    )


def largest_p(S: Float[np.ndarray, " r"], null: SpectrumNull) -> Estimate:
    """Chance that σ₁ takes this share of Σσ² or more in a random map of the shape, with its Monte-Carlo error."""
    return monte_carlo_p(S[0] / np.linalg.norm(S), null.largest_over_norm)


def soft_rank(S: Float[np.ndarray, " r"], null: SpectrumNull) -> float:
    """λ₊/λ_max: the edge of the bulk's noise over the largest squared singular value, 1 or more for noise.

    WeightWatcher's mp_softrank, with the bulk fitted by its median and, for products, the edge of the product null.
    For one matrix the edge is Marchenko and Pastur's. Source: `docs/theory/spectra.md`, equation 11.
    """
    scale = bulk_scale(S, null)
    edge = mp_edges(*null.shape)[1] if null.inner is None else float(np.median(null.values[:, 0]))
    return float((scale * edge / S[0]) ** 2) if S.size and S[0] > 0 else float("nan")


def _median(S: Float[np.ndarray, " r"], null: SpectrumNull) -> float:
    check_spectrum(S)
    if S.size > null.rank:
        raise BadRequest(
            f"a {null.shape[0]} × {null.shape[1]} map of inner size {null.inner} has at most {null.rank} singular "
            f"values, came {S.size}; pass the shape of the map they are of"
        )
    return float(np.median(np.pad(S, (0, null.rank - S.size))))


def _products(rng: np.random.Generator, n: int, m: int, r: int) -> Float[np.ndarray, "draws r"]:
    """One block of products' singular values (equation 8), through square factors of inner size."""
    inner = min(n, r)
    left = _triangles(rng, n, r) if r <= n else np.swapaxes(_triangles(rng, r, n), 1, 2)
    if inner <= m:
        right = np.swapaxes(_triangles(rng, m, inner), 1, 2)
    else:
        right = rng.standard_normal((BLOCK, inner, m))
    return np.linalg.svdvals(left @ right)


def _triangles(rng: np.random.Generator, tall: int, k: int) -> Float[np.ndarray, "draws k k"]:
    """The triangles R of tall × k Gaussian matrices' QR, signs positive: χ on the diagonal, normal above it."""
    made = np.triu(rng.standard_normal((BLOCK, k, k)), 1)
    at = np.arange(k)
    made[:, at, at] = np.sqrt(rng.chisquare(tall - at, (BLOCK, k)))
    return made


def _matrices(rng: np.random.Generator, n: int, m: int) -> Float[np.ndarray, "draws r"]:
    """One block of single matrices' singular values, by the bidiagonal model (equation 9)."""
    p, q = min(n, m), max(n, m)
    rows = p if p <= WHOLE else min(p, int(np.ceil(CORNER * p ** (1 / 3))))
    at = np.arange(rows)
    diagonal = rng.chisquare(q - at, (BLOCK, rows))
    below = rng.chisquare(p - 1 - at[:-1], (BLOCK, rows - 1))
    gram = diagonal.copy()
    gram[:, 1:] += below
    beside = np.sqrt(diagonal[:, :-1] * below)
    squares = np.array([_eigenvalues(d, e) for d, e in zip(gram, beside, strict=True)])
    found = np.sqrt(np.maximum(squares[:, ::-1], 0.0))
    if rows == p:
        return found
    limit = mp_quantiles((np.arange(p, 0, -1) - 0.5) / p, n, m)
    made = np.tile(limit, (BLOCK, 1))
    made[:, :TOP] = found[:, :TOP]
    return -np.sort(-made, axis=1)


def _eigenvalues(diagonal: Float[np.ndarray, " r"], beside: Float[np.ndarray, " s"]) -> Float[np.ndarray, " r"]:
    found: Any = eigvalsh_tridiagonal(diagonal, beside, lapack_driver="sterf", check_finite=False)
    return found
