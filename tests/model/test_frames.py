"""Frames: those that claim to preserve the function do, views follow their recipe, and the rest is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from covector.arch.family import families
from covector.errors import FrameUnavailable, UnknownFrame
from covector.linalg.svd import svd
from covector.model.frames import (
    PRESERVING,
    VIEWS,
    Frame,
    check_available,
    frame,
    framed,
    reads_centred,
    writes_centred,
)
from covector.model.spec import Norm, Output
from covector.model.weights import ArrayWeights, Weights
from covector.run.decoder import Decoder
from random_checkpoints import random_model, random_weights

# Logits of size ~10 after three float64 layers.
CLOSE = {"rtol": 0, "atol": 1e-9}
LAYER_NORM = sorted(n for n in families() if n in ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "phi"))
RMS_NORM = sorted(n for n in families() if n in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"))


def log_probs(weights: Weights) -> np.ndarray:
    ids = torch.tensor([[5, 17, 3, 40, 22, 9, 31, 8]])
    logits = Decoder(weights, dtype=torch.float64).run({"token": ids}).outputs["token"]
    return torch.log_softmax(logits, -1).numpy()


def available(weights: Weights, name: str) -> bool:
    try:
        check_available(weights, Frame(name))
    except FrameUnavailable:
        return False
    return True


@pytest.mark.identity("SV-24")
@pytest.mark.parametrize("name", PRESERVING)
@pytest.mark.parametrize("family", [*LAYER_NORM, *RMS_NORM])
def test_a_preserving_frame_keeps_every_log_probability(family: str, name: str) -> None:
    weights = random_weights(family)
    if not available(weights, name):
        assert family in RMS_NORM
        assert name in ("gauge_fixed", "tl_default")
        return
    np.testing.assert_allclose(log_probs(framed(weights, Frame(name))), log_probs(weights), **CLOSE)


def test_folded_keeps_the_logits_themselves() -> None:
    weights, ids = random_weights("gpt2"), {"token": torch.tensor([[1, 2, 3, 4]])}
    plain, folded = (Decoder(w).run(ids).outputs["token"].numpy() for w in (weights, framed(weights, Frame("folded"))))
    np.testing.assert_allclose(folded, plain, **CLOSE)


def test_a_frame_has_no_gains_left_and_its_readers_are_centred() -> None:
    weights = framed(random_weights("gpt2"), Frame("folded"))
    assert not any(n.endswith("norm.gain") for n in weights.names())
    for name in ("L1.W_Q", "L1.W_in", "W_U"):
        assert np.abs(weights[name].mean(axis=-2)).max() < 1e-15
    assert np.abs(weights["L1.W_O"].mean(axis=-1)).max() > 1e-3
    assert np.abs(framed(random_weights("gpt2"), Frame("gauge_fixed"))["L1.W_O"].mean(axis=-1)).max() < 1e-15


@pytest.mark.identity("SV-25")
def test_the_gauge_fixed_spectrum_depends_on_the_function_alone() -> None:
    """Adding a constant to writers, a γ⁻¹-shaped one to readers, or moving scale into γ changes nothing."""
    base = random_weights("gpt2")
    rng = np.random.default_rng(4)
    arrays = {n: np.array(base[n]) for n in base.names() if n != "W_U"}
    arrays["W_U"] = np.array(base["W_U"])
    gain = arrays["L1.attn_norm.gain"]
    arrays["L1.W_O"] = arrays["L1.W_O"] + rng.standard_normal((*arrays["L1.W_O"].shape[:2], 1))
    arrays["L1.W_V"] = arrays["L1.W_V"] + (1 / gain)[None, :, None] * rng.standard_normal((4, 1, 5))
    stretch = rng.uniform(0.5, 2.0, gain.shape)
    arrays["L1.attn_norm.gain"], arrays["L1.attn_norm.bias"] = gain * stretch, arrays["L1.attn_norm.bias"] * stretch
    for role in ("W_Q", "W_K", "W_V"):
        arrays[f"L1.{role}"] = arrays[f"L1.{role}"] / stretch[None, :, None]
    moved = ArrayWeights(base.spec, arrays)
    same, other = (framed(w, Frame("gauge_fixed")) for w in (base, moved))
    for name in ("L1.W_V", "L1.W_O"):
        np.testing.assert_allclose(other[name], same[name], rtol=0, atol=1e-12)
    assert np.abs(moved["L1.W_V"] - base["L1.W_V"]).max() > 0.1


@pytest.mark.identity("SV-25")
def test_fixing_the_gauge_twice_is_fixing_it_once() -> None:
    once = framed(random_weights("gpt2"), Frame("gauge_fixed"))
    held = ArrayWeights(once.spec, {n: np.array(once[n]) for n in once.names()})
    twice = framed(held, Frame("gauge_fixed"))
    for name in ("L0.W_Q", "L2.W_in", "L1.W_O", "W_E", "W_U", "b_U"):
        np.testing.assert_allclose(twice[name], once[name], rtol=0, atol=1e-13)


@pytest.mark.identity("SV-26")
def test_centring_the_unembedding_keeps_the_order_of_raw_logits_and_changes_cosines() -> None:
    model = random_model("gpt2")
    direction = np.random.default_rng(5).standard_normal(model.spec.d_model)
    folded, fixed = (model.framed(f).weights["W_U"] for f in ("folded", "gauge_fixed"))
    assert np.array_equal(np.argsort(direction @ folded), np.argsort(direction @ fixed))
    cosines = [direction @ (u / np.linalg.norm(u, axis=0)) for u in (folded, fixed)]
    assert np.abs(cosines[0] - cosines[1]).max() > 1e-3


def test_tl_demo_scales_w_in_by_its_gain_and_touches_nothing_else() -> None:
    weights = random_weights("gpt2")
    view = framed(weights, Frame("tl_demo"))
    np.testing.assert_allclose(view["L1.W_in"], np.diag(weights["L1.mlp_norm.gain"]) @ weights["L1.W_in"], rtol=1e-14)
    for name in ("L1.W_V", "L1.W_O", "L1.W_out", "W_U"):
        assert np.array_equal(view[name], weights[name])


def test_conjecture2022_is_a_rank_one_change_of_every_head() -> None:
    """Its published notebook subtracts the mean over fused output units, not over d_model: OV → diag(γ₁)(OV − m sᵀ)."""
    model = random_model("gpt2")
    w, view = model.weights, model.framed("conjecture2022")
    fused = np.concatenate([w[f"L0.{r}"][h] for r in ("W_Q", "W_K", "W_V") for h in range(4)], axis=1)
    mean, gain = fused.mean(axis=1), np.diag(w["L0.attn_norm.gain"])
    for head in range(4):
        ov = w["L0.W_V"][head] @ w["L0.W_O"][head]
        want = gain @ (ov - np.outer(mean, w["L0.W_O"][head].sum(axis=0)))
        np.testing.assert_allclose(view.map(f"L0H{head}").dense(), want, rtol=0, atol=1e-12)


def test_a_gated_mlp_with_its_bias_behind_the_gate_folds_exactly() -> None:
    base = random_weights("llama")
    blocks = []
    for block in base.spec.blocks:
        attn, mlp = block.sublayers
        part = dataclasses.replace(mlp.part, bias_after_gate=True)
        blocks.append(dataclasses.replace(block, sublayers=(attn, dataclasses.replace(mlp, part=part))))
    arrays = {n: np.array(base[n]) for n in base.names()}
    rng = np.random.default_rng(6)
    for i in range(3):
        arrays[f"L{i}.mlp_norm.bias"] = rng.standard_normal(base.spec.d_model)
    weights = ArrayWeights(dataclasses.replace(base.spec, blocks=tuple(blocks)), arrays)
    np.testing.assert_allclose(log_probs(framed(weights, Frame("folded"))), log_probs(weights), **CLOSE)


@pytest.mark.parametrize(
    ("family", "name", "told"),
    [
        ("llama", "gauge_fixed", "RMSNorm does not centre"),
        ("llama", "conjecture2022", "its heads are grouped"),
    ],
)
def test_a_frame_that_the_anatomy_lacks_is_refused_with_the_reason(family: str, name: str, told: str) -> None:
    with pytest.raises(FrameUnavailable, match=told):
        random_model(family).framed(name)


@pytest.mark.parametrize("name", ["folded", "gauge_fixed", "tl_default", *VIEWS])
def test_post_norm_blocks_have_no_folded_frame(name: str) -> None:
    with pytest.raises(FrameUnavailable, match="post-norm"):
        random_model("bert").framed(name)


def test_an_unknown_frame_lists_the_known_ones() -> None:
    with pytest.raises(UnknownFrame, match=r"expected a frame .raw, folded, gauge_fixed, tl_default, tl_demo"):
        frame("centered")


def test_singular_values_differ_between_frames_because_gains_are_not_rotations() -> None:
    model = random_model("gpt2")
    assert abs(svd(model.map("L1H1")).S[0] / svd(model.framed("folded").map("L1H1")).S[0] - 1) > 1e-3


def odd(**changes: object) -> Weights:
    """A random GPT-2 with some part of its anatomy replaced (see the tests below)."""
    base = random_weights("gpt2")
    blocks = []
    for block in base.spec.blocks:
        subs = [dataclasses.replace(s, **{k: v for k, v in changes.items() if k in ("post",)}) for s in block.sublayers]
        blocks.append(dataclasses.replace(block, sublayers=tuple(subs)))
    assembly = dataclasses.replace(base.spec.assembly, **{k: v for k, v in changes.items() if k in ("norm", "inputs")})
    spec = dataclasses.replace(base.spec, blocks=tuple(blocks), assembly=assembly, tied=False)
    if "final_norm" in changes:
        spec = dataclasses.replace(spec, final_norm=changes["final_norm"])
    if "outputs" in changes:
        spec = dataclasses.replace(spec, outputs=changes["outputs"])
    arrays = {n: np.array(base[n]) for n in base.names()} | changes.get("arrays", {})
    kept = {n for n in arrays if not (changes.get("final_norm", 1) is None and n.startswith("final_norm"))}
    return ArrayWeights(spec, {n: arrays[n] for n in kept})


RMS, LAYER = Norm("rms", 1e-6), Norm("layer", 1e-5)
ODD = {
    "rms behind sublayers": lambda: odd(post=RMS),
    "layer norm behind sublayers": lambda: odd(post=LAYER),
    "rms behind embeddings": lambda: odd(norm=RMS),
    "layer norm behind embeddings": lambda: odd(norm=LAYER),
    "rms at the end": lambda: odd(final_norm=RMS),
    "no norm at the end": lambda: odd(final_norm=None),
    "a transform before the output": lambda: odd(
        outputs=(Output("token", 61, transform="gelu", transform_norm=LAYER),),
        arrays={
            "out.token.transform.W": np.random.default_rng(1).standard_normal((20, 20)),
            "out.token.norm.gain": np.random.default_rng(2).uniform(0.5, 2, 20),
            "out.token.norm.bias": np.random.default_rng(3).standard_normal(20),
        },
    ),
}


@pytest.mark.identity("SV-24")
@pytest.mark.parametrize("name", ["folded", "gauge_fixed", "tl_default"])
@pytest.mark.parametrize("anatomy", ODD)
def test_over_odd_anatomies_a_frame_is_refused_or_keeps_every_log_probability(anatomy: str, name: str) -> None:
    weights = ODD[anatomy]()
    if not available(weights, name):
        assert name == "gauge_fixed"
        return
    np.testing.assert_allclose(log_probs(framed(weights, Frame(name))), log_probs(weights), **CLOSE)


@pytest.mark.parametrize("name", PRESERVING)
def test_a_side_is_called_centred_exactly_when_its_directions_have_no_part_along_one(name: str) -> None:
    for weights in (random_weights("gpt2"), random_weights("llama"), odd(final_norm=None)):
        if not available(weights, name):
            continue
        chosen, view = Frame(name), framed(weights, Frame(name))
        for tensor in ("L1.W_Q", "L1.W_in", "W_U"):
            part = np.abs(view[tensor].sum(axis=-2)).max()
            assert (part < 1e-9) == reads_centred(weights.spec, chosen, tensor), (name, tensor, part)
        assert (np.abs(view["L1.W_O"].sum(axis=-1)).max() < 1e-9) == writes_centred(weights.spec, chosen)
