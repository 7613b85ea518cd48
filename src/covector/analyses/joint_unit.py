"""Is a head about one thing? Whether the lists of its leading directions share a topic more than chance lets them.

The ten leading directions that OV writes have two poles each, every pole ten output tokens and their centroid. J is
the mean similarity between the ten centroids for the best choice of poles. Two nulls, each choosing poles again:
directions of the model's heads at the same indices, mixed (is this head more of one piece than heads are?), and random
orthonormal directions of the head's own write subspace (is it the singular directions, or would any basis do?).

Source: `docs/theory/heads.md`, equations 11–13; F9 of the theory page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.each_head import each_layer, head_svd, without_bias
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.streams import generator
from covector.linalg.svd import SVD
from covector.linalg.topk import poles
from covector.linalg.units import MOST, centroids, joint_similarity
from covector.model.bases import Basis
from covector.model.frames import writes_centred
from covector.model.opened import Model
from covector.render import Column, Scatter, Table, clip, shown

# False-discovery rate of the sentence and of the stars.
LEVEL = 0.05
METRICS = ("whitened", "centred")
# Two J nearer than this are equal: the same directions put together, summed in another order.
SAME = 1e-9
# Random frames per selection of labels.
BATCH = 20


@dataclass(frozen=True, eq=False)
class _Lists:
    """What directions are read with: vectors for the lists, unit vectors of the whitened space for similarity."""

    basis: Basis
    units: Float[np.ndarray, "n d"]
    root: Float[np.ndarray, "d d"]
    k: int

    def centroids(
        self, directions: Float[np.ndarray, "r d"], ids: Int[np.ndarray, "r p k"]
    ) -> Float[np.ndarray, "r p d"]:
        """Centroids of both poles in the whitened space, without the direction itself (which is v·Σ^½ there)."""
        return centroids(self.units, ids, directions @ self.root)

    def of(self, directions: Float[np.ndarray, "r d"]) -> Int[np.ndarray, "r p k"]:
        """Labels of both poles, [r, 2, k]: the largest cosines, the smallest."""
        found = poles(directions, self.basis.vectors, self.k, keep=self.basis.usable, lengths=self._lengths)
        return np.stack([found.top, found.bottom], axis=1)

    @property
    def _lengths(self) -> np.ndarray:
        return np.where(self.basis.usable, self.basis.norms, 1.0)


def joint_units(
    model: Model,
    *,
    rank: int = 10,
    k: int = 10,
    basis: str = "auto",
    metric: str = "whitened",
    frame: str | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Table:
    """One row per head: J of its `rank` leading write directions, `k` labels per pole, against two nulls.

    `basis`: the output labels (auto: what outputs read). `metric`: centroids are compared in the ``whitened`` space of
    that basis, where neither its mean nor a few principal directions make everything alike, or ``centred``, where only
    the mean is gone. Each centroid is taken without its own direction, which all of its labels share by choice.
    `p_others`: direction i from any of the h heads, itself among them. A permutation p, valid for any number of heads;
    conservative, since directions of several heads are not orthogonal to each other as a head's own are. All h^rank
    ways are tried where they are no more than the draws; NaN where they are fewer than h / .05, since then no p could
    earn a star. `p_inside`: random orthonormal directions of the head's own write subspace. In both the poles are
    chosen anew in every draw. q is Benjamini–Hochberg over heads. Heads with fewer than two dyads have no J (NaN); a
    head with fewer than `rank` uses those it has.
    Costs `rank`·draws selections from the vocabulary per head: seconds for small models, minutes for GPT-2.
    Raises BadRequest, BadSite, UnknownBasis, UnknownFrame, FrameUnavailable.
    Source: `docs/theory/heads.md`, equations 11–13.
    """
    for name, value, least, most in (("rank", rank, 2, MOST), ("k", k, 1, 1000), ("draws", draws, 20, 10**6)):
        if isinstance(value, bool) or not least <= value <= most:
            raise BadRequest(f"expected {name} from {least} to {most}, got {value}; leave it out for its default")
    if metric not in METRICS:
        raise BadRequest(f"expected metric {' or '.join(METRICS)}, got '{metric}'")
    view = without_bias(model, frame)
    name = view.bases.default("write") if basis == "auto" else basis
    lists = _lists(view, name, k, metric)
    places = [(layer.layer, h, n) for layer in each_layer(view) for h, n in enumerate(layer.names())]
    dyads = [head_svd(view, layer, h) for layer, h, _ in places]
    labels = [lists.of(m.Vh[:rank]) for m in dyads]
    middles = [lists.centroids(m.Vh[:rank], ids) for m, ids in zip(dyads, labels, strict=True)]
    J, tops = np.full(len(places), np.nan), []
    inside: list[np.ndarray | None] = [None] * len(places)
    for i, (layer, h, _) in enumerate(places):
        if len(middles[i]) < 2:
            tops.append([])
            continue
        found, poles_chosen = joint_similarity(middles[i])
        J[i] = float(found)
        tops.append([lists.basis.labels[ids[side, 0]] for ids, side in zip(labels[i], poles_chosen, strict=True)])
        inside[i] = _inside(lists, dyads[i], len(middles[i]), draws, (seed, layer, h))
    null = {"others": _others(middles, draws, seed), "inside": inside}
    few = sum(len(m) > 1 and found is None for m, found in zip(middles, null["others"], strict=True))
    columns = [
        Column("head", [p[2] for p in places], about="layer and query head"),
        Column("J", J, "", 3, "mean similarity of the directions' centroids, best poles"),
    ]
    for which, table in null.items():
        columns += _compared(which, J, table)
    columns.append(Column("unit", tops, about="first label of the chosen pole of each direction, largest gain first"))
    return Table(
        columns=columns,
        meta=view.meta | {"analysis": "joint_units", "policy": "none: weights only", "seed": seed, "draws": draws,
                          "rank": rank, "k": k, "metric": metric, "bases": {"write": lists.basis.name},
                          "null": "the heads' directions at the same indices, mixed; random directions of the subspace",
                          "tensors": view.origins(*_tensors(view), *lists.basis.tensors)},
        title=f"{view.name} · joint unit of the {rank} leading directions · frame {view.frame} · {k} labels per pole "
        f"of {lists.basis.name}, {metric} · (chance 95 %) · * q < .05",
        says=_says(columns, len(places), few, draws),
        not_says="It does not say that a list is a meaning, nor that the head is used for it: nothing was run; topics "
        "that share no direction of the vocabulary are not seen.",
        next=_next(view, columns),
        picture=_picture,
        lines=_line,
        key=("head",),
    )  # fmt: skip


def _lists(view: Model, name: str, k: int, metric: str) -> _Lists:
    centred = writes_centred(view.stored.spec, view.frame)
    basis = view.bases.centred(name) if centred else view.bases[name]
    if k > int(basis.usable.sum()) // 2:
        raise BadRequest(f"expected k at most half of the {int(basis.usable.sum())} labels of {name}, got {k}")
    space = view.bases[f"{name.partition(':')[0]}:{metric}"]
    root = np.eye(view.spec.d_model) if space.metric is None else np.linalg.pinv(space.metric, hermitian=True)
    return _Lists(basis, space.unit().astype(np.float64), root, k)


def _inside(lists: _Lists, found: SVD, m: int, draws: int, seed: tuple[int, ...]) -> Float[np.ndarray, " draws"]:
    """J of random orthonormal directions of the head's write subspace."""
    rng, made = generator(seed, "joint unit"), np.empty(draws)
    for start in range(0, draws, BATCH):
        frames = draw_frames(rng, BATCH, found.rank, m)[: draws - start]
        directions = (frames @ found.Vh).reshape(-1, found.Vh.shape[1])
        middles = lists.centroids(directions, lists.of(directions)).reshape(len(frames), m, 2, -1)
        best, _ = joint_similarity(middles)
        made[start : start + len(frames)] = best
    return made


def _others(middles: list[np.ndarray], draws: int, seed: int) -> list[np.ndarray | None]:
    """J of directions put together from all heads, index by index, for every head that has enough such ways.

    Under the null the head itself is one of the h^m ways, each as likely: p = (1 + #) / (draws + 1) is valid if the
    draws can give the head itself, and if all other ways are tried once (equation 12).
    """
    made: list[np.ndarray | None] = []
    for i, own in enumerate(middles):
        m = len(own)
        pool = [c for c in middles if len(c) >= m]
        ways, here = len(pool) ** m, sum(len(c) >= m for c in middles[:i])
        if m < 2 or ways * LEVEL < len(pool):
            made.append(None)
            continue
        if ways - 1 <= draws:
            picks = np.stack(np.unravel_index(np.arange(ways), (len(pool),) * m), axis=1)
            picks = picks[(picks != here).any(axis=1)]
        else:
            picks = generator((seed, i), "other heads").integers(len(pool), size=(draws, m))
        stacked = np.stack([c[:m] for c in pool])
        rows = (stacked[picks[start : start + BATCH], np.arange(m)] for start in range(0, len(picks), BATCH))
        made.append(np.concatenate([joint_similarity(some)[0] for some in rows]))
    return made


def _compared(which: str, J: np.ndarray, null: Sequence[np.ndarray | None]) -> list[Column]:
    told = {"others": "the heads' directions at the same indices, mixed",
            "inside": "random directions of the head's own write subspace"}[which]  # fmt: skip
    p, level = np.full((2, len(J)), np.nan)
    for i, found in enumerate(null):
        if found is not None:
            p[i] = chance.monte_carlo_p(J[i] - SAME, found).value
            level[i] = np.quantile(found, 1 - LEVEL)
    return [
        Column(f"{which}_level", level, "", 3, f"J that 95 % of {told} stay below"),
        Column(f"p_{which}", p, about=f"chance of this J among {told}, poles chosen anew"),
        Column(f"q_{which}", chance.bh(p), about="Benjamini–Hochberg over heads"),
    ]


def _tensors(view: Model) -> list[str]:
    return [f"L{i}.{r}" for i, b in enumerate(view.spec.blocks) if b.attn for r in ("W_V", "W_O")]


def _says(columns: list[Column], n: int, few: int, draws: int) -> str:
    q = {c.name: np.nan_to_num(c.numbers, nan=1.0) for c in columns if c.name.startswith("q_")}
    others, inside = q["q_others"] < LEVEL, q["q_inside"] < LEVEL
    told = (
        f"At a false-discovery rate of {LEVEL:.0%}, {int(others.sum())} of {n} heads are more of one piece than "
        f"the heads' directions mixed, {int(inside.sum())} more than random directions of their own subspace, "
        f"{int((others & inside).sum())} both."
    )
    if n > LEVEL * (draws + 1):
        least = math.ceil(n / (LEVEL * (draws + 1)))
        told += (
            f" With {draws} draws a star takes {least} heads at the least p there is (1/{draws + 1}); "
            f"--draws {math.ceil(n / LEVEL)} lets one head stand alone."
        )
    if not few:
        return told
    return (
        f"{told} {few} of them {'is' if few == 1 else 'are'} not compared with mixtures (p NaN): so few heads and "
        "directions can be mixed in too few ways for any p to earn a star."
    )


def _next(view: Model, columns: list[Column]) -> str:
    by_name = {c.name: c for c in columns}
    best = int(np.argmax(np.nan_to_num(by_name["J"].numbers, nan=-np.inf)))
    frame = "" if str(view.frame) == "raw" else f" --frame {view.frame}"
    return f"covector svd {view.words} {by_name['head'].values[best]}{frame}"


def _line(row: dict, width: int) -> str:
    """``L3H0 │ J .213 │ heads mixed (.152) p .005* │ own subspace (.180) p .010* │ first labels``."""
    parts = [f"{row['head']:<5}", f"J {_number(row['J'])}"]
    for which, words in (("others", "heads mixed"), ("inside", "own subspace")):
        star = "*" if row[f"q_{which}"] is not None and row[f"q_{which}"] < LEVEL else " "
        parts.append(f"{words} ({_number(row[f'{which}_level'])}) p {_number(row[f'p_{which}'])}{star}")
    parts.append(" ".join(map(shown, row["unit"])))
    return clip(" │ ".join(parts), width)


def _number(value: float | None) -> str:
    return "   –" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def _picture(table: Table) -> Scatter:
    """J against what random directions of the head's own subspace reach."""
    return Scatter(
        x=np.nan_to_num(table["inside_level"]), y=np.nan_to_num(table["J"]),
        x_name="J of random directions, 95 %", y_name="J", x_unit="", y_unit="",
        labels=list(table["head"]), diagonal=True,
    )  # fmt: skip
