"""A linearised model read backwards: exact differences between two inputs, and gradients, for every family."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from covector.arch.family import families
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.model.spec import Norm, Rotary
from covector.model.weights import Weights
from covector.propagation.linearised import Linearised, Policies, visible
from covector.run.attention import visible as visible_in_torch
from covector.run.decoder import Decoder
from covector.run.hooks import hook_names
from covector.run.random_inputs import random_inputs
from random_checkpoints import random_weights

RMS = Norm("rms", 1e-6)
ANATOMIES: dict[str, Callable[[], Weights]] = {
    **{name: (lambda name=name: random_weights(name)) for name in families() if name != "transformer_lens"},
    "gated rotary grouped qk-norm": lambda: random_model(
        gated=True, rotary=Rotary(4, 1e4), qk_norm=RMS, n_kv_heads=2, activation="silu", positions="none"
    ),
    "interleaved rotary": lambda: random_model(rotary=Rotary(2, 1e4, interleaved=True), norm=RMS),
    "window": lambda: random_model(window=2),
    "no norm": lambda: random_model(norm=None),
    "post-norm": lambda: random_model(placement="post"),
    "sandwich parallel": lambda: random_model(placement="sandwich", parallel=True),
    "attention only": lambda: random_model(d_mlp=0, n_layers=3),
    "MLP only": lambda: random_model(n_heads=0, activation="relu"),
}


def runs_of(weights: Weights, seeds: tuple[int, ...] = (1, 2)) -> list[dict[str, np.ndarray]]:
    """Everything that passes on random inputs of equal length, two prompts each."""
    spec = weights.spec
    length = 3 * len(spec.assembly.inputs) if spec.assembly.mode == "interleaved" else 6
    made = []
    for seed in seeds:
        run = Decoder(weights).run(random_inputs(spec, length=length, batch=2, seed=seed), capture=hook_names(spec))
        outputs = {f"out.{name}": value for name, value in run.outputs.items()}
        made.append({name: value.detach().numpy() for name, value in {**run.cache, **outputs}.items()})
    return made


def question(weights: Weights) -> tuple[np.ndarray, str, np.ndarray]:
    """Random weights on the first output's labels, its name, and a different position for each prompt."""
    out = weights.spec.outputs[0]
    return np.random.default_rng(0).standard_normal((1, out.n)), out.name, np.array([5, 3])


@pytest.mark.identity("OP-17")
@pytest.mark.parametrize("name", ANATOMIES)
def test_secant_shares_of_the_inputs_sum_to_the_difference_of_the_outputs(name: str) -> None:
    weights = ANATOMIES[name]()
    plus, minus = runs_of(weights)
    n, output, at = question(weights)
    model = Linearised(weights, (plus, minus), Policies.all("secant"))
    F = model.adjoint(model.start(n, output, at))
    rows = np.arange(2)
    wanted = (plus[f"out.{output}"] - minus[f"out.{output}"])[rows, at] @ n[0]
    got = np.sum(F[0] * (plus["resid_in"] - minus["resid_in"]), axis=(1, 2))
    # Sums of a few thousand products of order one in float64.
    np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.identity("OP-15")
@pytest.mark.identity("OP-16")
@pytest.mark.parametrize("name", ANATOMIES)
def test_the_exact_policy_is_the_gradient_of_the_running_model(name: str) -> None:
    weights = ANATOMIES[name]()
    (run,) = runs_of(weights, (1,))
    n, output, at = question(weights)
    model = Linearised(weights, (run,), Policies.all("exact"))
    x = torch.tensor(run["resid_in"], requires_grad=True)
    y = Decoder(weights).run(resid_in=x).outputs[output]
    (y[torch.arange(2), torch.from_numpy(at)] @ torch.from_numpy(n[0])).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(
        model.adjoint(model.start(n, output, at))[0], x.grad.numpy(), rtol=1e-10, atol=1e-12 * float(x.grad.abs().max())
    )


@pytest.mark.identity("OP-17")
def test_the_secant_between_near_inputs_is_the_gradient() -> None:
    weights = random_model(gated=True, activation="silu")
    n, output, at = question(weights)
    (run,) = runs_of(weights, (1,))
    step = 1e-6 * np.random.default_rng(3).standard_normal(run["resid_in"].shape)
    moved = Decoder(weights).run(resid_in=torch.from_numpy(run["resid_in"] + step), capture=hook_names(weights.spec))
    near = {name: value.numpy() for name, value in moved.cache.items()}
    secant = Linearised(weights, (near, run), Policies.all("secant"))
    exact = Linearised(weights, (run,), Policies.all("exact"))
    a, b = (m.adjoint(m.start(n, output, at))[0] for m in (secant, exact))
    # The two maps differ by second derivatives times the step; rounding of differences of order 1e-6 leaves 1e-10.
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_what_a_query_may_see_is_what_the_decoder_lets_it_see() -> None:
    for weights in (random_model(), random_model(window=2), random_model(causal=False)):
        attn = weights.spec.blocks[0].attn
        assert attn is not None
        np.testing.assert_array_equal(visible(attn, 5), visible_in_torch(attn, 5, None, "cpu")[0, 0].numpy())


def test_a_policy_without_its_runs_is_refused() -> None:
    weights = random_model()
    (run,) = runs_of(weights, (1,))
    with pytest.raises(BadRequest, match=r"'secant' expects 2 run\(s\), got 1"):
        Linearised(weights, (run,), Policies.all("secant"))
