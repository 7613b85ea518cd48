"""Norms turn features as Theorem 1's exact law says: by what their rows hold of them, and by chance alone otherwise."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

import covector
from covector.analyses.layernorm import layernorm, turned
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.agreement import agreement, rank_correlation, separation
from covector.model.opened import Model
from covector.model.spec import Norm
from covector.run.decoder import Decoder
from covector.run.prompts import Pair
from covector.study.observable import Observable
from random_checkpoints import random_weights

D = 16


def pairs_for(model: Model, n: int = 3, length: int = 6, slots: Mapping[str, int] | None = None) -> list[Pair]:
    ids = np.random.default_rng(0).integers(0, model.spec.n_vocab, (n, 2, length))
    slots = {"NAME": 1, "end": length - 1} | dict(slots or {})
    return [Pair(tuple(map(int, a)), tuple(map(int, b)), slots, ("", "")) for a, b in ids]


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))))


@pytest.mark.identity("OP-9")
@pytest.mark.parametrize("centre", [True, False])
def test_turns_of_random_directions_follow_the_beta_law(centre: bool) -> None:
    """One row: sin² ~ Beta(k/2, (d−k)/2); mean k/d, and each decile of the law holds a tenth of the draws."""
    k, draws = (2, 20_000) if centre else (1, 20_000)
    x = np.random.default_rng(0).standard_normal((1, D))
    sines = turned(x - x.mean() if centre else x, centre, draws, 0)
    spread = np.sqrt(k / D * (1 - k / D) / (D / 2 + 1))
    assert abs(sines.mean() - k / D) < 4 * spread / np.sqrt(draws)
    if centre:
        assert abs(np.sqrt(1 - sines).mean() - (D - 2) / (D - 1)) < 4e-3  # E[cos θ], Monte-Carlo error 4e-4
    for p in (0.1, 0.5, 0.9):
        share = np.mean(np.sqrt(sines) >= chance.quantile(p, D, k))
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_turn_of_the_final_norm_is_that_of_autograds_gradient(kind: str) -> None:
    """Independent: torch differentiates the decoder's own norm at the captured stream."""
    weights = random_model(norm=Norm(kind, 1e-5))
    model = covector.open(weights)
    (pair,) = pairs_for(model, 1)
    table = layernorm(model, asked(model), [pair])
    row = next(r for r in table.rows if r["norm"] == "final_norm")
    n = weights["W_U"][:, 3] - weights["W_U"][:, 5]
    gained, turns, inverse = n * weights["final_norm.gain"], [], []
    for ids in (pair.clean, pair.corrupt):
        decoder = Decoder(weights)
        stream = decoder.run(torch.tensor([ids]), capture=["L1.resid_post"]).cache["L1.resid_post"][:, -1:]
        stream = stream.detach().requires_grad_()
        last = decoder.run(resid_in=stream, first=2).outputs["token"][0, 0]
        (last[3] - last[5]).backward()
        assert stream.grad is not None
        turns.append(angle(gained, stream.grad[0, 0].numpy()))
        x = stream.detach().numpy()[0, 0]
        inverse.append(1 / np.sqrt(np.mean((x - (x.mean() if kind == "layer" else 0)) ** 2) + 1e-5))
    assert row["turn"] == pytest.approx(np.mean(turns), rel=1e-6)
    assert row["gain_turn"] == pytest.approx(angle(n, gained), rel=1e-6)
    assert row["scale"] == pytest.approx(np.mean(inverse), rel=1e-10)
    assert row["spread"] == pytest.approx(np.std(inverse) / np.mean(inverse), rel=1e-9)


def test_p_is_uniform_for_models_that_mean_nothing() -> None:
    """Random weights: every head's functional has nothing to do with its rows. 40 heads in 10 models."""
    found = []
    for seed in range(10):
        model = covector.open(random_model(seed=seed, n_layers=1, d_model=32, biases=False))
        table = layernorm(model, asked(model), pairs_for(model), draws=400)
        found += [row["p"] for row in table.rows if ">" in row["path"]]
    # Heads of a model share their rows; 40 p, standard error of a share at most .08.
    assert len(found) == 40
    assert abs(np.mean(np.array(found) <= 0.5) - 0.5) < 0.3
    assert np.mean(np.array(found) <= 0.05) < 0.25


def test_a_feature_that_the_stream_holds_much_of_is_turned_beyond_chance() -> None:
    """Planted: all token embeddings are near one direction, and the observable reads along it."""
    weights = random_model(n_layers=1, n_heads=1, d_model=32, d_mlp=0, biases=False, positions="none")
    arrays = {name: np.array(weights[name]) for name in weights.names()}
    rng = np.random.default_rng(1)
    held = rng.standard_normal(32)
    arrays["W_E"] = held + 0.3 * rng.standard_normal(arrays["W_E"].shape)
    arrays["W_U"][:, 3] = arrays["W_U"][:, 5] + held
    arrays["L0.W_O"] *= 0.01
    arrays["final_norm.gain"][:] = 1
    planted = covector.open(type(weights)(weights.spec, arrays))
    row = next(r for r in layernorm(planted, asked(planted), pairs_for(planted)).rows if r["norm"] == "final_norm")
    assert row["turn"] > 60
    assert row["p"] < 0.001
    assert row["gain_turn"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert"])
def test_every_norm_between_a_head_and_the_output_has_a_row(name: str) -> None:
    model = covector.open(random_weights(name))
    found = {row["norm"] for row in layernorm(model, asked(model), pairs_for(model)).rows}
    assert found == {n for n in model.spec.norms() if n.endswith(("final_norm", "attn_post", "_after", "attn_norm"))}


def test_a_path_takes_its_rows_where_its_steps_say() -> None:
    model = covector.open(random_model())
    pairs = pairs_for(model)
    whole = layernorm(model, asked(model), pairs, "L0H1>L1H2")
    at = layernorm(model, asked(model), pairs, "L0H1@NAME>L1H2@end")
    assert list(whole["norm"]) == ["final_norm", "L1.attn_norm", "L0.attn_norm"]
    decoder = Decoder(model.weights)
    for layer, position in ((1, 5), (0, 1)):
        x = np.concatenate([
            decoder.run(torch.tensor([p.clean, p.corrupt]), capture=[f"L{layer}.attn_in"])
            .cache[f"L{layer}.attn_in"][:, position].numpy() for p in pairs
        ])  # fmt: skip
        scale = np.mean(1 / np.sqrt(x.var(axis=1) + 1e-5))
        row = next(r for r in at.rows if r["norm"] == f"L{layer}.attn_norm")
        assert row["scale"] == pytest.approx(scale, rel=1e-10)


def test_position_0_is_never_taken() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="position 0"):
        layernorm(model, asked(model), pairs_for(model, slots={"FIRST": 0}), "L1H2@FIRST")
    weights = random_model()
    before = layernorm(covector.open(weights), asked(model), pairs_for(model), "L0H0")
    arrays = {name: np.array(weights[name]) for name in weights.names()}
    arrays["W_pos"][0] *= 50  # a sink
    after = layernorm(covector.open(type(weights)(weights.spec, arrays)), asked(model), pairs_for(model), "L0H0")
    np.testing.assert_allclose(after["scale"][1], before["scale"][1], rtol=1e-12)


def test_an_mlp_on_the_path_is_refused() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="heads through their values"):
        layernorm(model, asked(model), pairs_for(model), "L0.mlp>L1H2")


def test_agreement_of_known_lists() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    found = agreement(x, 2 * x)
    assert (found.slope, found.r2, found.rank) == pytest.approx((2, 1, 1))
    assert rank_correlation(x, np.exp(-x)) == pytest.approx(-1)
    assert np.isnan(agreement(x, np.ones(4)).r2)
    # Positives 3, 1 against negatives 2, 1: they win 1 + 1 + 0 + ½ of 4.
    assert separation(np.array([3.0, 1, 2, 1]), np.array([True, True, False, False])) == pytest.approx(2.5 / 4)
