"""A TransformerLens model in memory: its own tensor names, its cfg as configuration, its processing flags told apart.

TransformerLens folds and centres by default and keeps no record of all of it; what was done is read off the weights
(`processing`). Such a model is opened as it is: its ``raw`` frame is the frame TransformerLens left it in.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from covector.arch.config import Config
from covector.arch.declared_names import ready_names
from covector.arch.family import Family
from covector.errors import UnsupportedConfig
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Rotary, Sublayer
from covector.model.weights import Weights

MODEL_TYPE = "transformer_lens"
# |mean| / rms below which rows count as centred: float32 centring leaves about 1e-8.
_CENTRED = 1e-5
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_fast": "gelu_fast", "silu": "silu", "relu": "relu",
                "gelu_pytorch_tanh": "gelu_pytorch_tanh"}  # fmt: skip
# What a HookedTransformer's cfg holds besides its function: bookkeeping, initialisation, switches of its own hooks.
_BOOKKEEPING = (
    "n_params|model_name|original_architecture|from_checkpoint|checkpoint_.*|tokenizer_.*|init_.*|initializer_.*|device"
    "|n_devices|use_attn_result|use_split_qkv_input|use_hook_mlp_in|use_attn_in|use_hook_tokens|use_local_attn|seed"
    "|default_prepend_bos|trust_remote_code|ungroup_grouped_query_attention|weight_init_mode|d_vocab_out|d_vocab"
    "|post_embedding_ln|load_in_4bit|decoder_start_token_id|NTK_.*|rotary_scaling_factor|use_NTK_by_parts_rope"
    "|gated_mlp|n_ctx|dtype|use_attn_scale|attention_dir|experts_per_token|relative_attention_.*"
)


def spec(config: Config) -> ModelSpec:
    """Anatomy of a HookedTransformer from its cfg. Raises UnsupportedConfig, by name, for what is not implemented."""
    config.harmless(_BOOKKEEPING)
    config.only("use_NTK_by_parts_rope", False)
    config.only("post_embedding_ln", False)
    n_vocab = config.need("d_vocab")
    norm = _norm(config)
    positions = config.only("positional_embedding_type", "standard", "rotary")
    blocks = tuple(_block(config, layer, norm) for layer in range(config.need("n_layers")))
    return ModelSpec(
        family=MODEL_TYPE,
        d_model=config.need("d_model"),
        blocks=blocks,
        assembly=Assembly(
            "tokens",
            (Input("token", n_vocab, "lookup"),),
            positions="learned" if positions == "standard" else "none",
        ),
        outputs=(
            Output("token", config.get("d_vocab_out") or n_vocab, softcap=_cap(config, "output_logits_soft_cap")),
        ),
        n_ctx=config.need("n_ctx"),
        final_norm=norm,
    )


def _norm(config: Config) -> Norm | None:
    kind = config.only("normalization_type", "LN", "LNPre", "RMS", "RMSPre", None, default="none")
    if kind in (None, "none"):
        return None
    return Norm("layer" if kind.startswith("LN") else "rms", config.get("eps", 1e-5))


def _cap(config: Config, key: str) -> float | None:
    value = config.get(key, 0.0)
    return float(value) if value and value > 0 else None


def _block(config: Config, layer: int, norm: Norm | None) -> Block:
    sandwich = norm if config.get("use_normalization_before_and_after", False) else None
    subs = [Sublayer(_attention(config, layer), reads=norm, post=sandwich)]
    if not config.get("attn_only", False):
        name = config.get("act_fn", "relu")
        if name not in _ACTIVATIONS:
            raise UnsupportedConfig(
                f"{config.where}: act_fn '{name}' is not implemented; supported: {', '.join(_ACTIVATIONS)}"
            )
        gated = bool(config.get("gated_mlp", False))
        # A HookedTransformer's gated MLP adds b_in to the gated product, not to its linear factor.
        mlp = MLP(config.need("d_mlp"), _ACTIVATIONS[name], gated, bias_after_gate=gated)
        subs.append(Sublayer(mlp, reads=norm, post=sandwich))
    return Block(tuple(subs), parallel=bool(config.get("parallel_attn_mlp", False)))


def _attention(config: Config, layer: int) -> Attention:
    n_heads, d_head = config.need("n_heads"), config.need("d_head")
    config.only("attention_dir", "causal", "bidirectional")
    config.only("use_qk_norm", False)
    scale = 1.0 / config.get("attn_scale", d_head**0.5) if config.get("use_attn_scale", True) else 1.0
    if config.get("scale_attn_by_inverse_layer_idx", False):
        scale /= layer + 1
    types = config.get("attn_types")
    local = bool(types) and types[layer] == "local"
    return Attention(
        n_heads,
        config.get("n_key_value_heads") or n_heads,
        d_head,
        scale,
        causal=config.get("attention_dir", "causal") == "causal",
        window=config.get("window_size") if local else None,
        rotary=_rotary(config, d_head, local),
        softcap=_cap(config, "attn_scores_soft_cap"),
    )


def _rotary(config: Config, d_head: int, local: bool) -> Rotary | None:
    theta = config.get("rotary_base", 10000)
    local_theta = config.get("rotary_base_local")
    if config.get("positional_embedding_type", "standard") != "rotary":
        return None
    interleaved = bool(config.get("rotary_adjacent_pairs", False))
    return Rotary(
        config.get("rotary_dim") or d_head, float(local_theta if local and local_theta else theta), interleaved
    )


def tensors(_config: Config) -> dict[str, str]:
    """Every name optional: folding removes norms' gains and biases; what the anatomy needs is checked afterwards."""
    names = ready_names("transformer_lens", "pre")
    return {name: words if words == "-" else f"{words} ?" for name, words in names.items()}


def processing(weights: Weights) -> dict[str, Any]:
    """What TransformerLens has done to the weights, read off them: folded, centred, value biases moved."""
    names = weights.names()
    return {
        "fold_ln": not any(n.endswith("_norm.gain") for n in names),
        "center_writing_weights": _is_centred(weights["L0.W_O"], -1),
        "center_unembed": _is_centred(weights["W_U"], -1),
        "fold_value_biases": "L0.b_V" in names and not np.any(weights["L0.b_V"]),
    }


def _is_centred(array: np.ndarray, axis: int) -> bool:
    wide = array.astype(np.float64)
    return bool(np.abs(wide.mean(axis=axis)).max() <= _CENTRED * np.sqrt(np.mean(wide**2)))


def tiny() -> Mapping[str, Any]:
    """The cfg of a few thousand parameters, with the names a HookedTransformer gives."""
    return {
        "model_type": MODEL_TYPE,
        "d_model": 20,
        "n_layers": 2,
        "n_heads": 4,
        "d_head": 5,
        "d_mlp": 36,
        "d_vocab": 61,
        "n_ctx": 24,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
    }


FAMILY = Family(MODEL_TYPE, (MODEL_TYPE,), spec, tensors, tiny=tiny)
