"""Paths as they are typed: ``L6H6:2>L13H11.q>L18.mlp>out``, from the earliest component to the output.

A head's step is read through its values unless ``.q`` or ``.k`` says otherwise; ``:2`` is one dyad of its OV (or, for
q and k, of its QK); ``@NAME`` is the position at which the component is read, a slot of the prompts. ``embed`` in front
ends a path at the embeddings. ``>out`` may be left out.
"""

import re
from dataclasses import dataclass

from covector.errors import BadRequest, BadSite
from covector.model.spec import ModelSpec

_HEAD = re.compile(r"L(\d+)H(\d+)(?:\.([vqk]))?(?::(\d+))?(?:@(\S+))?", re.IGNORECASE)
_OLD = re.compile(r"(\d+)\.(\d+)")
_MLP = re.compile(r"L(\d+)\.mlp(?:@(\S+))?", re.IGNORECASE)
_END = re.compile(r"(embed|out)(?:@(\S+))?", re.IGNORECASE)
# How an attention can be entered.
EDGES = ("v", "q", "k")


@dataclass(frozen=True)
class Step:
    """One component on a path. `kind`: v, q or k for a head, ``mlp``, or ``embed``; `slot`: where it is read."""

    kind: str
    layer: int = -1
    head: int | None = None
    dyad: int | None = None
    slot: str | None = None

    def __str__(self) -> str:
        at = "" if self.slot is None else f"@{self.slot}"
        if self.kind == "embed":
            return f"embed{at}"
        if self.kind == "mlp":
            return f"L{self.layer}.mlp{at}"
        edge = "" if self.kind == "v" else f".{self.kind}"
        return f"L{self.layer}H{self.head}{edge}{'' if self.dyad is None else f':{self.dyad}'}{at}"

    @property
    def sublayer(self) -> str:
        """``attn``, ``mlp`` or ``embed``."""
        return self.kind if self.kind in ("mlp", "embed") else "attn"


@dataclass(frozen=True)
class Path:
    """Steps from the earliest component to the last; none: the output alone."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return ">".join([*map(str, self.steps), "out"])

    def before(self, step: Step) -> "Path":
        """The path that goes through `step` first."""
        return Path((step, *self.steps))


def parse_path(text: str, spec: ModelSpec) -> Path:
    """The path that a text names in a model.

    Raises BadRequest where it cannot be read, BadSite for a component that the model lacks or that cannot feed the next
    one: steps go forwards through the layers, and within a sequential block in the order of its sublayers.
    """
    parts = [part.strip() for part in text.split(">")]
    if parts and parts[-1].lower() == "out":
        parts = parts[:-1]
    path = Path(tuple(_step(part, text) for part in parts if part))
    _check(path, spec)
    return path


def _step(part: str, text: str) -> Step:
    old = _OLD.fullmatch(part)
    part = f"L{old[1]}H{old[2]}" if old else part
    if found := _HEAD.fullmatch(part):
        dyad = None if found[4] is None else int(found[4])
        return Step((found[3] or "v").lower(), int(found[1]), int(found[2]), dyad, found[5])
    if found := _MLP.fullmatch(part):
        return Step("mlp", int(found[1]), slot=found[2])
    if (found := _END.fullmatch(part)) and found[1].lower() == "embed":
        return Step("embed", slot=found[2])
    raise BadRequest(
        f"expected steps such as L6H6:2, L13H11.q, L18.mlp or embed, with > between, got '{part}' in '{text}'"
    )


def _check(path: Path, spec: ModelSpec) -> None:
    for i, step in enumerate(path.steps):
        if step.kind == "embed":
            if i:
                raise BadSite(f"{path}: expected embed at the beginning of a path, it stands after {path.steps[i - 1]}")
            continue
        _exists(step, spec)
        if i and path.steps[i - 1].kind != "embed" and not _feeds(path.steps[i - 1], step, spec):
            raise BadSite(
                f"{path}: expected each step to come before the next, {path.steps[i - 1]} does not feed {step}; "
                "write the earliest first"
            )


def _exists(step: Step, spec: ModelSpec) -> None:
    if not 0 <= step.layer < spec.n_layers:
        raise BadSite(f"{step} is outside the model: layers run 0–{spec.n_layers - 1}")
    block = spec.blocks[step.layer]
    if step.kind == "mlp":
        if block.mlp is None:
            raise BadSite(f"{step}: block {step.layer} has no MLP")
        return
    heads = block.attn.n_heads if block.attn else 0
    if step.head is None or step.head >= heads:
        raise BadSite(f"{step} is outside the model: block {step.layer} has {heads} heads (from 0)")
    size = min(block.attn.d_head if block.attn else 0, spec.d_model)
    if step.dyad is not None and step.dyad >= size:
        raise BadSite(f"{step}: a head's map has {size} dyads (from 0)")


def _feeds(first: Step, second: Step, spec: ModelSpec) -> bool:
    if first.layer != second.layer:
        return first.layer < second.layer
    order = [sub.name for sub in spec.blocks[first.layer].sublayers]
    sequential = not spec.blocks[first.layer].parallel
    return sequential and order.index(first.sublayer) < order.index(second.sublayer)
