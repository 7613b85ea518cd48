"""BERT layout: an encoder that normalises after each sublayer, token types, a masked-LM head with a layer of its own.

What does not lead to a token is ignored by name: the pooler and the next-sentence head.
"""

from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Sublayer

_LAYER = "encoder.layer.{i}"
TENSORS = {
    "embeddings.word_embeddings.weight": "W_E: token d_model",
    "embeddings.token_type_embeddings.weight": "in.type.W: type d_model",
    "embeddings.position_embeddings.weight": "W_pos: position d_model",
    f"{_LAYER}.attention.self.query.weight": "(W_Q: head d_head) d_model",
    f"{_LAYER}.attention.self.query.bias": "(b_Q: head d_head)",
    f"{_LAYER}.attention.self.key.weight": "(W_K: kv_head d_head) d_model",
    f"{_LAYER}.attention.self.key.bias": "(b_K: kv_head d_head)",
    f"{_LAYER}.attention.self.value.weight": "(W_V: kv_head d_head) d_model",
    f"{_LAYER}.attention.self.value.bias": "(b_V: kv_head d_head)",
    f"{_LAYER}.attention.output.dense.weight": "d_model (W_O: head d_head)",
    f"{_LAYER}.attention.output.dense.bias": "b_O: d_model",
    f"{_LAYER}.intermediate.dense.weight": "W_in: d_mlp d_model",
    f"{_LAYER}.intermediate.dense.bias": "b_in: d_mlp",
    f"{_LAYER}.output.dense.weight": "W_out: d_model d_mlp",
    f"{_LAYER}.output.dense.bias": "b_out: d_model",
    "cls.predictions.transform.dense.weight": "out.token.transform.W: d_model d_model_in",
    "cls.predictions.transform.dense.bias": "out.token.transform.b: d_model",
}
NORMS = {
    "embeddings.LayerNorm": "embed_norm",
    f"{_LAYER}.attention.output.LayerNorm": "attn_after",
    f"{_LAYER}.output.LayerNorm": "mlp_after",
    "cls.predictions.transform.LayerNorm": "out.token.norm",
}
IGNORED = (
    r"(bert\.)?pooler\.dense\.(weight|bias)",
    r"cls\.seq_relationship\.(weight|bias)",
    r"(bert\.)?embeddings\.(position_ids|token_type_ids)",
)


def spec(config: Config) -> ModelSpec:
    """Anatomy of a BERT masked language model; with ``is_decoder`` its attention is causal."""
    config.only("add_cross_attention", False)
    config.only("position_embedding_type", "absolute")
    d, n_heads, n_vocab = config.need("hidden_size"), config.need("num_attention_heads"), config.need("vocab_size")
    norm, act = Norm("layer", config.get("layer_norm_eps", 1e-12)), config.get("hidden_act", "gelu")
    causal = bool(config.get("is_decoder", False))
    attn = Attention(n_heads, n_heads, d // n_heads, (d // n_heads) ** -0.5, causal)
    mlp = MLP(config.need("intermediate_size"), act)
    block = Block((Sublayer(attn, after=norm), Sublayer(mlp, after=norm)))
    inputs = (Input("token", n_vocab, "lookup"), Input("type", config.get("type_vocab_size", 2), "lookup"))
    return ModelSpec(
        family="bert",
        d_model=d,
        blocks=(block,) * config.need("num_hidden_layers"),
        assembly=Assembly("tokens", inputs, positions="learned", norm=norm),
        outputs=(Output("token", n_vocab, transform=act, transform_norm=norm),),
        n_ctx=config.need("max_position_embeddings"),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def tensors(config: Config) -> dict[str, str]:
    """Stored names and their layouts. A tied head's bias is ``cls.predictions.bias``, an untied one's its decoder's."""
    named = dict(TENSORS)
    for stored, role in NORMS.items():
        # The first checkpoints say gamma and beta; transformers renames them as it loads.
        for kind, names in (("gain", ("weight", "gamma")), ("bias", ("bias", "beta"))):
            named[" | ".join(f"{stored}.{name}" for name in names)] = f"{role}.{kind}: d_model"
    if config.get("tie_word_embeddings", True):
        return named | {
            "cls.predictions.decoder.weight": "W_U: token d_model ?",
            "cls.predictions.decoder.bias": "-",
            "cls.predictions.bias": "b_U: token",
        }
    return named | {
        "cls.predictions.decoder.weight": "W_U: token d_model",
        "cls.predictions.decoder.bias": "b_U: token",
        "cls.predictions.bias": "-",
    }


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs: three token types."""
    return {
        "model_type": "bert",
        "vocab_size": 61,
        "hidden_size": 20,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "type_vocab_size": 3,
    }


FAMILY = Family("bert", ("bert",), spec, tensors, ("bert.",), IGNORED, "BertForMaskedLM", tiny)
