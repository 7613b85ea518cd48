"""Ready declarations: the tensor names of TransformerLens and of torch.nn.TransformerEncoder, in words.

Every tensor is optional here; what an anatomy needs is checked afterwards. The norm beside a sublayer plays another
role when it stands before the sublayer, after its output, or after the sum, so the words depend on the placement.
"""

from collections.abc import Callable, Mapping

from covector.errors import BadLayout

Names = Mapping[str, str]

# Where "the norm of a sublayer" hangs, by placement: the suffix of its canonical tensors.
_HANGS = {"pre": "norm", "sandwich": "norm", "output": "post", "post": "after"}


def _transformer_lens(hangs: str) -> Names:
    """HookedTransformer: row vectors, heads on an axis of their own, key/value heads with an underscore if grouped."""
    block = "blocks.{i}."
    names = {
        "embed.W_E": "token d_model",
        "embed.ln.w": "embed_norm.gain: d_model",
        "embed.ln.b": "embed_norm.bias: d_model",
        "pos_embed.W_pos": "position d_model",
        f"{block}attn.W_Q": "head d_model d_head",
        f"{block}attn.W_K": "kv_head d_model d_head",
        f"{block}attn.W_V": "kv_head d_model d_head",
        f"{block}attn._W_K": "W_K: kv_head d_model d_head",
        f"{block}attn._W_V": "W_V: kv_head d_model d_head",
        f"{block}attn.W_O": "head d_head d_model",
        f"{block}attn.b_Q": "head d_head",
        f"{block}attn.b_K": "kv_head d_head",
        f"{block}attn.b_V": "kv_head d_head",
        f"{block}attn._b_K": "b_K: kv_head d_head",
        f"{block}attn._b_V": "b_V: kv_head d_head",
        f"{block}attn.b_O": "d_model",
        f"{block}attn.q_norm.w": "q_norm.gain: d_head",
        f"{block}attn.k_norm.w": "k_norm.gain: d_head",
        f"{block}mlp.W_gate": "d_model d_mlp",
        f"{block}mlp.W_in": "d_model d_mlp",
        f"{block}mlp.W_out": "d_mlp d_model",
        f"{block}mlp.b_in": "d_mlp",
        f"{block}mlp.b_out": "d_model",
        f"{block}ln1_post.w": "attn_post.gain: d_model",
        f"{block}ln2_post.w": "mlp_post.gain: d_model",
        "ln_final.w": "final_norm.gain: d_model",
        "ln_final.b": "final_norm.bias: d_model",
        "unembed.W_U": "d_model token",
        "unembed.b_U": "token",
    }
    for norm, part in (("ln1", "attn"), ("ln2", "mlp")):
        names[f"{block}{norm}.w"] = f"{part}_{hangs}.gain: d_model"
        names[f"{block}{norm}.b"] = f"{part}_{hangs}.bias: d_model"
    # Causal masks and tables that are recomputed.
    for buffer in ("mask", "IGNORE", "rotary_sin", "rotary_cos"):
        names[f"{block}attn.{buffer}"] = "-"
    return names


def _torch_encoder(hangs: str) -> Names:
    """torch.nn.TransformerEncoder: output x input matrices, q, k and v stacked, heads slower than d_head."""
    layer = "layers.{i}."
    names = {
        f"{layer}self_attn.in_proj_weight": "([W_Q W_K W_V] head d_head) d_model",
        f"{layer}self_attn.in_proj_bias": "([b_Q b_K b_V] head d_head)",
        f"{layer}self_attn.out_proj.weight": "d_model (W_O: head d_head)",
        f"{layer}self_attn.out_proj.bias": "b_O: d_model",
        f"{layer}linear1.weight": "W_in: d_mlp d_model",
        f"{layer}linear1.bias": "b_in: d_mlp",
        f"{layer}linear2.weight": "W_out: d_model d_mlp",
        f"{layer}linear2.bias": "b_out: d_model",
        "norm.weight": "final_norm.gain: d_model",
        "norm.bias": "final_norm.bias: d_model",
    }
    for norm, part in (("norm1", "attn"), ("norm2", "mlp")):
        names[f"{layer}{norm}.weight"] = f"{part}_{hangs}.gain: d_model"
        names[f"{layer}{norm}.bias"] = f"{part}_{hangs}.bias: d_model"
    return names


READY: Mapping[str, Callable[[str], Names]] = {"transformer_lens": _transformer_lens, "torch_encoder": _torch_encoder}


def ready_names(name: str, placement: str, where: str) -> dict[str, str]:
    """Tensor names (``{i}`` for the block) and their words, all optional. Raises BadLayout for an unknown name."""
    if name not in READY:
        raise BadLayout(f"{where}: [tensors] use takes {', '.join(READY)}; got '{name}'")
    return {tensor: f"{words} ?" for tensor, words in READY[name](_HANGS[placement]).items()}
