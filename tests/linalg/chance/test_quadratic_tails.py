"""Tails of gains and of cosines under a covariance: against exact laws where there are some, else simulation."""

import math

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.chance.laws import Matched
from covector.linalg.chance.quadratic import gain_tail, matched_tail


@pytest.mark.parametrize(("r", "within"), [(1, 1e-9), (2, 0.06), (8, 0.011), (64, 0.002)])
@pytest.mark.parametrize("p", [0.9, 0.5, 0.05, 1e-4, 1e-12])
def test_the_gain_of_equal_singular_values_follows_the_beta_law(r: int, within: float, p: float) -> None:
    length = float(chance.quantile(p, 128, r))
    assert gain_tail(np.full(r, 3.0), length**2 * 128 / r, 128) == pytest.approx(p, rel=within)


@pytest.mark.parametrize("r", [12, 40])
def test_the_gain_of_any_spectrum_agrees_with_simulation(r: int) -> None:
    rng = np.random.default_rng(0)
    S, d, draws = np.geomspace(3, 0.1, r), 40, 40_000
    x = rng.standard_normal((draws, d)) ** 2
    gains = (x[:, :r] / x.sum(axis=1, keepdims=True)) @ S**2 * d / np.sum(S**2)
    for level in np.quantile(gains, [0.01, 0.3, 0.7, 0.95, 0.99]):
        share = float(np.mean(gains >= level))
        # Four standard errors, and 4 % of the nearer end for the approximation where a few gains outweigh the rest.
        slack = 4 * math.sqrt(share * (1 - share) / draws) + 0.04 * min(share, 1 - share)
        assert gain_tail(S, float(level), d) == pytest.approx(share, abs=slack)


def test_the_tail_of_a_gain_is_smooth_at_its_mean_and_falls() -> None:
    S = np.geomspace(3, 0.1, 20)
    at = [gain_tail(S, gain, 30) for gain in (0.5, 1 - 1e-3, 1 - 1e-6, 1.0, 1 + 1e-6, 1 + 1e-3, 2.0)]
    assert at == sorted(at, reverse=True)
    assert at[2] == pytest.approx(at[4], abs=1e-5)


@pytest.mark.identity("SV-36")
def test_the_scale_of_a_map_does_not_change_the_tail_of_its_gain() -> None:
    S = np.geomspace(3, 0.1, 20)
    assert gain_tail(1e6 * S, 1.7, 30) == pytest.approx(gain_tail(S, 1.7, 30), rel=1e-9)


def test_gains_beyond_what_a_map_can_reach_have_no_chance() -> None:
    S = np.array([2.0, 1.0, 1.0])
    assert gain_tail(S, 4 / 6 * 10 * 1.001, 10) == 0.0
    assert gain_tail(S, 0.0, 10) == 1.0
    assert math.isnan(gain_tail(np.full(10, 2.0), 1.0, 10))
    for wrong in (lambda: gain_tail(np.zeros(3), 1.0, 5), lambda: gain_tail(np.ones(6), 1.0, 5),
                  lambda: gain_tail(np.ones(3), -1.0, 5), lambda: gain_tail(-np.ones(3), 1.0, 5)):  # fmt: skip
        with pytest.raises(BadRequest, match="expected 1 to 5 singular values"):
            wrong()


def test_under_an_even_covariance_the_cosine_follows_the_beta_law_far_into_the_tail() -> None:
    d, cosines = 48, np.array([0.0, 0.05, 0.2, 0.5, 0.6])
    found = matched_tail(cosines, np.eye(d)[3], Matched(2.0 * np.eye(d)), draws=4000, seed=0)
    exact = np.asarray(chance.tail(cosines, d))
    np.testing.assert_array_less(np.abs(found.value - exact), 4 * np.asarray(found.error) + 1e-12)
    assert np.all(np.asarray(found.error)[1:] < 0.15 * exact[1:])


def test_under_any_covariance_the_tail_agrees_with_simulation() -> None:
    rng, d, draws = np.random.default_rng(0), 20, 60_000
    root = np.geomspace(1, 0.05, d)[:, None] * np.linalg.qr(rng.standard_normal((d, d)))[0]
    c = root[0] + 0.3 * root[5]
    c /= np.linalg.norm(c)
    v = rng.standard_normal((draws, d)) @ root
    cosines = np.abs(v @ c) / np.linalg.norm(v, axis=1)
    for level in np.quantile(cosines, [0.05, 0.5, 0.9, 0.99, 0.999]):
        found = matched_tail(float(level), c, Matched(root), draws=2000, seed=1)
        share = float(np.mean(cosines >= level))
        slack = 4 * (float(found.error) + math.sqrt(share / draws))
        assert float(found.value) == pytest.approx(share, abs=slack)


def test_a_direction_outside_the_covariance_is_never_met() -> None:
    law = Matched(np.eye(4)[:2])
    assert matched_tail(0.1, np.eye(4)[3], law, draws=10, seed=0).value == 0.0
    assert matched_tail(0.0, np.eye(4)[3], law, draws=10, seed=0).value == 1.0


def test_the_same_seed_gives_the_same_tail() -> None:
    law = Matched(np.diag([2.0, 1.0, 0.5]))
    one, two, other = (matched_tail(0.9, np.eye(3)[0], law, draws=50, seed=s).value for s in (3, 3, 4))
    assert one == two != other
    with pytest.raises(BadRequest, match="expected draws >= 2, got 1"):
        matched_tail(0.9, np.eye(3)[0], law, draws=1, seed=0)
