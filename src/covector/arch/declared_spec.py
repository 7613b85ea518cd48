"""The anatomy that a layout.toml states, completed by what the declared tensors show: a `ModelSpec`.

Stated are the things that no tensor shows and that change the function (norm, causal, activation …). Shown are sizes,
which sublayers exist, and whether an MLP is gated; stating them too is allowed and is checked. Where neither says it,
the key is asked for by name.
"""

from typing import Any

from covector.arch.declared_evidence import Evidence, known_activation, optional_float
from covector.arch.declared_keys import Table
from covector.arch.declared_streams import assembly_of, outputs_of
from covector.errors import BadLayout, CheckpointMismatch
from covector.model.spec import MLP, Assembly, Attention, Block, ModelSpec, Norm, Rotary, Sublayer

# torch.nn.LayerNorm's eps; an RMSNorm has no common one and must state it.
LAYER_NORM_EPS = 1e-5
# Rotary base of the original paper (Su et al., 2021), and of most models since.
ROTARY_THETA = 10000.0
# Where the norm of a sublayer hangs, as fields of `Sublayer`.
_HANGS = {"pre": ("reads",), "post": ("after",), "sandwich": ("reads", "post"), "output": ("post",)}


def spec_of(facts: Evidence) -> ModelSpec:
    """The anatomy. Raises BadLayout for a key that is missing or contradicts another, CheckpointMismatch for sizes."""
    anatomy = facts.given.anatomy
    norm = block_norm(facts)
    assembly = assembly_of(facts, norm)
    return ModelSpec(
        family=facts.given.name,
        d_model=facts.need("d_model", "state d_model under [anatomy]"),
        blocks=_blocks(facts, norm),
        assembly=assembly,
        outputs=outputs_of(facts, norm),
        n_ctx=_n_ctx(facts, assembly),
        final_norm=norm if _has_final_norm(facts, norm) else None,
        tied=anatomy.get("tied", False),
    )


def block_norm(facts: Evidence) -> Norm | None:
    """The norm that `norm`, `eps` and `norm_offset` state."""
    anatomy = facts.given.anatomy
    kind = facts.stated("norm", 'write norm = "none", "layer" or "rms"')
    if kind == "none":
        for key in ("placement", "eps", "norm_offset"):
            if key in anatomy and "qk_norm" not in anatomy:
                raise BadLayout(f'{facts.where}: [anatomy] {key} speaks of a norm, norm = "none" says there is none')
        return None
    return Norm(kind, _eps(facts, kind), float(anatomy.get("norm_offset", 0.0)))


def _eps(facts: Evidence, kind: str) -> float:
    if kind == "layer":
        return float(facts.given.anatomy.get("eps", LAYER_NORM_EPS))
    return float(facts.stated("eps", "an RMSNorm has no usual eps; take it from the code that trained the model"))


def _has_final_norm(facts: Evidence, norm: Norm | None) -> bool:
    """Stated, or seen by its gain; asked for where norms have no gains, because then the file cannot show it."""
    shown = facts.shows("final_norm.gain", "final_norm.bias")
    if norm is None:
        return False
    if "final_norm" in facts.given.anatomy:
        return bool(facts.given.anatomy["final_norm"])
    gains = [f"{part}_{at}.gain" for part in ("attn", "mlp") for at in ("norm", "post", "after")]
    if not shown and not facts.shows(*gains):
        facts.stated("final_norm", "the norms of this file have no gains, so it cannot be seen; write true or false")
    return shown


def _blocks(facts: Evidence, norm: Norm | None) -> tuple[Block, ...]:
    anatomy = facts.given.anatomy
    attention = facts.each("attention", facts.shows("W_Q", "W_K", "W_V", "W_O"))
    mlp = facts.each("mlp", facts.shows("W_in", "W_out", "W_gate"))
    hangs: dict[str, Any] = {}
    if norm:
        if "placement" not in anatomy:
            facts.stated("placement", 'write "pre", "post", "sandwich" or "output": where the norms stand')
        hangs = dict.fromkeys(_HANGS[anatomy["placement"]], norm)
    rotary = facts.given.rotary
    blocks = []
    for layer in range(facts.n_layers):
        sublayers = []
        if attention[layer]:
            part: Attention | MLP = _attention(facts, layer, rotary, norm)
            sublayers.append(Sublayer(part, scale=float(anatomy.get("attn_scale", 1.0)), **hangs))
        if mlp[layer]:
            part = _mlp(facts, layer)
            sublayers.append(Sublayer(part, scale=float(anatomy.get("mlp_scale", 1.0)), **hangs))
        blocks.append(Block(tuple(sublayers), parallel=anatomy.get("parallel", False)))
    return tuple(blocks)


def _attention(facts: Evidence, layer: int, rotary: Table | None, norm: Norm | None) -> Attention:
    anatomy = facts.given.anatomy
    facts.stated("causal", "write true if a position sees only itself and those before it, else false")
    n_heads = facts.need("head", "state n_heads under [anatomy]", layer)
    n_kv_heads = facts.need("kv_head", "state n_kv_heads under [anatomy]", layer)
    d_head = facts.need("d_head", "state d_head under [anatomy]", layer)
    if n_heads % n_kv_heads:
        raise CheckpointMismatch(
            f"{facts.where}: expected the {n_heads} query heads of block {layer} to share key/value heads evenly, "
            f"got {n_kv_heads} of these; check n_heads and n_kv_heads"
        )
    scale = facts.each("score_scale")[layer]
    return Attention(
        n_heads,
        n_kv_heads,
        d_head,
        d_head**-0.5 if scale is None else float(scale),
        causal=facts.each("causal")[layer],
        window=facts.each("window")[layer],
        rotary=_rotary(facts, rotary, d_head) if rotary is not None else None,
        qk_norm=_qk_norm(facts, norm),
        softcap=optional_float(anatomy.get("softcap")),
    )


def _qk_norm(facts: Evidence, norm: Norm | None) -> Norm | None:
    kind = facts.given.anatomy.get("qk_norm", "none")
    return None if kind == "none" else Norm(kind, _eps(facts, kind), norm.offset if norm else 0.0)


def _rotary(facts: Evidence, given: Table, d_head: int) -> Rotary:
    if "interleaved" not in given:
        raise BadLayout(
            f"{facts.where}: expected interleaved under [rotary], it is absent; write true if coordinates (0,1), "
            "(2,3)… turn together (GPT-J), false if i turns with i + dim/2 (NeoX, Llama)"
        )
    rule = given.get("rule", "default")
    needs = {"default": (), "linear": ("factor",), "llama3": ("factor", "low", "high", "original")}[rule]
    scaling = tuple((key, given[key]) for key in ("factor", "low", "high", "original") if key in given)
    if {key for key, _ in scaling} != set(needs):
        raise BadLayout(
            f'{facts.where}: [rotary] rule = "{rule}" takes {", ".join(needs) or "no parameters"}; '
            f"got {', '.join(key for key, _ in scaling) or 'none'}"
        )
    dim = given.get("dim", d_head)
    if dim > d_head or dim % 2:
        raise BadLayout(f"{facts.where}: [rotary] dim takes an even number up to d_head = {d_head}; got {dim}")
    scaling = tuple((key, float(value)) for key, value in scaling)
    return Rotary(dim, float(given.get("theta", ROTARY_THETA)), given["interleaved"], rule, scaling)


def _mlp(facts: Evidence, layer: int) -> MLP:
    name = known_activation(facts.stated("activation", 'write activation = "relu", "gelu", "silu" …'), facts.where)
    gates = facts.each("gated", facts.shows("W_gate"))
    gated = gates[layer]
    after = facts.given.anatomy.get("bias_after_gate")
    if gated and after is None and facts.shows("b_in"):
        facts.stated(
            "bias_after_gate",
            "this gated MLP has b_in: write true for act(x W_gate) * (x W_in) + b_in, "
            "false for act(x W_gate) * (x W_in + b_in)",
        )
    if after and not any(gates):
        raise BadLayout(f"{facts.where}: [anatomy] bias_after_gate speaks of a gate, no block has one; remove it")
    return MLP(facts.need("d_mlp", "state d_mlp under [anatomy]", layer), name, gated, bool(after) and gated)


def _n_ctx(facts: Evidence, assembly: Assembly) -> int:
    stated = facts.given.anatomy.get("n_ctx")
    if assembly.positions != "learned":
        return stated or facts.stated("n_ctx", "no table of positions says how long a context is")
    rows = facts.need("position", "declare W_pos: position d_model") - assembly.position_offset
    if stated is not None and stated > rows:
        raise CheckpointMismatch(f"{facts.where}: [anatomy] n_ctx = {stated}, the table of positions has {rows} places")
    return stated or rows
