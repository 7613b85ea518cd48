"""Qwen3 layout: Llama's, with an RMSNorm on each head's query and key before they turn."""

from covector.arch import llama, mistral, qwen2
from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import ModelSpec, Norm

QK_NORMS = {
    "layers.{i}.self_attn.q_norm.weight": "q_norm.gain: d_head",
    "layers.{i}.self_attn.k_norm.weight": "k_norm.gain: d_head",
}
# Head size where the config has none: Qwen3's own default, not d_model / n_heads.
D_HEAD = 128


def spec(config: Config) -> ModelSpec:
    """Anatomy of a Qwen3 language model."""
    norm = Norm("rms", config.get("rms_norm_eps", 1e-6))
    d_head = config.get("head_dim", D_HEAD)
    windows = qwen2.windows(config)
    made = mistral.blocks(config, norm, windows, kv_heads=qwen2.KV_HEADS, d_head=d_head, qk_norm=norm)
    return llama.language_model(config, "qwen3", made, norm)


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts, with biases on all four projections if the config switches them on."""
    biases = mistral.BIASES if config.get("attention_bias", False) else {}
    return llama.TENSORS | QK_NORMS | biases | llama.unembedding(config)


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: biases, heads of another size, a window of 5 below."""
    return {
        "model_type": "qwen3",
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }


FAMILY = Family("qwen3", ("qwen3",), spec, tensors, ("model.",), llama.IGNORED, "Qwen3ForCausalLM", tiny)
