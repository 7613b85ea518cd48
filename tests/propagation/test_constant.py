"""What biases bring: the held model of test_frozen_model, written in torch, at a stream of zeros."""

import numpy as np
import pytest
import torch
from test_frozen_model import ANATOMIES, frozen, read

from captured_runs import asked, question, runs_of, world_of
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.model.weights import Weights
from covector.propagation.constant import constant
from random_checkpoints import random_weights

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
AT = np.array([5, 3])


@pytest.mark.identity("OP-13")
@pytest.mark.parametrize("name", ANATOMIES)
def test_it_is_the_frozen_model_at_zero(name: str) -> None:
    weights = ANATOMIES[name]()
    (run,) = runs_of(weights, (1,))
    n, output = question(weights)
    zero = torch.zeros(run["resid_in"].shape, dtype=torch.float64)
    wanted = read(frozen(weights, run)(zero), n).numpy()
    found = constant(world_of(weights, [run], "frozen").model, n, output, AT, whole=True)
    np.testing.assert_allclose(found, wanted, **CLOSE)
    assert np.abs(wanted).min() > 1e-3


@pytest.mark.identity("OP-2")
def test_without_components_it_is_the_final_norms_bias_and_the_outputs() -> None:
    weights = random_model()
    (run,) = runs_of(weights, (1,))
    n, output = question(weights)
    found = constant(world_of(weights, [run], "frozen").model, n, output, AT, whole=False)
    wanted = n[0] @ (weights["b_U"] + weights["final_norm.bias"] @ weights["W_U"])
    np.testing.assert_allclose(found, np.full(2, wanted), **CLOSE)


@pytest.mark.parametrize("weights", [
    random_model(placement="post"), random_model(placement="sandwich"), random_model(agent="interleaved"),
    random_weights("bert"), random_weights("gemma2"), random_weights("gpt2"),
], ids=["post-norm", "sandwich", "agent", "bert", "gemma2", "gpt2"])  # fmt: skip
def test_with_the_linear_part_it_is_the_output(weights: Weights) -> None:
    """Backwards for what the stream brings, forwards for what biases bring: together the model at its working point."""
    (run,) = runs_of(weights, (1,))
    n, output = question(weights)
    world = world_of(weights, [run], "frozen")
    linear = np.sum(world.model.adjoint(world.start)[0] * run["resid_in"], axis=(1, 2))
    found = constant(world.model, n, output, AT, whole=True)
    np.testing.assert_allclose(linear + found, asked(weights, run), rtol=1e-9, atol=1e-10)


def test_only_a_held_model_has_one() -> None:
    weights = random_model()
    n, output = question(weights)
    for policy in ("secant", "exact"):
        world = world_of(weights, runs_of(weights), policy)
        with pytest.raises(BadRequest, match="expected the frozen policy"):
            constant(world.model, n, output, AT, whole=True)
