"""Bases: labelled directions of the residual stream that a direction is read against.

``token_in`` is what tokens put into the stream (rows of W_E), ``token_out`` what the output reads out of it (columns
of W_U); agents have ``state_in``, ``action_out`` and so on, positions ``position_in``. Variants are typed after a
colon: ``token_in:pinv`` (dual vectors), ``token_in:ridge=0.1``, ``token_out:whitened``.

Source: `docs/theory/bases.md`, equations 1–7.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from covector.axes import Bool, Float
from covector.errors import BadRequest, FrameUnavailable, UnknownBasis
from covector.linalg.dictionary import Dictionary, dictionary
from covector.linalg.norms import lengths, normalised, without_mean
from covector.model.activations import activation
from covector.model.spec import ModelSpec, input_weight, output_weight
from covector.model.weights import Weights

# Bytes that no UTF-8 text holds, as vocabularies label them.
NEVER_TEXT = frozenset(f"<0x{b:02X}>" for b in (0xC0, 0xC1, *range(0xF5, 0x100)))
# On a model of 512 tokens of which 287 never occur in 500 stories, untrained vectors lie within .06 median lengths of
# each other and trained ones beyond .3; a tenth parts them.
NEAR = 0.1
# Without a reference only extreme shortness tells; lengths of trained vectors spread by less than a factor of two.
SHORT = 0.25
# A vector this much shorter than the longest has no direction worth the name: weight decay leaves such rows (of about
# 1e-37 in an agent whose states never light some cells), and they are zero to every float32 sum with the others.
NEARLY_ZERO = 1e-12
FILTERS = ("ascii", "trained")
# Variants that a model keeps made: each is as large as its vocabulary in float64, and a loop over λ makes many.
KEPT_VARIANTS = 4

Made = TypeVar("Made")


@dataclass(frozen=True)
class Basis:
    """Labelled vectors [n, d_model] in the residual stream, one row per label.

    ``side`` says whether they write into the stream (``in``) or read it (``out``). ``metric`` [d_model, d_model], if
    there is one, is applied to directions before they are compared with ``vectors`` (it is in the vectors already).
    ``tensors`` are the canonical tensors that the vectors come from; ``same_as`` is another basis with the same vectors
    (tied embeddings), whose lengths need not be computed again.
    """

    name: str
    side: str
    labels: tuple[str, ...]
    load: Callable[[], np.ndarray] = field(repr=False)
    metric: np.ndarray | None = field(default=None, repr=False)
    tensors: tuple[str, ...] = ()
    same_as: "Basis | None" = field(default=None, repr=False)

    def __len__(self) -> int:
        """Number of labels."""
        return len(self.labels)

    @cached_property
    def vectors(self) -> Float[np.ndarray, "token d_model"]:
        """The vectors, read on first use; read-only."""
        if self.same_as is not None:
            return self.same_as.vectors  # a widened copy of a vocabulary is not made twice
        array = self.load()
        array.flags.writeable = False
        return array

    @cached_property
    def norms(self) -> Float[np.ndarray, " token"]:
        """Euclidean length of every vector, float64."""
        if self.same_as is not None:
            return self.same_as.norms
        return lengths(self.vectors)

    @cached_property
    def usable(self) -> Bool[np.ndarray, " token"]:
        """Which vectors have a direction: finite, not (nearly) zero. The others are left out, their count is said."""
        finite = np.isfinite(self.norms)
        longest = self.norms[finite].max(initial=0.0)
        return finite & (self.norms > NEARLY_ZERO * longest)

    def unit(self) -> Float[np.ndarray, "token d_model"]:
        """The vectors at length one (rows of unusable ones are zero); float32 unless the weights are float64."""
        scale = np.divide(1.0, self.norms, out=np.zeros_like(self.norms), where=self.usable)
        return self.vectors * scale[:, None].astype(self.vectors.dtype)

    def index(self, label: str) -> int:
        """Row of `label`. Raises UnknownBasis when no row, or more than one, carries it."""
        rows = [i for i, text in enumerate(self.labels) if text == label]
        if len(rows) != 1:
            raise UnknownBasis(f"basis {self.name}: expected one row labelled '{label}', found {len(rows)}")
        return rows[0]


class _Kept(Generic[Made]):
    """What was made of bases, plain or centred: of plain names all, of variants those that were asked for last."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, bool], Made] = {}

    def get(self, name: str, centred: bool, make: Callable[[], Made]) -> Made:
        """What is kept under a name, else what `make` makes. Threads may ask; two at once may both make it."""
        key = name, centred
        found = self._of.pop(key, None) if ":" in name else self._of.get(key)
        self._of[key] = found = make() if found is None else found  # now the youngest
        for old in [other for other in list(self._of) if ":" in other[0]][:-KEPT_VARIANTS]:
            self._of.pop(old, None)
        return found


class Bases(Mapping[str, Basis]):
    """The bases of one model, by name; variants (``token_in:pinv``) are made when they are asked for."""

    def __init__(self, weights: Weights, labels: Mapping[str, tuple[str, ...]]) -> None:
        self.weights, self.spec, self.labels = weights, weights.spec, labels
        self._made, self._judged = _Kept[Basis](), _Kept[Dictionary]()
        self._numbered: dict[tuple[str, int, int], tuple[str, ...]] = {}

    def __getitem__(self, name: str) -> Basis:
        """The basis; raises UnknownBasis, listing the names, when there is none (a Mapping's `in` asks politely)."""
        return self._made.get(name, False, lambda: self._make(name))

    def __contains__(self, name: object) -> bool:
        """Whether a basis of that plain name exists."""
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        """Plain names, inputs first."""
        return iter(self.names)

    def __len__(self) -> int:
        """Number of plain bases."""
        return len(self.names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Plain names, inputs first."""
        assembly = self.spec.assembly
        inputs = [i.name for i in (*assembly.inputs, *((assembly.time,) if assembly.time else ()))]
        found = [f"{name}_in" for name in inputs]
        found += ["position_in"] if assembly.positions == "learned" else []
        found += ["token_in_mlp0"] if "token" in inputs and _mlp0_is_ready(self.spec) else []
        return (*found, *(f"{o.name}_out" for o in self.spec.outputs))

    def default(self, side: str) -> str:
        """What a direction is read against unless asked otherwise: reads against inputs, writes against outputs."""
        wanted = "token" if self.spec.input("token") or self.spec.output("token") else None
        if side == "read":
            first = self.spec.assembly.inputs[0].name if self.spec.assembly.inputs else None
            label = "token" if wanted and self.spec.input("token") else _preferred(self, "state_in") or first
            return label if label and label.endswith("_in") else f"{label}_in"
        label = "token" if wanted and self.spec.output("token") else "action" if "action_out" in self else None
        return f"{label or self.spec.outputs[0].name}_out"

    def centred(self, name: str) -> Basis:
        """The basis for directions that have no part along 1: vectors lose theirs first, then the variant is made."""
        return self._made.get(name, True, lambda: self._make(name, centred=True))

    def dictionary(self, name: str, centred: bool = False) -> Dictionary:
        """The basis as lists of labels are drawn from it and judged: labels that look hardly trained left out."""
        twin = self[name].same_as
        name = twin.name if twin is not None else name

        def made() -> Dictionary:
            basis, plain = self.centred(name) if centred else self[name], self[name]
            return dictionary(basis.vectors, keep=basis.usable & ~undertrained(plain))

        return self._judged.get(name, centred, made)

    def _make(self, name: str, centred: bool = False) -> Basis:
        plain, _, variant = name.partition(":")
        if plain not in self:
            raise UnknownBasis(
                f"expected a basis of {self.spec.family} ({', '.join(self)}, with :centred, :pinv, :ridge=λ or "
                f":whitened), got '{name}'"
            )
        basis = self._plain(plain)
        if centred:
            whole = basis
            basis = dataclasses.replace(basis, same_as=None, load=lambda: without_mean(whole.vectors))
        return basis if not variant else _variant(basis, name, variant)

    def _plain(self, name: str) -> Basis:
        weights = self.weights
        if name == "position_in":
            rows = weights["W_pos"]
            first = self.spec.assembly.position_offset
            labels = tuple(f"position {i - first}" if i >= first else f"padding {i}" for i in range(len(rows)))
            return Basis(name, "in", labels, lambda: rows.view(), tensors=("W_pos",))
        if name == "token_in_mlp0":
            used = ("W_E", "L0.W_in", "L0.W_gate", "L0.W_out")
            return Basis(name, "in", self._labels(name, self.spec.n_vocab), lambda: _after_mlp0(weights), tensors=used)
        label, side = name.rsplit("_", 1)
        if side == "in":
            source = self.spec.input(label)
            size = source.n if source else 0
            table = input_weight(label)
            return Basis(name, "in", self._labels(name, size), lambda: weights[table].view(), tensors=(table,))
        out = self.spec.output(label)
        size = out.n if out else 0
        matrix = output_weight(label)
        twin = self["token_in"] if label == "token" and self.spec.tied else None
        return Basis(name, "out", self._labels(name, size), lambda: weights[matrix].T, tensors=(matrix,), same_as=twin)

    def _labels(self, name: str, size: int) -> tuple[str, ...]:
        """Labels given for this basis, else for its kind (``token``), else numbers."""
        label = name.split("_")[0]
        given = self.labels.get(label, ())[:size]
        given = tuple(self.labels.get(name, given))[:size]
        if len(given) == size:
            return given
        key = (label, len(given), size)
        if key not in self._numbered:
            self._numbered[key] = tuple([f"{label} {i}" for i in range(len(given), size)])
        return given + self._numbered[key]


def _preferred(bases: Bases, name: str) -> str | None:
    return name if name in bases else None


def _variant(basis: Basis, name: str, variant: str) -> Basis:
    """`basis` in another metric. λ of ``ridge`` is in units of the mean squared singular value of the vectors."""
    key, _, value = variant.partition("=")
    try:
        weight = float(value) if value else 0.0
    except ValueError:
        weight = -1.0
    if key not in ("centred", "pinv", "ridge", "whitened") or weight < 0 or (key == "ridge") != bool(value):
        raise UnknownBasis(f"expected {basis.name}:centred, :pinv, :ridge=λ (λ ≥ 0) or :whitened, got '{name}'")
    if key == "centred":
        return dataclasses.replace(basis, name=name, same_as=None, load=lambda: _centred(basis))
    if key == "whitened":
        metric = inverse_root(basis.vectors[basis.usable])
        return dataclasses.replace(basis, name=name, same_as=None, load=lambda: _centred(basis) @ metric, metric=metric)
    return dataclasses.replace(basis, name=name, same_as=None, load=lambda: _dual(basis, weight))


def _dual(basis: Basis, ridge: float) -> np.ndarray:
    """Dual vectors of the usable rows; the others stay zero."""
    made = np.zeros(basis.vectors.shape)
    made[basis.usable] = dual(basis.vectors[basis.usable], ridge)
    return made


def _centred(basis: Basis) -> np.ndarray:
    """Vectors relative to the mean of the usable ones; unusable rows stay zero."""
    made = np.zeros(basis.vectors.shape)
    kept = basis.vectors[basis.usable].astype(np.float64)
    made[basis.usable] = kept - kept.mean(axis=0)
    return made


def dual(vectors: Float[np.ndarray, "token d_model"], ridge: float) -> Float[np.ndarray, "token d_model"]:
    """Dual vectors E (EᵀE + λI)⁻¹: rows that pick one label's coefficient instead of its overlap.

    λ = ridge · mean eigenvalue of EᵀE. ridge 0 is the pseudo-inverse (exact where EᵀE is regular, else on its range);
    ridge → ∞ is the transpose up to scale. Float64. Source: theory, §1.6.
    """
    wide = vectors.astype(np.float64)
    values, axes = np.linalg.eigh(wide.T @ wide)
    shrunk = values + ridge * values.mean()
    keep = shrunk > values[-1] * len(values) * 2.0**-52
    inverse = np.divide(1.0, shrunk, out=np.zeros_like(shrunk), where=keep)
    return (wide @ axes * inverse) @ axes.T


def inverse_root(vectors: Float[np.ndarray, "token d_model"]) -> Float[np.ndarray, "d_model d_model"]:
    """Σ^(−½) of the centred vectors, symmetric (ZCA), on the range of Σ; float64."""
    wide = vectors.astype(np.float64)
    wide = wide - wide.mean(axis=0)
    values, axes = np.linalg.eigh(wide.T @ wide / len(wide))
    keep = values > values[-1] * len(values) * 2.0**-52
    root = np.divide(1.0, np.sqrt(np.abs(values)), out=np.zeros_like(values), where=keep)
    return (axes * root) @ axes.T


def left(basis: Basis, plain: Basis, without: tuple[str, ...]) -> Bool[np.ndarray, " token"]:
    """Rows that the filters leave: ``ascii`` keeps ASCII labels only, ``trained`` drops rows that look hardly trained.

    `plain` is the basis that `basis` is a variant of (or itself). Raises BadRequest for an unknown filter.
    """
    unknown = [f for f in without if f not in FILTERS]
    if unknown:
        raise BadRequest(f"expected filters among {', '.join(FILTERS)}, got '{unknown[0]}'")
    keep = np.ones(len(basis), dtype=bool)
    if "ascii" in without:
        keep &= np.fromiter((label.isascii() for label in basis.labels), bool, len(basis))
    return keep & ~undertrained(plain) if "trained" in without else keep


def undertrained(basis: Basis) -> Bool[np.ndarray, " token"]:
    """Which labels look as if they were hardly trained. A hint, not a verdict.

    No text holds the bytes C0, C1 and F5–FF (they are not UTF-8), so where a vocabulary has them their vectors show
    what the others become without training: labels as near to their mean as twice the farthest of them, or a tenth
    of the median length, are flagged. Without such bytes: vectors shorter than a quarter of the median, which is what
    weight decay leaves of rows that nothing trains. Source: `docs/theory/bases.md`, equation 6; after Land and Bartolo,
    "Fishing for Magikarp" (2024), who take unused tokens as the reference.
    """
    median = float(np.median(basis.norms[basis.usable])) if basis.usable.any() else 0.0
    known = [i for i, label in enumerate(basis.labels) if label in NEVER_TEXT]
    if not known:
        return basis.norms < SHORT * median
    never = basis.vectors[known].mean(axis=0, dtype=np.float64)
    # ‖e − u‖² = ‖e‖² − 2 e·u + ‖u‖²: one product instead of a shifted copy of the vocabulary.
    squares = basis.norms**2 - 2 * (basis.vectors @ never.astype(basis.vectors.dtype)) + never @ never
    distance = np.sqrt(np.maximum(squares, 0.0))
    return distance <= max(2 * distance[known].max(), NEAR * median)


def _mlp0_is_ready(spec: ModelSpec) -> bool:
    """Whether block 0 has an MLP that can be applied to an embedding by itself (a pre-norm reader)."""
    sub = spec.blocks[0].sublayer("mlp") if spec.blocks else None
    return bool(sub and not sub.after and spec.assembly.norm is None)


def _after_mlp0(weights: Weights) -> Float[np.ndarray, "token d_model"]:
    """Effective embedding W_E + MLP₀(norm(W_E)): what a token is once the first MLP has seen it, attention left out.

    Source: MAPS and the effective embedding of the theory page, §1.6.
    """
    spec = weights.spec
    sub = spec.blocks[0].sublayer("mlp")
    frame = getattr(weights, "frame", None)
    if sub is None or (frame is not None and not frame.preserving):
        raise FrameUnavailable(f"token_in_mlp0 runs the first MLP, which {frame or 'this model'} has not; use token_in")
    token = spec.input("token")
    stream = weights["W_E"].astype(np.float64) * (token.scale if token else 1.0)
    read = stream
    if sub.reads:
        read = _affine(normalised(stream, sub.reads.kind == "layer", sub.reads.eps), weights, "L0.mlp_norm")
    pre = read @ weights["L0.W_in"]
    part = spec.blocks[0].mlp
    b_in = weights["L0.b_in"] if "L0.b_in" in weights else 0.0
    if part is not None and part.gated:
        gate = read @ weights["L0.W_gate"] + (weights["L0.b_gate"] if "L0.b_gate" in weights else 0.0)
        act = activation(part.activation)(gate)
        post = act * pre + b_in if part.bias_after_gate else act * (pre + b_in)
    else:
        post = activation(part.activation if part else "relu")(pre + b_in)
    out = post @ weights["L0.W_out"] + (weights["L0.b_out"] if "L0.b_out" in weights else 0.0)
    if sub.post:
        out = _affine(normalised(out, sub.post.kind == "layer", sub.post.eps), weights, "L0.mlp_post")
    return stream + sub.scale * out


def _affine(rows: np.ndarray, weights: Weights, norm: str) -> np.ndarray:
    scaled = rows * weights[f"{norm}.gain"] if f"{norm}.gain" in weights else rows
    return scaled + weights[f"{norm}.bias"] if f"{norm}.bias" in weights else scaled
