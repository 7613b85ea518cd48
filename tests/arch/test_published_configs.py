"""Configs as well-known models publish them: every key is judged, and the anatomy is the one that is known."""

import pytest
import transformers

from covector.arch.config import Config
from covector.arch.family import family_of
from covector.errors import UnsupportedConfig
from covector.model.spec import Rotary

# Written from knowledge of the hub's config.json files, not copied from them: only what changes the function, and a few
# keys that must pass unnoticed.
PUBLISHED = {
    "gpt2": {
        "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "vocab_size": 50257, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "summary_type": "cls_index",
    },
    "gpt-neo-1.3B": {
        "model_type": "gpt_neo", "hidden_size": 2048, "num_heads": 16, "num_layers": 24, "intermediate_size": None,
        "max_position_embeddings": 2048, "vocab_size": 50257, "window_size": 256, "resid_dropout": 0,
        "attention_types": [[["global", "local"], 12]], "attention_layers": ["global", "local"] * 12,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "gradient_checkpointing": False,
    },
    "gpt-j-6b": {
        "model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "n_positions": 2048, "n_inner": None,
        "rotary": True, "rotary_dim": 64, "scale_attn_weights": True, "vocab_size": 50400, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new", "tie_word_embeddings": False,
    },
    "pythia-70m": {
        "model_type": "gpt_neox", "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 6,
        "intermediate_size": 2048, "max_position_embeddings": 2048, "rotary_emb_base": 10000, "rotary_pct": 0.25,
        "use_parallel_residual": True, "vocab_size": 50304, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "opt-125m": {
        "model_type": "opt", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "ffn_dim": 3072,
        "word_embed_proj_dim": 768, "do_layer_norm_before": True, "_remove_final_layer_norm": False,
        "max_position_embeddings": 2048, "vocab_size": 50272, "activation_function": "relu", "layerdrop": 0.0,
        "init_std": 0.02, "prefix": "</s>",
    },
    "Llama-3.1-8B": {
        "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 32, "intermediate_size": 14336, "max_position_embeddings": 131072, "vocab_size": 128256,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
        "tie_word_embeddings": False, "pretraining_tp": 1,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 32, "intermediate_size": 14336, "max_position_embeddings": 32768, "vocab_size": 32000,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096, "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
        "num_hidden_layers": 24, "intermediate_size": 4864, "max_position_embeddings": 32768, "vocab_size": 151936,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768, "use_sliding_window": False,
        "max_window_layers": 24, "use_mrope": False, "hidden_act": "silu", "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "num_hidden_layers": 28, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None,
        "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28, "attention_bias": False,
        "hidden_act": "silu", "tie_word_embeddings": True,
    },
    "gemma-2-2b": {
        "model_type": "gemma2", "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "num_hidden_layers": 26, "intermediate_size": 9216, "max_position_embeddings": 8192,
        "vocab_size": 256000, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False,
        "cache_implementation": "hybrid",
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", "hidden_size": 1152, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 256, "num_hidden_layers": 26, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "vocab_size": 262144, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_local_base_freq": 10000,
        "rope_scaling": None, "sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "phi-2": {
        "model_type": "phi", "hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 32,
        "num_hidden_layers": 32, "intermediate_size": 10240, "max_position_embeddings": 2048, "vocab_size": 51200,
        "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.4, "rope_theta": 10000.0, "rope_scaling": None,
        "qk_layernorm": False, "hidden_act": "gelu_new", "tie_word_embeddings": False,
    },
    "Phi-3-mini-4k": {
        "model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 32,
        "num_hidden_layers": 32, "intermediate_size": 8192, "max_position_embeddings": 4096, "vocab_size": 32064,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
        "sliding_window": 2047, "attention_bias": False, "hidden_act": "silu", "tie_word_embeddings": False,
    },
    "bert-base-uncased": {
        "model_type": "bert", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "vocab_size": 30522, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "position_embedding_type": "absolute", "hidden_act": "gelu",
        "attention_probs_dropout_prob": 0.1,
    },
    "decision-transformer-gym-hopper": {
        "model_type": "decision_transformer", "state_dim": 11, "act_dim": 3, "hidden_size": 128, "n_head": 1,
        "n_layer": 3, "n_inner": None, "n_positions": 1024, "n_ctx": 1024, "max_ep_len": 4096, "max_length": 20,
        "activation_function": "relu", "action_tanh": True, "vocab_size": 1, "scale_attn_weights": True,
    },
}  # fmt: skip
# d_head, key/value heads, score scale, rotary coordinates, tied, windows of the first blocks.
EXPECTED = {
    "gpt2": (64, 12, 64**-0.5, 0, True, [None, None]),
    "gpt-neo-1.3B": (128, 16, 1.0, 0, True, [None, 256]),
    "gpt-j-6b": (256, 16, 256**-0.5, 64, False, [None, None]),
    "pythia-70m": (64, 8, 64**-0.5, 16, False, [None, None]),
    "opt-125m": (64, 12, 64**-0.5, 0, True, [None, None]),
    "Llama-3.1-8B": (128, 8, 128**-0.5, 128, False, [None, None]),
    "Mistral-7B-v0.1": (128, 8, 128**-0.5, 128, False, [4096, 4096]),
    "Qwen2.5-0.5B": (64, 2, 64**-0.5, 64, True, [None, None]),
    "Qwen3-0.6B": (128, 8, 128**-0.5, 128, True, [None, None]),
    "gemma-2-2b": (256, 4, 256**-0.5, 256, True, [4096, None]),
    "gemma-3-1b": (256, 1, 256**-0.5, 256, True, [512, 512, 512, 512, 512, None]),
    "phi-2": (80, 32, 80**-0.5, 32, False, [None, None]),
    "Phi-3-mini-4k": (96, 32, 96**-0.5, 96, False, [2047, 2047]),
    "bert-base-uncased": (64, 12, 64**-0.5, 0, True, [None, None]),
    "decision-transformer-gym-hopper": (128, 1, 128**-0.5, 0, False, [None, None]),
}


def anatomy(given):
    return family_of(given["model_type"], "here").spec(Config(given))


def anatomy_or_refusal(given):
    try:
        return anatomy(given)
    except UnsupportedConfig as refused:
        return str(refused)


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_published_shapes_give_the_known_sizes(model):
    spec = anatomy(PUBLISHED[model])
    attn, (*_, windows) = spec.attention, EXPECTED[model]
    rotary = attn.rotary.dim if attn.rotary else 0
    assert (attn.d_head, attn.n_kv_heads, attn.scale, rotary, spec.tied) == EXPECTED[model][:-1]
    assert [b.attn.window for b in spec.blocks[: len(windows)]] == windows


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_published_configs_are_judged_fully_and_understood_as_transformers_does(model):
    given = PUBLISHED[model]
    config, family = Config(given), family_of(given["model_type"], "here")
    spec = family.spec(config)
    family.tensors(config)
    assert config.unknown() == ()
    theirs = transformers.AutoConfig.for_model(**given)
    assert spec == anatomy(theirs.to_dict())


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_leaving_out_a_published_key_means_what_it_means_to_transformers_or_is_refused(model):
    for key in set(PUBLISHED[model]) - {"model_type"}:
        less = {k: v for k, v in PUBLISHED[model].items() if k != key}
        ours = anatomy_or_refusal(less)
        refused = f"expected the key '{key}', it is absent" in str(ours)
        assert refused or ours == anatomy(transformers.AutoConfig.for_model(**less).to_dict()), key


def test_parts_that_set_a_published_model_apart():
    spec = {model: anatomy(given) for model, given in PUBLISHED.items()}
    assert spec["gpt-j-6b"].attention.rotary == Rotary(64, 10000.0, interleaved=True)
    assert all(spec[m].blocks[0].parallel for m in ("gpt-j-6b", "pythia-70m", "phi-2"))
    assert spec["opt-125m"].assembly.position_offset == 2
    assert spec["gemma-2-2b"].assembly.inputs[0].scale == 2304**0.5
    assert spec["gemma-2-2b"].norms()["L0.mlp_post"].offset == 1.0
    assert (spec["gemma-2-2b"].attention.softcap, spec["gemma-2-2b"].outputs[0].softcap) == (50.0, 30.0)
    thetas = [b.attn.rotary.theta for b in spec["gemma-3-1b"].blocks[4:7]]
    assert thetas == [10000.0, 1000000.0, 10000.0]
    assert spec["Qwen3-0.6B"].attention.qk_norm.kind == "rms"
    assert not spec["bert-base-uncased"].attention.causal
    assert spec["bert-base-uncased"].final_norm is None
    hopper = spec["decision-transformer-gym-hopper"]
    places = [(o.name, o.n, o.at) for o in hopper.outputs]
    assert places == [("action", 3, "state"), ("state", 11, "action"), ("return", 1, "action")]


def test_llama_scaling_leaves_short_waves_and_slows_long_ones():
    spec = anatomy(PUBLISHED["Llama-3.1-8B"])
    plain = Rotary(128, 500000.0).frequencies()
    scaled = spec.attention.rotary.frequencies()
    assert scaled[0] == plain[0]
    assert scaled[-1] == plain[-1] / 8
