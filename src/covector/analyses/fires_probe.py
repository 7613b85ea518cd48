"""What is measured when a text runs: which hook point, and the rows that what passes there is projected on.

The row asked about comes first, random rows of the same space after it.

Source: `docs/theory/fires.md`, equations 1–2.
"""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRank, BadRequest, BadSite, FrameUnavailable
from covector.linalg.chance.streams import generator
from covector.linalg.svd import svd
from covector.model.address import Site
from covector.model.circuits import cautions
from covector.model.opened import Model
from covector.run.hooks import HOOKS, NEURONS, STREAM, hook_names, select

# Kinds of sites of a head, by the hook whose activations their sides multiply.
_READS_STREAM = ("ov", "qk", "q", "k", "v")
_WRITES_STREAM = ("ov", "o", "out")


@dataclass(frozen=True, eq=False)
class Probe:
    """What is measured: a hook, for z the head, rows to project on (the asked one first, then the random ones).

    `words` name it, `space` is what the random rows are drawn from, `sigma` the dyad's gain (NaN for a vector),
    `notes` are what the numbers cannot show.
    """

    hook: str
    head: int | None
    rows: Float[np.ndarray, "r d"]
    words: str
    space: str
    sigma: float = float("nan")
    notes: tuple[str, ...] = ()


def dyad_probe(model: Model, site: Site, dyad: int, side: str, draws: int, seed: int) -> Probe:
    """The probe of one side of a dyad (equations 1 and 2), beside random directions of what that side reads or writes.

    Raises BadRank for a dyad that is not there, BadSite for places that no text drives (embeddings), FrameUnavailable
    in a frame that does not run.
    """
    if model.frame.bias or not model.frame.preserving:
        raise FrameUnavailable(f"fires runs the model: expected a frame that keeps its function, got {model.frame}")
    at = ("read", "write").index(side) if site.kind != "qk" else ("query", "key").index(side)
    hook, head = _hook(site, at, side)
    found = svd(model.map(site))
    if not 0 <= dyad < found.rank:
        raise BadRank(f"{site}: expected a dyad 0 to {found.rank - 1}, got {dyad}")
    every = (found.U.T, found.Vh)[at]
    rows = np.concatenate([every[dyad][None], inside(every, draws, seed)])
    if at == 1 and site.kind in _WRITES_STREAM:
        rows = _written_by(model, site, rows)
    space = f"the {len(every)}-dimensional {side} space of {site}"
    notes = () if site.kind in _WRITES_STREAM and at == 0 else cautions(model.spec, site)
    return Probe(hook, head, rows, f"{site}:{dyad} {side}", space, float(found.S[dyad]), notes)


def vector_probe(model: Model, vector: np.ndarray, hook: str, draws: int, seed: int) -> Probe:
    """The probe of a vector, made a unit vector, at a hook point of the stream or of neurons, beside Haar directions.

    Raises BadRequest for a hook that is not there or has heads, FrameUnavailable in a frame that does not run.
    """
    if model.frame.bias or not model.frame.preserving:
        raise FrameUnavailable(f"fires runs the model: expected a frame that keeps its function, got {model.frame}")
    width = _width(model, hook)
    row = np.asarray(vector, dtype=np.float64)
    row = row[0] if row.ndim == 2 and len(row) == 1 else row
    if row.shape != (width,) or not np.isfinite(row).all() or not row.any():
        fits = row.shape == (width,)
        got = "numbers that are not finite" if fits and row.any() else "nothing but zeros" if fits else ""
        raise BadRequest(
            f"{hook}: expected one finite vector of width {width}, not all zeros, got {got or f'shape {row.shape}'}; "
            "check the file, or the hook"
        )
    rows = np.concatenate([row[None] / np.linalg.norm(row), inside(np.eye(width), draws, seed)])
    return Probe(hook, None, rows, f"vector at {hook}", f"all {width} dimensions of {hook}")


def inside(every: Float[np.ndarray, "n d"], draws: int, seed: int) -> Float[np.ndarray, "draws d"]:
    """Random unit directions, uniform in the span of orthonormal rows."""
    coefficients = generator(seed, "fires").standard_normal((draws, len(every)))
    return (coefficients / np.linalg.norm(coefficients, axis=1, keepdims=True)) @ every


def _hook(site: Site, at: int, side: str) -> tuple[str, int | None]:
    layer = f"L{site.layer}."
    if site.head is not None and (site.kind == "qk" or (site.kind in _READS_STREAM and at == 0)):
        return layer + "attn_normed", None
    if site.head is not None and site.kind in ("ov", "o"):
        return layer + "z", site.head
    if site.in_mlp and site.kind == "out":
        return layer + "mlp_post", None
    if site.in_mlp and at == 0:
        return layer + "mlp_normed", None
    if site.kind == "unembed" and at == 0:
        return "final_normed", None
    raise BadSite(
        f"{site}: expected a side that a text drives, got {side}; ask for ov, o or mlp.out (both sides), qk (query, "
        "key), or what q, k, v, mlp.in, mlp.gate and unembed read"
    )


def _written_by(model: Model, site: Site, rows: np.ndarray) -> np.ndarray:
    """Rows of the stream as rows of what is multiplied by W_O or W_out, so that activations · rows is what is added."""
    at = f"L{site.layer}."
    matrix = model.weights[at + "W_out"] if site.kind == "out" else model.weights[at + "W_O"][site.head]
    return rows @ matrix.astype(np.float64).T


def _width(model: Model, hook: str) -> int:
    select([hook], hook_names(model.spec))
    layer, _, role = hook.rpartition(".")
    axes = {h.name: h.axes for h in HOOKS}.get(role)
    if axes == STREAM and "*" not in hook:
        return model.spec.d_model
    mlp = model.spec.blocks[int(layer[1:])].mlp if axes == NEURONS and layer[1:].isdecimal() else None
    if mlp is None:
        raise BadRequest(
            f"{hook}: expected one hook point of the stream or of neurons, such as L0.resid_post, L0.mlp_post"
        )
    return mlp.d_mlp
