"""Observable propagation measured again: each kind of number by independent algebra, defects repaired and repeated."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import covector
from covector.analyses.replicate.obprop import replicate_obprop
from covector.analyses.replicate.obprop_bench import Bench
from covector.analyses.replicate.obprop_claims import Asked, _cosines, gender, replicate_claims
from covector.analyses.replicate.obprop_numbers import KINDS, attributions
from covector.analyses.replicate.obprop_tasks import (
    DEFECTS,
    Names,
    PromptWords,
    defects_of,
    own_names,
    published,
    read_gendered,
    same_heads,
    same_shape,
    stand_in,
    tasks,
)
from covector.arch.toy import random_model
from covector.cli.main import run
from covector.errors import BadRequest
from covector.model.opened import Model


@cache
def model() -> Model:
    return stand_in()


@cache
def bench(*defects: str) -> Bench:
    return Bench(model(), own_names(), frozenset(defects))


# Data ---------------------------------------------------------------------------------------------------------------


def test_every_section_with_numbers_is_there_and_every_kind_is_known() -> None:
    assert {p.section for p in published()} == {f"2.{i}" for i in range(2, 11)}
    assert {p.kind for p in published()} - {"none"} == set(KINDS)
    assert all(p.note for p in published() if p.kind == "none"), "a number that is not measured says why"
    assert {d for p in published() for d in p.defects} == set(DEFECTS)


def test_the_published_numbers_agree_with_each_other_where_arithmetic_binds_them() -> None:
    """§2.3: raw coupling = cos · ‖obj‖/‖subj‖, and r² = cos², from numbers of other cells."""
    by_what = {p.what: p.value for p in published()}
    for head in ("L17H14", "L15H13", "L13H11", "L18H11"):
        cos = by_what[f"cos subj, obj raw {head}"]
        ratio = by_what[f"raw norm, obj {head}"] / by_what[f"raw norm, subj {head}"]
        assert abs(by_what[f"raw coupling subj→obj {head}"] - cos * ratio) < 2e-4
    for head in ("L17H14", "L15H13", "L13H11"):
        assert (
            abs(by_what[f"r² predicted for even inputs {head}"] - by_what[f"cos subj, obj with magnitude {head}"] ** 2)
            < 1e-4
        )


@pytest.mark.parametrize("head", ["L17H14", "L15H13", "L13H11"])
@pytest.mark.parametrize("task", ["subj", "obj"])
def test_published_alignments_have_squares_that_sum_to_one_at_most(task: str, head: str) -> None:
    rows = [p.value for p in published() if p.kind == "svd_cos" and p.args["task"] == task and p.args["head"] == head]
    assert len(rows) == 5
    assert 0.9 < sum(v * v for v in rows) <= 1  # §1.7: 0.993, 0.984, 0.931, 0.937, 0.949, 0.913


def test_positions_of_the_prompts_are_the_published_ones() -> None:
    """§2.1: 12 tokens, name 3; 16 tokens, name 6; 7 tokens, name 3."""
    found = {t: (len(p := bench().first_pair(t)), p.slots["NAME"]) for t in ("subj", "obj", "bias")}
    assert found == {"subj": (12, 3), "obj": (16, 6), "bias": (7, 3)}


def test_names_are_ten_and_ten_and_more_are_read_from_a_file(tmp_path: Path) -> None:
    assert len(own_names().female) == len(own_names().male) == 10
    path = tmp_path / "names.csv"
    path.write_text(
        "Name,Gender,Count,Probability\nJames,M,5304407,0.01\nMary,F,4169663,0.01\nJohn,M,1,1\nAnna,F,1,1\n"
    )
    assert read_gendered(path) == Names(("Mary", "Anna"), ("James", "John"))
    path.write_text("Mary\nJohn\n")
    with pytest.raises(BadRequest, match="expected lines such as"):
        read_gendered(path)


def test_the_stand_in_has_the_published_layers_and_heads_and_says_so() -> None:
    assert same_heads(model())
    assert not same_shape(model())
    assert model().spec.blocks[1].attn.window == 256
    assert model().spec.d_model == 2048 // 16
    with pytest.raises(BadRequest, match="divisor"):
        stand_in(3)


# Numbers ------------------------------------------------------------------------------------------------------------


def dense(layer: int, h: int) -> np.ndarray:
    """W_OV of a head, stream to stream, column convention of the theory page transposed."""
    w = model().weights
    return w[f"L{layer}.W_V"][h] @ w[f"L{layer}.W_O"][h]


def u(plus: str, minus: str) -> np.ndarray:
    labels, W = model().labels["token"], model().weights["W_E"]
    return W[labels.index(plus)] - W[labels.index(minus)]


def test_raw_norms_cosines_and_couplings_are_those_of_the_dense_map() -> None:
    y1, y2 = (dense(17, 14) @ u(*words) for words in ((" she", " he"), (" her", " him")))
    args = {"task": "subj", "head": "L17H14"}
    np.testing.assert_allclose(KINDS["raw_norm"](bench(), args), np.linalg.norm(y1), rtol=1e-12)
    cos = y1 @ y2 / np.linalg.norm(y1) / np.linalg.norm(y2)
    np.testing.assert_allclose(KINDS["raw_cos"](bench(), args), cos, rtol=1e-12)
    np.testing.assert_allclose(KINDS["raw_coupling"](bench(), args), y1 @ y2 / (y1 @ y1), rtol=1e-12)


@pytest.mark.identity("OP-20")
def test_alignments_are_those_of_numpys_decomposition() -> None:
    U = np.linalg.svd(dense(15, 13))[0]
    f = dense(15, 13) @ u(" she", " he")
    for dyad in range(3):
        ours = KINDS["svd_cos"](bench(), {"task": "subj", "head": "L15H13", "dyad": dyad})
        np.testing.assert_allclose(ours, abs(U[:, dyad] @ f) / np.linalg.norm(f), rtol=1e-9)


def test_the_repaired_norm_has_the_gain_before_the_head_and_b2_behind_it() -> None:
    w, n = model().weights, 17
    x = bench().first("subj")[0]["L23.resid_post"][0, -1]
    g1, gf, d = w[f"L{n}.attn_norm.gain"], w["final_norm.gain"], 128
    P = np.eye(d) - 1 / d
    right = np.sqrt(d) * P @ (g1 * (dense(n, 14) @ (P @ (gf * u(" she", " he"))))) * np.sqrt(d) / np.linalg.norm(P @ x)
    wrong = g1 * np.sqrt(d) * gf * np.sqrt(d) / np.linalg.norm(x) * (dense(n, 14) @ u(" she", " he"))
    args = {"task": "subj", "head": "L17H14"}
    np.testing.assert_allclose(KINDS["norm"](bench(), args), np.linalg.norm(right), rtol=1e-10)
    np.testing.assert_allclose(KINDS["norm"](bench("B2"), args), np.linalg.norm(wrong), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.identity("OP-27")
def test_an_attribution_is_the_run_with_the_heads_direct_write_exchanged() -> None:
    """One head, one pair, the long way: its z at the end from the corrupt run, added to the last stream by a hook."""
    ours = attributions(bench(), "subj", True)
    decoder, found = bench().decoder, []
    observable = bench().observable("subj")
    for pair in bench().pairs("subj", (0,)):
        runs = [decoder.run(torch.tensor([side]), capture=["L13.z"]) for side in (pair.clean, pair.corrupt)]
        change = (runs[1].cache["L13.z"] - runs[0].cache["L13.z"])[0, -1, 11].detach().numpy()
        add = torch.from_numpy(change @ model().weights["L13.W_O"][11])
        y = decoder.run(torch.tensor([pair.clean]), intervene={"L23.resid_post": lambda x, a=add: x + a}).logits[0, -1]
        found.append(observable.of(runs[0].logits[0, -1].detach().numpy()) - observable.of(y.detach().numpy()))
    np.testing.assert_allclose(ours[13][11], np.mean(found), atol=1e-12)


def test_shares_of_the_last_paths_add_up_to_what_patterns_held_explain() -> None:
    """Exactly: all value edges of layer 23's heads, by position, are what these write to the last stream."""
    ours = sum(KINDS["path"](bench(), {"task": "subj", "path": f"23.{h}@{t}"}) for h in range(16) for t in range(12))
    clean, corrupt = bench().first("subj")
    dv = clean["L23.v"] - corrupt["L23.v"]
    z = np.einsum("bhts,bshk->bthk", clean["L23.pattern"], dv)
    added = np.einsum("bthk,hkd->btd", z, model().weights["L23.W_O"])
    from covector.analyses.replicate.obprop_numbers import _world

    world = _world(bench(), "subj")[0]
    # Paths through the MLP of layer 23 are paths of their own: straight to the last stream alone.
    np.testing.assert_allclose(ours, np.sum(world.start * added), rtol=1e-9)


def test_the_boundary_of_the_final_norm_is_an_exact_root_with_the_frozen_feature_there() -> None:
    """§1.3: at w·x̂ = 0 the exact functional is w/σ; the tangent plane errs in second order only."""
    one, w = Bench(model(), own_names()), model().weights
    rng, target = np.random.default_rng(0), u(" she", " he")
    side = w["final_norm.gain"] * target
    x = 0.3 * rng.standard_normal((2, 1, 128)) + np.array([4.0, -3.0])[:, None, None] * side
    one._kept["finals", "subj", 0] = (np.concatenate(list(x)), np.array([1]), np.zeros(2))
    t = KINDS["root"](one, {"template": 0})
    point = (1 - t) * x[1, 0] + t * x[0, 0]

    def value(row: np.ndarray) -> float:
        normed = (row - row.mean()) / np.sqrt(row.var() + 1e-5)
        return float((normed * w["final_norm.gain"] + w["final_norm.bias"]) @ target)

    assert abs(value(point)) < 1e-9
    step = 1e-5 * rng.standard_normal(128)
    gradient = (value(point + step) - value(point - step)) / 2
    from covector.analyses.replicate.obprop_numbers import _boundary

    feature = _boundary(one, 0)[2]
    assert gradient == pytest.approx(step @ feature, rel=1e-5)
    assert KINDS["final_norm"](one, {"template": 0}) == pytest.approx(np.linalg.norm(feature))
    plane = np.mean([abs(value(row) - (row - point) @ feature) for row in x[:, 0]])
    assert KINDS["plane_error"](one, {"fit": 0, "test": 0}) == pytest.approx(plane)


def test_b1_swaps_the_norms_of_a_block() -> None:
    args = {"head": "L17H14", "stat": "cos"}
    assert KINDS["coupling"](bench(), args) != KINDS["coupling"](bench("B1"), args)
    w = model().weights
    f = np.arange(128.0)
    g = w["L4.mlp_norm.gain"] * f
    np.testing.assert_allclose(bench("B1").normed(f, "L4.attn_norm"), g - g.mean(), rtol=1e-12)
    g = w["L4.attn_norm.gain"] * f
    np.testing.assert_allclose(bench().normed(f, "L4.attn_norm"), g - g.mean(), rtol=1e-12)


@pytest.mark.slow
def test_b3_and_b4_read_at_other_layers() -> None:
    words = "\n".join([tasks()["templates"]["obj"][0].replace("[NAME]", "Mark")] * 12)
    one, other = (Bench(model(), own_names(), frozenset(d), words) for d in ((), ("B3",)))
    args = {"head": "L17H14", "stat": "slope"}
    assert KINDS["slope_text"](one, args) != KINDS["slope_text"](other, args)
    # Heads of layer 6 would be read where B3 reads them all.
    at6 = {"head": "L6H14", "stat": "slope"}
    assert KINDS["slope_text"](one, at6) == KINDS["slope_text"](other, at6)
    args = {"task": "subj", "path": "13.11@5<=9.1@3<=6.6@3", "stat": "r2", "read": "6"}
    assert KINDS["output_fit"](bench(), args) != KINDS["output_fit"](bench("B4"), args)


def test_steering_adds_the_feature_to_one_token_of_one_stream() -> None:
    args = {"task": "subj", "head": "L15H13", "token": 6, "scale": 1e-6, "template": "obj", "measured": "subj"}
    up, down = (KINDS["steer"](bench(), args | {"scale": s}) for s in (1e-4, -1e-4))
    assert up == pytest.approx(-down, rel=1e-2)  # first order
    # A token behind the last is refused, not wrapped around.
    from covector.analyses.replicate.obprop_bench import NotAsked

    with pytest.raises(NotAsked, match="beyond"):
        KINDS["steer"](bench(), args | {"token": 16})


# Tables -------------------------------------------------------------------------------------------------------------


def test_on_other_weights_everything_is_measured_and_nothing_compared() -> None:
    table = replicate_obprop(model(), sections=("2.2", "2.6", "2.7"))
    assert set(table["agrees"]) == {""}
    assert np.isnan(np.asarray(table["off"])).all()
    assert "none compared" in table.says
    missing = [r["told"] for r in table.rows if r["ours"] is None]
    assert missing
    assert all(any(w in why for w in ("not told", "dyads", "sign change", "package")) for why in missing)


@pytest.mark.slow
def test_defects_named_are_repeated_for_the_numbers_that_they_changed() -> None:
    plain, repeated = (
        replicate_obprop(model(), sections=("2.3",), defects=d) for d in (frozenset(), frozenset({"B2"}))
    )
    moved = np.asarray(plain["ours"]) != np.asarray(repeated["ours"])
    moved &= np.isfinite(np.asarray(plain["ours"]))
    assert {p.kind for p, m in zip((q for q in published() if q.section == "2.3"), moved, strict=True) if m} == {"norm"}


def test_unknown_defects_sections_and_anatomies_are_refused() -> None:
    assert defects_of(["all"]) == frozenset(DEFECTS)
    with pytest.raises(BadRequest, match="B1, B2"):
        defects_of(["B99"])
    with pytest.raises(BadRequest, match=r"2\.2 to 2\.10"):
        replicate_obprop(model(), sections=("9",))
    with pytest.raises(BadRequest, match="24 layers"):
        replicate_obprop(covector.open("demo-lm"))


# Claims -------------------------------------------------------------------------------------------------------------


def small_random(seed: int) -> Model:
    """Three layers of four heads that read the published prompts."""
    labels = stand_in(64).labels["token"]
    weights = random_model(seed=seed, n_layers=3, d_model=32, n_heads=4, d_mlp=32, n_vocab=len(labels), n_ctx=32)
    return Model("small", weights, weights, labels={"token": labels}, vocabulary=PromptWords(labels))


@pytest.mark.slow
def test_on_random_weights_claims_hold_no_more_often_than_chance_lets_them() -> None:
    """Four claims at 1.25 % on ten models: 0.5 expected, four or more with probability 2e-3."""
    verdicts = [v for seed in range(10) for v in replicate_claims(small_random(seed), draws=200, seed=seed)["verdict"]]
    assert len(verdicts) == 40
    assert verdicts.count("cannot be asked here") == 0
    assert verdicts.count("holds") <= 3


def test_cosines_of_features_are_those_made_one_by_one() -> None:
    small = stand_in(64)
    a, b = np.random.default_rng(0).standard_normal((2, 3, small.spec.d_model))
    cos, _ = _cosines(small, a, b)
    w, d = small.weights, small.spec.d_model
    P = np.eye(d) - 1 / d

    def feature(v: np.ndarray) -> np.ndarray:
        f = P @ (w["final_norm.gain"] * v)
        return P @ (w["L5.attn_norm.gain"] * (w["L5.W_V"][2] @ (w["L5.W_O"][2] @ f)))

    x, y = feature(a[1]), feature(b[1])
    np.testing.assert_allclose(cos[1, 5 * 16 + 2], x @ y / np.linalg.norm(x) / np.linalg.norm(y), rtol=1e-9)


def test_a_planted_gender_direction_is_found_and_shuffled_names_are_not() -> None:
    """Names lie along one direction that a head reads, and writes to she − he; with mixed sides nothing holds."""
    base, labels = stand_in(32), stand_in(32).labels["token"]
    names, d = own_names(), base.spec.d_model
    axis = np.zeros(d)
    axis[:2] = 1, -1
    arrays = {n: np.array(base.weights[n]) for n in base.weights.names()}
    for sign, side in ((3.0, names.female), (-3.0, names.male)):
        for name in side:
            arrays["W_E"][labels.index(f" {name}")] += sign * axis
    arrays["W_U"] = arrays["W_E"].T
    target = arrays["W_E"][labels.index(" she")] - arrays["W_E"][labels.index(" he")]
    arrays["L9.W_V"][4][:, 0], arrays["L9.W_O"][4][0] = 20 * axis, target
    weights = type(base.weights)(base.spec, arrays)
    planted = Model("planted", weights, weights, labels={"token": labels}, vocabulary=base.vocabulary)
    mixed = Names(names.female[:5] + names.male[:5], names.male[5:] + names.female[5:])
    found = [gender(Asked(planted, n, n, 200, 0)).verdict for n in (names, mixed)]
    assert found == ["holds", "does not hold"]


def test_demo_lm_shares_features_of_pronouns() -> None:
    """As found, and stated in the documentation."""
    rows = {r["claim"]: r for r in replicate_claims(covector.open("demo-lm"), draws=200).rows}
    assert rows["shared"]["verdict"] == "holds"
    assert rows["bias"]["verdict"] == "does not hold"


# Command ------------------------------------------------------------------------------------------------------------


def test_the_command_measures_a_stand_in_and_says_that_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["replicate", "obprop", "random", "--size", "64", "--section", "2.7", "--as-published", "B1,B2", "--json"]
    assert run(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["meta"]["compared"] is False
    assert told["meta"]["repeated"] == ["B1", "B2"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["demo-lm", "--size", "2"], "--size"),
        (["demo-lm", "--show", "lists"], "numbers or claims"),
        (["demo-lm", "--concept", "fire"], "takes no --concept"),
        (["random", "--as-published", "B77"], "--as-published"),
    ],
)
def test_bad_requests_are_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replicate", "obprop", *words]) == 2
    assert told in capsys.readouterr().err


# The weights --------------------------------------------------------------------------------------------------------


@pytest.mark.identity("OP-31")
@pytest.mark.slow
def test_the_published_model_gives_the_published_numbers() -> None:
    """Needs the weights: a folder in COVECTOR_GPT_NEO, a folder or hub name that is in the local cache."""
    ref = os.environ.get("COVECTOR_GPT_NEO")
    if not ref:
        pytest.skip("the published weights are absent (COVECTOR_GPT_NEO)")
    table = replicate_obprop(covector.open(ref), sections=("2.2", "2.3", "2.4", "2.7"), dtype="float32")
    kinds = ("logit", "readout_cos", "raw_norm", "raw_cos", "raw_coupling", "svd_cos", "attribution")
    wanted = [p for p in published() if p.section in ("2.2", "2.3", "2.4", "2.7")]
    wrong = [
        (p.what, p.value, row["ours"])
        for p, row in zip(wanted, table.rows, strict=True)
        if p.kind in kinds and p.args.get("set") != "300" and row["agrees"] == "no"
    ]
    assert wrong == []
