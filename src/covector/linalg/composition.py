"""How much of what one map writes another reads: composition scores of all pairs, and what random maps would score.

For a writer W₁ and a reader W₂ with singular values σ, σ', and C the cosines between what W₁ writes and what W₂ reads,
``‖W₁W₂‖_F² = Σ σᵢ²σ'ⱼ²Cᵢⱼ²``. Divided by ‖W₁‖²‖W₂‖² it is a weighted mean of squared cosines, so by chance 1/d,
whatever the spectra. Its variance and skewness under a random rotation of one against the other are known exactly too;
its law is taken to be the shifted gamma law with these three moments (Pearson's type III).

Pairs cost one product of thin factors each, ``(S·Vh)(U·S')``, all of them in a few large products; no d x d matrix is
made.

Source: Elhage et al., "A mathematical framework for transformer circuits"; `docs/theory/heads.md`, equations 14–18;
SV-22.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.axes import Float, Int
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.chance.beta import tail
from covector.linalg.maps import Factored, Map
from covector.linalg.svd import svd

# A tail of the matched law below this is told as this: so far out it is not known to hold.
SMALLEST_P = 1e-6
# Weights whose squares sum to 1/d and this are flat up to rounding: nothing is left for a rotation to change.
FLAT = 1e-12
# Skewness below which the normal law stands for the gamma law: it changes a tail of 1e-6 by 1 %.
NORMAL = 1e-3
# What chance reaches with this probability is told beside a score.
LEVEL = 0.05
# Singular values below this part of the first are rounding of a Gram matrix: they carry 1e-14 of a norm.
SMALL = 1e-7


@dataclass(frozen=True, eq=False)
class End:
    """One end of a pair: gains, and the stream directions that go with them, rows.

    For a writer the rows are what it writes (Vh), for a reader what it reads (Uᵀ).
    """

    S: Float[np.ndarray, " r"]
    rows: Float[np.ndarray, "r d"]

    @property
    def weights(self) -> Float[np.ndarray, " r"]:
        """σ²/Σσ², the share of each dyad in ‖W‖_F²; empty for a map of zeros."""
        power = self.S**2
        return power / power.sum() if power.size else power


def written_end(m: Map, *, centred: bool = False) -> End:
    """What a map writes. `centred` takes the part along 1 off what is written first: LayerNorm does not see it."""
    return read_end(m.T, centred=centred)


def read_end(m: Map, *, centred: bool = False) -> End:
    """What a map reads, float64; `centred` takes the part along 1 off its read side first.

    Factors are decomposed through their thin sides. One matrix goes through the Gram of its stream side, so that an
    embedding of 50,000 rows costs a d x d eigenproblem: singular values below 1e-7 of the first are left out.
    """
    if isinstance(m, Factored):
        A = m.A.astype(np.float64)
        found = svd(Factored(A - A.mean(axis=0) if centred else A, m.B, m.reads, m.writes, m.stored))
        return End(np.array(found.S), np.ascontiguousarray(found.U.T))
    W = m.dense()
    gram = np.zeros((m.reads.size, m.reads.size))
    for start in range(0, W.shape[1], 8192):
        part = W[:, start : start + 8192].astype(np.float64)
        gram += part @ part.T
    if centred:
        gram = gram - gram.mean(axis=0)
        gram = gram - gram.mean(axis=1, keepdims=True)
    values, axes = np.linalg.eigh(gram)
    values, axes = values[::-1], axes[:, ::-1]
    keep = values > SMALL**2 * max(values[0], 0.0)
    return End(np.sqrt(values[keep]), np.ascontiguousarray(axes[:, keep].T))


@dataclass(frozen=True, eq=False)
class Composition:
    """All pairs of writers and readers [w, m]: the score, the largest |C|, and the numbers that its null needs.

    squared   ‖W₁W₂‖_F²/(‖W₁‖_F²‖W₂‖_F²), 0 … 1; NaN for a map of zeros
    aligned   the largest |Cᵢⱼ| of any dyad of the one with any of the other
    tries     how many Cᵢⱼ there are
    spread    standard deviation of `squared` under a random relative rotation; the mean is 1/d
    skew      skewness of `squared` under the same rotation
    d         dimension of the space between them
    """

    squared: Float[np.ndarray, "w m"]
    aligned: Float[np.ndarray, "w m"]
    tries: Int[np.ndarray, "w m"]
    spread: Float[np.ndarray, "w m"]
    skew: Float[np.ndarray, "w m"]
    d: int

    @property
    def z(self) -> Float[np.ndarray, "w m"]:
        """(score² − 1/d) in standard deviations of the null; NaN where the null has no spread."""
        excess = self.squared - 1 / self.d
        return np.divide(excess, self.spread, out=np.full_like(excess, np.nan), where=self.spread > 0)

    @property
    def p(self) -> Float[np.ndarray, "w m"]:
        """Chance that a random relative rotation scores as high: upper tail of the matched gamma law.

        Its first three moments are exact; the tail is within a factor of two down to 1e-3 on spectra of all kinds
        (measured in the tests). Never below 1e-6, beyond which it is not known to hold; `z` orders pairs there.
        """
        return np.maximum(gamma_tail(self.z, self.skew), SMALLEST_P)

    @property
    def level(self) -> Float[np.ndarray, "w m"]:
        """The score ‖W₁W₂‖_F/(‖W₁‖_F‖W₂‖_F) that a random relative rotation stays below with 95 %."""
        size = 4 / np.maximum(np.abs(self.skew), NORMAL) ** 2
        place = np.where(self.skew > 0, special.gammainccinv(size, LEVEL), special.gammaincinv(size, LEVEL))
        beyond = np.sign(self.skew) * (place - size) / np.sqrt(size)
        beyond = np.where(np.abs(self.skew) < NORMAL, special.ndtri(1 - LEVEL), beyond)
        return np.sqrt(np.maximum(1 / self.d + self.spread * beyond, 0.0))

    @property
    def p_aligned(self) -> Float[np.ndarray, "w m"]:
        """Chance that any of the pair's dyads are this aligned: a union bound over all of them, exact per cosine."""
        return np.asarray(np.where(np.isnan(self.aligned), np.nan, np.minimum(
            self.tries * np.asarray(tail(self.aligned, self.d)), 1.0)))  # fmt: skip


def composition(writers: Sequence[End], readers: Sequence[End], d: int) -> Composition:
    """Return the composition of every writer with every reader through a space of dimension `d`.

    `d` is the width, one less where both ends were centred. Exact to rounding. Costs 4·d·Σr·Σr' flop in products of one
    writer with all readers. Raises SpaceMismatch where the ends differ in width, BadRequest without ends.
    """
    widths = {e.rows.shape[1] for e in (*writers, *readers)}
    if not writers or not readers:
        raise BadRequest(f"expected writers and readers, got {len(writers)} and {len(readers)}; name other sites")
    if len(widths) != 1 or d not in (max(widths), max(widths) - 1):
        raise SpaceMismatch(f"writers and readers must share one stream of d = {d}, they have widths {sorted(widths)}")
    filled = [j for j, e in enumerate(readers) if e.S.size]
    squared, aligned = np.full((2, len(writers), len(readers)), np.nan)
    rows = np.concatenate([readers[j].rows for j in filled]) if filled else np.zeros((0, max(widths)))
    power = np.concatenate([readers[j].weights for j in filled]) if filled else np.zeros(0)
    starts = np.cumsum([0, *(readers[j].S.size for j in filled)])[:-1].astype(np.int64)
    for i, writer in enumerate(writers):
        if not writer.S.size or not filled:
            continue
        cosines = writer.rows @ rows.T
        largest = np.abs(cosines).max(axis=0)
        squared[i, filled] = np.add.reduceat(writer.weights @ np.square(cosines) * power, starts)
        aligned[i, filled] = np.minimum(np.maximum.reduceat(largest, starts), 1.0)
    sizes = [np.array([e.S.size for e in ends]) for ends in (writers, readers)]
    ones, others = ([_moments(e.weights, d) for e in ends] for ends in (writers, readers))
    spread = np.array([[rotation_spread(a[0], b[0], d) for b in others] for a in ones])
    skew = np.array([[rotation_skewness(a, b, d) for b in others] for a in ones])
    return Composition(squared, aligned, np.outer(*sizes), spread, skew, d)


def cosines_between(writer: End, reader: End) -> Float[np.ndarray, "n m"]:
    """C: the cosine of what dyad i of the writer writes with what dyad j of the reader reads."""
    return writer.rows @ reader.rows.T


def rotation_spread(alpha: float, beta: float, d: int) -> float:
    """Return the standard deviation of Σ aᵢbⱼOᵢⱼ² for weights that sum to 1 and O a Haar rotation of R^d; exact.

    `alpha` = Σa² − 1/d and `beta` = Σb² − 1/d, the second moments of the weights about 1/d. Variance
    2·alpha·beta/((d − 1)(d + 2)): 0 where one side has all d gains alike (Parseval).
    Source: `docs/theory/heads.md`, equation 16.
    """
    if d < 2 or min(alpha, beta) <= FLAT:
        return 0.0
    return float(np.sqrt(2 * alpha * beta / ((d - 1) * (d + 2))))


def rotation_skewness(a: tuple[float, float], b: tuple[float, float], d: int) -> float:
    """Return the skewness of the same sum, from the second and third moments of both weights about 1/d; exact.

    It is a product of one number per side; what stands before it is fixed by the case of two single dyads, whose law
    Beta(½, (d − 1)/2) is known. 0 where there is no spread. Source: `docs/theory/heads.md`, equation 17.
    """
    if d < 3 or min(a[0], b[0]) <= FLAT:
        return 0.0
    single = 2 * np.sqrt(2) * (d - 2) * np.sqrt(d + 2) / ((d + 4) * np.sqrt(d - 1))
    shape = (d - 2) / np.sqrt(d * (d - 1))
    return float(single * (a[1] / a[0] ** 1.5) * (b[1] / b[0] ** 1.5) / shape**2)


def gamma_tail(z: Float[np.ndarray, "*shape"], skew: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """P(Z >= z) for the shifted gamma law of mean 0, variance 1 and this skewness (normal at 0); NaN stays NaN."""
    size = 4 / np.maximum(np.abs(skew), NORMAL) ** 2
    place = np.maximum(size + np.sign(skew) * np.sqrt(size) * z, 0.0)
    tail_of = np.where(skew > 0, special.gammaincc(size, place), special.gammainc(size, place))
    return np.where(np.isnan(z), np.nan, np.where(np.abs(skew) < NORMAL, special.ndtr(-z), tail_of))


def _moments(weights: Float[np.ndarray, " r"], d: int) -> tuple[float, float]:
    """Second and third moments of d weights about their mean 1/d, as sums; the weights not given are 0."""
    if not weights.size:
        return 0.0, 0.0
    rest = d - weights.size
    around = weights - 1 / d
    return float(np.sum(around**2) + rest / d**2), float(np.sum(around**3) - rest / d**3)
