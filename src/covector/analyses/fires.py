"""Where a direction fires: how strongly each token of a text drives a dyad, or how much is written there.

The coefficient of dyad i is a = x·uᵢ, x what its map multiplies at that position (so the dyad writes σᵢ a vᵢ); `side`
write gives what a head or MLP really adds along vᵢ. Random directions of the same space are run over the same text
beside it: what they reach is the chance level. Of a feature r² with its observable is told too.

Source: F2 (contextual reading) of the theory page; `docs/theory/fires.md`, equations 1–6.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from covector.analyses.fires_feature import Said, notes, observable_of, said
from covector.analyses.fires_lines import passage_line
from covector.analyses.fires_probe import Probe, dyad_probe, vector_probe
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.linalg.chance import monte_carlo_p
from covector.linalg.firing import Traces, histograms, level, standardised, traces
from covector.model.opened import Model
from covector.render import Column, Curve, Table
from covector.run.decoder import Decoder
from covector.run.text import readable, text_pieces, windows
from covector.run.until import passing
from covector.study.feature import Feature
from covector.study.observable import Observable

# Random directions that are run beside the one asked about.
DRAWS = 100
# The fewest with which a level of 5 % exists: the largest of 19 is exceeded by one further draw in twenty.
LEAST_DRAWS = 19
ALPHA = 0.05
# Tokens shown on either side of the one that fires.
AROUND = 24
# Two passages of a list are at least this many tokens apart: the same place is not shown twice.
APART = 8
BINS = 60


@dataclass(frozen=True, eq=False)
class Activations:
    """What the rows of a probe measured along a text.

    `ids` are the tokens of the text, `places` the indices into them that were measured (in order), `values` the
    activations there: column 0 of the direction asked about, the others of random ones. `passage` numbers the windows
    that were run by themselves; `observed` is an observable's value at the same places, empty where none was asked for.
    `starts`: indices of the tokens that begin a document.
    """

    ids: Int[np.ndarray, " n"]
    places: Int[np.ndarray, " m"]
    values: Float[np.ndarray, "m r"]
    passage: Int[np.ndarray, " m"]
    observed: Float[np.ndarray, " k"]
    starts: Int[np.ndarray, " l"]

    @property
    def z(self) -> Float[np.ndarray, " n"]:
        """Activation of the asked direction at every token, standardised; NaN where nothing was measured."""
        whole = np.full(len(self.ids), np.nan)
        whole[self.places] = standardised(self.values[:, 0])
        return whole


def activations(
    model: Model, probe: Probe, text: str, dtype: torch.dtype = torch.float32, observable: Observable | None = None
) -> Activations:
    """Run the text in windows and project what passes the hook on every row of the probe.

    The first position of each window is left out: it sees nothing but itself, and in trained models it is an outlier
    of every statistic. Values are exact to the precision of the run. With an `observable` the model runs to its end.
    Raises what `text_pieces` raises.
    """
    decoder, (ids, starts) = Decoder(model.weights, dtype, model.device), text_pieces(model, text)
    rows = torch.from_numpy(np.ascontiguousarray(probe.rows.T)).to(decoder.device, dtype)
    found, places, passage, observed = [], [], [], [np.empty(0)]
    with torch.no_grad():
        for some in windows(model, ids):
            passed, seen = _passed(decoder, torch.from_numpy(some.tokens), probe.hook, observable)
            passed = passed if probe.head is None else passed[:, :, probe.head]
            found.append((passed[:, 1:] @ rows).reshape(-1, rows.shape[1]).cpu().numpy())
            places.append((some.starts[:, None] + np.arange(1, some.tokens.shape[1])).ravel())
            passage.append(np.repeat(some.starts, some.tokens.shape[1] - 1))
            observed.append(seen[:, 1:].ravel())
    numbers = np.unique(np.concatenate(passage), return_inverse=True)[1]
    return Activations(ids, np.concatenate(places), np.concatenate(found), numbers, np.concatenate(observed), starts)


def _passed(
    decoder: Decoder, tokens: torch.Tensor, hook: str, observable: Observable | None
) -> tuple[torch.Tensor, np.ndarray]:
    """What passes the hook, and the observable's values [batch, position] (no positions where there is none)."""
    if observable is None:
        return passing(decoder, tokens, hook), np.empty((len(tokens), 0))
    ran = decoder.run(tokens, capture=[hook])
    return ran.cache[hook], observable.of(ran.outputs[observable.output].cpu().numpy())


def fires(
    model: Model,
    place: str,
    text: str,
    *,
    side: str = "read",
    top: int = 10,
    vector: np.ndarray | Feature | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Table:
    """The `top` passages of a text at each pole of a direction, strongest first.

    `place`: a dyad (``L22H10:1``, ``L3.mlp.in:0``) and `side` (read, write; query, key for QK), or, with `vector` [d],
    the hook point where that vector is measured (``L5.resid_post``); it counts as a unit vector. Shares, skew and the
    strongest activation are compared with `draws` random directions of the same space on the same text. Of a `Feature`
    that knows its observable, the observable is measured at every position too: column ``observable``, and r² with the
    projection in `meta`. The model runs in float32, statistics are float64. Cost: one run of the text as far as the
    hook (for an observable to the end), and tokens · draws · 4 bytes.
    Raises BadSite, BadRank, BadRequest, FrameUnavailable; NotOneToken, UnknownBasis for an observable of another model.
    """
    if top < 1 or draws < LEAST_DRAWS:
        raise BadRequest(f"expected top >= 1 and draws >= {LEAST_DRAWS}, got top = {top}, draws = {draws}")
    probe = _probe(model, place, side, vector, draws, seed)
    feature = vector if isinstance(vector, Feature) else None
    observable = observable_of(feature, model) if feature and feature.observable else None
    found = activations(model, probe, text, observable=observable)
    told = traces(found.values)
    agrees = None if observable is None else said(observable, found.values, found.observed, found.passage, seed)
    meta = model.meta | {
        "analysis": "fires",
        "direction": probe.words,
        "hook": probe.hook,
        "sigma": probe.sigma,
        "text_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "tokens": len(found.places),
        "seed": seed,
        "start_token": "none; the first position of each window is left out",
    }
    if feature:
        meta |= {"feature": feature.to_meta()}
    return _table(model, probe, found, told, agrees, meta, top)


def _probe(model: Model, place: str, side: str, vector: Any, draws: int, seed: int) -> Probe:
    if isinstance(vector, Feature):
        probe, words = vector_probe(model, vector.vector, place, draws, seed), vector.path or "(no path)"
        words = f"feature {words} at {place}" if vector.observable else probe.words
        return dataclasses.replace(probe, words=words, notes=notes(vector, model, place))
    if vector is not None:
        return vector_probe(model, vector, place, draws, seed)
    address, _, dyad = place.partition(":")
    if dyad and not (dyad.isascii() and dyad.isdecimal()):
        raise BadRequest(f"expected one dyad such as L3H1:0, got '{place}'")
    site = model.site(address)
    sides = ("query", "key") if site.kind == "qk" else ("read", "write")
    side = "query" if site.kind == "qk" and side == "read" else side
    if side not in sides:
        raise BadRequest(f"{site}: expected --side {' or '.join(sides)}, got '{side}'")
    return dyad_probe(model, site, int(dyad or 0), side, draws, seed)


def _table(
    model: Model, probe: Probe, found: Activations, told: Traces, agrees: Said | None, meta: dict[str, Any], top: int
) -> Table:
    peak = level(told.peak[1:], ALPHA)
    z = found.z
    chosen = [(pole, at) for pole, sign in (("+", 1), ("−", -1)) for at in _apart(sign * z, top)]
    columns = _columns(model, found, z, chosen, peak) + _observed(found, agrees, chosen)
    reach = max((float(np.nanmax(np.abs(_around(z, at)))) for _, at in chosen), default=1.0)
    n = len(found.places)
    chance = _chance(told)
    return Table(
        columns=columns,
        meta=meta
        | chance
        | {
            "mean": float(told.mean[0]),
            "sd": float(told.sd[0]),
            "null": f"{len(told.peak) - 1} random directions of {probe.space} on the same text",
            "peak_level": peak,
        }
        | ({} if agrees is None else agrees.to_meta()),
        title=f"{model.name} · {probe.words} · {n:,} tokens · 1 sd = {told.sd[0]:.3g}",
        says=_says(told, chance, peak) + (f" {agrees}" if agrees else ""),
        not_says="It does not say what the model does with it, nor that the passages share a meaning. The level is for "
        "one direction chosen beforehand: of twenty looked at, one passes it by chance."
        + "".join(f" Note: {note}." for note in probe.notes),
        next=f"covector svd {model.words} {probe.words.partition(':')[0]}" if np.isfinite(probe.sigma) else "",
        picture=_histogram(found, probe, peak),
        lines=partial(passage_line, reach=reach),
        key=("rank",),
    )


def _columns(
    model: Model, found: Activations, z: np.ndarray, chosen: list[tuple[str, int]], peak: float
) -> list[Column]:
    assert model.vocabulary is not None, "a text was read with it"
    labels = model.vocabulary.labels
    places = [at for _, at in chosen]
    index = np.array(places, dtype=np.int64)
    values = found.values[np.searchsorted(found.places, index), 0].astype(np.float64)
    centre = [min(at, AROUND) for at in places]
    texts = [_texts([labels[t] for t in _around(found.ids, at)], found.starts, at) for at in places]
    pairs = list(zip(texts, centre, strict=True))
    return [
        Column("rank", np.arange(len(chosen)), about="passages of the + pole first"),
        Column("pole", [pole for pole, _ in chosen], about="+ above the mean of this text, − below"),
        Column("value", values, digits=3, about="activation of the direction at that token"),
        Column("z", z[index], "sd", 1, "activation in standard deviations from the mean of this text", chance=peak),
        Column("position", index, about="index of the token in the text"),
        Column("token", [labels[found.ids[at]] for at in places], about="the token that fires"),
        Column("before", ["".join(t[:at]) for t, at in pairs], about="what stands before it"),
        Column("after", ["".join(t[at + 1 :]) for t, at in pairs], about="what follows it"),
        Column("tokens", texts, about="the passage, token by token"),
        Column("strengths", [_strengths(z, at) for at in places], digits=1, about="z of these tokens; – not measured"),
        Column("at", np.array(centre, dtype=np.int64), about="index of the token that fires in `tokens`"),
    ]


def _observed(found: Activations, agrees: Said | None, chosen: list[tuple[str, int]]) -> list[Column]:
    if agrees is None:
        return []
    at = np.searchsorted(found.places, np.array([place for _, place in chosen], dtype=np.int64))
    about = f"{agrees.observable} at that token"
    return [Column("observable", found.observed[at].astype(np.float64), agrees.observable.unit, 2, about)]


def _chance(told: Traces) -> dict[str, float]:
    """Statistics of the asked direction with their p, (1 + #{random one as far out}) / (draws + 1)."""
    asked = {"peak": told.peak, "skew": told.skew, "share_plus": told.share}
    far = {"peak": told.peak, "skew": np.abs(told.skew), "share_plus": np.abs(told.share - 0.5)}
    found = {name: float(values[0]) for name, values in asked.items()}
    return found | {f"p_{name}": float(monte_carlo_p(f[0], f[1:]).value) for name, f in far.items()}


def _says(told: Traces, chance: dict[str, float], peak: float) -> str:
    if not chance["peak"]:
        return f"It is the same at every token, {told.mean[0]:.3g}: nothing in this text drives it."
    offset = told.mean[0] / told.sd[0]
    away = f" Its mean is {offset:+.1f} sd: passages are ranked from there." if abs(offset) > 1 else ""
    return (
        f"Its strongest token stands {chance['peak']:.1f} sd from the mean; 95 % of random directions of the same "
        f"space stay within {peak:.1f} (p {chance['p_peak']:.2f}). The + pole holds {100 * chance['share_plus']:.0f} % "
        f"of the squared activation (p {chance['p_share_plus']:.2f}), skew {chance['skew']:+.1f} "
        f"(p {chance['p_skew']:.2f}).{away}"
    )


def _apart(z: np.ndarray, top: int) -> list[int]:
    """Places of the strongest, no two nearer than `APART` tokens."""
    chosen: list[int] = []
    for i in np.argsort(-z, kind="stable"):  # NaN comes last
        if not z[i] > 0 or len(chosen) == top:
            break
        if all(abs(int(i) - j) >= APART for j in chosen):
            chosen.append(int(i))
    return chosen


def _around(values: np.ndarray, at: int) -> np.ndarray:
    return values[max(0, at - AROUND) : at + AROUND + 1]


def _texts(labels: list[str], starts: Int[np.ndarray, " l"], at: int) -> list[str]:
    """Readable texts of the tokens around one, with a line break between documents; that one keeps its bare text."""
    texts, first = readable(labels), max(0, at - AROUND)
    for start in starts[(starts > first) & (starts < first + len(texts))].tolist():
        if start == at + 1:
            texts[start - first] = "\n" + texts[start - first]
        else:
            texts[start - first - 1] += "\n"
    return texts


def _strengths(z: np.ndarray, at: int) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in _around(z, at)]


def _histogram(found: Activations, probe: Probe, peak: float) -> Curve:
    """Tokens per strength, in the band that 90 % of the random directions keep to, bin by bin."""
    z = standardised(found.values[:, 0])
    edges = np.linspace(min(z.min(), -peak) - 0.1, max(z.max(), peak) + 0.1, BINS + 1)
    counts = np.maximum(histograms(found.values, edges), 0.5)
    low, high = np.quantile(counts[1:], (0.05, 0.95), axis=0)
    return Curve(
        x=(edges[:-1] + edges[1:]) / 2,
        ys=counts[:1],
        names=[probe.words],
        x_name="activation",
        y_name="tokens (½: none)",
        x_unit="sd",
        y_unit="",
        log_y=True,
        band=(low, high),
        band_name="90 % of random directions",
    )
