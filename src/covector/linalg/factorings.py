"""Directions that other factorings than the SVD find in rows of data: ICA, sparse coding, NMF, and how they recover.

Data are rows x = Σ_j s_j f_j. The SVD has at most d directions, all orthogonal; independent components are at most d,
not orthogonal; sparse coding and NMF take as many atoms as are asked for. NMF needs numbers that are not negative: it
gets every row split in two, (max(x, 0), max(−x, 0)), 2d columns, and an atom (h₊, h₋) stands for the direction h₊ − h₋.
The split of a sum is the sum of the splits only where no two terms cancel in a coordinate, so NMF of split rows sees
rays (a feature and its opposite are two atoms) and depends on the coordinates, as none of the others does.

The methods are scikit-learn's (FastICA, MiniBatchDictionaryLearning, NMF). Source: F19, Q6 and Q8 of the theory page;
`docs/theory/studies.md`, equations 24–27.
"""

import warnings
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from covector.axes import Float
from covector.errors import BadRequest, MissingExtra
from covector.linalg.chance.haar import draw_frames, haar_directions, unit_rows
from covector.linalg.chance.streams import Seed, generator

METHODS = ("svd", "ica", "sparse", "nmf")
CONTROLS = ("rotated", "rows", "random")
# Weight of the penalty of sparse coding on codes, over the root mean square length of the rows.
PENALTY = 0.2
# Steps after which a method returns what it has. Measured on toys of 16 and 64 features in 16 dimensions: twice as many
# change recovery by less than .001 for ICA and sparse coding (which stop by themselves), and take up to .04 from NMF.
STEPS = {"ica": 400, "sparse": 40, "nmf": 200}


def atoms(method: str, rows: Float[np.ndarray, "n d"], number: int, seed: Seed = 0) -> Float[np.ndarray, "m d"]:
    """Up to `number` unit directions that a method finds in rows; fewer where it has no more (SVD, ICA: rank).

    `method`: ``svd`` (right singular vectors, not centred), ``ica``, ``sparse``, ``nmf``; controls: ``rotated`` (a
    random orthonormal basis of the span of ``svd``), ``rows`` (random rows of the data), ``random`` (Haar directions).
    Deterministic in `seed`. Raises BadRequest for other methods, number < 1 or rows that are all zero, MissingExtra
    where scikit-learn is needed and not there.
    """
    if method not in (*METHODS, *CONTROLS) or number < 1:
        raise BadRequest(f"expected a method ({', '.join((*METHODS, *CONTROLS))}) and number >= 1, got {method!r}")
    data = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(data).all() or not data.any():
        raise BadRequest("expected finite rows that are not all zero; leave the others out")
    if method == "random":
        return haar_directions(number, data.shape[1], seed)
    if method == "rows":
        long = np.flatnonzero(np.linalg.norm(data, axis=1) > 0)
        return unit_rows(data[generator(seed, "rows").permutation(long)[:number]])
    _, sizes, axes = np.linalg.svd(data, full_matrices=False)
    axes = axes[: min(number, int((sizes > sizes[0] * 1e-9).sum()))]
    if method == "svd":
        return axes
    if method == "rotated":
        return draw_frames(generator(seed, "rotated"), 1, len(axes), len(axes))[0] @ axes
    found = _learned(method, data, axes, number, seed)
    sizes = np.linalg.norm(found, axis=1)
    return unit_rows(found[sizes > 1e-9 * sizes.max(initial=1e-300)])


def _learned(method: str, data: np.ndarray, axes: np.ndarray, number: int, seed: Seed) -> Float[np.ndarray, "m d"]:
    """What scikit-learn finds, as rows of any length. ICA and sparse coding work in the span of the leading axes."""
    decomposition, state = _library(), int(generator(seed, method).integers(2**31))
    scaled = data / np.sqrt(np.mean(np.sum(data**2, axis=1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: what it has by then is what is measured
        if method == "ica":
            inside = scaled @ axes.T
            model = decomposition.FastICA(len(axes), max_iter=STEPS[method], random_state=state, whiten="unit-variance")
            return model.fit(inside).mixing_.T @ axes
        if method == "sparse":
            whole = np.linalg.svd(scaled, full_matrices=False)[2]
            model = decomposition.MiniBatchDictionaryLearning(
                number, alpha=PENALTY, max_iter=STEPS[method], batch_size=256, fit_algorithm="cd", random_state=state
            )
            return model.fit(scaled @ whole.T).components_ @ whole
        split = np.concatenate([np.maximum(scaled, 0), np.maximum(-scaled, 0)], axis=1)
        model = decomposition.NMF(number, init="random", max_iter=STEPS[method], random_state=state)
        found = model.fit(split).components_
        return found[:, : data.shape[1]] - found[:, data.shape[1] :]


def available() -> None:
    """Raise MissingExtra where scikit-learn is not installed."""
    _library()


def _library() -> Any:
    try:
        from sklearn import decomposition
    except ImportError as error:
        raise MissingExtra(
            f"ICA, sparse coding and NMF are scikit-learn's: expected it, {error.name} is missing; "
            "pip install 'covector[study]'"
        ) from error
    return decomposition


def sparse_toy(
    n: int, d: int, *, rows: int, active: float, noise: float, seed: Seed
) -> tuple[Float[np.ndarray, "rows d"], Float[np.ndarray, "n d"]]:
    """Data with n planted features in d dimensions, and the features: unit Haar directions.

    Every feature is there in a row with probability active/n, by an amount from ½ to 1½ (never negative); Gaussian
    noise of `noise` per coordinate. Raises BadRequest for sizes below 1 or more active features than there are.
    """
    if min(n, d, rows) < 1 or not 0 < active <= n or noise < 0:
        raise BadRequest(f"expected sizes >= 1, 0 < active <= n and noise >= 0, got {n}, {d}, {rows}, {active}")
    rng = generator(seed, "toy")
    features = unit_rows(rng.standard_normal((n, d)))
    amounts = (rng.random((rows, n)) < active / n) * rng.uniform(0.5, 1.5, (rows, n))
    return amounts @ features + noise * rng.standard_normal((rows, d)), features


def recovery(found: Float[np.ndarray, "m d"], truth: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """|cos| of every true direction with the found one that is matched to it; 0 where none is left.

    Both are unit rows, signs do not count. The matching is one to one and has the largest sum (Hungarian method), so
    one found direction cannot stand for two features. Costs n·m·d and O((n + m)³).
    """
    cosines = np.abs(truth @ found.T)
    at, of = linear_sum_assignment(cosines, maximize=True)
    matched = np.zeros(len(truth))
    matched[at] = cosines[at, of]
    return matched


def explained(rows: Float[np.ndarray, "n d"], found: Float[np.ndarray, "m d"]) -> float:
    """Share of the squared length of rows that lies in the span of the found directions."""
    basis = np.linalg.qr(found.T)[0]
    return float(np.sum((rows @ basis) ** 2) / np.sum(rows**2))
