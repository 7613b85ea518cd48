"""Boundaries are where they are said to be, or are refused; pieces of a ReLU layer add up to what it does."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.boundary import between, clusters, pieces, to_norm_boundary
from covector.linalg.standins import pull_norm

D = 12


def test_the_root_of_a_known_function_is_found() -> None:
    """x·w − 3 along the way from 0 to 10 e₀, w = e₀: t = .3; the cubic of it crosses at the same place."""
    low, high = np.zeros(D), 10 * np.eye(D)[0]
    for power in (1, 3):
        found = between(lambda x, power=power: float((x[0] - 3) ** power), low, high)
        assert found.t == pytest.approx(0.3, abs=1e-4 if power == 3 else 1e-11)
    assert between(lambda x: float(x[0]), low, high).t == 0.0


def test_no_sign_change_is_said_and_no_point_is_made_up() -> None:
    with pytest.raises(BadRequest, match="no sign change between the two points: 1 and 101"):
        between(lambda x: float(x[0] ** 2 + 1), np.zeros(D), 10 * np.eye(D)[0])
    with pytest.raises(BadRequest, match="no sign change"):
        between(lambda x: float("nan") if x[0] else -1.0, np.zeros(D), np.eye(D)[0])


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("offset", [0.0, 2.5, -2.5])
def test_the_closed_form_lies_on_the_boundary_of_the_norm(centre: bool, offset: float) -> None:
    rng = np.random.default_rng(0)
    x, w, eps = 3 * rng.standard_normal(D) + 1, rng.standard_normal(D), 1e-2
    found = to_norm_boundary(x, w, offset, centre=centre, eps=eps)
    c = found - found.mean() if centre else found
    assert (w @ c) / np.sqrt(np.mean(c * c) + eps) + offset == pytest.approx(0, abs=1e-12)
    step = found - x
    own = w - w.mean() if centre else w
    assert np.linalg.norm(step - (step @ own) / (own @ own) * own) < 1e-12 * np.linalg.norm(step)


@pytest.mark.identity("OP-7")
@pytest.mark.parametrize("centre", [True, False])
def test_on_the_boundary_exact_and_frozen_norms_agree_and_it_is_the_nearest_point(centre: bool) -> None:
    rng = np.random.default_rng(1)
    x, v, gain = rng.standard_normal(D), rng.standard_normal(D), 1 + 0.3 * rng.standard_normal(D)
    w = gain * v
    found = to_norm_boundary(x, w, 0.0, centre=centre, eps=1e-3)
    exact, frozen = (pull_norm(v, p, (found,), centre=centre, gain=gain, eps=1e-3) for p in ("exact", "frozen"))
    np.testing.assert_allclose(exact, frozen, atol=1e-14)
    own = w - w.mean() if centre else w
    for _ in range(20):  # any other point of the hyperplane is further
        other = rng.standard_normal(D)
        other -= (other @ own) / (own @ own) * own
        assert np.linalg.norm(other - x) >= np.linalg.norm(found - x)


def test_a_constant_beyond_what_the_norm_lets_through_has_no_boundary() -> None:
    w = np.eye(D)[0] - np.eye(D)[1]
    with pytest.raises(BadRequest, match="no sign change"):
        to_norm_boundary(np.arange(D, dtype=float), w, np.sqrt(D * 2) * 1.001, centre=True, eps=1e-5)


@pytest.mark.identity("OP-19")
def test_relu_is_linear_on_every_piece_and_the_pieces_are_all() -> None:
    """Independent: a thousand points of the way; each has the signs of the piece it falls in, and relu(a) is linear."""
    rng = np.random.default_rng(2)
    low, high = rng.standard_normal(30), rng.standard_normal(30)
    found = pieces(low, high)
    crossing = int(np.sum((low > 0) != (high > 0)))
    assert len(found.lengths) == crossing + 1
    for t in rng.random(1000):
        i = int(np.searchsorted(found.at, t) - 1)
        np.testing.assert_array_equal(found.open[i] > 0, low + t * (high - low) > 0)
    exact = np.maximum(high, 0) - np.maximum(low, 0)
    np.testing.assert_allclose(found.mean * (high - low), exact, atol=1e-14)
    assert found.lengths.sum() == pytest.approx(1)


def test_well_separated_groups_are_found() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, 200)
    rows = 20 * rng.standard_normal((4, D))[truth] + 0.1 * rng.standard_normal((200, D))
    found = clusters(rows, 4, rng).of(rows)
    assert len({(int(a), int(b)) for a, b in zip(truth, found, strict=True)}) == 4
    with pytest.raises(BadRequest, match="1 to 200 groups"):
        clusters(rows, 201, rng)
