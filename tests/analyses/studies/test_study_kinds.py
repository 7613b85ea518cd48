"""Kinds of directions compared: nominal on random weights, found where planted, size controlled."""

import numpy as np
import pytest

import covector
from covector.analyses.studies.kinds import ALPHA, SLICE, kinds, slices, thin_maps
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from synthetic_atlas import built, synthetic


def row(table, kind, side):
    return next(r for r in table.rows if (r["kind"], r["side"]) == (kind, side))


@pytest.fixture(scope="module")
def random_atlas(tmp_path_factory):
    """Random weights, untied: no kind is more coherent than chance."""
    model = covector.open(random_model(seed=3, n_layers=4, d_model=32, d_head=8, d_mlp=64, n_vocab=300))
    folder = tmp_path_factory.mktemp("random") / "a"
    return built(model, folder, Options(draws=1000)), model


def test_on_random_weights_every_kind_is_at_the_nominal_rate(random_atlas):
    """All 856 directions together: .05 within 4 standard errors, p-values being counted among 1000 draws."""
    table = kinds(*random_atlas, draws=1000)
    n, hits = np.asarray(table["n"]), np.asarray(table["n"]) * np.asarray(table["coherent"])
    assert n.sum() > 800
    assert hits.sum() / n.sum() == pytest.approx(ALPHA, abs=4 * np.sqrt(0.05 * 0.95 / n.sum()) + 0.005)
    assert all(r["low"] <= r["coherent"] <= r["high"] for r in table.rows)
    assert sum(r["low"] > ALPHA for r in table.rows) <= 1
    assert "No kind is other than OV beyond chance" in table.says
    assert "score like OV" in table.says


@pytest.mark.slow
def test_differences_between_kinds_that_are_alike_are_found_at_the_nominal_rate(tmp_path):
    """300 comparisons of uniform p: 5 % below .05 at most, and 3 standard errors (steps make it fewer)."""
    p = []
    for seed in range(50):
        table = kinds(synthetic(tmp_path / str(seed), seed=seed))
        p += [r["p_vs_ov"] for r in table.rows if r["p_vs_ov"] is not None]
    assert len(p) == 250
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))


def test_a_planted_difference_is_found_in_the_kind_that_has_it(tmp_path):
    def planted(columns, rng):
        at = (columns["kind"] == "mlp.out") & (rng.random(len(columns["kind"])) < 0.6)
        columns["p_coherence"][at] = 1e-4

    table = kinds(synthetic(tmp_path / "a", planted))
    out = row(table, "mlp.out", "write")
    assert out["coherent"] > 0.5
    assert out["low"] > ALPHA
    assert out["q_vs_ov"] < 0.05
    assert out["vs_ov"] == pytest.approx(out["coherent"] - row(table, "ov", "write")["coherent"], abs=1e-12)
    assert row(table, "mlp.in", "read")["q_vs_ov"] > 0.05
    assert "Other than OV: mlp.out write." in table.says


def test_only_the_leading_dyads_count_and_all_are_told_beside(tmp_path):
    def planted(columns, rng):
        columns["p_coherence"][:] = np.where(columns["dyad"] < 4, 0.01, 0.9)

    table = kinds(synthetic(tmp_path / "a", planted, d_head=8, d=32), leading=4)
    for r in table.rows:
        assert r["coherent"] == 1
        assert r["all"] == pytest.approx(4 / (8 if r["kind"] in ("ov", "qk") else 32))
    assert row(table, "ov", "read")["n"] == 4 * 16
    assert row(table, "embed", "write")["n"] == 4


def test_by_default_as_many_dyads_count_as_a_head_has(tmp_path):
    table = kinds(synthetic(tmp_path / "a", d_head=8, d=32))
    assert table.meta["leading"] == 8
    assert row(table, "mlp.in", "read")["n"] == 4 * 8


def test_read_sides_are_compared_with_what_ov_reads_and_written_ones_with_what_it_writes(tmp_path):
    def planted(columns, rng):
        columns["p_coherence"][:] = np.where((columns["kind"] == "ov") & (columns["side"] == "read"), 0.001, 0.9)

    table = kinds(synthetic(tmp_path / "a", planted))
    difference = {(r["kind"], r["side"]): r["vs_ov"] for r in table.rows}
    assert difference["qk", "query"] == difference["qk", "key"] == difference["mlp.in", "read"] == -1
    assert difference["mlp.out", "write"] == difference["embed", "write"] == 0
    assert difference["ov", "read"] is None


def test_slices_are_as_thin_as_heads_and_as_many(random_atlas):
    _, model = random_atlas
    read, write = slices(model, width=8, draws=300)
    assert (read.kind, read.side, write.side) == (SLICE, "read", "write")
    for group in (read, write):
        assert len(group.p) == 4 * 4 * 8
        assert len(np.unique(group.unit)) == 16
        assert list(np.unique(group.layer)) == [0, 1, 2, 3]
        assert group.dyad.max() == 7


def test_slices_that_have_all_neurons_sum_to_the_mlp_without_its_activation(random_atlas):
    _, model = random_atlas
    found = list(thin_maps(model, width=16))
    assert [layer for layer, _ in found] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    for layer in range(4):
        total = sum(m.dense() for at, m in found if at == layer)
        np.testing.assert_allclose(
            total, model.weights[f"L{layer}.W_in"] @ model.weights[f"L{layer}.W_out"], atol=1e-12
        )


def test_slices_find_what_is_planted_in_the_neurons_write_directions(random_atlas):
    """Every neuron writes near the centre of a topic, reads at random: written slices score, read ones do not."""
    _, model = random_atlas
    weights, rng = model.stored, np.random.default_rng(0)
    topics = rng.standard_normal((30, 32)) / np.sqrt(32)
    tokens = topics[np.arange(300) % 30] + 0.7 * rng.standard_normal((300, 32)) / np.sqrt(32)
    arrays = dict(weights.arrays) | {"W_U": tokens.T}
    for layer in range(4):
        aside = rng.standard_normal((64, 32)) / np.sqrt(32)
        arrays[f"L{layer}.W_out"] = topics[rng.integers(0, 30, 64)] + aside
    planted = covector.open(type(weights)(weights.spec, arrays))
    read, write = slices(planted, width=1, draws=300)
    assert (write.p < 0.05).mean() > 0.3 > 0.2 > (read.p < 0.05).mean()


def test_an_atlas_without_scores_or_with_few_labels_is_refused_in_words(tmp_path, random_atlas):
    toy = random_model(seed=1, n_layers=1, n_vocab=23)
    with pytest.raises(BadRequest, match="expected token lists that can be judged"):
        kinds(built(toy, tmp_path / "a", Options(draws=20)))
    with pytest.raises(BadRequest, match="it was built with --no-scores"):
        kinds(built(toy, tmp_path / "b", Options(draws=20, scores=False)))
    with pytest.raises(BadRequest, match="expected leading >= 1"):
        kinds(random_atlas[0], leading=0)


def test_the_same_seed_gives_the_same_table(random_atlas):
    one, other = (kinds(*random_atlas, draws=300, seed=5).to_json() for _ in range(2))
    assert one == other
    assert one != kinds(*random_atlas, draws=300, seed=6).to_json()
