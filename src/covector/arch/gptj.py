"""GPT-J layout: attention and MLP in parallel behind one shared LayerNorm, interleaved rotary, a biased unembedding.

transformers computes scores and softmax in float32 whatever the model's precision; here they keep it.
"""

from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Rotary, Sublayer

TENSORS = {
    "wte.weight": "W_E: token d_model",
    "h.{i}.ln_1.weight": "attn_norm.gain+mlp_norm.gain: d_model",
    "h.{i}.ln_1.bias": "attn_norm.bias+mlp_norm.bias: d_model",
    "h.{i}.attn.q_proj.weight": "(W_Q: head d_head) d_model",
    "h.{i}.attn.k_proj.weight": "(W_K: kv_head d_head) d_model",
    "h.{i}.attn.v_proj.weight": "(W_V: kv_head d_head) d_model",
    "h.{i}.attn.out_proj.weight": "d_model (W_O: head d_head)",
    "h.{i}.mlp.fc_in.weight": "W_in: d_mlp d_model",
    "h.{i}.mlp.fc_in.bias": "b_in: d_mlp",
    "h.{i}.mlp.fc_out.weight": "W_out: d_model d_mlp",
    "h.{i}.mlp.fc_out.bias": "b_out: d_model",
    "ln_f.weight": "final_norm.gain: d_model",
    "ln_f.bias": "final_norm.bias: d_model",
    "lm_head.bias": "b_U: token",
}
# Causal masks and sine tables that older checkpoints carry; they hold no weight.
MASKS = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias|embed_positions)",)
# The base of GPT-J's rotary frequencies is written into its code, not into its config.
THETA = 10000.0


def spec(config: Config) -> ModelSpec:
    """Anatomy of a GPT-J language model."""
    d, n_heads, n_vocab = config.need("n_embd"), config.need("n_head"), config.need("vocab_size")
    # Both keys stand in published configs, and no code reads them: only their usual values are what is computed.
    config.only("rotary", True)
    config.only("scale_attn_weights", True)
    norm = Norm("layer", config.get("layer_norm_epsilon", 1e-5))
    d_head = d // n_heads
    rotary = Rotary(config.get("rotary_dim", 64), THETA, interleaved=True)
    attn = Attention(n_heads, n_heads, d_head, d_head**-0.5, rotary=rotary)
    mlp = MLP(config.get("n_inner", 4 * d), config.get("activation_function", "gelu_new"))
    block = Block((Sublayer(attn, reads=norm), Sublayer(mlp, reads=norm)), parallel=True)
    return ModelSpec(
        family="gptj",
        d_model=d,
        blocks=(block,) * config.need("n_layer"),
        assembly=Assembly("tokens", (Input("token", n_vocab, "lookup"),)),
        outputs=(Output("token", n_vocab),),
        n_ctx=config.need("n_positions"),
        final_norm=norm,
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts; a tied unembedding still has a bias of its own."""
    tied = config.get("tie_word_embeddings", False)
    return TENSORS | {"lm_head.weight": "W_U: token d_model" + (" ?" if tied else "")}


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: rotary on 4 of 6 coordinates."""
    return {
        "model_type": "gptj",
        "vocab_size": 61,
        "n_positions": 24,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 36,
        "rotary_dim": 4,
    }


FAMILY = Family("gptj", ("gptj",), spec, tensors, ("transformer.",), MASKS, "GPTJForCausalLM", tiny)
