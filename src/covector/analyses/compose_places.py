"""Places that write into the residual stream and places that read it, in order: whose composition is asked for.

Under LayerNorm the direction 1 is invisible to readers; it is taken off both ends first, whatever the frame. Under
RMSNorm, or with no norm, it is part of the function and stays.

Source: `docs/theory/heads.md`, equations 14–18.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.analyses.each_head import without_bias
from covector.axes import Bool
from covector.errors import BadRequest
from covector.linalg.composition import End, read_end, written_end
from covector.model.address import Site
from covector.model.circuits import cautions, site_tensors
from covector.model.opened import Model
from covector.model.spec import Norm

WAYS = ("q", "k", "v")
# Where outputs read, beyond every block.
LAST = 10**6


@dataclass(frozen=True, eq=False)
class Place:
    """A writer or a reader: its name, the way in (readers), where in the forward pass it stands, and its end."""

    name: str
    way: str
    stage: int
    end: End


@dataclass(frozen=True, eq=False)
class Places:
    """Writers and readers of a model without biases, and which pairs of them are in order.

    `d` is the dimension between them, one less than the width where direction 1 is taken off (`centred`).
    """

    view: Model
    writers: list[Place]
    readers: list[Place]
    allowed: Bool[np.ndarray, "w m"]
    names: frozenset[str]
    centred: bool
    d: int

    @property
    def told(self) -> str:
        """What titles say of direction 1."""
        return " · direction 1 taken off" if self.centred else ""

    @property
    def tensors(self) -> dict[str, str]:
        """Digests of the tensors that the maps are made of."""
        return self.view.origins(*_tensors(self.view, self.names))

    def limits(self) -> str:
        """What composition of these places does not say."""
        parts = ["It does not say that the one uses the other: nothing was run, and trained maps share the stream's "
                 "few strong directions, so that many pairs exceed random ones"]  # fmt: skip
        if str(self.view.frame) == "raw" and any(self.view.spec.norms()):
            parts.append("frame raw leaves the norms' gains out of the readers (--frame folded has them in)")
        if not self.centred:
            parts.append("the direction 1 is kept: not every reader stands behind a LayerNorm")
        spec = self.view.stored.spec
        known = dict.fromkeys(c for i, b in enumerate(spec.blocks) if b.attn for kind in ("qk", "ov")
                              for c in cautions(spec, Site(i, 0, kind)))  # fmt: skip
        return "; ".join([*parts, *known]) + "."


def places(model: Model, between: str, frame: str | None = None) -> Places:
    """The writers and readers that `between` names: ``heads``, ``all``, or names with commas between.

    Names: ``L0H1`` (writes by its OV, reads by q, k, v), ``L0.mlp.out`` (writes), ``L0.mlp`` (reads: in, and gate),
    embeddings and ``pos`` (write), ``unembed`` and other outputs (read).
    Raises BadRequest for other names or where none stands behind another, BadSite, UnknownFrame, FrameUnavailable.
    """
    view = without_bias(model, frame)
    names = _named(view, between)
    centred = _reads_through_layer_norm(view)
    writers, readers = list(_writers(view, names, centred)), list(_readers(view, names, centred))
    tied = {"embed", "unembed"} if view.stored.spec.tied else set()  # one matrix: nothing to find
    allowed = np.array([[w.stage < r.stage and {w.name, r.name} != tied for r in readers] for w in writers], dtype=bool)
    if not allowed.any():
        if between in ("heads", "all"):
            raise BadRequest(
                f"{view.name} has no head behind another: expected two blocks of attention; try between='all'"
            )
        why = "embed and unembed are one matrix" if tied and tied == names else "none reads another"
        raise BadRequest(f"expected a writer and a place behind it that reads, got '{between}': {why}")
    return Places(view, writers, readers, allowed, names, centred, view.spec.d_model - centred)


def command_of(view: Model, reader: Place) -> str:
    """The command that shows the dyads of a reader."""
    site = {"q": f"{reader.name}.qk", "k": f"{reader.name}.qk", "v": reader.name, "out": reader.name}
    frame = "" if str(view.frame) == "raw" else f" --frame {view.frame}"
    return f"covector svd {view.words} {site.get(reader.way, f'{reader.name}.{reader.way}')}{frame}"


def _named(view: Model, between: str) -> frozenset[str]:
    """Names of the places that are asked for, each of them one of the model's."""
    heads = [f"L{i}H{h}" for i in range(view.spec.n_layers) for h in range(_heads(view, i))]
    if between == "heads":
        return frozenset(heads)
    mlps = [f"L{i}.mlp" for i, block in enumerate(view.spec.blocks) if block.mlp]
    known = [*heads, *mlps, *(f"{name}.out" for name in mlps), *_inputs(view), *_outputs(view)]
    if between == "all":
        return frozenset(known)
    chosen = [name.strip() for name in between.split(",") if name.strip()]
    for name in chosen:
        if name not in known and re.fullmatch(r"L\d+H\d+", name):
            view.site(name)  # refuses it, saying which there are
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        some = ", ".join(dict.fromkeys((*heads[-1:], *mlps[:1], *(f"{m}.out" for m in mlps[:1]), *known[-1:])))
        raise BadRequest(
            f"expected between heads or all, or places with commas between ({some}), got '{(unknown or [between])[0]}'"
        )
    return frozenset(chosen)


def _reads_through_layer_norm(view: Model) -> bool:
    """Whether every reader of the stream is behind a LayerNorm, which hides the direction 1 from it."""
    norms: list[Norm | None] = [s.reads for b in view.spec.blocks for s in b.sublayers]
    return all(n is not None and n.kind == "layer" for n in (*norms, view.spec.final_norm))


def _stages(view: Model) -> Iterator[tuple[int, str, int]]:
    """(layer, sublayer, stage): a sublayer sees what stands at an earlier stage; parallel ones share theirs."""
    stage = 0
    for i, block in enumerate(view.spec.blocks):
        for j, sub in enumerate(block.sublayers):
            stage += 1 if j == 0 or not block.parallel else 0
            yield i, sub.name, stage


def _writers(view: Model, names: frozenset[str], centred: bool) -> Iterator[Place]:
    for name in _inputs(view):
        if name in names:
            yield Place(name, "", 0, written_end(view.map(name), centred=centred))
    for i, kind, stage in _stages(view):
        if kind == "attn":
            for h in range(_heads(view, i)):
                if f"L{i}H{h}" in names:
                    end = written_end(view.map(Site(i, h, "ov")), centred=centred)
                    yield Place(f"L{i}H{h}", "", stage, end)
        elif f"L{i}.mlp.out" in names:
            end = written_end(view.map(Site(i, None, "out")), centred=centred)
            yield Place(f"L{i}.mlp.out", "", stage, end)


def _readers(view: Model, names: frozenset[str], centred: bool) -> Iterator[Place]:
    for i, kind, stage in _stages(view):
        if kind == "attn":
            for h in range(_heads(view, i)):
                if f"L{i}H{h}" not in names:
                    continue
                score, value = view.map(Site(i, h, "qk")), view.map(Site(i, h, "ov"))
                for way, m in zip(WAYS, (score, score.T, value), strict=True):
                    yield Place(f"L{i}H{h}", way, stage, read_end(m, centred=centred))
        elif f"L{i}.mlp" in names:
            mlp = view.spec.blocks[i].mlp
            for way in ("in", *["gate"] * bool(mlp and mlp.gated)):
                yield Place(f"L{i}.mlp", way, stage, read_end(view.map(Site(i, None, way)), centred=centred))
    for name in _outputs(view):
        if name in names:
            yield Place(name, "out", LAST, read_end(view.map(name), centred=centred))


def _inputs(view: Model) -> list[str]:
    """Names of the embeddings that write into the stream."""
    assembly = view.spec.assembly
    given = (*assembly.inputs, *((assembly.time,) if assembly.time else ()))
    names = ["embed" if i.name == "token" else f"{i.name}_in" for i in given]
    return [*names, *(["pos"] if assembly.positions != "none" else [])]


def _outputs(view: Model) -> list[str]:
    """Names of the outputs that read the stream as it is."""
    return ["unembed" if out.name == "token" else f"{out.name}_out" for out in view.spec.outputs if not out.transform]


def _heads(view: Model, layer: int) -> int:
    attn = view.spec.blocks[layer].attn
    return attn.n_heads if attn else 0


def _tensors(view: Model, names: frozenset[str]) -> list[str]:
    sites = []
    for i in range(view.spec.n_layers):
        if any(f"L{i}H{h}" in names for h in range(_heads(view, i))):
            sites += [Site(i, 0, "ov"), Site(i, 0, "qk")]
        if {f"L{i}.mlp", f"L{i}.mlp.out"} & names:
            sites += view.sites(f"L{i}.mlp.*")
    sites += [view.site(name) for name in (*_inputs(view), *_outputs(view)) if name in names]
    return [name for s in sites for name in site_tensors(s)]
