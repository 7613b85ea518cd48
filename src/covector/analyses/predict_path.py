"""A path's feature made elsewhere, read on held-out prompts, beside the observable that was measured there.

Source: theory page §1.5, §2.10; `docs/theory/observables.md`, equations 7–11.
"""

from collections.abc import Sequence

import numpy as np

from covector.analyses.predict import Beside
from covector.analyses.propagate import propagate
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.agreement import agreement
from covector.model.opened import Model
from covector.propagation.search import functional
from covector.render import Column, Scatter, Table
from covector.run.decoder import Decoder
from covector.run.pairs import worlds_of
from covector.run.points import captured
from covector.run.prompts import Pair, batches
from covector.study.observable import Observable
from covector.study.path import Path, parse_path


def path_features(
    model: Model, observable: Observable, path: Path, train: Sequence[Pair], at: str = "end"
) -> dict[str, Float[np.ndarray, " d_model"]]:
    """The path's features where its first step reads: ``train`` (secant, mean over the pairs), ``free`` (no data).

    ``free`` is missing for paths through MLPs, queries and keys, which are linear at a working point only.
    """
    found = {"train": each_feature(model, observable, path, train, at).mean(axis=0)}
    if all(step.kind in ("v", "embed") for step in path.steps):
        plain = Path(tuple(type(s)(s.kind, s.layer, s.head, s.dyad) for s in path.steps))
        found["free"] = propagate(model, observable, plain).vector
    return found


def each_feature(
    model: Model, observable: Observable, path: Path, pairs: Sequence[Pair], at: str = "end"
) -> Float[np.ndarray, "n d_model"]:
    """The path's feature with secant stand-ins at each pair by itself, in the order of `read_rows`."""
    worlds, _ = worlds_of(model, observable, pairs, at=at)
    return np.concatenate([functional(world, path).sum(axis=1) for world in worlds])


def read_rows(
    model: Model, observable: Observable, path: Path, pairs: Sequence[Pair], at: str = "end"
) -> tuple[Float[np.ndarray, "n 2 d_model"], Float[np.ndarray, "n 2"], list[Pair]]:
    """What the path's first step reads (before its norm) in both prompts, and the observable; pairs as they ran."""
    step = path.steps[0]
    hook = "resid_in" if step.kind == "embed" else f"L{step.layer}.{step.sublayer}_in"
    decoder, rows, values, order = Decoder(model.weights, device=model.device), [], [], list[Pair]()
    for batch in batches(pairs):
        own, place, each = batch.at(step.slot or at), batch.at(at), np.arange(len(batch.pairs))
        runs = [captured(decoder, tokens) for tokens in (batch.clean, batch.corrupt)]
        rows.append(np.stack([run[hook][each, own] for run in runs], axis=1))
        values.append(np.stack([observable.of(run[f"out.{observable.output}"][each, place]) for run in runs], axis=1))
        order += batch.pairs
    return np.concatenate(rows), np.concatenate(values), order


def check_path(path: Path | str, model: Model) -> Path:
    """A path whose first step says where it is read. Raises BadRequest, BadSite."""
    path = parse_path(path, model.spec) if isinstance(path, str) else path
    if not path.steps or path.steps[0].slot is None:
        raise BadRequest(f"{path}: expected a path whose first step says where it is read, such as L1H0@NAME>L2H3")
    return path


def predict_path(
    model: Model,
    observable: Observable | str,
    path: Path | str,
    train: Sequence[Pair],
    test: Sequence[Pair],
    *,
    at: str = "end",
    held: str = "",
) -> Table:
    """One row per held-out prompt: the observable measured, and what the path's features say of it.

    ``train`` (prediction): f·x + c with the feature of the training pairs and c the mean rest there: slope 1 if this
    path, read at this place, carries all of the difference. ``free`` (prediction): the data-free feature, without 1/σ.
    ``side`` is clean or corrupt; meta has the agreement over all prompts and within a side, which two well separated
    sides do not raise. Raises BadRequest for a path without a slot at its first step, BadSite,
    NotOneToken, UnknownBasis.
    """
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    path = check_path(path, model)
    features = path_features(model, observable, path, train, at)
    rows, values, _ = read_rows(model, observable, path, train, at)
    tested, measured, order = read_rows(model, observable, path, test, at)
    guesses = {name: tested @ f for name, f in features.items()}
    guesses["train"] = guesses["train"] + float(np.mean(values - rows @ features["train"]))
    every = [Beside(n, "prediction", g.T, measured.T, units=n == "train") for n, g in guesses.items()]
    return _table(model, observable, path, every, order, len(train), at, held)


def _table(
    model: Model,
    observable: Observable,
    path: Path,
    every: Sequence[Beside],
    pairs: Sequence[Pair],
    trained: int,
    at: str,
    held: str,
) -> Table:
    best, n = every[0], len(pairs)
    texts = [pair.texts[side] for side in (0, 1) for pair in pairs]
    sides = ["clean"] * n + ["corrupt"] * n
    measured = best.measured.ravel()
    columns = [
        Column("prompt", texts, about="a held-out prompt"),
        Column("side", sides, about="which side of its pair"),
        Column("measured", measured, "logits", 3, "the observable"),
        *(
            Column(b.name, b.guess.ravel(), "logits" if b.units else "", 3,
                   "prediction: feature of the training pairs" if b.units else "prediction: weights alone, no 1/σ")
            for b in every
        ),
        Column("off", np.abs(best.guess - best.measured).ravel(), "logits", 3, "how far the training feature is off"),
    ]  # fmt: skip
    free = f"; weights alone: r² {every[1].over_all.r2:.2f}" if len(every) > 1 else ""
    differences = agreement(best.guess[0] - best.guess[1], best.measured[0] - best.measured[1])
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "predict", "observable": str(observable), "path": str(path), "train": trained,
                           "test": n, "held": held, "at": at, "kind": "prediction",
                           "beside": [b.to_meta() for b in every], "differences": str(differences)},
        title=f"{model.name} · {observable} · {path} · {trained} pairs to train, {n} with other {held or 'prompts'} · "
        f"prediction: {best.over_all}",
        says=f"The feature of {path} made elsewhere says the observable of held-out prompts with {best.over_all}; "
        f"within a side of the pairs with r² {best.within.r2:.2f}{free}.",
        not_says="It does not say that the model uses this path: anything that goes along with the task at that place "
        f"does as well (observe probes compares){'; ' + observable.warning if observable.warning else ''}.",
        next=f'covector observe probes {model.words} {observable.typed} "{path}" with the same prompts',
        picture=_picture,
    ).take(np.argsort(-np.abs(best.guess - best.measured).ravel(), kind="stable"))  # fmt: skip


def _picture(table: Table) -> Scatter:
    return Scatter(np.asarray(table["train"]), np.asarray(table["measured"]), "predicted", "measured", "logits",
                   "logits", groups=list(table["side"]), diagonal=True)  # fmt: skip
