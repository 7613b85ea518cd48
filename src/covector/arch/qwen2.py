"""Qwen2 layout (Qwen2.5 too): Llama's, with biases on q, k and v, and optional windows in the upper blocks."""

from covector.arch import llama, mistral
from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import ModelSpec, Norm

# What an absent num_key_value_heads means in Qwen2 and Qwen3, whatever the number of query heads.
KV_HEADS = 32


def windows(config: Config) -> tuple[int | None, ...]:
    """The window of each block: from ``max_window_layers`` on, or as ``layer_types`` says, and only if switched on."""
    given = mistral.null_or(config, "sliding_window", 4096)
    window = given if config.get("use_sliding_window", False) else None
    first = config.get("max_window_layers", 28)
    usual = [
        mistral.SLIDING if window is not None and i >= first else mistral.FULL
        for i in range(config.need("num_hidden_layers"))
    ]
    return mistral.windows(config, mistral.layer_types(config, usual), window)


def spec(config: Config) -> ModelSpec:
    """Anatomy of a Qwen2 language model; multimodal rotary positions are refused by name."""
    config.only("use_mrope", False)
    norm = Norm("rms", config.get("rms_norm_eps", 1e-6))
    made = mistral.blocks(config, norm, windows(config), kv_heads=KV_HEADS)
    return llama.language_model(config, "qwen2", made, norm)


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts."""
    return llama.TENSORS | llama.ATTENTION_BIASES | llama.unembedding(config)


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: grouped heads, tied, a window of 5 in the upper block."""
    return {
        "model_type": "qwen2",
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }


FAMILY = Family("qwen2", ("qwen2",), spec, tensors, ("model.",), llama.IGNORED, "Qwen2ForCausalLM", tiny)
