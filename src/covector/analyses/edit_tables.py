"""An edit's effect seen closer: prompt by prompt, direction by direction, control by control.

Source: theory page F5, SV-20; `docs/theory/edits.md`, equations 8, 9, 20–22.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from covector.analyses.edit_controls import OUTPUT
from covector.analyses.edit_effect import NAN, control_effects, per_kl, probability, rank, slope
from covector.analyses.edit_measures import CONTROLS, Effects, Measured
from covector.analyses.edit_picture import against
from covector.analyses.edit_words import again, meta_of
from covector.render import Column, Table


def by_prompt(effects: Effects) -> Table:
    """One row per prompt, side and observable: before, after and change with the whole edit at dose 1.

    `top` is the observable's first token: its probability and rank before and after.
    """
    setup, m = effects.setup, effects.parts[0]
    last = int(np.flatnonzero(setup.doses == 1)[0])
    rows = []
    for j, o in enumerate(setup.observables):
        token = o.ids[0]
        p, places = ([of(x, token) for x in (setup.base, m.logits)] for of in (probability, rank))
        for s in range(setup.bench.sides):
            for i, pair in enumerate(setup.bench.pairs):
                before, change = float(effects.before[j, s, i]), float(m.effects[last, j, s, i])
                rows.append({
                    "prompt": pair.texts[s], "side": ("clean", "corrupt")[s] if setup.bench.sides == 2 else "",
                    "observable": str(o), "before": before, "after": before + change, "change": change,
                    "token": o.labels[0], "p": float(p[0][s, i]), "p after": float(p[1][s, i]),
                    "rank": int(places[0][s, i]), "rank after": int(places[1][s, i]),
                })  # fmt: skip
    columns = [
        Column("number", np.arange(len(rows)), about="which row"),
        Column("change", np.array([r["change"] for r in rows]), "logits", 3, "edited − unedited"),
        Column("before", np.array([r["before"] for r in rows]), "logits", 3, "in the model as it is"),
        Column("after", np.array([r["after"] for r in rows]), "logits", 3, "in the edited model"),
        Column("token", [r["token"] for r in rows], about="the observable's first token"),
        Column("p", np.array([r["p"] for r in rows]), about="its probability"),
        Column("p after", np.array([r["p after"] for r in rows]), about="in the edited model"),
        Column("rank", np.array([r["rank"] for r in rows]), about="its place among all tokens, 1 the most likely"),
        Column("rank after", np.array([r["rank after"] for r in rows]), about="in the edited model"),
        Column("prompt", [r["prompt"] for r in rows], about="the text"),
        Column("side", [r["side"] for r in rows], about="of its pair"),
        Column("observable", [r["observable"] for r in rows], about="what is measured"),
    ]
    changes = np.array([r["change"] for r in rows])
    most = rows[int(np.argmax(np.abs(changes)))]
    up = int(np.sum(changes > 0))
    return Table(
        columns, meta_of(effects) | {"analysis": "edit_prompts", "kind": "accounting"},
        f"{setup.model.name} · {setup.parts[0].edit.in_words()} · prompt by prompt",
        f"Of {len(rows)} measurements {up} rise and {int(np.sum(changes < 0))} fall; the largest change is "
        f"{most['change']:+.3f}, of {most['observable']} in '{most['prompt']}'.",
        "Prompts with the same names are not independent; intervals over names stand in the table of the effect.",
        again(setup, "dyad"), key=("number",),
    )  # fmt: skip


def by_dyad(effects: Effects) -> Table:
    """One row per direction of the edit and observable: predicted (first order) and measured alone, headline group.

    Largest prediction first; of many directions the first 64 are measured. Predictions sum to that of the whole edit;
    measurements do not, where directions interact.
    """
    rows = sorted(_directions(effects, effects.parts[0]), key=lambda row: -abs(row["predicted"]))

    def of(name: str) -> np.ndarray:
        return np.array([r[name] for r in rows], dtype=np.float64)

    setup, m = effects.setup, effects.parts[0]
    columns = [
        Column("site", [r["site"] for r in rows], about="which map"),
        Column("dyad", [r["dyad"] for r in rows], about="which direction of it"),
        Column("ε", of("epsilon"), about="its change of gain: −1 removes"),
        Column("σ", of("gain"), about="its gain"),
        Column("observable", [r["observable"] for r in rows], about="what is measured"),
        Column("predicted", of("predicted"), "logits", 3, "gradient at dose 0, same prompts (a fit)"),
        Column("alone", of("alone"), "logits", 3, "measured with this direction alone changed"),
        Column("low", of("low"), "logits", 3, "95 % interval over names"),
        Column("high", of("high"), "logits", 3, "upper end"),
        Column("share", of("share"), "", 2, "of the whole prediction"),
    ]
    first = np.array([r["observable"] == str(setup.observables[0]) for r in rows])
    total, alone = slope(m, 0, setup.headline), np.nansum(of("alone")[first])
    last = int(np.flatnonzero(setup.doses == 1)[0])
    whole = float(setup.mean(setup.of_group(m.effects[last, 0], setup.headline)))
    o = setup.observables[0]
    every = np.isfinite(of("alone")).all()
    sums = f"single directions measured alone sum to {alone:+.3f}, " if every else ""
    return Table(
        columns, meta_of(effects) | {"analysis": "edit_dyads"},
        f"{setup.model.name} · {m.part.edit.in_words()} · direction by direction, {setup.headline}",
        f"Predictions for {o} sum to {total:+.3f}; {sums}the edit together does {whole:+.3f}.",
        "Predictions are fits: gradients at the unedited model on the same prompts; what directions do to each other "
        "and to norms is in the measurements alone.",
        again(setup, "control"), key=("site", "dyad", "observable"),
    )  # fmt: skip


def _directions(effects: Effects, m: Measured) -> Iterator[dict[str, Any]]:
    setup, group = effects.setup, effects.setup.headline
    for j, o in enumerate(setup.observables):
        total = slope(m, j, group)
        for k, piece in enumerate(m.pieces):
            each = m.slopes[j, :, k]
            predicted = float(each[0] - each[1]) if group == "gap" else float(each[0])
            alone, low, high = setup.interval(setup.of_group(m.alone[k, j], group))
            yield {"site": piece.site, "dyad": piece.dyad, "epsilon": piece.epsilon, "gain": piece.gain,
                   "observable": str(o), "predicted": predicted, "alone": alone, "low": low, "high": high,
                   "share": predicted / total if total else NAN}  # fmt: skip


def by_control(effects: Effects) -> Table:
    """The edit, and one row per control, largest effect on the first observable first; headline group, dose 1."""
    setup, m = effects.setup, effects.parts[0]
    last = int(np.flatnonzero(setup.doses == 1)[0])
    kinds, numbers, effect, kl = ["the edit"], [0], [], []
    effect.append(float(setup.mean(setup.of_group(m.effects[last, 0], setup.headline))))
    kl.append(NAN if m.side is None else float(m.side.kl[last].mean()))
    for kind in CONTROLS:
        values = control_effects(setup, m, kind, 0, setup.headline, last if kind == OUTPUT else 0)
        kinds += [kind] * len(values)
        numbers += range(len(values))
        effect += values.tolist()
        kl += m.control_kl[kind][:, -1].tolist() if m.control_kl else [NAN] * len(values)
    order = np.concatenate([[0], 1 + np.argsort(-np.abs(np.array(effect[1:])), kind="stable")])
    place = {kind: 1 + sum(abs(e) >= abs(effect[0]) for k, e in zip(kinds, effect, strict=True) if k == kind)
             for kind in CONTROLS if kind in kinds}  # fmt: skip
    columns = [
        Column("change", [kinds[i] for i in order], about="the edit, or how the control is matched"),
        Column("number", np.array(numbers)[order], about="draw, or place among the other dyads"),
        Column("effect", np.array(effect)[order], "logits", 3, f"change of {setup.observables[0]}, {setup.headline}"),
        Column("kl", np.array(kl)[order], "nats", about="KL(base ‖ changed) per token on neutral text"),
        Column("per √KL", per_kl(np.array(effect), np.array(kl))[order], "logits/√nat", about="|effect| / √KL"),
    ]
    told = ", ".join(f"{rank_} of {1 + kinds.count(kind)} ({kind})" for kind, rank_ in place.items())
    return Table(
        columns, meta_of(effects) | {"analysis": "edit_controls", "kind": "accounting"},
        f"{setup.model.name} · {m.part.edit.in_words()} · among its controls, {setup.headline}",
        f"The edit moves {setup.observables[0]} by {effect[0]:+.3f}: place {told} by size.",
        "A control of equal output is equal in mean square over the prompts' inputs, not in direction, nor in what "
        "later layers make of it.",
        again(setup, "prompt"), picture=lambda _: against(effects), key=("change", "number"),
    )  # fmt: skip
