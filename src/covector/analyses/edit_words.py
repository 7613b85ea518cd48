"""What an edit's effect says and does not say, in sentences, and where it comes from."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from covector.analyses.edit_controls import DYADS, NORM, OUTPUT
from covector.analyses.edit_measures import Effects, Measured
from covector.analyses.edit_setup import MOST_PARTS, Setup
from covector.model.circuits import cautions
from covector.run.neutral import NEUTRAL
from covector.study.edit_resolve import Laid, meant
from covector.study.edit_terms import Along, Dyads, Replace

Row = dict[str, Any]


def meta_of(effects: Effects) -> dict[str, Any]:
    """The request and what decides the numbers."""
    setup = effects.setup
    text = setup.neutral
    return setup.model.meta | {
        "analysis": "edit_effect", "edit": setup.parts[0].edit.record(),
        "parts": [str(p.edit) for p in setup.parts[1:]], "observables": [str(o) for o in setup.observables],
        "groups": list(setup.groups), "at": setup.at, "pairs": len(setup.bench.pairs), "sides": setup.bench.sides,
        "names": len(set(setup.clusters)), "doses": setup.doses.tolist(),
        "precision": str(setup.bench.decoder.dtype).removeprefix("torch."),
        "kind": "fit", "first_order": "gradient at dose 0 on the same prompts",
        "controls": {kind: len(values) for kind, values in effects.parts[0].controls.items()},
        "output_size": dict(effects.parts[0].sizes), "draws": setup.draws, "seed": setup.seed,
        "neutral_tokens": None if text is None else len(text),
        "neutral_windows": None if text is None else len(set(text.window.tolist())),
        "topics": None if text is None else list(text.topics),
        "null": "random changes of the same stored factors with the edit's rank and relative singular values: equal "
                "E‖Δoutput‖² over the prompts' inputs, and equal ‖ΔM‖_F; other dyads with the same ε",
    }  # fmt: skip


def words(effects: Effects, rows: Sequence[Row]) -> tuple[str, str, str, str]:
    """Title, says, does not say, next."""
    setup = effects.setup
    if not setup.observables:
        return _of_text(effects, rows)
    m, o, names = effects.parts[0], setup.observables[0], len(set(setup.clusters))
    row = next(r for r in rows if r["dose"] == 1 and r["on"] == setup.headline and r["measure"] == str(o))
    what = _counted(len(setup.bench.pairs), "pair" if setup.bench.sides == 2 else "prompt")
    title = (
        f"{setup.model.name} · {setup.parts[0].edit.in_words()} · {what}, {_counted(names, 'name')} · {setup.draws} "
        "controls"
    )
    of = f"{o}{' (clean − corrupt)' if setup.bench.sides == 2 else ''}"
    says = (
        f"{of} goes from {row['before']:+.3f} to {row['after']:+.3f}: {row['change']:+.3f}{_interval(row)}; first "
        f"order, from the same prompts, {row['first']:+.3f}{_curvature(effects, m)}. {_controls(m, row)}"
        f"{_neutral(effects, rows)} {_monotone(effects, m)}{_terms(effects)}"
    )
    return title, says, _not_says(effects), again(setup, "dyad")


def _of_text(effects: Effects, rows: Sequence[Row]) -> tuple[str, str, str, str]:
    """Title, says, does not say, next, of side effects alone."""
    setup, m = effects.setup, effects.parts[0]
    assert setup.neutral is not None
    row = next(r for r in rows if r["dose"] == 1 and r["on"] == NEUTRAL and r["measure"] == "KL")
    title = (
        f"{setup.model.name} · {setup.parts[0].edit.in_words()} · side effects on {len(setup.neutral):,} tokens · "
        f"{setup.draws} controls"
    )
    says = f"{_neutral(effects, rows).strip()} {_controls(m, row)}{_terms(effects)}"
    return title, says, _not_says(effects), f"covector edit {setup.model.words} {_edits(setup)} --save edited"


def _terms(effects: Effects) -> str:
    """What typed words came to: concepts of several tokens, and replacements as an ablation and an addition."""
    told: dict[str, None] = {}
    for one in effects.parts[0].part.resolved.laid:
        words_ = meant(one, effects.setup.model)
        if words_ and isinstance(one.term, Along):
            told[f"{one.term.said} is one direction here, the mean of {words_}."] = None
        if isinstance(one.term, Replace):
            told[replacement(one)] = None
    return "".join(f" {text}" for text in told)


def replacement(one: Laid) -> str:
    """A replaced direction v → w as what is taken off, −σuv, and what is put on, σuw; norms and the angle between."""
    assert isinstance(one.term, Replace)
    v, w, gain = one.operator.reads[0], (one.operator.reads + one.operator.writes)[0], one.gains[0]
    length = float(np.linalg.norm(w))
    return (
        f"Replacing dyad {one.term.index} of {one.site} is its ablation, ‖ΔM‖ {gain:.3g}, and an addition of "
        f"‖ΔM‖ {gain * length:.3g} (a direction of length {length:.3g}, cos {float(v @ w) / length:+.2f} with the old "
        f"one): together {one.norm:.3g}."
    )


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def _interval(row: Row) -> str:
    return f" (95 % {row['low']:+.3f} to {row['high']:+.3f})" if np.isfinite(row["low"]) else ""


def _curvature(effects: Effects, m: Measured) -> str:
    """Measured over first order at the smallest dose and at 1, where they differ."""
    setup = effects.setup
    last = int(np.flatnonzero(setup.doses == 1)[0])
    slope = float(setup.of_group(m.slopes[0].sum(axis=1)[:, None], setup.headline)[0])
    values = setup.mean(setup.of_group(m.effects[:, 0], setup.headline))
    if slope == 0 or last == 0:
        return ""
    first, full = (float(values[i] / (slope * setup.doses[i])) for i in (0, last))
    return f" (measured is {first:.2f} of it at dose {setup.doses[0]:g}, {full:.2f} at 1)"


def _controls(m: Measured, row: Row) -> str:
    told = f"Of {len(m.controls[OUTPUT])} random changes of the same weights with equal output 95 % stay within "
    told += f"{row['band']:.3g} (p {row['p']:.2g}, q {row['q']:.2g}); p {row['p_norm']:.2g} among "
    told += f"{len(m.controls[NORM])} of equal ‖ΔM‖"
    n = len(m.controls[DYADS])
    if not n:
        return told + "."
    drawn = " drawn by chance" if n == len(m.controls[OUTPUT]) else ""
    return told + f", {row['p_dyads']:.2g} among {n} other dyads{drawn}."


def _neutral(effects: Effects, rows: Sequence[Row]) -> str:
    name = effects.parts[0].part.name
    here = {r["measure"]: r for r in rows if r["edit"] == name and r["dose"] == 1 and r["on"] == NEUTRAL}
    if not here:
        return ""
    kl, ratio = here["KL"], here["perplexity ×"]
    per = next((r for r in rows if r["edit"] == name and r["measure"].startswith("per √KL")), None)
    cost = f"; effect per √KL: p {per['p']:.2g}" if per else ""
    return (
        f" On neutral text it costs {kl['change']:.2g} nats of KL per token (p {kl['p']:.2g} among the controls"
        f"{cost}), perplexity × {ratio['change']:.4f}."
    )


def _monotone(effects: Effects, m: Measured) -> str:
    """Whether the mean effect moves one way all along the doses."""
    setup = effects.setup
    values = np.concatenate([[0.0], setup.mean(setup.of_group(m.effects[:, 0], setup.headline))])
    steps = np.diff(values)
    doses = ", ".join(f"{d:g}" for d in setup.doses)
    if len(steps) < 2:
        return ""
    if np.all(steps > 0) or np.all(steps < 0):
        return f"Monotone in the dose ({doses})."
    if not steps.any():
        return f"No change at any dose ({doses})."
    turn = int(np.flatnonzero(np.sign(steps) != np.sign(steps[0]))[0])
    return f"Not monotone in the dose ({doses}): it turns at {np.concatenate([[0.0], setup.doses])[turn]:g}."


def _not_says(effects: Effects) -> str:
    setup = effects.setup
    told = ["What the edit does to any task is not measured without --observe"]
    if setup.observables:
        told = ["The prediction is a fit, its gradient is taken on the same prompts"]
        told.append("nothing is said of other prompts")
    if setup.neutral is None:
        told.append("side effects are not measured without --neutral")
    else:
        told.append(f"side effects are those on {len(setup.neutral):,} tokens of this text")
    if setup.draws < 100:
        told.append(f"{setup.draws} controls cannot show a p below {1 / (1 + setup.draws):.2g}")
    if setup.observables and len(set(setup.clusters)) < 2:
        told.append("one prompt has no interval")
    unsaid = sum(map(len, setup.parts[0].edit.steps))
    if len(setup.parts) == 1 and unsaid > MOST_PARTS:
        told.append(f"its {unsaid} terms are measured together alone")
    if not len(effects.parts[0].controls[DYADS]):
        told.append("there are no other dyads to compare with")
    laid = effects.parts[0].part.resolved.laid
    scores = (one.site for one in laid if one.site.kind in ("qk", "q", "k"))
    told += dict.fromkeys(c for site in scores for c in cautions(setup.model.stored.spec, site))
    cut = _cut_blocks(laid)
    if cut:
        told.append(
            f"of {', '.join(cut)} only the span is defined (gains equal up to rounding): the edit changes a part of it"
        )
    warning = next((o.warning for o in setup.observables if o.warning), "")
    return "; ".join(told) + "." + (f" Note: {warning}." if warning else "")


def _cut_blocks(laid: Sequence[Laid]) -> list[str]:
    """Runs of dyads that rounding can mix, changed in part or not alike: which directions they are is arbitrary."""
    found: dict[str, None] = {}
    for one in laid:
        if one.found is None or not isinstance(one.term, Dyads | Replace):
            continue
        epsilon = dict(zip(one.term.indices, one.term.epsilon, strict=True)) if isinstance(one.term, Dyads) else {}
        for i in epsilon or [one.term.index]:  # type: ignore[union-attr]
            block = one.found.block_of(i)
            if len(block) > 1 and (not epsilon or len({epsilon.get(j, 0.0) for j in block}) > 1):
                found[f"{one.site}:{block[0]}-{block[-1]}"] = None
    return list(found)


def again(setup: Setup, by: str) -> str:
    """The command that shows the same edits in another way."""
    observed = " ".join(f"--observe {o.typed}" for o in setup.observables)
    frame = "" if setup.model.frame.name == "raw" else f" --frame {setup.model.frame}"
    return f"covector edit {setup.model.words} {_edits(setup)} {observed} with the same prompts{frame} --by {by}"


def _edits(setup: Setup) -> str:
    asked = setup.parts[1:] if len(setup.parts) > 1 else setup.parts
    return " ".join(_quoted(str(p.edit)) for p in asked)


def _quoted(text: str) -> str:
    return shlex.quote(text) if re.search(r'["$`\\!]', text) or "'" not in text else f'"{text}"'
