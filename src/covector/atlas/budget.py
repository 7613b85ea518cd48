"""How much anonymous memory a build takes: an upper bound, so that what cannot fit is refused before it begins.

Mapped weight files do not count: the system takes their pages back when it needs them. What counts are widened and
re-framed copies, the decompositions of the units under way, one block of scores per worker, and, at the end, the index.
The factors below were held against the measured peaks of builds (`tests/atlas/test_atlas_memory.py`).
"""

import math
from collections.abc import Iterable

from covector.arch.adapter import AdaptedWeights
from covector.atlas.nulls import ROWS
from covector.atlas.plan import Against, Options, Unit, bases_of, directions, tensor_shape
from covector.errors import BadRequest
from covector.linalg.dense_svd import TRIANGLE_ROWS
from covector.linalg.maps import TILE_ENTRIES
from covector.linalg.topk import BUFFER_BYTES, GROUPS, SLACK
from covector.model.address import Site
from covector.model.circuits import site_tensors
from covector.model.frames import LARGE
from covector.model.opened import Model

# What the interpreter, NumPy, SciPy, Arrow and the tables of tokens hold before any weight is read; torch, where a
# checkpoint in its own format needs it.
INTERPRETER_BYTES, TORCH_BYTES = 160 * 2**20, 300 * 2**20
# Of a direction of a unit under way: its vector as decomposed, in rows, stacked with others, and in half precision.
VECTOR_BYTES = 8 + 8 + 8 + 2
# Of a Gram d x d in float64: itself, its eigenvectors, what LAPACK works in, and the products that follow.
GRAMS = 9


def fitting_workers(
    model: Model, plan: tuple[Unit, ...], options: Options, workers: int, memory: int, *, apart: bool = False
) -> int:
    """How many of `workers` fit into `memory` bytes; `apart` says that each is a process of its own.

    Raises BadRequest, with what is needed, if not even one does.
    """
    least = needed_bytes(model, plan, options, 1, apart=apart)
    if least > memory:
        raise BadRequest(
            f"--memory {memory / 2**30:.2f} GiB is too little for {model.name}: expected at least "
            f"{least / 2**30:.2f} GiB (its vocabulary {table_bytes(model, plan) / 2**30:.2f}, the largest unit "
            f"{max(unit_bytes(model, u, options) for u in plan) / 2**30:.2f}); allow more, or lower --rank"
        )
    return next(n for n in range(workers, 0, -1) if needed_bytes(model, plan, options, n, apart=apart) <= memory)


def needed_bytes(model: Model, plan: tuple[Unit, ...], options: Options, workers: int, *, apart: bool = False) -> int:
    """Anonymous memory that a build takes at most with so many workers, summed over processes."""
    process = INTERPRETER_BYTES + (TORCH_BYTES if _needs_torch(model) else 0)
    largest = sum(sorted((unit_bytes(model, unit, options) for unit in plan), reverse=True)[:workers])
    waiting = (workers + 1) * max(_part_bytes(model, unit, options) for unit in plan)
    tables = table_bytes(model, plan) + judging_bytes(model, plan, options)
    at_work = (process + tables) * (workers if apart else 1) + largest
    at_end = process + tables + _index_bytes(model, plan, options)
    return max(at_work + waiting + apart * process, at_end)


def table_bytes(model: Model, plan: tuple[Unit, ...]) -> int:
    """Anonymous memory of the bases' vectors while they are read: widened, re-framed, and without their mean."""
    against = {unit.basis for unit in plan if unit.basis}
    plain = {name: _plain_bytes(model, name) for name in sorted({a.basis for a in against})}
    centred = sum(_entries(model, a) * _itemsize(model, a) for a in against if a.centred)
    # Rewriting takes two more copies for a moment, one table at a time.
    passing = max((2 * _entries(model, a) * _itemsize(model, a) for a in against), default=0)
    lengths = sum(32 * len(model.bases[a.basis]) for a in against)
    return sum(plain.values()) + centred + lengths + (passing if model.frame.name != "raw" or centred else 0)


def judging_bytes(model: Model, plan: tuple[Unit, ...], options: Options) -> int:
    """Of the unit vectors that lists are drawn from and judged by, and the copies that pass while they are made."""
    bases = {(a.basis if model.bases[a.basis].same_as is None else "", a) for a in (u.basis for u in plan) if a}
    each = [4 * _entries(model, a) * (_itemsize(model, a) // 4) for name, a in bases if name]
    return 2 * sum(each) + 3 * max(each, default=0) if options.scores else 0


def unit_bytes(model: Model, unit: Unit, options: Options) -> int:
    """Anonymous memory of one unit under way, the bases not counted."""
    d = model.spec.d_model
    if unit.basis:
        size = len(model.bases[unit.basis.basis])
        return 8 * (5 * d * d + 3 * min(size, ROWS) * d + 6 * options.draws * d) + _block_bytes(
            size, options.draws, options.k
        )
    vocabulary = max(len(model.bases[name]) for name in bases_of(model))
    scored = sum(directions(model.spec, site, options)[1] for site in unit.sites)
    read = sum(_read_bytes(model, tensor) for tensor in unit.tensors)
    held = max(_decomposition_bytes(model, site) for site in unit.sites)
    subspaces = 8 * vocabulary * 2 * sum(site.head is not None for site in unit.sites)
    return (
        read
        + held
        + subspaces
        + scored * (VECTOR_BYTES * d + _score_bytes(options))
        + _block_bytes(vocabulary, scored, options.k)
    )


def _decomposition_bytes(model: Model, site: Site) -> int:
    d, shape = model.spec.d_model, tensor_shape(model.spec, site_tensors(site)[0])
    if site.head is not None:
        return 8 * 8 * d * shape[-1]
    short, long = sorted(shape)
    tile = 8 * max(min(short * long, TILE_ENTRIES), 3 * short * min(long, max(TRIANGLE_ROWS, 2 * short)))
    both = 0 if short == d else 8 * 4 * short * long  # the side in the stream is the long one
    return 8 * GRAMS * short**2 + 2 * tile + both


def _read_bytes(model: Model, tensor: str) -> int:
    """What a tensor takes beyond its pages of the file."""
    size = math.prod(tensor_shape(model.spec, tensor))
    widened = 0 if _is_mapped(model, tensor) else 4 * size
    return widened + (0 if model.frame.name == "raw" else 3 * 8 * size)


def _block_bytes(vocabulary: int, rows: int, k: int) -> int:
    """A block of scores, and what choosing extremes takes: a share of it, or ids of all where groups do not help."""
    block = min(max(BUFFER_BYTES, 8 * vocabulary), 8 * vocabulary * rows)
    whole = vocabulary < 2 * GROUPS or 4 * (k + SLACK) > GROUPS
    return (4 if whole else 2) * block + 16 * 2**20


def _score_bytes(options: Options) -> int:
    """Of one direction: ids and scores of both poles, as they come and as they are kept, and some columns."""
    return 2 * options.k * (8 + 8 + 4 + 4) + 512


def _part_bytes(model: Model, unit: Unit, options: Options) -> int:
    """A finished part that waits to be written, and the copy of it that is being written."""
    kept = sum(directions(model.spec, site, options)[0] for site in unit.sites)
    return 3 * kept * (2 * model.spec.d_model + 16 * options.k + 128)


def _index_bytes(model: Model, plan: Iterable[Unit], options: Options) -> int:
    """The index while it is assembled: every column in chunks and whole, and one part."""
    rows = [sum(directions(model.spec, site, options)[0] for site in unit.sites) for unit in plan]
    part = max(rows) * (2 * model.spec.d_model + _score_bytes(options))
    return sum(rows) * 2 * (2 * options.k * 20 + 256) + 4 * part + 64 * 2**20


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
    return 8 if model.frame.name != "raw" and _entries(model, against) <= LARGE else 4


def _is_mapped(model: Model, tensor: str) -> bool:
    """Whether the stored tensor is used where it lies in its file."""
    return tensor not in model.stored or model.stored.stored(tensor) in ("float32", "float64")


def _needs_torch(model: Model) -> bool:
    source = model.stored.source if isinstance(model.stored, AdaptedWeights) else None
    return any(str(file).endswith(".bin") for file in getattr(source, "files", ()))
