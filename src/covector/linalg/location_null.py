"""Many faces at once: the joint null of their gains when one set is turned, and how sure it is which face is first.

In each draw the same turned set is scored at every face, so faces that resemble each other (heads that share a value
matrix, neighbouring layers) rise and fall together in the null as they do in the data; the maximum over faces then
costs no more than it must.

A gain's z is an inner product of two unit symmetric forms, z = √((d−1)(d+2)/2)·⟨Ĉ₀, Â₀⟩. Forms are packed (upper
triangle, float32) and all draws meet all faces in one matrix product.

Source: §4.0 of the theory (N3, Westfall–Young); `docs/theory/location.md`, equations 4 and 9–11.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import qr

from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.location import Face, Moment, reflected

# Packed entries of turned moments held at a time (512 MB in float32), and of faces per product (64 MB). The first fixes
# the blocks of the random streams, so it never varies.
TURNED_ENTRIES = 2**27
FACE_ENTRIES = 2**24
# Entries of turned moments made at a time (8 MB); their numbers do not depend on it.
GAUSSIANS = 2**20
# Entries from which a matrix is decomposed by itself.
LARGE = 2**16
# Vectors up to this number are resampled one by one; more are dealt into so many random groups, whose means have the
# same standard error as the vectors' own.
ITEMS = 256


@dataclass(frozen=True, eq=False)
class Family:
    """Faces that live in one space and meet one set there; `centred`: in coordinates of `location.hyperplane`."""

    moment: Moment
    faces: Sequence[Face]
    centred: bool = False


def null_scores(families: Sequence[Family], *, draws: int, seed: Seed) -> Float[np.ndarray, "draws m"]:
    """z of every face's gain for `draws` random rotations of the set, all faces in each; families side by side.

    Columns have mean 0 and variance 1; a face (or a set) without any spread gets zeros. Families in the stream and in
    its hyperplane are turned by the same Gaussian numbers, so that they, too, move together; each is exactly Haar in
    its own space. Costs, per draw, a QR of d × min(n, d) and d² multiplications per face; per block of 2²⁸/d² draws
    every face's form again, r·d². Memory 600 MB at the most. Float32: z is right to 1e-3.
    Raises BadRequest for draws < 1.
    """
    if draws < 1:
        raise BadRequest(f"a null needs draws >= 1, got {draws}; 1000 resolve a familywise 5 %")
    size = min(_block_size(max(f.moment.d for f in families)), 1024)
    blocks = []
    for number in range(-(-draws // size)):
        frames = _frames(families, min(size, draws - number * size), generator(seed, "location", number))
        blocks.append(np.concatenate([_met(f, turned) for f, turned in zip(families, frames, strict=True)], axis=1))
    return np.concatenate(blocks)


def item_scores(
    family: Family, vectors: Float[np.ndarray, "n d"], groups: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "k m"]:
    """z that each group of vectors alone would give each face, in units of the whole set's sd.

    Their mean, weighted by the groups' sizes, is the z of the set.
    """
    _check_space(family, vectors)
    d = family.moment.d
    made = np.empty((int(groups.max()) + 1, d * (d + 1) // 2), dtype=np.float32)
    for group in range(len(made)):
        rows = vectors[groups == group].astype(np.float64)
        made[group] = _packed(rows.T @ rows / len(rows), family.moment)
    return _met(family, made)


def dealt(n: int, seed: Seed) -> Int[np.ndarray, " n"]:
    """The group of each of n vectors for `share_first`: itself, or one of `ITEMS` groups of nearly equal size."""
    return np.arange(n) if n <= ITEMS else generator(seed, "deal").permutation(n) % ITEMS


def share_first(
    items: Float[np.ndarray, "k m"], sizes: Int[np.ndarray, " k"], *, draws: int, seed: Seed
) -> Float[np.ndarray, " m"]:
    """How sure it is that a face has the largest z, for items like these: its share of draws of all means; sums to 1.

    Means are drawn around the observed ones from the multivariate t law of k − 1 degrees that the scatter of the items
    implies, so that of two faces with equal true means either has a share ≥ 1 − α in a share 2α of samples, exactly for
    normal items of equal size, whatever their number. (Items drawn with replacement have (k − 1)/k of the variance and
    normal tails: with k = 2 either would be sure in half of all samples.)
    Ties go to the face that comes first. NaN throughout for a single item, which cannot vary, or where all faces are
    NaN. NaN columns (faces without spread) are never first. Raises BadRequest for draws < 1.
    Source: `docs/theory/location.md`, equation 11.
    """
    k, m = items.shape
    if draws < 1:
        raise BadRequest(f"shares of draws need draws >= 1, got {draws}; 1000 are customary")
    free = np.flatnonzero(~np.isnan(items).any(axis=0))
    if k == 1 or not len(free):
        return np.full(m, np.nan)
    weights, rng = sizes / sizes.sum(), generator(seed, "bootstrap")
    mean = weights @ items[:, free]
    rests = weights[:, None] * (items[:, free] - mean)
    scale = np.sqrt(k / rng.chisquare(k - 1, draws))
    scores = mean + scale[:, None] * (rng.standard_normal((draws, k)) @ rests)
    return np.bincount(free[np.argmax(scores, axis=1)], minlength=m) / draws


def _met(family: Family, turned: Float[np.ndarray, "draws k"]) -> Float[np.ndarray, "draws m"]:
    """z of every face with every packed moment."""
    d, faces = family.moment.d, family.faces
    made = np.zeros((len(turned), len(faces)))
    step = max(1, FACE_ENTRIES // turned.shape[1])
    scale = np.sqrt((d - 1) * (d + 2) / 2)
    for start in range(0, len(faces), step):
        forms = np.stack([_form(face) for face in faces[start : start + step]])
        made[:, start : start + step] = scale * (turned @ forms.T)
    return made


def _form(face: Face) -> Float[np.ndarray, " k"]:
    """The packed unit form Â₀ = (A − I)/‖A − I‖, A = Rᵀ·diag(shares)·R; zeros where A is I."""
    d = face.directions.shape[1]
    rows = (face.directions * np.sqrt(face.shares)[:, None]).astype(np.float32)
    form = rows.T @ rows
    form[np.diag_indices(d)] -= 1
    return _pack(form, face.spread)


def _packed(C: Float[np.ndarray, "*draws d d"], moment: Moment) -> Float[np.ndarray, "*draws k"]:
    """C − I/d in units of the set's spread, packed so that an inner product of packed forms is that of the forms."""
    traceless = C.astype(np.float32)
    traceless[..., range(moment.d), range(moment.d)] -= np.float32(1 / moment.d)
    return _pack(traceless, moment.spread)


@lru_cache(maxsize=2)
def _triangle(d: int) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Flat places of the upper triangle, and the weights (1, or √2 off the diagonal) that keep inner products."""
    rows, columns = np.triu_indices(d)
    return rows * d + columns, np.where(rows == columns, 1.0, np.sqrt(2.0)).astype(np.float32)


def _pack(form: Float[np.ndarray, "*draws d d"], spread: float) -> Float[np.ndarray, "*draws k"]:
    """Symmetric forms in units of `spread`, packed; zeros where there is none."""
    d = form.shape[-1]
    places, weights = _triangle(d)
    scale = weights / np.float32(spread) if spread else np.zeros_like(weights)
    return np.take(form.reshape(*form.shape[:-2], d * d), places, axis=-1) * scale


def _frames(families: Sequence[Family], count: int, rng: np.random.Generator) -> list[Float[np.ndarray, "draws k"]]:
    """Packed moments of the turned set, one [count, d(d+1)/2] per family, made from the same Gaussian numbers."""
    stream = max(f.moment.d + f.centred for f in families)
    most = max(len(f.moment.weights) for f in families)
    made = [np.empty((count, f.moment.d * (f.moment.d + 1) // 2), dtype=np.float32) for f in families]
    step = max(1, GAUSSIANS // (stream * stream))
    for start in range(0, count, step):
        some = slice(start, min(start + step, count))
        gaussian = rng.standard_normal((some.stop - start, stream, most), dtype=np.float32)
        for family, turned in zip(families, made, strict=True):
            turned[some] = _packed(_turned(family, gaussian), family.moment)
    return made


def _turned(family: Family, gaussian: Float[np.ndarray, "draws n m"]) -> Float[np.ndarray, "draws d d"]:
    """FᵀgF with F a Haar frame in the family's space. Signs of F's rows cancel, so QR needs no fixing."""
    weights = family.moment.weights
    if family.centred:
        gaussian = reflected(gaussian.swapaxes(1, 2)).swapaxes(1, 2)[:, :-1]
    frame = _orthonormal(gaussian[:, :, : len(weights)])
    return (frame * weights.astype(np.float32)) @ frame.swapaxes(1, 2)


def _orthonormal(columns: Float[np.ndarray, "draws n m"]) -> Float[np.ndarray, "draws n m"]:
    """Q of each QR: large ones singly by SciPy (half the time of NumPy in float32), small ones in one call."""
    if columns.shape[1] * columns.shape[2] < LARGE:
        return np.linalg.qr(columns)[0]
    return np.stack([qr(some, mode="economic", check_finite=False)[0] for some in columns])


def _block_size(d: int) -> int:
    return max(1, TURNED_ENTRIES // (d * (d + 1) // 2))


def _check_space(family: Family, vectors: np.ndarray) -> None:
    if vectors.shape[1] != family.moment.d:
        raise BadRequest(f"the family lives in {family.moment.d} dimensions, the vectors in {vectors.shape[1]}")
