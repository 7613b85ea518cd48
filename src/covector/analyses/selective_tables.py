"""Tables of selective induction: a row per target, per token under the target's edit, or per head."""

from collections.abc import Callable, Mapping

import numpy as np

from covector.analyses.induction_heads import LEAST
from covector.analyses.selective_measures import Found
from covector.analyses.selective_words import caveat, meta_of, told, told_of_tokens, two_digits
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.matched import two_sided_p
from covector.linalg.selectivity import Judged, judge, upper
from covector.render import Column, Grid, Table

# Tokens that a picture has room for.
PICTURED = 40


def by_target(found: Found) -> Table:
    """One row per token taken as the target, the one asked about first."""
    s = found.setup
    each = [judge(found.each, found.p, t, seed=(s.seed, t)) for t in range(len(s.ids))]
    own = np.arange(len(s.ids))
    falls, logits, as_a = found.each[own, own], found.logits[own, own], np.diag(found.fall_as_a).copy()
    low, high = found.interval(own, own)
    p_as_a, p_next = (
        np.array([_among(values, t) for t in range(len(own))]) for values in (found.fall_as_a, found.next)
    )
    columns = [
        Column("target", list(s.labels), about="the token B that the edit is made for"),
        Column("verdict", [_verdict(j) if yes else "not copied" for j, yes in zip(each, found.copied, strict=True)],
               about="only it: its interval is above the others' band, and no other loses half as much"),
        Column("p_b", found.p, "", 2, "p(B) at the second A in the model as it is"),
        Column("fall", falls.mean(axis=1), "", 3, "fall of p(B) at the second A, held-out strings", chance="band_high"),
        Column("low", low, "", 3, "95 % interval over strings, lower end; no further than p(B) can fall"),
        Column("high", high, "", 3, "upper end"),
        Column("band_high", np.array([j.band[1] for j in each]), "", 4, "what 95 % of the other tokens stay below"),
        Column("others", np.array([j.others for j in each]), "", 4, "median fall of p of the other tokens as B"),
        Column("ratio", np.where(found.copied, [two_digits(j.ratio) for j in each], np.nan),
               about="selectivity, fall over |median of the others|, to two digits"),
        Column("worst", [s.labels[j.worst] for j in each], about="the other token whose p falls most"),
        Column("its_fall", np.array([found.fall[t, j.worst] for t, j in enumerate(each)]), "", 4, "its fall",
               chance="level"),
        Column("as_a", as_a, "", 4, "fall of p of what followed, where the target is A"),
        Column("next", np.diag(found.next).copy(), "nats", 4,
               "rise of its loss where it is next in strings without repeats"),
        Column("kl", found.kl, "nats", 4, "mean KL(before ‖ after) at every place of strings without repeats"),
        *_text(found),
        Column("p", np.array([j.p for j in each]), about="among edits for other tokens, those that lower this as much"),
        Column("q", chance.bh(np.array([j.p for j in each])), about="Benjamini–Hochberg over targets"),
        Column("broken", np.array([j.broken for j in each]),
               about="other tokens that lose more than half the target's share"),
        Column("as_a_p", p_as_a, about="two-sided p of as_a among the other tokens under the same edit"),
        Column("next_p", p_next, about="two-sided p of next among the other tokens under the same edit"),
        Column("fall_logit", logits.mean(axis=1), "logits", 2,
               "fall of B's logit against the mean of the other tokens'"),
        Column("ratio_low", np.array([two_digits(j.ratio_low) for j in each]),
               about="95 % interval of the ratio over strings"),
        Column("ratio_high", np.array([two_digits(j.ratio_high) for j in each]), about="upper end"),
        Column("level", np.array([j.level for j in each]),
               about="|fall| that the token hit most beside the target stays within for 95 % of the other edits"),
        Column("beyond", np.array([j.beyond for j in each]), about="other tokens hit beyond that"),
        Column("size", np.array([s.maker.size(t) for t in range(len(own))]), "", 3,
               "√E‖xΔM‖² over √E‖xM‖² of the least change, in strings without repeats"),
    ]  # fmt: skip
    title, says, more = told(found, each)
    return Table(columns, meta_of(found), title=title, says=says, not_says=caveat(found), next=more,
                 picture=_square(found), key=("target",))  # fmt: skip


def by_token(found: Found) -> Table:
    """One row per token under the target's edit (the first token's where every token is asked about)."""
    s, t = found.setup, found.setup.target or 0
    some = np.flatnonzero(np.isfinite(found.fall[t]))
    order = some[np.argsort(-found.fall[t][some], kind="stable")]
    falls, as_a = found.each[t][order], found.fall_as_a[t][order]
    low, high = found.interval(np.full(len(order), t), order)
    mean, mean_a = found.fall, found.fall_as_a
    columns = [
        Column("token", [s.labels[i] for i in order], about="the token that stands as B"),
        Column("p_b", found.p[order], "", 2, "p(B) at the second A in the model as it is"),
        Column("fall", falls.mean(axis=1), about=f"its fall under the edit for '{s.labels[t]}'", chance="from_others"),
        Column("low", low, about="95 % interval over strings, lower end; no further than p(B) can fall"),
        Column("high", high, about="upper end"),
        Column("from_others", _from_others(mean, order), about="|fall| that 95 % of the edits for other tokens cause"),
        Column("fall_logit", found.logits[t][order].mean(axis=1), "logits", 2,
               "fall of its logit against the mean of the other tokens'"),
        Column("as_a", as_a, "", 4, "fall of p of what followed, where the token is A", chance="a_others"),
        Column("a_others", _from_others(mean_a, order), about="|fall| that 95 % of the edits for other tokens cause"),
        Column("next", found.next[t][order], "nats", None,
               "rise of its loss where it is next in strings without repeats", chance="n_others"),
        Column("n_others", _from_others(found.next, order), "nats", None,
               "|rise| that 95 % of the edits for other tokens cause"),
    ]  # fmt: skip
    title, says, more = told_of_tokens(found, t)
    return Table(columns, {**meta_of(found), "analysis": "selective_induction_tokens"}, title=title, says=says,
                 not_says=caveat(found), next=more, picture=_square(found), key=("token",))  # fmt: skip


def by_head(found: Found) -> Table:
    """One row per head: where it looks in strings said twice, and whether it copies what it reads."""
    s, e = found.setup, found.setup.evidence
    order = np.argsort(-e.looks, kind="stable")
    columns = [
        Column("head", [e.names[i] for i in order], about="layer and query head"),
        Column("edited", ["yes" if e.names[i] in s.heads else "" for i in order], about="whether the edit changes it"),
        Column("looks", e.looks[order], "", 3, "attention at the token behind the earlier same one, said twice",
               chance=e.looks_level),
        Column("looks_p", e.p[order], about="places drawn, the best of all heads in each draw"),
        Column("copies", e.copies[order], "", 2, "share of tokens whose value is highest at themselves",
               chance=e.chance),
        Column("copies_q", e.q[order], about="permuted targets (binomial); Benjamini–Hochberg over heads"),
    ]  # fmt: skip
    return Table(
        columns, {**meta_of(found), "analysis": "selective_induction_heads"},
        title=f"{s.model.name} · induction heads on {len(s.ids)} tokens",
        says=f"Induction heads, both beyond chance at 5 % and at least {LEAST} of their attention there: "
        f"{', '.join(e.found) or 'none'}. Edited: {', '.join(s.heads)}.",
        not_says="Attention and values say what a head could do; what breaks when it is edited is measured beside.",
        key=("head",),
    )  # fmt: skip


BY: Mapping[str, Callable[[Found], Table]] = {"target": by_target, "token": by_token, "head": by_head}


def table_of(found: Found, by: str) -> Table:
    """The table of one kind. Raises BadRequest."""
    if by not in BY:
        raise BadRequest(f"--by: expected {', '.join(BY)}, got '{by}'")
    return BY[by](found)


def _verdict(j: Judged) -> str:
    return "only it" if j.alone else "others too" if j.hit else "not shown"


def _among(values: Float[np.ndarray, "edit token"], t: int) -> float:
    return two_sided_p(float(values[t, t]), np.delete(values[t], t))


def _from_others(values: Float[np.ndarray, "edit token"], tokens: np.ndarray) -> Float[np.ndarray, " token"]:
    found = []
    for u in tokens:
        column = np.abs(np.delete(values[:, u], u))
        column = column[np.isfinite(column)]
        found.append(upper(column) if len(column) else np.nan)
    return np.array(found)


def _text(found: Found) -> list[Column]:
    if found.setup.neutral is None:
        return []
    return [Column("text_kl", found.text_kl, "nats", None, "mean KL(before ‖ after) on the neutral text"),
            Column("text_loss", found.text_loss, "nats", None, "rise of the loss on the neutral text")]  # fmt: skip


def _square(found: Found) -> Grid:
    n = min(len(found.setup.ids), PICTURED)
    labels = [found.setup.labels[i] for i in range(n)]
    return Grid(found.fall[:n, :n], labels, labels, value_name="fall of p(B) at the second A", centre=0.0,
                row_name="edit made for", column_name="token that stands as B")  # fmt: skip
