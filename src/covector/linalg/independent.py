"""Independent components of labelled vectors: axes of one subspace along which labels are least like a normal law.

In coordinates whitened by the leading principal components, labels have no second moments left that could tell one
orthonormal basis from another. FastICA takes the one whose coordinates are least normal; the others are random
rotations of it, and of the principal components, which are the unit basis. So all of them stand beside each other.

Source: Hyvärinen and Oja 2000, "Independent component analysis: algorithms and applications" (the fixed point is
scikit-learn's); Q19 of the theory page; `docs/theory/studies.md`, equations 35–36.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.linalg.chance.haar import draw_frames, unit_rows
from covector.linalg.chance.streams import Seed, generator
from covector.linalg.factorings import STEPS, available
from covector.linalg.principal import ROWS, Principal


@dataclass(frozen=True, eq=False)
class Independent:
    """Unit axes in no order, the orthogonal matrix that turned whitened coordinates to them, steps, and their end."""

    axes: Float[np.ndarray, "k d"]
    turn: Float[np.ndarray, "k k"]
    converged: bool
    steps: int


def independent(
    vectors: Float[np.ndarray, "n d"],
    found: Principal,
    number: int,
    keep: Bool[np.ndarray, " n"] | None = None,
    seed: Seed = 0,
) -> Independent:
    """FastICA of n rows (of those in `keep`) in the span of the leading `number` of their principal components.

    `found` is `principal(vectors, keep)`. Of x − mean = Σ_j s_j f_j the axes are those that read s_j (the filters:
    labels with most of a source come first along them), not the f_j, all of which lean on the strongest component. Unit
    length, sign of chance, k = `number` or as many as there are components. Stops after STEPS["ica"] steps, `converged`
    or not. Deterministic in `seed`. Float64; holds two or three n × k arrays.
    Raises BadRequest for number < 2 or fewer labels than axes, MissingExtra without scikit-learn.
    """
    available()
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    at = np.arange(len(vectors)) if keep is None else np.flatnonzero(keep)
    k = min(number, len(found.axes))
    if k < 2 or len(at) <= k:
        raise BadRequest(f"expected two axes or more and more labels than axes, got {k} axes of {len(at)} labels")
    filters = _filters(found, k)
    white = np.empty((len(at), k))
    for start in range(0, len(at), ROWS):
        part = at[start : start + ROWS]
        white[start : start + ROWS] = (vectors[part].astype(np.float64) - found.mean) @ filters.T
    state = int(generator(seed, "ica").integers(2**31))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        # Its default, a word, is what the signature is read as; False is documented.
        ica = FastICA(whiten=False, max_iter=STEPS["ica"], random_state=state)  # pyright: ignore[reportArgumentType]
        fitted = ica.fit(white)
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in told)
    turn = np.asarray(fitted.components_)
    return Independent(turned(found, turn), turn, converged, int(fitted.n_iter_))


def turned(found: Principal, turn: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k d"]:
    """Unit directions that read the rows of an orthogonal matrix of whitened coordinates; the unit matrix: components.

    Of labels they read numbers without correlation. Exact to rounding.
    """
    k = len(turn)
    return unit_rows(turn @ _filters(found, k))


def _filters(found: Principal, k: int) -> Float[np.ndarray, "k d"]:
    """What reads whitened coordinates: variance 1 each over the labels."""
    return found.axes[:k] / np.sqrt(found.variances[:k])[:, None]


def random_turns(found: Principal, number: int, count: int, seed: Seed = 0) -> Iterator[Float[np.ndarray, "k d"]]:
    """`count` random bases of whitened coordinates (Haar), as unit directions that read them: ICA chooses one.

    The null of ICA: of labels that are jointly normal, ICA is nearly one of them (it looks at the same labels).
    """
    k = min(number, len(found.axes))
    rng = generator(seed, "turns")
    for _ in range(count):
        yield turned(found, draw_frames(rng, 1, k, k)[0])
