"""GPT-2 layout: fused q|k|v in one input x output matrix, learned positions, LayerNorm before each sublayer."""

from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Sublayer

TENSORS = {
    "wte.weight": "W_E: token d_model",
    "wpe.weight": "W_pos: position d_model",
    "h.{i}.ln_1.weight": "attn_norm.gain: d_model",
    "h.{i}.ln_1.bias": "attn_norm.bias: d_model",
    "h.{i}.attn.c_attn.weight": "d_model ([W_Q W_K W_V] head d_head)",
    "h.{i}.attn.c_attn.bias": "([b_Q b_K b_V] head d_head)",
    "h.{i}.attn.c_proj.weight": "(W_O: head d_head) d_model",
    "h.{i}.attn.c_proj.bias": "b_O: d_model",
    "h.{i}.ln_2.weight": "mlp_norm.gain: d_model",
    "h.{i}.ln_2.bias": "mlp_norm.bias: d_model",
    "h.{i}.mlp.c_fc.weight": "W_in: d_model d_mlp",
    "h.{i}.mlp.c_fc.bias": "b_in: d_mlp",
    "h.{i}.mlp.c_proj.weight": "W_out: d_mlp d_model",
    "h.{i}.mlp.c_proj.bias": "b_out: d_model",
    "ln_f.weight": "final_norm.gain: d_model",
    "ln_f.bias": "final_norm.bias: d_model",
}
# Causal masks that older checkpoints carry; they hold no weight.
MASKS = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)


def blocks(config: Config) -> tuple[Block, ...]:
    """The blocks that a GPT-2 config describes; 1/√d_head scores, optionally divided by the layer's number."""
    d, n_heads = config.need("n_embd"), config.need("n_head")
    config.only("add_cross_attention", False)
    norm = Norm("layer", config.get("layer_norm_epsilon", 1e-5))
    base = (d // n_heads) ** -0.5 if config.get("scale_attn_weights", True) else 1.0
    mlp = MLP(config.get("n_inner") or 4 * d, config.get("activation_function", "gelu_new"))
    made = []
    for layer in range(config.need("n_layer")):
        scale = base / (layer + 1) if config.get("scale_attn_by_inverse_layer_idx", False) else base
        attn = Attention(n_heads, n_heads, d // n_heads, scale)
        made.append(Block((Sublayer(attn, reads=norm), Sublayer(mlp, reads=norm))))
    return tuple(made)


def spec(config: Config) -> ModelSpec:
    """Anatomy of a GPT-2 language model; see `Config` for the keys that are refused."""
    n_vocab, n_ctx = config.need("vocab_size"), config.need("n_positions")
    return ModelSpec(
        family="gpt2",
        d_model=config.need("n_embd"),
        blocks=blocks(config),
        assembly=Assembly("tokens", (Input("token", n_vocab, "lookup"),), positions="learned"),
        outputs=(Output("token", n_vocab),),
        n_ctx=n_ctx,
        final_norm=Norm("layer", config.get("layer_norm_epsilon", 1e-5)),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts; the unembedding is absent, or a copy, when the config ties it."""
    tied = config.get("tie_word_embeddings", True)
    return TENSORS | {"lm_head.weight": "W_U: token d_model" + (" ?" if tied else "")}


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs."""
    return {
        "model_type": "gpt2",
        "vocab_size": 61,
        "n_positions": 24,
        "n_embd": 20,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 36,
        "scale_attn_by_inverse_layer_idx": True,
    }


FAMILY = Family("gpt2", ("gpt2",), spec, tensors, ("transformer.",), MASKS, "GPT2LMHeadModel", tiny)
