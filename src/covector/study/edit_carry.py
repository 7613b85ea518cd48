"""From a frame to the stored weights: the low-rank changes and bias changes that make the framed model the edited one.

A folded reader is G W with G = C diag(γ) (RMSNorm: diag(γ)). A change from its left by I + BᵀA in the frame is
ΔW = γ⁻¹ ⊙ (CB)ᵀ (A G W) on the stored matrix; what folding adds to its bias, β W, would change along with it, so the
bias takes −β ΔW. Writers are stored as the frame has them, or centred, which no reader sees.

Source: `docs/theory/edits.md`, equations 6 and 7.
"""

import numpy as np

from covector.errors import BadRequest
from covector.model.frames import reader_norm, reads_centred, writes_centred
from covector.model.opened import Model
from covector.model.overlay import Change, Shift, Update
from covector.model.spec import MLP
from covector.model.weights import Weights, split_name
from covector.study.edit_operators import Operator, composed
from covector.study.edit_sides import LEFT, RIGHT, Target

# Gains below this share of their median make the stored change of a folded read direction enormous: refused.
SMALL_GAIN = 1e-4
NOTHING = 1e-12


def carried(model: Model, laid: list[tuple[Target, Operator]]) -> Change:
    """The change of stored tensors that lays these operators on the model's matrices in its frame. Exact in float64.

    Raises BadRequest where γ is too small to carry a direction through, or a bias that must change is not there.
    """
    change = Change()
    for tensor, head in dict.fromkeys((at.tensor, at.head) for at, _ in laid):
        here = [(at, op) for at, op in laid if (at.tensor, at.head) == (tensor, head) and op.writes.any()]
        left = [op for at, op in here if at.hand == LEFT]
        right = [op for at, op in here if at.hand == RIGHT]
        hands = {hand: all(at.stream for at, _ in here if at.hand == hand) for hand in (LEFT, RIGHT)}
        change += _one(model, tensor, head, left, right, hands)
    return change


def _one(
    model: Model, tensor: str, head: int | None, left: list[Operator], right: list[Operator], stream: dict[str, bool]
) -> Change:
    stored, framed = _matrix(model.stored, tensor, head), _matrix(model.weights, tensor, head)
    updates = []
    if right:
        operator = composed(right)
        reads = operator.reads
        if stream[RIGHT] and writes_centred(model.stored.spec, model.frame):
            # The frame's writers are M C, and M C Aᵀ = M (A C)ᵀ.
            reads = reads - reads.mean(axis=1, keepdims=True)
        updates.append(Update(tensor, stored @ reads.T, operator.writes, head))
        framed = framed + framed @ operator.reads.T @ operator.writes
    if left:
        operator = composed(left)
        writes = _through_gain(model, tensor, operator.writes) if stream[LEFT] else operator.writes
        updates.append(Update(tensor, writes.T, operator.reads @ framed, head))
    return Change(tuple(updates), _shifts(model, tensor, head, updates))


def _matrix(weights: Weights, tensor: str, head: int | None) -> np.ndarray:
    array = weights["W_E"].T if tensor == "W_U" and tensor not in weights and weights.spec.tied else weights[tensor]
    return (array if head is None else array[head]).astype(np.float64)


def _through_gain(model: Model, tensor: str, writes: np.ndarray) -> np.ndarray:
    """Rows of the folded side as the stored matrix must hold them: centred where its norm centres, over γ."""
    norm = reader_norm(model.stored.spec, tensor)
    if model.frame.name == "raw" or norm is None:
        return writes
    if reads_centred(model.stored.spec, model.frame, tensor):
        writes = writes - writes.mean(axis=1, keepdims=True)
    if f"{norm}.gain" not in model.stored:
        return writes
    gain = model.stored[f"{norm}.gain"].astype(np.float64)
    smallest, median = float(np.abs(gain).min()), float(np.median(np.abs(gain)))
    if smallest < SMALL_GAIN * median:
        raise BadRequest(
            f"edit of {tensor} on the side that reads, in frame {model.frame}: expected gains γ of {norm} that can be "
            f"divided by, the smallest is {smallest:.2g} (median {median:.2g}); use --frame raw or the side that writes"
        )
    return writes / gain


def _shifts(model: Model, tensor: str, head: int | None, updates: list[Update]) -> tuple[Shift, ...]:
    """What biases must take so that those of the framed model stay as they were."""
    if model.frame.name == "raw" or not updates:
        return ()
    layer, role = split_name(tensor)
    spec, norm = model.stored.spec, reader_norm(model.stored.spec, tensor)
    if norm is not None and f"{norm}.bias" in model.stored:
        bias = tensor.replace("W_", "b_") if "W_" in tensor else tensor.removesuffix(".W") + ".b"
        rows = model.stored[f"{norm}.bias"].astype(np.float64)
        values = -sum(rows @ u.left @ u.right for u in updates)
        mlp = spec.blocks[layer].mlp if layer is not None and role == "W_in" else None
        if isinstance(mlp, MLP) and mlp.bias_after_gate and np.abs(values).max() >= NOTHING:
            raise BadRequest(
                f"edit of {tensor} in frame {model.frame}: expected a bias in front of the gate to take what the "
                f"change does to the norm's bias β, {bias} of {model.name} stands behind it; use --frame raw"
            )
        return _shift(model, bias, head, values, "norm's bias β")
    if role == "W_O" and model.frame.name == "tl_default" and layer is not None and head is not None:
        attn = spec.blocks[layer].attn
        value = model.framed("folded").weights if attn else None
        if attn and value is not None and f"L{layer}.b_V" in value:
            rows = value[f"L{layer}.b_V"][attn.kv_of(head)].astype(np.float64)
            moved = -sum(rows @ u.left @ u.right for u in updates)
            return _shift(model, f"L{layer}.b_O", None, moved, "value bias, which this frame has moved to b_O")
    if role == "W_out" and layer is not None:
        part = spec.blocks[layer].mlp
        if isinstance(part, MLP) and part.bias_after_gate and f"L{layer}.b_in" in model.stored:
            rows = model.stored[f"L{layer}.b_in"].astype(np.float64)
            moved = -sum(rows @ u.left @ u.right for u in updates)
            return _shift(model, f"L{layer}.b_out", None, moved, "bias behind the gate, which this frame has moved")
    return ()


def _shift(model: Model, bias: str, head: int | None, values: object, why: str) -> tuple[Shift, ...]:
    moved = np.asarray(values, dtype=np.float64)
    if not moved.any() or float(np.abs(moved).max()) < NOTHING:
        return ()
    if bias not in model.stored:
        raise BadRequest(
            f"edit in frame {model.frame}: expected a tensor {bias} to take what the change does to the {why}, "
            f"{model.name} has none; use --frame raw"
        )
    return (Shift(bias, moved, head),)


def shifts_of(model: Model, update: Update) -> tuple[Shift, ...]:
    """What biases must take when `update` is laid on the stored weights, so that those of the framed model stay.

    Linear in the update. Raises BadRequest where the bias is not there.
    """
    return _shifts(model, update.tensor, update.head, [update])
