"""Composition: scores of all pairs are those of dense products, and their null those of dense rotations."""

import numpy as np
import pytest
from scipy.stats import beta, norm

from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.chance import rotation
from covector.linalg.chance.haar import draw_corners
from covector.linalg.composition import (
    SMALLEST_P,
    End,
    composition,
    cosines_between,
    gamma_tail,
    read_end,
    rotation_skewness,
    rotation_spread,
    written_end,
)
from covector.linalg.maps import Dense, Factored, Space
from covector.linalg.norms import without_mean

STREAM = Space("residual", 14)


def head(seed: int, r: int = 4, tilt: float = 0.0) -> Factored:
    """A random head; `tilt` puts a strong part along 1 on both sides."""
    rng = np.random.default_rng(seed)
    return Factored(rng.standard_normal((14, r)) + tilt, rng.standard_normal((r, 14)) + tilt, STREAM, STREAM)


def mlp_in(seed: int) -> Dense:
    return Dense(np.random.default_rng(seed).standard_normal((14, 40)), STREAM, Space("neurons", 40))


def embedding(seed: int) -> Dense:
    return Dense(np.random.default_rng(seed).standard_normal((50, 14)), Space("token", 50), STREAM)


@pytest.mark.identity("SV-22")
def test_the_squared_norm_of_a_product_is_the_sum_over_pairs_of_dyads() -> None:
    one, other = head(0), head(1, r=6)
    w, r = written_end(one), read_end(other)
    C = cosines_between(w, r)
    whole = np.linalg.norm(one.dense() @ other.dense()) ** 2
    assert np.einsum("i,j,ij->", w.S**2, r.S**2, C**2) == pytest.approx(whole, rel=1e-12)
    # Not symmetric: what the second writes is not what it reads.
    assert np.linalg.norm(other.dense() @ one.dense()) ** 2 != pytest.approx(whole, rel=1e-3)


@pytest.mark.identity("SV-22")
def test_all_pairs_are_scored_as_dense_products_are() -> None:
    writers, readers = [head(0), embedding(2), head(3, r=2)], [head(4), mlp_in(5), head(6).T, head(7)]
    found = composition([written_end(m) for m in writers], [read_end(m) for m in readers], 14)
    for i, w in enumerate(writers):
        for j, r in enumerate(readers):
            A, B = w.dense(), r.dense()
            want = np.linalg.norm(A @ B) ** 2 / (np.linalg.norm(A) * np.linalg.norm(B)) ** 2
            assert found.squared[i, j] == pytest.approx(want, rel=1e-10)
            Vh = np.linalg.svd(A, full_matrices=False)[2][: np.linalg.matrix_rank(A)]
            U = np.linalg.svd(B, full_matrices=False)[0][:, : np.linalg.matrix_rank(B)]
            assert found.aligned[i, j] == pytest.approx(np.abs(Vh @ U).max(), rel=1e-9)
            assert found.tries[i, j] == Vh.shape[0] * U.shape[1]


def moments(weights: np.ndarray, d: int) -> tuple[float, float]:
    """Σ(a − 1/d)² and Σ(a − 1/d)³ over all d weights, most of them zero."""
    padded = np.zeros(d)
    padded[: len(weights)] = weights
    return float(np.sum((padded - 1 / d) ** 2)), float(np.sum((padded - 1 / d) ** 3))


def spectrum(r: int, decay: float) -> np.ndarray:
    weights = np.exp(-decay * np.arange(r))
    return weights / weights.sum()


def rotated(a: np.ndarray, b: np.ndarray, d: int, draws: int) -> np.ndarray:
    """Σ aᵢbⱼOᵢⱼ² for random rotations."""
    rng, step = np.random.default_rng([len(a), len(b), d]), 10_000
    corners = (draw_corners(rng, step, d, len(a), len(b)) ** 2 for _ in range(draws // step))
    return np.concatenate([np.einsum("i,bij,j->b", a, c, b) for c in corners])


@pytest.mark.identity("SV-22")
@pytest.mark.parametrize(("r", "s", "d"), [(1, 1, 5), (3, 2, 8), (4, 8, 8), (6, 6, 7)])
def test_mean_variance_and_skewness_under_a_random_rotation_are_exact(r: int, s: int, d: int) -> None:
    a, b, draws = spectrum(r, 0.7), spectrum(s, 0.4), 100_000
    X = rotated(a, b, d, draws)
    assert X.mean() == pytest.approx(1 / d, abs=4 * X.std() / np.sqrt(draws))
    z = (X - 1 / d) / rotation_spread(moments(a, d)[0], moments(b, d)[0], d)
    # Standard errors from the moments of twice the order.
    for order, want in ((2, 1.0), (3, rotation_skewness(moments(a, d), moments(b, d), d))):
        assert np.mean(z**order) == pytest.approx(want, abs=4 * np.std(z**order) / np.sqrt(draws))


def test_two_single_dyads_have_the_moments_of_a_squared_cosine() -> None:
    for d in (3, 5, 64):
        law, one = beta(0.5, (d - 1) / 2), moments(np.ones(1), d)
        assert rotation_spread(one[0], one[0], d) == pytest.approx(law.std(), rel=1e-12)
        assert rotation_skewness(one, one, d) == pytest.approx(float(law.stats("s")), rel=1e-10)


def test_one_dyad_against_equal_gains_has_the_moments_of_a_squared_projection() -> None:
    for d, k in ((5, 2), (20, 3), (20, 15)):
        law, one, flat = beta(k / 2, (d - k) / 2), moments(np.ones(1), d), moments(np.full(k, 1 / k), d)
        assert rotation_spread(one[0], flat[0], d) == pytest.approx(law.std() / k, rel=1e-12)
        assert rotation_skewness(one, flat, d) == pytest.approx(float(law.stats("s")), rel=1e-9)
    whole = moments(np.full(20, 1 / 20), 20)
    assert rotation_spread(0.5, whole[0], 20) == 0
    assert rotation_skewness((0.5, 0.2), whole, 20) == 0


@pytest.mark.parametrize(("d", "a", "b"), [
    (32, spectrum(8, 0.02), spectrum(8, 0.02)), (32, spectrum(8, 1.0), spectrum(8, 1.0)),
    (32, spectrum(8, 1.0), spectrum(8, 0.05)), (32, spectrum(1, 0.0), spectrum(8, 1.0)),
    (20, spectrum(16, 0.3), spectrum(16, 0.3)), (40, spectrum(10, 0.2), spectrum(10, 0.2)),
])  # fmt: skip
def test_the_matched_law_is_within_a_factor_of_two_of_simulation(d: int, a: np.ndarray, b: np.ndarray) -> None:
    """Spectra that fall off slowly and fast, alike and not; tails of 5 % to 1e-3."""
    X = rotated(a, b, d, 100_000)
    spread = rotation_spread(moments(a, d)[0], moments(b, d)[0], d)
    skew = np.array([rotation_skewness(moments(a, d), moments(b, d), d)])
    for level in (0.05, 0.01, 1e-3):
        # 1e-3 of 100,000 draws are 100: ± 10 %.
        z = np.array([(np.quantile(X, 1 - level) - 1 / d) / spread])
        assert 0.5 < float(gamma_tail(z, skew)[0]) / level < 2


def test_the_gamma_law_is_normal_without_skewness_and_turns_round_with_its_sign() -> None:
    z = np.array([-1.0, 0.5, 3.0])
    np.testing.assert_allclose(gamma_tail(z, np.zeros(3)), norm.sf(z), rtol=1e-12)
    np.testing.assert_allclose(gamma_tail(z, np.full(3, 1.1e-3)), norm.sf(z), rtol=2e-2)
    np.testing.assert_allclose(gamma_tail(z, np.full(3, -0.8)), 1 - gamma_tail(-z, np.full(3, 0.8)), rtol=1e-9)
    assert np.isnan(gamma_tail(np.array([np.nan]), np.ones(1)))[0]


def test_the_level_is_what_chance_reaches_with_five_percent() -> None:
    found = composition([written_end(head(0))], [read_end(head(1)), read_end(mlp_in(2))], 14)
    beyond = (found.level**2 - 1 / 14) / found.spread
    np.testing.assert_allclose(gamma_tail(beyond, found.skew)[0], 0.05, rtol=1e-9)


def test_the_null_of_a_pair_is_made_from_its_spectra_padded_to_the_whole_space() -> None:
    one, other = head(0), head(1, r=6)
    found = composition([written_end(one)], [read_end(other)], 14)
    a, b = (moments(np.linalg.svd(m.dense(), compute_uv=False)[:14] ** 2 / np.linalg.norm(m.dense()) ** 2, 14)
            for m in (one, other))  # fmt: skip
    assert found.spread[0, 0] == pytest.approx(rotation_spread(a[0], b[0], 14), rel=1e-9)
    assert found.skew[0, 0] == pytest.approx(rotation_skewness(a, b, 14), rel=1e-9)


def test_pairs_of_random_heads_pass_for_chance() -> None:
    ends = [(written_end(head(i)), read_end(head(100 + i))) for i in range(40)]
    found = composition([w for w, _ in ends], [r for _, r in ends], 14)
    share = np.mean(found.p <= 0.05)
    # 1600 pairs of 40 × 40 maps; dependence leaves at least the variance of 400 independent ones.
    assert abs(share - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 400)
    assert abs(np.mean(found.squared) - 1 / 14) < 4 * found.squared.std() / np.sqrt(400)
    assert np.mean(found.p_aligned <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)


def test_an_aligned_pair_is_far_beyond_chance_and_told_no_smaller_than_the_law_is_known() -> None:
    one = head(0)
    follower = Factored(one.B.T, one.A.T, STREAM, STREAM)  # reads what `one` writes
    found = composition([written_end(one)], [read_end(follower)], 14)
    weights = written_end(one).weights
    assert found.squared[0, 0] == pytest.approx(float(weights @ weights), rel=1e-9)
    assert found.aligned[0, 0] == pytest.approx(1, abs=1e-12)
    assert found.p[0, 0] == SMALLEST_P


def test_a_part_along_one_is_taken_off_both_ends_where_norms_hide_it() -> None:
    one, other = head(0, tilt=4.0), head(1, tilt=4.0)
    raw = composition([written_end(one)], [read_end(other)], 14)
    bare = composition([written_end(one, centred=True)], [read_end(other, centred=True)], 13)
    assert raw.squared[0, 0] > 0.5
    A, B = without_mean(one.dense()), without_mean(other.dense().T).T
    want = np.linalg.norm(A @ B) ** 2 / (np.linalg.norm(A) * np.linalg.norm(B)) ** 2
    assert bare.squared[0, 0] == pytest.approx(want, rel=1e-10)
    assert bare.squared[0, 0] < 0.3
    for m in (mlp_in(3), embedding(4).T):
        end = read_end(m, centred=True)
        np.testing.assert_allclose(end.rows @ np.ones(14), 0, atol=1e-9)
        np.testing.assert_allclose(end.S, np.linalg.svd(without_mean(m.dense().T).T, compute_uv=False)[:13], rtol=1e-9)


def test_a_rotation_of_the_stream_changes_no_score() -> None:
    Q = rotation(14, seed=3)
    one, other = head(0), head(1)
    turned = [Factored(Q.T @ m.A, m.B @ Q, STREAM, STREAM) for m in (one, other)]
    before = composition([written_end(one)], [read_end(other)], 14)
    after = composition([written_end(turned[0])], [read_end(turned[1])], 14)
    np.testing.assert_allclose(after.squared, before.squared, rtol=1e-10)
    np.testing.assert_allclose(after.aligned, before.aligned, rtol=1e-9)


def test_a_map_of_zeros_composes_with_nothing() -> None:
    silent = Factored(np.zeros((14, 2)), np.zeros((2, 14)), STREAM, STREAM)
    found = composition([written_end(silent), written_end(head(0))], [read_end(silent), read_end(head(1))], 14)
    assert np.isnan(found.squared).tolist() == [[True, True], [True, False]]
    assert np.isnan(found.z).tolist() == [[True, True], [True, False]]
    assert np.isnan(found.p_aligned).tolist() == [[True, True], [True, False]]


def test_ends_of_different_streams_are_refused() -> None:
    end = End(np.ones(1), np.eye(3)[:1])
    with pytest.raises(SpaceMismatch, match="must share one stream of d = 14"):
        composition([written_end(head(0))], [end], 14)
    with pytest.raises(BadRequest, match="expected writers and readers, got 0 and 1"):
        composition([], [end], 3)
