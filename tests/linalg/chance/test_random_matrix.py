"""Laws of random spectra: closed forms against quadrature, simulation from small factors against whole matrices."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import gamma, ks_2samp

from covector.errors import BadRequest
from covector.linalg.chance import marchenko_pastur as law
from covector.linalg.chance import random_matrix as noise
from covector.linalg.chance.random_matrix import spectrum_null
from covector.linalg.spectra import sizes

SHAPES = [(24, 60, None), (60, 24, None), (30, 30, None), (20, 26, 6), (20, 26, 20), (5, 12, 9), (12, 5, 9), (6, 5, 9)]


def whole(n: int, m: int, inner: int | None, draws: int, seed: int = 11) -> np.ndarray:
    """Singular values of whole Gaussian matrices or products: the definition, nothing reduced."""
    rng = np.random.default_rng(seed)
    if inner is None:
        made = rng.standard_normal((draws, n, m))
    else:
        made = rng.standard_normal((draws, n, inner)) @ rng.standard_normal((draws, inner, m))
    return np.linalg.svdvals(made)[:, : min(n, m, inner or n)]


def spectrum(seed: int, shape: tuple[int, int], inner: int | None = None) -> np.ndarray:
    return whole(*shape, inner, 1, seed)[0]


@pytest.mark.parametrize(("p", "q"), [(30, 100), (50, 50), (1, 400)])
def test_the_share_below_a_value_is_the_integral_of_the_density(p: int, q: int) -> None:
    y = p / q
    low, high = (1 - np.sqrt(y)) ** 2, (1 + np.sqrt(y)) ** 2
    for at in (0.1, 0.4, 0.8):
        x = low + at * (high - low)
        # x = centre − h cos θ takes the root singularities of the density away.
        h, centre = (high - low) / 2, (high + low) / 2
        theta = np.arccos((centre - x) / h)
        area = quad(lambda t: (h * np.sin(t)) ** 2 / (2 * np.pi * y * (centre - h * np.cos(t))), 0, theta)[0]  # noqa: B023
        assert law.mp_cdf(np.array([np.sqrt(q * x)]), p, q)[0] == pytest.approx(area, abs=1e-9)
        assert law.mp_cdf(np.array([np.sqrt(q * x)]), q, p)[0] == pytest.approx(area, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(40, 90), (64, 64)])
def test_quantiles_invert_the_share_and_end_at_the_edges(n: int, m: int) -> None:
    shares = np.array([0.0, 0.01, 0.5, 0.97, 1.0])
    values = law.mp_quantiles(shares, n, m)
    # Near the edges dF/dθ vanishes, so 1e-12 in the value is what to expect there, and 1e-8 in the share.
    np.testing.assert_allclose(law.mp_cdf(values, n, m), shares, atol=1e-8)
    np.testing.assert_allclose(values[[0, -1]], law.mp_edges(n, m), atol=1e-6)


@pytest.mark.identity("SV-34")
@pytest.mark.parametrize("shape", [(400, 400), (300, 1200), (900, 150)])
def test_a_gaussian_matrix_lies_within_the_edges_and_follows_the_law(shape: tuple[int, int]) -> None:
    S = spectrum(2, shape)
    low, high = law.mp_edges(*shape)
    margin = 4 * min(shape) ** (-1 / 6)  # four widths of Tracy–Widom's law
    assert S[0] < high + margin
    assert S[0] > high - margin
    assert S[-1] > low - margin
    # Eigenvalues repel: the empirical law is within O(log p / p) of the limit.
    at = np.arange(S.size, 0, -1) - 0.5
    assert np.abs(law.mp_cdf(S, *shape) - at / S.size).max() < 6 / S.size


def test_the_tracy_widom_law_has_its_published_quantiles_and_moments() -> None:
    # Johnstone 2001, table 1: F₁(0.9793) = .95, F₁(2.0234) = .99. Bornemann 2010: mean −1.20653…, variance 1.60778…
    assert law.tracy_widom_quantile(0.95) == pytest.approx(0.9793, abs=1e-4)
    assert law.tracy_widom_quantile(0.99) == pytest.approx(2.0234, abs=1e-4)
    grid = np.linspace(-10, 8, 721)
    table = np.array([law.tracy_widom_cdf(s) for s in grid])
    middle, mass = (grid[1:] + grid[:-1]) / 2, np.diff(table)
    mean = mass @ middle
    assert mean == pytest.approx(-1.2065335746, abs=2e-5)
    assert mass @ middle**2 - mean**2 == pytest.approx(1.6077810346, abs=1e-3)


def test_draws_of_the_tracy_widom_law_follow_it() -> None:
    # The shifted gamma is within 1.2e-3 of F₁ everywhere; checked against the determinant, not against draws.
    grid = np.linspace(-6, 4, 51)
    (shape, scale), shift = law._GAMMA, law._GAMMA_SHIFT
    approximation = gamma.cdf(grid + shift, shape, scale=scale)
    assert np.abs(approximation - [law.tracy_widom_cdf(s) for s in grid]).max() < 1.2e-3
    drawn = law.tracy_widom_draws(np.random.default_rng(0), (20000,))
    assert drawn.mean() == pytest.approx(-1.2065, abs=4 * 1.268 / np.sqrt(20000))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 200), (100, 100)])
def test_the_tracy_widom_level_is_that_of_whole_matrices(shape: tuple[int, int]) -> None:
    largest = spectrum_null(*shape, draws=8000, seed=4).values[:, 0]
    share = np.mean(largest < law.tw_level(0.95, *shape))
    # Binomial error of 8000 draws is 0.0024; Ma's approximation is good to 0.005 at p = 16.
    assert share == pytest.approx(0.95, abs=0.005 + 3 * 0.0024)


@pytest.mark.identity("SV-34")
@pytest.mark.parametrize(("n", "m", "inner"), SHAPES)
def test_the_null_has_the_mean_energy_of_its_shape(n: int, m: int, inner: int | None) -> None:
    null = spectrum_null(n, m, inner, draws=4000, seed=1)
    energy = np.sum(null.values**2, axis=1)
    error = energy.std() / np.sqrt(len(energy))
    assert energy.mean() == pytest.approx(noise.mean_square(n, m, inner), abs=4 * error)
    assert noise.mean_square(n, m, inner) == n * m * (inner or 1)


@pytest.mark.identity("SV-34")
@pytest.mark.parametrize(("n", "m", "inner"), SHAPES)
def test_small_factors_have_the_spectrum_of_whole_products(n: int, m: int, inner: int | None) -> None:
    null, direct = spectrum_null(n, m, inner, draws=3000, seed=1).values, whole(n, m, inner, 3000)
    assert null.shape == direct.shape
    for i in {0, null.shape[1] // 2, null.shape[1] - 1}:
        assert ks_2samp(null[:, i], direct[:, i]).pvalue > 1e-3  # 24 tests: a false alarm in 40 seeds
    # Values of one draw hang together: their ratio has the right law too.
    assert ks_2samp(null[:, 0] / null[:, -1], direct[:, 0] / direct[:, -1]).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(300, 300), (300, 1200)])
def test_the_corner_of_the_bidiagonal_model_has_the_largest_values(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cornered = spectrum_null(*shape, draws=1000, seed=1).values
    monkeypatch.setattr(noise, "WHOLE", 10**6)
    full = spectrum_null(*shape, draws=1000, seed=2).values
    for i in (0, 3, noise.TOP - 1):
        assert ks_2samp(cornered[:, i], full[:, i]).pvalue > 1e-3
    # The rest stands still at the limit law, whose median the full ones have within 0.2 %.
    np.testing.assert_allclose(np.median(cornered, axis=1).mean(), np.median(full, axis=1).mean(), rtol=2e-3)
    assert np.all(np.diff(cornered, axis=1) <= 0)


def test_the_product_null_is_not_that_of_one_matrix() -> None:
    product, single = spectrum_null(96, 96, 24, draws=400, seed=0), spectrum_null(24, 96, draws=400, seed=0)
    assert noise.count_levels(product)[2] < noise.count_levels(single)[2] - 1
    # Read against the law of one matrix, a random product seems to have spikes nearly always.
    spurious = [noise.spikes(S, single).count > 0 for S in whole(96, 96, 24, 100)]
    assert np.mean(spurious) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "inner"), [(40, 160, None), (64, 64, 16), (6, 24, None)])
def test_random_maps_show_spikes_as_often_as_the_level_says(n: int, m: int, inner: int | None) -> None:
    null, maps = spectrum_null(n, m, inner, draws=4000, seed=0), whole(n, m, inner, 2000, seed=17)
    found = [noise.spikes(3.7 * S, null) for S in maps]
    # Binomial error of 2000 maps at 5 % is 0.49 %, that of the level from 4000 draws 0.34 %: 0.6 % together; four.
    assert np.mean([s.count > 0 for s in found]) == pytest.approx(0.05, abs=0.024)
    assert np.mean([s.p <= 0.05 for s in found]) == pytest.approx(0.05, abs=0.024)
    above = [3.7 * S[0] > noise.largest_at_same_norm(3.7 * S, null) for S in maps]
    assert np.mean(above) == pytest.approx(0.05, abs=0.024)
    below = np.array([[sizes(S).stable, sizes(S).participation, sizes(S).effective] for S in maps])
    np.testing.assert_allclose((below < noise.count_levels(null)).mean(axis=0), 0.05, atol=0.024)


@pytest.mark.parametrize("inner", [None, 24])
def test_planted_spikes_are_counted(inner: int | None) -> None:
    rng, (n, m) = np.random.default_rng(8), (80, 120)
    base = rng.standard_normal((n, m)) if inner is None else rng.standard_normal((n, 24)) @ rng.standard_normal((24, m))
    null = spectrum_null(n, m, inner, draws=1000, seed=0)
    edge = noise.spikes(np.linalg.svdvals(base)[: null.rank], null).edge
    u, v = (np.linalg.qr(rng.standard_normal((size, 3)))[0] for size in (n, m))
    if inner is None:
        planted = base + u * (np.array([3.0, 2.5, 2.0]) * edge) @ v.T
    else:  # inside the factors, so that the rank stays what it is: three of the 24 directions grow
        U, S, Vh = np.linalg.svd(base, full_matrices=False)
        S[:3] = np.array([3.0, 2.5, 2.0]) * edge
        planted = U * S @ Vh
    found = noise.spikes(np.linalg.svdvals(planted)[: null.rank], null)
    assert found.count == 3
    assert found.p == pytest.approx(1 / 1001)


def test_the_noise_of_the_bulk_is_found_beside_spikes() -> None:
    null, rng = spectrum_null(60, 240, draws=500, seed=0), np.random.default_rng(4)
    M = 0.7 * rng.standard_normal((60, 240))
    M[:, 0] += 40.0 * rng.standard_normal(60)
    # One spike in 60 lifts the median by 1/60 of the spectrum's width, half a per cent here; sampling adds half a one.
    assert noise.bulk_scale(np.linalg.svdvals(M), null) == pytest.approx(0.7, rel=0.015)


def test_soft_rank_is_one_for_noise_and_small_beside_a_spike() -> None:
    null, S = spectrum_null(60, 240, draws=500, seed=0), spectrum(1, (60, 240))
    assert noise.soft_rank(S, null) == pytest.approx(1.0, abs=0.1)  # the largest fluctuates by p^(−2/3) = 6 %
    S[0] *= 10
    assert noise.soft_rank(S, null) == pytest.approx(0.01, rel=0.1)


@pytest.mark.identity("SV-36")
def test_scale_and_transposition_change_no_probability() -> None:
    null, S = spectrum_null(30, 50, draws=500, seed=0), spectrum(3, (30, 50))
    one, other = noise.spikes(S, null), noise.spikes(1e4 * S, null)
    assert (other.p, other.count) == (one.p, one.count)
    assert other.edge == pytest.approx(1e4 * one.edge, rel=1e-12)
    assert noise.soft_rank(1e4 * S, null) == pytest.approx(noise.soft_rank(S, null), rel=1e-12)
    assert noise.largest_p(1e4 * S, null).value == noise.largest_p(S, null).value


def test_values_cut_as_zeros_count_in_the_median() -> None:
    null = spectrum_null(10, 40, draws=200, seed=0)
    S = spectrum(3, (10, 40))
    assert noise.bulk_scale(S[:8], null) == noise.bulk_scale(S, null)  # two zeros below the median, as two values
    above_nothing = noise.spikes(S[:4], null)  # more than half are zero: noise of that median is zero too
    assert (above_nothing.count, above_nothing.edge) == (4, 0.0)
    assert above_nothing.p == pytest.approx(1 / 201)
    nothing = noise.spikes(np.zeros(0), null)
    assert nothing.count == 0
    assert np.isnan([nothing.edge, nothing.p]).all()


@pytest.mark.identity("SV-33")
def test_a_longer_null_begins_with_the_shorter_and_seeds_differ() -> None:
    short, long = spectrum_null(8, 9, 4, draws=70, seed=5), spectrum_null(8, 9, 4, draws=200, seed=5)
    np.testing.assert_array_equal(long.values[:70], short.values)
    assert not np.array_equal(spectrum_null(8, 9, 4, draws=70, seed=6).values, short.values)


def test_bands_enclose_their_share_at_each_index() -> None:
    null = spectrum_null(20, 30, draws=4000, seed=0)
    low, high = noise.norm_band(null, 0.9)
    drawn = whole(20, 30, None, 2000)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    inside = np.mean((drawn >= low) & (drawn <= high), axis=0)
    np.testing.assert_allclose(inside, 0.9, atol=4 * np.sqrt(0.09 / 2000) + 0.01)


def test_requests_without_an_answer_are_refused() -> None:
    null = spectrum_null(8, 9, 4, draws=100, seed=0)
    with pytest.raises(BadRequest, match="at most 4 singular values, came 5"):
        noise.spikes(np.ones(5), null)
    with pytest.raises(BadRequest, match="sizes and draws >= 1"):
        spectrum_null(0, 4, draws=10, seed=0)
    with pytest.raises(BadRequest, match="lie in"):
        law.mp_quantiles(np.array([1.2]), 4, 4)
    with pytest.raises(BadRequest, match="between 0 and 1"):
        law.tracy_widom_quantile(1.0)
