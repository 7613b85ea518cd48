"""What was chosen: one row for every dyad that changes, and what that does to the concept as it is written."""

import shlex

import numpy as np

from covector.analyses.choose import Budget, Choice
from covector.analyses.choose_metric import Metric
from covector.render import Column, Table


def chosen_table(choice: Choice, budget: Budget | None = None, held: Metric | None = None) -> Table:
    """The table of a choice; `held` measures it where it was not chosen by."""
    found = choice.candidates
    order = [int(i) for i in np.argsort(-np.abs(choice.epsilon * found.gains), kind="stable") if choice.epsilon[i]]
    cosine = np.sqrt(found.related[order])
    columns = [
        Column("dyad", [found.address(i) for i in order], about="site and dyad, largest change first"),
        Column("sigma", found.gains[order], about="its gain"),
        Column("cos", cosine, "cos", chance=found.tau, about="‖C v‖: how much of what it writes is the concept"),
        Column("q", found.q[order], about=f"of a direction so close by luck, corrected for {len(found):,} looked at"),
        Column("epsilon", choice.epsilon[order], about="its gain becomes (1 + ε)σ"),
        Column("keeps", 100 * (1 + choice.epsilon[order]), "%", 1, about="of its gain"),
        Column("size", np.abs(choice.epsilon * found.gains)[order], about="‖ΔM‖_F of this dyad, |ε|σ"),
    ]
    return Table(
        columns,
        title=f"{found.model.name} · {found.words} · {choice.how}",
        meta=found.model.meta | _meta(choice, held),
        says=_says(choice, budget, held),
        not_says=(
            "That these directions are about the concept alone: a cosine says what they write on average, KL on one "
            "text what changing them costs there."
        ),
        next=_next(choice),
        key=("dyad",),
    )


def _meta(choice: Choice, held: Metric | None) -> dict[str, object]:
    found = choice.candidates
    return {
        "analysis": "choose", "concept": found.words, "sites": [str(s) for s in found.sites], "how": choice.how,
        "price": choice.price, "size": choice.size, "written": found.written(choice.epsilon),
        "kl": choice.kl, "kl_held": choice.kl_held, "predicted_kl": choice.predicted_kl,
        "budget": choice.most, "beyond_budget": choice.beyond, "metric": held.words if held else None,
        "tau": found.tau, "related": int(found.beyond.sum()), "directions": len(found),
        "edit": dict(found.edit(choice.epsilon).record()),
    }  # fmt: skip


def _says(choice: Choice, budget: Budget | None, held: Metric | None) -> str:
    found, changed = choice.candidates, choice.epsilon[choice.epsilon != 0]
    text = f"{beyond_budget(choice)} " if choice.beyond else ""
    text += (
        f"{len(changed)} of {len(found):,} dyads change ({int(found.beyond.sum())} are related beyond chance), ε from "
        f"{changed.min():.2g} to {changed.max():.2g}, ‖ΔM‖ {choice.size:.3g}; for inputs of all kinds "
        f"{100 * found.written(choice.epsilon):.0f} % of the concept is still written"
        f"{': the dyads that stay write it too' if np.count_nonzero(choice.epsilon) < len(found) else ''}."
    )
    if choice.box is not None:
        low, high = int(choice.box.at_low.sum()), int(choice.box.at_high.sum())
        text += f" {low} stand at the lower bound, {high} at the upper, {choice.box.free} are free."
    if held is not None:
        before, after = held.of(), held.of(choice.change)
        wide = f" ± {held.half(after - before):.3f}" if len(before) > 1 else ", one window: no interval"
        text += (
            f" {held.words}, where it was not chosen by: {held.mean(before):+.3f} to {held.mean(after):+.3f} "
            f"(change {held.mean(after - before):+.3f}{wide})."
        )
    if budget is not None:
        met = ", within the budget" if choice.most is not None and not choice.beyond else ""
        predicted = f" (second order {choice.predicted_kl:.2g})" if np.isfinite(choice.predicted_kl) else ""
        text += (
            f" KL per token on {budget.told}: {choice.kl:.2g}{predicted} on the half chosen by, {choice.kl_held:.2g} "
            f"on the rest{met}."
        )
    return f"{text} {found.meant}".strip()


def beyond_budget(choice: Choice) -> str:
    """That the half of the text that did not choose exceeds the budget, in a line that is not overlooked."""
    return (
        f"BEYOND THE BUDGET: KL {choice.kl_held:.3g} per token on the half of the text that did not choose, "
        f"{choice.most:g} was allowed."
    )


def _next(choice: Choice) -> str:
    found = choice.candidates
    text = str(found.edit(choice.epsilon))
    return f"covector edit {found.model.words} {shlex.quote(text) if len(text) < 200 else '@edit.json'} --save edited"
