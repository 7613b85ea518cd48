"""Phi layout (Phi-1, 1.5, 2): parallel attention and MLP behind one shared LayerNorm, partial rotary, all biases."""

from covector.arch import gpt_neox, llama
from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import MLP, Attention, Block, ModelSpec, Norm, Sublayer

TENSORS = {
    "embed_tokens.weight": "W_E: token d_model",
    "layers.{i}.input_layernorm.weight": "attn_norm.gain+mlp_norm.gain: d_model",
    "layers.{i}.input_layernorm.bias": "attn_norm.bias+mlp_norm.bias: d_model",
    "layers.{i}.self_attn.q_proj.weight": "(W_Q: head d_head) d_model",
    "layers.{i}.self_attn.k_proj.weight": "(W_K: kv_head d_head) d_model",
    "layers.{i}.self_attn.v_proj.weight": "(W_V: kv_head d_head) d_model",
    "layers.{i}.self_attn.dense.weight": "d_model (W_O: head d_head)",
    "layers.{i}.self_attn.dense.bias": "b_O: d_model",
    "layers.{i}.mlp.fc1.weight": "W_in: d_mlp d_model",
    "layers.{i}.mlp.fc1.bias": "b_in: d_mlp",
    "layers.{i}.mlp.fc2.weight": "W_out: d_model d_mlp",
    "layers.{i}.mlp.fc2.bias": "b_out: d_model",
    "final_layernorm.weight": "final_norm.gain: d_model",
    "final_layernorm.bias": "final_norm.bias: d_model",
    "lm_head.bias": "b_U: token",
} | llama.ATTENTION_BIASES
QK_NORMS = {
    "layers.{i}.self_attn.q_layernorm.weight": "q_norm.gain: d_head",
    "layers.{i}.self_attn.q_layernorm.bias": "q_norm.bias: d_head",
    "layers.{i}.self_attn.k_layernorm.weight": "k_norm.gain: d_head",
    "layers.{i}.self_attn.k_layernorm.bias": "k_norm.bias: d_head",
}


def spec(config: Config) -> ModelSpec:
    """Anatomy of a Phi language model; q/k norms are LayerNorms over a head, if the config switches them on."""
    n_heads, n_kv, d_head = llama.sizes(config)
    norm = Norm("layer", config.get("layer_norm_eps", 1e-5))
    rotary = gpt_neox.partial_rotary(config, d_head, key="partial_rotary_factor", default=0.5)
    qk_norm = norm if config.get("qk_layernorm", False) else None
    attn = Attention(n_heads, n_kv, d_head, d_head**-0.5, rotary=rotary, qk_norm=qk_norm)
    mlp = MLP(config.need("intermediate_size"), config.get("hidden_act", "gelu_new"))
    block = Block((Sublayer(attn, reads=norm), Sublayer(mlp, reads=norm)), parallel=True)
    return llama.language_model(config, "phi", (block,) * config.need("num_hidden_layers"), norm)


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts; a tied unembedding still has a bias of its own."""
    return TENSORS | (QK_NORMS if config.get("qk_layernorm", False) else {}) | llama.unembedding(config)


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: grouped heads, q/k norms, rotary on 4 of 8 coordinates."""
    return {
        "model_type": "phi",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "qk_layernorm": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
    }


FAMILY = Family("phi", ("phi",), spec, tensors, ("model.",), llama.IGNORED, "PhiForCausalLM", tiny)
