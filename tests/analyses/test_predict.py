"""Predictions beside measurements: exact where the model is linear, and never from what was held out."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

import covector
from covector.analyses.held_out import split_filled, split_pairs
from covector.analyses.predict import Beside, false_positives, predict_heads
from covector.analyses.predict_path import predict_path
from covector.arch.toy import random_model
from covector.cli.main import run
from covector.errors import BadRequest
from covector.linalg.agreement import agreement
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from covector.run.prompts import Pair
from covector.study.observable import Observable
from random_checkpoints import random_weights

FEMALE, MALE = ["Mary", "Lisa", "Emma", "Laura", "Kate", "Alice"], ["John", "Mark", "Paul", "Jack", "Robert", "Peter"]
TEMPLATES = ["Yesterday [NAME] was happy because", "So, [NAME] was sad when"]


def pairs_for(model: Model, n: int = 4, length: int = 6, seed: int = 0, only: int | None = None) -> list[Pair]:
    """Random prompts; with `only`, the two of a pair differ at that position alone."""
    ids = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (n, 2, length))
    if only is not None:
        kept = np.arange(length) != only
        ids[:, 1, kept] = ids[:, 0, kept]
    return [Pair(tuple(map(int, a)), tuple(map(int, b)), {"NAME": 1, "end": length - 1}, ("", "")) for a, b in ids]


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


def edited(weights: ArrayWeights, **changes: np.ndarray) -> Model:
    arrays = {name: np.array(weights[name]) for name in weights.names()}
    return covector.open(ArrayWeights(weights.spec, arrays | {k.replace("__", "."): v for k, v in changes.items()}))


def beside(table: covector.Table) -> dict[str, dict]:
    return {b["name"]: b for b in table.meta["beside"]}


def test_behind_the_last_heads_of_a_model_without_norms_every_guess_is_exact() -> None:
    """z enters the output linearly there, so weights, training prompts and gradients all know its effect."""
    model = covector.open(random_model(n_layers=1, d_mlp=0, norm=None))
    table = predict_heads(model, asked(model), pairs_for(model), pairs_for(model, seed=1))
    for name in ("train", "free", "fit", "accounting"):
        np.testing.assert_allclose(np.asarray(table[name]), np.asarray(table["effect"]), rtol=1e-9, atol=1e-11)
        found = beside(table)[name]
        for over in ("over_places", "over_all", "within"):
            assert (found[over]["slope"], found[over]["r2"]) == pytest.approx((1, 1), rel=1e-8)
    assert beside(table)["mean"]["within"]["r2"] is None  # one number per head says nothing of a pair
    assert [beside(table)[n]["kind"] for n in ("train", "free", "mean", "fit", "accounting")] == [
        "prediction", "prediction", "prediction", "fit", "accounting",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bert"])
def test_accounting_of_all_heads_embeddings_aside_is_the_patch_of_a_tiny_change(name: str) -> None:
    """Between near inputs secant, gradient and patch are one number. Step 1e-4 of one embedding row: O(1e-4) apart."""
    weights = random_weights(name)
    arrays = {n: np.array(weights[n]) for n in weights.names()}
    arrays["W_E"][4] = arrays["W_E"][2] + 1e-4 * arrays["W_E"][4]
    if weights.spec.tied and "W_U" in arrays:
        del arrays["W_U"]
    model = covector.open(ArrayWeights(weights.spec, arrays))
    ids = (1, 2, 3, 5, 6, 1)
    pair = Pair(ids, (1, 4, 3, 5, 6, 1), {"NAME": 1, "end": 5}, ("", ""))
    table = predict_heads(model, asked(model), [pair], [pair])
    size = float(np.abs(np.asarray(table["effect"])).max())
    for column in ("accounting", "fit", "train"):
        np.testing.assert_allclose(np.asarray(table[column]), np.asarray(table["effect"]), atol=3e-3 * size)


def test_a_head_that_reads_nothing_of_the_difference_is_a_false_positive_of_its_norm() -> None:
    """Planted: a head with by far the largest map, reading a direction that no embedding has."""
    weights = random_model(n_layers=1, n_heads=4, d_mlp=0, norm=None, biases=False)
    unread = np.eye(16)[0]
    without = {n: np.array(weights[n]) - np.outer(np.array(weights[n]) @ unread, unread) for n in ("W_E", "W_pos")}
    W_V = np.array(weights["L0.W_V"])
    W_V[2] = 50 * np.outer(unread, W_V[2][0])
    model = edited(weights, L0__W_V=W_V, **without)
    table = predict_heads(model, asked(model), pairs_for(model), pairs_for(model, seed=1))
    row = next(r for r in table.rows if r["head"] == "L0H2")
    assert row["norm"] == max(np.asarray(table["norm"]))
    assert row["effect"] == pytest.approx(0, abs=1e-10)
    assert row["why"] == "reads little that differs"
    assert "L0H2 (reads little that differs)" in table.says


def test_reasons_follow_from_the_shares() -> None:
    norm, effect = np.array([9.0, 9, 9, 9, 1, 1, 1, 1]), np.array([0, 0, 0, 5.0, 0, 0, 0, 0])
    ov, qk = np.array([0.01, 3, 3, 5, 0, 0, 0, 0]), np.array([0.01, -2.9, 0.1, 0, 0, 0, 0, 0])
    found = false_positives(np.pad(norm, (0, 8)), np.pad(effect, (0, 8)), np.pad(ov, (0, 8)), np.pad(qk, (0, 8)), 10.0)
    assert found[:4] == ["reads little that differs", "OV against QK", "undone later", ""]
    assert not any(found[4:])


def test_the_worst_is_where_guess_and_measurement_differ_most() -> None:
    guess = np.array([[1.0, 2.0], [3.0, 4.0]])
    measured = np.array([[1.0, 2.5], [-3.0, 4.1]])
    assert Beside("train", "prediction", guess, measured).worst(2) == [(1, 0), (0, 1)]
    # Up to a factor: the same guess a hundred times larger has the same worst.
    assert Beside("free", "prediction", 100 * guess, measured, units=False).worst(1) == [(1, 0)]


@pytest.mark.slow
def test_unrelated_lists_have_the_r2_of_chance() -> None:
    """E[r²] = 1/(n − 1) for independent normal lists; 4000 of n = 11: standard error .002."""
    rng = np.random.default_rng(0)
    r2 = [agreement(rng.standard_normal(11), rng.standard_normal(11)).r2 for _ in range(4000)]
    assert abs(np.mean(r2) - 0.1) < 0.009


def _attends_evenly() -> Model:
    weights = random_model(n_layers=1, n_heads=1, d_mlp=0, norm=None)
    zero = np.zeros_like(weights["L0.W_Q"])
    return edited(weights, L0__W_Q=zero, L0__b_Q=np.zeros_like(weights["L0.b_Q"]))


def test_a_path_that_carries_all_of_the_difference_is_predicted_with_slope_1() -> None:
    """One head that attends evenly, prompts that differ at NAME alone: f·Δx is the difference of the answers."""
    model = _attends_evenly()
    train, test = (pairs_for(model, 6, seed=s, only=1) for s in (0, 1))
    table = predict_path(model, asked(model), "L0H0@NAME", train, test)
    assert sorted(table["side"]) == ["clean"] * 6 + ["corrupt"] * 6
    assert "slope 1.00, r² 1.00" in table.meta["differences"]
    assert table.meta["kind"] == "prediction"


def test_a_paths_first_step_needs_a_place() -> None:
    model = _attends_evenly()
    with pytest.raises(BadRequest, match="where it is read"):
        predict_path(model, asked(model), "L0H0", pairs_for(model), pairs_for(model))


@pytest.fixture(scope="module")
def demo() -> Model:
    return covector.open("demo-lm")


def names_of(pairs: Sequence[Pair]) -> set[str]:
    return {name for pair in pairs for name in pair.names}


def shapes_of(pairs: Sequence[Pair]) -> set[str]:
    return {p.texts[0].replace(p.names[0], "[]") for p in pairs}


@pytest.mark.parametrize(("hold", "n"), [("names", (6, 6)), ("templates", (6, 6)), ("both", (3, 3))])
def test_nothing_held_out_stands_on_both_sides(demo: Model, hold: str, n: tuple[int, int]) -> None:
    for seed in range(3):
        split = split_filled(demo, TEMPLATES, {"NAME": (FEMALE, MALE)}, hold=hold, seed=seed)
        assert (len(split.train), len(split.test)) == n
        assert bool(names_of(split.train) & names_of(split.test)) == (hold == "templates")
        assert bool(shapes_of(split.train) & shapes_of(split.test)) == (hold == "names")


def test_a_name_that_stands_twice_does_not_leak(demo: Model) -> None:
    fills = {"NAME": (["Mary", "Mary", "Mary", "Emma", "Lisa", "Kate"], MALE)}
    for seed in range(5):
        try:
            split = split_filled(demo, TEMPLATES[:1], fills, seed=seed)
        except BadRequest:
            continue
        assert not names_of(split.train) & names_of(split.test)


def test_texts_of_a_file_do_not_leak() -> None:
    pairs = [
        Pair((i,), (j,), {"end": 0}, (f"t{i}", f"t{j}")) for i, j in [(0, 1), (0, 2), (3, 4), (5, 6), (7, 8), (9, 1)]
    ]
    for seed in range(5):
        split = split_pairs(pairs, seed=seed)
        assert not {t for p in split.train for t in p.texts} & {t for p in split.test for t in p.texts}


def test_impossible_splits_are_refused(demo: Model) -> None:
    fills = {"NAME": (FEMALE, MALE)}
    with pytest.raises(BadRequest, match="names, templates, both"):
        split_filled(demo, TEMPLATES, fills, hold="none")
    with pytest.raises(BadRequest, match="held-out templates"):
        split_filled(demo, TEMPLATES[:1], fills, hold="templates")


def test_the_command_predicts_held_out_names(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--template", TEMPLATES[0], "--fill", f"NAME={','.join(FEMALE[:4])}:{','.join(MALE[:4])}", "--json"]
    assert run(["observe", "predict", "demo-lm", "' she' - ' he'", "heads", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["meta"]["held"] == "names"
    assert found["rows"][0]["head"] == "L0H0"  # it gathers the name; the MLPs do the rest
    assert {b["kind"] for b in found["meta"]["beside"]} == {"prediction", "fit", "accounting"}
