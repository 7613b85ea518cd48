"""Phi-3 layout: Mistral's anatomy with q|k|v in one matrix and gate|up in another."""

from covector.arch import llama, mistral
from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import ModelSpec, Norm

_FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
TENSORS = {name: words for name, words in llama.TENSORS.items() if not any(part in name for part in _FUSED)} | {
    "layers.{i}.self_attn.qkv_proj.weight": ("(W_Q: head d_head | W_K: kv_head d_head | W_V: kv_head d_head) d_model"),
    "layers.{i}.mlp.gate_up_proj.weight": "(W_gate: d_mlp | W_in: d_mlp) d_model",
}


def spec(config: Config) -> ModelSpec:
    """Anatomy of a Phi-3 language model; the long-context rotary of its 128k variants is refused by name."""
    config.only("attention_bias", False)
    # Only longrope, which is refused, reads it.
    config.get("original_max_position_embeddings")
    norm = Norm("rms", config.get("rms_norm_eps", 1e-5))
    windows = (config.get("sliding_window"),) * config.need("num_hidden_layers")
    return llama.language_model(config, "phi3", mistral.blocks(config, norm, windows, kv_heads=None), norm)


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts: no biases anywhere."""
    return TENSORS | llama.unembedding(config)


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: grouped heads, a window of 5, rotary on 6 of 8 coordinates."""
    return {
        "model_type": "phi3",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "sliding_window": 5,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.75},
    }


FAMILY = Family("phi3", ("phi3",), spec, tensors, ("model.",), llama.IGNORED, "Phi3ForCausalLM", tiny)
