"""One unit of an atlas: its sites decomposed, and every direction scored against its basis.

Read and written directions are compared with the bases that `covector svd` uses, in one pass over the vocabulary: the
k extreme labels of both poles, and the lengths of all vectors projected on each head's subspace, from which p_svd
follows. A few heads at a time, as many as their shape says: memory is that of these, and the bits do not depend on the
machine. Nothing here knows which worker it runs on.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from covector.arch.adapter import AdaptedWeights
from covector.atlas.judge import BESIDE, COLUMNS, POOL, Judged, judged_lists, judges, stability_of
from covector.atlas.plan import Against, Options, Unit, bases_of, compared_at, tensors_of
from covector.axes import Bool, Float
from covector.io.atlas_parts import Part
from covector.linalg import chance
from covector.linalg.chance.bundles import p_svd_in_bundles
from covector.linalg.change import rank_above_noise
from covector.linalg.maps import Factored
from covector.linalg.norms import stream_part
from covector.linalg.svd import SVD, svd, svds
from covector.linalg.topk import Poles, poles
from covector.model.address import Site
from covector.model.change import ChangeModel
from covector.model.frames import framed
from covector.model.opened import Model
from covector.model.weights import Held, ReadOnce, Weights

SIDES = ("read", "write", "query", "key")

# Directions per side of heads that are decomposed and scored together: products of fewer rows run slower.
ROWS = 1024


@dataclass(frozen=True)
class Side(Judged):
    """Directions of one side of one site that lie in the stream, unit rows; the first `kept` of them go into the atlas.

    ``site`` counts within the sites that are decomposed together. ``whole`` says that the rows are an orthonormal basis
    of everything the site can read or write there, so that p_svd is defined: then all of them are here, however few are
    kept.
    """

    site: int
    side: int
    against: Against


def decompose(model: Model, unit: Unit, options: Options) -> Part:
    """A unit's part: per direction its dyad, scores, tokens and float16 vector; per site its spectrum."""
    held = _held(model, unit)
    found: dict[str, list[np.ndarray]] = {}
    for first, sites in together(model, unit):
        for name, values in _arrays(held, model, first, sites, options).items():
            found.setdefault(name, []).append(values)
    arrays = {name: np.concatenate(found.pop(name)) for name in list(found)}
    notes = {"sites": [str(site) for site in unit.sites], "tensors": tensors_of(model, unit)}
    if isinstance(model.stored, AdaptedWeights):
        for tensor in set(unit.tensors) - _basis_tensors(model):
            model.stored.release(tensor)
    return Part(unit.name, arrays, notes)


def together(model: Model, unit: Unit) -> Iterator[tuple[int, tuple[Site, ...]]]:
    """The sites of a unit in runs that are held in memory at a time, each with the place of its first one.

    Heads of one kind, about `ROWS` directions a side; any other map by itself.
    """
    start = 0
    while start < len(unit.sites):
        site = unit.sites[start]
        attn = model.spec.blocks[site.layer].attn if site.layer is not None and site.head is not None else None
        most = max(1, ROWS // attn.d_head) if attn else 1
        alike = (other.kind == site.kind for other in unit.sites[start : start + most])
        count = sum(1 for _ in takewhile(bool, alike))
        yield start, unit.sites[start : start + count]
        start += count


def _arrays(held: Model, model: Model, first: int, sites: tuple[Site, ...], options: Options) -> dict[str, np.ndarray]:
    """What is found of a run of sites, of which the unit has `first` before them."""
    decomposed = list(zip(sites, _svds_at(held, sites, options), strict=True))
    sides = [side for i, (site, found) in enumerate(decomposed) for side in _sides(held, i, site, found, options)]
    arrays = {f"site.{name}": values for name, values in _site_arrays(held, decomposed).items()}
    if not sides:  # maps of zeros have no dyads
        return arrays
    arrays |= _dyad_arrays(sides, [found for _, found in decomposed])
    arrays["site"] += first
    if options.scores:
        arrays["stability"] = _stability(held, decomposed, sides, options)
    decomposed.clear()  # the rows of the sides are all that is still needed
    arrays |= _scored(model, sides, options)
    arrays["vectors"] = np.concatenate([side.rows[: side.kept].astype(np.float16) for side in sides])
    return arrays


class _Held(Held):
    """Weights that keep what they have handed out, beginning with tables that are in memory already."""

    def __init__(self, of: Weights, tables: Mapping[str, np.ndarray]) -> None:
        super().__init__(of)
        self._kept.update(tables)


def _held(model: Model, unit: Unit) -> Model:
    """The model with each tensor of this unit read and rewritten once, also one that holds several (a fused q|k|v)."""
    stored = model.stored
    if isinstance(stored, AdaptedWeights):
        stored = dataclasses.replace(stored, source=ReadOnce(stored.source))
    tables = _tables(model, unit)
    stored = _Held(stored, tables if model.frame.name == "raw" else {})
    view = framed(stored, model.frame)
    return dataclasses.replace(model, stored=stored, weights=view if view is stored else _Held(view, tables))


def _tables(model: Model, unit: Unit) -> dict[str, np.ndarray]:
    """Tensors of this unit that directions are compared with: the bases hold them in the model's frame."""
    bases = [basis for name in bases_of(model) if (basis := model.bases[name]).same_as is None]
    wanted = {basis.tensors[0]: basis for basis in bases if basis.tensors and basis.tensors[0] in unit.tensors}
    return {name: basis.vectors.T if basis.side == "out" else basis.vectors for name, basis in wanted.items()}


def _svds_at(model: Model, sites: tuple[Site, ...], options: Options) -> list[SVD]:
    maps = [model.map(site) for site in sites]
    heads = [m for m in maps if isinstance(m, Factored)] if sites[0].head is not None else []
    if len(heads) == len(maps):
        return svds(heads)
    return [svd(m) if sites[0].head is not None else svd(m, options.rank, stream_only=True) for m in maps]


def _sides(model: Model, index: int, site: Site, found: SVD, options: Options) -> Iterator[Side]:
    there = rank_above_noise(found) if isinstance(model, ChangeModel) else found.rank
    kept = min(found.rank, options.rank or found.rank, there)
    names = ("query", "key") if site.kind == "qk" else ("read", "write")
    for at, against in compared_at(model, site).items() if kept else ():
        affine = (found.reads, found.writes)[at].kind == "residual+1"
        whole = site.head is not None and found.rank < model.spec.d_model and not affine
        rows = np.ascontiguousarray((found.U.T, found.Vh)[at][: None if whole else kept])
        rows = stream_part(rows) if affine else rows
        yield Side(rows, kept, whole, index, SIDES.index(names[at]), against)


def _site_arrays(model: Model, decomposed: list[tuple[Site, SVD]]) -> dict[str, np.ndarray]:
    """Shape, inner size and whole spectrum of every site; spectra one after the other, cut at numerical rank."""
    maps = [model.map(site) for site, _ in decomposed]
    spectra = [np.concatenate([found.S, found.beyond]) for _, found in decomposed]
    inner = [getattr(m, "A", np.zeros((0, min(m.shape)))).shape[1] for m in maps]
    return {
        "shape": np.array([m.shape for m in maps], np.int64).reshape(-1, 2),
        "inner": np.array(inner, np.int64),
        "sigma": np.concatenate(spectra) if spectra else np.zeros(0),
        "count": np.array([len(s) for s in spectra], np.int64),
        "noise": np.array([found.noise for _, found in decomposed]),
    }


def _dyad_arrays(sides: list[Side], found: list[SVD]) -> dict[str, np.ndarray]:
    """What is known of every direction before it is compared with anything."""

    def each(values: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(found[s.site], values))[: s.kept] for s in sides])

    blocks = [found[s.site].block_of(i) for s in sides for i in range(s.kept)]
    return {
        "site": np.concatenate([np.full(s.kept, s.site, np.int32) for s in sides]),
        "side": np.concatenate([np.full(s.kept, s.side, np.uint8) for s in sides]),
        "dyad": np.concatenate([np.arange(s.kept, dtype=np.int32) for s in sides]),
        "sigma": each("S"),
        "gap": each("gap"),
        "turn": each("wedin"),
        "noisy": each("noisy"),
        "sign_margin": each("sign_margin"),
        "block": np.array([(b.start, b.stop) for b in blocks], np.int32).reshape(-1, 2),
    }


def _scored(model: Model, sides: list[Side], options: Options) -> dict[str, np.ndarray]:
    """Labels and scores of every direction, sides of one basis stacked for one pass over its vectors."""
    starts = np.cumsum([0, *(side.kept for side in sides)])
    out: dict[str, np.ndarray] = {}
    pools: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in POOL.values()}
    for against in dict.fromkeys(side.against for side in sides):
        chosen = [i for i, side in enumerate(sides) if side.against == against]
        at = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
        found = _against(model, against, [sides[i] for i in chosen], options)
        for name, chunks in pools.items():
            chunks.append(found.pop(name, np.zeros(0)))
        for key, values in found.items():
            shape = (options.k,) if values.ndim > 1 else ()
            blank = np.full((starts[-1], *shape), -1 if values.dtype.kind == "i" else 0, values.dtype)
            out.setdefault(key, blank)[(at, *(slice(0, n) for n in values.shape[1:]))] = values
    return out | ({name: np.concatenate(chunks) for name, chunks in pools.items()} if options.scores else {})


def _stability(
    held: Model, decomposed: list[tuple[Site, SVD]], sides: list[Side], options: Options
) -> Float[np.ndarray, " r"]:
    """How stable every kept direction is."""
    stable = [stability_of(held.map(site), found, _numbers(site), options) for site, found in decomposed]
    seconds = [SIDES[side.side] in ("write", "key") for side in sides]
    return np.concatenate([stable[s.site][int(second)][: s.kept] for s, second in zip(sides, seconds, strict=True)])


def _numbers(site: Site) -> tuple[int, int, int]:
    """A site as whole numbers, so that each has random numbers of its own."""
    layer, head = (0 if place is None else place + 1 for place in (site.layer, site.head))
    return (layer, head, zlib.crc32(site.kind.encode()))


def _against(model: Model, against: Against, sides: list[Side], options: Options) -> dict[str, np.ndarray]:
    """Scores of the kept rows of these sides. Lists are as long as the basis allows; −1 marks what is missing."""
    basis, judging = against.of(model), judges(model, against) if options.scores else None
    usable = basis.usable
    projected = _Projected(sides, len(basis))
    rows = np.concatenate([side.rows for side in sides])
    found = poles(
        rows,
        basis.vectors,
        max(options.k, judging.listed_among(usable)) if judging else options.k,
        keep=None if usable.all() else usable,
        lengths=np.where(usable, basis.norms, 1.0),
        see=projected.see if projected.squares else None,
    )
    kept = np.concatenate([np.arange(len(side.rows)) < side.kept for side in sides])
    columns = _cosines(found, projected, usable, against.dimension(model), options.k)
    columns = {name: values[kept] for name, values in columns.items()}
    if judging:
        lists = judging.lists_among(found.part(kept), rows[kept])
        return columns | judged_lists(model, against, sides, lists, options)
    if options.scores:
        columns |= {name: np.full(kept.sum(), np.nan) for name in (*COLUMNS, *BESIDE.values())}
    return columns


def _cosines(
    found: Poles, projected: "_Projected", usable: Bool[np.ndarray, " n"], d: int, k: int
) -> dict[str, np.ndarray]:
    """Per row its best cosine, the k best of both poles, and what chance says of the best in d dimensions."""
    top, bottom = found.top_score[:, 0], found.bottom_score[:, 0]
    higher = top >= -bottom
    best = np.where(higher, top, bottom)
    within = np.full(len(best), np.nan)
    for side, at, squares in projected.spans():
        if side.whole:
            within[at] = p_svd_in_bundles(best[at], np.sqrt(np.minimum(squares[usable], 1.0)), len(side.rows), d)
    return {
        "cos": best,
        "best": np.where(higher, found.top[:, 0], found.bottom[:, 0]).astype(np.int32),
        "p_dir": np.atleast_1d(chance.p_dir(np.minimum(np.abs(best), 1.0), d, int(usable.sum()))),
        "p_svd": within,
        "top": found.top[:, :k].astype(np.int32),
        "top_cos": found.top_score[:, :k].astype(np.float32),
        "bottom": found.bottom[:, :k].astype(np.int32),
        "bottom_cos": found.bottom_score[:, :k].astype(np.float32),
    }


class _Projected:
    """Squared length of every basis vector projected on each side's subspace, summed while scores pass by."""

    def __init__(self, sides: list[Side], n: int) -> None:
        self.sides = sides
        self.starts = np.cumsum([0, *(len(side.rows) for side in sides)])
        self.squares = {i: np.zeros(n) for i, side in enumerate(sides) if side.whole}

    def see(self, rows: slice, scores: Float[np.ndarray, "r n"]) -> None:
        """Add one block of cosines."""
        for i, total in self.squares.items():
            first = max(rows.start, self.starts[i]) - rows.start
            last = min(rows.start + len(scores), self.starts[i + 1]) - rows.start
            if first < last:
                total += np.einsum("rn,rn->n", scores[first:last], scores[first:last])

    def spans(self) -> Iterator[tuple[Side, slice, Float[np.ndarray, " n"]]]:
        """(side, its rows, squared projected lengths)."""
        for i, side in enumerate(self.sides):
            yield side, slice(self.starts[i], self.starts[i + 1]), self.squares.get(i, np.zeros(0))


def _basis_tensors(model: Model) -> set[str]:
    return {tensor for name in bases_of(model) for tensor in model.bases[name].tensors}
