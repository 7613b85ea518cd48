"""A path's feature at prompts, through MLPs too: against finite differences of the running model along that path."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

import covector
from covector.analyses.feature_steps import feature_steps
from covector.analyses.layernorm import layernorm
from covector.arch.toy import random_model
from covector.cli.main import run
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.prompts import Pair
from covector.study.observable import Observable
from random_checkpoints import random_weights

TASK = {"token 3": 1.0, "token 7": -1.0}
EPS = 1e-4


def pairs_for(model: Model, lengths: tuple[int, ...] = (5, 5, 6)) -> list[Pair]:
    rng = np.random.default_rng(3)
    ids = [rng.integers(0, model.spec.n_vocab, (2, n)).tolist() for n in lengths]
    return [Pair(tuple(a), tuple(b), {"NAME": 1, "end": len(a) - 1}, ("", "")) for a, b in ids]


def along(model: Model, observable: Observable, pair: Pair, d: np.ndarray, head: int | None) -> float:
    """Derivative along d at NAME (of L1's head, then L1.mlp), or at the end of L1.mlp, through that path alone.

    Every step replaces one activation in a run of its own, and the rest of the model stays as it was.
    """
    decoder, tokens = Decoder(model.weights), torch.tensor([pair.clean])

    def moved(x: torch.Tensor, at: int, eps: float) -> torch.Tensor:
        x = x.clone()
        x[0, at] += eps * torch.from_numpy(d).to(x)
        return x

    def value(eps: float) -> float:
        if head is None:
            change: dict[str, Callable] = {"L1.mlp_in": lambda x: moved(x, -1, eps)}
        else:
            plain = decoder.run(tokens, capture=["L1.z", "L1.v", "L1.pattern"]).cache
            read = decoder.run(tokens, capture=["L1.v"], intervene={"L1.attn_in": lambda x: moved(x, 1, eps)}).cache
            attn = model.spec.blocks[1].attn
            assert attn is not None
            z = plain["L1.z"].clone()
            z[:, :, head] = plain["L1.pattern"][:, head] @ read["L1.v"][:, :, attn.kv_of(head)]
            seen = decoder.run(tokens, capture=["L1.mlp_in"], intervene={"L1.z": lambda _: z}).cache["L1.mlp_in"]
            change = {"L1.mlp_in": lambda _: seen}
        return float(observable.of(decoder.run(tokens, intervene=change).logits[0, -1].detach().numpy()))

    return (value(EPS) - value(-EPS)) / (2 * EPS)


@pytest.mark.parametrize("make", [random_model, lambda: random_weights("gemma2")])
@pytest.mark.parametrize(("path", "head"), [("L1.mlp@end>out", None), ("L1H1@NAME>L1.mlp>out", 1)])
def test_the_exact_feature_is_the_derivative_along_the_path(make, path: str, head: int | None) -> None:
    """Mean over prompts of two lengths; central differences err by about EPS² and 1e-16 / EPS."""
    model = covector.open(make())
    observable, pairs = Observable(TASK, model), pairs_for(model)
    feature, table = feature_steps(model, observable, path, pairs=pairs, policy="exact")
    for d in np.random.default_rng(0).standard_normal((3, model.spec.d_model)):
        wanted = np.mean([along(model, observable, p, d, head) for p in pairs])
        assert feature.vector @ d == pytest.approx(wanted, rel=1e-5, abs=1e-8)
    assert table.meta["kind"] == "fit"
    assert np.isnan(feature.constant)
    assert table.rows[-1]["norm"] == pytest.approx(np.linalg.norm(feature.vector), rel=1e-12)


def test_the_frozen_feature_and_its_constant_give_what_the_model_says() -> None:
    """Held ratios are exact at the prompt itself: f·x + c is what the MLP writes, biases included, read there."""
    model = covector.open(random_model())
    observable, pairs = Observable(TASK, model), pairs_for(model, (5,))
    feature, _ = feature_steps(model, observable, "L1.mlp@end>out", pairs=pairs)
    decoder, tokens = Decoder(model.weights), torch.tensor([pairs[0].clean])
    cache = decoder.run(tokens, capture=["L1.mlp_in", "L1.mlp_out", "L1.resid_post"]).cache
    last = {name: x[0, -1].detach().numpy() for name, x in cache.items()}
    x, gain = last["L1.resid_post"], model.weights["final_norm.gain"]
    bias, W_U = model.weights["final_norm.bias"], model.weights["W_U"]
    assert model.spec.final_norm is not None
    sigma = np.sqrt(np.var(x) + model.spec.final_norm.eps)
    out = (last["L1.mlp_out"] - last["L1.mlp_out"].mean()) / sigma * gain
    wanted = ((out + bias) @ W_U + model.weights["b_U"]) @ observable.vector
    through = feature.of(last["L1.mlp_in"][None])[0]
    assert through == pytest.approx(wanted, rel=1e-9)


def test_the_first_step_takes_the_only_slot_and_says_it() -> None:
    model = covector.open(random_model())
    observable, pairs = Observable(TASK, model), pairs_for(model)
    named = feature_steps(model, observable, "L0H1@NAME>L0.mlp>L1.mlp>out", pairs=pairs)[0]
    bare, table = feature_steps(model, observable, "L0H1>L0.mlp>L1.mlp>out", pairs=pairs)
    np.testing.assert_array_equal(bare.vector, named.vector)
    assert "L0H1@NAME>" in table.title
    two = [Pair(p.clean, p.corrupt, {**p.slots, "X": 2}, p.texts) for p in pairs]
    with pytest.raises(BadRequest, match=r"such as L0H1@NAME \(NAME, X, end, or a position\)"):
        feature_steps(model, observable, "L0H1>L0.mlp>out", pairs=two)


def test_what_needs_prompts_says_how_to_give_them() -> None:
    model = covector.open(random_model())
    observable = Observable(TASK, model)
    with pytest.raises(BadRequest, match=r"L0\.mlp: an MLP .* --template with --fill, or --prompts FILE"):
        feature_steps(model, observable, "L0H0>L0.mlp>out")
    with pytest.raises(BadRequest, match="expected --policy exact"):
        feature_steps(model, observable, "L0H0@NAME>L1H0.q@end>out", pairs=pairs_for(model))
    with pytest.raises(BadRequest, match="expected frozen or exact, got 'secant'"):
        feature_steps(model, observable, "L0.mlp@NAME", pairs=pairs_for(model), policy="secant")
    with pytest.raises(BadRequest, match="behind an MLP, a query or a key the feature is another vector"):
        layernorm(model, observable, pairs_for(model), "L0.mlp>L1H2")


def test_the_command_takes_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--template", "Yesterday [NAME] was happy because", "--fill", "NAME=Mary,Lisa:John,Mark", "--json"]
    assert run(["observe", "feature", "demo-lm", "' she' - ' he'", "L0H0>L0.mlp>L2.mlp>out", *words]) == 0
    meta = json.loads(capsys.readouterr().out)["meta"]
    assert (meta["kind"], meta["path"], meta["pairs"]) == ("fit", "L0H0@NAME>L0.mlp>L2.mlp>out", 2)
