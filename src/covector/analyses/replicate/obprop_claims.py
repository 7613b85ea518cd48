"""The qualitative claims of observable propagation, asked of any language model, each against a null and told as found.

Source: Dunefsky & Cohan 2024 (arXiv 2312.16291); theory page §1.6, §2.3, §2.5; `docs/replicate-obprop.md`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from covector.analyses.ioi import flips
from covector.analyses.patch import patch
from covector.analyses.propagate import DATA_FREE, each_attention
from covector.analyses.replicate.obprop_bench import Bench
from covector.analyses.replicate.obprop_tasks import RANDOM, Names, own_names, tasks
from covector.axes import Float
from covector.errors import BadRequest, CovectorError
from covector.linalg.chance.streams import generator
from covector.model.opened import Model
from covector.propagation.linearised import Linearised
from covector.render import Column, Table
from covector.render.labels import clip, pad, wrap
from covector.run.prompts import Pair, fill_template
from covector.study.observable import Observable

ALPHA = 0.05
HOLDS, FAILS, SILENT = "holds", "does not hold", "cannot be asked here"
CLAIMS = {
    "gender": "Features of she − he, made without data, tell female from male names.",
    "shared": "Subject and object pronouns share features, more than their read-outs make likely.",
    "bias": "Occupations share features with she − he, more than their read-outs make likely.",
    "norms": "Heads with long features are those that matter in prompts.",
}
# Read-outs that stand for a task, the first that a vocabulary has.
OBJECT = ("' her' - ' him'", "' her' - ' his'")
LONG = 0.5


@dataclass(frozen=True)
class Answer:
    """One claim's number, what chance gives, p, and how it came out."""

    claim: str
    number: str
    ours: float
    chance: float
    p: float
    why: str

    @property
    def verdict(self) -> str:
        """Beyond chance in the direction claimed, at 5 % over all claims together, or not, or not asked."""
        return SILENT if np.isnan(self.ours) else HOLDS if self.p < ALPHA / len(CLAIMS) else FAILS


@dataclass(frozen=True, eq=False)
class Asked:
    """A model with the `given` names, and those of them that its vocabulary holds as single tokens."""

    model: Model
    names: Names
    given: Names
    draws: int
    seed: int

    def features(self, rows: Float[np.ndarray, "r d"]) -> Float[np.ndarray, "r head d"]:
        """Data-free features, before the norm of every head, of functionals on the last stream."""
        linear = Linearised(self.model.weights, (), DATA_FREE)
        final = linear.norm(rows[:, None], self.model.spec.final_norm, "final_norm", ())
        return np.concatenate([F[:, :, 0] for _, F in each_attention(linear, final)][::-1], axis=1)

    @property
    def heads(self) -> list[str]:
        """In model order."""
        return [f"L{i}H{h}" for i, b in enumerate(self.model.spec.blocks) if b.attn for h in range(b.attn.n_heads)]


def replicate_claims(model: Model, *, names: Names | None = None, draws: int = 500, seed: int = 0) -> Table:
    """One row per claim: the number, chance, p with the best head repeated in the null, and the verdict.

    Nulls: `gender`: names' genders shuffled, largest t of all heads; `shared`, `bias`: random pairs of read-outs with
    the same angle between them, largest cosine of the longer half of heads; `norms`: heads shuffled. Verdicts at 5 %
    over the four claims together (each at 1.25 %).
    Names are the published 10 + 10 that are one token each, or `names`. Raises BadRequest for a model without tokens or
    attention.
    """
    labels = model.labels.get("token", ())
    if not labels or not any(b.attn for b in model.spec.blocks):
        raise BadRequest(f"{model.name}: expected a language model with token labels and attention heads")
    given = names or own_names()
    asked = Asked(model, _known(given, set(labels)), given, draws, seed)
    answers = [_ask(key, function, asked) for key, function in ASKED.items()]
    held = [a.claim for a in answers if a.verdict == HOLDS]
    columns = [
        Column("claim", [a.claim for a in answers]),
        Column("verdict", [a.verdict for a in answers], about="at 5 % over the four claims, in the direction claimed"),
        Column("number", [a.number for a in answers], about="what was measured"),
        Column("ours", np.array([a.ours for a in answers]), "", 3, chance="by_chance"),
        Column("by_chance", np.array([a.chance for a in answers]), "", 3, "95 % of the null"),
        Column("p", np.array([a.p for a in answers])),
        Column("why", [a.why for a in answers]),
    ]
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "replicate_obprop_claims", "draws": draws, "seed": seed, "claims": CLAIMS,
                           "names": 2 * len(asked.names), "null": "named per claim in the documentation"},
        title=f"{model.name} · observable propagation · {len(answers)} claims · {len(asked.names)} + "
        f"{len(asked.names)} names of one token",
        says=f"{len(held)} of {len(answers)} claims hold here{': ' + ', '.join(held) if held else ''}.",
        not_says="A claim that fails here is not thereby wrong of the model it was made of; one that holds in weights "
        "says nothing of what the model does with it.",
        next=f"covector observe norms {model.words} \"' she' - ' he'\""
        if model.name != RANDOM else "covector replicate obprop demo-lm",
        lines=_line,
        key=("claim",),
    )  # fmt: skip


def _line(row: dict[str, Any], width: int) -> str:
    """The claim with its verdict; under it the number with its chance, and why."""
    indent = " " * 8
    lines = [f"{pad(row['claim'], 7)} {pad(row['verdict'], 21)}{CLAIMS[row['claim']]}"]
    lines = [lines[0] if len(lines[0]) <= width else clip(lines[0], width)]
    told = row["why"]
    if row["ours"] is not None:
        told = f"{row['number']} {row['ours']:.3f} (chance {row['by_chance']:.3f}) p {row['p']:.3f} │ {told}"
    return "\n".join([*lines, *(indent + line for line in wrap(told, max(width - len(indent), 20)))])


def _known(names: Names, labels: set[str]) -> Names:
    sides = [[n for n in side if f" {n}" in labels] for side in (names.female, names.male)]
    n = min(map(len, sides))
    return Names(tuple(sides[0][:n]), tuple(sides[1][:n]))


def _ask(key: str, function: Callable[[Asked], Answer], asked: Asked) -> Answer:
    try:
        return function(asked)
    except CovectorError as error:
        return Answer(key, "", float("nan"), float("nan"), float("nan"), str(error))


def gender(asked: Asked) -> Answer:
    """t of female against male names' embeddings, read by each head's feature; the best head."""
    if len(asked.names) < 4:
        raise BadRequest("needs at least 4 + 4 names of one token; give --names FILE")
    labels, n = asked.model.labels["token"], len(asked.names)
    ids = [labels.index(f" {x}") for x in (*asked.names.female, *asked.names.male)]
    E = np.asarray(asked.model.weights["W_E"][ids], dtype=np.float64)
    F = asked.features(Observable.parse("' she' - ' he'", asked.model).readout(asked.model)[None])[0]
    read = E @ F.T
    own = _t(read, np.arange(2 * n) < n)
    rng = generator(asked.seed, "obprop genders")
    null = np.array([_t(read, rng.permutation(2 * n) < n).max() for _ in range(asked.draws)])
    best = int(np.argmax(own))
    right = np.mean(read[:n, best][:, None] > read[n:, best][None])
    return Answer("gender", "largest t over heads", float(own[best]), float(np.quantile(null, 1 - ALPHA)),
                  float((1 + np.sum(null >= own[best])) / (1 + len(null))),
                  f"{asked.heads[best]} puts the female name higher in {right:.0%} of {n * n} pairs")  # fmt: skip


def _t(x: Float[np.ndarray, "name head"], first: np.ndarray) -> Float[np.ndarray, " head"]:
    a, b = x[first], x[~first]
    size = np.sqrt(a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b))
    return np.divide(a.mean(axis=0) - b.mean(axis=0), size, out=np.zeros(x.shape[1]), where=size > 0)


def shared(asked: Asked) -> Answer:
    """Subject against object pronouns."""
    second = _first(OBJECT, asked.model)
    return _nearer("shared", asked, second, str(second))


def bias(asked: Asked) -> Answer:
    """Occupations against subject pronouns; the occupations that the vocabulary has as one token."""
    labels, words = set(asked.model.labels["token"]), tasks()["observables"]["bias"].split("'")[1::2]
    kept = [[w for w in side if w in labels] for side in (words[:3], words[3:])]
    if not all(kept):
        raise BadRequest(f"needs one of{','.join(words[:3])} and one of{','.join(words[3:])} as one token")
    weights = {w: s / len(side) for side, s in zip(kept, (1.0, -1.0), strict=True) for w in side}
    return _nearer("bias", asked, Observable(weights, asked.model), f"{len(weights)} occupations")


def _first(texts: Sequence[str], model: Model) -> Observable:
    for text in texts[:-1]:
        try:
            return Observable.parse(text, model)
        except CovectorError:
            continue
    return Observable.parse(texts[-1], model)


def _nearer(key: str, asked: Asked, second: Observable, words: str) -> Answer:
    """Largest cosine of the features of she − he and of another task, among heads where both are long.

    Chance: pairs of read-outs that are as near as these.
    """
    first = Observable.parse("' she' - ' he'", asked.model)
    a, b = (o.readout(asked.model) for o in (first, second))
    if (final := asked.model.spec.final_norm) and final.kind == "layer":
        a, b = a - a.mean(), b - b.mean()
    c = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    rng = generator(asked.seed, f"obprop pairs {key}")
    x, y = rng.standard_normal((2, asked.draws, len(a)))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y -= np.sum(x * y, axis=1, keepdims=True) * x
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    y = c * x + np.sqrt(1 - c * c) * y
    cos, length = _cosines(asked.model, *(np.concatenate([[own / np.linalg.norm(own)], some])
                                          for own, some in ((a, x), (b, y))))  # fmt: skip
    long = length >= np.quantile(length, LONG, axis=1, keepdims=True)
    value = np.max(np.where(long, cos, -1.0), axis=1)
    best = int(np.argmax(np.where(long[0], cos[0], -1.0)))
    return Answer(key, f"largest cos, {first} and {words}", float(value[0]), float(np.quantile(value[1:], 1 - ALPHA)),
                  float((1 + np.sum(value[1:] >= value[0])) / (1 + asked.draws)),
                  f"at {asked.heads[best]}; the read-outs have {c:.2f}")  # fmt: skip


def _cosines(
    model: Model, first: Float[np.ndarray, "r d"], second: Float[np.ndarray, "r d"]
) -> tuple[Float[np.ndarray, "r head"], Float[np.ndarray, "r head"]]:
    """Cosine of the features of two functionals at every head, and the shorter length; layer by layer."""
    linear = Linearised(model.weights, (), DATA_FREE)
    final = linear.norm(np.concatenate([first, second])[:, None], model.spec.final_norm, "final_norm", ())
    cos, length = [], []
    for _, every in each_attention(linear, final):
        F, G = np.split(every[:, :, 0], 2)
        sizes = np.linalg.norm(F, axis=2), np.linalg.norm(G, axis=2)
        cos.append(np.sum(F * G, axis=2) / np.maximum(sizes[0] * sizes[1], 1e-300))
        length.append(np.minimum(*sizes))
    return np.concatenate(cos[::-1], axis=1), np.concatenate(length[::-1], axis=1)


def norms(asked: Asked) -> Answer:
    """Spearman correlation over heads of feature length with |patching effect| on the published subject prompts.

    Does not hold where the model does not do the task: clean − corrupt must be positive beyond sign flips.
    """
    observable, pairs = Observable.parse("' she' - ' he'", asked.model), _pairs(asked)
    bench = Bench(asked.model, asked.given)
    difference = np.array([[observable.of(next(bench.run([side], []))[1][0].astype(np.float64))
                            for side in (p.clean, p.corrupt)] for p in pairs])  # fmt: skip
    gate = float(flips((difference[:, :1] - difference[:, 1:]), asked.seed)[0])
    table = patch(asked.model, observable, pairs)
    effect = dict(zip(table["place"], np.abs(np.asarray(table["effect"])), strict=True))
    F = asked.features(observable.readout(asked.model)[None])[0]
    length, x = np.linalg.norm(F, axis=1), np.array([effect[h] for h in asked.heads])
    rho = _rank_correlation(length, x)
    rng = generator(asked.seed, "obprop norms")
    null = np.array([_rank_correlation(rng.permutation(length), x) for _ in range(asked.draws)])
    false = int(np.argmax(np.argsort(np.argsort(length)) - np.argsort(np.argsort(x))))
    why = f"{len(pairs)} pairs, clean − corrupt {table.meta['total']:.2f}; long and idle: {asked.heads[false]}"
    p = float((1 + np.sum(null >= rho)) / (1 + len(null)))
    if gate >= ALPHA:
        p, why = max(p, gate), f"the task is not done: p {gate:.2g} of clean − corrupt; {why}"
    return Answer("norms", "rank correlation", rho, float(np.quantile(null, 1 - ALPHA)), p, why)


def _rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _pairs(asked: Asked) -> list[Pair]:
    """The first subject template with up to eight pairs of names, each of as many tokens as the other."""
    assert asked.model.vocabulary is not None
    by_length: dict[int, tuple[list[str], list[str]]] = {}
    for side, names in enumerate((asked.given.female, asked.given.male)):
        for name in names:
            by_length.setdefault(len(asked.model.vocabulary.encode(f" {name}")), ([], []))[side].append(name)
    template, found = tasks()["templates"]["subj"][0], list[Pair]()
    for sides in by_length.values():
        n = min(map(len, sides))
        if n:
            found += fill_template(asked.model, template, {"NAME": (sides[0][:n], sides[1][:n])})
    if len(found) < 5:
        raise BadRequest(f"needs five pairs of names of equal length in tokens, got {len(found)}; give --names FILE")
    return found[:8]


ASKED: dict[str, Callable[[Asked], Answer]] = {"gender": gender, "shared": shared, "bias": bias, "norms": norms}
