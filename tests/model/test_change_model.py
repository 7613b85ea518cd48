"""A change of weights opened as a model: its maps are differences, its bases the old model's, and it cannot be run."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

import covector
from covector.errors import BadRequest, CheckpointMismatch
from covector.model.change import ChangeModel, change
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from random_checkpoints import random_model

FAMILIES = ["gpt2", "llama", "gpt_neox", "gemma2", "decision_transformer"]


def moved(model: Model, size: float = 0.1, name: str = "moved") -> Model:
    """The same model with noise in every tensor."""
    rng = np.random.default_rng(1)
    arrays = {n: model.stored[n] + size * rng.standard_normal(model.stored[n].shape) for n in model.stored.names()}
    if model.spec.tied:
        arrays["W_U"] = arrays["W_E"].T
    weights = ArrayWeights(model.stored.spec, arrays)
    return Model(name, weights, weights, labels=model.labels)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["ov", "qk", "v", "o", "mlp.in", "mlp.out"])
def test_the_map_at_every_place_is_the_new_one_less_the_old_one(family, kind):
    base = random_model(family)
    other = moved(base)
    at = f"L1.{kind}" if kind.startswith("mlp") else f"L1H1.{kind}"
    expected = other.map(at).dense() - np.asarray(base.map(at).dense(), dtype=np.float64)
    np.testing.assert_allclose(change(base, other).map(at).dense(), expected, atol=1e-12)


def test_in_a_frame_the_change_is_that_of_the_framed_weights():
    base = random_model("gpt2")
    other = moved(base)
    expected = other.framed("folded").map("L1H0.ov").dense() - base.framed("folded").map("L1H0.ov").dense()
    for found in (change(base.framed("folded"), other), change(base, other).framed("folded")):
        assert str(found.frame) == "folded"
        np.testing.assert_allclose(found.map("L1H0.ov").dense(), expected, atol=1e-12)


def test_directions_of_a_change_are_read_against_the_old_model_s_tokens():
    base = random_model("gpt2")
    found = change(base, moved(base))
    for name in ("token_in", "token_out"):
        np.testing.assert_array_equal(found.bases[name].vectors, base.bases[name].vectors)
        np.testing.assert_array_equal(found.bases.centred(name).vectors, base.bases.centred(name).vectors)
    assert found.bases["token_in"].tensors == found.bases.centred("token_in").tensors == ("base.W_E",)


def test_a_readout_of_a_change_is_that_of_its_dense_matrix():
    base = random_model("gpt2")
    other = moved(base)
    table = covector.readout(change(base, other), "L1H1.ov", rank=3)
    M = other.map("L1H1.ov").dense() - base.map("L1H1.ov").dense()
    np.testing.assert_allclose(table["sigma"], np.linalg.svd(M, compute_uv=False)[:3], rtol=1e-10)


def test_what_it_records_changes_with_either_side():
    base = random_model("gpt2")
    one, two = (change(base, moved(base, size)).origins("L0.W_O") for size in (0.1, 0.2))
    assert one != two
    assert change(base, moved(base, 0.1)).origins("L0.W_O") == one


def with_spec(model: Model, rewrite: Callable[[Model], dict]) -> Model:
    """The model with another anatomy on paper."""
    spec = dataclasses.replace(model.stored.spec, **rewrite(model))
    weights = ArrayWeights(spec, {n: model.stored[n] for n in model.stored.names()})
    return Model("paper", weights, weights)


@pytest.mark.parametrize(
    ("rewrite", "told"),
    [
        (lambda m: {"d_model": 999}, r"d_model is \d+ in the first and 999"),
        (lambda m: {"blocks": m.spec.blocks[:1]}, r"n_layers is \d in the first and 1"),
        (lambda m: {"tied": not m.spec.tied}, "tied is"),
        (
            lambda m: {"blocks": (*m.spec.blocks[:-1], dataclasses.replace(m.spec.blocks[-1], parallel=True))},
            "block 2 is",
        ),
        (lambda m: {"final_norm": None}, "final_norm is"),
    ],
)
def test_another_anatomy_is_refused_by_name_in_one_line(rewrite, told):
    base = random_model("gpt2")
    with pytest.raises(CheckpointMismatch, match=told) as caught:
        change(base, with_spec(base, rewrite))
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_and_another_number_of_positions_are_refused_by_name():
    base = random_model("gpt2")
    arrays = {n: base.stored[n] for n in base.stored.names()}
    for changed, told in (
        ({n: a for n, a in arrays.items() if n != "L1.b_O"}, "L1.b_O is in random-gpt2 and not in less"),
        (arrays | {"W_pos": arrays["W_pos"][:-1]}, "tensors of one size, W_pos is"),
    ):
        weights = ArrayWeights(base.spec, changed)
        with pytest.raises(CheckpointMismatch, match=told):
            change(base, Model("less", weights, weights))


def test_a_frame_with_biases_is_refused():
    base = random_model("gpt2")
    with pytest.raises(BadRequest, match="without bias"):
        change(base.framed("folded+bias"), moved(base))


def test_a_change_cannot_be_run():
    torch = pytest.importorskip("torch")
    from covector.run.decoder import Decoder

    base = random_model("gpt2")
    found = change(base, moved(base))
    assert isinstance(found, ChangeModel)
    with pytest.raises(BadRequest, match="no model and cannot be run"):
        Decoder(found.weights, dtype=torch.float64)
