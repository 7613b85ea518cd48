"""The decision-transformer post, asked again of an agent: every claim, as its code had it and corrected.

Source: document 000 of the sources; §0 and §3.5 of the theory page; `docs/replicate-dt-svd.md`.
"""

from collections.abc import Sequence

import numpy as np

from covector.analyses.replicate.dt_svd_claim import ALPHA, CLAIMS, FAILS, HOLDS, SILENT, Claim, silent
from covector.analyses.replicate.dt_svd_lines import claim_line
from covector.analyses.replicate.dt_svd_parts import ACTIONS, OV, K, Looked, V, looked
from covector.analyses.replicate.dt_svd_weights import weight_claims
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.model.opened import Model
from covector.render import Column, Grid, Table

DRAWS = 1000


def replicate_dt_svd(model: Model, played: Sequence[Claim] = (), *, draws: int = DRAWS, seed: int = 0) -> Table:
    """One row per claim of the post: the number that answers it here, with its null and p, and a verdict.

    `played`: what `covector.analyses.replicate.dt_svd_played.played_claims` found by roll-outs; without it the claims
    on edits cannot be decided. ``defect`` is the number as the post's code would have shown it (rows of V for singular
    vectors of W_out, the written side of OV for inputs, norms' gains folded), with its p and verdict.

    A claim holds where its number is beyond chance at 5 % in the direction claimed; maxima are taken inside the null.
    `draws` of simulated nulls. Raises BadRequest for a model that is no agent, a frame other than raw, few draws.
    """
    if str(model.frame) != "raw":
        raise BadRequest(f"{model.name}: expected the frame raw, the post's own is made from it; got {model.frame}")
    seen = looked(model, draws, seed)
    found = {claim.key: claim for claim in (*weight_claims(seen), *played)}
    for key in CLAIMS:
        found.setdefault(key, silent(key, "not played; leave --no-play out"))
    claims = [found[key] for key in CLAIMS]
    return Table(
        _columns(claims),
        model.meta
        | {"analysis": "replicate_dt_svd", "seed": seed, "draws": draws, "level": ALPHA, "played": bool(played),
           "policy": "weights, and episodes" if played else "none: weights only",
           "published_frame": str(seen.published_frame.frame),
           "null": "Haar frames in place of singular vectors, one per matrix; sign flips over seeds for returns"},
        title=f"{model.name} · claims of the decision-transformer post, as published and corrected",
        says=_says(claims),
        not_says="It does not say what holds of the post's own agents (hopper, walker). Verdicts are at 5 % each. A "
        "claim of weights may hold without the agent needing that place: that is what B asks.",
        next=_next(model, bool(played)),
        picture=_picture(seen),
        lines=claim_line,
        key=("finding",),
    )  # fmt: skip


def _columns(claims: Sequence[Claim]) -> list[Column]:
    def of(name: str) -> Float[np.ndarray, " n"]:
        return np.array([getattr(one, name) for one in claims], dtype=np.float64)

    return [
        Column("finding", [one.key for one in claims], about="A origin of actions, B edits, C inputs, D display, size"),
        Column("claim", [one.claim for one in claims]),
        Column("published", [one.published for one in claims], about="what the post gives; implied: by its edit"),
        Column("verdict", [one.verdict for one in claims], about=f"at {ALPHA:.0%}, in the direction claimed"),
        Column("number", [one.number for one in claims], about="what answers it"),
        Column("ours", of("ours"), digits=3, about="of this agent, corrected", chance="chance"),
        Column("chance", of("chance"), digits=3, about="what chance, or random changes, give; 95 % of it for maxima"),
        Column("low", of("low"), digits=3, about="95 % interval"),
        Column("high", of("high"), digits=3, about="95 % interval"),
        Column("p", of("p"), about="over all places looked at"),
        Column("defect", of("defect"), digits=3, about="as the post's code had it"),
        Column("defect_p", of("defect_p"), about="its p"),
        Column("as_published", [one.as_published for one in claims], about="the verdict that it would have given"),
        Column("why", [one.why for one in claims], about="the numbers behind it, or why it cannot be decided"),
    ]


def _says(claims: Sequence[Claim]) -> str:
    by = {v: [one.key for one in claims if one.verdict == v] for v in (HOLDS, FAILS, SILENT)}
    said = f"Of {len(claims)} claims these hold here: {', '.join(by[HOLDS]) or 'none'}; these do not: "
    said += f"{', '.join(by[FAILS]) or 'none'}; not decided: {', '.join(by[SILENT]) or 'none'}."
    turned = [c.key for c in claims if {c.as_published, c.verdict} == {HOLDS, FAILS}]
    return said + (f" The published code would have said otherwise of {', '.join(turned)}." if turned else "")


def _next(model: Model, played: bool) -> str:
    if played:
        return f"covector rollout {model.words} --each 'L*.mlp.in,L*.mlp.out'"
    return f"covector replicate dt-svd {model.words}"


def _picture(seen: Looked) -> Grid:
    """Largest |cosine| with an action output by matrix: as the post's code had it, and corrected."""
    labels, parts = seen.labels(ACTIONS), seen.parts((K, V, OV))
    values = np.array([
        [np.nan if r is None or not len(labels.units) else np.abs(r @ labels.units.T).max() for r in (p.defect, p.rows)]
        for p in parts
    ])  # fmt: skip
    rank = max(len(p.rows) for p in parts)
    d, n = seen.model.spec.d_model, max(len(labels.units), 1)
    return Grid(values, [f"{p.kind} {p.site}" for p in parts], ["as published", "corrected"],
                value_name="|cosine| with an action", unit="cos", centre=None,
                chance=float(chance.threshold(d, rank * n)), row_name="matrix", column_name="")  # fmt: skip
