"""Choosing ε: candidates, metrics, budgets and the curve at equal size, on small models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from covector.analyses.choose import Budget, budget_of, dampened, optimised, usage
from covector.analyses.choose_candidates import candidates
from covector.analyses.choose_curve import curve
from covector.analyses.choose_metric import Metric, halves, on_prompts, on_text, split
from covector.arch.toy import Plant, planted
from covector.errors import BadRequest
from covector.linalg.choosing import mu_of_size, proportional, size_of
from covector.linalg.svd import svd
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.model.weights import ArrayWeights
from covector.run.decoder import Decoder
from covector.run.edit_runs import drifts
from covector.run.edited import laid_over
from covector.run.neutral import Neutral
from covector.run.prompts import Pair
from covector.study.observable import Observable
from random_checkpoints import random_model

SITES = ("L*H*.ov", "L1.mlp.out")


def text_of(model: Model, batch: int = 8, length: int = 9, seed: int = 0) -> Neutral:
    tokens = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (batch, length))
    n = batch * length
    return Neutral((tokens,), (np.ones(tokens.shape, dtype=bool),), ("neutral",), np.zeros(n, dtype=int),
                   np.repeat(np.arange(batch), length))  # fmt: skip


def concept(model: Model, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, model.spec.d_model))


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model("gpt2")


def metric_of(model: Model) -> Metric:
    functional = np.random.default_rng(5).standard_normal(model.spec.n_vocab)
    return on_text(Decoder(model.weights), "a functional", functional, text_of(model, seed=9))


def test_candidates_are_the_dyads_and_their_relation(model: Model) -> None:
    """aᵢ = (v·c)² from dense decompositions, for one direction and for the span of two that are not orthogonal."""
    c = concept(model)
    found = candidates(model, np.concatenate([c, c + concept(model, 2)]), SITES)
    span = np.linalg.qr(np.concatenate([c, concept(model, 2)]).T)[0]
    for i in range(0, len(found), 7):
        site, dyad = found.address(i).split(":")
        d = svd(model.map(site))
        assert found.gains[i] == pytest.approx(d.S[int(dyad)])
        assert found.related[i] == pytest.approx(np.sum((d.Vh[int(dyad)] @ span) ** 2), abs=1e-12)


def test_epsilons_as_an_edit_are_the_same_change(model: Model) -> None:
    """`changed_by` needs no new decomposition, and gives what the edit gives; so do unit pieces, weighted."""
    found = candidates(model, concept(model), SITES)
    epsilon = np.where(np.arange(len(found)) % 3 == 0, np.random.default_rng(0).uniform(-1, 1, len(found)), 0.0)
    one, other = model.edited(found.edit(epsilon)), found.changed_by(epsilon)
    which = np.flatnonzero(epsilon)
    for name in ("L0.W_O", "L1.W_O", "L1.W_out"):
        delta = one.weights[name] - model.weights[name]
        for changes, weights in (([other], [1.0]), (found.pieces(which), epsilon[which])):
            total = np.zeros_like(delta)
            for change, weight in zip(changes, weights, strict=True):
                for u in change.updates:
                    if u.tensor == name:
                        total[... if u.head is None else u.head] += weight * u.delta
            np.testing.assert_allclose(total, delta, atol=1e-12)


def test_what_is_still_written(model: Model) -> None:
    """‖M'c‖ / ‖Mc‖ over the sites, from dense maps."""
    found = candidates(model, concept(model), SITES)
    epsilon = np.random.default_rng(0).uniform(-1, 0, len(found))
    edited, c = model.edited(found.edit(epsilon)), found.concept[0]
    before, after = (np.sqrt(sum(np.sum((m.map(s).dense() @ c) ** 2) for s in found.sites)) for m in (model, edited))
    assert found.written(epsilon) == pytest.approx(after / before, rel=1e-9)


def test_the_slope_of_a_metric(model: Model) -> None:
    """Central differences of the metric in ε, on text and on prompts that compare two sides."""
    found = candidates(model, concept(model), SITES)
    decoder = Decoder(model.weights)
    labels = {"token": tuple(f"t{i}" for i in range(model.spec.n_vocab))}
    named = Model(model.name, model.stored, model.weights, labels=labels)
    observable = Observable({"t3": 1, "t5": -1}, named)
    prompts = [((1, 2, 3), (1, 4, 3), f"n{i % 2}") for i in range(3)] + [((7, 2, 3, 9), (1, 4, 3, 9), "n2")]
    pairs = [Pair(c, x, {"end": len(c) - 1}, ("", ""), (name, name)) for c, x, name in prompts]
    prompted = on_prompts(decoder, observable, pairs)
    last = [[decoder.run(torch.tensor([side])).logits[0, -1].numpy() for side in (p.clean, p.corrupt)] for p in pairs]
    gaps = [float(observable.of(a - b)) for a, b in last]
    assert prompted.mean(prompted.of()) == pytest.approx(((gaps[0] + gaps[2]) / 2 + gaps[1] + gaps[3]) / 3)
    for metric in (metric_of(model), prompted):
        which = [0, 11, len(found) - 1]
        slopes = metric.slopes(found.pieces(which))
        for i, slope in zip(which, slopes, strict=True):
            at = [metric.mean(metric.of(found.changed_by(h * (np.arange(len(found)) == i)))) for h in (1e-5, -1e-5)]
            assert slope == pytest.approx((at[0] - at[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_a_metric_before_certain_tokens_counts_only_there(model: Model) -> None:
    text, decoder = text_of(model), Decoder(model.weights)
    functional, wanted = np.eye(model.spec.n_vocab)[4], list(range(0, 30, 3))
    metric = on_text(decoder, "x", functional, text, wanted)
    logits = decoder.run(torch.from_numpy(text.batches[0])).logits[..., 4].numpy()
    where = np.isin(text.batches[0][:, 1:], wanted)
    assert metric.mean(metric.of()) == pytest.approx(logits[:, :-1][where].mean())
    one, other = split(metric)
    parts = [m.mean(m.of()) for m in (one, other)]
    windows = [np.flatnonzero(where.any(axis=1))[k::2] for k in (0, 1)]
    for found, rows in zip(parts, windows, strict=True):
        assert found == pytest.approx(logits[rows, :-1][where[rows]].mean())
    with pytest.raises(BadRequest, match="none of its tokens"):
        on_text(decoder, "x", functional, text, [int(model.spec.n_vocab) + 5])


def test_usage_is_the_second_moment_of_what_is_read(model: Model) -> None:
    """tᵢ = E[(x̄·uᵢ)²] for a head, x̄ the pattern's mix of inputs (value bias 0 here), from captured inputs."""
    arrays = {n: np.array(model.weights[n]) for n in model.weights.names() if not n.endswith("b_V")}
    weights = ArrayWeights(replace(model.spec), arrays)
    plain = Model("no value bias", weights, weights)
    found, text, decoder = candidates(plain, concept(plain), SITES), text_of(plain), Decoder(weights)
    t = usage(decoder, text.batches, found)
    run = decoder.run(torch.from_numpy(text.batches[0]), capture=["L1.attn_normed", "L1.pattern", "L1.mlp_post"])
    x, pattern, post = (run.cache[f"L1.{n}"].numpy() for n in ("attn_normed", "pattern", "mlp_post"))
    for site, read in (("L1H2.ov", np.einsum("bqk,bkd->bqd", pattern[:, 2], x)), ("L1.mlp.out", post)):
        d = svd(plain.map(site))
        for i in (0, 3):
            want = np.mean((read.reshape(-1, read.shape[-1]) @ d.U[:, i]) ** 2)
            at = next(k for k in range(len(found)) if found.address(k) == f"{site}:{i}")
            assert t[at] == pytest.approx(want, rel=1e-8)


def kl_of(budget: Budget, text: Neutral, change) -> float:
    return float(drifts(budget.decoder, text, [change], None, lambda _: None)[0].mean())


def test_a_budget_is_kept_and_spent(model: Model) -> None:
    """The KL measured on the half that chose is within the budget, and nearly all of it; the other half is measured."""
    found, text = candidates(model, concept(model), SITES), text_of(model)
    budget = budget_of(Decoder(model.weights), text, 0.003)
    fit, held = halves(text)
    assert len(fit) + len(held) == len(text)
    choice = dampened(found, every=True, budget=budget)
    assert choice.kl == pytest.approx(kl_of(budget, fit, choice.change), rel=1e-9)
    assert 0.99 * 0.003 < choice.kl <= 0.003
    assert choice.kl_held == pytest.approx(kl_of(budget, held, choice.change), rel=1e-9)
    whole = dampened(found, every=True, budget=budget_of(Decoder(model.weights), text, 1e6))
    assert (whole.epsilon == -1).all()


@pytest.mark.slow
def test_the_optimum_beats_the_proportional_form_at_its_budget(model: Model) -> None:
    """Within the same KL it lowers the metric it is chosen by more; the other sign raises it; bounds hold."""
    found, text = candidates(model, concept(model), SITES), text_of(model)
    metric, decoder = metric_of(model), Decoder(model.weights)
    budget = budget_of(decoder, text, 0.003)
    base = metric.mean(metric.of())
    free = dampened(found, every=True, budget=budget)
    best, raised = (optimised(found, metric, budget, raises=r) for r in (False, True))
    down, other, up = (metric.mean(metric.of(c.change)) - base for c in (best, free, raised))
    assert down < -abs(other)
    assert up > 0
    for choice in (best, raised):
        assert 0.5 * 0.003 < choice.kl <= 0.003
        assert ((choice.epsilon >= -1) & (choice.epsilon <= 1)).all()
    assert size_of(best.epsilon, found.gains) == pytest.approx(best.size)


def test_ways_are_compared_at_equal_size(model: Model) -> None:
    """Every way's change has the size of its row, from dense maps; the paired difference is the difference."""
    found, text = candidates(model, concept(model), ("L1H*.ov",)), text_of(model)
    chosen, held = split(metric_of(model))
    table = curve(found, chosen, held, budget_of(Decoder(model.weights), text, None), sizes=(0.1, 0.3))
    rows = {(r["size"], r["way"]): r for r in table.rows}
    assert {w for _, w in rows} == {"one dyad", "in proportion", "in proportion, by data", "erasure", "optimised"}
    for (size, way), row in rows.items():
        if way != "one dyad":
            assert row["against"] == pytest.approx(row["change"] - rows[size, "one dyad"]["change"], abs=1e-12)
    share = min(s for s, _ in rows) / np.sqrt(np.sum(found.gains**2 * found.related))
    erased = model.edited(found.erasing(-share))
    size = np.sqrt(sum(np.sum((erased.map(s).dense() - model.map(s).dense()) ** 2) for s in found.sites))
    assert size == pytest.approx(min(s for s, _ in rows), rel=1e-9)


def test_refusals(model: Model) -> None:
    decoder, text = Decoder(model.weights), text_of(model)
    found = candidates(model, concept(model), SITES)
    for wrong, said in (
        (lambda: budget_of(decoder, text, 0.0), "expected a KL budget above 0"),
        (lambda: budget_of(decoder, text_of(model, batch=1), 0.1), "at least two windows"),
        (lambda: dampened(found, every=True, keep=1.0), "a share other than 1"),
        (lambda: candidates(model, concept(model), ("L1H0.qk",)), "maps inside blocks that write"),
        (lambda: candidates(model, np.zeros((1, 20))), "expected concepts as rows"),
        (lambda: optimised(found, metric_of(model), budget_of(decoder, text, None)), "expected --max-kl"),
        (lambda: dampened(found), "related to the given directions beyond chance"),
    ):
        with pytest.raises(BadRequest, match=said):
            wrong()


GAINS = (3.0, 2.0, 1.0)


def topical() -> Model:
    """The last MLP writes tokens 6, 7, 8 (the topic) where it reads 0, 1, 2, and 9, another topic, where it reads 3."""
    plants = [Plant(i, 6 + i, gain) for i, gain in enumerate(GAINS)] + [Plant(3, 9, 2.5)]
    weights = planted(plants, "L0.mlp.out")
    return Model("planted", weights, weights)


def shift(model: Model, change: Change) -> np.ndarray:
    """What the change does to the logits after each of the four tokens read, one token a prompt [read, token]."""
    tokens, decoder = torch.arange(4)[:, None], Decoder(model.weights)
    return (laid_over(decoder, change).run(tokens).logits - decoder.run(tokens).logits)[:, 0].numpy()


def neurons(model: Model) -> np.ndarray:
    """What the planted neurons read after each of the four tokens [read, neuron]."""
    run = Decoder(model.weights).run(torch.arange(4)[:, None], capture=["L0.mlp_post"])
    return run.cache["L0.mlp_post"][:, 0].numpy()


def test_a_planted_topic_is_removed_and_nothing_else() -> None:
    """Three dyads write the topic and are found beyond chance; removed whole, its logits fall by gain times what was
    read, the other topic's dyad and every other logit stay, to rounding."""
    model = topical()
    found = candidates(model, model.weights["W_U"].T[6:9].copy(), ("L0.mlp.out",))
    chosen = np.isclose(found.related, 1.0)
    assert sorted(found.gains[chosen].round(9)) == sorted(GAINS)
    assert sorted(found.gains[found.beyond].round(9)) == sorted(GAINS)
    moved = shift(model, found.changed_by(np.where(chosen, -1.0, 0.0)))
    read = neurons(model)
    want = np.zeros_like(moved)
    for i, gain in enumerate(GAINS):
        want[:, 6 + i] = -gain * read[:, i]
    np.testing.assert_allclose(moved, want, atol=1e-12)
    assert read[0, 0] > 0.1


def test_dampening_a_planted_topic_is_linear_in_the_dose_and_beats_one_dyad() -> None:
    """At ‖ΔM‖ of the largest dyad removed (3), all three in proportion keep 1 − 3/√14 each: the topic's summed logits,
    where each is read alike, fall by 6·3/√14 against 3, that is 6/√14 = 1.60 times as much."""
    model = topical()
    topic = model.weights["W_U"].T[6:9].sum(axis=0, keepdims=True)
    found = candidates(model, topic, ("L0.mlp.out",))
    np.testing.assert_allclose(found.related[np.isin(found.gains.round(9), GAINS)], 1 / 3, atol=1e-12)
    epsilon = proportional(found.related, mu_of_size(found.related, found.gains, 3.0))
    touched = np.isin(found.gains.round(9), GAINS)
    np.testing.assert_allclose(epsilon[touched], -3 / np.sqrt(14), rtol=1e-9)
    np.testing.assert_allclose(epsilon[~touched], 0, atol=1e-12)
    one = np.where(found.gains.round(9) == 3.0, -1.0, 0.0)
    falls = [shift(model, found.changed_by(e)) for e in (epsilon, one)]
    read = neurons(model)
    per_unit = [sum(f[i, 6 + i] / read[i, i] for i in range(3)) for f in falls]
    assert per_unit[0] / per_unit[1] == pytest.approx(6 / np.sqrt(14), rel=1e-9)
    doses = [shift(model, found.changed_by(t * epsilon))[0, 6] for t in (0.25, 0.5, 0.75, 1.0)]
    np.testing.assert_allclose(doses, np.array([0.25, 0.5, 0.75, 1.0]) * doses[-1], rtol=1e-9)
    assert (np.diff(doses) < 0).all()


def test_what_fills_windows_up_is_not_counted(model: Model) -> None:
    """tᵢ, and the metric's tokens, over a text's own tokens: as if every window were run alone."""
    draw, decoder = np.random.default_rng(3), Decoder(model.weights)
    rows = [draw.integers(1, model.spec.n_vocab, n) for n in (9, 4, 6)]
    tokens, kept = np.zeros((3, 9), dtype=np.int64), np.zeros((3, 9), dtype=bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], kept[i, : len(row)] = row, True
    window = np.repeat(np.arange(3), [9, 4, 6])
    text = Neutral((tokens,), (kept,), ("neutral",), np.zeros(19, dtype=int), window)
    found = candidates(model, concept(model), ("L1H0.ov", "L1.mlp.out"))
    alone = sum(usage(decoder, [row[None]], found) * len(row) for row in rows) / 19
    np.testing.assert_allclose(usage(decoder, text.batches, found, text.kept), alone, rtol=1e-10)
    metric = on_text(decoder, "a functional", np.ones(model.spec.n_vocab), text)
    np.testing.assert_allclose(usage(decoder, metric.tokens, found, metric.kept), alone, rtol=1e-10)
    one, other = split(metric)
    assert [int(k.sum()) for k in (*one.kept, *other.kept)] == [15, 4]


def test_the_interval_of_a_metric_is_that_of_its_shares(model: Model) -> None:
    """Clusters that count unequally: a constant has no error, and one with no share counts for nothing."""
    metric = replace(metric_of(model), shares=np.array([0.5, 0.3, 0.2, 0.0]))
    assert metric.half(np.full(4, 3.0)) == pytest.approx(0, abs=1e-12)
    assert metric.half(np.array([1.0, 2.0, 4.0, 5.0])) == pytest.approx(metric.half(np.array([1.0, 2.0, 4.0, -900.0])))
    equal, values = replace(metric, shares=np.full(4, 0.25)), np.array([1.0, 2.0, 4.0, 5.0])
    assert equal.half(values) == pytest.approx(3.182446 * values.std(ddof=1) / 2, rel=1e-6)


def test_one_window_calls_no_way_better(model: Model) -> None:
    """Without an interval nothing is beyond it."""
    text = text_of(model, batch=2)
    functional = np.random.default_rng(5).standard_normal(model.spec.n_vocab)
    chosen, held = split(on_text(Decoder(model.weights), "a functional", functional, text))
    assert len(held.shares) == 1
    found = candidates(model, concept(model), SITES)
    table = curve(found, chosen, held, budget_of(Decoder(model.weights), text, None), sizes=(1.0,))
    assert "no way is called better" in table.says
    assert "Better than" not in table.says


@pytest.mark.parametrize("way", ["dampened", "optimised"])
def test_a_budget_that_nothing_meets_is_refused(model: Model, way: str) -> None:
    budget = budget_of(Decoder(model.stored), text_of(model), 1e-15)
    found = candidates(model, concept(model), SITES)
    with pytest.raises(BadRequest, match="nothing meets 1e-15"):
        dampened(found, every=True, budget=budget) if way == "dampened" else optimised(found, metric_of(model), budget)
