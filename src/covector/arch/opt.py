"""OPT layout: separate projections, ReLU, learned positions from row 2 on; opt-350m normalises after each sublayer."""

from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Sublayer

TENSORS = {
    "embed_tokens.weight": "W_E: token d_model",
    "embed_positions.weight": "W_pos: position d_model",
    "layers.{i}.self_attn.q_proj.weight": "(W_Q: head d_head) d_model",
    "layers.{i}.self_attn.k_proj.weight": "(W_K: kv_head d_head) d_model",
    "layers.{i}.self_attn.v_proj.weight": "(W_V: kv_head d_head) d_model",
    "layers.{i}.self_attn.out_proj.weight": "d_model (W_O: head d_head)",
    "layers.{i}.fc1.weight": "W_in: d_mlp d_model",
    "layers.{i}.fc2.weight": "W_out: d_model d_mlp",
}
BIASES = {
    "layers.{i}.self_attn.q_proj.bias": "(b_Q: head d_head)",
    "layers.{i}.self_attn.k_proj.bias": "(b_K: kv_head d_head)",
    "layers.{i}.self_attn.v_proj.bias": "(b_V: kv_head d_head)",
    "layers.{i}.self_attn.out_proj.bias": "b_O: d_model",
    "layers.{i}.fc1.bias": "b_in: d_mlp",
    "layers.{i}.fc2.bias": "b_out: d_model",
}
# A format number that the first conversions carry.
IGNORED = (r"(model\.)?decoder\.version",)
# Row 0 and 1 of the position table belong to padding (fairseq's convention).
OFFSET = 2
# torch's default for a LayerNorm; OPT's config has no key for it.
EPS = 1e-5


def _pre_norm(config: Config) -> bool:
    return bool(config.get("do_layer_norm_before", True))


def _final_norm(config: Config) -> bool:
    """Whether a norm stands before the unembedding: not in post-norm models, nor in fine-tunes older than 4.20.1."""
    return not config.get("_remove_final_layer_norm", False) and _pre_norm(config)


def spec(config: Config) -> ModelSpec:
    """Anatomy of an OPT language model; a token space narrower than the stream is refused by name."""
    d, n_heads, n_vocab = config.need("hidden_size"), config.need("num_attention_heads"), config.need("vocab_size")
    config.only("word_embed_proj_dim", d)
    for key in ("layerdrop", "init_std"):  # They act in training only.
        config.get(key)
    norm = Norm("layer", EPS)
    reads, after = (norm, None) if _pre_norm(config) else (None, norm)
    attn = Attention(n_heads, n_heads, d // n_heads, (d // n_heads) ** -0.5)
    mlp = MLP(config.need("ffn_dim"), config.get("activation_function", "relu"))
    block = Block((Sublayer(attn, reads=reads, after=after), Sublayer(mlp, reads=reads, after=after)))
    inputs = (Input("token", n_vocab, "lookup"),)
    return ModelSpec(
        family="opt",
        d_model=d,
        blocks=(block,) * config.need("num_hidden_layers"),
        assembly=Assembly("tokens", inputs, positions="learned", position_offset=OFFSET),
        outputs=(Output("token", n_vocab),),
        n_ctx=config.need("max_position_embeddings"),
        final_norm=norm if _final_norm(config) else None,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts, with the biases and gains that the config switches on."""
    named = TENSORS | (BIASES if config.get("enable_bias", True) else {})
    if config.get("layer_norm_elementwise_affine", True):
        role = "norm" if _pre_norm(config) else "after"
        named |= _norm("layers.{i}.self_attn_layer_norm", f"attn_{role}")
        named |= _norm("layers.{i}.final_layer_norm", f"mlp_{role}")
        named |= _norm("final_layer_norm", "final_norm") if _final_norm(config) else {}
    tied = config.get("tie_word_embeddings", True)
    return named | {"lm_head.weight": "W_U: token d_model" + (" ?" if tied else "")}


def _norm(stored: str, role: str) -> dict[str, str]:
    return {f"{stored}.weight": f"{role}.gain: d_model", f"{stored}.bias": f"{role}.bias: d_model"}


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: pre-norm, all biases."""
    return {
        "model_type": "opt",
        "vocab_size": 61,
        "hidden_size": 20,
        "ffn_dim": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "word_embed_proj_dim": 20,
        "pad_token_id": 1,
    }


FAMILY = Family("opt", ("opt",), spec, tensors, ("model.decoder.", "decoder."), IGNORED, "OPTForCausalLM", tiny)
