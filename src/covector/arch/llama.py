"""Llama layout: separate output x input projections, grouped key/value heads, rotary halves, RMSNorm, gated MLP."""

from covector.arch.config import Config
from covector.arch.family import Family
from covector.errors import UnsupportedConfig
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

TENSORS = {
    "embed_tokens.weight": "W_E: token d_model",
    "layers.{i}.input_layernorm.weight": "attn_norm.gain: d_model",
    "layers.{i}.self_attn.q_proj.weight": "(W_Q: head d_head) d_model",
    "layers.{i}.self_attn.k_proj.weight": "(W_K: kv_head d_head) d_model",
    "layers.{i}.self_attn.v_proj.weight": "(W_V: kv_head d_head) d_model",
    "layers.{i}.self_attn.o_proj.weight": "d_model (W_O: head d_head)",
    "layers.{i}.post_attention_layernorm.weight": "mlp_norm.gain: d_model",
    "layers.{i}.mlp.gate_proj.weight": "W_gate: d_mlp d_model",
    "layers.{i}.mlp.up_proj.weight": "W_in: d_mlp d_model",
    "layers.{i}.mlp.down_proj.weight": "W_out: d_model d_mlp",
    "norm.weight": "final_norm.gain: d_model",
}
ATTENTION_BIASES = {
    "layers.{i}.self_attn.q_proj.bias": "(b_Q: head d_head)",
    "layers.{i}.self_attn.k_proj.bias": "(b_K: kv_head d_head)",
    "layers.{i}.self_attn.v_proj.bias": "(b_V: kv_head d_head)",
}
# Rotary tables that older checkpoints carry; they are recomputed from the config.
IGNORED = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def rotary(config: Config, d_head: int, *, theta_key: str = "rope_theta", interleaved: bool = False) -> Rotary:
    """Rotary parameters from a config, in the old spelling (rope_theta, rope_scaling) and the new (rope_parameters).

    Raises UnsupportedConfig, by name, for a scaling rule that is not implemented.
    """
    new = config.get("rope_parameters", {})
    given = dict(new) or dict(config.get("rope_scaling") or {})
    rule = given.get("rope_type", given.get("type", "default"))
    theta = float(given.get("rope_theta") or config.get(theta_key, 10000.0))
    partial = float(given.get("partial_rotary_factor") or config.get("partial_rotary_factor", 1.0))
    if rule not in ("default", "linear", "llama3"):
        raise UnsupportedConfig(
            f"{config.where}: rotary scaling '{rule}' changes the function and is not implemented; "
            "supported: default, linear, llama3"
        )
    scaling: tuple[tuple[str, float], ...] = ()
    if rule == "linear":
        scaling = (("factor", float(given["factor"])),)
    if rule == "llama3":
        keys = {
            "factor": "factor",
            "low": "low_freq_factor",
            "high": "high_freq_factor",
            "original": "original_max_position_embeddings",
        }
        scaling = tuple((name, float(given[key])) for name, key in keys.items())
    dim = int(d_head * partial)
    return Rotary(dim, theta, interleaved, rule, scaling)


def sizes(config: Config) -> tuple[int, int, int]:
    """Query heads, key/value heads, head size."""
    n_heads = config.need("num_attention_heads")
    n_kv = config.get("num_key_value_heads", n_heads)
    return n_heads, n_kv, config.get("head_dim") or config.need("hidden_size") // n_heads


def language_model(config: Config, family: str, blocks: tuple[Block, ...], norm: Norm, **changes: object) -> ModelSpec:
    """The frame that Llama-like models share: token embedding, blocks, final norm, token output."""
    n_vocab = config.need("vocab_size")
    given = {
        "family": family,
        "d_model": config.need("hidden_size"),
        "blocks": blocks,
        "assembly": Assembly("tokens", (Input("token", n_vocab, "lookup"),)),
        "outputs": (Output("token", n_vocab),),
        "n_ctx": config.need("max_position_embeddings"),
        "final_norm": norm,
        "tied": bool(config.get("tie_word_embeddings", False)),
    }
    return ModelSpec(**(given | changes))  # type: ignore[arg-type]


def spec(config: Config) -> ModelSpec:
    """Anatomy of a Llama language model."""
    n_heads, n_kv, d_head = sizes(config)
    norm = Norm("rms", config.get("rms_norm_eps", 1e-6))
    attn = Attention(n_heads, n_kv, d_head, d_head**-0.5, rotary=rotary(config, d_head))
    mlp = MLP(config.need("intermediate_size"), config.get("hidden_act", "silu"), gated=True)
    block = Block((Sublayer(attn, reads=norm), Sublayer(mlp, reads=norm)))
    return language_model(config, "llama", (block,) * config.need("num_hidden_layers"), norm)


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts, with the biases that the config switches on."""
    named = dict(TENSORS)
    if config.get("attention_bias", False):
        named |= ATTENTION_BIASES | {"layers.{i}.self_attn.o_proj.bias": "b_O: d_model"}
    if config.get("mlp_bias", False):
        named |= {
            "layers.{i}.mlp.gate_proj.bias": "b_gate: d_mlp",
            "layers.{i}.mlp.up_proj.bias": "b_in: d_mlp",
            "layers.{i}.mlp.down_proj.bias": "b_out: d_model",
        }
    return named | unembedding(config)


def unembedding(config: Config, default_tied: bool = False) -> dict[str, str]:
    """``lm_head``: required when untied, an optional copy when tied."""
    tied = config.get("tie_word_embeddings", default_tied)
    return {"lm_head.weight": "W_U: token d_model" + (" ?" if tied else "")}


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: grouped heads, all biases, Llama 3 rotary scaling."""
    return {
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    }


FAMILY = Family("llama", ("llama",), spec, tensors, ("model.",), IGNORED, "LlamaForCausalLM", tiny)
