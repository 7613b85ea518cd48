"""Gemma 3 layout: Gemma 2's with q/k norms instead of soft-caps, and a rotary base of its own for windowed blocks.

Of a multimodal checkpoint the language model is read: its config is the section ``text_config``, its names have one
more prefix, and the image encoder is ignored by name. It is exact for prompts without images.
"""

from typing import Any

from covector.arch import gemma2, llama, mistral, qwen3
from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import ModelSpec, Rotary

# What a text_config leaves out because it is transformers' default (gemma-3-4b says little more than its sizes).
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
}
# The image side of a multimodal checkpoint, under its old and its new names.
IMAGES = (r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*")
IMAGE_KEYS = ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
PREFIXES = ("model.", "language_model.model.", "model.language_model.", "language_model.")
# Rotary bases of blocks without and with a window, and how often a block has no window, where the config is silent.
THETA, LOCAL_THETA, PATTERN = 1_000_000.0, 10_000.0, 6


def text(config: Config) -> Config:
    """`config`, its ``text_config`` (if any) spread over the top level, so that its keys are judged like any other."""
    section = config.get("text_config")
    if section:
        for key in IMAGE_KEYS:
            config.get(key)
        config.values |= section
        # transformers applies it in the class for text and not in the one for images: no value has one meaning.
        config.only("final_logit_softcapping", None)
    config.values = DEFAULTS | config.values
    return config


def rotaries(config: Config, d_head: int) -> dict[str, Rotary]:
    """Rotary by kind of block, in the old spelling (rope_theta, rope_scaling, rope_local_base_freq) and the new."""
    given = config.get("rope_parameters", {})
    old = {
        mistral.FULL: {"rope_theta": config.get("rope_theta", THETA), **config.get("rope_scaling", {})},
        mistral.SLIDING: {"rope_theta": config.get("rope_local_base_freq", LOCAL_THETA)},
    }
    return {
        kind: llama.rotary(Config({"rope_parameters": old[kind] | (given.get(kind) or {})}, config.where), d_head)
        for kind in old
    }


def spec(config: Config) -> ModelSpec:
    """Anatomy of a Gemma 3 language model: every sixth block without a window unless the config says otherwise."""
    config = text(config)
    # transformers has the key and does not apply it.
    config.only("attn_logit_softcapping", None)
    pattern = config.get("sliding_window_pattern", PATTERN)
    n_layers = config.need("num_hidden_layers")
    usual = [mistral.SLIDING if (i + 1) % pattern else mistral.FULL for i in range(n_layers)]
    types = mistral.layer_types(config, usual)
    windows = mistral.windows(config, types, mistral.null_or(config, "sliding_window", 4096))
    turns = rotaries(config, gemma2.head_size(config))
    norm = gemma2.gemma_norm(config)
    blocks = gemma2.blocks(config, [turns[kind] for kind in types], windows, qk_norm=norm)
    return gemma2.language_model(config, "gemma3", blocks, config.get("final_logit_softcapping"))


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts, with biases on all four projections if the config switches them on."""
    config = text(config)
    biases = mistral.BIASES if config.get("attention_bias", False) else {}
    return gemma2.TENSORS | qwen3.QK_NORMS | biases | llama.unembedding(config, default_tied=True)


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: windowed, full, windowed, with different rotary bases."""
    return {
        "model_type": "gemma3_text",
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "query_pre_attn_scalar": 12,
        "sliding_window": 5,
        "sliding_window_pattern": 2,
        "final_logit_softcapping": 3.0,
        "attention_bias": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    }


FAMILY = Family(
    "gemma3",
    ("gemma3_text", "gemma3"),
    spec,
    tensors,
    PREFIXES,
    (*llama.IGNORED, *IMAGES),
    "Gemma3ForCausalLM",
    tiny,
)
