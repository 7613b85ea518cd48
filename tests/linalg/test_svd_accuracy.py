"""How many digits are right: product SVD against 80-bit and 50-digit arithmetic, and what goes wrong elsewhere."""

from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
from scipy.linalg import svd as lapack_svd

from covector.linalg.dense_svd import STRONG
from covector.linalg.maps import Dense, Factored, Space
from covector.linalg.product_svd import GUARD
from covector.linalg.svd import SVD, svd

EPS = 2.0**-52
D, R = 192, 32
RESIDUAL = Space("residual", D)

needs_80_bits = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 1e-18, reason="this platform's long double has no more digits than double"
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def orthonormal(seed: int, n: int, r: int) -> np.ndarray:
    return np.linalg.qr(normal(seed, n, r))[0]


def hidden(seed: int, kappa: float, n: int = D) -> tuple[np.ndarray, np.ndarray]:
    """Factors of condition kappa whose small directions lie across all columns, as training leaves them."""
    gains = np.geomspace(1, 1 / kappa, R)
    A = (orthonormal(seed, n, R) * gains) @ orthonormal(seed + 1, R, R)
    return A, orthonormal(seed + 2, R, R) @ (gains[:, None] * orthonormal(seed + 3, n, R).T)


def graded(seed: int, kappa: float, shuffled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Well-conditioned factors with scaled columns and rows: every gain is determined relative to itself."""
    gains = np.geomspace(1, 1 / kappa, R)
    if shuffled:
        gains = np.random.default_rng(seed).permutation(gains)
    return normal(seed, D, R) * gains, gains[:, None] * normal(seed + 1, R, D)


def stored(pair: tuple[np.ndarray, np.ndarray], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    return pair[0].astype(dtype).astype(np.float64), pair[1].astype(dtype).astype(np.float64)


def duplicated() -> tuple[np.ndarray, np.ndarray]:
    A, B = hidden(1, 10)
    A[:, 20:] = A[:, :12]
    return A, B


def blurred() -> tuple[np.ndarray, np.ndarray]:
    A, B = hidden(2, 10)
    return stored((A[:, :20] @ normal(3, 20, R) / 5, B), np.float32)


CASES = {
    "realistic": stored(hidden(4, 10), np.float32),
    "stored in float16": stored(hidden(5, 40), np.float16),
    "at the guard": hidden(6, 100),
    "beyond the guard": hidden(7, 1000),
    "graded 1e3": graded(8, 1e3, False),
    "graded 1e5": graded(9, 1e5, False),
    "graded 1e7": graded(10, 1e7, False),
    "graded 1e3, shuffled": graded(8, 1e3, True),
    "graded 1e5, shuffled": graded(9, 1e5, True),
    "graded 1e7, shuffled": graded(10, 1e7, True),
    "one factor graded": (graded(11, 1e7, True)[0], normal(12, R, D)),
    "hidden 1e5": hidden(13, 1e5),
    "hidden 1e7": hidden(14, 1e7),
    "rank 20 of 32": duplicated(),
    "rank 20 blurred by float32": blurred(),
    "all equal": (orthonormal(15, D, R), orthonormal(15, D, R).T.copy()),
    "more inner than outer": (normal(16, 24, 40), normal(17, 40, 24)),
}
every_case = pytest.mark.parametrize("name", CASES)


def decomposed(name: str) -> tuple[SVD, np.ndarray, np.ndarray]:
    A, B = CASES[name]
    space = Space("residual", A.shape[0])
    return svd(Factored(A, B, space, space)), A, B


# ---- the reference: Drmač's scheme again, but by hand in 80 bits, with plain Householder and plain one-sided Jacobi


def triangle(X: np.ndarray) -> np.ndarray:
    X = X.copy()
    for j in range(min(X.shape)):
        x = X[j:, j].copy()
        length = np.sqrt(x @ x)
        if length > 0:
            x[0] += np.copysign(length, x[0])
            x /= np.sqrt(x @ x)
            X[j:, j:] -= 2 * np.outer(x, x @ X[j:, j:])
    return np.triu(X[: min(X.shape)])


def rounds(r: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A round-robin tournament: r - 1 rounds of disjoint pairs that meet everyone once (r even)."""
    players = list(range(r))
    for _ in range(r - 1):
        yield np.array(players[: r // 2]), np.array(players[r // 2 :][::-1])
        players = [players[0], players[-1], *players[1:-1]]


def jacobi_gains(X: np.ndarray) -> np.ndarray:
    X = X.copy()
    for _ in range(40):
        largest = 0.0
        for p, q in rounds(X.shape[1]):
            pp, qq, pq = ((X[:, a] * X[:, b]).sum(0) for a, b in ((p, p), (q, q), (p, q)))
            cosine = np.abs(pq) / np.sqrt(np.maximum(pp * qq, np.finfo(np.longdouble).tiny))
            largest = max(largest, float(cosine.max()))
            turn = cosine > 1e-19
            zeta = (qq - pp) / (2 * np.where(turn, pq, 1))
            t = np.where(turn, np.where(zeta >= 0, 1, -1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta)), 0)
            c = 1 / np.sqrt(1 + t * t)
            X[:, p], X[:, q] = c * (X[:, p] - t * X[:, q]), c * (t * X[:, p] + X[:, q])
        if largest < 1e-18:
            break
    return np.sort(np.sqrt((X * X).sum(0)))[::-1]


def reference_gains(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Singular values of A·B in 80-bit arithmetic, each relative to itself where the factors determine it."""
    a, b = A.astype(np.longdouble), B.astype(np.longdouble)
    lengths = np.sqrt((a * a).sum(0))
    a, b = a / lengths, b * lengths[:, None]
    order = np.argsort(-(b * b).sum(1).astype(float), kind="stable")
    return jacobi_gains(triangle(a[:, order]) @ triangle(b[order].T).T)


@needs_80_bits
@pytest.mark.identity("SV-3")
@every_case
def test_gains_are_right_to_1e_minus_11_or_marked_and_right_to_8_eps_of_the_factors(name):
    ours, A, B = decomposed(name)
    true = reference_gains(A, B)[: ours.rank].astype(float)
    off = np.abs(ours.S - true)
    size = np.linalg.norm(A, 2) * np.linalg.norm(B, 2)
    assert (off <= np.where(ours.absolute, 8 * EPS * size, 1e-11 * true)).all()


@every_case
def test_vectors_are_orthonormal_to_1e_minus_11(name):
    ours, _, _ = decomposed(name)
    for gram in (ours.U.T @ ours.U, ours.Vh @ ours.Vh.T):
        assert np.abs(gram - np.eye(ours.rank)).max() <= 1e-11


@every_case
def test_dyads_rebuild_the_product_to_its_own_rounding(name):
    ours, A, B = decomposed(name)
    # What was cut counts: max(n, m) eps σ₁ per dyad.
    allowed = (8 + ours.cut * D) * EPS * np.linalg.norm(A, 2) * np.linalg.norm(B, 2)
    assert np.linalg.norm((ours.U * ours.S) @ ours.Vh - A @ B, 2) <= allowed + 1e-12 * ours.S[0]


def test_which_gains_are_only_absolutely_accurate_is_told():
    marked = {name: int(decomposed(name)[0].absolute.sum()) for name in CASES}
    assert {name for name, count in marked.items() if count} == {
        "hidden 1e5",
        "hidden 1e7",
        "rank 20 blurred by float32",
    }


def test_ill_conditioned_factors_take_the_careful_route_and_realistic_ones_the_fast_one():
    fast = {name for name in CASES if decomposed(name)[0].route == "product: Gram and Cholesky"}
    assert {"realistic", "stored in float16", "all equal"} <= fast
    assert not fast & {"beyond the guard", "graded 1e7, shuffled", "rank 20 of 32", "more inner than outer"}


@needs_80_bits
@pytest.mark.parametrize("kappa", np.geomspace(30, 3000, 12))
def test_accuracy_holds_on_both_sides_of_the_guard(kappa):
    A, B = hidden(20, kappa)
    ours = svd(Factored(A, B, RESIDUAL, RESIDUAL))
    for gram in (ours.U.T @ ours.U, ours.Vh @ ours.Vh.T):
        assert np.abs(gram - np.eye(ours.rank)).max() <= 1e-12
    np.testing.assert_allclose(ours.S, reference_gains(A, B).astype(float), rtol=1e-11)


def test_a_gram_without_the_guard_would_lose_the_orthogonality_that_the_guard_keeps():
    A, _ = hidden(22, 3e4)
    L = np.linalg.cholesky(A.T @ A)
    kappa = np.linalg.norm(L) * np.linalg.norm(np.linalg.inv(L))
    assert kappa**2 * EPS > GUARD
    Q = np.linalg.solve(L, A.T).T
    assert np.abs(Q.T @ Q - np.eye(R)).max() > 1e-9


def test_gains_agree_with_fifty_digits_even_at_a_condition_of_1e14():
    gains = np.random.default_rng(0).permutation(np.geomspace(1, 1e-7, 8))
    A, B = normal(30, 20, 8) * gains, gains[:, None] * normal(31, 8, 20)
    space = Space("residual", 20)
    ours = svd(Factored(A, B, space, space))
    with mpmath.workdps(50):
        a, b = mpmath.matrix(A.tolist()), mpmath.matrix(B.tolist())
        L = mpmath.cholesky(b * b.T)
        squares = mpmath.eigsy(L.T * (a.T * a) * L, eigvals_only=True)
        true = np.array(sorted((float(mpmath.sqrt(s)) for s in squares), reverse=True))
    assert true[-1] < 1e-13 * true[0]
    np.testing.assert_allclose(ours.S, true[: ours.rank], rtol=1e-13)
    assert ours.rank + ours.cut == 8


# ---- one matrix


def spectrum_matrix(gains: np.ndarray, n: int = 160) -> np.ndarray:
    m = len(gains)
    return (orthonormal(40, n, m) * gains) @ orthonormal(41, m, m)


@pytest.mark.parametrize(
    ("gains", "route"),
    [
        (np.geomspace(1, 0.05, 48), "dense: Gram"),
        (
            np.concatenate([[1.0], np.geomspace(0.3, 0.011, 40), np.geomspace(1e-3, 1e-9, 7)]),
            "dense: Gram, weak part apart",
        ),
        (np.concatenate([np.geomspace(1, 0.011, 46), [1e-11, 0.0]]), "dense: Gram, weak part apart"),
        (np.concatenate([[1.0], np.geomspace(5e-3, 1e-8, 47)]), "dense: QR and SVD"),
        (np.ones(48), "dense: Gram"),
    ],
)
def test_one_matrix_is_decomposed_to_its_rounding_whatever_its_tail(gains, route):
    W = spectrum_matrix(gains)
    for m in (
        Dense(W, Space("tokens", 160), Space("residual", 48)),
        Dense(W.T, Space("residual", 48), Space("tokens", 160)),
    ):
        ours = svd(m)
        assert ours.route == route
        # The matrix itself was rounded when it was made: a few eps more than the algorithm's 8.
        assert np.abs(ours.S - gains[: ours.rank]).max() <= 16 * EPS
        assert (~ours.absolute == (ours.S > 8 * EPS / 1e-11)).all()
        for gram in (ours.U.T @ ours.U, ours.Vh @ ours.Vh.T):
            assert np.abs(gram - np.eye(ours.rank)).max() <= 1e-11
        assert np.linalg.norm((ours.U * ours.S) @ ours.Vh - m.dense(), 2) <= 200 * EPS


def test_leading_dyads_from_part_of_the_gram_are_those_of_the_whole():
    W = spectrum_matrix(np.geomspace(1, 1e-3, 48))
    m = Dense(W, Space("tokens", 160), Space("residual", 48))
    part, whole = svd(m, rank=6), svd(m)
    assert part.route == "dense: part of the Gram"
    np.testing.assert_allclose(part.S, whole.S[:6], rtol=1e-13)
    np.testing.assert_allclose(part.Vh, whole.Vh[:6], atol=1e-12)
    np.testing.assert_allclose(part.U, whole.U[:, :6], atol=1e-12)
    # Weak dyads are not left to the Gram even where only a few are asked for.
    gains = np.geomspace(1, 1e-12, 48)
    steep = svd(Dense(spectrum_matrix(gains), m.reads, m.writes), rank=11)
    assert gains[10] < STRONG
    assert steep.route == "dense: QR and SVD"
    np.testing.assert_allclose(steep.S, gains[:11], atol=16 * EPS)


# ---- what goes wrong elsewhere


def test_a_gram_in_float32_loses_half_the_digits():
    W = spectrum_matrix(np.geomspace(1, 1e-3, 48)).astype(np.float32)
    ours = svd(Dense(W, Space("tokens", 160), Space("residual", 48)))
    squares = np.linalg.eigvalsh((W.T @ W).astype(np.float64))[::-1]
    naive = np.sqrt(np.maximum(squares, 0.0))
    true = lapack_svd(W.astype(np.float64), compute_uv=False)
    assert np.abs(naive / true - 1).max() > 1e-3
    assert np.abs(ours.S / true - 1).max() < 1e-11


def test_a_dense_float32_svd_of_a_product_invents_its_small_dyads():
    A, B = graded(8, 1e3, False)
    ours = svd(Factored(A, B, RESIDUAL, RESIDUAL))
    _, S, Vh = lapack_svd((A @ B).astype(np.float32))
    assert S[R - 1] / ours.S[-1] > 1.02 or S[R - 1] / ours.S[-1] < 0.98
    assert abs(Vh[R - 1] @ ours.Vh[-1]) < 0.99
    # And it goes on below the rank, with directions of pure rounding.
    assert S[R] > 0


def test_a_randomised_svd_misses_dyads_of_a_flat_spectrum():
    W = spectrum_matrix(np.geomspace(1, 0.4, 128), n=400)
    ours = svd(Dense(W, Space("neurons", 400), Space("residual", 128)), rank=16)
    sketch = W @ normal(50, 128, 26)
    for _ in range(2):
        sketch = W @ (W.T @ np.linalg.qr(sketch)[0])
    Q = np.linalg.qr(sketch)[0]
    _, S, Vh = np.linalg.svd(Q.T @ W, full_matrices=False)
    assert np.abs(S[:16] / ours.S - 1).max() > 0.02
    assert np.linalg.norm(Vh[:16] - Vh[:16] @ ours.Vh.T @ ours.Vh, 2) > 0.3
    true = lapack_svd(W, full_matrices=False)[2][:16]
    assert np.linalg.norm(true - true @ ours.Vh.T @ ours.Vh, 2) < 1e-10
