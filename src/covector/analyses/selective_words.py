"""What selective induction found, in sentences, and where it comes from."""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from covector.analyses.induction_edit import LEAST
from covector.analyses.induction_strings import labels_of
from covector.analyses.selective_measures import Found, Setup
from covector.linalg.selectivity import Judged


def meta_of(found: Found) -> dict[str, Any]:
    """The request and what decides the numbers."""
    s, e = found.setup, found.setup.evidence
    return s.model.meta | {
        "analysis": "selective_induction", "target": None if s.target is None else s.labels[s.target],
        "heads": list(s.heads), "heads_found": list(e.found), "way": s.maker.way, "keep": 1 - s.maker.share,
        "ridge": s.maker.ridge, "tokens": len(s.ids), "pairs": s.pairs, "length": s.length,
        "start": [labels_of(s.model)[i] for i in s.start], "draws": s.draws, "seed": s.seed,
        "precision": str(s.decoder.dtype).removeprefix("torch."),
        "places_of_moment": len(next(iter(s.maker.reads.values())).rows),
        "neutral_tokens": None if s.neutral is None else len(s.neutral),
        "edit": None if s.target is None else s.edit(s.target).record(),
        "null": "the same edit made for every other token in turn; intervals over strings; e and Σ from other strings",
        "tensors": s.model.origins(*s.edit(0).change(s.model).tensors),
    }  # fmt: skip


def title_of(s: Setup) -> str:
    """The model, the heads and the strings."""
    how = "least change" if s.maker.way == LEAST else "dyads dampened to the same E‖xΔM‖²"
    kept = "" if s.maker.share == 1 else f", {1 - s.maker.share:.0%} kept"
    return (
        f"{s.model.name} · … A B … A → B · {', '.join(s.heads)} · {how}{kept} · {len(s.ids)} tokens as targets · "
        f"{s.pairs} strings each"
    )


def told(found: Found, each: Sequence[Judged]) -> tuple[str, str, str]:
    """Title, says, next."""
    s = found.setup
    copied = np.flatnonzero(found.copied).tolist()
    alone = [t for t in copied if each[t].alone and _breaks(found, each[t], t)]
    whole = (
        f"{len(alone)} of {len(copied)} tokens{_not_copied(found)}, each taken as the target, break alone (lose more "
        "than half of p)"
        + ("" if len(alone) == len(copied) or s.target is not None else f"; not so {_named(s, copied, alone)}")
        + f"; largest fall of any other token {max(found.fall[t, j.worst] for t, j in enumerate(each)):.2g}."
    )
    if s.target is None:
        own = np.diag(found.fall)
        says = (f"p(B) falls by {np.median(own):.3f} (median, {own.min():.3f} to {own.max():.3f}), that of the other "
                f"tokens by {np.median([j.others for j in each]):.2g}. {whole} {_unharmed(found, None)}")  # fmt: skip
        return title_of(s), says, again(s, " --plot induction.png")
    return (
        title_of(s),
        f"{_one(found, each[s.target], s.target)} {_unharmed(found, s.target)} {whole}",
        again(s, " --by token"),
    )


def _one(found: Found, j: Judged, t: int) -> str:
    name = found.setup.labels[t].strip()
    if not found.copied[t]:
        return (
            f"There is nothing to break: p({name}) at the second A is {found.p[t]:.3f} in the model as it is (the "
            f"median token's is {np.median(found.p):.3f}, a guess {found.guess:.2g})."
        )
    low, high = (float(end[0]) for end in found.interval(np.array([t]), np.array([t])))
    verb = "breaks" if _breaks(found, j, t) else "falls"
    verdict = f"Only it {verb}" if j.alone else f"It {verb}, and others do too" if j.hit else "Nothing is shown"
    return (
        f"{verdict}: p({name}) at the second A falls by {j.own:.3f} (95 % {low:.3f} to {high:.3f}) from "
        f"{found.p[t]:.3f}; 95 % of the others stay within {j.band[0]:+.2g} to {j.band[1]:+.2g} (selectivity "
        f"{two_digits(j.ratio):,g}, p {j.p:.2g}); {_count(j.broken)} half as much."
    )


def _count(broken: int) -> str:
    return "no other loses" if broken == 0 else "1 other loses" if broken == 1 else f"{broken} others lose"


def _unharmed(found: Found, t: int | None) -> str:
    """What the edit does outside A B … A, the target's or the medians."""
    kept = np.diag(found.fall_as_a), np.diag(found.next), found.kl
    a, after, kl = (float(np.median(v) if t is None else v[t]) for v in kept)
    told = (
        f"Outside: as A the answer's p falls by {a:.2g}; where it is next without a repeat its loss rises by "
        f"{after:+.2g} nats, KL {kl:.2g}"
    )
    if found.setup.neutral is not None:
        drift, loss = (np.nanmedian(v) if t is None else v[t] for v in (found.text_kl, found.text_loss))
        told += f"; on the text KL {drift:.2g}, loss {loss:+.2g}"
    return told + (" (medians)." if t is None else ".")


def told_of_tokens(found: Found, t: int) -> tuple[str, str, str]:
    """Title, says, next, of the tokens under one edit."""
    s = found.setup
    fall = found.fall[t]
    others = np.delete(fall, t)
    says = (
        f"The edit for '{s.labels[t]}' lowers its p by {fall[t]:.3f}, that of the others by {np.nanmedian(others):.2g} "
        f"(median; {np.nanmin(others):+.2g} to {np.nanmax(others):+.2g})."
    )
    return title_of(s), says, again(s, " --by target")


def _breaks(found: Found, j: Judged, t: int) -> bool:
    """Whether it loses more than half of p."""
    return bool(j.own > 0.5 * found.p[t])


def two_digits(value: float) -> float:
    """A ratio to a small median is not known any better."""
    return float(f"{value:.2g}")


def _not_copied(found: Found) -> str:
    count = int(np.sum(~found.copied))
    return f" ({count} more {'is' if count == 1 else 'are'} not copied in the first place)" if count else ""


def _named(s: Setup, copied: Sequence[int], alone: Sequence[int]) -> str:
    names = [f"'{s.labels[t]}'" for t in copied if t not in alone]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def caveat(found: Found) -> str:
    """What the numbers do not say."""
    s = found.setup
    missing = "" if s.neutral is not None or s.model.vocabulary is None else " No text was looked at (--neutral FILE)."
    shared = any(b.attn and b.attn.n_kv_heads < b.attn.n_heads for b in s.model.spec.blocks)
    few = f" With {len(s.ids) - 1} other tokens p cannot be below {1 / len(s.ids):.2g}." if len(s.ids) < 20 else ""
    return (
        "Strings are random tokens without other repeats: in text, what follows may come from elsewhere."
        + (" Query heads that share a value with an edited one change with it." if shared else "")
        + few
        + missing
    )


def again(s: Setup, more: str) -> str:
    """The same request with something else to see."""
    words = "" if s.target is None else f" --token {shlex.quote(s.labels[s.target])}"
    if set(s.heads) != set(s.evidence.found):
        words += "".join(f" --heads {h}" for h in s.heads)
    words += "".join(f" --tokens {shlex.quote(text)}" for text in s.given)
    words += "" if s.maker.way == LEAST else f" --way {s.maker.way}"
    words += "" if s.maker.share == 1 else f" --keep {1 - s.maker.share:g}"
    return f"covector induction {s.model.words}{words}{more}"
