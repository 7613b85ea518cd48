"""GPT-Neo layout: GPT-2's anatomy with separate projections, unscaled scores, and every other block looking 256 back.

transformers computes scores and softmax in float32 whatever the model's precision; here they keep it.
"""

from covector.arch.config import Config
from covector.arch.family import Family
from covector.errors import UnsupportedConfig
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Sublayer

TENSORS = {
    "wte.weight": "W_E: token d_model",
    "wpe.weight": "W_pos: position d_model",
    "h.{i}.ln_1.weight": "attn_norm.gain: d_model",
    "h.{i}.ln_1.bias": "attn_norm.bias: d_model",
    "h.{i}.attn.attention.q_proj.weight": "(W_Q: head d_head) d_model",
    "h.{i}.attn.attention.k_proj.weight": "(W_K: kv_head d_head) d_model",
    "h.{i}.attn.attention.v_proj.weight": "(W_V: kv_head d_head) d_model",
    "h.{i}.attn.attention.out_proj.weight": "d_model (W_O: head d_head)",
    "h.{i}.attn.attention.out_proj.bias": "b_O: d_model",
    "h.{i}.ln_2.weight": "mlp_norm.gain: d_model",
    "h.{i}.ln_2.bias": "mlp_norm.bias: d_model",
    "h.{i}.mlp.c_fc.weight": "W_in: d_mlp d_model",
    "h.{i}.mlp.c_fc.bias": "b_in: d_mlp",
    "h.{i}.mlp.c_proj.weight": "W_out: d_model d_mlp",
    "h.{i}.mlp.c_proj.bias": "b_out: d_model",
    "ln_f.weight": "final_norm.gain: d_model",
    "ln_f.bias": "final_norm.bias: d_model",
}
# Causal masks that older checkpoints carry; they hold no weight.
MASKS = (r"(transformer\.)?h\.\d+\.attn\.attention\.(bias|masked_bias)",)


def windows(config: Config) -> list[int | None]:
    """The window of each block: None for `global`, `window_size` for `local`.

    Read from attention_layers, else expanded from attention_types ([[kinds, times], …]).
    """
    types = config.get("attention_types", [[["global", "local"], 12]])
    kinds = config.get("attention_layers") or [kind for kinds, times in types for kind in kinds * times]
    window = config.get("window_size", 256)
    if set(kinds) - {"global", "local"} or len(kinds) != config.need("num_layers"):
        raise UnsupportedConfig(
            f"{config.where}: expected 'attention_layers' to say global or local for each of "
            f"{config.need('num_layers')} blocks, got {kinds}; is this the right config?"
        )
    return [window if kind == "local" else None for kind in kinds]


def spec(config: Config) -> ModelSpec:
    """Anatomy of a GPT-Neo language model; its scores are q·k, not divided by √d_head."""
    d, n_heads, n_vocab = config.need("hidden_size"), config.need("num_heads"), config.need("vocab_size")
    norm = Norm("layer", config.get("layer_norm_epsilon", 1e-5))
    mlp = MLP(config.get("intermediate_size", 4 * d), config.get("activation_function", "gelu_new"))
    blocks = []
    for window in windows(config):
        attn = Attention(n_heads, n_heads, d // n_heads, scale=1.0, window=window)
        blocks.append(Block((Sublayer(attn, reads=norm), Sublayer(mlp, reads=norm))))
    return ModelSpec(
        family="gpt_neo",
        d_model=d,
        blocks=tuple(blocks),
        assembly=Assembly("tokens", (Input("token", n_vocab, "lookup"),), positions="learned"),
        outputs=(Output("token", n_vocab),),
        n_ctx=config.need("max_position_embeddings"),
        final_norm=norm,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts; the unembedding is absent, or a copy, when the config ties it."""
    tied = config.get("tie_word_embeddings", True)
    return TENSORS | {"lm_head.weight": "W_U: token d_model" + (" ?" if tied else "")}


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: global, local, global; a window of 5."""
    return {
        "model_type": "gpt_neo",
        "vocab_size": 61,
        "max_position_embeddings": 24,
        "hidden_size": 20,
        "intermediate_size": 36,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 5,
    }


FAMILY = Family("gpt_neo", ("gpt_neo",), spec, tensors, ("transformer.",), MASKS, "GPTNeoForCausalLM", tiny)
