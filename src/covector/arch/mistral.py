"""Mistral layout: Llama's, with a sliding window of keys; what other windowed families share stands here too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from covector.arch import llama
from covector.arch.config import Config
from covector.arch.family import Family
from covector.errors import UnsupportedConfig
from covector.model.spec import MLP, Attention, Block, ModelSpec, Norm, Sublayer

BIASES = llama.ATTENTION_BIASES | {"layers.{i}.self_attn.o_proj.bias": "b_O: d_model"}
FULL, SLIDING = "full_attention", "sliding_attention"


def null_or(config: Config, key: str, default: Any) -> Any:
    """The value of a switch: None where the config says null (off), `default` only where the key is absent."""
    value = config.get(key)
    return value if key in config.values else default


def layer_types(config: Config, default: Sequence[str]) -> tuple[str, ...]:
    """Kind of attention of each block, ``full_attention`` or ``sliding_attention``; UnsupportedConfig for others."""
    types = tuple(config.get("layer_types", default))
    if set(types) - {FULL, SLIDING} or len(types) != config.need("num_hidden_layers"):
        raise UnsupportedConfig(
            f"{config.where}: expected 'layer_types' to say {FULL} or {SLIDING} for each of "
            f"{config.need('num_hidden_layers')} blocks, got {', '.join(types)}; other kinds are not implemented"
        )
    return types


def windows(config: Config, types: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """The window of each block; UnsupportedConfig when a block slides and no window is given."""
    if SLIDING in types and window is None:
        raise UnsupportedConfig(
            f"{config.where}: 'layer_types' asks for {SLIDING}, expected a 'sliding_window', none is in force; "
            "set it (and use_sliding_window), or make every layer full_attention"
        )
    return tuple(window if kind == SLIDING else None for kind in types)


def blocks(
    config: Config,
    norm: Norm,
    windows: Sequence[int | None],
    *,
    kv_heads: int | None,
    d_head: int | None = None,
    qk_norm: Norm | None = None,
) -> tuple[Block, ...]:
    """Llama's block once per window; `kv_heads` is what an absent key means (null always means one per query head)."""
    n_heads, _, usual = llama.sizes(config)
    n_kv, d_head = null_or(config, "num_key_value_heads", kv_heads) or n_heads, d_head or usual
    attn = Attention(n_heads, n_kv, d_head, d_head**-0.5, rotary=llama.rotary(config, d_head), qk_norm=qk_norm)
    mlp = MLP(config.need("intermediate_size"), config.get("hidden_act", "silu"), gated=True)
    made = {w: Block((Sublayer(replace(attn, window=w), reads=norm), Sublayer(mlp, reads=norm))) for w in set(windows)}
    return tuple(made[w] for w in windows)


def spec(config: Config) -> ModelSpec:
    """Anatomy of a Mistral language model; ``sliding_window`` null means no window, absent means 4096."""
    # transformers ignores layer_types here, so a checkpoint that has them was made for another class.
    config.only("layer_types", None)
    norm = Norm("rms", config.get("rms_norm_eps", 1e-6))
    window = null_or(config, "sliding_window", 4096)
    made = blocks(config, norm, (window,) * config.need("num_hidden_layers"), kv_heads=8)
    return llama.language_model(config, "mistral", made, norm)


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts: no biases anywhere."""
    return llama.TENSORS | llama.unembedding(config)


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: grouped heads, a window of 5, heads of another size."""
    return {
        "model_type": "mistral",
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "sliding_window": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }


FAMILY = Family("mistral", ("mistral",), spec, tensors, ("model.",), llama.IGNORED, "MistralForCausalLM", tiny)
