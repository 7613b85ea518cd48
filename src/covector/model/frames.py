"""Frames: named rewritings of the weights, recorded in every result.

``raw``          the checkpoint as it is.
``folded``       gains into the readers, norm biases into their biases, readers centred under LayerNorm.
``gauge_fixed``  folded, and writers centred, and the unembedding relative to its mean token: singular values do not
                 change under the three gauges of a LayerNorm model (equation 6).
``tl_default``   what TransformerLens' default loading does: folded, writers centred (if all readers are LayerNorms),
                 unembedding centred (unless soft-capped), value biases moved into b_O.
``tl_demo``      a published view: raw, but diag(γ₂) W_in. Not the model's function.
``conjecture2022`` a published view: diag(γ₂) W_in, and diag(γ₁)(W − m 1ᵀ) for q, k, v, m the mean over all their
                 output units. Not the model's function.

The first four preserve the function (logits, for the last two up to a constant per position); views are readable but
refused for edits and runs. Source: `docs/theory/frames.md`, equations 1–9.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from covector.errors import FrameUnavailable, UnknownFrame
from covector.model.spec import MLP, Attention, Block, ModelSpec, Norm, Sublayer, output_bias
from covector.model.weights import Held, Weights, frozen, split_name

PRESERVING = ("raw", "folded", "gauge_fixed", "tl_default")
VIEWS = ("tl_demo", "conjecture2022")
# Tables above this size stay in the checkpoint's own precision when they are rewritten (2²⁴ entries: 128 MiB in
# float64); the rounding that this costs, one unit of float32, is far below what storage has rounded already.
LARGE = 1 << 24


@dataclass(frozen=True)
class Frame:
    """A frame's name and whether maps carry a bias row (``folded+bias``)."""

    name: str = "raw"
    bias: bool = False

    def __str__(self) -> str:
        """The name as it is typed."""
        return self.name + ("+bias" if self.bias else "")

    @property
    def preserving(self) -> bool:
        """Whether a model in this frame computes the same function."""
        return self.name in PRESERVING

    @property
    def centres_reads(self) -> bool:
        """Whether readers ignore the direction 1 (LayerNorm only; see `centred`)."""
        return self.name in ("folded", "gauge_fixed", "tl_default")

    @property
    def centres_writes(self) -> bool:
        """Whether writers have no part along 1."""
        return self.name in ("gauge_fixed", "tl_default")


def frame(text: str) -> Frame:
    """Parse ``folded`` or ``folded+bias``. Raises UnknownFrame, listing the frames."""
    name, plus, modifier = text.partition("+")
    if name not in (*PRESERVING, *VIEWS) or (plus and modifier != "bias"):
        raise UnknownFrame(f"expected a frame ({', '.join((*PRESERVING, *VIEWS))}, each with +bias), got '{text}'")
    return Frame(name, bool(plus))


def framed(weights: Weights, chosen: Frame) -> Weights:
    """The weights in a frame, as a view that computes each tensor when it is asked for.

    Raises FrameUnavailable, with the reason, where the anatomy does not allow the frame.
    """
    if chosen.name == "raw":
        return weights
    check_available(weights, chosen)
    return FramedWeights(weights, _spec(weights.spec, chosen), chosen)


def check_available(weights: Weights, chosen: Frame) -> None:
    """Raise FrameUnavailable, with the reason, unless this anatomy allows the frame."""
    spec, name = weights.spec, chosen.name
    if name == "raw":
        return
    subs = [s for b in spec.blocks for s in b.sublayers]
    if any(s.after for s in subs):
        _refuse(spec, name, "its blocks are post-norm: the stream itself is rescaled, so no gain can move to a reader")
    if not any(s.reads for s in subs):
        _refuse(spec, name, "it has no norm before its sublayers, so there is nothing to fold")
    kinds = {s.reads.kind for s in subs if s.reads}
    if name == "gauge_fixed" and "rms" in kinds:
        _refuse(spec, name, "RMSNorm does not centre: the direction 1 is part of the function; folded fixes its gauge")
    sees = _sees_one(spec)
    if name == "gauge_fixed" and sees:
        _refuse(spec, name, f"centring its writers would change the function: {sees}")
    softcapped = any(o.softcap for o in spec.outputs)
    if name == "gauge_fixed" and softcapped:
        _refuse(spec, name, "its logits are soft-capped: a constant taken off every logit is not invisible")
    if name == "conjecture2022" and spec.n_heads != spec.n_kv_heads:
        _refuse(spec, name, "the published recipe needs one fused q|k|v matrix, and its heads are grouped")


def _refuse(spec: ModelSpec, name: str, why: str) -> None:
    raise FrameUnavailable(f"frame '{name}' is not available for {spec.family}: {why}; use --frame raw")


def reads_centred(spec: ModelSpec, chosen: Frame, tensor: str) -> bool:
    """Whether what this tensor reads has no part along 1: it reads through a LayerNorm, folded and centred."""
    norm = reader_norm(spec, tensor)
    return chosen.centres_reads and norm is not None and spec.norms()[norm].kind == "layer"


def writes_centred(spec: ModelSpec, chosen: Frame) -> bool:
    """Whether what is written to the stream has no part along 1 in this frame."""
    return chosen.centres_writes and _sees_one(spec) is None


def _sees_one(spec: ModelSpec) -> str | None:
    """What sees the stream's part along 1, so that centring writers would change the function; None if nothing."""
    subs = [s for b in spec.blocks for s in b.sublayers]
    if not all(s.reads and s.reads.kind == "layer" for s in subs):
        return "not every sublayer reads through LayerNorm, which alone ignores the direction 1"
    if spec.final_norm is None or spec.final_norm.kind != "layer":
        return "its outputs do not read through LayerNorm"
    if any(s.post and s.post.kind != "layer" for s in subs):
        return "a norm that does not centre stands behind its sublayers"
    if spec.assembly.norm and spec.assembly.norm.kind != "layer":
        return "a norm that does not centre stands behind its embeddings"
    if any(i.activation for i in spec.assembly.inputs):
        return "an activation stands behind its embeddings"
    return None


def _spec(spec: ModelSpec, chosen: Frame) -> ModelSpec:
    """The anatomy after rewriting: same norms (their gains are gone from the weights), an unembedding of its own."""
    if not chosen.preserving:
        return dataclasses.replace(spec, tied=False)
    blocks = []
    for block in spec.blocks:
        subs = []
        for sub in block.sublayers:
            part = sub.part
            if isinstance(part, MLP) and part.bias_after_gate:
                part = dataclasses.replace(part, bias_after_gate=False)
            subs.append(dataclasses.replace(sub, part=part, reads=_plain(sub.reads)))
        blocks.append(Block(tuple(subs), block.parallel))
    return dataclasses.replace(spec, blocks=tuple(blocks), final_norm=_plain(spec.final_norm), tied=False)


def _plain(norm: Norm | None) -> Norm | None:
    return dataclasses.replace(norm, offset=0.0) if norm else None


@dataclass(frozen=True)
class FramedWeights:
    """Weights seen through a frame. Arithmetic in float64; very large tables keep the checkpoint's precision."""

    base: Weights
    spec: ModelSpec
    frame: Frame

    def __getitem__(self, name: str) -> np.ndarray:
        """The rewritten canonical array, read-only."""
        if name not in self:
            raise KeyError(name)
        layer, role = split_name(name)
        array = self._view(layer, role) if not self.frame.preserving else self._preserving(name, layer, role)
        return frozen(array)

    def __contains__(self, name: object) -> bool:
        """Whether the framed model has such a tensor: folded norms have none, their readers have biases."""
        return name in self.names()

    def names(self) -> tuple[str, ...]:
        """Every canonical name of the framed model."""
        if not self.frame.preserving:
            return self.base.names()
        gone = {f"{n}.{k}" for n in folded_norms(self.base.spec) for k in ("gain", "bias")}
        kept = [n for n in self.base.names() if n not in gone]
        return tuple(dict.fromkeys([*kept, *_new_biases(self.base, self.frame)]))

    def stored(self, name: str) -> str:
        """The dtype of the checkpoint's tensor that this one is made from."""
        if name in self.base:
            return self.base.stored(name)
        return self.base.stored(_matrix_of(name))

    def origin(self, name: str) -> tuple[str, str]:
        """Where the checkpoint's tensor of this name is stored, and the sha256 of its stored bytes."""
        return self.base.origin(name)

    def _view(self, layer: int | None, role: str) -> np.ndarray:
        name = role if layer is None else f"L{layer}.{role}"
        array = self.base[name]
        if role == "W_in":
            return _scaled(array, _gain(self.base, f"L{layer}.mlp_norm"))
        if self.frame.name == "conjecture2022" and role in ("W_Q", "W_K", "W_V"):
            fused = [self.base[f"L{layer}.{r}"].astype(np.float64) for r in ("W_Q", "W_K", "W_V")]
            mean = np.concatenate(fused).mean(axis=(0, 2))
            return _scaled(array.astype(np.float64) - mean[None, :, None], _gain(self.base, f"L{layer}.attn_norm"))
        return array

    def _preserving(self, name: str, layer: int | None, role: str) -> np.ndarray:
        reader = reader_norm(self.base.spec, name)
        if name == "W_U" or (reader and role.split(".")[-1].startswith("W")):
            return self._read(name, reader)
        if role in ("b_Q", "b_K", "b_V", "b_in", "b_gate") or role == "b_U" or role.endswith(".b"):
            return self._bias(name, role, reader)
        if role == "b_O" and self.frame.name == "tl_default":
            return self._write(self._value_biases(layer or 0))
        if role == "b_out":
            return self._write(self._after_gate(layer or 0))
        writes = role in ("W_E", "W_pos", "W_O", "W_out", "b_O") or (role.startswith("in.") and role[-1] in "Wb")
        return self._write(self.base[name]) if writes else self.base[name]

    def _read(self, name: str, norm: str | None) -> np.ndarray:
        array = _scaled(self.base[name], _gain(self.base, norm) if norm else None)
        if norm and self.base.spec.norms()[norm].kind == "layer":
            array = array - array.mean(axis=-2, keepdims=True, dtype=np.float64).astype(array.dtype)
        if name == "W_U" and self._outputs_centred:
            array = array - array.mean(axis=-1, keepdims=True, dtype=np.float64).astype(array.dtype)
        return array

    def _bias(self, name: str, role: str, norm: str | None) -> np.ndarray:
        """b + β W, with the reader as stored; tl_default has moved value biases on, b_in after a gate went to b_out."""
        matrix = _matrix_of(name)
        after_gate = role == "b_in" and self._moves_b_in(name)
        own = self.base[name].astype(np.float64) if name in self.base and not after_gate else None
        beta = self.base[f"{norm}.bias"] if norm and f"{norm}.bias" in self.base else None
        if beta is not None:
            shift = np.einsum("d,...dm->...m", beta.astype(np.float64), self.base[matrix].astype(np.float64))
            own = shift if own is None else own + shift
        if own is None:
            own = np.zeros(_bias_shape(self.base[matrix]))
        if role == "b_V" and self.frame.name == "tl_default":
            return np.zeros_like(own)
        if role == "b_U" and self._outputs_centred:
            return own - own.mean()
        return own

    @property
    def _outputs_centred(self) -> bool:
        """Whether a constant is taken off all logits: invisible to softmax, but not behind a soft-cap."""
        softcapped = any(o.softcap for o in self.base.spec.outputs)
        return self.frame.name in ("gauge_fixed", "tl_default") and not softcapped

    def _write(self, array: np.ndarray) -> np.ndarray:
        if not writes_centred(self.base.spec, self.frame):
            return array
        wide = array if array.size > LARGE else array.astype(np.float64)
        return wide - wide.mean(axis=-1, keepdims=True, dtype=np.float64).astype(wide.dtype)

    def _value_biases(self, layer: int) -> np.ndarray:
        """b_O + Σ_h b_V[h] W_O[h]: attention rows sum to one, so a value bias is a constant of the output."""
        at = f"L{layer}."
        attn = self.base.spec.blocks[layer].attn
        own = self.base[at + "b_O"].astype(np.float64) if at + "b_O" in self.base else np.zeros(self.spec.d_model)
        if attn is None:
            return own
        bias = self._folded_value_bias(layer)
        if bias is None:
            return own
        group = [attn.kv_of(h) for h in range(attn.n_heads)]
        return own + np.einsum("he,hed->d", bias[group], self.base[at + "W_O"].astype(np.float64))

    def _folded_value_bias(self, layer: int) -> np.ndarray | None:
        plain = dataclasses.replace(self, frame=Frame("folded"))
        name = f"L{layer}.b_V"
        return plain[name] if name in plain else None

    def _moves_b_in(self, name: str) -> bool:
        layer, _ = split_name(name)
        mlp = self.base.spec.blocks[layer or 0].mlp
        return bool(mlp and mlp.bias_after_gate)

    def _after_gate(self, layer: int) -> np.ndarray:
        """b_out, plus b_in W_out where b_in was added after the gate (it is a constant of the output)."""
        at = f"L{layer}."
        own = self.base[at + "b_out"].astype(np.float64) if at + "b_out" in self.base else np.zeros(self.spec.d_model)
        if self._moves_b_in(at + "b_in") and at + "b_in" in self.base:
            own = own + self.base[at + "b_in"].astype(np.float64) @ self.base[at + "W_out"].astype(np.float64)
        return own


def folded_norms(spec: ModelSpec) -> tuple[str, ...]:
    """Prefixes of the norms whose gain and bias move into their readers."""
    found = [f"L{i}.{s.name}_norm" for i, b in enumerate(spec.blocks) for s in b.sublayers if s.reads]
    found += ["final_norm"] if spec.final_norm else []
    return (*found, *(f"out.{o.name}.norm" for o in spec.outputs if o.transform_norm))


def reader_norm(spec: ModelSpec, name: str) -> str | None:
    """Prefix of the norm that this tensor reads through, or None for a tensor that reads the bare stream or none."""
    layer, role = split_name(name)
    if layer is not None:
        part = "attn" if role[2:] in ("Q", "K", "V") else "mlp" if role[2:] in ("in", "gate") else ""
        sub: Sublayer | None = spec.blocks[layer].sublayer(part) if part else None
        return f"L{layer}.{part}_norm" if sub and sub.reads else None
    for out in spec.outputs:
        own = ("W_U", "b_U") if out.name == "token" else (f"out.{out.name}.W", f"out.{out.name}.b")
        inner = (f"out.{out.name}.transform.W", f"out.{out.name}.transform.b")
        if name in own:
            return f"out.{out.name}.norm" if out.transform_norm else "final_norm" if spec.final_norm else None
        if name in inner:
            return "final_norm" if spec.final_norm else None
    return None


def _new_biases(base: Weights, chosen: Frame) -> list[str]:
    """Biases that a framed model has although its checkpoint may have none."""
    made = []
    for i, block in enumerate(base.spec.blocks):
        for sub in block.sublayers:
            shifted = bool(sub.reads) and f"L{i}.{sub.name}_norm.bias" in base
            if isinstance(sub.part, Attention):
                made += [f"L{i}.{r}" for r in ("b_Q", "b_K", "b_V")] if shifted else []
                made += [f"L{i}.b_O"] if chosen.name == "tl_default" and (shifted or f"L{i}.b_V" in base) else []
            elif isinstance(sub.part, MLP):
                made += [f"L{i}.{r}" for r in ("b_in", *["b_gate"] * sub.part.gated)] if shifted else []
                made += [f"L{i}.b_out"] if sub.part.bias_after_gate and f"L{i}.b_in" in base else []
    for out in base.spec.outputs:
        own, inner = output_bias(out.name), f"out.{out.name}.transform.b"
        made += [inner if out.transform else own] if "final_norm.bias" in base else []
        made += [own] if f"out.{out.name}.norm.bias" in base else []
    return made


def _matrix_of(bias: str) -> str:
    """The matrix that a bias stands beside: ``L3.b_Q`` → ``L3.W_Q``, ``out.action.b`` → ``out.action.W``."""
    if bias.endswith(".b"):
        return bias.removesuffix(".b") + ".W"
    lead, dot, role = bias.rpartition(".")
    return lead + dot + "W_" + role.removeprefix("b_")


def rounding_norm(weights: Weights, name: str, head: int | None = None) -> float | None:
    """Frobenius norm that the rounding of a stored tensor is relative to, where a frame has rewritten it; else None.

    Rounding happened to the stored entries, before means were subtracted; where a gain was folded its own rounding
    adds, so an entry of the product is off by up to two unit roundoffs of its size.
    """
    weights = weights.of if isinstance(weights, Held) else weights
    if not isinstance(weights, FramedWeights):
        return None
    stored = weights.base[name] if head is None else weights.base[name][head]
    norm = reader_norm(weights.base.spec, name)
    gain = _gain(weights.base, norm) if norm else None
    size = float(np.linalg.norm(stored if gain is None else stored * gain[:, None].astype(stored.dtype)))
    return size if gain is None else 2 * size


def _gain(weights: Weights, norm: str) -> np.ndarray | None:
    return weights[f"{norm}.gain"].astype(np.float64) if f"{norm}.gain" in weights else None


def _scaled(array: np.ndarray, gain: np.ndarray | None) -> np.ndarray:
    """diag(γ) W on the second axis from the right; float64 unless the table is very large."""
    wide = array if array.size > LARGE else array.astype(np.float64)
    return wide if gain is None else wide * gain[:, None].astype(wide.dtype)


def _bias_shape(matrix: np.ndarray) -> tuple[int, ...]:
    return (*matrix.shape[:-2], matrix.shape[-1])
