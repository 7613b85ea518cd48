"""How strongly to change the directions of a concept: in proportion to their relation, with data, or optimised.

Source: F6 and F7 of the theory page; `docs/theory/edits.md`, equations 12–15.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from covector.analyses.choose_candidates import Candidates
from covector.analyses.choose_metric import Metric, halves
from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.linalg.choosing import LEAST_MU, MOST_MU, Box, box_minimum, proportional, size_of
from covector.model.overlay import Change
from covector.run.decoder import Decoder
from covector.run.edit_runs import drifts
from covector.run.edited import first_block
from covector.run.fisher import gauss_newton
from covector.run.neutral import Neutral

Tick = Callable[[int], None]
# Directions whose side effects are weighed against each other: the Gram takes a backward pass for each.
MOST_WEIGHED = 64
# Budgets that are tried until the price is found.
STEPS = 24


@dataclass(frozen=True, eq=False)
class Budget:
    """Text on which side effects are counted, KL(base ‖ edited) per token: one half chooses, the other certifies.

    ``told`` says what text it is; ``tick`` is told the tokens of every run that is worth waiting for.
    """

    decoder: Decoder
    fit: Neutral
    held: Neutral
    most: float | None = None
    told: str = "the text"
    tick: Tick = lambda _: None

    def kl(self, change: Change, *, held: bool = False) -> float:
        """Mean KL per token, in nats."""
        text = self.held if held else self.fit
        first = first_block(self.decoder.spec, change) or None
        kl, _, _ = drifts(self.decoder, text, [change], first, self.tick)
        return float(kl.mean())


def budget_of(
    decoder: Decoder, text: Neutral, most: float | None, *, told: str = "the text", tick: Tick = lambda _: None
) -> Budget:
    """The two halves of a text, and the budget. Raises BadRequest for a budget that nothing meets, and one window."""
    if most is not None and not most > 0:
        raise BadRequest(f"expected a KL budget above 0 (nothing but the unedited model has KL 0), got {most:g}")
    if sum(len(kept) for kept in text.kept) < 2:
        raise BadRequest("--neutral: expected a text of at least two windows, one to choose by and one to certify on")
    return Budget(decoder, *halves(text), most, told, tick)


@dataclass(frozen=True, eq=False)
class Choice:
    """ε for every candidate, and how they came about.

    ``price`` is μ, or ρ of an optimum; ``kl`` and ``kl_held`` are measured on the half of the text that chose and on
    the other (NaN without text), ``most`` what was allowed; ``predicted_kl`` is ½ εᵀFε of an optimum; ``box`` says
    which bounds hold it.
    """

    candidates: Candidates
    epsilon: Float[np.ndarray, " n"]
    how: str
    price: float
    kl: float = float("nan")
    kl_held: float = float("nan")
    predicted_kl: float = float("nan")
    box: Box | None = None
    most: float | None = None

    @property
    def beyond(self) -> bool:
        """Whether the half of the text that did not choose exceeds the budget."""
        return self.most is not None and self.kl_held > self.most

    @property
    def change(self) -> Change:
        """What it comes to on the stored weights."""
        return self.candidates.changed_by(self.epsilon)

    @property
    def size(self) -> float:
        """‖ΔM‖_F over all sites."""
        return size_of(self.epsilon, self.candidates.gains)


def _short(epsilon: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """ε to four decimals: what is measured is what is typed."""
    return np.round(epsilon, 4)


def usage(
    decoder: Decoder, metric_tokens: Sequence[np.ndarray], found: Candidates, kept: Sequence[np.ndarray] = ()
) -> Float[np.ndarray, " n"]:
    """tᵢ = E[(y·vᵢ)²]/σᵢ² over the positions of a text: how strongly its inputs read each dyad.

    y is what the site's factor writes, z W_O of a head (value bias included) or mlp_post W_out; ``kept`` says which
    tokens count (all). Exact.
    """
    total, count = np.zeros(len(found)), 0
    hooks = {s: f"L{one.layer}.{'z' if one.kind == 'ov' else 'mlp_post'}" for s, one in enumerate(found.sites)}
    for tokens, own in zip(metric_tokens, kept or [np.ones(t.shape, bool) for t in metric_tokens], strict=True):
        with torch.no_grad():
            cache = decoder.run(torch.from_numpy(np.array(tokens)), capture=sorted(set(hooks.values()))).cache
        for s, one in enumerate(found.sites):
            read = cache[hooks[s]].double().cpu().numpy()
            read = read[:, :, one.head] if one.kind == "ov" else read
            matrix = decoder.weights[f"L{one.layer}.{'W_O' if one.kind == 'ov' else 'W_out'}"]
            matrix = matrix[one.head] if one.kind == "ov" else matrix
            here = found.site == s
            along = read[own] @ (matrix.astype(np.float64) @ found.rows[here].T)
            total[here] += np.sum(along**2, axis=0)
        count += int(own.sum())
    return total / count / found.gains**2


def related(found: Candidates, every: bool) -> Bool[np.ndarray, " n"]:
    """Which directions may change: those beyond chance, or all. Raises BadRequest where there is none."""
    chosen = np.ones(len(found), dtype=bool) if every else found.beyond
    if not chosen.any():
        best = int(np.argmax(found.related))
        raise BadRequest(
            f"no direction of {len(found):,} is related to {found.words} beyond chance (q ≤ 0.05): the closest is "
            f"{found.address(best)}, |cos| {np.sqrt(found.related[best]):.3f} where luck reaches {found.tau:.3f}, q "
            f"{found.q[best]:.2g}; name other sites, more words, or --every to change all in proportion"
        )
    return chosen


def dampened(
    found: Candidates,
    *,
    keep: float = 0.0,
    mu: float | None = None,
    every: bool = False,
    budget: Budget | None = None,
    target: Float[np.ndarray, " n"] | None = None,
    control: Float[np.ndarray, " n"] | None = None,
) -> Choice:
    """Every related direction changed in proportion to its relation (equation 12; with `target` and `control` 13).

    `mu`: the price of a change; by default τ², or with a budget the smallest at which the KL measured on its first half
    is within it. Directions no closer to the concept than chance are left alone unless `every`. Raises BadRequest where
    there is none, or nothing to change.
    """
    chosen = related(found, every)
    if keep == 1.0:
        raise BadRequest("--keep: expected a share other than 1, which changes nothing; 0 removes, 0.3 keeps 30 %")

    def at(price: float) -> Float[np.ndarray, " n"]:
        if price <= LEAST_MU:  # the limit μ → 0
            return np.where(chosen, keep - 1.0, 0.0)
        return np.where(chosen, _short(proportional(found.related, price, keep, target, control)), 0.0)

    how = "in proportion, weighted by data" if target is not None else "in proportion"
    if budget is not None and budget.most is not None and mu is None:
        most = budget.most
        price, kl = _cheapest(at, lambda e: budget.kl(found.changed_by(e)), most, LEAST_MU, MOST_MU)
        _check_met(at(price), most)
        made = Choice(found, at(price), f"{how}, KL budget {most:g}", price, kl, most=most)
    else:
        price = found.tau**2 if mu is None else mu
        made = Choice(found, at(price), how, price)
        made = replace(made, kl=budget.kl(made.change)) if budget else made
    return replace(made, kl_held=budget.kl(made.change, held=True)) if budget else made


def _check_met(epsilon: Float[np.ndarray, " n"], most: float) -> None:
    """Raise BadRequest where a budget leaves nothing of a change."""
    if not epsilon.any():
        raise BadRequest(
            f"expected a KL budget that some change meets, nothing meets {most:g}: an ε of 0.0001, the smallest, costs "
            "more; give a larger one"
        )


def _cheapest(
    at: Callable[[float], np.ndarray], kl: Callable[[np.ndarray], float], most: float, low: float, high: float
) -> tuple[float, float]:
    """The lowest price whose ε stay within the budget, by bisection of its logarithm, and the KL there.

    KL falls as the price grows, where the change shrinks along a way; what is returned is measured to be within.
    """
    first = kl(at(low))
    if first <= most:  # everything that may change is changed whole
        return low, first
    lower, upper, known = float(np.log(low)), float(np.log(high)), 0.0
    for _ in range(STEPS):
        middle = (lower + upper) / 2
        found = kl(at(float(np.exp(middle))))
        if found <= most:
            upper, known = middle, found
        else:
            lower = middle
    return float(np.exp(upper)), known


def optimised(
    found: Candidates,
    metric: Metric,
    budget: Budget,
    *,
    low: float = -1.0,
    high: float = 1.0,
    raises: bool = False,
) -> Choice:
    """ε that lower (or raise) a metric most for a KL budget: min gᵀε + ½ρ εᵀFε in a box, ρ by the measured KL.

    Of all candidates the `MOST_WEIGHED` with the largest slopes are weighed against each other. Raises BadRequest for
    a budget of nothing.
    """
    if budget.most is None:
        raise BadRequest("--optimise: expected --max-kl, the KL per token that may be spent; for example 0.01")
    sign = -1.0 if raises else 1.0
    slopes = sign * metric.slopes(found.pieces(range(len(found))))
    weighed = np.argsort(-np.abs(slopes), kind="stable")[:MOST_WEIGHED]
    g = slopes[weighed]
    F = gauss_newton(budget.decoder, found.pieces(weighed), budget.fit, budget.tick)

    def at(price: float) -> Float[np.ndarray, " n"]:
        made = np.zeros(len(found))
        made[weighed] = _short(box_minimum(g, F, price, low, high).epsilon)
        return made

    scale = float(np.abs(g).max()) / max(float(np.abs(F).max()), 1e-300)
    price, kl = _cheapest(at, lambda e: budget.kl(found.changed_by(e)), budget.most, 1e-4 * scale, 1e8 * scale)
    epsilon = at(price)
    _check_met(epsilon, budget.most)
    box = box_minimum(g, F, price, low, high)
    made = Choice(
        found, epsilon, f"optimised for {metric.words}, KL budget {budget.most:g}", price, kl, float("nan"),
        float(0.5 * box.epsilon @ F @ box.epsilon), box, budget.most,
    )  # fmt: skip
    return replace(made, kl_held=budget.kl(made.change, held=True))
