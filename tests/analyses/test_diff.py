"""What changed between two models: planted changes are found where they are, and nothing else is."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import covector
from covector.analyses.diff_site import diff_components, diff_directions
from covector.atlas.plan import Options
from covector.atlases import model_of
from covector.errors import BadRequest
from covector.linalg.change import relative_change
from covector.model.change import change
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from random_checkpoints import random_model


@pytest.fixture(scope="module")
def base() -> Model:
    return covector.open("demo-lm")


def rewritten(model: Model, name: str = "other", **arrays: np.ndarray) -> Model:
    """The model with other tensors; a dot in a name is written as two underscores."""
    given = {key.replace("__", "."): value for key, value in arrays.items()}
    every = {n: given.get(n, model.stored[n]) for n in model.stored.names()}
    weights = ArrayWeights(model.stored.spec, every)
    return Model(name, weights, weights, labels=model.labels, vocabulary=model.vocabulary)


def direction(model: Model, basis: str, *texts: str) -> np.ndarray:
    """The mean of tokens less the mean of all, at length one."""
    assert model.vocabulary is not None
    rows = model.bases[basis].vectors.astype(np.float64)
    found = rows[[model.vocabulary.one(text) for text in texts]].mean(axis=0)
    return found / np.linalg.norm(found)


def planted(model: Model, gain: float = 0.6) -> tuple[Model, np.ndarray]:
    """A rank-one change of head 2 of layer 1, which writes ' she' wherever it reads a random direction of its own."""
    W = np.array(model.stored["L1.W_O"], dtype=np.float64)
    inner, v = np.random.default_rng(0).standard_normal(W.shape[1]), direction(model, "token_out", " she")
    W[2] += gain * np.outer(inner / np.linalg.norm(inner), v)
    return rewritten(model, "planted", L1__W_O=W), v


@pytest.fixture(scope="module")
def table(base):
    return covector.diff(base, planted(base)[0])


def test_a_planted_rank_one_change_is_the_only_place_and_its_direction_comes_back(base, table):
    other, v = planted(base)
    first = table.rows[0]
    assert (first["site"], first["rank"]) == ("L1H2.ov", 1)
    assert [r["site"] for r in table.rows if r["change"]] == ["L1H2.ov"]
    found = covector.svd(change(base, other).map("L1H2.ov"), 1)
    assert abs(found.Vh[0] @ v) == pytest.approx(1.0, abs=1e-9)
    assert "·she" in first["writes_plus"][0].replace(" ", "·") or "she" in first["writes_minus"][0]
    assert first["nearest"] == " she"
    assert first["p_label"] == pytest.approx(1 / 101)
    assert first["q_label"] == first["p_label"]  # one test
    assert table.says.startswith("1 of 42 places changed, most L1H2.ov")


def test_the_relative_change_is_the_ratio_of_dense_norms(base, table):
    other, _ = planted(base)
    delta = other.map("L1H2.ov").dense() - base.map("L1H2.ov").dense()
    assert table["change"][0] == pytest.approx(
        np.linalg.norm(delta) / np.linalg.norm(base.map("L1H2.ov").dense()), rel=1e-9
    )


def test_identical_models_changed_by_exactly_nothing_and_it_is_said(base):
    found = covector.diff(base, base)
    assert not np.any(found["change"])
    assert not np.any(found["rank"])
    assert found.says.startswith("Nothing changed: all 42 places and all other tensors are the same")
    assert "chance" not in found.says


def test_gains_and_biases_that_changed_are_not_passed_over(base):
    moved = np.array(base.stored["L2.b_out"], dtype=np.float64) + 0.1
    found = covector.diff(base, rewritten(base, L2__b_out=moved))
    assert found.says.startswith("No map changed")
    assert "1 gains and biases changed too, most L2.b_out" in found.says
    assert list(found.meta["other_tensors"]) == ["L2.b_out"]


def test_a_change_of_keys_and_values_shows_in_every_query_head_of_their_group():
    base = random_model("llama")
    arrays = np.array(base.stored["L1.W_V"])
    arrays[0] += 0.1
    found = covector.diff(base, rewritten(base, L1__W_V=arrays), tested=0)
    attn = base.spec.blocks[1].attn
    assert attn is not None
    assert attn.n_kv_heads < attn.n_heads
    group = {f"L1H{h}.ov" for h in range(attn.n_heads) if attn.kv_of(h) == 0}
    assert {r["site"] for r in found.rows if r["change"]} == group


def test_a_tied_unembedding_is_the_embedding_and_counted_once(base):
    assert [r["site"] for r in covector.diff(base, base).rows].count("embed") == 1
    assert "unembed" not in [r["site"] for r in covector.diff(base, base).rows]


def test_only_the_places_asked_for_are_compared(base):
    found = covector.diff(base, planted(base)[0], kinds=("mlp",), tested=1)
    assert {r["site"].split(".")[1] for r in found.rows} == {"mlp"}
    assert not np.any(found["change"])


def test_places_that_were_not_tested_say_so(base):
    noisy = {n: base.stored[n] + 0.01 for n in ("L0.W_O", "L3.W_in")}
    found = covector.diff(base, rewritten(base, **{n.replace(".", "__"): a for n, a in noisy.items()}), tested=1)
    assert np.isfinite(found["p_inside"]).sum() == 1
    assert "changed places were not tested" in found.not_says


def test_the_same_seed_gives_the_same_table_and_another_one_other_chances(base):
    other = planted(base)[0]
    one, two, three = (covector.diff(base, other, kinds=("ov",), seed=s) for s in (1, 1, 2))
    assert one.to_json() == two.to_json()
    assert one["turn_level"][0] != three["turn_level"][0]
    assert one["turn"][0] == three["turn"][0]


def test_directions_of_a_place_are_those_of_its_change_above_rounding(base):
    other, _ = planted(base)
    found = diff_directions(change(base, other), "L1H2.ov", rank=5)
    assert len(found) == 1  # float16 storage rounds far below the planted gain, everything else is rounding
    assert found.meta["change"] == pytest.approx(
        relative_change(change(base, other).map("L1H2.ov"), base.map("L1H2.ov")), rel=1e-12
    )
    assert " she" in (found["write_plus"][0][0], found["write_minus"][0][0])


def test_components_of_a_turned_pair_are_matched_and_the_shifts_are_the_real_ones(base):
    M = base.map("L2.mlp.out").dense().astype(np.float64)
    U, S, Vh = np.linalg.svd(M, full_matrices=False)
    S2 = S.copy()
    S2[0], S2[3] = 1.2 * S[0], 0.5 * S[3]
    found = diff_components(change(base, rewritten(base, L2__W_out=(U * S2) @ Vh)), "L2.mlp.out", top=4)
    order = np.argsort(-S2)[:4]
    assert list(found["old"]) == list(order)
    np.testing.assert_allclose(found["shift"], (S2 - S)[order], atol=1e-9)
    # The change is diagonal in the old dyads: first order is exact.
    np.testing.assert_allclose(found["predicted"], (S2 - S)[order], atol=1e-9)
    np.testing.assert_allclose(found["nearest"], 1.0, atol=1e-9)
    assert not np.any(found["intruder"])
    shares = np.array(found.meta["bands"]["shares"])
    moved = (S2 - S) ** 2
    assert shares[0, 0] == pytest.approx(moved[:4].sum() / moved.sum(), abs=1e-9)


def test_an_intruder_is_found_and_random_changes_of_its_size_do_not_make_one(base):
    M = base.map("L2.mlp.in").dense().astype(np.float64)
    rng = np.random.default_rng(3)
    u, v = (x / np.linalg.norm(x) for x in (rng.standard_normal(M.shape[0]), rng.standard_normal(M.shape[1])))
    gain = 3 * np.linalg.norm(M, 2)
    found = diff_components(change(base, rewritten(base, L2__W_in=M + gain * np.outer(u, v))), "L2.mlp.in", top=3)
    assert list(found["intruder"]) == [1, 0, 0]
    # A random rank-one change of that norm is an intruder too: it is the size, not the direction, and p says so.
    assert found["p"][0] > 0.05


def test_what_makes_no_sense_is_refused(base):
    other = planted(base)[0]
    with pytest.raises(BadRequest, match="two models"):
        covector.diff(base)
    with pytest.raises(BadRequest, match="kinds among"):
        covector.diff(base, other, kinds=("heads",))
    with pytest.raises(BadRequest, match="at least 100 draws"):
        covector.diff(base, other, draws=20)
    with pytest.raises(BadRequest, match="a place that changed"):
        diff_directions(change(base, other), "L0H0.ov")
    with pytest.raises(BadRequest, match="a place that changed"):
        diff_components(change(base, other), "L0H0.ov")


# ---- an adapter, and an atlas of what it adds


@pytest.fixture
def lora(base, tmp_path) -> Path:
    """An adapter of rank 1 that makes layer 2's output projection write ' she' for head 1's first coordinate."""
    A = np.zeros((1, 128), np.float32)
    A[0, 32] = 1.0
    B = direction(base, "token_out", " she").astype(np.float32)[:, None]
    folder = tmp_path / "lora"
    folder.mkdir()
    lead = "base_model.model.transformer.h.2.attn.c_proj."
    save_file({lead + "lora_A.weight": A, lead + "lora_B.weight": B}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 0.5, "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_an_adapter_of_rank_one_changes_one_head_along_its_own_direction(base, lora):
    found = covector.diff(covector.changed(base, lora))
    assert [r["site"] for r in found.rows if r["change"]] == ["L2H1.ov"]
    assert (found["rank"][0], found["nearest"][0]) == (1, " she")
    assert found.meta["other"]["adapter"]["scale"] == 0.5


def test_an_atlas_of_a_change_holds_its_directions_and_is_searched_with_tokens(base, lora, tmp_path):
    from covector.building import build_atlas

    model = covector.changed(base, lora)
    atlas = build_atlas(model, tmp_path / "d.atlas", options=Options(scores=False, draws=200))
    assert atlas is not None
    found = covector.trace(tmp_path / "d.atlas", "' she'")
    first = found.rows[0]
    assert (first["place"], first["side"]) == ("L2H1.ov:0", "write")
    # Scored again in float64 from both checkpoints: the direction is that of the token itself.
    exact = covector.trace(tmp_path / "d.atlas", direction(base, "token_out", " she")).rows[0]
    assert exact["place"] == "L2H1.ov:0"
    assert abs(exact["cos"]) == pytest.approx(1.0, abs=1e-6)
    reopened = model_of(atlas)
    np.testing.assert_array_equal(reopened.map("L2H1.ov").dense(), model.map("L2H1.ov").dense())


def test_an_atlas_of_a_change_notices_that_the_adapter_was_trained_since(base, lora, tmp_path):
    from covector.building import build_atlas

    build_atlas(covector.changed(base, lora), tmp_path / "d.atlas", options=Options(scores=False, draws=200))
    file = lora / "adapter_model.safetensors"
    lead = "base_model.model.transformer.h.2.attn.c_proj."
    more = {"lora_A.weight": np.ones((1, 128), np.float32), "lora_B.weight": np.ones((128, 1), np.float32)}
    save_file({lead + name: array for name, array in more.items()}, file)
    with pytest.raises(BadRequest, match="other values"):
        build_atlas(covector.changed(base, lora), tmp_path / "d.atlas", options=Options(scores=False, draws=200))
