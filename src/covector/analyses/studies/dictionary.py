"""SVD against ICA, sparse coding and NMF: on a toy whose features are known, and on the maps of a model.

The toy has more features than dimensions, each seldom there: recovery is the mean |cos| of every feature with the one
direction matched to it. Beside every method stand as many random directions (chance) and as many rows of the data,
which a method has to beat to have done more than look at examples. In a model nobody knows the features: there the same
methods, given the same number of directions, are compared by the coherence of their lists, by site.

Source: Q8, Q6 and F19 of the theory page; `docs/theory/studies.md`, equations 24–27.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from covector.analyses.studies.directions import adjusted, of_p, of_share, told_of
from covector.analyses.studies.judges import DRAWS, judge
from covector.analyses.studies.study import Study
from covector.axes import Float
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.linalg.chance.clustered import Share, clustered_share
from covector.linalg.chance.signed_rank import SignedRank, signed_rank
from covector.linalg.chance.streams import generator
from covector.linalg.factorings import METHODS, atoms, available, explained, recovery, sparse_toy
from covector.model.frames import writes_centred
from covector.model.opened import Model
from covector.render import Column, Curve, Scatter, Table

ALPHA = 0.05
D, RATIOS, ROWS, ACTIVE, NOISE, REPEATS = 16, (0.5, 1.0, 2.0, 4.0), 1500, 2.0, 0.02, 4
# A feature counts as found at this |cos|: in 16 dimensions 5·10⁻⁷ of random directions are as near.
NEAR = 0.9
NAMES = {
    "svd": "SVD", "ica": "ICA", "sparse": "sparse coding", "nmf": "NMF", "rows": "rows of the data",
    "rotated": "rotated SVD",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Recovered:
    """One method at one number of features: recovery and share found, one value per toy; that of random directions."""

    features: int
    method: str
    atoms: int
    recovery: Float[np.ndarray, " n"]
    found: Float[np.ndarray, " n"]
    chance: Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class OfKind:
    """One method on all sites of one kind: mean z and share explained per site; shares of coherent lists."""

    kind: str
    method: str
    z: Float[np.ndarray, " m"]
    explained: Float[np.ndarray, " m"]
    chance: float
    coherent: Share
    atoms: int


def dictionary(
    atlas: Atlas | None = None,
    model: Model | None = None,
    *,
    number: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """Without an atlas: recovery on toys (`toys` has its options). With one and its model: coherence by method.

    A head's data are what every token's embedding makes its OV map write, an MLP's the rows of W_out (what each neuron
    writes), in the frame of the atlas. `number`: directions per site and method (None: as many as a head has). The
    share explained is of rows that were left out (a fifth). z and p are against Haar directions of the basis.
    Raises MissingExtra without scikit-learn, BadRequest for number < 2 or a model without heads and MLPs.
    """
    available()
    if atlas is None or model is None:
        return toys(seed=seed)
    if number is not None and number < 2:
        raise BadRequest(f"expected number >= 2 directions per site, got {number}; leave it out for a head's")
    name = model.bases.default("write")
    judges = judge(model, name, centred=writes_centred(model.stored.spec, model.frame), draws=draws, seed=seed)
    found: dict[tuple[str, str], list] = {}
    for place, (kind, rows) in enumerate(_written(model)):
        wanted = _number(model) if number is None else number
        held = generator((seed, place), "held out").random(len(rows)) < 0.2
        size = len(atoms("svd", rows[~held], wanted))
        rank = int(np.linalg.matrix_rank(rows[~held]))
        for method in ("svd", "ica", "sparse", "nmf", "rotated", "rows"):
            made = atoms(method, rows[~held], size, (seed, place))
            told = judges(made)
            share = explained(rows[held], made)
            found.setdefault((kind, method), []).append((told.z, told.p < ALPHA, share, len(made), size / rank))
    if not found:
        raise BadRequest(f"{model.name}: expected heads or MLPs; this model has none")
    return _model_table(atlas, [_of_kind(k, m, parts) for (k, m), parts in found.items()], name, draws, seed)


def toys(
    *,
    d: int = D,
    ratios: Sequence[float] = RATIOS,
    rows: int = ROWS,
    active: float = ACTIVE,
    noise: float = NOISE,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Table:
    """Recovery of planted features by every method as features per dimension grow: one row per ratio and method.

    Of `ratios`·d features `active` are there in a row on average, by ½ to 1½; noise per coordinate. Every toy is drawn
    anew `repeats` times: they are the units of the intervals (Student). Methods are told the number of features.
    Raises BadRequest for fewer than two repeats or ratios that make fewer than two features, MissingExtra.
    """
    available()
    if repeats < 2 or not ratios or min(ratios) * d < 2:
        raise BadRequest(f"expected repeats >= 2 and two features or more, got {repeats}, {list(ratios)} of d = {d}")
    found = []
    for ratio in ratios:
        n = round(ratio * d)
        made = [sparse_toy(n, d, rows=rows, active=min(active, n), noise=noise, seed=(seed, n, i))
                for i in range(repeats)]  # fmt: skip
        for method in (*METHODS, "rows"):
            every = [atoms(method, data, n, (seed, n, i)) for i, (data, _) in enumerate(made)]
            matched = [recovery(one, truth) for one, (_, truth) in zip(every, made, strict=True)]
            chance = [recovery(atoms("random", data, len(one), (seed, n, i)), truth).mean()
                      for i, (one, (data, truth)) in enumerate(zip(every, made, strict=True))]  # fmt: skip
            found.append(
                Recovered(
                    n,
                    method,
                    max(map(len, every)),
                    np.array([m.mean() for m in matched]),
                    np.array([(m > NEAR).mean() for m in matched]),
                    np.array(chance),
                )
            )
    return _toy_table(found, d, rows, active, noise, seed)


def _toy_table(found: list[Recovered], d: int, rows: int, active: float, noise: float, seed: int) -> Table:
    reach = [_reach(f.recovery) for f in found]
    examples = [next(o for o in found if o.method == "rows" and o.features == f.features) for f in found]
    columns = [
        Column("per_dimension", np.array([f.features / d for f in found]), digits=2, about="features per dimension"),
        Column("method", [NAMES[f.method] for f in found]),
        Column("atoms", np.array([f.atoms for f in found]), about="directions found"),
        Column("recovery", np.array([f.recovery.mean() for f in found]), "cos", 3,
               "mean |cos| of every feature with the direction matched to it, 0 where none is left", "chance"),
        Column("low", np.array([max(0.0, f.recovery.mean() - r) for f, r in zip(found, reach, strict=True)]), "cos", 3,
               "95 % interval over toys", "chance"),
        Column("high", np.array([min(1.0, f.recovery.mean() + r) for f, r in zip(found, reach, strict=True)]), "cos", 3,
               "95 % interval over toys", "chance"),
        Column("chance", np.array([f.chance.mean() for f in found]), "cos", 3,
               "recovery of as many random directions", 1 / np.sqrt(d)),
        Column("examples", np.array([e.recovery.mean() for e in examples]), "cos", 3,
               "recovery of random rows of the data, one per feature", "chance"),
        Column("found", np.array([f.found.mean() for f in found]), digits=3, chance=0.0,
               about=f"share of features with |cos| > {NEAR}"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta={"analysis": "study_dictionary", "d": d, "rows": rows, "active": active, "noise": noise, "seed": seed,
              "repeats": len(found[0].recovery), "null": "as many Haar directions, matched alike"},
        title=f"dictionary: planted features recovered · d {d} · {rows:,} rows, {active:g} features in each",
        says=_toy_says(found, d),
        not_says="Methods know the number of features, which nobody does for a model. The toy's features are "
        "independent, seldom there and equally strong; real ones need not be. NMF sees rows split into positive and "
        "negative parts, where sums that cancel are not sums any more.",
        next="covector study dictionary MODEL",
        picture=lambda _: _toy_picture(found, d),
        key=("per_dimension", "method"),
    )  # fmt: skip


def _reach(values: Float[np.ndarray, " n"]) -> float:
    n = len(values)
    return float(special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n))


def _toy_says(found: list[Recovered], d: int) -> str:
    svd = [f for f in found if f.method == "svd"]
    above = [f.features / d for f in svd if _beyond(f.recovery - f.chance)]
    said = (
        f"SVD recovers more than random directions up to {max(above):g} features per dimension"
        if above
        else "SVD recovers no more than random directions at any number of features"
    )
    said += f" ({', '.join(f'{f.recovery.mean():.2f} at {f.features / d:g}' for f in svd)}). "
    for features in dict.fromkeys(f.features for f in found):
        here = [f for f in found if f.features == features]
        examples = next(f for f in here if f.method == "rows")
        better = [f for f in here if f.method != "rows" and _beyond(f.recovery - examples.recovery)]
        best = ", ".join(f"{NAMES[f.method]} {f.recovery.mean():.2f}" for f in sorted(better, key=_recovered))
        said += f"At {features / d:g}: {best or 'no method'} beyond rows of the data ({examples.recovery.mean():.2f}). "
    return said.rstrip()


def _recovered(one: Recovered) -> float:
    return -float(one.recovery.mean())


def _beyond(differences: Float[np.ndarray, " n"]) -> bool:
    return bool(differences.mean() > _reach(differences))


def _toy_picture(found: list[Recovered], d: int) -> Curve:
    methods = list(dict.fromkeys(f.method for f in found))
    x = np.array(list(dict.fromkeys(f.features / d for f in found)))
    ys = np.array([[f.recovery.mean() for f in found if f.method == m] for m in methods])
    chance = np.array([f.chance.mean() for f in found if f.method == "sparse"])
    return Curve(
        x=x, ys=ys, names=[NAMES[m] for m in methods], x_name="features per dimension", y_name="recovery", x_unit="",
        y_unit="cos", band=(np.zeros(len(x)), chance), band_name="as many random directions",
    )  # fmt: skip


def _number(model: Model) -> int:
    heads = [block.attn.d_head for block in model.spec.blocks if block.attn]
    return min(heads) if heads else max(2, model.spec.d_model // 4)


def _written(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """(kind, rows in the stream) of every head and MLP, float64."""
    read = model.bases["token_in"] if "token_in" in model.bases else model.bases[model.bases.default("read")]
    tokens = read.unit()[read.usable].astype(np.float64)
    for layer, block in enumerate(model.spec.blocks):
        for head in range(block.attn.n_heads if block.attn else 0):
            yield "ov", model.map(f"L{layer}H{head}.ov").apply(tokens)
        if block.mlp is not None:
            yield "mlp.out", np.asarray(model.weights[f"L{layer}.W_out"], dtype=np.float64)


def _of_kind(kind: str, method: str, parts: list) -> OfKind:
    hits = np.concatenate([p[1] for p in parts])
    unit = np.repeat(np.arange(len(parts)), [len(p[1]) for p in parts])
    return OfKind(
        kind,
        method,
        np.array([np.nanmean(p[0]) for p in parts]),
        np.array([p[2] for p in parts]),
        float(np.mean([p[4] for p in parts])),
        clustered_share(hits, unit),
        max(p[3] for p in parts),
    )


def _model_table(atlas: Atlas, found: list[OfKind], basis: str, draws: int, seed: int) -> Table:
    own = {f.kind: f for f in found if f.method == "svd"}
    tests = [signed_rank(f.z - own[f.kind].z) if f.method != "svd" else None for f in found]
    q = adjusted([float("nan") if t is None else t.p for t in tests])

    def of(field: str) -> np.ndarray:
        return np.array([float("nan") if t is None else getattr(t, field) for t in tests])

    columns = [
        Column("kind", [f.kind for f in found]),
        Column("method", [NAMES[f.method] for f in found]),
        Column("sites", np.array([len(f.z) for f in found])),
        Column("atoms", np.array([f.atoms for f in found]), about="directions per site, at most"),
        Column("coherent", np.array([f.coherent.value for f in found]), digits=3, about="share with p < .05",
               chance=ALPHA),
        Column("z", np.array([np.mean(f.z) for f in found]), digits=2, about="mean coherence, sd of random directions",
               chance=0.0),
        Column("difference", of("centre"), digits=2, about="z less that of the SVD, Hodges–Lehmann over sites",
               chance=0.0),
        Column("low", of("low"), digits=2, about="95 % interval, sites as units"),
        Column("high", of("high"), digits=2, about="95 % interval"),
        Column("q", q, about="Benjamini–Hochberg over rows of Wilcoxon's p"),
        Column("explained", np.array([np.mean(f.explained) for f in found]), digits=3, chance="explained_null",
               about="share of rows left out that lies in the span of the directions"),
        Column("explained_null", np.array([f.chance for f in found]), digits=3,
               about="of random directions of the space that the rows span"),
    ]  # fmt: skip
    return Table(
        columns=columns,
        meta=atlas.manifest["meta"]
        | {"analysis": "study_dictionary", "basis": basis, "draws": draws, "seed": seed,
           "null": "Haar directions of the basis; differences symmetric around zero over sites"},
        title=f"{told_of(atlas)} · dictionary: lists in {basis} of directions found by several factorings",
        says=_model_says(found, tests, q),
        not_says="Nobody knows the features here, so this is not recovery (covector study dictionary, without an "
        "atlas). Norms and activations are left out. NMF sees rows split into positive and negative parts and depends "
        "on the coordinates of the stream, the others do not.",
        next="covector study dictionary",
        picture=lambda _: _model_picture(found),
        key=("kind", "method"),
    )  # fmt: skip


def _model_says(found: list[OfKind], tests: list[SignedRank | None], q: Float[np.ndarray, " n"]) -> str:
    told = [
        f"{f.kind} {NAMES[f.method]} {t.centre:+.2f} sd ({of_p(t.p)})"
        for f, t, value in zip(found, tests, q, strict=True)
        if t is not None and value < ALPHA
    ]
    said = f"Coherence other than the SVD's: {'; '.join(told)}. " if told else (
        "No factoring's lists are more or less coherent than the SVD's beyond chance. ")  # fmt: skip
    for kind in dict.fromkeys(f.kind for f in found):
        here = sorted((f for f in found if f.kind == kind), key=lambda f: -f.coherent.value)
        best, svd = here[0], next(f for f in here if f.method == "svd")
        said += f"{kind}: SVD {of_share(svd.coherent.value)} coherent, most {NAMES[best.method]} "
        said += f"{of_share(best.coherent.value)}. "
    return said + "By chance 5 %."


def _model_picture(found: list[OfKind]) -> Scatter:
    return Scatter(
        x=np.array([np.mean(f.explained) for f in found]),
        y=np.array([f.coherent.value for f in found]),
        x_name="share explained of rows left out", y_name="share of coherent lists", x_unit="", y_unit="",
        labels=[NAMES[f.method] for f in found], groups=[f.kind for f in found],
        interval=(np.array([f.coherent.low for f in found]), np.array([f.coherent.high for f in found])),
        band=(0.0, ALPHA),
    )  # fmt: skip


STUDY = Study(
    "dictionary",
    "Do ICA, sparse coding or NMF find what the SVD misses where features outnumber dimensions?",
    dictionary,
    "toy",
    "recovery of planted features against random directions and rows of the data; coherence on a model's maps",
)
