"""Gemma 2 layout: Llama's projections between sandwich norms, gains stored less 1, soft-capped scores and logits.

The embedding is scaled by √d_model, exactly; a bfloat16 run in transformers rounds that number (√3072 to 55.5).
"""

from collections.abc import Sequence

from covector.arch import llama, mistral
from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import (
    MLP,
    Assembly,
    Attention,
    Block,
    Input,
    ModelSpec,
    Norm,
    Output,
    Rotary,
    Sublayer,
)

# The second of Llama's norms moves behind the attention, and the MLP gets two of its own.
TENSORS = llama.TENSORS | {
    "layers.{i}.post_attention_layernorm.weight": "attn_post.gain: d_model",
    "layers.{i}.pre_feedforward_layernorm.weight": "mlp_norm.gain: d_model",
    "layers.{i}.post_feedforward_layernorm.weight": "mlp_post.gain: d_model",
}


def gemma_norm(config: Config) -> Norm:
    """RMSNorm whose stored gain g stands for 1 + g."""
    return Norm("rms", config.get("rms_norm_eps", 1e-6), offset=1.0)


def blocks(
    config: Config,
    rotaries: Sequence[Rotary],
    windows: Sequence[int | None],
    *,
    softcap: float | None = None,
    qk_norm: Norm | None = None,
) -> tuple[Block, ...]:
    """Gemma's sandwich block, once per rotary and window; scores are scaled by 1/√query_pre_attn_scalar."""
    # A generation mask and an activation under a name that is not read: both stand in published configs.
    config.only("use_bidirectional_attention", False)
    config.get("hidden_act")
    norm = gemma_norm(config)
    n_heads, n_kv, d_head = config.need("num_attention_heads"), config.need("num_key_value_heads"), head_size(config)
    scale = config.get("query_pre_attn_scalar", 256) ** -0.5
    mlp = MLP(config.need("intermediate_size"), config.get("hidden_activation", "gelu_pytorch_tanh"), gated=True)
    made = []
    for rotary, window in zip(rotaries, windows, strict=True):
        attn = Attention(n_heads, n_kv, d_head, scale, window=window, rotary=rotary, qk_norm=qk_norm, softcap=softcap)
        made.append(Block((Sublayer(attn, reads=norm, post=norm), Sublayer(mlp, reads=norm, post=norm))))
    return tuple(made)


def head_size(config: Config) -> int:
    """Size of one head: 256 in every Gemma 2 and 3 unless the config says otherwise."""
    return config.get("head_dim", 256)


def language_model(config: Config, family: str, blocks: tuple[Block, ...], softcap: float | None) -> ModelSpec:
    """The frame of a Gemma: embedding scaled by √d_model, tied unembedding unless the config says otherwise."""
    n_vocab, d = config.need("vocab_size"), config.need("hidden_size")
    return llama.language_model(
        config,
        family,
        blocks,
        gemma_norm(config),
        assembly=Assembly("tokens", (Input("token", n_vocab, "lookup", scale=d**0.5),)),
        outputs=(Output("token", n_vocab, softcap=softcap),),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def spec(config: Config) -> ModelSpec:
    """Anatomy of a Gemma 2 language model: windows in every even block unless ``layer_types`` says otherwise."""
    n_layers = config.need("num_hidden_layers")
    usual = [mistral.FULL if i % 2 else mistral.SLIDING for i in range(n_layers)]
    types = mistral.layer_types(config, usual)
    windows = mistral.windows(config, types, mistral.null_or(config, "sliding_window", 4096))
    rotary = llama.rotary(config, head_size(config))
    softcap = mistral.null_or(config, "attn_logit_softcapping", 50.0)
    made = blocks(config, (rotary,) * n_layers, windows, softcap=softcap)
    return language_model(config, "gemma2", made, mistral.null_or(config, "final_logit_softcapping", 30.0))


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts, with biases on all four projections if the config switches them on."""
    biases = mistral.BIASES if config.get("attention_bias", False) else {}
    return TENSORS | biases | llama.unembedding(config, default_tied=True)


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: both soft-caps (low enough to bend), window, no window."""
    return {
        "model_type": "gemma2",
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "query_pre_attn_scalar": 12,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    }


FAMILY = Family("gemma2", ("gemma2",), spec, tensors, ("model.",), llama.IGNORED, "Gemma2ForCausalLM", tiny)
