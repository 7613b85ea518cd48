"""Norms of features at every head: dense algebra, planted heads, and a null that is what it says."""

import dataclasses

import numpy as np
import pytest

import covector
from covector.analyses.head_norms import head_norms
from covector.arch.toy import RMS_NORM, Plant, planted, random_model
from covector.errors import BadRequest, BadSite
from covector.model.spec import Norm
from covector.render import Table
from covector.study.observable import Observable

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
TASK = {"token 3": 1.0, "token 7": -1.0}


def by_head(table: Table) -> dict[str, dict]:
    return {row["head"]: row for row in table.rows}


@pytest.mark.parametrize("norm", [None, RMS_NORM, Norm("layer", 1e-5)], ids=["none", "rms", "layer"])
def test_lengths_are_those_of_equation_11(norm: Norm | None) -> None:
    weights = random_model(norm=norm, n_kv_heads=2)
    model = covector.open(weights)
    table = head_norms(model, Observable(TASK, model), draws=50)
    rows, d = by_head(table), 16
    P = np.eye(d) - (1 / d if norm and norm.kind == "layer" else 0)
    final = weights["final_norm.gain"] if norm else np.ones(d)
    n = weights["W_U"][:, 3] - weights["W_U"][:, 7]
    for layer in range(2):
        gain = weights[f"L{layer}.attn_norm.gain"] if norm else np.ones(d)
        for head in range(4):
            ov = weights[f"L{layer}.W_V"][head // 2] @ weights[f"L{layer}.W_O"][head]
            row = rows[f"L{layer}H{head}"]
            lengths = {
                "norm": np.linalg.norm(P @ (gain * (ov @ (P @ (final * n))))),
                "raw": np.linalg.norm(ov @ n),
                "published": np.sqrt(d) * np.linalg.norm(gain * (ov @ (final * n))),
            }
            for name, wanted in lengths.items():
                assert row[name] == pytest.approx(wanted, rel=1e-11), name
    norms = np.asarray(table["norm"])
    assert np.all(np.diff(norms) <= 0)
    np.testing.assert_allclose(np.asarray(table["share"]), norms**2 / np.sum(norms**2), **CLOSE)
    assert table.meta["policy"] == "ignore"


def test_the_null_is_a_direction_at_random_as_long_as_the_observables() -> None:
    """p and chance against draws of our own through dense maps; both sides have Monte-Carlo error."""
    weights = random_model()
    model = covector.open(weights)
    rows = by_head(head_norms(model, Observable(TASK, model), draws=2000))
    P = np.eye(16) - 1 / 16
    u = P @ (weights["final_norm.gain"] * (weights["W_U"][:, 3] - weights["W_U"][:, 7]))
    draws = np.random.default_rng(77).standard_normal((20_000, 16)) @ P
    draws *= np.linalg.norm(u) / np.linalg.norm(draws, axis=1, keepdims=True)
    for layer in range(2):
        for head in range(4):
            ov = weights[f"L{layer}.W_V"][head] @ weights[f"L{layer}.W_O"][head]
            lengths = np.linalg.norm((draws @ ov.T) * weights[f"L{layer}.attn_norm.gain"] @ P, axis=1)
            row = rows[f"L{layer}H{head}"]
            p = np.mean(lengths >= row["norm"])
            # Saddlepoint: 6 % of p at worst; the rest is the error of our draws.
            assert row["p"] == pytest.approx(p, rel=0.06, abs=4 * np.sqrt((p * (1 - p) + 1e-4) / 20_000))
            # Share of our draws beyond their 95 % level: binomial error of 2000 draws, four times.
            assert np.mean(lengths > row["chance"]) == pytest.approx(0.05, abs=4 * np.sqrt(0.0475 / 2000))
            assert row["ratio"] == pytest.approx(row["norm"] / np.median(lengths), rel=0.05)
            assert row["p_max"] >= row["p"] - 0.05
            assert row["q"] >= row["p"] - 1e-12


def test_a_planted_head_is_first_and_as_long_as_its_gain() -> None:
    weights = planted([Plant(0, 1, 5.0), Plant(2, 3, 4.0)], "L0H1.ov", d_model=32, n_heads=8, d_mlp=0)
    model = covector.open(weights)
    table = head_norms(model, Observable({"token 1": 1.0}, model))
    first = table.rows[0]
    assert first["head"] == "L0H1"
    # Reads e₀ with gain 5 what writes token 1; no norms, so all conventions agree up to √d.
    assert [first["norm"], first["raw"], first["published"] / np.sqrt(32)] == pytest.approx([5, 5, 5], rel=1e-12)
    assert first["q"] < 0.05
    assert first["p_max"] < 0.05
    assert all(row["q"] > 0.01 for row in table.rows[1:])
    both = by_head(head_norms(model, Observable({"token 1": 1.0, "token 3": -1.0}, model), draws=10))["L0H1"]
    assert both["norm"] == pytest.approx(np.hypot(5, 4), rel=1e-12)
    # What the head does not write it does not read for.
    unwritten = by_head(head_norms(model, Observable({"token 6": 1.0}, model), draws=10))["L0H1"]
    assert unwritten["norm"] == pytest.approx(0, abs=1e-12)
    assert unwritten["p"] == 1


def test_one_strong_head_of_144_is_found_at_a_false_discovery_rate() -> None:
    """A thousand draws end at p = 1/1001, times 144 heads: no rate of 5 % without an exact tail."""
    weights = random_model(n_layers=12, n_heads=12, d_model=48, d_head=4, d_mlp=0)
    u = weights["final_norm.gain"] * (weights["W_U"][:, 3] - weights["W_U"][:, 7])
    O = weights["L5.W_O"].copy()  # noqa: E741
    O[7, 0] += 40 * (u - u.mean())
    model = covector.open(dataclasses.replace(weights, arrays={**weights.arrays, "L5.W_O": O}))
    table = head_norms(model, Observable(TASK, model), draws=100)
    found = {row["head"]: row["q"] for row in table.rows if row["q"] < 0.05}
    assert found["L5H7"] < 1e-6
    assert len(found) <= 2
    assert table.picture(table).value_name == "norm over random directions"


def test_where_nothing_is_planted_p_is_evenly_spread() -> None:
    """Random models, an observable at random: every p is a draw from the null, so their mean is a half."""
    found = []
    for seed in range(12):
        model = covector.open(random_model(seed=seed, norm=None, d_mlp=0))
        rng = np.random.default_rng(seed)
        weights = {f"token {i}": float(w) for i, w in enumerate(rng.standard_normal(23))}
        found += list(np.asarray(head_norms(model, Observable(weights, model), draws=200)["p"]))
    # 12 models × 8 heads; heads of one model share their direction, at worst 12 independent draws.
    assert np.mean(found) == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / 12))
    assert min(found) > 0


def test_the_same_seed_gives_the_same_table_and_frames_keep_the_norms() -> None:
    model = covector.open(random_model())
    observable = Observable(TASK, model)
    one, two, other = (head_norms(model, observable, draws=40, seed=s) for s in (1, 1, 2))
    assert one.rows == two.rows
    assert [r["p_max"] for r in one.rows] != [r["p_max"] for r in other.rows]
    for exact in ("norm", "p", "q"):
        assert [r[exact] for r in one.rows] == [r[exact] for r in other.rows]
    folded = by_head(head_norms(model, Observable(TASK, model.framed("folded")), draws=40, frame="folded"))
    for row in one.rows:
        assert folded[row["head"]]["norm"] == pytest.approx(row["norm"], rel=1e-11)


def test_what_it_cannot_ask_is_refused_and_what_misleads_is_said() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="appends a bias row"):
        head_norms(model, Observable(TASK, model), frame="folded+bias")
    headless = covector.open(random_model(n_heads=0))
    with pytest.raises(BadSite, match="expected a model with attention heads"):
        head_norms(headless, Observable(TASK, headless))
    assert "softmax ignores a common shift" in head_norms(model, Observable({"token 3": 1.0}, model), draws=5).not_says
    assert "softmax" not in head_norms(model, Observable(TASK, model), draws=5).not_says
