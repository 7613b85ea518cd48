"""p_dir, p_cov and p_svd: calibrated under their own null, blind or alarmed under each other's."""

import numpy as np
import pytest
from scipy import stats

from covector.errors import BadRequest
from covector.linalg.chance import (
    Matched,
    covariance_root,
    haar_directions,
    haar_frame,
    matched_directions,
    monte_carlo_p,
    null_maxima,
    p_cov,
    p_dir,
    p_dir_exact,
    p_svd,
    p_svd_exact,
    rotate_inside,
    rotation,
    tail,
)

DIRECTIONS = 2000


def anisotropic_dictionary(n=60, d=24, mean=1.0):
    """Unit rows with a common mean and a falling spectrum, as unembedding rows have."""
    rows = np.random.default_rng(0).standard_normal((n, d)) / np.arange(1, d + 1) + mean * np.eye(d)[0]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def best(directions, vectors):
    return np.abs(directions @ vectors.T).max(axis=1)


def is_uniform(p):
    return stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.identity("SV-30")
@pytest.mark.parametrize("d", [16, 128, 768])
def test_p_of_a_haar_direction_against_one_vector_is_uniform(d):
    cosine = haar_directions(DIRECTIONS, d, seed=1) @ haar_directions(1, d, seed=2)[0]
    assert is_uniform(tail(cosine, d))
    assert is_uniform(p_dir(cosine, d, 1))
    # The check sees p-values that forget one pole, and a space taken one quarter too small.
    assert not is_uniform(tail(cosine, d) / 2)
    assert not is_uniform(tail(cosine, d * 3 // 4))


@pytest.mark.identity("SV-30")
def test_p_of_haar_directions_against_a_real_looking_dictionary_is_uniform():
    vectors = anisotropic_dictionary()
    scores = best(haar_directions(DIRECTIONS, 24, seed=1), vectors)
    assert is_uniform(p_dir_exact(scores, vectors, draws=20_000, seed=2).value)
    # Scored against other vectors than the null's, they are not: correlation matters.
    assert not is_uniform(p_dir_exact(scores, haar_directions(60, 24, seed=3), draws=20_000, seed=2).value)


def test_the_closed_form_is_an_upper_bound_for_any_dictionary():
    for vectors in (anisotropic_dictionary(), np.eye(24), haar_directions(300, 24, seed=4)):
        scores = np.linspace(0.2, 0.95, 40)
        null = null_maxima(vectors, draws=20_000, seed=5)
        simulated = monte_carlo_p(scores, null)  # without the bound
        assert np.all(p_dir(scores, 24, len(vectors)) >= simulated.value - 4 * simulated.error - 2 / 20_000)


def test_the_closed_form_is_exact_for_orthonormal_vectors_once_no_two_can_win():
    d, score = 4, 0.75  # cos² = 0.5625 > ½
    simulated = monte_carlo_p(score, null_maxima(np.eye(d), draws=100_000, seed=6))
    assert p_dir(score, d, d) == pytest.approx(simulated.value, abs=4 * simulated.error)
    # Šidák's product would be too small there, by more than the simulation's error.
    assert 1 - (1 - tail(score, d)) ** d < simulated.value - 4 * simulated.error


def test_far_tails_are_reported_by_the_bound_not_at_the_floor():
    vectors = anisotropic_dictionary()
    estimate = p_dir_exact(np.array([0.3, 0.999, np.nan]), vectors, draws=1000, seed=7)
    assert estimate.value[0] > 0.01
    assert estimate.error[0] > 0
    assert estimate.value[1] == 60 * tail(0.999, 24)
    assert estimate.error[1] == 0
    assert np.isnan(estimate.value[2])


def test_structure_of_the_basis_itself_alarms_p_dir_and_not_p_cov():
    vectors = anisotropic_dictionary()
    root = covariance_root(vectors)
    scores = best(matched_directions(root.T @ root, DIRECTIONS, seed=8), vectors)
    assert is_uniform(p_cov(scores, vectors, draws=20_000, seed=9).value)
    assert np.mean(p_dir_exact(scores, vectors, draws=20_000, seed=9).value < 0.05) > 0.5


def test_the_common_mean_of_the_basis_is_within_reach_of_p_cov_and_beyond_that_of_p_dir():
    vectors = anisotropic_dictionary(mean=3.0)
    mean = vectors.mean(axis=0, keepdims=True)
    score = best(mean / np.linalg.norm(mean), vectors)
    assert p_dir(score, 24, 60)[0] < 1e-6
    assert p_cov(score, vectors, draws=2000, seed=1).value[0] > 0.01
    # A centred covariance has nothing along the mean and would call the mean itself a discovery.
    centred = null_maxima(vectors, draws=2000, seed=1, law=Matched(covariance_root(vectors - mean)))
    assert monte_carlo_p(score, centred).value[0] < 0.001


@pytest.mark.identity("SV-30")
def test_p_svd_of_random_bases_of_the_subspace_is_uniform_and_its_bound_conservative():
    d, r = 24, 5
    vectors = anisotropic_dictionary()
    basis = haar_frame(d, r, seed=1)
    rows = np.concatenate([rotate_inside(basis, seed=(2, draw))[:1] for draw in range(DIRECTIONS)])
    scores = best(rows, vectors)
    exact = p_svd_exact(scores, vectors @ basis.T, d=d, draws=20_000, seed=3)
    assert is_uniform(exact.value)
    bound = p_svd(scores, np.linalg.norm(vectors @ basis.T, axis=1), r, d)
    for alpha in (0.01, 0.05, 0.2):
        assert np.mean(bound <= alpha) <= alpha + 4 * np.sqrt(alpha * (1 - alpha) / DIRECTIONS)
    # The check sees projections on another subspace of the same rank.
    other = null_maxima(vectors @ haar_frame(d, r, seed=5).T, draws=20_000, seed=3)
    assert not is_uniform(monte_carlo_p(scores, other).value)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.05, 0.002])  # few of the vectors matter, or all do
@pytest.mark.parametrize(("n", "excess"), [(1000, 1e-11), (5000, 0.03), (5007, 0.03)])
def test_p_svd_is_the_sum_of_the_exact_tails_of_every_vector_and_never_less(spread, n, excess):
    norms = np.random.default_rng(1).normal(0.3, spread, n)
    norms[:3] = 0  # vectors outside the subspace can never win
    scores = norms.max() * np.array([0.0, 0.4, 0.85, 0.9, 0.97, np.nan])
    expected = np.array([sum(float(tail(score / e, 16)) for e in norms if e > score) for score in scores[:-1]])
    p = p_svd(scores, norms, 16, 64)
    assert np.isnan(p[-1])
    expected = np.minimum(expected, 1)
    assert np.all(p[:-1] >= expected * (1 - 1e-11))
    assert np.all(p[:-1] <= expected * (1 + excess))
    assert p[1] == 1 > p[2] > p[4] > 0  # both sides of the cap are exercised


def test_p_svd_finds_a_planted_basis_and_says_nothing_about_the_subspace():
    d, r = 64, 8
    subspace = haar_frame(d, r, seed=1)
    tokens = np.concatenate([subspace, haar_directions(200, d, seed=2)])
    norms = np.linalg.norm(tokens @ subspace.T, axis=1)
    # The dyads are tokens: any other basis of this subspace would miss them.
    assert np.all(p_svd(best(subspace, tokens), norms, r, d) < 1e-6)
    # A rotated basis of the same subspace: related to the tokens (p_dir), but not special in its subspace.
    turned = best(rotate_inside(subspace, seed=3), tokens)
    assert np.median(p_dir(turned, d, len(tokens))) < 0.05
    assert np.all(p_svd(turned, norms, r, d) > 0.05)


def test_p_svd_is_not_defined_without_another_basis():
    norms = np.array([0.9, 1.0])
    assert np.isnan(p_svd(np.array([0.5, 0.6]), norms, 8, 8)).all()
    assert np.isnan(p_svd(0.5, norms, 1, 8))
    vectors = haar_directions(5, 8, seed=1)
    assert np.isnan(p_svd_exact(0.5, vectors @ rotation(8, 2), d=8, draws=100, seed=0).value)


@pytest.mark.identity("SV-30")
def test_false_discoveries_among_random_directions_stay_below_the_rate():
    vectors = haar_directions(40, 32, seed=1)
    scores = best(haar_directions(20_000, 32, seed=2), vectors)
    assert np.mean(p_dir(scores, 32, 40) <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 20_000)


def test_contradictory_requests_are_refused():
    with pytest.raises(BadRequest, match="needs n >= 1"):
        p_dir(0.5, 8, 0)
    with pytest.raises(BadRequest, match=r"exceeds the longest projection 0\.4, got 0\.5"):
        p_svd(0.5, np.array([0.4, 0.2]), 3, 8)
    with pytest.raises(BadRequest, match=r"lie in \[0, 1\]"):
        p_svd(0.5, np.array([3.0]), 3, 8)
    with pytest.raises(BadRequest, match="got r = 9"):
        p_svd(0.5, np.array([0.6]), 9, 8)
