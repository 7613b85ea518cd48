"""Why does the pseudo-inverse of the embedding read directions badly? Scores along the ridge path from W_E⁺ to W_Eᵀ.

The dual vectors E(EᵀE + λI)⁻¹ score a direction u as E scores u(EᵀE + λI)⁻¹. With λ = 0, u's part along the weakest
direction of E is multiplied by the square of E's condition number against its part along the strongest, whatever u is;
λ bounds that, and λ → ∞ is the transpose. So each λ is one way to move directions before they are looked up, and random
directions are moved in the same way: that is the null.

Source: Q10 and §1.6 of the theory page; `docs/theory/studies.md`, equations 16–18.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.studies.directions import adjusted, directions, of_p, told_of, unit_means
from covector.analyses.studies.judges import judge
from covector.analyses.studies.study import Study
from covector.axes import Float
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.clustered import Share, clustered_share
from covector.linalg.chance.laws import Matched
from covector.linalg.chance.signed_rank import SignedRank, signed_rank
from covector.linalg.norms import lengths
from covector.model.opened import Model
from covector.render import Column, Curve, Table

ALPHA = 0.05
# In units of the mean squared singular value of E, as the bases `token_in:ridge=λ` are.
PATH = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0, float("inf"))
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Step:
    """One λ: condition of what is inverted, where directions end up, and how their lists score."""

    ridge: float
    condition: float
    weak: float
    z: Float[np.ndarray, " m"]
    coherent: Share
    coherence: float
    null: float


def ridge(
    atlas: Atlas, model: Model, *, path: Sequence[float] = PATH, kind: str = "ov", draws: int = DRAWS, seed: int = 0
) -> Table:
    """Coherence of what a kind's sites read along the ridge path of the embedding: one row per λ.

    λ is in units of the mean squared singular value of E (unit rows, frame of the atlas). z and p are against random
    directions moved by the same λ; differences to the transpose are paired by site, Wilcoxon over sites.
    Raises BadRequest for a negative λ, a kind that reads nothing here, or a basis too small for lists.
    """
    if not len(path) or min(path) < 0:
        raise BadRequest(f"expected λ >= 0, got {list(path)}; 0 is the pseudo-inverse, inf the transpose")
    places = directions(atlas)
    side = "query" if kind == "qk" else "read"
    at = places.of(kind, side)
    if not at.any():
        raise BadRequest(f"{atlas.folder}: expected {kind} directions with a {side} side; name another kind")
    name, _, centred = str(atlas.column("basis")[at][0]).partition(".")
    rows = atlas.units(at)
    rows = rows / lengths(rows)[:, None]
    chosen = model.bases.dictionary(name, bool(centred))
    units = chosen.units[chosen.keep].astype(np.float64)
    values, axes = np.linalg.eigh(units.T @ units)
    start = int(np.searchsorted(values, values[-1] * len(values) * 2.0**-52))
    values, axes = values[start:], axes[:, start:]
    steps = [_step(model, name, bool(centred), rows, places.unit[at], values, axes, r, draws, seed) for r in path]
    condition = float(np.sqrt(values[-1] / values[0]))
    return _table(atlas, steps, kind, name, condition, draws, seed)


def _step(
    model: Model, name: str, centred: bool, rows: np.ndarray, unit: np.ndarray, values: np.ndarray, axes: np.ndarray,
    weight: float, draws: int, seed: int,
) -> Step:  # fmt: skip
    scale = factors(values, weight)
    move = (axes * scale) @ axes.T
    judges = judge(model, name, centred=centred, law=Matched(move), draws=draws, seed=seed)
    moved = rows @ move
    moved /= np.maximum(lengths(moved), np.finfo(float).tiny)[:, None]
    told = judges(moved)
    weakest = axes[:, : len(values) // 2]
    return Step(
        ridge=weight,
        condition=1.0 if np.isinf(weight) else float(scale.max() / scale.min()),
        weak=float(np.mean(np.sum((moved @ weakest) ** 2, axis=1))),
        z=unit_means(told.z, unit),
        coherent=clustered_share(told.p < ALPHA, unit),
        coherence=float(np.nanmean(told.coherence)),
        null=float(np.nanmean(judges.null.scores.coherence)),
    )


def factors(values: Float[np.ndarray, " r"], weight: float) -> Float[np.ndarray, " r"]:
    """What a direction's parts along the axes of EᵀE (eigenvalues `values`) are multiplied by, the largest being 1.

    1/(value + weight · mean value); all alike for an infinite weight.
    """
    scale = np.ones_like(values) if np.isinf(weight) else 1 / (values + weight * values.mean())
    return scale / scale.max()


def _table(atlas: Atlas, steps: list[Step], kind: str, name: str, condition: float, draws: int, seed: int) -> Table:
    last = next((s for s in steps if np.isinf(s.ridge)), steps[-1])
    tests = [signed_rank(s.z - last.z) if s is not last else None for s in steps]
    q = adjusted([float("nan") if t is None else t.p for t in tests])

    def of(field: str) -> np.ndarray:
        return np.array([float("nan") if t is None else getattr(t, field) for t in tests])

    columns = [
        Column("ridge", np.array([s.ridge for s in steps]), about="λ over the mean squared singular value of E"),
        Column("condition", np.array([s.condition for s in steps]),
               about="largest over smallest factor that a direction's parts are multiplied by"),
        Column("weak", np.array([s.weak for s in steps]), digits=3,
               about="share of the moved directions in the weaker half of E's dimensions", chance=0.5),
        Column("coherence", np.array([s.coherence for s in steps]), digits=3, about="mean coherence of lists, whitened",
               chance="coherence_null"),
        Column("coherence_null", np.array([s.null for s in steps]), digits=3,
               about="mean of random directions moved by the same λ"),
        Column("z", np.array([np.nanmean(s.z) for s in steps]), digits=2, about="mean in their sd", chance=0.0),
        Column("coherent", np.array([s.coherent.value for s in steps]), digits=3, about="share with p < .05",
               chance=ALPHA),
        Column("low", np.array([s.coherent.low for s in steps]), digits=3, about="95 % interval, sites as clusters"),
        Column("high", np.array([s.coherent.high for s in steps]), digits=3, about="95 % interval"),
        Column("difference", of("centre"), digits=2, about="z less that of the transpose, Hodges–Lehmann over sites"),
        Column("p", of("p"), about="Wilcoxon over sites"),
        Column("q", q, about="Benjamini–Hochberg over the path"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_ridge", "kind": kind, "basis": name, "condition": condition, "draws": draws, "seed": seed,
           "null": "Haar directions moved by the same (EᵀE + λI)⁻¹"},
        title=f"{told_of(atlas)} · ridge: what {kind} reads, from pinv({name}) to its transpose",
        says=_says(steps, tests, q, last, condition),
        not_says="Not that a λ is right: scores say which lists are alike, not which are true. E has unit rows here, "
        "hardly trained labels left out; the condition of the raw table is larger.",
        next=f"covector svd {atlas.manifest['reference']} L0H0.{kind} --basis {name}:ridge=1",
        picture=lambda _: _picture(steps),
        key=("ridge",),
    )  # fmt: skip


def _says(
    steps: list[Step], tests: list[SignedRank | None], q: Float[np.ndarray, " n"], last: Step, condition: float
) -> str:
    first = min(steps, key=lambda s: s.ridge)
    said = f"Condition number of E: {condition:.3g}"
    if first.ridge == 0:
        said += f" (squared, {condition**2:.3g}: the column at λ = 0), so its pseudo-inverse moves "
        said += f"{100 * first.weak:.0f} % of what is read to the weaker half of E"
        said += f" (transpose {100 * last.weak:.0f} %, even spread 50 %)"
    said += f". Lists themselves are {'less' if first.coherence < last.coherence else 'more'} alike there: coherence "
    said += f"{first.coherence:.3f} ({first.null:.3f} by chance), transposed {last.coherence:.3f} ({last.null:.3f})"
    best = max(steps, key=lambda s: float(np.nanmean(s.z)))
    said += f". Highest z at λ = {_lambda(best.ridge)}: {np.nanmean(best.z):+.2f}"
    told = [
        f"λ = {_lambda(s.ridge)} {t.centre:+.2f} ({of_p(t.p)})"
        for s, t, value in zip(steps, tests, q, strict=True)
        if t is not None and value < ALPHA
    ]
    tail = (
        f"other than the transpose: {', '.join(told)}." if told else "no λ is other than the transpose beyond chance."
    )
    return f"{said}; {tail}"


def _lambda(value: float) -> str:
    return "0 (pinv)" if value == 0 else "∞ (transpose)" if np.isinf(value) else f"{value:g}"


def _picture(steps: list[Step]) -> Curve:
    means = np.array([np.nanmean(s.z) for s in steps])
    spread = np.array([np.nanstd(s.z, ddof=1) / np.sqrt(len(s.z)) if len(s.z) > 1 else 0.0 for s in steps])
    return Curve(
        x=np.arange(len(steps)),
        ys=np.stack([means, means - 1.96 * spread, means + 1.96 * spread]),
        names=["mean z", "95 % below", "95 % above"],
        x_name="step of λ: " + ", ".join(_lambda(s.ridge) for s in steps),
        y_name="coherence",
        x_unit="",
        y_unit="sd of random directions",
        band=(0.0, 0.0),
    )


STUDY = Study(
    "ridge",
    "Why does pinv(W_E) read directions badly, and what happens on the way to the transpose?",
    ridge,
    "model",
    "coherence along λ against random directions moved by the same λ; condition numbers; Wilcoxon over sites",
)
