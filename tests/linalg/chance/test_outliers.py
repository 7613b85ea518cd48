"""Robust z scores and the law of their maximum."""

import numpy as np
import pytest

from covector.linalg.chance.marchenko_pastur import tracy_widom_draws
from covector.linalg.chance.outliers import (
    Law,
    largest_layer_z_null,
    largest_z_null,
    robust_z,
    without_trend,
)
from covector.linalg.chance.random_matrix import spectrum_null

LAWS: tuple[Law, Law] = ("largest value", "normal")


def test_the_score_is_distance_from_the_median_in_median_distances() -> None:
    # Median 3, distances 2 1 0 1 97 with median 1; 1.4826 = 1/Φ⁻¹(¾).
    np.testing.assert_allclose(
        robust_z(np.array([1.0, 2, 3, 4, 100])), np.array([-2, -1, 0, 1, 97]) / 1.482602218505602
    )


@pytest.mark.identity("SV-36")
def test_shift_and_scale_change_no_score() -> None:
    x = np.random.default_rng(0).standard_normal(9)
    np.testing.assert_allclose(robust_z(5 * x - 3), robust_z(x), rtol=1e-12)


def test_what_has_no_usual_value_has_no_score() -> None:
    assert np.isnan(robust_z(np.array([1.0, 2.0, 3.0]))).all()
    assert np.isnan(robust_z(np.array([1.0, 1.0, 1.0, 1.0, 7.0]))).all()
    found = robust_z(np.array([-np.inf, 1.0, 2.0, 3.0, 4.0]))
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], robust_z(np.array([1.0, 2.0, 3.0, 4.0])))


def test_values_that_differ_by_rounding_alone_are_equal() -> None:
    x = 1 + 1e-15 * np.arange(9.0)
    x[3] = 2
    assert np.isfinite(robust_z(x)).all()
    assert np.isnan(robust_z(x, noise=1e-10)).all()
    np.testing.assert_array_equal(robust_z(np.arange(9.0), noise=1.999), robust_z(np.arange(9.0)))
    assert np.isnan(robust_z(np.arange(9.0), noise=2.001)).all()


@pytest.mark.parametrize("law", ["normal", "largest value"])
@pytest.mark.parametrize("n", [5, 150])
def test_the_maximum_exceeds_its_level_as_often_as_it_should(n: int, law: Law) -> None:
    level = np.quantile(largest_z_null([n], law=law, draws=4000, seed=1), 0.95)
    rng = np.random.default_rng(2)
    values = rng.standard_normal((2000, n)) if law == "normal" else tracy_widom_draws(rng, (2000, n))
    share = np.mean(np.abs(robust_z(7 * values + 2)).max(axis=1) > level)
    assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 * (1 / 2000 + 1 / 4000)))


def test_largest_values_of_random_heads_follow_the_law_that_is_said_and_not_the_normal_one() -> None:
    # σ₁ of 300 untrained models of 144 heads. Binomial error 1.3 %; heads as small as 16 stay below the level.
    largest = np.log(spectrum_null(64, 64, 16, draws=300 * 144, seed=7).values[:, 0]).reshape(300, 144)
    beyond = np.abs(robust_z(largest)).max(axis=1)
    said, normal = (np.quantile(largest_z_null([144], law=law, draws=4000, seed=1), 0.95) for law in LAWS)
    assert np.mean(beyond > said) < 0.05 + 3 * 0.013
    assert np.mean(beyond > normal) > np.mean(beyond > said) + 0.02


def test_layers_are_scored_by_the_medians_of_their_heads() -> None:
    null = largest_layer_z_null([3, 3, 3, 3, 3], law="normal", draws=3000, seed=1)
    medians = np.median(np.random.default_rng(3).standard_normal((3000, 5, 3)), axis=2)
    share = np.mean(np.abs(robust_z(medians)).max(axis=1) > np.quantile(null, 0.95))
    assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 * 2 / 3000))


def test_too_few_places_have_no_null() -> None:
    assert np.isnan(largest_z_null([3], law="normal", draws=10, seed=0)).all()
    assert np.isnan(largest_layer_z_null([8, 8], law="normal", draws=10, seed=0)).all()


def test_a_line_is_taken_off_and_a_step_stays() -> None:
    at = [0, 1, 2, 3, 5, 6, 7]
    line = 0.4 * np.array(at) + 3
    step = line + np.array([0, 0, 0, 0, 0, 0, 2.0])
    np.testing.assert_allclose(np.ptp(without_trend(line, at)), 0, atol=1e-12)
    left = without_trend(step, at)
    np.testing.assert_allclose(left - left[0], [0, 0, 0, 0, 0, 0, 2], atol=1e-12)


def test_the_null_of_a_trend_repeats_taking_it_off() -> None:
    at = list(range(8))
    null = largest_layer_z_null([1] * 8, law="normal", draws=4000, seed=1, at=at)
    values = np.random.default_rng(5).standard_normal((2000, 8)) + 3.0 * np.arange(8)
    share = np.mean(np.abs(robust_z(without_trend(values, at))).max(axis=1) > np.quantile(null, 0.95))
    assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 * (1 / 2000 + 1 / 4000)))


def test_the_same_seed_gives_the_same_null_and_a_longer_one_begins_with_it() -> None:
    one, other = (largest_z_null([6, 6], law="normal", draws=d, seed=3) for d in (100, 600))
    np.testing.assert_array_equal(one, other[:100])
