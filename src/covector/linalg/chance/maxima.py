"""The largest |cosine| by chance: over a dictionary, over an orthonormal set, and over both at once.

Selection is repeated inside the null: whatever was maximised over in the data (tokens, poles, dyads of a site) is
maximised over in every draw. Nothing here normalises the vectors: unit rows give cosines, rows projected on a
subspace (coordinates [n, r]) give the cosines that directions of that subspace reach.

Source: §2.1, §3.12, F13 and N1–N2 of the theory page.
"""

import math

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.beta import quantile, tail
from covector.linalg.chance.haar import draw_corners
from covector.linalg.chance.incomplete_beta import log_beta
from covector.linalg.chance.laws import Haar, Law
from covector.linalg.chance.streams import Seed, generator, in_blocks

# Draws per block and dictionary rows per step: 256 × 8192 scores are 16 MB in float64, small enough for any machine
# and large enough for a matrix product to run at full speed. Results depend on BLOCK, so it never varies.
BLOCK = 256
DICTIONARY_ROWS = 8192

# Frames are drawn in blocks of about this many Gaussians (16 MB), at most BLOCK frames.
FRAME_ENTRIES = 2**21

# Nodes of the Gauss–Legendre rule over the range where a maximum has its mass: 1e-12 against mpmath.
NODES = 200


def null_maxima(
    vectors: Float[np.ndarray, "n d"], *, draws: int, seed: Seed, law: Law | None = None, first: int = 0
) -> Float[np.ndarray, " draws"]:
    """max over the rows e of |⟨v, e⟩| for random unit directions v: the null of "best token, either pole".

    Returns one maximum per draw. `law` says how v is drawn (None: Haar). The draws do not depend on the direction
    under test, so make them once and score any number of directions with `monte_carlo_p`. `first` continues the
    same sequence: workers that share a range give the bits one worker gives. Products are taken in the precision of
    `vectors` (float32 moves a maximum by 1e-6, far below the spacing of the null). Costs draws·n·d multiplications
    and 16 MB. Raises BadRequest if there are no vectors, or some are not finite.
    """
    check_vectors(vectors)
    chosen = Haar() if law is None else law
    precision = np.result_type(vectors.dtype, np.float32)

    def block_maxima(block: int) -> Float[np.ndarray, " draws"]:
        rows = chosen.draw(generator(seed, "maxima", block), BLOCK, vectors.shape[1])
        largest = _largest_score(rows.astype(precision), vectors)
        return largest / np.linalg.norm(rows, axis=1)

    return in_blocks(block_maxima, size=BLOCK, draws=draws, first=first)


def null_max_of_frame(
    vectors: Float[np.ndarray, "n d"], r: int, *, draws: int, seed: Seed, first: int = 0
) -> Float[np.ndarray, " draws"]:
    """max over r rows f of a Haar frame and over the rows e of |⟨f, e⟩|: the null of "best cell of a whole site".

    Returns one maximum per draw; the frame's rows are orthonormal to each other as singular vectors are. Given the
    coordinates [n, r] of vectors inside an r-dimensional subspace, the draws are bases of that subspace.
    Costs a QR of d × min(r, n) per draw plus the scores. `first` as in `null_maxima`.
    Raises BadRequest if r is outside 1 … d, there are no vectors, or some are not finite.
    """
    check_vectors(vectors)
    d = vectors.shape[1]
    if not 1 <= r <= d:
        raise BadRequest(f"a frame in {d} dimensions has 1 to {d} directions, got r = {r}; pass the rank of the map")
    coordinates = span_coordinates(vectors)
    m = coordinates.shape[1]
    size = int(np.clip(FRAME_ENTRIES // (d * min(r, m)), 1, BLOCK))

    def block_maxima(block: int) -> Float[np.ndarray, " draws"]:
        corners = draw_corners(generator(seed, "frames", block), size, d, r, m)
        return np.array([_largest_score(corner, coordinates).max() for corner in corners])

    return in_blocks(block_maxima, size=size, draws=draws, first=first)


def max_in_frame(d: int, r: int, *, draws: int, seed: Seed, first: int = 0) -> Float[np.ndarray, " draws"]:
    """max of |cos| between one fixed unit vector and the r rows of a Haar frame in R^d.

    Returns one maximum per draw, exactly distributed: the squared cosines are the first r of a Dirichlet(½, …, ½) of
    d, made from r Gaussians and one χ² of the d − r others, so a draw costs r numbers whatever d is.
    Raises BadRequest if not 1 <= r <= d.
    """
    if not 1 <= r <= d:
        raise BadRequest(f"a frame in {d} dimensions has 1 to {d} directions, got r = {r}; pass the rank of the map")

    def block_maxima(block: int) -> Float[np.ndarray, " draws"]:
        rng = generator(seed, "one in frame", block)
        squares = rng.standard_normal((BLOCK, r)) ** 2
        others = rng.chisquare(d - r, BLOCK) if r < d else 0.0
        return np.sqrt(squares.max(axis=1) / (squares.sum(axis=1) + others))

    return in_blocks(block_maxima, size=BLOCK, draws=draws, first=first)


def expected_max(d: int, n: int) -> float:
    """Mean of the largest |cos| of one direction with n independent Haar directions of R^d.

    The isotropic estimate of a dictionary's ceiling, ≈ sqrt(2 ln 2n / d); real tokens are correlated and reach less.
    Relative error under 1e-10. Raises BadRequest if n < 1 or d < 2.
    """
    _check_isotropic(d, n)
    # All mass but 1e-15 lies between these two.
    low, high = (_isotropic_quantile(chance, d, n) for chance in (1e-15, 1 - 1e-15))
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    cosine = low + (high - low) * (nodes + 1) / 2
    reached = -np.expm1(n * np.log1p(-np.asarray(tail(cosine, d))))
    return float(low + (high - low) / 2 * (weights @ reached))


def median_max(d: int, n: int) -> float:
    """Median of the largest |cos| of one direction with n independent Haar directions of R^d; exact.

    Raises BadRequest if n < 1 or d < 2. Source: §2.1 of the theory page.
    """
    _check_isotropic(d, n)
    return _isotropic_quantile(0.5, d, n)


def expected_max_of_basis(d: int, r: int) -> float:
    """Mean of the largest |cos| of one fixed vector with the r rows of a Haar frame in R^d.

    Relative error under 1e-10: the length of a Gaussian vector is independent of its direction, so the mean is
    E max of r |Gaussians| divided by the mean length of d of them. Raises BadRequest if not 1 <= r <= d.
    Source: §3.12 of the theory page has the values for r = d.
    """
    if not 1 <= r <= d:
        raise BadRequest(f"a frame in {d} dimensions has 1 to {d} directions, got r = {r}; pass the rank of the map")
    # |g| above 12 has probability 4e-33; the integrand is smooth, NODES suffice on [0, 12].
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    x = 6 * (nodes + 1)
    above = np.array([math.erfc(node) for node in x / np.sqrt(2)])
    reached = -np.expm1(r * np.log1p(-above))
    mean_length = np.sqrt(2 * np.pi) / math.exp(log_beta(d / 2, 0.5))  # √2 Γ((d + 1)/2) / Γ(d/2)
    return float(6 * (weights @ reached) / mean_length)


def span_coordinates(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n m"]:
    """Coordinates of the rows in an orthonormal basis of a space that holds them, m = min(n, d).

    Inner products are kept, so a rotation-invariant null needs only these: 3 vectors of 128 numbers become 3 of 3.
    """
    if len(vectors) >= vectors.shape[1]:
        return vectors
    return np.asarray(np.linalg.qr(np.asarray(vectors, dtype=np.float64).T, mode="r")).T


def _largest_score(
    rows: Float[np.ndarray, "draws d"], vectors: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " draws"]:
    largest = np.zeros(len(rows))
    for start in range(0, len(vectors), DICTIONARY_ROWS):
        scores = rows @ vectors[start : start + DICTIONARY_ROWS].astype(rows.dtype, copy=False).T
        np.maximum(largest, np.maximum(scores.max(axis=1), -scores.min(axis=1)), out=largest)
    return largest


def _isotropic_quantile(chance: float, d: int, n: int) -> float:
    # P(max <= c) = (1 − tail)^n = chance
    return float(quantile(-np.expm1(np.log(chance) / n), d))


def _check_isotropic(d: int, n: int) -> None:
    if d < 2 or n < 1:
        raise BadRequest(f"expected d >= 2 and n >= 1 directions, got d = {d}, n = {n}; check the order: (d, n)")


def check_vectors(vectors: Float[np.ndarray, "n d"]) -> None:
    """Raise BadRequest unless there is at least one vector and all are finite."""
    if len(vectors) == 0 or not np.all(np.isfinite(vectors)):
        raise BadRequest(f"a null needs finite vectors, at least one, got shape {vectors.shape}; drop the bad rows")
