"""Part of a head, or the head: its directions about a topic removed, against the whole head and random directions.

What a removal costs on text of the topic, less what it costs on other text: a difference in differences.

Source: theory page Q13; `docs/theory/edits.md`, equation 26.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.choose_candidates import Candidates, candidates
from covector.analyses.clock import Clock, Tell
from covector.analyses.sweep_concepts import random_set
from covector.analyses.sweep_setup import check_raw
from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.linalg.chance import bh
from covector.linalg.chance.streams import generator
from covector.linalg.choosing import size_of
from covector.linalg.interval import half_width
from covector.linalg.matched import two_sided_p
from covector.model.opened import Model
from covector.model.overlay import Change, Update
from covector.render import Column, Scatter, Table
from covector.run.decoder import Decoder
from covector.run.edit_runs import begins, decoder_of, drifts
from covector.run.neutral import Neutral

WHOLE, UNIT, RANDOM = "whole head", "topic dyads", "random dyads"
BOOTSTRAPS = 1000


@dataclass(frozen=True, eq=False)
class Unit:
    """One head: its related dyads, and the change of the loss of every token for the head, the unit and random sets."""

    site: int
    epsilon: Float[np.ndarray, " n"]
    whole: Float[np.ndarray, " token"]
    unit: Float[np.ndarray, " token"]
    random: Float[np.ndarray, "draws token"]


def unit_ablation(
    model: Model,
    concepts: str | Sequence[str] | Float[np.ndarray, "k d"],
    text: Neutral,
    topic: str | None = None,
    *,
    sites: Sequence[str] = ("L*H*.ov",),
    first: int = 3,
    draws: int = 100,
    seed: int = 0,
    dtype: str = "float64",
    tell: Tell | None = None,
) -> Table:
    """Three rows per head: whole head, its topic dyads, random dyads; change of the loss, nats per token.

    Heads: the `first` by concept gain Σσ²(v·c)² over dyads related beyond chance (q ≤ 0.05, weights alone). ``topic``
    and ``other``: change of the loss on the topic's windows and on all others; ``did`` their difference, with its 95 %
    interval over windows. ``selective``: did / (|topic| + |other|), −1 to 1, whatever the size of the removal.
    ``p``: random sets of dyads of the same head, equal Σε²σ², with a difference as large; ``q`` over heads. The row of
    random dyads holds the draws' mean, and their 2.5 and 97.5 % in place of the interval. Removing a head sets W_O to
    zero, value bias included. Raises BadRequest for a text without that topic or without any other, for heads
    without related dyads, a frame other than raw.
    Source: `docs/theory/edits.md`, equation 26; theory page Q13.
    """
    at_topic = _windows_of(text, topic)
    check_raw(model)
    if first < 1 or draws < 1:
        raise BadRequest(f"--first, --draws: expected at least 1, got {first} and {draws}")
    found = candidates(model, concepts, sites)
    if any(s.kind != "ov" for s in found.sites):
        raise BadRequest("--by units: expected heads (--sites 'L*H*.ov'), got other sites; leave --sites out")
    gain = np.bincount(found.site, np.where(found.beyond, found.gains**2 * found.related, 0.0),
                       minlength=len(found.sites))  # fmt: skip
    if not gain.any():
        best = int(np.argmax(found.related))
        raise BadRequest(
            f"no direction of {len(found):,} is related to {found.words} beyond chance (q ≤ 0.05): the closest is "
            f"{found.address(best)}; name other sites, or more words"
        )
    heads = [int(s) for s in np.argsort(-gain, kind="stable")[:first] if gain[s] > 0]
    decoder = decoder_of(model, dtype)
    n = (2 + draws) * len(heads)
    clock = Clock(n * len(text.batches), tell, work=n * text.size, doing="heads")
    units = [_unit(model, decoder, found, s, text, draws, seed, clock.tick) for s in heads]
    return _table(model, found, units, text, at_topic, str(topic or text.topics[0]), seed)


def _windows_of(text: Neutral, topic: str | None) -> Bool[np.ndarray, " token"]:
    if len(text.topics) < 2:
        raise BadRequest(
            f"--neutral: expected a topic and other text (sea=a.txt, other=b.txt), got {', '.join(text.topics)} alone"
        )
    if topic is not None and topic not in text.topics:
        raise BadRequest(f"--topic: expected one of {', '.join(text.topics[:12])}, got '{topic}'")
    return text.topic == text.topics.index(topic or text.topics[0])


def _unit(
    model: Model, decoder: Decoder, found: Candidates, site: int, text: Neutral, draws: int, seed: int,
    tick: Callable[[int], None],
) -> Unit:  # fmt: skip
    one = found.sites[site]
    name = f"L{one.layer}.W_O"
    matrix = model.stored[name][one.head or 0].astype(np.float64)
    whole = Change((Update(name, -matrix, np.eye(matrix.shape[1]), one.head),))
    epsilon = -(found.beyond & (found.site == site)).astype(np.float64)
    random = [found.changed_by(random_set(found, epsilon, generator((seed, site, j), "unit sets")))
              for j in range(draws)]  # fmt: skip
    changes = [whole, found.changed_by(epsilon), *random]
    _, loss, _ = drifts(decoder, text, changes, begins(decoder.spec, changes), tick)
    return Unit(site, epsilon, loss[0], loss[1], loss[2:])


@dataclass(frozen=True)
class _Did:
    """Mean on the topic, on other text, their difference with its interval."""

    topic: float
    other: float
    low: float
    high: float

    @property
    def did(self) -> float:
        return self.topic - self.other

    @property
    def selective(self) -> float:
        whole = abs(self.topic) + abs(self.other)
        return self.did / whole if whole else float("nan")


def difference(values: Float[np.ndarray, " n"], window: np.ndarray, here: Bool[np.ndarray, " n"]) -> _Did:
    """Topic less other, with the interval of a difference of two independent means over windows."""
    means, halves = [], []
    for mask in (here, ~here):
        some = mask & np.isfinite(values)
        means.append(float(values[some].mean()))
        halves.append(float(half_width(values[some] - values[some].mean(), window[some])))
    half = float(np.hypot(*halves))
    return _Did(means[0], means[1], means[0] - means[1] - half, means[0] - means[1] + half)


def contrast(unit: Unit, window: np.ndarray, here: Bool[np.ndarray, " n"], seed: int) -> tuple[float, float, float]:
    """Selectivity of the unit less that of the whole head, with its 95 % interval by bootstrap of windows."""
    kept = np.isfinite(unit.unit) & np.isfinite(unit.whole)
    _, at = np.unique(window, return_inverse=True)
    n = int(at.max()) + 1
    topical = np.zeros(n, dtype=bool)
    topical[at[here]] = True
    count = np.bincount(at[kept], minlength=n)
    sums = [np.bincount(at[kept], x[kept], minlength=n) for x in (unit.unit, unit.whole)]

    def selective(total: np.ndarray, weight: np.ndarray) -> float:
        a, b = ((weight * mask) @ total / max((weight * mask) @ count, 1e-300) for mask in (topical, ~topical))
        return float((a - b) / (abs(a) + abs(b))) if a or b else 0.0

    rng, drawn = generator((seed, unit.site), "unit contrast"), []
    for _ in range(BOOTSTRAPS):
        weight = np.zeros(n)
        for mask in (topical, ~topical):
            own = np.flatnonzero(mask)
            weight += np.bincount(rng.choice(own, len(own)), minlength=n)
        drawn.append(selective(sums[0], weight) - selective(sums[1], weight))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return selective(sums[0], np.ones(n)) - selective(sums[1], np.ones(n)), float(low), float(high)


def _rows(found: Candidates, units: Sequence[Unit], text: Neutral, here: np.ndarray) -> list[dict]:
    rows = []
    for u in units:
        mine, gains = found.site == u.site, found.gains
        size = {WHOLE: float(np.sqrt(np.sum(gains[mine] ** 2))), UNIT: size_of(u.epsilon, gains)}
        dyads = {WHOLE: int(mine.sum()), UNIT: int((u.epsilon != 0).sum())}
        draws = [difference(x, text.window, here) for x in u.random]
        null = np.array([d.did for d in draws])
        for kind, loss in ((WHOLE, u.whole), (UNIT, u.unit)):
            d = difference(loss, text.window, here)
            p = two_sided_p(d.did, null) if kind == UNIT else np.nan
            rows.append({"head": str(found.sites[u.site]), "removed": kind, "dyads": dyads[kind], "size": size[kind],
                         "topic": d.topic, "other": d.other, "did": d.did, "low": d.low, "high": d.high,
                         "selective": d.selective, "p": p})  # fmt: skip
        low, high = np.quantile(null, (0.025, 0.975))
        rows.append({"head": str(found.sites[u.site]), "removed": RANDOM, "dyads": np.nan, "size": size[UNIT],
                     "topic": np.mean([d.topic for d in draws]), "other": np.mean([d.other for d in draws]),
                     "did": null.mean(), "low": low, "high": high,
                     "selective": np.nanmean([d.selective for d in draws]), "p": np.nan})  # fmt: skip
    return rows


def _table(
    model: Model, found: Candidates, units: Sequence[Unit], text: Neutral, here: np.ndarray, topic: str, seed: int
) -> Table:
    rows = _rows(found, units, text, here)

    def of(name: str) -> np.ndarray:
        return np.array([r[name] for r in rows], dtype=np.float64)

    q = np.full(len(rows), np.nan)
    tested = np.array([r["removed"] == UNIT for r in rows])
    q[tested] = bh(of("p")[tested])
    draws = len(units[0].random)
    columns = [
        Column("head", [r["head"] for r in rows], about="the head"),
        Column("removed", [r["removed"] for r in rows], about="what of it"),
        Column("dyads", of("dyads"), "", 0, "how many directions"),
        Column("size", of("size"), "‖ΔM‖", 2, "√Σε²σ²: equal for topic and random dyads"),
        Column("topic", of("topic"), "nats", 4, f"change of the loss per token on text of {topic}"),
        Column("other", of("other"), "nats", 4, "and on the other text"),
        Column("did", of("did"), "nats", 4, "topic − other"),
        Column("low", of("low"), "nats", 4, "95 % interval over windows; random: 2.5 % of the draws"),
        Column("high", of("high"), "nats", 4, "upper end"),
        Column("selective", of("selective"), "", 2, "did / (|topic| + |other|)"),
        Column("p", of("p"), about=f"{draws} random sets of equal Σε²σ² whose did is as large"),
        Column("q", q, about="Benjamini–Hochberg over heads"),
    ]
    told = [contrast(u, text.window, here, seed) for u in units]
    n_topic, n_other = (len(set(text.window[mask].tolist())) for mask in (here, ~here))
    return Table(
        columns=columns,
        meta=model.meta | {
            "analysis": "unit_ablation", "concept": found.words, "topic": topic, "seed": seed, "draws": draws,
            "windows": [n_topic, n_other], "kind": "ablation",
            "contrast": {r["head"]: list(c) for r, c in zip(rows[::3], told, strict=True)},
            "null": "random dyads of the same head with equal Σε²σ²",
        },
        title=f"{model.name} · {found.words if len(found.words) < 60 else topic} · {len(units)} heads or parts",
        says=_says(rows, told[0], topic, (n_topic, n_other)),
        not_says="Loss on a text's tokens, whatever they are: a topic's words are few among them. It does not say what "
        "the rest of the head is for.",
        next=f"covector svd {model.words} {rows[0]['head']}",
        picture=picture, key=("head", "removed"),
    )  # fmt: skip


def _says(rows: Sequence[dict], told: tuple[float, float, float], topic: str, windows: tuple[int, int]) -> str:
    whole, unit = rows[0], rows[1]
    gap, low, high = told
    return (
        f"{unit['head']}: removing its {unit['dyads']} topic dyads costs {unit['topic']:+.4f} nats a token on "
        f"{windows[0]} windows of {topic}, {unit['other']:+.4f} on {windows[1]} others: a difference of "
        f"{unit['did']:+.4f} (95 % {unit['low']:+.4f} to {unit['high']:+.4f}; random dyads of equal size p "
        f"{unit['p']:.2g}). The whole head: {whole['topic']:+.4f} and {whole['other']:+.4f}. The part is more "
        f"selective than the head by {gap:+.2f} ({low:+.2f} to {high:+.2f})."
    )


def picture(table: Table) -> Scatter:
    """Cost on other text against cost on the topic: above the diagonal is selective."""
    x, y = (1000 * table.column(name).numbers for name in ("other", "topic"))
    return Scatter(
        x=x, y=y, x_name="loss on other text", y_name="loss on the topic",
        x_unit="10⁻³ nats", y_unit="10⁻³ nats", groups=list(table["removed"]), diagonal=True,
        labels=[h if r == UNIT else "" for h, r in zip(table["head"], table["removed"], strict=True)],
    )  # fmt: skip
