"""GPT-NeoX layout (Pythia): q|k|v fused per head, partial rotary, parallel attention and MLP behind a norm each."""

from dataclasses import replace

from covector.arch import llama
from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import MLP, Attention, Block, ModelSpec, Norm, Rotary, Sublayer

TENSORS = {
    "embed_in.weight": "W_E: token d_model",
    "layers.{i}.input_layernorm.weight": "attn_norm.gain: d_model",
    "layers.{i}.input_layernorm.bias": "attn_norm.bias: d_model",
    "layers.{i}.attention.query_key_value.weight": "(head [W_Q W_K W_V] d_head) d_model",
    "layers.{i}.attention.dense.weight": "d_model (W_O: head d_head)",
    "layers.{i}.post_attention_layernorm.weight": "mlp_norm.gain: d_model",
    "layers.{i}.post_attention_layernorm.bias": "mlp_norm.bias: d_model",
    "layers.{i}.mlp.dense_h_to_4h.weight": "W_in: d_mlp d_model",
    "layers.{i}.mlp.dense_h_to_4h.bias": "b_in: d_mlp",
    "layers.{i}.mlp.dense_4h_to_h.weight": "W_out: d_model d_mlp",
    "layers.{i}.mlp.dense_4h_to_h.bias": "b_out: d_model",
    "final_layer_norm.weight": "final_norm.gain: d_model",
    "final_layer_norm.bias": "final_norm.bias: d_model",
    # The hub's checkpoints call it embed_out, transformers 5 lm_head; whichever is there is W_U, and one must be.
    "embed_out.weight": "W_U: token d_model ?",
    "lm_head.weight": "W_U: token d_model ?",
}
ATTENTION_BIASES = {
    "layers.{i}.attention.query_key_value.bias": "(head [b_Q b_K b_V] d_head)",
    "layers.{i}.attention.dense.bias": "b_O: d_model",
}
# Causal masks and rotary tables that older checkpoints carry; they hold no weight.
MASKS = (r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)


def partial_rotary(config: Config, d_head: int, *, key: str, default: float, theta_key: str = "rope_theta") -> Rotary:
    """Rotary on the first part of each head: that fraction is in rope_parameters, or under `key`, or is `default`."""
    given = config.get("rope_parameters", {})
    fraction = given.get("partial_rotary_factor") or config.get(key, default)
    return replace(llama.rotary(config, d_head, theta_key=theta_key), dim=int(d_head * fraction))


def spec(config: Config) -> ModelSpec:
    """Anatomy of a GPT-NeoX language model, with parallel or sequential residuals as the config says."""
    n_heads = config.need("num_attention_heads")
    d_head = config.need("hidden_size") // n_heads
    norm = Norm("layer", config.get("layer_norm_eps", 1e-5))
    rotary = partial_rotary(config, d_head, key="rotary_pct", default=0.25, theta_key="rotary_emb_base")
    attn = Attention(n_heads, n_heads, d_head, d_head**-0.5, rotary=rotary)
    mlp = MLP(config.need("intermediate_size"), config.get("hidden_act", "gelu"))
    parallel = bool(config.get("use_parallel_residual", True))
    block = Block((Sublayer(attn, reads=norm), Sublayer(mlp, reads=norm)), parallel)
    return llama.language_model(config, "gpt_neox", (block,) * config.need("num_hidden_layers"), norm)


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts, with the attention's biases unless the config switches them off."""
    return TENSORS | (ATTENTION_BIASES if config.get("attention_bias", True) else {})


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: rotary on 4 of 8 coordinates, parallel residuals."""
    return {
        "model_type": "gpt_neox",
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 64,
        "use_parallel_residual": True,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    }


FAMILY = Family("gpt_neox", ("gpt_neox",), spec, tensors, ("gpt_neox.",), MASKS, "GPTNeoXForCausalLM", tiny)
