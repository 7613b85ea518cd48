"""What norms do to a task's features: how far each turns them against chance, what its gain does, how its scale varies.

A norm without its gain takes k directions out of a functional (its own row, and 1 for LayerNorm), so for a functional
that has nothing to do with them sin² of the turn is Beta(k/2, (d − k)/2). A feature that its rows hold much of is
turned more.

Source: theory page §1.3, §2.6, §4.4 (Theorem 1 and its exact form); OP-4, OP-9.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from covector.analyses.head_norms import head_norms
from covector.analyses.propagate import DATA_FREE, each_attention
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.agreement import rank_correlation
from covector.linalg.chance.streams import generator
from covector.linalg.standins import Points, pull_norm
from covector.model.opened import Model
from covector.model.spec import ModelSpec, Norm
from covector.propagation.linearised import Linearised
from covector.propagation.search import World, through
from covector.render import Column, Scatter, Table
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair, batches
from covector.study.observable import Observable
from covector.study.path import Path, parse_path

LEVEL = 0.05


@dataclass(frozen=True)
class Passage:
    """A functional as it comes to a norm from behind: where, which norm, at which slot its rows are (None: all)."""

    path: str
    name: str
    norm: Norm
    vector: Float[np.ndarray, " d"]
    slot: str | None


@dataclass(frozen=True)
class _Recording(Linearised):
    """A model without runs that keeps every functional which passes a norm."""

    passed: list[tuple[str, Norm, np.ndarray]] = field(default_factory=list)

    def norm(self, v: np.ndarray, norm: Norm | None, name: str, points: Points) -> np.ndarray:
        if norm is not None:
            self.passed.append((name, norm, v.reshape(-1, v.shape[-1])))
        return super().norm(v, norm, name, points)


def layernorm(
    model: Model,
    observable: Observable | str,
    pairs: Sequence[Pair],
    path: Path | str | None = None,
    *,
    at: str = "end",
    draws: int = 2000,
    seed: int = 0,
) -> Table:
    """One row per path and norm on it: the turn of the task's feature there, beside Theorem 1's exact law.

    Without `path`: the final norm, and the norm above every head. ``gain_turn``: angle between the functional v on the
    norm's output and γ⊙v; ``turn``: between γ⊙v and its exact pull-back, mean over rows; ``law``: the median of
    arcsin √Beta(k/2, (d−k)/2), k = 2 (LayerNorm), 1 (RMSNorm); p: the chance that a direction at random is turned as
    much by the same rows (mean sin² over them), q over the table. ``gain_share``: gain's part of sin² gain + sin² norm.
    ``scale`` is the mean of 1/σ and ``spread`` its standard deviation over its mean. Rows are those of both prompts, at
    the slot that a step names, else at every position but the first, which is never taken; the final norm's at `at`.
    Functionals are made without data (their direction is, §1.3), working points at the prompts. ``meta["rankings"]``:
    rank correlations of heads' norms under the conventions of `head_norms` and with 1/σ measured.
    Exact, with the law's p by `draws` simulated directions. Raises BadRequest for no pairs, an MLP, query or key on
    the path, a slot at position 0; BadSite, NotOneToken, UnknownBasis.
    """
    if not pairs:
        raise BadRequest("expected prompts, got none; give --template and --fill, or --prompts FILE")
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    passages = along_path(model, observable, path, at) if path is not None else above_heads(model, observable, at)
    if not passages:
        raise BadRequest(f"{model.name} has no norms on these paths: nothing is turned")
    runs = _runs(model, pairs)
    linear = Linearised(model.weights, (), DATA_FREE)
    made = [_row(linear, p, _rows(model.spec, runs, p), draws, seed) for p in passages]
    rankings = _rankings(model, observable, passages, made) if path is None else {}
    return _table(model, observable, passages, made, rankings, len(pairs), seed, at)


def above_heads(model: Model, observable: Observable, at: str) -> list[Passage]:
    """Every norm that the data-free features of all heads pass, first the ones that they share."""
    linear = _Recording(model.weights, (), DATA_FREE)
    start = linear.unread(observable.vector[None], observable.output)[1]
    for _ in each_attention(linear, start):
        pass
    found: dict[str, Passage] = {}
    for name, norm, rows in linear.passed:
        if not _known(name):
            continue
        reads = name.endswith("attn_norm")
        for head, v in enumerate(rows):
            label = f"{name.partition('.')[0]}H{head}>out" if reads else "out"
            found.setdefault(f"{label} {name}", Passage(label, name, norm, v, None if reads else at))
    return list(found.values())


def along_path(model: Model, observable: Observable, path: Path | str, at: str) -> list[Passage]:
    """Every norm that a path's data-free feature passes, from the output down."""
    path = parse_path(path, model.spec) if isinstance(path, str) else path
    bad = next((s for s in path.steps if s.kind in ("mlp", "q", "k")), None)
    if bad is not None:
        raise BadRequest(
            f"{bad}: expected heads through their values (and embed): behind an MLP, a query or a key the feature is "
            "another vector in every prompt, but Theorem 1's law, and p, are of one vector on all rows; name the part "
            "of the path behind it (observe feature --template … has lengths at prompts)"
        )
    linear = _Recording(model.weights, (), DATA_FREE)
    F, state = linear.unread(observable.vector[None], observable.output)[1], linear.end
    world, found, slot, gone = World(linear, F, [["*"]]), list[Passage](), at, Path(())

    def keep() -> None:
        label = str(gone)
        for name, norm, rows in linear.passed:
            own = name.endswith("_norm") and name != "final_norm"
            where = gone.steps[0].slot if own and gone.steps else slot
            if _known(name) and not any(p.path == label and p.name == name for p in found):
                found.append(Passage(label, name, norm, rows[0], where))
        linear.passed.clear()

    keep()
    for step in reversed(path.steps):
        plain = type(step)(step.kind, step.layer, step.head, step.dyad)
        gone = gone.before(step)
        F, state = through(world, F, state, plain)
        keep()
        slot = step.slot
    return found


def _known(name: str) -> bool:
    """Norms whose input the hooks show: not those inside an output's transform, nor of the embeddings."""
    return name == "final_norm" or (name.startswith("L") and name.rsplit("_", 1)[-1] in ("norm", "post", "after"))


def _runs(model: Model, pairs: Sequence[Pair]) -> list[tuple[Pair, Mapping[str, np.ndarray]]]:
    """Each prompt of each pair with its activations [position, …]."""
    decoder, found = Decoder(model.weights, device=model.device), []
    for batch in batches(pairs):
        for tokens in (batch.clean, batch.corrupt):
            run = captured(decoder, tokens)
            found += [(pair, {k: x[i] for k, x in run.items()}) for i, pair in enumerate(batch.pairs)]
    return found


def _rows(
    spec: ModelSpec, runs: Sequence[tuple[Pair, Mapping[str, np.ndarray]]], p: Passage
) -> Float[np.ndarray, "n d_model"]:
    """What a norm reads at its slot in every prompt; at every position but the first where it has none."""
    if p.name == "final_norm":
        hooks = (f"L{spec.n_layers - 1}.resid_post" if spec.n_layers else "resid_in",)
    else:
        lead, _, role = p.name.rpartition("_")
        hooks = {"norm": (f"{lead}_in",), "post": (f"{lead}_out",), "after": (f"{lead}_in", f"{lead}_added")}[role]
    found = []
    for pair, run in runs:
        x = np.sum([run[hook] for hook in hooks], axis=0)
        found.append(x[1:] if p.slot is None else x[[t for t in (pair.position(p.slot),) if t > 0]])
    rows = np.concatenate(found)
    if not len(rows):
        raise BadRequest(f"{p.path}: its rows stand at position 0 alone, which is left out; give --bos yes or a slot")
    return rows


@dataclass(frozen=True)
class _Turn:
    """One row's numbers; angles in degrees."""

    gain: float
    turn: float
    law: float
    high: float
    p: float
    share: float
    scale: float
    spread: float
    length: float


def _row(linear: Linearised, p: Passage, x: Float[np.ndarray, "n d_model"], draws: int, seed: int) -> _Turn:
    gain = linear.part(f"{p.name}.gain")
    w = p.vector if gain is None else p.vector * gain
    centre, k, d = p.norm.kind == "layer", 2 if p.norm.kind == "layer" else 1, len(p.vector)
    v = np.broadcast_to(p.vector, x.shape)
    after = pull_norm(v, "exact", (x,), centre=centre, gain=gain, eps=p.norm.eps)
    c = x - x.mean(axis=-1, keepdims=True) if centre else x
    inverse = 1 / np.sqrt(np.mean(c * c, axis=-1) + p.norm.eps)
    sines = np.minimum(_sine(np.broadcast_to(w, x.shape), after), 1.0)
    null = turned(c, centre, draws, seed)
    by_gain = float(_sine(p.vector[None], w[None])[0])
    mean = float(np.mean(sines**2))
    return _Turn(
        np.degrees(np.arcsin(min(by_gain, 1.0))),
        float(np.degrees(np.arcsin(sines)).mean()),
        float(np.degrees(np.arcsin(chance.quantile(0.5, d, k)))),
        float(np.degrees(np.arcsin(np.sqrt(np.quantile(null, 1 - LEVEL))))),
        float((1 + np.sum(null >= mean)) / (1 + draws)),
        by_gain**2 / max(by_gain**2 + mean, 1e-300),
        float(inverse.mean()),
        float(inverse.std() / inverse.mean()),
        float(np.linalg.norm(w - w.mean() if centre else w)),
    )


def turned(c: Float[np.ndarray, "n d_model"], centre: bool, draws: int, seed: int) -> Float[np.ndarray, " draws"]:
    """Mean sin² of the turns that these rows (centred already) give directions at random, draw by draw."""
    unit = c / np.maximum(np.linalg.norm(c, axis=1, keepdims=True), 1e-300)
    v = generator(seed, "turns").standard_normal((draws, c.shape[1]))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    found = np.mean((v @ unit.T) ** 2, axis=1)
    return found + v.sum(axis=1) ** 2 / c.shape[1] if centre else found


def _sine(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Sine of the angle between rows, from the part of b beside a: exact where it is small."""
    a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-300)
    b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-300)
    return np.linalg.norm(b - np.sum(a * b, axis=1, keepdims=True) * a, axis=1)


def _rankings(
    model: Model, observable: Observable, passages: Sequence[Passage], made: Sequence[_Turn]
) -> dict[str, float]:
    """Rank correlations between conventions for the length of a head's feature; ``scaled`` has the mean of 1/σ."""
    table = head_norms(model, observable, draws=1)
    heads = list(table["head"])
    columns = {name: np.asarray(table[name]) for name in ("norm", "raw", "published")}
    by_head = {p.path.split(">")[0]: t.length * t.scale for p, t in zip(passages, made, strict=True) if ">" in p.path}
    if all(head in by_head for head in heads):
        columns["scaled"] = np.array([by_head[head] for head in heads])
    names = list(columns)
    return {f"{a} ~ {b}": rank_correlation(columns[a], columns[b]) for i, a in enumerate(names) for b in names[i + 1 :]}


def _table(
    model: Model,
    observable: Observable,
    passages: Sequence[Passage],
    made: Sequence[_Turn],
    rankings: Mapping[str, float],
    n: int,
    seed: int,
    at: str,
) -> Table:
    def of(name: str) -> np.ndarray:
        return np.array([getattr(t, name) for t in made])

    q = chance.bh(of("p"))
    columns = [
        Column("path", [p.path for p in passages], about="what the feature has come through"),
        Column("norm", [p.name for p in passages], about="the norm that it passes"),
        Column("gain_turn", of("gain"), "°", 2, "angle between v and γ⊙v"),
        Column("turn", of("turn"), "°", 2, "angle between γ⊙v and its exact pull-back, mean", chance="high"),
        Column("law", of("law"), "°", 2, "median of Theorem 1's exact law for a direction at random"),
        Column("high", of("high"), "°", 2, "turn that directions at random stay below with 95 % at these rows"),
        Column("p", of("p"), about="chance that a direction at random is turned as much"),
        Column("q", q, about="Benjamini–Hochberg over rows"),
        Column("gain_share", of("share"), "", 2, "gain's part of sin² gain + sin² norm"),
        Column("scale", of("scale"), "", 3, "mean of 1/σ"),
        Column("spread", of("spread"), "", 3, "standard deviation of 1/σ over its mean"),
    ]
    worst, uneven = int(np.argmax(of("turn"))), int(np.argmax(of("spread")))
    told = "; ".join(f"{names} {value:.2f}" for names, value in rankings.items())
    ranks = f" Heads rank by length alike under the conventions (rank correlations: {told})." if told else ""
    if told and min(rankings.values()) < 0.8:
        ranks = f" Which convention is taken changes the ranking of heads (rank correlations: {told})."
    many = int(np.sum(q < LEVEL))
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "layernorm", "observable": str(observable), "pairs": n, "at": at, "seed": seed,
                           "kind": "fit", "rankings": dict(rankings), "position 0": "left out",
                           "null": "directions at random through the same rows"},
        title=f"{model.name} · {observable} · {len(passages)} norms on paths · {n} pairs · position 0 left out",
        says=f"{passages[worst].name} ({passages[worst].norm.kind}) turns the feature of {passages[worst].path} most, "
        f"by {made[worst].turn:.1f}° ({made[worst].law:.1f}° for a direction at random); {many} of {len(made)} are "
        f"turned beyond chance at a false-discovery rate of {LEVEL:.0%}. 1/σ varies most at {passages[uneven].name}, "
        f"by {made[uneven].spread:.0%}.{ranks}",
        not_says="A turn is that of the exact derivative: with the scale held (frozen) a norm turns nothing but by its "
        f"gain and centring. Other prompts have other rows{'; ' + observable.warning if observable.warning else ''}.",
        next=f'covector observe predict {model.words} {observable.typed} heads with the same prompts',
        picture=_picture,
        key=("path", "norm"),
    )  # fmt: skip


def _picture(table: Table) -> Scatter:
    return Scatter(
        np.asarray(table["law"]), np.asarray(table["turn"]), "turn of a direction at random", "turn of the feature",
        "°", "°", labels=[f"{p} {n}" for p, n in zip(table["path"], table["norm"], strict=True)], diagonal=True,
    )  # fmt: skip
