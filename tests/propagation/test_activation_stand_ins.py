"""Activations, products and softmax read backwards: values, differences, gradients, regions."""

import mpmath
import numpy as np
import pytest
import torch

from captured_runs import runs_of
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.linalg.standins import POLICIES, logarithmic_mean, middle, pull_norm, pull_softmax, slope
from covector.model.activations import activation, derivative
from covector.propagation.linearised import Linearised, Policies

NAMES = ("relu", "gelu", "gelu_new", "silu", "quick_gelu", "tanh", "sigmoid", "relu2")
# Points of order one; a difference quotient of numbers a distance of 1e-2 apart loses two digits.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def points(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((5, 9)), rng.standard_normal((5, 9))


@pytest.mark.identity("OP-19")
@pytest.mark.parametrize("name", NAMES)
def test_slopes_are_what_their_policies_promise(name: str) -> None:
    a, b = points()
    f, df = activation(name), derivative(name)
    np.testing.assert_allclose(slope("secant", (a, b), f, df) * (a - b), f(a) - f(b), **CLOSE)
    np.testing.assert_allclose(slope("frozen", (a,), f, df) * a + f(np.zeros(1)), f(a), **CLOSE)
    x = torch.tensor(a, requires_grad=True)
    named = {"gelu_new": lambda t: torch.nn.functional.gelu(t, approximate="tanh"), "relu2": lambda t: t.relu() ** 2,
             "quick_gelu": lambda t: t * torch.sigmoid(1.702 * t)}  # fmt: skip
    named.get(name, getattr(torch.nn.functional, name, None) or getattr(torch, name, None))(x).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(slope("exact", (a,), f, df), x.grad.numpy(), **CLOSE)


def test_where_two_points_are_equal_the_secant_is_the_derivative() -> None:
    a, _ = points()
    f, df = activation("gelu"), derivative("gelu")
    np.testing.assert_array_equal(slope("secant", (a, a.copy()), f, df), df(a))
    assert slope("frozen", (np.zeros(3),), f, df) == pytest.approx(0.5 * np.ones(3))


@pytest.mark.identity("OP-19")
@pytest.mark.parametrize("gated", [False, True])
def test_an_mlp_is_exact_on_pairs_and_integrated_gradients_bring_the_same(gated: bool) -> None:
    weights = random_model(n_heads=0, n_layers=1, norm=None, gated=gated, activation="silu" if gated else "gelu")
    plus, minus = runs_of(weights)
    secant = Linearised(weights, (plus, minus), Policies.all("secant"))
    (c,) = secant.components
    u = np.random.default_rng(0).standard_normal(plus["resid_in"].shape)
    x, y = plus["L0.mlp_normed"], minus["L0.mlp_normed"]
    wanted = np.sum(u * (plus["L0.mlp_out"] - minus["L0.mlp_out"]), axis=-1)
    np.testing.assert_allclose(np.sum(secant.through_mlp(u, c) * (x - y), axis=-1), wanted, **CLOSE)
    # Gauss–Legendre nodes on the segment: the mean of gradients, exact to rounding for smooth functions.
    nodes, parts = np.polynomial.legendre.leggauss(40)
    total = np.zeros_like(u)
    for t, w in zip((nodes + 1) / 2, parts / 2, strict=True):
        here = dict(plus)
        here["L0.mlp_pre"] = t * plus["L0.mlp_pre"] + (1 - t) * minus["L0.mlp_pre"]
        if gated:
            here["L0.gate"] = t * plus["L0.gate"] + (1 - t) * minus["L0.gate"]
        total += w * Linearised(weights, (here,), Policies.all("exact")).through_mlp(u, c)
    np.testing.assert_allclose(np.sum(total * (x - y), axis=-1), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.identity("OP-19")
def test_inside_one_relu_region_the_gradient_is_the_whole_function() -> None:
    weights = random_model(n_heads=0, n_layers=1, norm=None, activation="relu")
    (run,) = runs_of(weights, (1,))
    exact, frozen = (Linearised(weights, (run,), Policies.all(p)) for p in ("exact", "frozen"))
    (c,) = exact.components
    u = np.random.default_rng(0).standard_normal(run["resid_in"].shape)
    f = exact.through_mlp(u, c)
    np.testing.assert_allclose(frozen.through_mlp(u, c), f, **CLOSE)
    W, b, out = (weights[f"L0.{n}"] for n in ("W_in", "b_in", "W_out"))
    opened = run["L0.mlp_pre"] > 0
    constant = (u @ out.T * opened) @ b + u @ weights["L0.b_out"]
    # A step that is small beside the distance of the nearest neuron from its kink.
    step = 0.5 * np.abs(run["L0.mlp_pre"]).min() / np.abs(W).sum()
    x = run["resid_in"] + step
    assert np.array_equal((x @ W + b) > 0, opened)
    value = np.sum(u * (np.maximum(x @ W + b, 0) @ out + weights["L0.b_out"]), axis=-1)
    np.testing.assert_allclose(np.sum(f * x, axis=-1) + constant, value, **CLOSE)


@pytest.mark.identity("OP-16")
@pytest.mark.parametrize("policy", ["exact", "secant"])
def test_what_reaches_the_scores_sums_to_zero_over_keys(policy: str) -> None:
    """So a term that all keys of a query share never matters."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2, 3, 4, 4)) * 3
    scores[..., 2, 3] = -np.inf
    logs = tuple(torch.log_softmax(torch.from_numpy(s), -1).numpy() for s in (scores, scores[::-1].copy()))
    given = logs if policy == "secant" else logs[:1]
    on_scores = pull_softmax(rng.standard_normal(scores.shape), policy, given)  # type: ignore[arg-type]
    np.testing.assert_allclose(on_scores.sum(-1), 0, atol=1e-14)
    assert not on_scores[..., 2, 3].any()
    assert np.abs(on_scores).max() > 0.1


@pytest.mark.identity("OP-17")
def test_softmax_is_exact_between_two_rows_of_scores_and_torchs_gradient_at_one() -> None:
    rng = np.random.default_rng(1)
    z, y, g = (3 * rng.standard_normal((4, 6)) for _ in range(3))
    softmax = [torch.softmax(torch.from_numpy(s), -1).numpy() for s in (z, y)]
    logs = tuple(np.log(p) for p in softmax)
    got = np.sum(pull_softmax(g, "secant", logs) * (z - y), axis=-1)
    np.testing.assert_allclose(got, np.sum(g * (softmax[0] - softmax[1]), axis=-1), **CLOSE)
    x = torch.tensor(z, requires_grad=True)
    (torch.softmax(x, -1) * torch.from_numpy(g)).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(pull_softmax(g, "exact", logs[:1]), x.grad.numpy(), **CLOSE)
    for held in ("frozen", "ignore"):
        assert not pull_softmax(g, held, ()).any()


@pytest.mark.parametrize("ratio", [0.0, 1e-15, 1e-9, 1e-3, 1.0, 25.0, 35.0, 500.0, -1e-9, -1.0, -35.0])
def test_the_logarithmic_mean_is_that_of_many_digits(ratio: float) -> None:
    p = 0.3
    with mpmath.workdps(60):
        q = mpmath.mpf(p) * mpmath.exp(-mpmath.mpf(ratio))
        wanted = mpmath.mpf(p) if ratio == 0 else (mpmath.mpf(p) - q) / mpmath.mpf(ratio)
    got = logarithmic_mean(np.array(p), np.array(float(q)), np.array(ratio))
    assert float(got) == pytest.approx(float(wanted), rel=1e-14)


def test_a_factor_of_a_product_is_held_in_the_middle() -> None:
    a, b = points()
    np.testing.assert_array_equal(middle("secant", (a, b)), (a + b) / 2)
    np.testing.assert_array_equal(middle("frozen", (a,)), a)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stand_in_without_its_points_is_refused(policy: str) -> None:
    wrong = {"ignore": 1, "exact": 0, "frozen": 2, "secant": 1}[policy]
    with pytest.raises(BadRequest, match=rf"norm: policy '{policy}' expects . working point\(s\), got {wrong}"):
        pull_norm(np.ones(3), policy, (np.ones(3),) * wrong, centre=True, gain=None, eps=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu", "tanh", "quick_gelu"])
@pytest.mark.parametrize("step", [1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-15])
def test_a_secant_between_near_points_is_the_derivative_there(name: str, step: float) -> None:
    """The quotient loses digits as the step shrinks; what stands for it may not."""
    a = np.array([-3.1, -0.7, 0.4, 3.1])
    got = slope("secant", (a + step, a), activation(name), derivative(name))
    # The secant differs from the derivative at a by half the second derivative times the step; rounding 1e-10 at 1e-5.
    np.testing.assert_allclose(got, derivative(name)(a), atol=step + 1e-9)
    moved = got * ((a + step) - a)
    np.testing.assert_allclose(moved, activation(name)(a + step) - activation(name)(a), atol=1e-15)
