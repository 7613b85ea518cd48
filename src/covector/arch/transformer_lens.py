"""A TransformerLens model in memory: its own tensor names, its cfg as configuration, its processing flags told apart.

TransformerLens folds and centres by default and keeps no record of all of it; what was done is read off the weights
(`processing`). Such a model is opened as it is: its ``raw`` frame is the frame TransformerLens left it in.

Two kinds of model carry these names. A HookedTransformer (TransformerLens 1 to 3) is its cfg, with a few habits of its
own: an MLP's gate has no bias, b_in is added after it, the last norm may be RMS under LayerNorm blocks. A
TransformerBridge (3 and 4) runs a transformers model and only shows it under these names, so the anatomy is that
model's, and its family here describes it.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from covector.arch.config import Config
from covector.arch.declared_names import ready_names
from covector.arch.family import Family, family_of
from covector.errors import UnsupportedConfig
from covector.model.frames import folded_norms
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Rotary, Sublayer
from covector.model.weights import Weights

MODEL_TYPE = "transformer_lens"
_BLOCK = "blocks.{i}."
# A row of n entries that nobody has centred has |mean| √n / rms of about 1; centring leaves 1e-6 in float32, and 0.005
# after storage in bfloat16. Rows count as centred if each of them is below this.
_CENTRED = 0.05
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_fast": "gelu_fast", "silu": "silu", "relu": "relu",
                "relu2": "relu2", "gelu_pytorch_tanh": "gelu_pytorch_tanh"}  # fmt: skip
# What a HookedTransformer's cfg holds besides its function: bookkeeping, initialisation, switches of its own hooks,
# and parameters of rules that are refused or read where they are switched on.
_BOOKKEEPING = (
    "n_params|model_name|from_checkpoint|checkpoint_.*|tokenizer_.*|init_.*|initializer_.*|device|n_devices|seed"
    "|use_attn_result|use_split_qkv_input|use_hook_mlp_in|use_attn_in|use_hook_tokens|default_prepend_bos"
    "|default_padding_side|trust_remote_code|ungroup_grouped_query_attention|weight_init_mode|tie_word_embeddings"
    "|decoder_start_token_id|experts_per_token|norm_topk_prob|relative_attention_max_distance|NTK_.*|yarn_.*"
    "|train_seq_length|uses_rms_norm|layer_norm_folding|d_mlp|act_fn|gated_mlp|attn_types|window_size|rotary_.*"
    "|original_architecture|num_experts|relative_attention_num_buckets|use_NTK_by_parts_rope|attn_scale|eps|final_rms"
)
# Switches of a HookedTransformer that change the function and are not implemented.
_REFUSED_SWITCHES = (
    "post_embedding_ln",
    "use_logn_attn",
    "use_dynamic_ntk_rope",
    "use_yarn_rope",
    "use_attention_sinks",
    "load_in_4bit",
)
# What HookedTransformer and its sisters build differently for these names, whatever the rest of the cfg says.
_OTHER_ANATOMIES = {
    "Olmo2ForCausalLM": "norms after each sublayer, q and k normalised over all heads at once",
    "Olmo3ForCausalLM": "norms after each sublayer, q and k normalised over all heads at once",
    "OlmoeForCausalLM": "q and k normalised over all heads at once",
    "BertForMaskedLM": "post-norm blocks in an encoder",
}
# The norms whose gains and biases a bridge shows. It leaves out sandwich norms and those of q and k.
_SHOWN = {f"{norm}.{kind}" for norm in ("attn_norm", "mlp_norm", "final_norm") for kind in ("gain", "bias")}
_NORM_ROLE = re.compile(r"[a-z_]+\.(?:gain|bias)")


def spec(config: Config) -> ModelSpec:
    """Anatomy of a HookedTransformer from its cfg, of a bridge from the configuration of the model that it wraps.

    Raises UnsupportedConfig, by name, for what is not implemented or not shown.
    """
    return _bridged(config) if config.get("bridged_model_type") else _hooked(config)


def _bridged(config: Config) -> ModelSpec:
    family = _wrapped(config)
    hidden = sorted(set(_norm_roles(config)) - _SHOWN)
    if hidden:
        raise UnsupportedConfig(
            f"{config.where}: a TransformerLens bridge over '{family.name}' does not show {', '.join(hidden)}, without "
            "which it would be another function; open the checkpoint itself, by name or folder"
        )
    return dataclasses.replace(family.spec(config), tied=False)


def _wrapped(config: Config) -> Family:
    """The family of the model that a bridge runs."""
    return family_of(config.need("bridged_model_type"), config.where)


def _norm_roles(config: Config) -> list[str]:
    """Every gain and bias of a norm that the wrapped model's family declares."""
    return _NORM_ROLE.findall(" ".join(_wrapped(config).tensors(config).values()))


def _hooked(config: Config) -> ModelSpec:
    _refuse(config)
    config.harmless(_BOOKKEEPING)
    n_vocab = config.need("d_vocab")
    norm = _norm(config, "normalization_type")
    positions = config.only("positional_embedding_type", "standard", "rotary")
    blocks = tuple(_block(config, layer, norm) for layer in range(config.need("n_layers")))
    n_out = config.get("d_vocab_out", n_vocab)
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
            Output("token", n_out if n_out > 0 else n_vocab, softcap=_positive(config, "output_logits_soft_cap")),
        ),
        n_ctx=config.need("n_ctx"),
        final_norm=_final_norm(config, norm),
    )


def _refuse(config: Config) -> None:
    for switch in _REFUSED_SWITCHES:
        config.only(switch, False)
    config.only("clip_qkv", None)
    config.only("quantization_method", None)
    name = config.get("original_architecture")
    if name in _OTHER_ANATOMIES:
        raise UnsupportedConfig(
            f"{config.where}: original_architecture '{name}' means {_OTHER_ANATOMIES[name]}, which is not implemented "
            "for TransformerLens models; open the checkpoint itself, by name or folder"
        )


def _norm(config: Config, key: str) -> Norm | None:
    kind = config.get(key)
    if kind is None and key in config.values:
        return None
    kind = config.only(key, "LN", "LNPre", "RMS", "RMSPre")
    return Norm("layer" if kind.startswith("LN") else "rms", config.get("eps", 1e-5))


def _final_norm(config: Config, norm: Norm | None) -> Norm | None:
    """The last norm: RMS under LayerNorm blocks where the cfg says final_rms, unless the module there says otherwise.

    TransformerLens 3 puts a LayerNorm into the place of such an RMSNorm when it folds, and leaves final_rms standing.
    """
    module, is_rms = config.get("ln_final", ""), bool(config.get("final_rms", False))
    if norm and (module.startswith("RMSNorm") or (is_rms and not module.startswith("LayerNorm"))):
        return dataclasses.replace(norm, kind="rms")
    return norm


def _positive(config: Config, key: str) -> float | None:
    """A number that TransformerLens switches off with −1 (or 0), or None."""
    value = config.get(key, 0.0)
    return float(value) if value > 0 else None


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
    parallel = bool(config.get("parallel_attn_mlp", False)) and len(subs) == 2
    return Block(tuple(subs), parallel)


def _attention(config: Config, layer: int) -> Attention:
    n_heads, d_head = config.need("n_heads"), config.need("d_head")
    config.only("attention_dir", "causal", "bidirectional")
    divisor = (_positive(config, "attn_scale") or d_head**0.5) if config.get("use_attn_scale", True) else 1.0
    if config.get("scale_attn_by_inverse_layer_idx", False):
        divisor *= layer + 1
    local = bool(config.get("use_local_attn", False)) and config.need("attn_types")[layer] == "local"
    return Attention(
        n_heads,
        config.get("n_key_value_heads") or n_heads,
        d_head,
        1.0 / divisor,
        causal=config.get("attention_dir", "causal") == "causal",
        window=config.need("window_size") if local else None,
        rotary=_rotary(config, d_head, local),
        qk_norm=Norm("rms", config.get("eps", 1e-5)) if config.get("use_qk_norm", False) else None,
        softcap=_positive(config, "attn_scores_soft_cap"),
    )


def _rotary(config: Config, d_head: int, local: bool) -> Rotary | None:
    if config.get("positional_embedding_type", "standard") != "rotary":
        return None
    theta = (config.get("rotary_base_local") if local else None) or config.get("rotary_base", 10000)
    plain = Rotary(
        config.get("rotary_dim") or d_head, float(theta), interleaved=bool(config.get("rotary_adjacent_pairs", False))
    )
    if config.get("use_NTK_by_parts_rope", False):
        keys = {
            "factor": ("NTK_by_parts_factor", 8.0),
            "low": ("NTK_by_parts_low_freq_factor", 1.0),
            "high": ("NTK_by_parts_high_freq_factor", 4.0),
            "original": ("NTK_original_ctx_len", 8192),
        }
        scaling = tuple((name, float(config.get(key, usual))) for name, (key, usual) in keys.items())
        return dataclasses.replace(plain, rule="llama3", scaling=scaling)
    factor = float(config.get("rotary_scaling_factor", 1.0))
    if factor != 1.0 and not local:
        return dataclasses.replace(plain, rule="linear", scaling=(("factor", factor),))
    return plain


def tensors(config: Config) -> dict[str, str]:
    """Every name optional: folding removes norms' gains and biases; what the anatomy needs is checked afterwards.

    A bridge keeps them, as ones and zeros: there every gain and bias of a norm that its family declares is required.
    """
    names = ready_names(MODEL_TYPE, "pre", config.where)
    if not config.get("bridged_model_type"):
        return names
    names[_BLOCK + "mlp.b_gate"] = "d_mlp ?"
    declared = _wrapped(config).tensors(config).values()
    if any("attn_norm.gain+mlp_norm.gain" in words for words in declared):
        for kind, letter in (("gain", "w"), ("bias", "b")):
            names[f"{_BLOCK}ln1.{letter}"] = f"attn_norm.{kind}+mlp_norm.{kind}: d_model ?"
            del names[f"{_BLOCK}ln2.{letter}"]
    needed = set(_norm_roles(config))
    return {n: w.removesuffix(" ?") if needed.intersection(_NORM_ROLE.findall(w)) else w for n, w in names.items()}


def processing(weights: Weights) -> dict[str, bool]:
    """What TransformerLens has done to the weights, read off them: folded, centred, value biases moved.

    True means that doing it (again) would change nothing: gains are gone or 1, norm biases gone or 0, and under
    LayerNorm the readers are centred; so a model that never had value biases counts as having them moved.
    """
    norms = folded_norms(weights.spec)
    plain = bool(norms) and all(_is_plain(weights, norm) for norm in norms)
    centres = any(weights.spec.norms()[norm].kind == "layer" for norm in norms if norm.startswith("L0."))
    return {
        "fold_ln": plain and (not centres or _is_centred(weights["L0.W_Q"], -2)),
        "center_writing_weights": _is_centred(weights["W_E"], -1) and _is_centred(weights["L0.W_O"], -1),
        "center_unembed": _is_centred(weights["W_U"], -1),
        "fold_value_biases": not any(np.any(weights[name]) for name in weights.names() if name.endswith(".b_V")),
    }


def _is_plain(weights: Weights, norm: str) -> bool:
    gain, bias = f"{norm}.gain", f"{norm}.bias"
    return (gain not in weights or bool(np.all(weights[gain] == 1))) and (
        bias not in weights or not np.any(weights[bias])
    )


def _is_centred(array: np.ndarray, axis: int) -> bool:
    mean = array.mean(axis=axis, dtype=np.float64)
    norm = np.linalg.norm(array, axis=axis)
    return bool(np.all(np.abs(mean) * array.shape[axis] <= _CENTRED * norm))


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


def notes(weights: Weights) -> Mapping[str, Any]:
    """Which of TransformerLens' rewritings these weights have behind them."""
    return {"processing": processing(weights)}


FAMILY = Family(MODEL_TYPE, (MODEL_TYPE,), spec, tensors, notes=notes, tiny=tiny)
