"""Steering vectors: what is prescribed is read, nothing shorter (or likelier) does it, and covariances are shrunk."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.steering import clustered_interval, first_miss, prescribed, random_vectors, shrunk_covariance

rng = np.random.default_rng(0)


def covariance(d: int) -> np.ndarray:
    A = rng.standard_normal((d, d))
    return A @ A.T + 0.1 * np.eye(d)


@pytest.mark.identity("OP-29")
@pytest.mark.parametrize("whitened", [False, True])
def test_every_feature_reads_what_was_wished_whatever_their_lengths(whitened: bool) -> None:
    F = rng.standard_normal((3, 12)) * np.array([[1e-3], [1.0], [1e3]])
    a = np.array([2.0, -1.0, 0.0])
    delta = prescribed(F, a, covariance(12) if whitened else None)
    # Readings of a feature of length 1e3 have rounding 1e3 times that of the vector.
    np.testing.assert_allclose(F @ delta, a, atol=1e-11 * np.abs(F).max() * np.linalg.norm(delta))


def test_no_other_vector_with_these_readings_is_shorter_and_with_a_covariance_likelier() -> None:
    F, a, S = rng.standard_normal((2, 9)), np.array([1.0, -2.0]), covariance(9)
    free = np.linalg.svd(F)[2][2:]  # directions that no feature reads
    for delta, metric in ((prescribed(F, a), np.eye(9)), (prescribed(F, a, S), np.linalg.inv(S))):
        cost = delta @ metric @ delta
        for step in free:
            other = delta + 0.1 * step
            assert other @ metric @ other > cost
            # The minimum is where the gradient along every free direction vanishes.
            np.testing.assert_allclose(step @ metric @ delta, 0, atol=1e-9 * np.abs(metric).max())


def test_a_single_feature_gives_itself_over_its_squared_length() -> None:
    f = rng.standard_normal(7)
    np.testing.assert_allclose(prescribed(f[None], np.array([3.0])), 3 * f / (f @ f), rtol=1e-12)


def test_features_that_agree_or_vanish_are_refused() -> None:
    f = rng.standard_normal(5)
    with pytest.raises(BadRequest, match="independent"):
        prescribed(np.stack([f, 2 * f]), np.array([1.0, 0.0]))
    with pytest.raises(BadRequest, match="not zero"):
        prescribed(np.zeros((1, 5)), np.ones(1))


def test_the_shrinkage_is_ledoit_and_wolfs() -> None:
    sklearn = pytest.importorskip("sklearn.covariance")
    for n in (5, 40, 2000):
        X = rng.standard_normal((n, 8)) @ rng.standard_normal((8, 8))
        wanted, shrink = sklearn.ledoit_wolf(X)
        found, ours = shrunk_covariance(X)
        np.testing.assert_allclose(ours, shrink, rtol=1e-9)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_random_vectors_have_the_length_and_their_directions_the_covariance() -> None:
    S = np.diag([100.0, 1.0, 1.0])
    drawn = random_vectors(400, 2.5, np.random.default_rng(1), S)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 2.5, rtol=1e-12)
    # A Gaussian with variances 100, 1, 1 has cos² to the first axis above 0.8 for about 17 of 20 draws.
    assert np.mean(drawn[:, 0] ** 2 > 0.8 * 2.5**2) > 0.75
    plain = random_vectors(400, 2.5, np.random.default_rng(1), d=3)
    assert abs(np.mean(plain[:, 0] ** 2) / 2.5**2 - 1 / 3) < 4 * 0.3 / 20  # sd of cos² in 3 dimensions is 0.298


def test_an_interval_counts_names_and_not_their_prompts() -> None:
    values, names = np.array([1.0, 3.0]), ["a", "b"]
    few = clustered_interval(values, names)
    many = clustered_interval(np.repeat(values, 50), [n for n in names for _ in range(50)])
    np.testing.assert_allclose(few, many)
    # Two means 1 and 3: standard error 1, Student's t of one degree of freedom 12.706.
    np.testing.assert_allclose(few, (2, 2 - 12.7062, 2 + 12.7062), rtol=1e-5)


def test_the_dose_of_the_first_miss_is_where_a_known_curve_leaves_its_tangent() -> None:
    """tanh misses its tangent by 20 % where tanh(x)/x = 0.8; a fine grid is linear between its points to 1e-4."""
    doses = np.geomspace(1e-3, 5, 2000)
    x = first_miss(doses, np.tanh(doses), 1.0)
    assert abs(np.tanh(x) / x - 0.8) < 1e-5
    np.testing.assert_allclose(first_miss(-doses, np.tanh(-doses), 1.0), -x)
    assert np.isnan(first_miss(doses, 3 * doses, 3.0))
    assert first_miss(doses, 2 * doses, 1.0) == doses[0]
