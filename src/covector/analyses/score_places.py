"""Which directions are scored: dyads of one place of a model, or rows of an atlas, found again from its checkpoint.

Source: `docs/theory/scores.md`, equations 13 and 14 (what p_svd and stability are of).
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.score import Q_VALUES
from covector.axes import Float, Int
from covector.errors import BadRank, BadRequest
from covector.io.atlas import Atlas
from covector.linalg.norms import stream_part
from covector.linalg.stability import DRAWS, ONE_PERCENT, stability
from covector.linalg.svd import SVD, svd
from covector.model.address import Site
from covector.model.circuits import side_centred
from covector.model.opened import Model

# Stability of a matrix that is held whole takes fewer draws: each is a decomposition of all of it.
DENSE_DRAWS = 3
# A matrix larger than this is not decomposed for the few rows of an atlas that are asked about: stored rows do.
DECOMPOSED = 2**23
# Unit rows in float16 lie within 1e-6 of themselves, as 1 − cos; what is turned by more is another direction.
SAME = 1e-4
_PLACE = re.compile(r"(?P<site>[^:]+)(?::(?P<first>\d+)(?:-(?P<last>\d+))?)?")


@dataclass(frozen=True)
class Place:
    """What was asked for: a site, and which of its dyads (None: the leading ones)."""

    site: Site
    first: int | None
    last: int | None

    @property
    def dyads(self) -> range | None:
        """The dyads, where they were named."""
        return None if self.first is None else range(self.first, (self.first if self.last is None else self.last) + 1)


@dataclass(frozen=True, eq=False)
class Side:
    """One side of one site: what is scored of it, and what it is compared with.

    `rows` are unit directions in the stream; where `whole`, all that span the subspace (p_svd is defined), else those
    that are shown. `shown` [s] are places in `rows`, `dyads` their indices. `exact`: not the float16 rows of an atlas.
    `q` are the q-values of the family that an atlas is, per shown row; None where the request is the family.
    """

    site: Site
    name: str
    basis: str
    centred: bool
    rows: Float[np.ndarray, "r d"]
    whole: bool
    shown: Int[np.ndarray, " s"]
    dyads: Int[np.ndarray, " s"]
    sigma: Float[np.ndarray, " s"]
    noisy: Int[np.ndarray, " s"]
    stability: Float[np.ndarray, " s"]
    exact: bool = True
    q: dict[str, Float[np.ndarray, " s"]] | None = None


def place_of(model: Model, text: str) -> Place:
    """``L3H0``, ``L3H0:1``, ``L3.mlp.out:0-4``. Raises BadSite, BadRequest."""
    found = _PLACE.fullmatch(text.strip())
    if found is None:
        raise BadRequest(f"expected a place such as L3H0, L3H0:1 or L3.mlp.out:0-4, got '{text}'")
    first, last = (None if n is None else int(n) for n in (found["first"], found["last"]))
    if first is not None and last is not None and last < first:
        raise BadRequest(f"expected dyads from the lower to the higher, got {first}-{last}; turn them around")
    return Place(model.site(found["site"]), first, last)


def sides_of_model(model: Model, place: Place, rank: int, seed: int) -> list[Side]:
    """Every side of a place that lies in the stream, with the stability of its dyads under noise of one percent.

    Raises BadRank for dyads that the map has not, BadRequest where no side lies in the stream.
    """
    m = model.map(place.site)
    wanted = rank if place.dyads is None else place.dyads.stop
    found = svd(m) if place.site.head is not None else svd(m, wanted, stream_only=True)
    if place.dyads is not None and wanted > found.rank:
        raise BadRank(f"{place.site}: expected dyads 0 to {found.rank - 1}, got {wanted - 1}")
    shown = np.arange(min(rank, found.rank)) if place.dyads is None else np.array(place.dyads)
    names = _names(found)
    if not len(shown) or not names:
        told = "every singular value is zero" if names else "neither side of it lies in the residual stream"
        raise BadRequest(f"{place.site}: expected directions of the stream to score, {told}; name another place")
    draws = DENSE_DRAWS if place.site.head is None else DRAWS
    moved = stability(m, found, delta=ONE_PERCENT, draws=draws, seed=(seed, *_numbers(place.site)))
    return [_side(model, place.site, found, at, shown, stability=(moved.read, moved.write)[at][shown]) for at in names]


def rows_of_atlas(atlas: Atlas, place: Place | None, rank: int) -> tuple[Int[np.ndarray, " n"], int]:
    """The rows of an atlas that are asked for, and out of how many.

    Without a place: what it calls interpretable, least q first; where it calls nothing so, the strongest by z of
    coherence. Raises BadRequest for an atlas without scores, or a place or dyads that it does not hold.
    """
    if place is None:
        if "interpretable" not in atlas.names:
            raise BadRequest(
                f"{atlas.folder}: expected an atlas whose lists were judged, this one was built without scores; name a "
                "place of it (L3H0), or build it again"
            )
        told = atlas.columns("interpretable", "q_coherence", "z_coherence")
        strength = np.where(np.isfinite(told["z_coherence"]), told["z_coherence"], -np.inf)
        called = np.flatnonzero(told["interpretable"])
        among = called if len(called) else np.flatnonzero(np.isfinite(strength))
        if not len(among):
            raise BadRequest(f"{atlas.folder}: expected lists that were judged, its bases hold too few labels for any")
        q = told["q_coherence"][among] if len(called) else np.zeros(len(among))
        return among[np.lexsort((among, -strength[among], q))][:rank], len(among)
    index = atlas.columns("site", "dyad")
    here = np.flatnonzero(index["site"] == str(place.site))
    if not len(here):
        kinds = ", ".join(sorted(set(atlas.column("kind"))))
        raise BadRequest(f"{atlas.folder}: expected a place that it holds ({kinds}), got {place.site}; score its model")
    wanted = range(rank) if place.dyads is None else place.dyads
    kept = here[np.isin(index["dyad"][here], wanted)]
    if place.dyads is not None and wanted.stop - 1 > index["dyad"][here].max():
        raise BadRank(f"{place.site}: the atlas keeps dyads 0 to {index['dyad'][here].max()}, got {wanted.stop - 1}")
    return kept, len(kept)


def sides_of_atlas(model: Model, atlas: Atlas, at: Int[np.ndarray, " n"]) -> list[Side]:
    """Those rows of an atlas by site and side, in float64 from the checkpoint where that is cheap.

    A direction that comes out otherwise than it is stored is taken as it is stored.
    """
    judged = [name for name in (*Q_VALUES, "stability") if name in atlas.names]
    told = {
        name: values[at] for name, values in atlas.columns("site", "side", "dyad", "sigma", "noisy", *judged).items()
    }
    stored = atlas.units(at)
    found: dict[str, SVD | None] = {}
    made = []
    for site, side in dict.fromkeys(zip(told["site"], told["side"], strict=True)):
        here = np.flatnonzero((told["site"] == site) & (told["side"] == side))
        if site not in found:
            found[site] = _again(model, site, atlas.manifest["options"]["rank"])
        given = {name: values[here] for name, values in told.items()}
        made.append(_side_again(model, model.site(site), str(side), found[site], given, stored[here]))
    return made


def _side_again(
    model: Model, site: Site, side: str, found: SVD | None, told: dict[str, np.ndarray], stored: np.ndarray
) -> Side:
    dyads, steady = told["dyad"].astype(np.int64), told.get("stability", np.full(len(stored), np.nan))
    q = {name: told[name] for name in Q_VALUES} if "q_coherence" in told else None
    second = side in ("write", "key")
    if found is not None and dyads.max() < found.rank:
        made = _side(model, site, found, int(second), dyads, stability=steady, q=q)
        along = np.sum(made.rows[made.shown] * stored, axis=1) / np.linalg.norm(stored, axis=1)
        if (along > 1 - SAME).all():
            return made
    basis, centred = _compared(model, site, second)
    rows = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    return Side(site, side, basis, centred, rows, False, np.arange(len(rows)), dyads, told["sigma"],
                told["noisy"].astype(np.int64), steady, False, q)  # fmt: skip


def _side(
    model: Model,
    site: Site,
    found: SVD,
    at: int,
    shown: Int[np.ndarray, " s"],
    *,
    stability: Float[np.ndarray, " s"],
    q: dict[str, np.ndarray] | None = None,
) -> Side:
    affine = (found.reads, found.writes)[at].kind == "residual+1"
    whole = site.head is not None and found.rank < model.spec.d_model and not affine
    every = (found.U.T, found.Vh)[at]
    rows = np.ascontiguousarray(every if whole else every[shown])
    rows = stream_part(rows) if affine else rows
    name = (("query", "key") if site.kind == "qk" else ("read", "write"))[at]
    basis, centred = _compared(model, site, at == 1)
    places = shown if whole else np.arange(len(shown))
    noisy = np.asarray(found.noisy)[shown].astype(np.int64)
    return Side(site, name, basis, centred, rows, whole, places, shown, found.S[shown], noisy, stability, True, q)


def _compared(model: Model, site: Site, second: bool) -> tuple[str, bool]:
    """The basis that a side is read against, and whether without its part along 1."""
    basis = model.bases.default("write" if second and site.kind != "qk" else "read")
    return basis, side_centred(model.stored.spec, model.frame, site, second=second)


def _names(found: SVD) -> Sequence[int]:
    """Which sides (0 read, 1 written) are scored: those in the stream."""
    return [at for at, space in enumerate((found.reads, found.writes)) if space.kind in ("residual", "residual+1")]


def _again(model: Model, address: str, rank: int | None) -> SVD | None:
    """The dyads of a site as an atlas has them; None where it is too large to be decomposed for a few rows."""
    m = model.map(address)
    if model.site(address).head is not None:
        return svd(m)
    return svd(m, rank, stream_only=True) if m.shape[0] * m.shape[1] <= DECOMPOSED else None


def _numbers(site: Site) -> tuple[int, int, int]:
    """A site as whole numbers, so that each has random numbers of its own."""
    layer, head = (0 if place is None else place + 1 for place in (site.layer, site.head))
    return (layer, head, zlib.crc32(site.kind.encode()))
