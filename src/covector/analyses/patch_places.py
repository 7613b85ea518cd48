"""Where a patch can be laid, and what is put there: heads, streams, sublayers, queries … of another run."""

from collections.abc import Mapping, Sequence

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.model.spec import ModelSpec
from covector.run.prompts import Batch, Pair
from covector.run.sweep import Place
from covector.study.path import parse_path

ROLES = {"heads": "z", "ov": "z", "qk": "z", "resid": "resid_pre", "attn": "attn_out", "mlp": "mlp_out"}


def every_slot(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Names of all positions, in the order in which they stand in the longest prompt first."""
    longest = max(pairs, key=len)
    names = [longest.slot_of(t) for t in range(len(longest))]
    return tuple(dict.fromkeys([*names, *(p.slot_of(t) for p in pairs for t in range(len(p)))]))


def mask_of(batch: Batch, slot: str, *, named: bool = True) -> Float[np.ndarray, "batch position"]:
    """1 where a position goes by this name (nowhere in a prompt that lacks it); else where the slot points, in each."""
    if named:
        return np.array([[float(pair.slot_of(t) == slot) for t in range(len(pair))] for pair in batch.pairs])
    return np.array([[float(t == pair.position(slot)) for t in range(len(pair))] for pair in batch.pairs])


def places_of(spec: ModelSpec, what: str, slots: Sequence[str] = ()) -> list[Place]:
    """Every place of a kind, layer by layer; one per slot where slots are given. BadRequest where there is none."""
    role, found = ROLES.get(what, what), list[Place]()
    for layer, block in enumerate(spec.blocks):
        attn = block.attn
        if role in ("z", "q", "pattern"):
            heads: Sequence[int | None] = range(attn.n_heads) if attn else ()
        elif role in ("k", "v"):
            heads = range(attn.n_kv_heads) if attn else ()
        else:
            has = role == "resid_pre" or (block.mlp if role == "mlp_out" else attn) is not None
            heads = (None,) if has else ()
        found += [Place(layer, role, head, slot) for head in heads for slot in (slots or (None,))]
    if not found:
        raise BadRequest(f"this model has no {what} to patch")
    return found


def receiver(text: str, spec: ModelSpec) -> Place:
    """A component that sees a change: a head or an MLP. Raises BadRequest, BadSite."""
    step = parse_path(text, spec).steps
    if len(step) != 1 or step[0].kind not in ("v", "mlp") or step[0].dyad is not None or step[0].slot:
        raise BadRequest(f"--to: expected a head (L9H6) or an MLP (L8.mlp), got '{text}'")
    return Place(step[0].layer, "mlp_post" if step[0].kind == "mlp" else "z", step[0].head)


def put_in(
    spec: ModelSpec, what: str, source: str, base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], seed: int
) -> Mapping[str, np.ndarray]:
    """What is put in at every hook: the source's activations; of ov and qk, half of them.

    Raises BadRequest where a mean or a donor needs more pairs.
    """
    new = _source(source, base, other, seed)
    return {**new, **_halves(spec, base, new, what)} if what in ("ov", "qk") else new


def _halves(
    spec: ModelSpec, base: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray], what: str
) -> dict[str, np.ndarray]:
    """z of every head with its values (ov) or its pattern (qk) from the other run, and the rest its own."""
    found = {}
    for layer, block in enumerate(spec.blocks):
        if block.attn:
            group = [block.attn.kv_of(h) for h in range(block.attn.n_heads)]
            pattern, value = (base, new) if what == "ov" else (new, base)
            A, v = pattern[f"L{layer}.pattern"], value[f"L{layer}.v"][:, :, group]
            found[f"L{layer}.z"] = np.einsum("bhts,bshk->bthk", A, v, optimize=True)
    return found


def _source(
    source: str, base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], seed: int
) -> Mapping[str, np.ndarray]:
    """Where the activations come from."""
    if source == "corrupt":
        return other
    if source == "zero":
        return {name: np.zeros_like(x) for name, x in base.items()}
    n = len(base["resid_in"])
    if n < 2:
        raise BadRequest(f"--source {source}: expected at least two pairs of one length, got one; give more names")
    if source == "mean":  # of the other pairs: a prompt's own activations are no control for it
        both = {name: x + other[name] for name, x in base.items()}
        return {name: (x.sum(axis=0) - x) / (2 * (n - 1)) for name, x in both.items()}
    turn = 1 + int(np.random.default_rng(seed).integers(n - 1))
    return {name: np.roll(x, turn, axis=0) for name, x in base.items()}
