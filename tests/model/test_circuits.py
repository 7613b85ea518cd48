"""Circuits: the map behind an address is the matrix that the field means, checked by dense algebra in float64."""

import numpy as np
import pytest
import torch

from covector.linalg.svd import svd
from covector.model.address import site
from covector.model.circuits import cautions, map_at
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from covector.run.decoder import Decoder
from random_checkpoints import random_model, random_weights

# Products of small float64 matrices of size ~1: a few hundred roundings of 2⁻⁵³.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def test_ov_reads_through_the_key_value_head_and_writes_through_the_query_head() -> None:
    model = random_model("llama")  # 4 query heads on 2 key/value heads
    w = model.weights
    for head, kv in ((0, 0), (1, 0), (2, 1), (3, 1)):
        np.testing.assert_allclose(model.map(f"L1H{head}.ov").dense(), w["L1.W_V"][kv] @ w["L1.W_O"][head], **CLOSE)


def test_qk_gives_the_score_of_two_streams() -> None:
    model, rng = random_model("gpt2"), np.random.default_rng(1)
    w = model.weights
    x, y = rng.standard_normal((2, model.spec.d_model))
    score = (x @ w["L2.W_Q"][3]) @ (y @ w["L2.W_K"][3])
    np.testing.assert_allclose(model.map("L2H3.qk").apply(x) @ y, score, **CLOSE)


def test_ov_of_a_layer_adds_up_to_its_whole_output_when_every_head_attends_alike() -> None:
    model, rng = random_model("gpt2"), np.random.default_rng(2)
    w, x = model.weights, rng.standard_normal(model.spec.d_model)
    z = np.concatenate([x @ w["L0.W_V"][h] for h in range(4)])
    whole = z @ w["L0.W_O"].reshape(-1, model.spec.d_model)
    np.testing.assert_allclose(sum(model.map(f"L0H{h}").apply(x) for h in range(4)), whole, **CLOSE)


@pytest.mark.parametrize("kind", ["ov", "qk", "in", "out", "q"])
def test_a_bias_row_makes_the_map_affine(kind: str) -> None:
    model, rng = random_model("gpt2"), np.random.default_rng(3)
    w, d = model.weights, model.spec.d_model
    x, y, h = rng.standard_normal(d), rng.standard_normal(d), rng.standard_normal(model.spec.d_mlp)
    at = {"in": "L1.mlp.in", "out": "L1.mlp.out"}.get(kind, f"L1H2.{kind}")
    affine = map_at(w, site(at, model.spec), bias=True)
    one = lambda row: np.concatenate([[1.0], row])  # noqa: E731
    want = {
        "ov": lambda: (x @ w["L1.W_V"][2] + w["L1.b_V"][2]) @ w["L1.W_O"][2] + w["L1.b_O"] / 4,
        "q": lambda: x @ w["L1.W_Q"][2] + w["L1.b_Q"][2],
        "in": lambda: x @ w["L1.W_in"] + w["L1.b_in"],
        "out": lambda: h @ w["L1.W_out"] + w["L1.b_out"],
        "qk": lambda: (x @ w["L1.W_Q"][2] + w["L1.b_Q"][2]) @ (y @ w["L1.W_K"][2] + w["L1.b_K"][2]),
    }[kind]()
    got = affine.apply(one(h if kind == "out" else x))
    np.testing.assert_allclose(got @ one(y) if kind == "qk" else got, want, **CLOSE)


@pytest.mark.identity("SV-17")
def test_a_bias_row_interlaces_the_singular_values() -> None:
    model = random_model("gpt2")
    plain = svd(model.map("L1.mlp.in")).S
    longer = svd(map_at(model.weights, site("L1.mlp.in", model.spec), bias=True)).S
    assert np.all(longer[: len(plain)] >= plain * (1 - 1e-12))
    assert np.all(plain[: len(longer) - 1] >= longer[1 : len(plain) + 1] * (1 - 1e-12))


def test_what_weights_cannot_show_is_said_where_it_holds() -> None:
    spec = random_model("llama").spec
    assert any("rotary" in c for c in cautions(spec, site("L0H0.qk", spec)))
    assert cautions(spec, site("L0H0.ov", spec)) == ()
    assert any("gate opens" in c for c in cautions(spec, site("L0.mlp.in", spec)))
    gpt2 = random_model("gpt2").spec
    assert cautions(gpt2, site("L0H0.qk", gpt2)) == ()


@pytest.mark.identity("SV-10")
@pytest.mark.parametrize(
    "name", ["relu", "relu2", "gelu", "gelu_new", "quick_gelu", "silu", "sigmoid", "tanh", "linear"]
)
def test_flipping_a_neurons_sign_keeps_the_function_for_odd_activations_only(name: str) -> None:
    """W_in, b_in and W_out of a neuron may be negated together only where act(−x) = −act(x)."""
    base = random_weights("gpt2", activation_function=name)
    flip = np.where(np.arange(base.spec.d_mlp) % 3 == 0, -1.0, 1.0)
    arrays = {n: np.array(base[n]) for n in base.names()}
    for role in ("W_in", "b_in"):
        arrays[f"L1.{role}"] = arrays[f"L1.{role}"] * flip
    arrays["L1.W_out"] = arrays["L1.W_out"] * flip[:, None]
    ids = {"token": torch.tensor([[3, 14, 15, 9, 26]])}
    plain, flipped = (Decoder(w).run(ids).logits.numpy() for w in (base, ArrayWeights(base.spec, arrays)))
    same = np.allclose(plain, flipped, rtol=0, atol=1e-10)
    assert same == (name in ("tanh", "linear"))
    sigma = [np.linalg.svd(w, compute_uv=False) for w in (base["L1.W_in"], arrays["L1.W_in"])]
    np.testing.assert_allclose(sigma[1], sigma[0], rtol=1e-12)


@pytest.mark.parametrize("stored", ["float16"])
@pytest.mark.parametrize("frame", ["raw", "folded", "gauge_fixed"])
@pytest.mark.parametrize("address", ["L1.mlp.out", "L1.mlp.in", "L1H2.ov"])
def test_what_rounding_can_turn_is_bounded_in_every_frame(address: str, frame: str, stored: str) -> None:
    """Weights rounded to half precision: no direction turns by more than the printed bound, whatever the frame."""
    base = random_weights("gpt2")
    arrays = {n: np.array(base[n]) for n in base.names()}
    for name in ("L1.W_O", "L1.W_out"):  # writers with a mean far above their spread, as trained ones may have
        arrays[name] = arrays[name] + 20 * np.random.default_rng(7).standard_normal((*arrays[name].shape[:-1], 1))
    coarse = {n: a.astype(stored).astype(np.float64) for n, a in arrays.items()}
    found = []
    for held in (arrays, coarse):
        weights = ArrayWeights(base.spec, held, dict.fromkeys(held, stored))
        found.append(svd(Model("m", weights, weights).framed(frame).map(address)))
    exact, rounded = found
    for i in range(min(exact.rank, rounded.rank)):
        if rounded.wedin[i] < 1:
            sine = np.sqrt(max(0.0, 1 - (exact.U[:, i] @ rounded.U[:, i]) ** 2))
            assert sine <= rounded.wedin[i] + 1e-9, (i, sine, rounded.wedin[i])
