"""Heads: toys do what is written on them, scores are those of dense algebra, chance is called chance."""

import dataclasses

import numpy as np
import pytest

import covector
from covector.analyses.each_head import each_layer
from covector.analyses.heads import heads
from covector.analyses.sources import Sources
from covector.arch.toy import induction
from covector.errors import BadRequest, BadSite, UnknownBasis
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.spec import Block
from covector.model.weights import ArrayWeights
from random_checkpoints import random_model

TOKENS = tuple(f" word{i}" for i in range(61))


def changed(model: Model, **arrays: np.ndarray) -> Model:
    """The model with some canonical tensors replaced (dots in names are written as double underscores)."""
    base = model.stored
    held = {n: np.array(base[n]) for n in base.names()} | {k.replace("__", "."): v for k, v in arrays.items()}
    weights = ArrayWeights(dataclasses.replace(base.spec, tied=False), held)
    return dataclasses.replace(model, stored=weights, weights=weights, frame=Frame())


def random_heads(seed: int = 0) -> Model:
    """A tiny random model whose inputs and outputs are not tied: nothing in it copies."""
    model, rng = random_model("gpt2", seed, labels={"token": TOKENS}), np.random.default_rng(seed)
    d = model.spec.d_model
    return changed(model, W_E=rng.standard_normal((61, d)), W_U=rng.standard_normal((d, 61)))


def test_the_second_head_of_the_induction_toy_copies_and_the_first_looks_back() -> None:
    rows = {r["head"]: r for r in heads(covector.open(induction())).rows}
    assert rows["L1H0"]["copy"] == 1.0
    assert rows["L1H0"]["suppress"] == 0.0
    assert rows["L1H0"]["eta_full"] == pytest.approx(1, abs=1e-12)
    assert rows["L0H0"]["copy"] == 0.0
    assert (rows["L0H0"]["favours"], rows["L0H0"]["previous"]) == ("previous", 1.0)
    assert rows["L1H0"]["favours"] == ""
    # All nine tokens are read alike, the outputs and positions not at all.
    assert rows["L0H0"]["norm"] == pytest.approx(3, rel=1e-12)


def test_a_head_that_copies_with_a_minus_sign_suppresses() -> None:
    weights = induction()
    negative = ArrayWeights(weights.spec, dict(weights.arrays) | {"L1.W_O": -weights["L1.W_O"]})
    row = {r["head"]: r for r in heads(covector.open(negative)).rows}["L1H0"]
    assert (row["copy"], row["suppress"]) == (0.0, 1.0)
    assert row["eta_full"] == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("frame", ["raw", "folded", "gauge_fixed"])
@pytest.mark.parametrize("basis", ["token_in", "token_in_mlp0"])
def test_scores_are_those_of_dense_algebra(frame: str, basis: str) -> None:
    model = random_heads().framed(frame)
    table = heads(model, k=3, basis=basis, draws=20)
    E, W_U = model.bases[basis].vectors.astype(float), model.bases["token_out"].vectors.T.astype(float)
    for row in table.rows:
        M = model.map(row["head"] + ".ov").dense()
        circuit = E @ M @ W_U
        ranks = (-circuit).argsort(axis=1).argsort(axis=1)
        assert row["copy"] == pytest.approx(np.mean(np.diagonal(ranks) < 3), abs=1e-12)
        assert row["suppress"] == pytest.approx(np.mean(np.diagonal(ranks) >= 58), abs=1e-12)
        values = np.linalg.eigvals(circuit)
        # 56 of 61 eigenvalues are zero up to the rounding of a dense product.
        assert row["eta_full"] == pytest.approx(values.sum().real / np.abs(values).sum(), rel=1e-8, abs=1e-10)
        assert row["trace"] == pytest.approx(np.trace(M), rel=1e-9, abs=1e-12)
        assert row["norm"] == pytest.approx(np.linalg.norm(M), rel=1e-10)
        assert row["sigma1"] == pytest.approx(np.linalg.norm(M, 2), rel=1e-10)
        seen = E - E.mean(axis=1, keepdims=True) if frame != "raw" else E
        gain = np.linalg.norm(seen @ M, axis=1) / np.linalg.norm(seen, axis=1)
        assert row["salient"][0] == TOKENS[int(gain.argmax())]
        d = 20 - (frame != "raw")
        assert row["gain"] == pytest.approx(gain.max() * np.sqrt(d) / np.linalg.norm(M), rel=1e-9)


def test_shared_value_heads_are_read_by_every_query_head_of_their_group() -> None:
    model = random_model("llama")
    assert model.spec.n_heads > model.spec.n_kv_heads
    for kind in ("ov", "qk"):
        for layer in each_layer(model, kind):
            for h, name in enumerate(layer.names()):
                np.testing.assert_array_equal(layer.A[h] @ layer.B[h], model.map(f"{name}.{kind}").dense())


@pytest.mark.identity("SV-23")
def test_a_rotation_of_the_stream_changes_no_score() -> None:
    model = random_heads()
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((20, 20)))[0]
    w = model.weights
    parts = {f"L{i}__{r}": w[f"L{i}.{r}"] @ Q if r == "W_O" else Q.T @ w[f"L{i}.{r}"]
             for i in range(3) for r in ("W_Q", "W_K", "W_V", "W_O")}  # fmt: skip
    turned = changed(model, W_E=w["W_E"] @ Q, W_U=Q.T @ w["W_U"], W_pos=w["W_pos"] @ Q, **parts)
    before, after = (heads(m, basis="token_in", draws=20) for m in (model, turned))
    for name in ("eta", "eta_full", "copy", "suppress", "norm", "gain", "previous", "current", "first"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_heads_of_random_weights_pass_for_chance() -> None:
    """p ≤ .05 in 5 % of heads at the most, score by score, within four standard errors."""
    tables = [heads(random_heads(seed), basis="token_in", draws=100, seed=seed) for seed in range(15)]
    n = sum(len(t) for t in tables)
    allowed = 0.05 * n + 4 * np.sqrt(0.05 * 0.95 * n)
    for name in ("eta_p", "eta_full_p", "copy_p", "suppress_p", "gain_p"):
        assert sum(int((t[name] <= 0.05).sum()) for t in tables) <= allowed, name
    favoured = sum(label != "" for t in tables for label in t["favours"])
    assert favoured <= allowed
    # Copying by chance is 1/61 on average: a sum of binomials.
    copied = np.concatenate([t["copy"] for t in tables])
    assert copied.mean() == pytest.approx(1 / 61, abs=4 * np.sqrt(1 / 61 / 61 / n))


def test_the_level_of_copying_is_what_permuted_targets_rarely_exceed() -> None:
    from scipy.stats import binom

    level = heads(random_heads(), k=2, draws=20).column("copy").chance_level
    assert level is not None
    assert binom.sf(round(level * 61), 61, 2 / 61) <= 0.05 < binom.sf(round(level * 61) - 1, 61, 2 / 61)


def test_a_sample_of_tokens_says_so_and_gives_an_interval_that_holds_the_whole() -> None:
    model = random_heads()
    whole, some = heads(model, k=20, draws=20, sample=0), heads(model, k=20, draws=20, sample=30)
    assert "copy_low" not in whole
    assert some.meta["sources"] == 30
    assert "30 of 61 tokens" in some.not_says
    inside = (some["copy_low"] <= whole["copy"]) & (whole["copy"] <= some["copy_high"])
    assert inside.mean() >= 0.8  # 95 % intervals of 12 heads; drawn without replacement they are wide


def test_the_same_request_gives_the_same_bytes() -> None:
    one, two = (heads(random_heads(), draws=20, seed=7).to_json() for _ in range(2))
    assert one == two
    assert one != heads(random_heads(), draws=20, seed=8).to_json()


def test_later_blocks_are_shown_what_the_first_mlp_makes_of_a_token() -> None:
    model = random_heads()
    auto, bare, behind = (heads(model, basis=b, draws=20, k=10) for b in ("auto", "token_in", "token_in_mlp0"))
    first = [name.startswith("L0") for name in auto["head"]]
    np.testing.assert_array_equal(auto["copy"], np.where(first, bare["copy"], behind["copy"]))
    np.testing.assert_allclose(auto["eta_full"], np.where(first, bare["eta_full"], behind["eta_full"]))
    assert "token_in (block 0), token_in_mlp0" in auto.title
    assert Sources(model.framed("tl_demo")).names == ["token_in"]  # a view cannot run the MLP


def test_an_agent_has_sizes_and_salient_states_but_nothing_to_copy() -> None:
    from covector.arch.toy import random_model as toy

    table = heads(covector.open(toy(agent="interleaved", positions="none")), draws=20)
    assert "copy" not in table
    assert "different labels" in table.not_says
    assert table.rows[0]["salient"][0].startswith("state")
    assert np.isfinite(table["eta"]).all()


@pytest.mark.parametrize(
    "zeros", [{"W_E": slice(None)}, {"W_U": slice(None)}, {"W_E": slice(30), "W_U": slice(30, 61)}]
)
def test_where_no_token_has_both_vectors_nothing_is_copied_and_it_is_said(zeros: dict[str, slice]) -> None:
    model = random_heads()
    W_E, W_U = np.array(model.weights["W_E"]), np.array(model.weights["W_U"])
    W_E[zeros.get("W_E", slice(0))] = 0
    W_U[:, zeros.get("W_U", slice(0))] = 0
    table = heads(changed(model, W_E=W_E, W_U=W_U), draws=20, basis="token_in")
    assert "no token has a finite vector other than zero in all of token_in, token_out" in table.not_says
    assert not {"copy", "eta_full"} & {c.name for c in table.columns}
    np.testing.assert_array_equal(table["eta"], heads(model, draws=20)["eta"])
    assert ("salient" in table) == bool(W_E.any())
    assert ("all vectors of token_in are zero" in table.not_says) != bool(W_E.any())
    assert all(row["head"] in table.lines(row, 120) for row in table.rows)


def test_block_0_has_no_salient_tokens_where_only_the_first_mlp_makes_vectors() -> None:
    model = random_heads()
    rows = heads(changed(model, W_E=np.zeros_like(model.weights["W_E"])), draws=20).rows
    for row in rows:
        assert (row["salient"] == []) == (row["gain"] is row["gain_q"] is None) == row["head"].startswith("L0")


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"k": 0}, BadRequest, "expected k >= 1, got 0"),
        ({"k": 61}, BadRequest, "expected k below the 61 labels of token_out"),
        ({"draws": 3}, BadRequest, "expected draws >= 20, got 3"),
        ({"frame": "folded+bias"}, BadRequest, "appends a bias row; use --frame folded"),
        ({"basis": "words"}, UnknownBasis, "expected a basis of gpt2"),
    ],
)
def test_impossible_requests_say_what_is_possible(arguments: dict, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        heads(random_heads(), **arguments)


def test_a_model_without_heads_is_refused() -> None:
    from covector.arch.toy import random_model as toy

    with pytest.raises(BadSite, match="expected a model with attention heads"):
        heads(covector.open(toy(n_heads=0)))


def test_a_line_fits_its_width_and_the_picture_has_a_cell_per_head() -> None:
    from covector.analyses.heads_words import head_line, picture
    from covector.render.labels import cell_len

    table = heads(random_heads(), draws=20)
    for width in (80, 120):
        assert all(cell_len(head_line(row, width)) <= width for row in table.rows)
    grid = picture(table)
    assert grid.values.shape == (3, 4)
    assert grid.values[1, 2] == table.rows[6]["eta_full"]


def test_the_trained_induction_model_looks_back_and_then_copies(shared) -> None:
    model = covector.open(str(shared / "models" / "induction-gpt2"))
    rows = heads(model, seed=1).rows
    assert rows[0]["favours"] == "previous"
    assert rows[1]["copy"] > 0.9
    assert rows[1]["copy_q"] < 1e-10
    assert rows[1]["eta_full_q"] < 0.05


@pytest.mark.slow
def test_the_last_layer_of_demo_lm_copies_what_the_first_mlp_has_read() -> None:
    model = covector.open("demo-lm")
    found = {r["head"]: r for r in heads(model, draws=100).rows}
    for name in ("L3H0", "L3H1", "L3H2", "L3H3"):
        assert found[name]["copy"] > 0.1  # 200 times chance
        assert found[name]["eta_full_q"] < 0.05
    assert found["L0H0"]["favours"] == found["L0H1"]["favours"] == "previous"
    # The bare embedding is suppressed by the same heads: tied embeddings, turned round by the first MLP.
    bare = {r["head"]: r for r in heads(model, basis="token_in", draws=20).rows}
    assert bare["L3H0"]["suppress"] > 0.1 > bare["L3H0"]["copy"]


def test_blocks_without_attention_are_passed_over() -> None:
    model = random_heads()
    spec = model.spec
    blocks = (Block(spec.blocks[0].sublayers[1:]), *spec.blocks[1:])
    held = {n: np.array(model.stored[n]) for n in model.stored.names()}
    weights = ArrayWeights(dataclasses.replace(spec, blocks=blocks, tied=False), held)
    without = dataclasses.replace(model, stored=weights, weights=weights)
    table = heads(without, draws=20)
    assert table["head"][0] == "L1H0"
    np.testing.assert_allclose(table["norm"], heads(model, draws=20)["norm"][4:])
