"""Forms of the sweep: heads in turn, cross-talk of concepts, units of heads, granularity at equal effect."""

import numpy as np
import pytest
import torch

import covector
from covector.analyses.choose_candidates import candidates
from covector.analyses.choose_metric import Metric, on_text
from covector.analyses.sweep_concepts import concept_matrix, random_set, related
from covector.analyses.sweep_granularity import _neurons, granularity
from covector.analyses.sweep_heads import head_curve
from covector.analyses.sweep_setup import grounds, started
from covector.analyses.sweep_units import difference, unit_ablation
from covector.arch.toy import Plant, planted
from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.linalg.matched import two_sided_p
from covector.linalg.sweeping import effective_number
from covector.model.opened import Model
from covector.model.overlay import Change, Update
from covector.run.decoder import Decoder
from covector.run.edit_runs import drifts
from covector.run.edited import laid_over
from covector.run.neutral import Neutral
from covector.study.edit import Edit
from random_checkpoints import random_model

SITES = ("L*H*.ov", "L*.mlp.out")
TOKENS, PLANTS = 128, 120


def text_of(tokens: np.ndarray, topics: tuple[str, ...] = ("neutral",), topic: np.ndarray | None = None) -> Neutral:
    batch, length = tokens.shape
    rows = np.zeros(batch, dtype=int) if topic is None else topic
    return Neutral((tokens,), (np.ones(tokens.shape, dtype=bool),), topics, np.repeat(rows, length),
                   np.repeat(np.arange(batch), length))  # fmt: skip


def random_text(model: Model, seed: int = 9, batch: int = 8, length: int = 7) -> Neutral:
    return text_of(np.random.default_rng(seed).integers(0, model.spec.n_vocab, (batch, length)))


def metric_of(model: Model) -> Metric:
    functional = np.random.default_rng(5).standard_normal(model.spec.n_vocab)
    return on_text(Decoder(model.stored), "a functional", functional, random_text(model))


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model("gpt2")


def everything_removed(model: Model) -> Change:
    updates = []
    for i in range(model.spec.n_layers):
        for name in (f"L{i}.W_O", f"L{i}.W_out"):
            array = model.stored[name].astype(np.float64)
            for head, matrix in enumerate(array) if array.ndim == 3 else [(None, array)]:
                updates.append(Update(name, -matrix, np.eye(matrix.shape[1]), head))
    return Change(tuple(updates))


def test_the_last_point_of_the_curve_removes_everything(model: Model) -> None:
    metric = metric_of(model)
    held = grounds(model, metric, SITES).held
    table = head_curve(model, metric, first=99, draws=3)
    expected = held.mean(held.metric.of(everything_removed(model)) - held.metric.of())
    last = table.rows[-1]
    assert last["effect"] == pytest.approx(expected, abs=1e-9)
    assert last["band_low"] == pytest.approx(expected, abs=1e-9)
    assert last["band_high"] == pytest.approx(expected, abs=1e-9)
    assert table["effect"][0] == pytest.approx(table["alone"][0])
    assert np.sum(table["step"]) == pytest.approx(last["effect"])
    assert table.meta["effective_number"] == pytest.approx(float(effective_number(table.column("step").numbers)))
    assert (np.diff(np.abs(table["score"])) <= 0).all()


def test_scores_of_sites_are_finite_differences(model: Model) -> None:
    """First-order effect of taking a site off, against central differences on the choosing half."""
    metric = metric_of(model)
    chosen = grounds(model, metric, SITES).chosen
    table = head_curve(model, metric, first=3, draws=1)
    for row in table.rows:
        layer, _, rest = row["site"].partition(".")[0].partition("H") if "H" in row["site"] else (
            row["site"].split(".")[0], "", "")  # fmt: skip
        name, head = (f"{layer}.W_O", int(rest)) if rest else (f"{layer}.W_out", None)
        array = model.stored[name].astype(np.float64)
        matrix = array if head is None else array[head]
        up, down = (
            chosen.mean(chosen.metric.of(Change((Update(name, t * matrix, np.eye(matrix.shape[1]), head),))))
            for t in (-1e-4, 1e-4)
        )
        assert row["score"] == pytest.approx((up - down) / 2e-4, rel=1e-5)


def plants() -> Model:
    """Head 0 reads token i and writes token i + 1, with gains that differ by little: 120 dyads, no MLP."""
    some = [Plant(i, i + 1, 2.0 + 0.002 * i) for i in range(PLANTS)]
    return covector.open(
        planted(some, "L0H0.ov", n_vocab=TOKENS, d_model=TOKENS, d_head=TOKENS - 4, d_mlp=0, n_heads=1)
    )


def reading(model: Model, tokens: list[int]) -> Metric:
    """Mean logit of tokens over windows in which every token comes once."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(TOKENS).reshape(16, 8) for _ in range(3)])
    functional = np.zeros(TOKENS)
    functional[tokens] = 1 / len(tokens)
    return on_text(Decoder(model.stored), str(tokens), functional, text_of(rows))


def matrix_of(model: Model, concepts: list[list[int]], draws: int = 200):
    E = model.stored["W_E"]
    return concept_matrix(model, [E[c] for c in concepts], [reading(model, c) for c in concepts],
                          names=[str(c) for c in concepts], sites=("L0H0.ov",), draws=draws)  # fmt: skip


@pytest.mark.slow
def test_concepts_without_a_common_direction_do_not_cross() -> None:
    table = matrix_of(plants(), [[10, 11], [40, 41], [70, 71]])
    for row in table.rows:
        if row["removed"] == row["measured"]:
            assert row["effect"] < 0
            assert row["p"] < 0.05
            assert row["dyads"] == 2
        else:
            assert abs(row["effect"]) < 1e-12
            assert row["p"] > 0.5
    assert table.meta["off_diagonal"] < 1e-9


@pytest.mark.slow
def test_concepts_with_a_common_direction_cross_beyond_random_sets() -> None:
    """They share one of two dyads: half of the metric goes along, more than random sets take but in 4 of 120."""
    table = matrix_of(plants(), [[10, 11], [11, 12], [70, 71]])
    crossed = {(r["removed"], r["measured"]): r for r in table.rows}
    for pair in (("[10, 11]", "[11, 12]"), ("[11, 12]", "[10, 11]")):
        row = crossed[pair]
        assert row["p"] < 0.1
        assert row["z"] < -3
        assert abs(row["effect"]) > row["band"]
    assert abs(crossed["[10, 11]", "[70, 71]"]["effect"]) < 1e-12
    assert table.meta["off_diagonal"] > 0.1


def test_rows_are_removed_and_columns_measured() -> None:
    """Token 10 is all of one metric and half of the other: with all directions gone its own metric loses twice that."""
    table = matrix_of(plants(), [[10], [10, 11]], draws=2)
    K = {(r["removed"], r["measured"]): r["effect"] for r in table.rows}
    assert K["[10]", "[10, 11]"] < 0
    assert K["[10, 11]", "[10]"] == pytest.approx(2 * K["[10]", "[10, 11]"], rel=1e-6)


def test_random_sets_have_the_size_of_the_concepts_at_every_site(model: Model) -> None:
    found = candidates(model, np.random.default_rng(0).standard_normal((1, model.spec.d_model)), SITES)
    epsilon = np.zeros(len(found))
    epsilon[[0, 3, 40]] = -1.0
    for j in range(5):
        drawn = random_set(found, epsilon, generator((0, j), "test"))
        for s in range(len(found.sites)):
            here = found.site == s
            expected = np.sum((epsilon[here] * found.gains[here]) ** 2)
            assert np.sum((drawn[here] * found.gains[here]) ** 2) == pytest.approx(expected)
        assert drawn.min() >= -1
        assert drawn.max() <= 0


@pytest.mark.slow
def test_p_of_random_sets_is_uniform() -> None:
    """A random set tested among random sets: p ≤ .25 in a quarter of 100 concepts or fewer, within four errors.

    Ties (sets that touch nothing of the metric) make p larger, never smaller.
    """
    model = random_model("gpt2")
    metric = metric_of(model)
    half = started(metric, [0, 1])
    found = candidates(model, np.random.default_rng(0).standard_normal((1, model.spec.d_model)), SITES)
    epsilon = np.zeros(len(found))
    epsilon[[1, 30, 41]] = -1.0
    base = half.of()
    effects = np.array([
        half.mean(half.of(found.changed_by(random_set(found, epsilon, generator((0, j), "calibration")))) - base)
        for j in range(200)
    ])  # fmt: skip
    p = np.array([two_sided_p(x, effects[100:]) for x in effects[:100]])
    # The 100 share one null: its quantile has an error of its own of the same size.
    assert abs(np.mean(p <= 0.25) - 0.25) < 4 * np.sqrt(2 * 0.25 * 0.75 / 100)
    assert p.min() >= 1 / 101


def test_related_directions_are_refused_where_there_are_none() -> None:
    small = covector.open(planted([Plant(0, 1, 2.0), Plant(1, 2, 1.0)], "L0H0.ov", d_mlp=0, n_heads=1))
    found = candidates(small, small.stored["W_E"][5:6], ("L0H0.ov",))
    with pytest.raises(BadRequest, match="beyond chance"):
        related(found, 3)


def topic_text() -> Neutral:
    """16 windows in which token 20 is followed by 21, and 16 of other tokens."""
    rng = np.random.default_rng(0)
    topical = np.tile([20, 21], (16, 4))
    topical[:, 0] = rng.integers(60, 120, 16)
    return text_of(np.concatenate([topical, rng.integers(60, 120, (16, 8))]), ("topic", "other"), np.repeat([0, 1], 16))


def test_a_unit_costs_its_topic_and_the_head_costs_all() -> None:
    """The dyad that writes token 21 is needed where 21 follows 20, and nowhere else."""
    model, text = plants(), topic_text()
    table = unit_ablation(model, model.stored["W_E"][21:22], text, "topic", sites=("L0H0.ov",), draws=100)
    rows = {r["removed"]: r for r in table.rows}
    assert rows["topic dyads"]["dyads"] == 1
    assert rows["topic dyads"]["topic"] > 5 * abs(rows["topic dyads"]["other"])
    assert rows["topic dyads"]["p"] < 0.05
    assert rows["topic dyads"]["low"] > 0
    assert rows["random dyads"]["size"] == rows["topic dyads"]["size"]
    assert rows["topic dyads"]["selective"] > rows["whole head"]["selective"]
    value, low, high = table.meta["contrast"]["L0H0.ov"]
    assert value == pytest.approx(rows["topic dyads"]["selective"] - rows["whole head"]["selective"])
    assert low <= value <= high

    matrix = model.stored["L0.W_O"][0].astype(np.float64)
    whole = Change((Update("L0.W_O", -matrix, np.eye(TOKENS), 0),))
    _, loss, _ = drifts(Decoder(model.stored), text, [whole], 0, lambda _: None)
    here = text.topic == 0
    assert rows["whole head"]["topic"] == pytest.approx(np.nanmean(loss[0][here]))
    assert rows["whole head"]["other"] == pytest.approx(np.nanmean(loss[0][~here]))


def test_difference_of_means_has_its_interval() -> None:
    """Windows of equal length: the t intervals of window means, added in squares."""
    from scipy.stats import t

    rng = np.random.default_rng(0)
    windows = rng.standard_normal((9, 1)) + 0.1 * rng.standard_normal((9, 5))
    here = np.repeat(np.arange(9) < 4, 5)
    found = difference(windows.ravel(), np.repeat(np.arange(9), 5), here)
    a, b = windows[:4].mean(axis=1), windows[4:].mean(axis=1)
    assert found.did == pytest.approx(a.mean() - b.mean())
    half = np.hypot(*(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)) for x in (a, b)))
    assert found.high - found.did == pytest.approx(half)
    assert found.did - found.low == pytest.approx(half)


def test_units_refuse_text_of_one_topic_and_mlps() -> None:
    model = plants()
    with pytest.raises(BadRequest, match="other text"):
        unit_ablation(model, model.stored["W_E"][21:22], text_of(np.zeros((2, 3), dtype=int)))
    with pytest.raises(BadRequest, match="--topic"):
        unit_ablation(model, model.stored["W_E"][21:22], topic_text(), "weather")
    other = random_model("gpt2")
    with pytest.raises(BadRequest, match="expected heads"):
        unit_ablation(other, np.ones((1, other.spec.d_model)), topic_text(), sites=("L0.mlp.out",))


def test_ways_have_the_same_effect_where_the_dose_was_chosen(model: Model) -> None:
    metric, text = metric_of(model), random_text(model, 3)
    table = granularity(model, metric, text, first=4)
    ground = grounds(model, metric, SITES)
    base = ground.chosen.mean(ground.chosen.of())
    assert table.meta["wanted"] * base < 0
    names = list(table["removed"])
    assert any(n.startswith("4 dyads") for n in names)
    assert any(n.startswith("4 neurons") for n in names) or "4 neurons" in table.meta["left_out"]
    assert (np.diff(table["kl"]) >= 0).all()
    row = next(r for r in table.rows if r["removed"].startswith("dyad "))
    site, i = row["removed"].removeprefix("dyad ").split(":")
    change = model.edited(Edit.parse(f"{site}:{i}*{1 - row['dose']}"))
    chosen = ground.chosen.metric
    moved = Metric(Decoder(change.stored), chosen.words, chosen.functional, chosen.tokens, chosen.weights,
                   chosen.clusters, chosen.shares)  # fmt: skip
    assert moved.mean(moved.of()) - base == pytest.approx(table.meta["wanted"], rel=1e-4)
    kl = []
    for tokens, decoder in ((text.batches[0], d) for d in (Decoder(model.stored), Decoder(change.stored))):
        kl.append(decoder.run(torch.from_numpy(tokens)).logits.double().log_softmax(-1).numpy())
    assert row["kl"] == pytest.approx(float((np.exp(kl[0]) * (kl[0] - kl[1])).sum(-1).mean()), rel=1e-6)


def test_neurons_are_rows_of_the_output_matrix(model: Model) -> None:
    ground = grounds(model, metric_of(model), SITES)
    mlps = [s for s, one in enumerate(ground.found.sites) if one.kind == "out"]
    part = _neurons(ground, [(1.0, mlps[0], 2), (0.5, mlps[1], 0), (0.4, mlps[0], 5)])
    changed = laid_over(Decoder(model.stored), part.change)
    for name, zeroed in (("L0.W_out", [2, 5]), ("L1.W_out", [0])):
        expected = model.stored[name].astype(np.float64).copy()
        expected[zeroed] = 0.0
        found = changed.part(name)
        assert found is not None
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
