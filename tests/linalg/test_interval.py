"""Intervals of means: they cover what they say, also for few and for dependent measurements."""

import numpy as np
import pytest

from covector.linalg.interval import half_width


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_an_interval_of_normal_measurements_covers_95_percent(n: int) -> None:
    values = np.random.default_rng(n).standard_normal((20_000, n))
    covered = np.mean(np.abs(values.mean(axis=1)) <= half_width(values))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 20_000)


def test_an_interval_over_clusters_covers_95_percent_where_one_over_rows_does_not() -> None:
    rng = np.random.default_rng(0)
    own = np.repeat(rng.standard_normal((20_000, 5)), 3, axis=1)  # 5 names under 3 templates, all of it the name
    clusters = np.repeat(np.arange(5), 3)
    covered = np.mean(np.abs(own.mean(axis=1)) <= half_width(own, clusters))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 20_000)
    assert np.mean(np.abs(own.mean(axis=1)) <= half_width(own)) < 0.8


def test_one_measurement_has_no_interval() -> None:
    assert np.isnan(half_width(np.array([1.0])))
    assert np.isnan(half_width(np.array([1.0, 2.0]), np.array([3, 3])))
