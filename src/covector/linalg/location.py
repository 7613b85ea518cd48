"""How strongly one side of a map meets a set of unit vectors: gain, energy, best cosine, and their laws by chance.

All three ask about the set as a whole, and gain and energy see it only through its second moment C = EᵀE/n (d × d), so
a vocabulary of 50,000 costs what d vectors cost. With R the singular directions of the side (rows) and S their gains,

    G  = d · Σᵢ Sᵢ² (Rᵢ C Rᵢᵀ) / Σᵢ Sᵢ²      mean exactly 1 when the set is turned at random
    En = Σᵢ Rᵢ C Rᵢᵀ                        mean r/d, and 1 always when r = d
    T  = max over i and j of |Rᵢ·eⱼ|

Source: F13, SV-18 and SV-19 of the theory; `docs/theory/location.md`, equations 1–8.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import brentq

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_corners
from covector.linalg.chance.rotations import UNIT_WITHIN
from covector.linalg.chance.streams import Seed, generator, in_blocks
from covector.linalg.topk import poles

# Rows of a vocabulary per step of the second moment: 8192 rows of 768 in float64 are 50 MB.
MOMENT_ROWS = 8192
# Traceless parts below this share of the whole are rounding: the form is a multiple of the identity and sees nothing.
FLAT = 1e-7
# Corners of Haar matrices per block of `null_energy`, about 16 MB; results depend on it, so it never varies.
CORNER_ENTRIES = 2**21
# Relative rounding of a gain, a sum of some thousand products; the bound is taken this far below it, since near
# the very top of what a map can give a difference in the last digit decides (a subspace of d − 1 dimensions).
ROUNDING = 1e-12
# A bound that underflows is still no probability of zero.
LEAST_P = float(np.finfo(float).tiny)


@dataclass(frozen=True, eq=False)
class Moment:
    """The second moment C = EᵀE/n of `n` unit vectors: symmetric, trace 1, rank min(n, d) at the most."""

    C: Float[np.ndarray, "d d"]
    n: int

    @property
    def d(self) -> int:
        """Dimension of the space that the vectors live in."""
        return len(self.C)

    @cached_property
    def weights(self) -> Float[np.ndarray, " m"]:
        """The m = min(n, d) largest eigenvalues of C, falling; all that a rotation leaves of it."""
        return np.maximum(np.linalg.eigvalsh(self.C)[::-1][: min(self.n, self.d)], 0.0)

    @cached_property
    def spread(self) -> float:
        """‖C − I/d‖_F: how far the set is from meeting every direction alike. 0 where nothing can be located."""
        spread = float(np.linalg.norm(self.C - np.eye(self.d) / self.d))
        return spread if spread > FLAT * float(np.linalg.norm(self.C)) else 0.0


@dataclass(frozen=True, eq=False)
class Face:
    """One side of a map: the directions that it reads or writes, orthonormal rows [r, d], and their gains S > 0."""

    directions: Float[np.ndarray, "r d"]
    S: Float[np.ndarray, " r"]

    def __post_init__(self) -> None:
        r, d = self.directions.shape
        if not 1 <= r <= d or not np.all(self.S > 0):
            raise BadRequest(f"a face has 1 to {d} directions with gains above 0, got {r}; drop null dyads")

    @property
    def shares(self) -> Float[np.ndarray, " r"]:
        """Squared gains in units of their mean over all d directions: they sum to d. The gain of direction i alone."""
        power = np.square(self.S / self.S.max())
        return self.directions.shape[1] * power / power.sum()

    @cached_property
    def spread(self) -> float:
        """‖A − I‖_F of the form A = Rᵀ·diag(shares)·R: how far the map is from treating every direction alike."""
        r, d = self.directions.shape
        spread = float(np.sqrt(np.sum((self.shares - 1) ** 2) + d - r))
        return spread if spread > FLAT * np.sqrt(d) else 0.0


def second_moment(vectors: Float[np.ndarray, "n d"]) -> Moment:
    """C = EᵀE/n of unit rows, summed in float64 whatever their precision. Costs n·d² multiplications.

    Raises BadRequest if there are no rows, they are not finite or not of length one, or d < 2.
    """
    n, d = vectors.shape
    if n == 0 or d < 2:
        raise BadRequest(f"expected at least one unit vector in at least 2 dimensions, got shape {vectors.shape}")
    C = np.zeros((d, d))
    for start in range(0, n, MOMENT_ROWS):
        rows = vectors[start : start + MOMENT_ROWS].astype(np.float64)
        squares = np.einsum("nd,nd->n", rows, rows)
        if not np.all(np.abs(squares - 1) < 2 * UNIT_WITHIN):  # NaN compares false, so it is refused too
            raise BadRequest("a second moment takes finite unit vectors; divide by their norms and drop null ones")
        C += rows.T @ rows
    C /= np.trace(C)
    return Moment((C + C.T) / 2, n)


def caught(face: Face, moment: Moment) -> Float[np.ndarray, " r"]:
    """Mean squared cosine Rᵢ C Rᵢᵀ of each direction with the set. Costs r·d² multiplications."""
    _same_space(face, moment)
    return np.einsum("rd,rd->r", face.directions @ moment.C, face.directions)


def gain(face: Face, by_direction: Float[np.ndarray, " r"]) -> float:
    """G = mean ‖eⱼ M‖² (on the write side ‖M eⱼᵀ‖²) in units of ‖M‖_F²/d, from what `caught` gives.

    Between 0 and d·σ₁²/Σσ²; its mean over rotations is exactly 1 (SV-19). Exact to rounding.
    """
    return float(face.shares @ by_direction)


def energy(face: Face, by_direction: Float[np.ndarray, " r"]) -> float:
    """En = mean ‖P eⱼ‖², P the projector on what the map can read or write; null mean r/d. NaN when r = d.

    Parseval (SV-18): with r = d every unit vector has energy 1, so the number would say nothing.
    """
    r, d = face.directions.shape
    return float("nan") if r == d else float(by_direction.sum())


def gain_sd(face: Face, moment: Moment) -> float:
    """Standard deviation of the gain when the set is turned by a Haar rotation; exact, for any set and any spectrum.

    sd = √2 ‖C − I/d‖ ‖A − I‖ / √((d−1)(d+2)): traceless symmetric forms are irreducible under rotations, so ⟨C', A⟩
    has the variance ‖C₀‖²‖A₀‖² / dim, with dim = (d−1)(d+2)/2. Zero where the map, or the set, is isotropic: the gain
    is then 1 whatever the alignment.
    """
    _same_space(face, moment)
    d = moment.d
    return float(np.sqrt(2.0 / ((d - 1) * (d + 2)))) * moment.spread * face.spread


def normal_score(
    gains: Float[np.ndarray, "*batch m"], sd: Float[np.ndarray, " m"] | float
) -> Float[np.ndarray, "*batch m"]:
    """Gains on a scale where every map has nearly the same null: the cube root, Wilson–Hilferty.

    A null gain is nearly a χ² over its degrees of freedom, ν = 2/sd², with a tail that is long where few dyads carry
    the map. In z such maps would set the level of a maximum over maps alone. Monotone in the gain for each sd.
    """
    third = np.asarray(sd) / 3
    return np.asarray((np.cbrt(np.maximum(gains, 0.0)) - 1 + third**2) / third)


def gain_bound(face: Face, value: float) -> float:
    """Upper bound of P(gain >= value) for any set of unit vectors turned at random; 1 unless value > 1.

    inf over λ of Π_b (1 − 2λ(α_b − value))^(−½), α the shares with d − r zeros: Chernoff's bound for one vector, exact
    in form since cos² are Gaussian squares over their sum, and valid for the mean of any n by convexity. So it pays for
    n vectors as for one: rigorous, and loose when they are many and far apart.
    """
    r, d = face.directions.shape
    shares = np.concatenate([face.shares, np.zeros(d - r)])
    # No set has a gain above the first share, and no computed gain is exact.
    level = min(value, float(shares.max())) * (1 - ROUNDING)
    if not level > 1:
        return 1.0
    over = shares - level
    top = 0.5 / over.max()

    def slope(at: float) -> float:
        return float(np.sum(over / (1 - 2 * at * over)))

    # Any λ below `top` gives a bound, so a root found roughly loses nothing but a little sharpness.
    high = top * (1 - 1e-12)
    best: Any = high if slope(high) < 0 else brentq(slope, 0.0, high)
    return float(np.clip(np.exp(-0.5 * np.sum(np.log1p(-2 * best * over))), LEAST_P, 1.0))


def null_energy(moment: Moment, r: int, *, draws: int, seed: Seed) -> Float[np.ndarray, " draws"]:
    """The energy of the set in the span of a Haar frame of r rows; one value per draw, mean r/d.

    Only r and the eigenvalues of C enter: Σ_a w_a ‖O_a‖² with O the m × r corner of a Haar matrix. Costs a QR of
    d × min(m, r) per draw. Raises BadRequest unless 1 <= r < d.
    """
    d, weights = moment.d, moment.weights
    if not 1 <= r < d:
        raise BadRequest(f"the energy of a subspace of {d} dimensions varies for ranks 1 to {d - 1}, got {r}")
    m = len(weights)
    size = int(np.clip(CORNER_ENTRIES // (d * min(r, m)), 1, 256))

    def one_block(block: int) -> Float[np.ndarray, " draws"]:
        corners = draw_corners(generator(seed, "energy", block), size, d, m, r)
        return np.einsum("a,bai,bai->b", weights, corners, corners, optimize=True)

    return in_blocks(one_block, size=size, draws=draws)


@dataclass(frozen=True)
class BestCosine:
    """The largest |cosine| between the directions of a face and a set: its value with its sign, and where it stands."""

    value: float
    dyad: int
    label: int


def best_cosine(face: Face, vectors: Float[np.ndarray, "n d"]) -> BestCosine:
    """T = max over directions and unit vectors of |cosine|, both poles; exact in float64. Costs r·n·d products."""
    found = poles(face.directions, vectors, 1)
    top, bottom = found.top_score[:, 0], found.bottom_score[:, 0]
    dyad = int(np.argmax(np.maximum(top, -bottom)))
    if top[dyad] >= -bottom[dyad]:
        return BestCosine(float(top[dyad]), dyad, int(found.top[dyad, 0]))
    return BestCosine(float(bottom[dyad]), dyad, int(found.bottom[dyad, 0]))


def hyperplane(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n m"]:
    """Coordinates [n, d − 1] of rows that have no part along 1, in an orthonormal basis of that hyperplane.

    The reflection that takes 1/√d to the last axis, without that axis; inner products are kept.
    """
    return reflected(rows)[:, :-1]


def reflected(rows: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
    """Rows under the reflection that exchanges 1/√d with the last axis; orthogonal, its own inverse."""
    d = rows.shape[-1]
    normal = np.full(d, d**-0.5)
    normal[-1] -= 1
    normal /= np.linalg.norm(normal)
    return rows - (2 * (rows @ normal.astype(rows.dtype)))[..., None] * normal.astype(rows.dtype)


def _same_space(face: Face, moment: Moment) -> None:
    if face.directions.shape[1] != moment.d:
        raise BadRequest(
            f"the face has directions of {face.directions.shape[1]} entries, the set of {moment.d}; "
            "in a centred frame both live in the hyperplane without 1"
        )
