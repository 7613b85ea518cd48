"""Is the singular basis of a head what its activations are sorted by? Against rotated bases and activation PCA.

Every head reads x (or writes y) in a subspace of d_head dimensions. The singular basis of that subspace is known from
weights alone; the principal components of the activations inside it are the basis that concentrates variance most. Four
things are measured of the singular basis and of random bases of the same subspace, on a text: how many dimensions its
variances fill, how sparse its coefficients are from token to token, how near it is to the principal components, and how
coherent its lists are against theirs. If it is nothing special it wins against half of the random bases.

Source: Q18 of the theory page; `docs/theory/studies.md`, equations 28–30.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from covector.analyses.studies.directions import adjusted, of_p, told_of
from covector.analyses.studies.judges import DRAWS, Judge, judge
from covector.analyses.studies.study import Study
from covector.axes import Float
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.haar import draw_frames
from covector.linalg.chance.signed_rank import SignedRank, signed_rank
from covector.linalg.chance.streams import generator
from covector.linalg.svd import svd
from covector.model.circuits import side_centred
from covector.model.opened import Model
from covector.render import Column, Scatter, Table

ALPHA = 0.05
# Random bases of every subspace; the singular one is ranked among them in steps of 1/40.
ROTATIONS = 40
# E|g|/√(E g²) of a Gaussian: what a coefficient has that mixes many things.
GAUSSIAN = float(np.sqrt(2 / np.pi))
SCORES = ("fills", "sparse", "aligned")
WORDS = {"fills": "Concentrated variance", "sparse": "Sparse coefficients", "aligned": "Nearness to activation PCA"}
Passed = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a head: its singular basis [r, d] and what passes there, in coordinates of that basis [n, r]."""

    kind: str
    side: str
    rows: Float[np.ndarray, "r d"]
    coefficients: Float[np.ndarray, "n r"]
    gains: Float[np.ndarray, " r"]
    centred: bool


@dataclass(frozen=True, eq=False)
class Score:
    """One score of all heads of a kind and side: of the singular basis, of random ones, of activation PCA, by head."""

    kind: str
    side: str
    score: str
    svd: Float[np.ndarray, " m"]
    random: Float[np.ndarray, " m"]
    pca: Float[np.ndarray, " m"]
    superior: Float[np.ndarray, " m"]
    white: float


def activations(
    atlas: Atlas, model: Model, passed: Passed, *, rotations: int = ROTATIONS, draws: int = DRAWS, seed: int = 0
) -> Table:
    """Singular bases of heads on a text's activations: one row per kind, side and score.

    `passed` gives what passes hook points, a row per position (`covector.run.along.along`). `fills` is the share of its
    dimensions that a basis' variances fill, (Σv)²/(r Σv²); `sparse` is the mean of E|c|/√(E c²) over coefficients c
    (.80 for Gaussian ones); `aligned` the mean |cos| to the principal components, matched one to one; `coherent` the
    mean coherence z of lists, against the principal components instead of random bases. `superior` is the share of
    random bases that the singular one beats, ½ by chance; Wilcoxon over heads.
    Raises BadRequest for rotations < 19, fewer positions than twice a head's dimensions, or a model without heads of
    fewer dimensions than the stream.
    """
    if rotations < 19:
        raise BadRequest(f"expected rotations >= 19, got {rotations}; leave it out for {ROTATIONS}")
    judges: dict[tuple[str, bool], Judge] = {}
    found: dict[tuple[str, str], list[tuple[dict, float]]] = {}
    positions = 0
    for number, one in enumerate(_sides(model, passed)):
        positions = len(one.coefficients)
        side = "write" if one.side == "write" else "read"
        key = (model.bases.default(side), one.centred)
        if key not in judges and _judged(model, key[0]):
            judges[key] = judge(model, key[0], centred=key[1], draws=draws, seed=seed)
        scored = _scored(one, judges.get(key), rotations, (seed, number))
        found.setdefault((one.kind, one.side), []).append((scored, _fills(one.gains**2)))
    if not found:
        raise BadRequest(
            f"{model.name}: expected heads that read or write a smaller space than the stream; it has none"
        )
    scores = [score for (kind, side), parts in found.items() for score in _scores(kind, side, parts)]
    return _table(atlas, scores, positions, rotations, seed)


def _judged(model: Model, name: str) -> bool:
    return min(model.bases.dictionary(name).scored, model.bases.dictionary(name).first) >= 3


def _sides(model: Model, passed: Passed) -> Iterator[Side]:
    """Both sides of every OV and QK map with fewer dimensions than the stream; a layer's activations at a time."""
    spec = model.spec
    for layer, block in enumerate(spec.blocks):
        if block.attn is None or block.attn.d_head >= spec.d_model:
            continue
        read, mixed = f"L{layer}.attn_normed", f"L{layer}.z"
        told = passed((read, mixed))
        for kind in ("ov", "qk"):
            for head in range(block.attn.n_heads):
                site = model.site(f"L{layer}H{head}.{kind}")
                dyads = svd(model.map(site))
                if len(told[read]) < 2 * dyads.rank:
                    raise BadRequest(
                        f"expected a text of {2 * dyads.rank} tokens or more, got {len(told[read])}; give a longer one"
                    )
                first, second = ("read", "write") if kind == "ov" else ("query", "key")
                bases = (np.ascontiguousarray(dyads.U.T), dyads.Vh)
                out = told[mixed][:, head] @ model.weights[f"L{layer}.W_O"][head].astype(np.float64)
                rows = (told[read], out if kind == "ov" else told[read])
                for at, (side, basis, x) in enumerate(zip((first, second), bases, rows, strict=True)):
                    c = x @ basis.T
                    centred = side_centred(model.stored.spec, model.frame, site, bool(at))
                    gains = dyads.S if side == "write" else np.ones(dyads.rank)
                    yield Side(kind, side, basis, c - c.mean(axis=0), gains, centred)


def _scored(one: Side, judges: Judge | None, rotations: int, seed: tuple[int, int]) -> dict[str, np.ndarray]:
    """Of every score: the singular basis first, activation PCA second, then the random bases."""
    r = len(one.rows)
    covariance = one.coefficients.T @ one.coefficients / len(one.coefficients)
    axes = np.linalg.eigh(covariance)[1][:, ::-1].T
    random = draw_frames(generator(seed, "activations"), rotations, r, r)
    frames = np.concatenate([np.eye(r)[None], axes[None], random])
    variances = np.einsum("brs,st,brt->br", frames, covariance, frames)
    made = {
        "fills": np.array([_fills(v) for v in variances]),
        "sparse": np.array([_sparse(one.coefficients @ frame.T) for frame in frames]),
        "aligned": np.array([_nearness(frame, axes) for frame in frames]),
    }
    if judges is not None:
        made["coherent"] = np.array([np.nanmean(judges(rows).z) for rows in (one.rows, axes @ one.rows)])
    return made


def _fills(variances: Float[np.ndarray, " r"]) -> float:
    return float(variances.sum() ** 2 / (len(variances) * np.sum(variances**2)))


def _sparse(coefficients: Float[np.ndarray, "n r"]) -> float:
    sizes = np.sqrt(np.mean(coefficients**2, axis=0))
    there = sizes > 1e-9 * sizes.max()
    return float(np.mean(np.mean(np.abs(coefficients[:, there]), axis=0) / sizes[there]))


def _nearness(frame: Float[np.ndarray, "r r"], axes: Float[np.ndarray, "r r"]) -> float:
    cosines = np.abs(frame @ axes.T)
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


def _scores(kind: str, side: str, parts: list[tuple[dict, float]]) -> Iterator[Score]:
    white = {"fills": float(np.mean([p[1] for p in parts])), "sparse": GAUSSIAN, "aligned": float("nan")}
    for score in SCORES:
        values = np.stack([p[0][score] for p in parts])
        sign = 1 if score == "aligned" else -1
        better = sign * (values[:, :1] - values[:, 2:])
        superior = np.mean((better > 0) + 0.5 * (better == 0), axis=1)
        yield Score(kind, side, score, values[:, 0], values[:, 2:].mean(axis=1), values[:, 1], superior, white[score])
    if all("coherent" in p[0] for p in parts):
        values = np.stack([p[0]["coherent"] for p in parts])
        nothing = np.zeros(len(parts))
        yield Score(kind, side, "coherent", values[:, 0], nothing, values[:, 1], nothing, float("nan"))


def _tested(s: Score) -> SignedRank:
    """Over heads: superior less ½; where principal components are the comparison, z less theirs."""
    return signed_rank(s.svd - s.pca if s.score == "coherent" else s.superior - 0.5)


def _table(atlas: Atlas, scores: list[Score], positions: int, rotations: int, seed: int) -> Table:
    tests = [_tested(s) for s in scores]
    q = adjusted([t.p for t in tests])
    against = np.array([0.0 if s.score == "coherent" else 0.5 for s in scores])

    def shifted(name: str) -> np.ndarray:
        return np.array([getattr(t, name) for t in tests]) + against

    columns = [
        Column("kind", [s.kind for s in scores]),
        Column("side", [s.side for s in scores]),
        Column("score", [s.score for s in scores], about="what is measured of a basis; less is more special "
               "in fills and sparse, more in aligned and coherent"),
        Column("heads", np.array([len(s.svd) for s in scores])),
        Column("svd", np.array([s.svd.mean() for s in scores]), digits=3, chance="random",
               about="of the singular basis, mean over heads"),
        Column("random", np.array([s.random.mean() for s in scores]), digits=3,
               about="of random bases of the same subspaces; coherent: z of random directions"),
        Column("pca", np.array([s.pca.mean() for s in scores]), digits=3, chance="random",
               about="of the principal components of the activations there"),
        Column("white", np.array([s.white for s in scores]), digits=3,
               about="of the singular basis if what is read were isotropic and Gaussian"),
        Column("superior", shifted("centre"), digits=3, chance="superior_null",
               about="share of random bases that the singular one beats, Hodges–Lehmann; coherent: z less that of PCA"),
        Column("superior_null", against, digits=1, about="by chance"),
        Column("low", shifted("low"), digits=3, about="95 % interval, heads as units"),
        Column("high", shifted("high"), digits=3, about="95 % interval"),
        Column("q", q, about="Benjamini–Hochberg over rows of Wilcoxon's p"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_activations", "positions": positions, "rotations": rotations, "seed": seed,
           "null": "random orthonormal bases of each head's own read or written subspace, on the same activations"},
        title=f"{told_of(atlas)} · activations: singular bases on {positions:,} positions of a text",
        says=_says(scores, tests, q),
        not_says="Not what matters for the loss: no gradient was taken. What heads write follows their gains even "
        "where activations are isotropic (white). Other texts may visit other directions.",
        next=f"covector study basis {shlex.quote(str(atlas.folder))}",
        picture=_picture,
        key=("kind", "side", "score"),
    )  # fmt: skip


def _says(scores: list[Score], tests: list[SignedRank], q: Float[np.ndarray, " n"]) -> str:
    said = []
    for score, words in WORDS.items():
        here = [(s, t, v) for s, t, v in zip(scores, tests, q, strict=True) if s.score == score]
        told = [f"{s.kind} {s.side} {100 * (0.5 + t.centre):.0f} %" for s, t, v in here if v < ALPHA]
        alike = [f"{s.kind} {s.side}" for s, _, v in here if not v < ALPHA]
        words = (
            f"{words}: singular bases beat {', '.join(told)} of random bases" if told else f"{words}: none is special"
        )
        said.append(f"{words}{'; alike ' + ', '.join(alike) if told and alike else ''}.")
    here = [(s, t) for s, t, v in zip(scores, tests, q, strict=True) if s.score == "coherent" and v < ALPHA]
    told = [f"{s.kind} {s.side} {t.centre:+.2f} sd ({of_p(t.p)})" for s, t in here]
    if any(s.score == "coherent" for s in scores):
        said.append(
            f"Lists are other than those of activation PCA: {', '.join(told)}."
            if told
            else "Lists are as coherent as those of activation PCA, as far as can be told."
        )
    return " ".join([*said, "By chance 50 %."])


def _picture(table: Table) -> Scatter:
    rows = [row for row in table.rows if row["score"] != "coherent"]
    at = np.array([row["score"] != "coherent" for row in table.rows])
    return Scatter(
        x=np.arange(len(rows)),
        y=np.asarray(table["superior"])[at],
        x_name="kind, side and score, as in the table",
        y_name="share of random bases beaten",
        x_unit="",
        y_unit="",
        labels=[f"{row['kind']} {row['side']} {row['score']}" for row in rows],
        groups=[row["score"] for row in rows],
        interval=(np.asarray(table["low"])[at], np.asarray(table["high"])[at]),
        band=(0.5, 0.5),
    )


STUDY = Study(
    "activations",
    "Is the SVD basis special on activations: against rotated bases and against activation PCA?",
    activations,
    "text",
    "variance, sparsity and alignment on a text, ranked among random bases of each subspace; lists against PCA's",
)
