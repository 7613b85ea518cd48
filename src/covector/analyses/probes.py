"""A path's feature against probes fitted to examples: who tells held-out prompts apart with how many examples.

All directions read the same rows (what the path's first step reads, at its slot), are fitted to the same training
pairs, and are tested on the same held-out pairs, whose names and templates are others.

Source: theory page §2.10, §3 (B13).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.predict_path import check_path, each_feature, path_features, read_rows
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.agreement import correlation, separation
from covector.linalg.chance.streams import generator
from covector.linalg.probing import PROBES
from covector.model.opened import Model
from covector.render import Column, Curve, Table
from covector.run.prompts import Pair
from covector.study.observable import Observable
from covector.study.path import Path

NULL = "shuffled labels"


@dataclass(frozen=True, eq=False)
class Scores:
    """One method at one number of training pairs: how it does on the test pairs, draw by draw of the training pairs."""

    method: str
    pairs: int
    auc: Float[np.ndarray, " draws"]
    r2: Float[np.ndarray, " draws"]


def probes(
    model: Model,
    observable: Observable | str,
    path: Path | str,
    train: Sequence[Pair],
    test: Sequence[Pair],
    *,
    at: str = "end",
    held: str = "",
    sizes: Sequence[int] = (),
    draws: int = 20,
    seed: int = 0,
) -> Table:
    """One row per method and number of training pairs: AUC and r² on held-out pairs, mean and 90 % range over draws.

    Methods: ``feature, no data`` (0 pairs; heads only), ``feature`` (secant, mean over the pairs drawn), mean
    difference, least squares on the observable, logistic regression, and least squares on shuffled labels (chance).
    AUC: how often a clean prompt reads above a corrupt one; r²: with the observable over all test prompts, negative
    where the direction is the wrong way round. `sizes` default to 1, 2, 4 … and all. Prediction: nothing saw the test
    pairs. Raises BadRequest for a path without a slot, too few pairs; BadSite, NotOneToken, UnknownBasis.
    """
    if not train or not test:
        raise BadRequest(f"expected pairs for training and testing, got {len(train)} and {len(test)}")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    path = check_path(path, model)
    x, y, order = read_rows(model, observable, path, train, at)
    tested = _Test(*read_rows(model, observable, path, test, at)[:2])
    own = each_feature(model, observable, path, train, at)
    free = path_features(model, observable, path, order[:1], at).get("free")
    counts = _sizes(sizes, len(order))
    found = [] if free is None else [tested.scores("feature, no data", 0, [free])]
    for n in counts:
        chosen = [
            np.sort(generator(seed, "training pairs", i).permutation(len(order))[:n])
            for i in range(draws if n < len(order) else 1)
        ]
        found.append(tested.scores("feature", n, [own[rows].mean(axis=0) for rows in chosen]))
        for name in PROBES:
            found.append(tested.scores(name, n, [fitted(name, x[rows], y[rows]) for rows in chosen]))
        rng = generator(seed, "shuffled", n)
        mixed = [fitted("least squares", x[rows], y[rows], rng) for rows in chosen for _ in range(draws // len(chosen))]
        found.append(tested.scores(NULL, n, mixed))
    return _table(model, observable, path, found, len(order), tested, at, held, seed)


def fitted(
    name: str, x: Float[np.ndarray, "n 2 d"], y: Float[np.ndarray, "n 2"], rng: np.random.Generator | None = None
) -> Float[np.ndarray, " d"]:
    """A probe's direction from pairs; with `rng` the labels are shuffled over all prompts."""
    rows, values = np.concatenate([x[:, 0], x[:, 1]]), np.concatenate([y[:, 0], y[:, 1]])
    positive = np.arange(len(rows)) < len(x)
    if rng is not None:
        turn = rng.permutation(len(rows))
        values, positive = values[turn], positive[turn]
    return PROBES[name](rows, positive, values)


class _Test:
    """Rows and values of the test pairs."""

    def __init__(self, x: Float[np.ndarray, "n 2 d"], y: Float[np.ndarray, "n 2"]) -> None:
        self.x, self.y = np.concatenate([x[:, 0], x[:, 1]]), np.concatenate([y[:, 0], y[:, 1]])
        self.positive = np.arange(len(self.x)) < len(x)
        self.pairs = len(x)

    def scores(self, method: str, pairs: int, directions: Sequence[Float[np.ndarray, " d"]]) -> Scores:
        """A method's directions, one per draw, on all test prompts."""
        read = [self.x @ f for f in directions]
        auc = [separation(r, self.positive) for r in read]
        return Scores(method, pairs, np.array(auc), np.array([signed_square(correlation(r, self.y)) for r in read]))


def signed_square(r: float) -> float:
    """r² with the sign of r: a direction the wrong way round says nothing right."""
    return r * abs(r)


def _sizes(sizes: Sequence[int], n: int) -> list[int]:
    if any(not 1 <= size <= n for size in sizes):
        raise BadRequest(f"expected numbers of training pairs from 1 to {n}, got {list(sizes)}")
    return sorted(set(sizes)) or sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


def _table(
    model: Model,
    observable: Observable,
    path: Path,
    found: Sequence[Scores],
    trained: int,
    tested: _Test,
    at: str,
    held: str,
    seed: int,
) -> Table:
    def of(which: str, share: float | None) -> Float[np.ndarray, " r"]:
        values = [getattr(s, which) for s in found]
        return np.array([v.mean() if share is None else np.quantile(v, share) for v in values])

    columns = [
        Column("method", [s.method for s in found], about="how the direction was made"),
        Column("pairs", np.array([s.pairs for s in found], dtype=np.int64), "", 0, "training pairs that it saw"),
        Column("auc", of("auc", None), "", 3, "how often a clean prompt reads above a corrupt one", chance=0.5),
        Column("auc_low", of("auc", 0.05), "", 3, "5 % of draws of the training pairs are below"),
        Column("auc_high", of("auc", 0.95), "", 3, "5 % are above"),
        Column("r2", of("r2", None), "", 3, "with the observable over the test prompts, with its sign",
               chance=1 / max(len(tested.x) - 1, 1)),
        Column("r2_low", of("r2", 0.05), "", 3, "5 % of draws are below"),
        Column("r2_high", of("r2", 0.95), "", 3, "5 % are above"),
    ]  # fmt: skip
    real = [i for i, s in enumerate(found) if s.method != NULL]
    few = min(s.pairs for s in found if s.pairs)
    best = {n: max((i for i in real if found[i].pairs in (n, 0)), key=lambda i: columns[5].numbers[i])
            for n in (few, trained)}  # fmt: skip
    told = [f"with {n} training pair(s) '{found[i].method}' says most, r² {columns[5].numbers[i]:.2f}, AUC "
            f"{columns[2].numbers[i]:.2f}" for n, i in best.items()]  # fmt: skip
    null = [i for i, s in enumerate(found) if s.method == NULL and s.pairs == trained]
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "probes", "observable": str(observable), "path": str(path), "train": trained,
                           "test": tested.pairs, "held": held, "at": at, "seed": seed, "kind": "prediction"},
        title=f"{model.name} · {observable} · {path} · up to {trained} pairs to train, {tested.pairs} with other "
        f"{held or 'prompts'}",
        says=f"On held-out {held or 'prompts'} {'; '.join(told)}; shuffled labels reach r² "
        f"{float(np.mean(columns[5].numbers[null])) if null else float('nan'):.2f}.",
        not_says="A direction that tells prompts apart at this place need not be what the model uses; a feature is "
        f"made for the path alone{'; ' + observable.warning if observable.warning else ''}.",
        next=f'covector observe predict {model.words} {observable.typed} "{path}" with the same prompts',
        picture=_picture,
        key=("method", "pairs"),
    )  # fmt: skip


def _picture(table: Table) -> Curve:
    pairs = np.array(sorted({int(n) for n in table["pairs"] if n}), dtype=float)
    names = list(dict.fromkeys(table["method"]))
    ys = np.full((len(names), len(pairs)), np.nan)
    for name, n, value in zip(table["method"], table["pairs"], np.asarray(table["r2"]), strict=True):
        ys[names.index(name), slice(None) if not n else int(np.flatnonzero(pairs == n)[0])] = value
    return Curve(pairs, ys, names, "training pairs", "r² on held-out prompts", "", "")
