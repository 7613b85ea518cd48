"""Models of TransformerLens in memory: opened as they are, what was done to them told apart, the rest refused by name.

TransformerLens is not installed here. The stand-ins carry what its models carry (names copied from 3.9 and 4.3);
`benchmarks/peers/tl_default_equals_transformer_lens.py` holds the real ones against covector.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import covector
from covector.arch.family import families
from covector.errors import CheckpointMismatch, FrameUnavailable, UnknownModel, UnsupportedConfig
from covector.model.frames import Frame, framed
from covector.model.weights import ArrayWeights, Weights
from covector.run.decoder import Decoder
from random_checkpoints import random_model, random_weights

IDS = torch.tensor([[5, 17, 3, 40, 22, 9, 31, 8, 2, 60]])
# Logits of size ~10 after three float64 layers.
CLOSE = {"rtol": 0, "atol": 1e-10}
# vars(HookedTransformerConfig(...)) of a three-layer model, TransformerLens 3.9.
CFG = {
    "NTK_by_parts_factor": 8.0, "NTK_by_parts_high_freq_factor": 4.0, "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_original_ctx_len": 8192, "act_fn": "gelu_new", "attention_dir": "causal", "attn_only": False,
    "attn_scale": np.float64(5**0.5), "attn_scores_soft_cap": -1.0, "attn_types": None, "checkpoint_index": None,
    "checkpoint_label_type": None, "checkpoint_value": None, "clip_qkv": None, "d_head": 5, "d_mlp": 36, "d_model": 20,
    "d_vocab": 61, "d_vocab_out": 61, "decoder_start_token_id": None, "default_prepend_bos": True, "device": "cpu",
    "dtype": torch.float64, "eps": 1e-05, "experts_per_token": None, "final_rms": False, "from_checkpoint": False,
    "gated_mlp": False, "init_mode": "gpt2", "init_weights": True, "initializer_range": np.float64(0.18),
    "layer_norm_folding": False, "load_in_4bit": False, "model_name": "custom", "n_ctx": 24, "n_devices": 1,
    "n_heads": 4, "n_key_value_heads": None, "n_layers": 3, "n_params": 9120, "norm_topk_prob": False,
    "normalization_type": "LN", "num_experts": None, "original_architecture": None, "output_logits_soft_cap": -1.0,
    "parallel_attn_mlp": False, "positional_embedding_type": "standard", "post_embedding_ln": False,
    "quantization_method": None, "relative_attention_max_distance": None, "relative_attention_num_buckets": None,
    "rotary_adjacent_pairs": False, "rotary_base": 10000, "rotary_base_local": None, "rotary_dim": None,
    "rotary_scaling_factor": 1.0, "scale_attn_by_inverse_layer_idx": False, "seed": None, "tie_word_embeddings": False,
    "tokenizer_name": None, "tokenizer_prepends_bos": None, "train_seq_length": None, "trust_remote_code": False,
    "ungroup_grouped_query_attention": False, "use_NTK_by_parts_rope": False, "use_attention_sinks": False,
    "use_attn_in": False, "use_attn_result": False, "use_attn_scale": True, "use_dynamic_ntk_rope": False,
    "use_hook_mlp_in": False, "use_hook_tokens": False, "use_local_attn": False, "use_logn_attn": False,
    "use_normalization_before_and_after": False, "use_qk_norm": False, "use_split_qkv_input": False,
    "use_yarn_rope": False, "uses_rms_norm": False, "window_size": None, "yarn_attention_factor": 1.0,
    "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_factor": 1.0, "yarn_global_attn_only": False,
    "yarn_original_max_position_embeddings": 4096, "yarn_truncate": True,
}  # fmt: skip
# What TransformerLens says of families in its cfg, for their tiny configs: (what differs in our config, in its cfg).
_LLAMA = {
    "d_model": 24, "d_head": 8, "d_mlp": 40, "n_ctx": 64, "attn_scale": 8**0.5, "n_key_value_heads": 2,
    "normalization_type": "RMS", "final_rms": True, "eps": 1e-6, "positional_embedding_type": "rotary", "rotary_dim": 8,
    "gated_mlp": True, "act_fn": "silu",
}  # fmt: skip
_NTK = {"use_NTK_by_parts_rope": True, "NTK_by_parts_factor": 4.0, "NTK_original_ctx_len": 32}
_GEMMA = _LLAMA | {"act_fn": "gelu_pytorch_tanh", "use_normalization_before_and_after": True, "attn_scale": 12**0.5}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({}, {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": (
        {},
        {
            "use_attn_scale": False, "use_local_attn": True, "window_size": 5,
            "attn_types": ["global", "local", "global"],
        },
    ),
    "gptj": (
        {},
        {
            "positional_embedding_type": "rotary", "rotary_adjacent_pairs": True, "parallel_attn_mlp": True,
            "d_model": 24, "d_head": 6, "attn_scale": 6**0.5, "rotary_dim": 4, "n_layers": 2,
        },
    ),
    "gpt_neox": (
        {},
        {
            "positional_embedding_type": "rotary", "parallel_attn_mlp": True, "d_model": 24, "d_head": 8, "n_heads": 3,
            "attn_scale": 8**0.5, "rotary_dim": 4, "rotary_base": 500, "rotary_scaling_factor": 2.0, "act_fn": "gelu",
            "n_layers": 2, "d_mlp": 40, "n_ctx": 64,
        },
    ),
    "llama": ({"mlp_bias": False}, _LLAMA | _NTK),
    "qwen3": (
        {},
        _LLAMA | {
            "n_layers": 2, "use_qk_norm": True, "rotary_base": 1000, "use_local_attn": True, "window_size": 5,
            "attn_types": ["local", "global"],
        },
    ),
    "gemma2": (
        {},
        _GEMMA | {
            "n_layers": 2, "rotary_base": 1000, "use_local_attn": True, "window_size": 5,
            "attn_types": ["local", "global"], "attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0,
        },
    ),
    "gemma3": (
        {},
        _GEMMA | {
            "rotary_base": 5000, "rotary_base_local": 100, "rotary_scaling_factor": 4.0, "use_local_attn": True,
            "window_size": 5, "attn_types": ["local", "global", "local"], "output_logits_soft_cap": 3.0,
            "use_qk_norm": True,
        },
    ),
}  # fmt: skip
# Canonical role → TransformerLens' name inside a block.
BLOCK = {
    **{f"{kind}_{letter}": f"attn.{kind}_{letter}" for letter in "QKVO" for kind in "Wb"},
    **{role: f"mlp.{role}" for role in ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out")},
    **{
        f"{ours}.{long}": f"{theirs}.{short}"
        for ours, theirs in (
            ("attn_norm", "ln1"), ("mlp_norm", "ln2"), ("attn_post", "ln1_post"), ("mlp_post", "ln2_post"),
            ("q_norm", "attn.q_norm"), ("k_norm", "attn.k_norm"),
        )
        for long, short in (("gain", "w"), ("bias", "b"))
    },
}  # fmt: skip
ENDS = {
    "W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "W_U": "unembed.W_U", "b_U": "unembed.b_U",
    "final_norm.gain": "ln_final.w", "final_norm.bias": "ln_final.b",
}  # fmt: skip


def named(weights: Weights, *, grouped: bool = False) -> dict[str, torch.Tensor]:
    """Canonical weights under TransformerLens' names; its grouped heads carry an underscore."""
    state = {}
    for name in weights.names():
        layer, _, role = name.partition(".")
        if role in BLOCK:
            theirs = f"blocks.{layer[1:]}.{BLOCK[role]}"
            theirs = theirs.replace("attn.", "attn._") if grouped and role[1:] in ("_K", "_V") else theirs
        else:
            theirs = ENDS[name]
        state[theirs] = torch.from_numpy(np.array(weights[name], dtype=np.float64))
    return state


def hooked(state: Mapping[str, torch.Tensor], **cfg: Any) -> SimpleNamespace:
    """What stands in for a HookedTransformer."""
    unknown = set(cfg) - set(CFG)
    assert not unknown, unknown
    buffers = {f"blocks.{i}.attn.mask": torch.ones(1, dtype=torch.bool) for i in range(cfg.get("n_layers", 3))}
    return SimpleNamespace(cfg=SimpleNamespace(**(CFG | cfg)), state_dict=lambda: dict(state) | buffers)


def bridge(weights: Weights, family: str, **config: Any) -> SimpleNamespace:
    """What stands in for a TransformerBridge: key/value heads repeated, absent biases as zeros, all gains shown."""
    every = weights.spec.n_heads // weights.spec.n_kv_heads
    state = {"unembed.b_U": torch.zeros(61)} | named(weights)
    if family == "gptj":  # one norm for both sublayers, shown once
        state = {name: tensor for name, tensor in state.items() if ".ln2." not in name}
    for name, tensor in state.items():
        if name.endswith(("_K", "_V")):
            state[name] = tensor.repeat_interleave(every, dim=0)
    values = dict(families()[family].tiny()) | config
    return SimpleNamespace(
        cfg=SimpleNamespace(n_heads=weights.spec.n_heads, n_key_value_heads=weights.spec.n_kv_heads),
        tl_parameters=lambda: state,
        original_model=SimpleNamespace(config=SimpleNamespace(to_dict=lambda: values)),
    )


def with_plain_norms(weights: Weights, raw: Weights) -> Weights:
    """A processed bridge shows its folded norms as ones and zeros."""
    plain = {n: np.full(raw[n].shape, float(n.endswith("gain"))) for n in raw.names() if "norm" in n}
    return ArrayWeights(weights.spec, {n: np.array(weights[n]) for n in weights.names()} | plain)


def logits(weights: Weights) -> np.ndarray:
    return Decoder(weights, dtype=torch.float64).run({"token": IDS}).outputs["token"].numpy()


def log_probs(weights: Weights) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(logits(weights)), -1).numpy()


def state_of(family: str, weights: Weights) -> dict[str, torch.Tensor]:
    """A family's weights as TransformerLens' loaders convert them: Gemma's embedding comes scaled."""
    state = named(weights, grouped=weights.spec.n_kv_heads != weights.spec.n_heads)
    state["embed.W_E"] = state["embed.W_E"] * weights.spec.assembly.inputs[0].scale
    return state


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hooked_transformer_gives_the_logits_of_the_checkpoint_it_came_from(family: str) -> None:
    ours, theirs = FAMILIES[family]
    weights = random_weights(family, **ours)
    model = covector.open(hooked(state_of(family, weights), **theirs), strict=True)
    assert model.spec.n_kv_heads == weights.spec.n_kv_heads
    np.testing.assert_allclose(logits(model.weights), logits(weights), **CLOSE)


def test_the_parts_it_has_of_its_own_are_read() -> None:
    """b_in is added after the gate, other outputs than inputs, both directions, no MLP, no norm, no scale."""
    state = named(random_weights("gpt2"))
    spec = covector.open(hooked(state, attention_dir="bidirectional", use_attn_scale=False)).spec
    assert spec.attention is not None
    assert (spec.attention.causal, spec.attention.scale) == (False, 1.0)
    bare = {n: t for n, t in state.items() if "ln" not in n and "mlp" not in n}
    bare |= {"unembed.W_U": state["unembed.W_U"][:, :7]}
    spec = covector.open(hooked(bare, normalization_type=None, attn_only=True, d_vocab_out=7)).spec
    assert (spec.n_vocab, spec.outputs[0].n, spec.norms(), spec.d_mlp) == (61, 7, {}, 0)
    ours, theirs = FAMILIES["llama"]
    gated = covector.open(hooked(state_of("llama", random_weights("llama", **ours)), **theirs)).spec.blocks[0].mlp
    assert gated is not None
    assert gated.bias_after_gate


def test_windows_are_read_only_where_local_attention_is_switched_on() -> None:
    state, types = named(random_weights("gpt2")), ["local", "global", "local"]
    off = covector.open(hooked(state, attn_types=types, window_size=4)).spec
    on = covector.open(hooked(state, attn_types=types, window_size=4, use_local_attn=True)).spec
    assert [[b.attn and b.attn.window for b in s.blocks] for s in (off, on)] == [[None] * 3, [4, None, 4]]


@pytest.mark.parametrize(
    ("frame", "done"),
    [
        ("raw", ()),
        ("folded", ("fold_ln",)),
        ("gauge_fixed", ("fold_ln", "center_writing_weights", "center_unembed")),
        ("tl_default", ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")),
    ],
)
def test_what_was_done_to_the_weights_is_read_off_them(frame: str, done: tuple[str, ...]) -> None:
    state = named(random_model("gpt2").framed(frame).weights)
    told = covector.open(hooked(state, normalization_type="LN" if frame == "raw" else "LNPre")).meta["processing"]
    assert {name for name, value in told.items() if value} == set(done)


def test_rms_models_are_told_folded_without_any_centring_and_norms_without_gains_are_not_folded() -> None:
    ours, theirs = FAMILIES["llama"]
    state = state_of("llama", framed(random_weights("llama", **ours), Frame("tl_default")))
    told = covector.open(hooked(state, **(theirs | {"normalization_type": "RMSPre"}))).meta["processing"]
    assert told == {
        "fold_ln": True, "center_writing_weights": False, "center_unembed": True, "fold_value_biases": True,
    }  # fmt: skip
    # Trained without gains, its readers have never been centred: folding would still change them.
    never = {n: t for n, t in named(random_weights("gpt2")).items() if "ln" not in n}
    assert not covector.open(hooked(never, normalization_type="LNPre")).meta["processing"]["fold_ln"]


def test_centring_is_still_seen_after_storage_in_bfloat16() -> None:
    state = named(random_model("gpt2").framed("tl_default").weights)
    model = covector.open(hooked({n: t.bfloat16() for n, t in state.items()}, normalization_type="LNPre"))
    assert all(model.meta["processing"].values())


@pytest.mark.parametrize(
    ("cfg", "told"),
    [
        ({"positional_embedding_type": "alibi"}, "'positional_embedding_type' = 'alibi'"),
        ({"positional_embedding_type": "shortformer"}, "'positional_embedding_type' = 'shortformer'"),
        ({"num_experts": 8}, "'num_experts' = 8"),
        ({"relative_attention_num_buckets": 32}, "'relative_attention_num_buckets' = 32"),
        ({"normalization_type": "BN"}, "'normalization_type' = 'BN'"),
        ({"attention_dir": "backwards"}, "'attention_dir' = 'backwards'"),
        ({"act_fn": "solu_ln"}, "act_fn 'solu_ln' is not implemented"),
        ({"post_embedding_ln": True}, "'post_embedding_ln' = True"),
        ({"use_yarn_rope": True}, "'use_yarn_rope' = True"),
        ({"use_dynamic_ntk_rope": True}, "'use_dynamic_ntk_rope' = True"),
        ({"use_logn_attn": True}, "'use_logn_attn' = True"),
        ({"use_attention_sinks": True}, "'use_attention_sinks' = True"),
        ({"clip_qkv": 8.0}, "'clip_qkv' = 8.0"),
        ({"load_in_4bit": True}, "'load_in_4bit' = True"),
        ({"quantization_method": "mxfp4"}, "'quantization_method' = 'mxfp4'"),
        ({"original_architecture": "Olmo2ForCausalLM"}, "'Olmo2ForCausalLM' means norms after each sublayer"),
        ({"original_architecture": "BertForMaskedLM"}, "'BertForMaskedLM' means post-norm blocks"),
    ],
)
def test_what_changes_the_function_is_refused_by_name(cfg: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedConfig, match=told):
        covector.open(hooked(named(random_weights("gpt2")), **cfg))


def test_a_tensor_that_nothing_reads_is_refused() -> None:
    state = named(random_weights("gpt2")) | {"blocks.0.attn.sinks": torch.zeros(4)}
    with pytest.raises(CheckpointMismatch, match=r"nothing reads blocks\.0\.attn\.sinks"):
        covector.open(hooked(state))


def test_a_final_rms_norm_is_what_the_module_is_and_keeps_writers_as_they_are() -> None:
    """cfg.final_rms stands also where folding has put a LayerNorm; only the module tells."""
    state = {n: t for n, t in named(random_weights("gpt2")).items() if n != "ln_final.b"}
    model = hooked(state, final_rms=True)
    opened = covector.open(model)
    assert [norm.kind for norm in opened.spec.norms().values()] == ["layer"] * 6 + ["rms"]
    frame = opened.framed("tl_default")
    np.testing.assert_allclose(log_probs(frame.weights), log_probs(opened.weights), **CLOSE)
    assert np.array_equal(frame.weights["W_E"], opened.weights["W_E"])
    with pytest.raises(FrameUnavailable, match="its outputs do not read through LayerNorm"):
        opened.framed("gauge_fixed")
    model.ln_final = type("LayerNormPre", (), {})()
    assert covector.open(model).spec.final_norm == opened.spec.norms()["L0.attn_norm"]


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "gptj", "llama"])
def test_a_bridge_gives_the_logits_of_the_model_it_runs(family: str, processed: bool) -> None:
    raw = random_weights(family)
    shown: Weights = with_plain_norms(framed(raw, Frame("tl_default")), raw) if processed else raw
    model = covector.open(bridge(shown, family))
    assert (model.spec.family, model.spec.n_kv_heads) == (family, raw.spec.n_kv_heads)
    assert model.meta["processing"]["fold_ln"] == processed
    np.testing.assert_allclose(logits(model.weights), logits(shown), **CLOSE)


def test_a_bridge_that_hides_a_norm_is_refused_with_its_name() -> None:
    with pytest.raises(UnsupportedConfig, match=r"over .qwen3. does not show k_norm\.gain, q_norm\.gain"):
        covector.open(bridge(random_weights("qwen3"), "qwen3"))
    with pytest.raises(UnsupportedConfig, match=r"over .opt. does not show attn_after\.bias"):
        covector.open(bridge(random_weights("opt"), "opt", do_layer_norm_before=False))
    hidden = bridge(random_weights("gpt2"), "gpt2")
    del hidden.tl_parameters()["blocks.1.ln2.w"]
    with pytest.raises(CheckpointMismatch, match=r"expected tensor 'blocks\.1\.ln2\.w'"):
        covector.open(hidden)


def test_a_bridge_without_a_transformers_model_is_refused() -> None:
    native = bridge(random_weights("gpt2"), "gpt2")
    native.original_model = SimpleNamespace()
    with pytest.raises(UnknownModel, match="expected a TransformerLens bridge over a transformers model"):
        covector.open(native)


def test_tl_default_is_the_processing_that_transformer_lens_documents() -> None:
    """Step by step, head by head, in the order of its documentation, and not as `covector.model.frames` does it."""
    raw = random_weights("gpt2")
    want = {n: np.array(raw[n], dtype=np.float64) for n in raw.names()} | {"W_U": np.array(raw["W_U"])}
    for i in range(raw.spec.n_layers):
        _fold_layer(want, f"L{i}.")
    want["b_U"] = want["W_U"].T @ want["final_norm.bias"]
    want["W_U"] = np.diag(want["final_norm.gain"]) @ want["W_U"]
    want["W_U"] -= want["W_U"].mean(0)
    _center_writing_weights(want, raw.spec.n_layers)
    want["W_U"] -= want["W_U"].mean(-1, keepdims=True)
    want["b_U"] -= want["b_U"].mean()
    for i in range(raw.spec.n_layers):
        for head in range(raw.spec.n_heads):
            want[f"L{i}.b_O"] += want[f"L{i}.b_V"][head] @ want[f"L{i}.W_O"][head]
        want[f"L{i}.b_V"][:] = 0
    got = framed(raw, Frame("tl_default"))
    assert set(got.names()) == {n for n in want if "norm" not in n}
    for name in got.names():
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-13, err_msg=name)
    assert max(np.abs(want[n] - raw[n]).max() for n in ("L0.W_Q", "L0.W_O", "W_E", "W_pos", "W_U", "L0.b_O")) > 0.01


def _fold_layer(state: dict[str, np.ndarray], at: str) -> None:
    """fold_layer_norm: biases through the gains' old readers, gains into the readers, readers centred over d_model."""
    for letter in "QKV":
        for head, W in enumerate(state[f"{at}W_{letter}"]):
            state[f"{at}b_{letter}"][head] += state[at + "attn_norm.bias"] @ W
            W[:] = state[at + "attn_norm.gain"][:, None] * W
            W -= W.mean(axis=0)
    W_in = state[at + "W_in"]
    state[at + "b_in"] += state[at + "mlp_norm.bias"] @ W_in
    W_in[:] = state[at + "mlp_norm.gain"][:, None] * W_in
    W_in -= W_in.mean(axis=0)


def _center_writing_weights(state: dict[str, np.ndarray], n_layers: int) -> None:
    parts = [f"L{i}.{role}" for i in range(n_layers) for role in ("W_O", "b_O", "W_out", "b_out")]
    for name in ("W_E", "W_pos", *parts):
        state[name] -= state[name].mean(axis=-1, keepdims=True)
