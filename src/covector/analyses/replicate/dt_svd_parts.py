"""The parts of blocks that the decision-transformer post looked at, as they are and as its code had them.

K is W_in, V is W_out. Against outputs K counts by what it reads (an action already written), V and OV by what they
write; against inputs OV by what it reads. The post's code took rows of V for singular vectors of W_out, always the
written side of OV, and folded norms' gains into K and OV (the frame ``conjecture2022``).

Source: F13, §0 and §1.5 of the theory page; `docs/replicate-dt-svd.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from covector.analyses.agent_untrained import untrained
from covector.analyses.replicate.dt_svd_defects import rows_of_v
from covector.axes import Bool, Float
from covector.errors import BadRequest, FrameUnavailable
from covector.linalg import chance
from covector.linalg.svd import svd
from covector.model.address import Site
from covector.model.bases import Basis
from covector.model.opened import Model

K, V, OV = "K", "V", "OV"
ACTIONS = "action_out"
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Part:
    """One matrix of one block: the rows it is compared by, corrected (``rows``) and as the code had them.

    ``defect`` is None where the code would have stopped.
    """

    site: Site
    kind: str
    block: int
    rows: Float[np.ndarray, "r d"]
    defect: Float[np.ndarray, "s d"] | None


@dataclass(frozen=True, eq=False)
class Labels:
    """Trained labels of a basis at length one; ``left_out`` look untrained or have no direction."""

    name: str
    names: tuple[str, ...]
    units: Float[np.ndarray, "n d"]
    left_out: int


@dataclass(frozen=True)
class Best:
    """The largest |cosine| of a family of parts: where, which dyad, which label, p over the family and 95 % level."""

    cos: float
    part: Part
    dyad: int
    label: str
    p: float
    level: float

    def __str__(self) -> str:
        return f"{self.cos:.3f}".removeprefix("0") + f" at {self.part.site}:{self.dyad} ({self.label})"


@dataclass(frozen=True, eq=False)
class Looked:
    """An agent as the post looked at it."""

    model: Model
    draws: int
    seed: int
    _nulls: dict[tuple[str, int, int], Float[np.ndarray, " draws"]] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """How many blocks."""
        return self.model.spec.n_layers

    @cached_property
    def published_frame(self) -> Model:
        """The frame of the post's code, where the anatomy has it; else as stored."""
        try:
            return self.model.framed("conjecture2022")
        except FrameUnavailable:
            return self.model

    def parts(self, kinds: Sequence[str] = (K, V, OV), blocks: Sequence[int] | None = None, inputs: bool = False
              ) -> list[Part]:  # fmt: skip
        """The parts of some kinds in some blocks (default: all)."""
        chosen = range(self.blocks) if blocks is None else blocks
        return [p for block in chosen for kind in kinds for p in self._parts(kind, block, inputs)]

    def _parts(self, kind: str, block: int, inputs: bool) -> list[Part]:
        there = self.model.spec.blocks[block]
        if kind == OV:
            if there.attn is None:
                return []
            return [self._part(OV, block, site, inputs) for site in self.model.sites(f"L{block}H*.ov")]
        if there.mlp is None:
            return []
        return [self._part(kind, block, self.model.sites(f"L{block}.mlp.{'in' if kind == K else 'out'}")[0], inputs)]

    def _part(self, kind: str, block: int, site: Site, inputs: bool) -> Part:
        found = svd(self.model.map(site))
        if kind == V:
            W = self.model.stored[f"L{block}.W_out"]
            return Part(site, kind, block, found.Vh, rows_of_v(W))
        seen = svd(self.published_frame.map(site))
        if kind == K:
            return Part(site, kind, block, found.U.T, seen.U.T)
        return Part(site, kind, block, found.U.T if inputs else found.Vh, seen.Vh)

    def labels(self, name: str) -> Labels:
        """The trained labels of a basis; of the actions, which the agent takes, all. Raises UnknownBasis."""
        basis: Basis = self.model.bases[name]
        kept: Bool[np.ndarray, " n"] = basis.usable.copy()
        if name != ACTIONS:
            kept &= ~untrained(self.model, name).any
        names = tuple(label for label, ok in zip(basis.labels, kept, strict=True) if ok)
        units = basis.vectors[kept].astype(np.float64)
        return Labels(name, names, units / np.linalg.norm(units, axis=1, keepdims=True), int((~kept).sum()))

    def null(self, labels: Labels, parts: Sequence[Part]) -> Float[np.ndarray, "draws m"]:
        """max |cos| of an independent Haar frame in place of every part."""
        return np.stack([self._null(labels, i, len(part.rows)) for i, part in enumerate(parts)], axis=1)

    def _null(self, labels: Labels, index: int, r: int) -> Float[np.ndarray, " draws"]:
        key = (labels.name, index, r)
        if key not in self._nulls:
            self._nulls[key] = chance.null_max_of_frame(labels.units, r, draws=self.draws, seed=(self.seed, index, r))
        return self._nulls[key]

    def best(self, labels: Labels, parts: Sequence[Part], *, defect: bool = False) -> Best | None:
        """The largest |cosine| over some parts, p by as many Haar frames; None where the code would have stopped."""
        rows = [part.defect if defect else part.rows for part in parts]
        if not parts or not len(labels.names) or any(r is None for r in rows):
            return None
        cosines = [np.abs(r @ labels.units.T) for r in rows if r is not None]
        where = int(np.argmax([c.max() for c in cosines]))
        value = float(cosines[where].max())
        dyad, label = np.unravel_index(int(cosines[where].argmax()), cosines[where].shape)
        null = self.null(labels, parts).max(axis=1)
        cells = sum(c.size for c in cosines)
        bound = min(1.0, cells * float(chance.tail(min(value, 1.0), labels.units.shape[1])))
        p = float(chance.monte_carlo_p(value, null, at_most=bound).value)
        return Best(value, parts[where], int(dyad), labels.names[int(label)], p,
                    float(np.quantile(null, 1 - LEVEL)))  # fmt: skip

    @cached_property
    def loudest(self) -> int:
        """The block whose K has the largest cosine with an action output: where the post would have edited."""
        found = self.best(self.labels(ACTIONS), self.parts((K,)))
        return 0 if found is None else found.part.block


def looked(model: Model, draws: int, seed: int) -> Looked:
    """Raises BadRequest for what is no agent, or has no MLP with two matrices, and for few draws."""
    if ACTIONS not in model.bases:
        raise BadRequest(f"{model.name}: expected an agent with an output for actions, it has {', '.join(model.bases)}")
    if not any(block.mlp for block in model.spec.blocks):
        raise BadRequest(f"{model.name}: expected blocks with an MLP (K and V are its matrices), it has none")
    if draws < 200:
        raise BadRequest(f"--draws: expected 200 or more, got {draws}; leave it out for 1000")
    return Looked(model, draws, seed)
