"""Toys do what is written on them: planted maps have the planted triples, the induction pair copies, anatomies run."""

import re

import numpy as np
import pytest
import torch

from covector.arch import toy
from covector.errors import BadRequest, BadSite
from covector.model.spec import Rotary
from covector.model.weights import check_complete, split_name
from covector.run.decoder import Decoder


@pytest.mark.parametrize("site", ["L0H1.ov", "L0.mlp.out"])
def test_a_planted_map_has_the_planted_singular_triples(site):
    plants = [toy.Plant(1, 4, 3.0), toy.Plant(2, 5, 2.0), toy.Plant(3, 1, 0.5)]
    weights = toy.planted(plants, site)
    ov = site.endswith("ov")
    matrix = weights["L0.W_V"][1] @ weights["L0.W_O"][1] if ov else weights["L0.W_out"]
    U, S, Vh = np.linalg.svd(matrix)
    assert np.allclose(S[:4], [3, 2, 0.5, 0], atol=1e-14)
    for i, plant in enumerate(plants):
        read = weights["W_E"][plant.read] if ov else np.eye(len(matrix))[i]
        assert abs(U[:, i] @ read) == pytest.approx(1, abs=1e-12)
        assert abs(Vh[i] @ weights["W_U"][:, plant.write]) == pytest.approx(1, abs=1e-12)


def test_a_planted_mlp_answers_its_token_with_the_planted_one():
    weights = toy.planted([toy.Plant(1, 4, 3.0), toy.Plant(2, 5, 2.0)], "L0.mlp.out", n_heads=0)
    logits = Decoder(weights).run(torch.tensor([[1, 2, 7]])).outputs["token"][0].numpy()
    # Its own embedding reads as 1; token 7 was not planted.
    want = (
        np.eye(12)[[1, 2, 7]]
        + 3 * np.eye(12)[[4, 0, 0]] * [[1], [0], [0]]
        + 2 * np.eye(12)[[0, 5, 0]] * [[0], [1], [0]]
    )
    assert np.allclose(logits, want, atol=1e-13)


@pytest.mark.parametrize(
    ("plants", "site", "error", "text"),
    [
        ([toy.Plant(1, 4, 3.0), toy.Plant(1, 5, 2.0)], "L0H0.ov", BadRequest, "expected 1 to 8 plants with distinct"),
        ([toy.Plant(1, 40, 3.0)], "L0H0.ov", BadRequest, "below 12"),
        ([toy.Plant(1, 4, 3.0)], "L0H0.qk", BadSite, "expected an .ov or .mlp.out site to plant in, got 'L0H0.qk'"),
    ],
)  # fmt: skip
def test_plants_that_do_not_fit_are_refused(plants, site, error, text):
    with pytest.raises(error, match=re.escape(text)):
        toy.planted(plants, site)


def test_the_induction_toy_predicts_what_followed_before():
    run = Decoder(toy.induction()).run(torch.tensor([[0, 3, 5, 2, 7, 3]]))
    logits = run.outputs["token"][0, -1].numpy()
    assert np.allclose(logits, np.eye(9)[5], atol=1e-15)
    twice = Decoder(toy.induction()).run(torch.tensor([[0, 3, 5, 3, 4, 3]])).outputs["token"][0, -1].numpy()
    assert np.allclose(twice, (np.eye(9)[5] + np.eye(9)[4]) / 2, atol=1e-15)


def test_the_heads_of_the_induction_toy_look_where_they_should():
    run = Decoder(toy.induction()).run(torch.tensor([[0, 3, 5, 2, 3]]), capture=["*pattern*"])
    patterns = [value[0, 0].numpy() for value in run.cache.values()]
    assert np.allclose(patterns[0][1:], np.eye(5)[:4], atol=1e-15)
    assert np.argmax(patterns[1][4]) == 2


ANATOMIES = {
    "plain": {},
    "attention only": {"d_mlp": 0},
    "no attention": {"n_heads": 0},
    "no norm": {"norm": None},
    "post-norm": {"placement": "post"},
    "sandwich, gated, parallel": {"placement": "sandwich", "norm": toy.RMS_NORM, "gated": True, "parallel": True},
    "grouped, rotary, q/k norm": {"n_kv_heads": 2, "window": 3, "rotary": Rotary(4, 100.0), "qk_norm": toy.RMS_NORM},
    "not causal": {"causal": False},
    "interleaved agent": {"agent": "interleaved", "positions": "none"},
    "summed agent": {"agent": "summed"},
    "tied, without biases": {"tied": True, "biases": False},
}


@pytest.mark.parametrize("options", ANATOMIES.values(), ids=ANATOMIES)
def test_a_random_model_of_any_anatomy_is_complete_and_runs(options):
    weights = toy.random_model(**options)
    check_complete(weights, "toy")
    rng, spec = np.random.default_rng(0), weights.spec
    ids = {i.name: torch.tensor(rng.integers(0, i.n, (1, 6))) for i in spec.assembly.inputs if i.kind == "lookup"}
    vectors = {
        i.name: torch.tensor(rng.standard_normal((1, 6, i.n))) for i in spec.assembly.inputs if i.kind == "linear"
    }
    time = {spec.assembly.time.name: torch.arange(6)[None]} if spec.assembly.time else {}
    outputs = Decoder(weights).run(ids | vectors | time).outputs
    assert all(bool(torch.isfinite(value).all()) and float(value.std()) > 0.1 for value in outputs.values())


def test_a_seed_makes_a_random_model_and_another_seed_another():
    first, again, other = (toy.random_model(seed=seed) for seed in (3, 3, 4))
    assert first.names() == again.names()
    assert all(first[n].tobytes() == again[n].tobytes() != other[n].tobytes() for n in first.names())


def test_a_random_model_without_biases_has_none_at_all():
    roles = {split_name(name)[1] for name in toy.random_model(biases=False).names()}
    assert not any(role.startswith("b_") or role.endswith("bias") for role in roles)
