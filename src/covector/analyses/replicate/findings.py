"""The findings A–G of a published sprint on singular directions, each as a claim that a model can bear out or not.

Each is asked with an analysis or a study that is there; here is only the claim, which of their numbers answers it, what
chance gives, and when the claim holds: where the number lies beyond chance at 5 %, in the direction claimed.

Source: document 001 of the sources (`diego898/mech-interp`, research sprint); §4 of the theory page;
`docs/replicate.md`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from scipy.sparse.linalg import svds

from covector.analyses.joint_unit import joint_units
from covector.analyses.replicate.finding import ALPHA, Asked, Finding, number, p_of, verdict
from covector.analyses.replicate.tracing import tracing
from covector.analyses.studies.directions import directions, of_share
from covector.analyses.studies.frames import frames
from covector.analyses.studies.judges import judge
from covector.analyses.studies.ridge import ridge
from covector.analyses.studies.sides import sides
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.linalg.chance.clustered import Share, clustered_share
from covector.linalg.chance.streams import generator
from covector.linalg.list_scores import list_scores
from covector.linalg.norms import lengths
from covector.linalg.svd import svd

# Heads whose signs are compared between routines: each costs a dense decomposition.
HEADS_COMPARED, DYADS_COMPARED = 8, 10
# Kendall's exact p of a perfect order is 1/n!: .042 for four layers, .17 for three.
FEWEST_LAYERS = 4
# Draws of joint units: q of one head among h is h/(draws + 1) at the least, and is doubled; beyond 2000 they take long.
DRAWS_PER_HEAD, MOST_DRAWS = 50, 2000
# Scores of a jump: of one head, of a layer, of a layer beyond the trend over depth.
JUMPS = ("z", "z_layer", "z_trend")


def growth(asked: Asked) -> Finding:
    """A.i: spectra grow over depth."""
    sigma, layer = _largest(asked)
    middle = np.array([np.median(sigma[layer == i]) for i in np.unique(layer)])
    if len(middle) < FEWEST_LAYERS:
        raise BadRequest(f"an order of fewer than {FEWEST_LAYERS} layers is never beyond chance, it has {len(middle)}")
    heights = np.round(np.log(middle), 10)  # equal but for rounding is equal
    if not np.ptp(heights) > 0:
        raise BadRequest("an order of layers is asked for, all have the same median σ₁")
    tau, p = _kendall(np.arange(len(middle)), heights)
    why = f"median σ₁ of OV goes from {middle[0]:.3g} in the first layer to {middle[-1]:.3g} in the last"
    return Finding("A.i", "Kendall's τ of σ₁ with depth", tau, 0.0, verdict(p < ALPHA), why, p=p)


def jump(asked: Asked) -> Finding:
    """A.ii: a jump in late layers."""
    sigma, layer = _largest(asked)
    numbers = {name: asked.spectra.column(name).numbers for z in JUMPS for name in (z, f"{z}_level", f"p_{z}")}
    late = np.flatnonzero(layer >= 2 * asked.model.spec.n_layers / 3).tolist()
    scores = [
        (numbers[z][i] / numbers[f"{z}_level"][i], z, i) for z in JUMPS for i in late if np.isfinite(numbers[z][i])
    ]
    if not scores:
        raise BadRequest("too few heads or layers to say which is out of line (four that differ are needed)")
    ratio, z, at = max(scores)
    where, times = str(asked.spectra["site"][at]), float(sigma[at] / np.median(sigma))
    if z != "z":
        where, times = f"layer {layer[at]}", float(np.median(sigma[layer == layer[at]]) / np.median(sigma))
    why = f"the largest of the last third is {where}: σ₁ is {times:.3g} × the median of all heads"
    return Finding(
        "A.ii",
        "robust z of log σ₁",
        float(numbers[z][at]),
        float(numbers[f"{z}_level"][at]),
        verdict(ratio > 1),
        why,
        p=float(numbers[f"p_{z}"][at]),
    )


def individual(asked: Asked) -> Finding:
    """B: a head's singular directions can be individually interpretable."""
    share = _share(asked, "write")
    why = f"{of_share(share['coherent'])} of {share['n']} directions that heads write have lists more alike than chance"
    return Finding(
        "B",
        "share of coherent lists",
        share["coherent"],
        ALPHA,
        verdict(share["low"] > ALPHA),
        why,
        share["low"],
        share["high"],
    )


def processing(asked: Asked) -> Finding:
    """B.i: without TransformerLens' weight processing the baseline is higher."""
    if asked.made is None:
        raise BadRequest("it takes an atlas of the frame tl_default beside this one")
    table = frames(asked.atlas, asked.made, names=("tl_default", "raw"))
    row = next(r for r in table.rows if (r["kind"], r["side"]) == ("ov", "write"))
    why = f"coherent lists: tl_default {of_share(row['before'])}, raw {of_share(row['after'])} ({row['sites']} heads)"
    return Finding(
        "B.i",
        "coherence z raw − tl_default",
        row["effect"],
        0.0,
        verdict(row["effect"] > 0 and p_of(row) < ALPHA),
        why,
        number(row["low"]),
        number(row["high"]),
        p_of(row),
    )


def valence(asked: Asked) -> Finding:
    """B.ii: signs differ between a truncated and a full decomposition."""
    sites = asked.model.sites("L*H*.ov")
    some = sites[:: max(1, -(-len(sites) // HEADS_COMPARED))]
    start = generator(asked.seed, "start of the truncated routine").standard_normal(asked.model.spec.d_model)
    differ, total, ours = 0, 0, 0
    for site in some:
        m = asked.model.map(site)
        found = svd(m)
        k = min(DYADS_COMPARED, found.rank, asked.model.spec.d_model - 1)
        if not k:
            continue
        whole = np.linalg.svd(m.dense())[2][:k]
        _, _, rising = svds(m.dense(), k=k, v0=start)
        part = np.asarray(rising)[::-1]
        clear = np.abs(np.einsum("rd,rd->r", whole, part)) > 0.9  # inside blocks vectors turn, and have no sign
        differ += int((np.einsum("rd,rd->r", whole, part) < 0)[clear].sum())
        ours += int((np.einsum("rd,rd->r", svd(m, k).Vh, found.Vh[:k]) < 0).sum())
        total += int(clear.sum())
    if not total:
        raise BadRequest("no dyad is clear enough of its neighbours to compare signs")
    why = f"{differ} of {total} dyads differ in sign between a full and a truncated routine; between ours {ours}"
    return Finding("B.ii", "share of differing signs", differ / total, 0.0, verdict(differ > 0), why)


def either_pole(asked: Asked) -> list[Finding]:
    """C: interpretable in either valence, sometimes in both."""
    hits, both_null, unit = _poles(asked)
    shares = [clustered_share(hits[:, pole], unit) for pole in (0, 1)]
    less = min(shares, key=lambda s: s.value)
    both = clustered_share(np.asarray(hits.all(axis=1)), unit)
    chance = both_null.high  # the share itself is known from random directions only
    why = f"coherent at the + pole {of_share(shares[0].value)}, at the − pole {of_share(shares[1].value)}"
    together = (
        f"{int(hits.all(axis=1).sum())} of {len(hits)}; of random directions {of_share(both_null.value)}, whose "
        f"interval ends at {of_share(chance)}: the level that it is held against"
    )
    return [
        Finding(
            "C.i",
            "coherent at the rarer pole",
            less.value,
            ALPHA,
            verdict(all(s.low > ALPHA for s in shares)),
            why,
            less.low,
            less.high,
        ),
        Finding(
            "C.ii",
            "coherent at both poles",
            both.value,
            chance,
            verdict(both.low > chance),
            together,
            both.low,
            both.high,
        ),
    ]


def left(asked: Asked) -> Finding:
    """D: left singular directions are interpretable too."""
    share = _share(asked, "read")
    why = f"{of_share(share['coherent'])} of {share['n']} directions that heads read have lists more alike than chance"
    return Finding(
        "D",
        "share of coherent lists",
        share["coherent"],
        ALPHA,
        verdict(share["low"] > ALPHA),
        why,
        share["low"],
        share["high"],
    )


def pseudo_inverse(asked: Asked) -> Finding:
    """D.i: left directions mean something through the transpose, not through pinv(W_E)."""
    inverse, transpose = ridge(
        asked.atlas, asked.model, path=(0.0, float("inf")), draws=asked.draws, seed=asked.seed
    ).rows
    worse = inverse["difference"] < 0 and p_of(inverse) < ALPHA
    works = transpose["low"] > ALPHA
    why = (
        f"coherent lists: transpose {of_share(transpose['coherent'])}, pinv {of_share(inverse['coherent'])} "
        f"(by chance 5 % each)"
    )
    return Finding(
        "D.i",
        "coherence z pinv − transpose",
        inverse["difference"],
        0.0,
        verdict(worse and works),
        why,
        p=p_of(inverse),
    )


def left_less(asked: Asked) -> Finding:
    """D.ii: left directions are less interpretable than right ones."""
    table = sides(asked.atlas, asked.model, bases=("token_out",), draws=asked.draws, seed=asked.seed)
    row = next(r for r in table.rows if r["basis"] == "token_out")
    holds = row["difference"] < 0 and p_of(row) < ALPHA
    why = f"coherent lists in token_out: read {of_share(row['read'])}, written {of_share(row['write'])}"
    return Finding(
        "D.ii",
        "coherence z read − written",
        row["difference"],
        0.0,
        verdict(holds),
        why,
        number(row["low"]),
        number(row["high"]),
        p_of(row),
    )


def unit(asked: Asked) -> Finding:
    """E: the ten leading directions of a head sometimes are one semantic unit.

    Two ways to be beyond chance: one head clearly (q over heads), or more heads a little than 5 % of them; p is twice
    the smaller of both.
    """
    heads = len(asked.model.sites("L*H*.ov"))
    table = joint_units(asked.model, draws=int(np.clip(DRAWS_PER_HEAD * heads, 200, MOST_DRAWS)), seed=asked.seed)
    which = "others" if np.isfinite(table["p_others"]).any() else "inside"
    ps, qs = (np.nan_to_num(table.column(f"{x}_{which}").numbers, nan=1.0) for x in "pq")
    if not np.isfinite(table[f"p_{which}"]).any():
        raise BadRequest("heads here have fewer than two directions")
    few, best = int((ps < ALPHA).sum()), int(np.argmin(qs))
    p = min(1.0, 2 * min(float(qs[best]), float(stats.binom.sf(few - 1, len(ps), ALPHA))))
    against = {"others": "the heads' directions, mixed", "inside": "random directions of their own subspace"}[which]
    inside = int((np.nan_to_num(table.column("q_inside").numbers, nan=1.0) < ALPHA).sum())
    why = f"of {len(ps)} heads {few} have p < .05 against {against}, {int((qs < ALPHA).sum())} q < .05"
    why += f" ({inside} against random directions of their own subspace)" if which == "others" else ""
    why += f"; nearest {table['head'][best]}"
    return Finding("E", "share of heads of one piece", few / len(ps), ALPHA, verdict(p < ALPHA), why, p=p)


def _largest(asked: Asked) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """σ₁ of every head's OV, and its layer."""
    layer = np.array([asked.model.site(address).layer for address in asked.spectra["site"]])
    return np.asarray(asked.spectra["sigma1"], dtype=np.float64), layer


def _kendall(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    tau, p = np.array(stats.kendalltau(x, y, alternative="greater"), dtype=np.float64)
    return float(tau), float(p)


def _share(asked: Asked, side: str) -> dict[str, Any]:
    return next(r for r in asked.shares.rows if (r["kind"], r["side"]) == ("ov", side))


def _poles(asked: Asked) -> tuple[Bool[np.ndarray, "n 2"], Share, Int[np.ndarray, " n"]]:
    """Which poles of what heads write are coherent (at 5 % of random poles), how often both by chance, and heads."""
    places = directions(asked.atlas)
    at = places.of("ov", "write")
    name, _, centred = str(asked.atlas.column("basis")[at][0]).partition(".")
    one = judge(asked.model, name, centred=bool(centred), draws=asked.draws, seed=asked.seed)
    rows = asked.atlas.units(at)
    rows /= lengths(rows)[:, None]
    found = list_scores(rows, one.dictionary.lists(rows), one.dictionary, seed=asked.seed).by_pole
    null = one.null.scores.by_pole
    level = float(np.nanquantile(null, 1 - ALPHA))
    both = np.asarray((null > level).all(axis=1))
    return np.asarray(found > level), clustered_share(both, np.arange(len(both))), places.unit[at]


# What asks each finding, in the sprint's order; C and F answer for two.
FINDINGS: tuple[tuple[str, Callable[[Asked], Finding | list[Finding]]], ...] = (
    ("A.i", growth),
    ("A.ii", jump),
    ("B", individual),
    ("B.i", processing),
    ("B.ii", valence),
    ("C", either_pole),
    ("D", left),
    ("D.i", pseudo_inverse),
    ("D.ii", left_less),
    ("E", unit),
    ("F", tracing),
)
