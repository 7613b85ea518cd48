"""How much anonymous memory a build takes: an upper bound, so that what cannot fit is refused before it begins.

Mapped weight files do not count: the system takes their pages back when it needs them. What counts are widened and
re-framed copies, the decompositions of the units under way, one block of scores per worker, and, at the end, the index.
Each term below is what is alive at one moment of the work that it names, on the route that takes most: a matrix with
few strong dyads goes by QR, which takes three times as much as a Gram. Held against the measured peaks of units and of
whole builds (`tests/atlas/test_atlas_memory.py`).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from covector.arch.adapter import AdaptedWeights
from covector.atlas.decompose import together
from covector.atlas.nulls import ROWS as DRAWN
from covector.atlas.plan import Against, Options, Unit, bases_of, compared_at, kept_and_compared, tensor_shape
from covector.errors import BadRequest
from covector.linalg.chance.lists import BLOCK as DRAWN_LISTS
from covector.linalg.coherence import BLOCK_ENTRIES, TOGETHER
from covector.linalg.dense_svd import TRIANGLE_ROWS
from covector.linalg.dictionary import FIRST, LATER
from covector.linalg.grouped import GROUPS
from covector.linalg.maps import TILE_ENTRIES
from covector.linalg.stability import BEYOND, NOISE_ROWS
from covector.linalg.svd import at_a_time
from covector.linalg.topk import BUFFER_BYTES, NEAR_BYTES, SLACK
from covector.linalg.triangular import padded_size
from covector.model.address import Site
from covector.model.circuits import site_tensors
from covector.model.frames import LARGE
from covector.model.opened import Model

# What the interpreter, NumPy, SciPy, Arrow and the tables of tokens hold before any weight is read; torch, where a
# checkpoint in its own format needs it.
INTERPRETER_BYTES, TORCH_BYTES = 160 * 2**20, 300 * 2**20
# Of a unit, whatever it is: buffers of BLAS, and what the allocator keeps of small arrays.
KEPT_BYTES = 64 * 2**20
# Squares d x d in float64 that are alive at once, the matrix not counted: while LAPACK finds all eigenvectors of a
# Gram or a moment (it, overwritten by them, two to work in); at an SVD of the triangle (it, U, Vh, four to work in).
EIGEN, SVD_OF_TRIANGLE = 3, 7
# Dyads a site that a refusal tries, whether they would fit.
LOW = 32
# Members of a list that is judged.
LISTED = FIRST + LATER
# Rows of directions in double that scoring lists holds: for all of them, and for those whose sums are taken together.
AIMED, SUMMED = 4, 10


def fitting_workers(
    model: Model,
    plan: tuple[Unit, ...],
    options: Options,
    workers: int,
    memory: int,
    *,
    apart: bool = False,
    beside: int = 0,
) -> int:
    """How many of `workers` fit into `memory` bytes; `apart` says that each is a process of its own.

    `beside` is what a graphics card's library takes. Raises BadRequest, with what is needed and what would need less,
    if not even one does.
    """
    if needed_bytes(model, plan, options, 1, apart=apart) + beside > memory:
        raise BadRequest(_too_little(model, plan, options, memory, apart, beside))
    left = memory - beside
    return next(n for n in range(workers, 0, -1) if needed_bytes(model, plan, options, n, apart=apart) <= left)


def _too_little(model: Model, plan: tuple[Unit, ...], options: Options, memory: int, apart: bool, beside: int) -> str:
    """What is needed, all of it by name, and what makes it fit: more memory, or less that is asked for."""
    terms = needed_terms(model, plan, options, 1, apart=apart) | {"PyTorch": beside}
    large = (memory > 0 and memory % 2**30 == 0) or memory >= 2**34
    size, unit, digits = (2**30, "GiB", 2) if large else (2**20, "MiB", 0)

    def shown(count: int, up: bool = False) -> str:
        parts = count / size * 10**digits
        return f"{(math.ceil(parts) if up else round(parts)) / 10**digits:,.{digits}f}"

    parts = " + ".join(f"{name} {shown(count, up=True)}" for name, count in terms.items() if count)
    helps = [
        f"{name} ({shown(needed, up=True)})"
        for name, needed in _lighter(model, plan, options, apart, beside)
        if needed <= memory
    ]
    return (
        f"--memory {shown(memory)} {unit} is too little for {model.name}: expected at least "
        f"{shown(sum(terms.values()), up=True)} {unit} ({parts}); " + " or ".join(["allow more", *helps])
    )


def _lighter(
    model: Model, plan: tuple[Unit, ...], options: Options, apart: bool, beside: int
) -> Iterator[tuple[str, int]]:
    """Requests that ask for less, and what each needs."""

    def needed(asked: Options, elsewhere: bool = apart) -> int:
        return needed_bytes(model, plan, asked, 1, apart=elsewhere)

    if beside:
        yield "--device cpu", needed(options)
    if apart:
        yield "--engine threads", needed(options, elsewhere=False) + beside
    if options.rank is None or options.rank > LOW:
        yield f"--rank {LOW}", needed(dataclasses.replace(options, rank=LOW)) + beside
    if options.scores:
        yield "--no-scores", needed(dataclasses.replace(options, scores=False)) + beside


def needed_bytes(model: Model, plan: tuple[Unit, ...], options: Options, workers: int, *, apart: bool = False) -> int:
    """Anonymous memory that a build takes at most with so many workers, summed over processes."""
    return sum(needed_terms(model, plan, options, workers, apart=apart).values())


def needed_terms(
    model: Model, plan: tuple[Unit, ...], options: Options, workers: int, *, apart: bool = False
) -> dict[str, int]:
    """`needed_bytes`, what it is for: of the moment, at work or at the end, that takes more."""
    process = INTERPRETER_BYTES + (TORCH_BYTES if _needs_torch(model) else 0)
    largest = sum(sorted((unit_bytes(model, unit, options) for unit in plan), reverse=True)[:workers])
    waiting = (workers + 1) * max(_part_bytes(model, unit, options) for unit in plan)
    kept, passing = judging_bytes(model, plan, options)
    tables = table_bytes(model, plan) + kept
    passing += KEPT_BYTES if passing else 0
    at_work = {
        "programs": process * (workers + 1 if apart else 1),
        "vocabulary": tables * (workers if apart else 1),
        "units at work": passing * workers + largest if apart else max(largest, passing),
        "finished units": waiting,
    }
    at_end = {"programs": process, "vocabulary": tables, "the index": _index_bytes(model, plan, options)}
    return max(at_work, at_end, key=lambda terms: sum(terms.values()))


def table_bytes(model: Model, plan: tuple[Unit, ...]) -> int:
    """Anonymous memory of the bases' vectors while they are read: widened, re-framed, and without their mean."""
    against = {unit.basis for unit in plan if unit.basis}
    plain = {name: _plain_bytes(model, name) for name in sorted({a.basis for a in against})}
    centred = sum(_entries(model, a) * _itemsize(model, a) for a in against if a.centred)
    # Rewriting takes two more copies for a moment, one table at a time.
    passing = max((2 * _entries(model, a) * _itemsize(model, a) for a in against), default=0)
    lengths = sum(32 * len(model.bases[a.basis]) for a in against)
    return sum(plain.values()) + centred + lengths + (passing if model.frame.name != "raw" or centred else 0)


def judging_bytes(model: Model, plan: tuple[Unit, ...], options: Options) -> tuple[int, int]:
    """Of the metrics that lists are judged in: what is kept of them, and what passes while one is made."""
    if not options.scores:
        return 0, 0
    d = model.spec.d_model
    # A tied unembedding has no null draws, and no metric, of its own.
    bases = {against for unit in plan if (against := unit.basis)}
    numbers = sum(5 * 8 * len(model.bases[against.basis]) for against in bases)
    return len(bases) * 8 * d * d + numbers, _moment_bytes(model, d) - 8 * d * d


def _moment_bytes(model: Model, d: int) -> int:
    """Of a second moment of a table's rows while it is summed, block by block, and then decomposed in its place."""
    rows = min(max(len(model.bases[name]) for name in bases_of(model)), DRAWN)
    return 8 * max(2 * d * d + 3 * rows * d, EIGEN * d * d)


def unit_bytes(model: Model, unit: Unit, options: Options) -> int:
    """Anonymous memory of one unit under way, the bases not counted."""
    if unit.basis:
        return _null_bytes(model, unit.basis, options) + KEPT_BYTES
    read = sum(_read_bytes(model, tensor) for tensor in unit.tensors)
    runs = [_run_bytes(model, sites, options) for _, sites in together(model, unit)]
    kept = sum(kept_and_compared(model.spec, site, options)[0] for site in unit.sites)
    return read + max(runs) + kept * (2 * model.spec.d_model + _score_bytes(options)) + KEPT_BYTES


def _null_bytes(model: Model, against: Against, options: Options) -> int:
    d, size = model.spec.d_model, len(model.bases[against.basis])
    rows, itemsize = min(DRAWN, options.draws), _itemsize(model, against)
    drawn = d * d + 4 * rows * d
    block = _block_bytes(size, rows, d, 1, itemsize)
    lists = 0
    if options.scores:
        some = min(DRAWN_LISTS, options.draws)
        of_draws = 8 * 4 * LISTED * options.draws
        lists = 8 * d * d + _listed_bytes(size, some, d, itemsize) + of_draws
    return max(_moment_bytes(model, d), 8 * drawn, 8 * (d * d + rows * d) + block, lists)


def _listed_bytes(vocabulary: int, rows: int, d: int, itemsize: int) -> int:
    """Of lists of so many directions that are drawn, and then scored."""
    drawn = _block_bytes(vocabulary, rows, d, LISTED, itemsize)
    scored = 8 * (AIMED * rows + SUMMED * min(rows, TOGETHER)) * d + 5 * 8 * max(BLOCK_ENTRIES, LISTED * d)
    return max(drawn, scored)


def _run_bytes(model: Model, sites: tuple[Site, ...], options: Options) -> int:
    """Of sites that are held at a time: decomposed first, scored then."""
    spec, vocabulary = model.spec, max(len(model.bases[name]) for name in bases_of(model))
    itemsize = max(_itemsize(model, against) for against in compared_at(model, sites[0]).values())
    shape = tensor_shape(spec, site_tensors(sites[0])[0])
    if sites[0].head is None:
        rows = kept_and_compared(spec, sites[0], options)[1]
        lists = 8 * 2 * rows * spec.d_model
        found = (8 * 2 * math.prod(shape)) if min(shape) != spec.d_model else lists
        work = _dense_bytes(shape, spec.d_model, _is_wide(model, sites[0]))
        judged = _block_bytes(vocabulary, rows, spec.d_model, options.k, itemsize)
        if options.scores:
            moved = _moved_bytes(shape, spec.d_model, rows)
            judged = max(judged, moved, _listed_bytes(vocabulary, rows, spec.d_model, itemsize))
        return max(lists + work, found + lists + judged)
    vector = 8 * spec.d_model * shape[-1]
    # Both sides as found, beside the factors in double of those that are decomposed together; then one side, or both
    # where lists are judged, in rows. Last those that one basis is for once more, one below the other.
    decomposed = (4 if options.scores else 3) * len(sites) * vector + 8 * vector
    at_once = min(len(sites), at_a_time(vector // 4))
    work = max(8 * vector, at_once * _core_bytes(shape[-1]))
    decomposed = max(decomposed, 2 * (len(sites) + at_once) * vector + work)
    rows = len(sites) * shape[-1] * (2 if sites[0].kind == "qk" or len(bases_of(model)) == 1 else 1)
    subspaces = 8 * vocabulary * 2 * len(sites)
    block = _block_bytes(vocabulary, rows, spec.d_model, options.k, itemsize)
    scored = (4 if options.scores else 2) * len(sites) * vector + 8 * rows * spec.d_model + subspaces + block
    if not options.scores:
        return max(decomposed, scored)
    # One side at a time: the table projected on its subspace, and lists of rotated bases drawn there.
    turned = max(shape[-1], DRAWN_LISTS)
    within = (8 + itemsize) * vocabulary * shape[-1] + _listed_bytes(vocabulary, turned, spec.d_model, itemsize)
    return max(decomposed, scored, 4 * len(sites) * vector + 8 * turned * spec.d_model + within)


def _core_bytes(r: int) -> int:
    """Of the r x r work on one product: Grams, triangles, inverses in squares of a power of two, an SVD."""
    return 8 * (8 * r * r + 2 * padded_size(r) ** 2)


def _dense_bytes(shape: tuple[int, ...], d: int, wide: bool) -> int:
    """Of a matrix's decomposition, itself not counted; `wide` says that it is there in float64."""
    short, long = sorted(shape)
    square, whole = short * short, short * long
    tile = 0 if wide else min(whole, 2 * TILE_ENTRIES)  # one is read while the one before is still there
    # R with a tile below it, in which LAPACK works; then R by itself.
    triangle = (2 * short + min(long, max(TRIANGLE_ROWS, short))) * short
    found = max(2 * square + tile, EIGEN * square, triangle, SVD_OF_TRIANGLE * square)
    return 8 * (found if short == d else max(found, 3 * square + 5 * whole))


def _moved_bytes(shape: tuple[int, ...], d: int, rows: int) -> int:
    """Of a matrix that is moved by noise on its way into a Gram, and of what is found again of it."""
    short, long = sorted(shape)
    again = min(short, 2 * rows + BEYOND)
    gram = max(2 * short * short + 2 * min(long, NOISE_ROWS) * short, EIGEN * short * short)
    both = 0 if short == d else 2 * (short + long) * again  # the longer side is found only where it is the stream
    return 8 * (gram + both + 2 * rows * again)


def _is_wide(model: Model, site: Site) -> bool:
    tensor = site_tensors(site)[0]
    framed = model.frame.name != "raw" and math.prod(tensor_shape(model.spec, tensor)) <= LARGE
    return framed or (tensor in model.stored and model.stored.stored(tensor) == "float64")


def _read_bytes(model: Model, tensor: str) -> int:
    """What a tensor takes beyond its pages of the file; the table of a basis is there already."""
    size = math.prod(tensor_shape(model.spec, tensor))
    widened = 0 if _is_mapped(model, tensor) else 4 * size
    if any(tensor in model.bases[name].tensors for name in bases_of(model)):
        return 0 if model.frame.name == "raw" else 2 * widened + 4 * size  # read again for the norm of its rounding
    return widened + (0 if model.frame.name == "raw" else 3 * 8 * size)


def _block_bytes(vocabulary: int, rows: int, d: int, k: int, itemsize: int) -> int:
    """A block of scores, its directions, and what choosing extremes takes: ids and copies of the candidates."""
    most = max(1, BUFFER_BYTES // (itemsize * vocabulary))
    rows = -(-rows // max(1, -(-rows // most)))
    size = vocabulary // GROUPS
    whole = size < 2 or 4 * (k + SLACK) > GROUPS
    choosing = 16 * vocabulary if whole else 32 * ((k + SLACK) * size + GROUPS + vocabulary % GROUPS)
    near = min(rows, max(1, NEAR_BYTES // (itemsize * vocabulary)))  # winners are chosen of so many at a time
    return rows * (itemsize * vocabulary + 5 * 8 * d) + near * choosing


def _score_bytes(options: Options) -> int:
    """Of one direction: ids and scores of both poles, as they come and as they are kept, and some columns."""
    return 2 * options.k * (8 + 8 + 4 + 4) + 640


def _part_bytes(model: Model, unit: Unit, options: Options) -> int:
    """A finished part that waits to be written, and the copy of it that is being written."""
    kept = sum(kept_and_compared(model.spec, site, options)[0] for site in unit.sites)
    return 3 * (kept * (2 * model.spec.d_model + 16 * options.k + 224) + 8 * _pooled(model, unit, options))


def _pooled(model: Model, unit: Unit, options: Options) -> int:
    """Scores of rotated bases that wait for those of the other heads: four of every direction drawn."""
    if not options.scores:
        return 0
    heads = (site for site in unit.sites if site.head is not None)
    return 4 * options.rotations * sum(kept_and_compared(model.spec, site, options)[1] for site in heads)


def _index_bytes(model: Model, plan: Sequence[Unit], options: Options) -> int:
    """The index while it is assembled: every column in chunks and whole, and one part."""
    rows = [sum(kept_and_compared(model.spec, site, options)[0] for site in unit.sites) for unit in plan]
    part = max(rows) * (2 * model.spec.d_model + _score_bytes(options))
    pooled = 8 * 2 * sum(_pooled(model, unit, options) for unit in plan)
    return sum(rows) * 2 * (2 * options.k * 20 + 512) + pooled + 4 * part + 64 * 2**20


def _plain_bytes(model: Model, name: str) -> int:
    basis = model.bases[name]
    if basis.same_as is not None:
        return 0
    entries = len(basis) * model.spec.d_model
    widened = 0 if all(_is_mapped(model, t) for t in basis.tensors) else 4 * entries
    return widened + (0 if model.frame.name == "raw" else entries * (8 if entries <= LARGE else 4))


def _entries(model: Model, against: Against) -> int:
    return len(model.bases[against.basis]) * model.spec.d_model


def _itemsize(model: Model, against: Against) -> int:
    wide = any(model.stored.stored(t) == "float64" for t in model.bases[against.basis].tensors if t in model.stored)
    return 8 if wide or (model.frame.name != "raw" and _entries(model, against) <= LARGE) else 4


def _is_mapped(model: Model, tensor: str) -> bool:
    """Whether the stored tensor is used where it lies in its file."""
    return tensor not in model.stored or model.stored.stored(tensor) in ("float32", "float64")


def _needs_torch(model: Model) -> bool:
    source = model.stored.source if isinstance(model.stored, AdaptedWeights) else None
    return any(str(file).endswith(".bin") for file in getattr(source, "files", ()))
