"""Singular values of the places of a model: what `spectrum` is made from, whoever computed them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.lapack import thread_pools
from covector.linalg.maps import Factored, Map
from covector.linalg.values import singular_values
from covector.model.address import Site, named_sites, sites
from covector.model.circuits import side_centred
from covector.model.opened import Model
from covector.model.spec import ModelSpec

# Kinds in the order that results have them; "*" means the first five, the rest by name.
KINDS = ("ov", "qk", "in", "gate", "out", "q", "k", "v", "o")
DEFAULT_KINDS = KINDS[:5]
# Kinds that are products of two matrices, whose null is a product.
PRODUCTS = ("ov", "qk")


@dataclass(frozen=True, eq=False)
class SiteSpectrum:
    """The spectrum of one place.

    shape   dimensions of the spaces that the map reads and writes in this frame: one less on a side that is centred
    inner   size between the two factors of a product (ov, qk), None for a single matrix
    S       singular values in the map's units, largest first, cut at numerical rank; at most min(shape, inner)

    Raises BadRequest where S has more values than the shape allows.
    """

    site: Site
    shape: tuple[int, int]
    inner: int | None
    S: Float[np.ndarray, " r"]

    def __post_init__(self) -> None:
        if self.S.size > self.rank:
            raise BadRequest(
                f"{self.site}: a map of shape {self.shape} and inner size {self.inner} has at most {self.rank} "
                f"singular values, came {self.S.size}; cut them at numerical rank"
            )

    @property
    def rank(self) -> int:
        """How many singular values a map of this shape can have."""
        return min(*self.shape, *(() if self.inner is None else (self.inner,)))


def chosen_sites(spec: ModelSpec, pattern: str, kinds: Sequence[str] | None = None) -> tuple[Site, ...]:
    """Sites that a pattern names, of the given kinds, in order of kind, layer, head.

    `pattern`: addresses with commas between (``L*H*.ov,L3.mlp.out``), or ``*``: every head's ov and qk and every MLP
    map, or what `kinds` names (also q, k, v, o, embed, pos, unembed …).
    Raises BadSite for addresses that the model lacks, BadRequest for an unknown kind and where nothing is left.
    """
    named = named_sites(spec)
    wanted = tuple(dict.fromkeys(kinds)) if kinds else None
    unknown = [k for k in wanted or () if k not in (*KINDS, *named)]
    if unknown:
        raise BadRequest(f"expected kinds among {', '.join((*KINDS, *named))}, got '{unknown[0]}'")
    found: dict[Site, None] = {}
    for part in (p.strip() for p in pattern.split(",")):
        texts = _everything(wanted or DEFAULT_KINDS, named) if part == "*" else [part]
        found |= dict.fromkeys(s for text in texts for s in sites(text, spec))
    order = {kind: i for i, kind in enumerate((*KINDS, *named))}
    kept = [s for s in found if wanted is None or s.kind in wanted]
    if not kept:
        what = f" of kind {', '.join(wanted)}" if wanted else ""
        raise BadRequest(f"expected places with a map, '{pattern}' names none{what} in {spec.family}; try '*'")
    return tuple(sorted(kept, key=lambda s: (order[s.kind], s.layer or 0, s.head or 0)))


def site_spectra(model: Model, chosen: Sequence[Site]) -> list[SiteSpectrum]:
    """Singular values of the maps at these sites, in the model's frame.

    Key/value maps that several heads share are counted once. Raises BadSite, BadRequest (weights that are not finite).
    """
    found, pools = [], thread_pools()
    for site in chosen:
        m = model.map(site)
        shape, inner = _shape(model, site, m), m.A.shape[1] if isinstance(m, Factored) else None
        # Centring in float32 (very large tables) leaves 1e-8 of a direction that is not there.
        rank = min(*shape, *(() if inner is None else (inner,)))
        with pools.limit(limits=None if inner is None else 1, user_api="blas"):  # thin factors: one thread is faster
            found.append(SiteSpectrum(site, shape, inner, singular_values(m)[:rank]))
    return found


def _everything(kinds: Sequence[str], named: Sequence[str]) -> list[str]:
    """One address per kind."""
    mlp = [f"L*.mlp.{k}" for k in ("in", "gate", "out") if k in kinds]
    heads = [f"L*{'K' if k in 'kv' else 'H'}*.{k}" for k in kinds if k in KINDS and k not in ("in", "gate", "out")]
    return [*heads, *mlp, *(k for k in kinds if k in named)]


def _shape(model: Model, site: Site, m: Map) -> tuple[int, int]:
    """The map's sizes less the direction that the frame has taken off a side: noise there has one dimension less."""
    spec, frame = model.stored.spec, model.frame
    read, write = (side_centred(spec, frame, site, second) for second in (False, True))
    if site.kind == "unembed":
        # Centring frames also take the mean off the logits, unless a soft-cap makes it matter.
        write = frame.centres_writes and not any(o.softcap for o in spec.outputs)
    elif m.writes.kind != "residual":
        write = False
    return m.shape[0] - read, m.shape[1] - write
