"""Sites → maps: the factored matrix behind an address, with its read and write space.

OV = W_V·W_O and QK = W_Q·W_Kᵀ are kept as their two thin factors. With `bias` the map is augmented by a constant 1 in
front of its input: OV gets the row b_V W_O + b_O / n_heads, QK the query and key biases, W_in and W_out theirs, so that
``[1, x] M`` is the affine map.

Source: `docs/theory/maps.md`, equations 1–6.
"""

import dataclasses

import numpy as np

from covector.errors import BadSite
from covector.linalg.maps import Dense, Factored, Map, Space
from covector.model.address import Site
from covector.model.frames import Frame, reads_centred, rounding_norm, writes_centred
from covector.model.spec import ModelSpec, input_weight, output_bias, output_weight
from covector.model.weights import Weights

# Storage dtypes from coarse to fine: a product is as coarse as its coarser factor.
_COARSE_FIRST = ("bfloat16", "float16", "float32", "float64")


def residual(spec: ModelSpec, bias: bool = False) -> Space:
    """The residual stream; with a constant 1 in front when `bias`."""
    return Space("residual+1", spec.d_model + 1) if bias else Space("residual", spec.d_model)


def map_at(weights: Weights, site: Site, bias: bool = False) -> Map:
    """The map of `site`: rows in, rows out, [reads, writes]. Exact: nothing is multiplied out.

    QK reads the query's stream and "writes" the key's: its value at (x, y) is x M yᵀ, the score before scaling and
    rotary turning (for rotary heads: the score at offset 0).
    """
    if site.layer is None:
        made = _named(weights, site, bias)
    elif site.in_mlp:
        made = _mlp(weights, site, bias)
    else:
        made = _head(weights, site, bias)
    rounded = _rounded(weights, site)
    return made if rounded is None else dataclasses.replace(made, rounded=rounded)


def _rounded(weights: Weights, site: Site) -> tuple[float, ...] | None:
    """What storage rounding is relative to, per factor, where a frame has rewritten the stored matrices."""
    attn = weights.spec.blocks[site.layer].attn if site.layer is not None else None
    heads: tuple[int | None, ...] = (site.head,)
    if attn is not None and site.head is not None and site.kind in ("ov", "qk"):
        own = attn.kv_of(site.head)
        heads = (own, site.head) if site.kind == "ov" else (site.head, own)
    norms = [rounding_norm(weights, name, head) for name, head in zip(site_tensors(site), heads, strict=True)]
    return None if None in norms else tuple(float(n) for n in norms if n is not None)


def _head(weights: Weights, site: Site, bias: bool) -> Dense | Factored:
    attn = weights.spec.blocks[site.layer or 0].attn
    if attn is None or site.head is None:
        raise BadSite(f"{site}: block {site.layer} has no attention")
    stream, head = residual(weights.spec, bias), Space("head", attn.d_head, str(site).split(".")[0])
    at = f"L{site.layer}."
    kv = attn.kv_of(site.head)
    stored = coarsest(weights, *(at + r for r in {"ov": ("W_V", "W_O"), "qk": ("W_Q", "W_K")}.get(site.kind, ())))
    if site.kind == "ov":
        read, write = weights[at + "W_V"][kv], weights[at + "W_O"][site.head]
        if bias:
            read, write = _ov_bias(weights, at, kv, read, write, attn.n_heads)
        return Factored(read, write, stream, residual(weights.spec), stored)
    if site.kind == "qk":
        query, key = weights[at + "W_Q"][site.head], weights[at + "W_K"][kv]
        if bias:
            query, key = (
                _with_row(query, _bias(weights, at + "b_Q", site.head, attn.d_head)),
                _with_row(key, _bias(weights, at + "b_K", kv, attn.d_head)),
            )
        return Factored(query, key.T, stream, stream, stored)
    role = f"W_{site.kind.upper()}"
    matrix, stored = weights[at + role][site.head], weights.stored(at + role)
    if site.kind == "o":
        return Dense(matrix, head, residual(weights.spec), stored)
    if bias:
        matrix = _with_row(matrix, _bias(weights, f"{at}b_{site.kind.upper()}", site.head, attn.d_head))
    return Dense(matrix, stream, head, stored)


def _ov_bias(
    weights: Weights, at: str, kv: int, read: np.ndarray, write: np.ndarray, n_heads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Factors of [[b_V W_O + b_O / n_heads], [W_V W_O]]: rank d_head + 1, still thin."""
    b_v = _bias(weights, at + "b_V", kv, read.shape[1])
    b_o = weights[at + "b_O"] / n_heads if at + "b_O" in weights else np.zeros(write.shape[1])
    top = np.concatenate([b_v, [1.0]])[None]
    below = np.concatenate([read, np.zeros((read.shape[0], 1))], axis=1)
    return np.concatenate([top, below]), np.concatenate([write, b_o[None]])


def _mlp(weights: Weights, site: Site, bias: bool) -> Dense:
    mlp = weights.spec.blocks[site.layer or 0].mlp
    if mlp is None or (site.kind == "gate" and not mlp.gated):
        raise BadSite(f"{site}: block {site.layer} has no such MLP map")
    at, neurons = f"L{site.layer}.", Space("neurons", mlp.d_mlp, f"L{site.layer}")
    role = f"W_{site.kind}"
    matrix, stored = weights[at + role], weights.stored(at + role)
    # An MLP's read bias stands before its activation, so an affine read map has it; b_in after the gate does not count.
    bias_role = f"{at}b_{site.kind}"
    if bias:
        counts = bias_role in weights and not (site.kind == "in" and mlp.bias_after_gate)
        row = weights[bias_role] if counts else np.zeros(matrix.shape[1])
        matrix = _with_row(matrix, row)
    if site.kind == "out":
        reads = Space("neurons+1", mlp.d_mlp + 1, f"L{site.layer}") if bias else neurons
        return Dense(matrix, reads, residual(weights.spec), stored)
    return Dense(matrix, residual(weights.spec, bias), neurons, stored)


def _named(weights: Weights, site: Site, bias: bool) -> Dense:
    stream = residual(weights.spec)
    if site.kind == "pos":
        table = weights["W_pos"]
        return Dense(table, Space("position", table.shape[0]), stream, weights.stored("W_pos"))
    if site.kind == "embed" or site.kind.endswith("_in"):
        label = "token" if site.kind == "embed" else site.kind.removesuffix("_in")
        name = input_weight(label)
        return Dense(weights[name], Space(label, weights[name].shape[0]), stream, weights.stored(name))
    label = "token" if site.kind == "unembed" else site.kind.removesuffix("_out")
    name, matrix = output_weight(label), weights[output_weight(label)]
    if bias:
        row = weights[output_bias(label)] if output_bias(label) in weights else np.zeros(matrix.shape[1])
        matrix = _with_row(matrix, row)
    return Dense(matrix, residual(weights.spec, bias), Space(label, matrix.shape[1]), weights.stored(name))


def site_tensors(site: Site) -> tuple[str, ...]:
    """Canonical names of the matrices that a site's map is made of."""
    if site.layer is None:
        if site.kind == "pos":
            return ("W_pos",)
        label = {"embed": "token", "unembed": "token"}.get(site.kind, site.kind.rsplit("_", 1)[0])
        return (input_weight(label) if site.kind == "embed" or site.kind.endswith("_in") else output_weight(label),)
    if site.head is None:
        return (f"L{site.layer}.W_{site.kind}",)
    roles = {"ov": ("W_V", "W_O"), "qk": ("W_Q", "W_K")}.get(site.kind, (f"W_{site.kind.upper()}",))
    return tuple(f"L{site.layer}.{role}" for role in roles)


def side_centred(spec: ModelSpec, chosen: Frame, at: Site, second: bool) -> bool:
    """Whether directions on a side of a site that lies in the stream have no part along 1 in this frame.

    `second`: the written side; for QK, whose two sides both read the stream, the key's. `spec` is the stored model's.
    """
    names = site_tensors(at)
    if second and at.kind != "qk":
        return writes_centred(spec, chosen)
    return reads_centred(spec, chosen, names[-1 if second else 0])


def coarsest(weights: Weights, *names: str) -> str:
    """The coarsest storage dtype among tensors: it sets the noise of what is computed from them."""
    found = [weights.stored(n) for n in names] or ["float32"]
    return min(found, key=lambda d: _COARSE_FIRST.index(d) if d in _COARSE_FIRST else len(_COARSE_FIRST))


def _bias(weights: Weights, name: str, head: int, size: int) -> np.ndarray:
    return weights[name][head] if name in weights else np.zeros(size)


def _with_row(matrix: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(row)[None], matrix])


def cautions(spec: ModelSpec, site: Site) -> tuple[str, ...]:
    """What the weights of this site cannot show, one clause each; printed where the numbers stand."""
    found = []
    if site.layer is None:
        return ()
    block = spec.blocks[site.layer]
    sub = block.sublayer("mlp" if site.in_mlp else "attn")
    if sub is None:
        return ()
    writes = site.kind in ("ov", "o", "out")
    if writes and sub.post:
        found.append("a norm stands between this map and the stream: the size of what is written is not σ")
    if writes and sub.after:
        found.append("post-norm block: what is written is normalised together with the stream")
    attn = block.attn
    if site.kind in ("qk", "q", "k") and attn and attn.rotary:
        found.append("rotary positions: this is the score at offset 0 only")
    if site.kind in ("qk", "q", "k") and attn and attn.qk_norm:
        found.append("queries and keys are normalised per head: σ of this map is not a score")
    if site.in_mlp and block.mlp and block.mlp.gated and site.kind == "in":
        found.append("gated MLP: what is read here counts only as far as the gate opens")
    return tuple(found)
