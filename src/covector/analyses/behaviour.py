"""Does a score read off the weights predict what an edit does to behaviour? Every dyad of chosen sites is removed.

This is the claim of the decision-transformer post, put as a rank correlation: scores of dyads (cosine with an action,
share in the contrasts of actions, gain, direct effect) against what their removal does (to actions along clean
episodes, to the return).

Source: theory page F13, F14, Q1–Q3; `docs/theory/rollouts.md`, equations on rank correlation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.analyses.rollout import Experiment
from covector.analyses.rollout_arms import CLEAN, Arm, apart
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance import threshold
from covector.linalg.svd import svd
from covector.linalg.trials.ranks import RankCorrelation, rank_correlation_interval
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.render import Column, Scatter, Table
from covector.run.decoder import Decoder
from covector.run.direct import straight_values, writes_straight
from covector.run.replay import Moments, values
from covector.study.agent import Agent

NAN = float("nan")
SCORES = ("cos", "contrast", "gain", "straight")
EFFECTS = ("kl", "other", "harm")


def every_dyad(model: Model, sites: str, most: int) -> dict[str, str]:
    """An edit for each of the first `most` dyads of the sites, by name: the removal of it alone. Raises BadSite."""
    found = {}
    for pattern in sites.split(","):
        for site in model.sites(pattern.strip()):
            rank = svd(model.map(site)).rank
            found |= {f"{site}:{i}": f"{site}:{i}*0" for i in range(min(most, rank))}
    if len(found) < 3:
        raise BadRequest(f"--each {sites}: expected three dyads or more to compare, got {len(found)}; name more sites")
    return found


@dataclass(frozen=True)
class Scored:
    """What weights say of one dyad: gain, best |cosine| with an action and which, share in the contrasts."""

    site: str
    dyad: int
    sigma: float
    side: str
    cos: float
    level: float
    label: str
    contrast: float
    gain: float


def scored(model: Model, arm: Arm) -> Scored:
    """The scores of the dyad that an arm removes, from its write side, or its read side where it writes no stream.

    ``gain``: σ times the length of its part in the contrasts of the action outputs. ``level``: |cos| that the best of
    all actions stays below with 95 % by chance.
    """
    (laid,) = arm.part.resolved.laid
    m, (i,) = model.map(laid.site), getattr(laid.term, "indices", (0,))
    found = laid.found or svd(m)
    basis = model.bases["action_out"]
    units = basis.unit()[basis.usable].astype(np.float64)
    names = [label for label, ok in zip(basis.labels, basis.usable, strict=True) if ok]
    writes = m.writes.kind == "residual"
    if not writes and m.reads.kind != "residual":
        raise BadRequest(f"--each {laid.site}: expected sites of which one side lies in the stream; name others")
    v = found.Vh[i] if writes else found.U[:, i]
    cosines = units @ v
    best = int(np.abs(cosines).argmax())
    vectors = basis.vectors[basis.usable].astype(np.float64)
    contrasts = vectors - vectors.mean(axis=0)
    frame = np.linalg.svd(contrasts, full_matrices=False)
    kept = frame[2][frame[1] > 1e-10 * frame[1][0]]
    return Scored(
        str(laid.site), int(i), float(found.S[i]), "write" if writes else "read", float(cosines[best]),
        float(threshold(len(v), len(names))), names[best], float(np.sum((kept @ v) ** 2)),
        float(found.S[i] * np.linalg.norm(contrasts @ v)),
    )  # fmt: skip


def behaviour(x: Experiment, decoder: Decoder, seen: Moments) -> Table:
    """One row per dyad removed: what its weights say, and what its removal does; largest KL first.

    ``straight`` is the KL of the action when only the way straight to the outputs is cut (NaN where a norm stands
    behind), ``kl`` when the model is edited; ``harm`` is the fall of the return on the same seeds. Rank correlations of
    every score with every effect stand in ``meta`` and the first in the sentence; shuffled and resampled within sites.
    """
    plain = values(decoder, seen)
    direct = straight_effects(x.agent, decoder, seen, plain, {arm.name: arm.part.change for arm in x.arms})
    clean, rows = x.returns(CLEAN), []
    for arm in x.arms:
        s, (other, kl) = scored(x.model, arm), x.diverged[arm.name]
        change = x.returns(arm.name) - clean
        rows.append({
            "site": s.site, "dyad": s.dyad, "sigma": s.sigma, "cos": s.cos, "level": s.level, "label": s.label,
            "contrast": s.contrast, "gain": s.gain, "straight": direct[arm.name], "kl": kl, "other": other,
            "harm": -float(change.mean()), "error": float(change.std(ddof=1) / len(change) ** 0.5), "side": s.side,
        })  # fmt: skip
    related = correlations(rows, x.options.seed)
    rows.sort(key=lambda r: -r["kl"])

    def of(name: str) -> Float[np.ndarray, " n"]:
        return np.array([r[name] for r in rows], dtype=np.float64)

    columns = [
        Column("site", [r["site"] for r in rows]),
        Column("dyad", [r["dyad"] for r in rows]),
        Column("side", [r["side"] for r in rows], about="the side that is compared with the actions"),
        Column("σ", of("sigma"), digits=3, about="its gain"),
        Column("cos", of("cos"), "cos", 3, "the action output nearest to it", chance="cos_level"),
        Column("cos_level", of("level"), "", 3, "|cos| that the best of all actions stays below, 95 % by chance"),
        Column("action", [r["label"] for r in rows], about="that action"),
        Column("contrast", of("contrast"), "", 3, "its share in the span of differences of actions"),
        Column("gain", of("gain"), "", 3, "σ times its effect on differences of action outputs"),
        Column("straight", of("straight"), "nats", 4, "KL of the action if only the way straight out is cut"),
        Column("kl", of("kl"), "nats", 4, "KL of the action in the edited model, along clean episodes"),
        Column("other", of("other"), "", 2, "share of those moments with another action"),
        Column("harm", of("harm"), "", 3, "fall of the mean return on the same seeds"),
        Column("error", of("error"), "", 3, "its standard error over seeds"),
    ]
    meta = x.meta | {"analysis": "behaviour", "rank_correlations": {
        f"{score} ~ {effect}": {"value": r.value, "low": r.low, "high": r.high, "p": r.p, "n": r.n}
        for (score, effect), r in related.items()}}  # fmt: skip
    return Table(columns, meta, *_said(x, rows, related), picture=lambda _: _scatter(rows), key=("site", "dyad"))


def straight_effects(
    agent: Agent, decoder: Decoder, seen: Moments, plain: np.ndarray, changes: Mapping[str, Change]
) -> dict[str, float]:
    """How far each change moves the action (see `apart`) if it reaches the outputs alone; NaN where that is undefined.

    `plain`: the action outputs [moment, action] without a change.
    """
    ways = {name: change for name, change in changes.items() if writes_straight(decoder, change)}
    found = dict.fromkeys(changes, NAN)
    if ways:
        moved = straight_values(decoder, seen, list(ways.values()))
        found |= {name: apart(agent, plain, other)[1] for name, other in zip(ways, moved, strict=True)}
    return found


def correlations(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[tuple[str, str], RankCorrelation]:
    """Spearman's correlation of each score with each effect over the dyads, p by shuffling within sites."""
    found = {}
    strata = np.unique([str(r["site"]) for r in rows], return_inverse=True)[1]
    for score in SCORES:
        own = np.array([abs(float(r[score])) for r in rows])
        ok = np.isfinite(own)
        if ok.sum() < 3:
            continue
        for effect in EFFECTS:
            done = np.array([float(r[effect]) for r in rows])
            found[score, effect] = rank_correlation_interval(own[ok], done[ok], strata=strata[ok], seed=seed)
    return found


def _said(
    x: Experiment, rows: Sequence[Mapping[str, Any]], related: Mapping[tuple[str, str], RankCorrelation]
) -> tuple[str, str, str, str]:
    def words(score: str, effect: str) -> str:
        r = related.get((score, effect))
        return "" if r is None else f"{r.value:+.2f} ({r.low:+.2f} to {r.high:+.2f}, p {r.p:.2g} within sites)"

    sites = list(dict.fromkeys(str(r["site"]) for r in rows))
    text = (
        f"Over {len(rows)} dyads of {len(sites)} sites |cosine with an action| ranks with the change of actions (KL) "
    )
    text += f"by {words('cos', 'kl')}, gain by {words('gain', 'kl')}"
    text += f", the direct effect by {words('straight', 'kl')}" if ("straight", "kl") in related else ""
    text += f"; with the fall of the return cosine by {words('cos', 'harm')}, gain by {words('gain', 'harm')}."
    worst = max(rows, key=lambda r: r["harm"])
    text += f" Most harm: {worst['site']}:{worst['dyad']}, {worst['harm']:.3f}."
    no = (
        f"Single removals on {x.options.episodes} episodes: noise of the return pulls its correlations to 0. A score "
        "of the write side knows nothing of how often a dyad is read; dyads that only act together are not seen."
    )
    edit = f"{worst['site']}:{worst['dyad']}*0"
    return (
        f"{x.model.name} in {x.agent.environment.id} · does the score predict the effect? · {len(rows)} dyads removed",
        text, no, f"covector rollout {x.typed} --arm worst='{edit}'",
    )  # fmt: skip


def _scatter(rows: Sequence[Mapping[str, Any]]) -> Scatter:
    shown = sorted(rows, key=lambda r: -r["kl"])[:3]
    names = [f"{r['site']}:{r['dyad']}" if r in shown else "" for r in rows]
    return Scatter(
        np.array([abs(r["cos"]) for r in rows]), np.array([r["kl"] for r in rows]), "|cosine| with the nearest action",
        "KL of the action, dyad removed", "", "nats", names, [r["site"] for r in rows],
    )  # fmt: skip
