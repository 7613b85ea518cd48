"""An MLP's local features: derivatives of what the decoder computes, as many as were planted, exact for ReLU."""

import numpy as np
import pytest
import torch

import covector
from covector.analyses.regions import TaskMLP, explained, local_model, regions, segments, task_mlp
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.decoder import Decoder, feed_forward
from covector.run.prompts import Pair
from covector.study.observable import Observable
from random_checkpoints import random_weights


def pairs_for(model: Model, n: int = 4, length: int = 6, seed: int = 0) -> list[Pair]:
    ids = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (n, 2, length))
    return [Pair(tuple(map(int, a)), tuple(map(int, b)), {"NAME": 1, "end": length - 1}, ("", "")) for a, b in ids]


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_values_and_local_features_are_those_of_the_decoders_mlp(name: str) -> None:
    """Autograd through the decoder's own feed_forward, the task's functional held."""
    model = covector.open(random_weights(name))
    mlp = task_mlp(model, asked(model), "L1.mlp")
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((5, model.spec.d_model))).requires_grad_()
    decoder = Decoder(model.weights)
    out = feed_forward(z[None], mlp.mlp, lambda role: decoder.part(f"L1.{role}"), lambda _, x: x)[0]
    wanted = out @ torch.from_numpy(mlp.on_out)
    wanted.sum().backward()
    assert z.grad is not None
    rows = z.detach().numpy()
    np.testing.assert_allclose(mlp.value(rows), wanted.detach().numpy(), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(mlp.features(mlp.gates(rows)), z.grad.numpy(), rtol=1e-9, atol=1e-11)


def planted(groups: int) -> tuple[TaskMLP, np.ndarray]:
    """A ReLU MLP of `groups` disjoint sets of neurons; each point opens one set, by its own direction, and no other."""
    d, each, rng = 16, 3, np.random.default_rng(0)
    weights = random_model(n_layers=1, d_model=d, d_mlp=groups * each, activation="relu", norm=None, biases=True)
    arrays = {name: np.array(weights[name]) for name in weights.names()}
    which = np.eye(d)[:groups]
    inner = rng.standard_normal((groups * each, d - groups)) @ np.eye(d)[groups:]
    arrays["L0.W_in"] = (100 * np.repeat(which, each, axis=0) + inner).T
    arrays["L0.b_in"] = np.full(groups * each, -50.0)
    model = covector.open(type(weights)(weights.spec, arrays))
    label = rng.integers(0, groups, 400)
    z = which[label] + rng.standard_normal((400, d - groups)) @ np.eye(d)[groups:]
    return task_mlp(model, asked(model), "L0.mlp"), z


def test_as_many_features_as_regions_explain_everything_and_fewer_do_not() -> None:
    mlp, z = planted(4)
    train, test = z[:200], z[200:]
    shares = {}
    for k in (1, 4):
        made = local_model(mlp, train, k, np.random.default_rng(0))
        shares[k] = explained(mlp.value(test), made.of(test, made.groups.of(mlp.gates(test))))
    assert shares[4] == pytest.approx(1, abs=1e-9)
    assert shares[1] < 0.9


@pytest.mark.identity("OP-19")
def test_the_pieces_of_a_relu_mlp_add_up_to_its_difference() -> None:
    model = covector.open(random_model(activation="relu"))
    table = segments(model, asked(model), "L1.mlp", pairs_for(model))
    np.testing.assert_allclose(np.asarray(table["linear"]), 0, atol=1e-11)
    smooth = covector.open(random_model(activation="gelu"))
    assert np.abs(np.asarray(segments(smooth, asked(smooth), "L1.mlp", pairs_for(smooth))["linear"])).max() > 1e-4


def test_roots_stand_where_the_sign_changes_and_nowhere_else() -> None:
    model = covector.open(random_model(biases=False))
    pairs = pairs_for(model, 12)
    table = segments(model, asked(model), "L1.mlp", pairs)
    for row in table.rows:
        if row["clean"] * row["corrupt"] < 0:
            assert 0 < row["root"] < 1
            assert row["why"] == ""
        else:
            assert row["root"] is None
            assert row["why"].startswith("no sign change")
    assert 0 < table.meta["crossed"] < 12


def test_the_table_of_a_text_predicts_its_later_half(shared) -> None:
    model = covector.open(str(shared / "models" / "stories260k"))
    text = (shared / "data" / "tinystories" / "stories.txt").read_text(encoding="utf-8")[:6000]
    table = regions(model, "' she' - ' he'", "L2.mlp", text, counts=(1, 16), most=600)
    held, train = np.asarray(table["held_out"]), np.asarray(table["train"])
    assert held[1] > held[0]
    assert train[1] > held[1]  # what was made from a text says more of it than of another
    assert np.asarray(table["random"])[1] < held[1]
    assert table.meta["kind"] == "prediction"
    quantiles = list(table.meta["cosines"].values())
    assert quantiles == sorted(quantiles)


def test_other_places_and_short_texts_are_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="one MLP"):
        segments(model, asked(model), "L1H0", pairs_for(model))
    demo = covector.open("demo-lm")
    with pytest.raises(BadRequest, match="at least 8 positions"):
        regions(demo, "' she' - ' he'", "L2.mlp", "Yesterday Mary was")
