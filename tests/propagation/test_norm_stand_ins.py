"""Norms read backwards: torch's own norms and their autograd, and the law of the angle by which a norm turns."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm, rms_norm

from covector.linalg.standins import POLICIES, Policy, pull_norm

EPS, D = 0.05, 7  # a large eps: forgetting it shows
BOTH = pytest.mark.parametrize("centre", [True, False], ids=["layer", "rms"])
# Rows of seven numbers of order one in float64.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def drawn(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {name: rng.standard_normal((4, 3, D)) for name in ("x", "y", "v")}
    return made | {"gain": 1 + 0.5 * rng.standard_normal(D), "bias": rng.standard_normal(D)}


def normed(x: torch.Tensor, centre: bool, gain: np.ndarray, bias: np.ndarray, eps: float = EPS) -> torch.Tensor:
    g, b = torch.from_numpy(gain), torch.from_numpy(bias)
    return layer_norm(x, (D,), g, b, eps) if centre else rms_norm(x, (D,), g, eps) + b


def pulled(policy: Policy, points: tuple[np.ndarray, ...], given: dict, centre: bool, eps: float = EPS) -> np.ndarray:
    return pull_norm(given["v"], policy, points, centre=centre, gain=given["gain"], eps=eps)


def value(x: np.ndarray, given: dict, centre: bool) -> np.ndarray:
    return np.sum(given["v"] * normed(torch.from_numpy(x), centre, given["gain"], given["bias"]).numpy(), axis=-1)


@pytest.mark.identity("OP-4")
@BOTH
def test_exact_is_autograd_of_torchs_norm(centre: bool) -> None:
    given = drawn()
    x = torch.tensor(given["x"], requires_grad=True)
    (normed(x, centre, given["gain"], given["bias"]) * torch.from_numpy(given["v"])).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(pulled("exact", (given["x"],), given, centre), x.grad.numpy(), **CLOSE)


@pytest.mark.identity("OP-4")
@BOTH
def test_exact_is_a_difference_quotient(centre: bool) -> None:
    given, step = drawn(), 1e-5
    along = np.random.default_rng(9).standard_normal(given["x"].shape)
    ahead, behind = (value(given["x"] + s * along, given, centre) for s in (step, -step))
    f = pulled("exact", (given["x"],), given, centre)
    # Central differences: a third derivative times 1e-10, and rounding over 1e-5.
    np.testing.assert_allclose(np.sum(f * along, axis=-1), (ahead - behind) / (2 * step), atol=1e-8)


@pytest.mark.identity("OP-5")
@BOTH
def test_frozen_reproduces_the_value(centre: bool) -> None:
    given = drawn()
    f = pulled("frozen", (given["x"],), given, centre)
    got = np.sum(f * given["x"], axis=-1) + given["v"] @ given["bias"]
    np.testing.assert_allclose(got, value(given["x"], given, centre), **CLOSE)


@pytest.mark.identity("OP-17")
@BOTH
def test_secant_takes_a_difference_to_the_difference(centre: bool) -> None:
    given = drawn()
    f = pulled("secant", (given["x"], given["y"]), given, centre)
    wanted = value(given["x"], given, centre) - value(given["y"], given, centre)
    np.testing.assert_allclose(np.sum(f * (given["x"] - given["y"]), axis=-1), wanted, **CLOSE)
    back = pulled("secant", (given["y"], given["x"]), given, centre)
    np.testing.assert_allclose(back, f, **CLOSE)


@pytest.mark.identity("OP-6")
@BOTH
def test_exact_along_the_input_is_what_eps_leaves(centre: bool) -> None:
    given = drawn()
    x = given["x"]
    c = x - x.mean(-1, keepdims=True) if centre else x
    variance = np.mean(c * c, axis=-1) + EPS
    wanted = EPS / variance * np.sum(given["v"] * given["gain"] * c, axis=-1) / np.sqrt(variance)
    np.testing.assert_allclose(np.sum(pulled("exact", (x,), given, centre) * x, axis=-1), wanted, **CLOSE)
    without = pulled("exact", (x,), given, centre, eps=0.0)
    # Frozen would give the value, of order one.
    np.testing.assert_allclose(np.sum(without * x, axis=-1), 0, atol=1e-13)


@pytest.mark.identity("OP-7")
@BOTH
def test_exact_is_frozen_on_the_decision_boundary_and_nowhere_else(centre: bool) -> None:
    given = drawn()
    w = given["v"] * given["gain"]
    w = w - w.mean(-1, keepdims=True) if centre else w
    onto = np.sum(w * given["x"], axis=-1, keepdims=True) / np.sum(w * w, axis=-1, keepdims=True)
    there = given["x"] - onto * w
    exact, frozen = (pulled(p, (there,), given, centre) for p in ("exact", "frozen"))
    np.testing.assert_allclose(exact, frozen, **CLOSE)
    off = pulled("exact", (given["x"],), given, centre) - pulled("frozen", (given["x"],), given, centre)
    assert np.abs(off).max() > 0.1


@pytest.mark.identity("OP-8")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_functional_through_layernorm_does_not_see_a_constant(policy: Policy) -> None:
    given = drawn()
    points = {"ignore": (), "secant": (given["x"], given["y"])}.get(policy, (given["x"],))
    np.testing.assert_allclose(pulled(policy, points, given, centre=True).sum(-1), 0, atol=1e-13)
    # What tells the two norms apart.
    assert np.abs(pulled(policy, points, given, centre=False).sum(-1)).max() > 0.1


@pytest.mark.identity("OP-8")
@pytest.mark.parametrize("policy", ["exact", "frozen"])
def test_shifting_and_stretching_the_input_only_rescales_the_functional(policy: Policy) -> None:
    given = drawn()
    here, there = given["x"], 3.0 * given["x"] + 2.0
    f, g = (pulled(policy, (x,), given, centre=True, eps=0.0) for x in (here, there))
    np.testing.assert_allclose(g, f / 3, **CLOSE)


@pytest.mark.identity("OP-9")
@pytest.mark.parametrize(("d", "centre"), [(8, True), (8, False), (64, True), (64, False)])
def test_the_angle_that_a_norm_turns_isotropic_features_by_has_its_law(d: int, centre: bool) -> None:
    """Only the feature is drawn: the input is one fixed row, far from isotropic."""
    draws = 40_000
    v = np.random.default_rng(3).standard_normal((draws, d))
    x = np.broadcast_to(np.exp(np.arange(d) % 8), v.shape)
    f = pull_norm(v, "exact", (x,), centre=centre, gain=None, eps=0.0)
    cos = np.sum(f * v, axis=-1) / np.linalg.norm(f, axis=-1) / np.linalg.norm(v, axis=-1)
    removed = 2 if centre else 1

    def agrees(sample: np.ndarray, mean: float) -> bool:
        return abs(sample.mean() - mean) < 4 * sample.std() / math.sqrt(draws)

    assert agrees(1 - cos**2, removed / d)
    # Variance of Beta(k/2, (d−k)/2); the sampled variance of 40,000 is right to a few percent.
    a, b = removed / 2, (d - removed) / 2
    assert np.var(cos**2) == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), rel=0.1)
    if centre:
        assert agrees(cos, (d - 2) / (d - 1))
        angle = np.arccos(np.minimum(cos, 1)).mean()
        assert angle < math.acos(1 - 1 / (d - 1)) < 2 * math.acos(math.sqrt(1 - 1 / (d - 1)))


@pytest.mark.identity("OP-25")
@pytest.mark.parametrize("policy", POLICIES)
def test_every_stand_in_is_linear_in_the_functional(policy: Policy) -> None:
    given = drawn()
    points = {"ignore": (), "secant": (given["x"], given["y"])}.get(policy, (given["x"],))
    u = np.random.default_rng(5).standard_normal(given["v"].shape)
    f, g = pulled(policy, points, given, True), pulled(policy, points, given | {"v": u}, True)
    both = pulled(policy, points, given | {"v": 2 * given["v"] - u}, True)
    np.testing.assert_allclose(both, 2 * f - g, **CLOSE)
