"""Composition of heads: the toy's circuit comes first, order and ways are right, random models pass for chance."""

import numpy as np
import pytest

import covector
from covector.analyses.compose import compose
from covector.arch.toy import induction
from covector.arch.toy import random_model as toy
from covector.errors import BadRequest
from covector.linalg.norms import without_mean
from random_checkpoints import random_model


def pairs(table: covector.Table) -> list[tuple[str, str, str]]:
    return list(zip(table["writer"], table["reader"], table["way"], strict=True))


def test_the_induction_toy_composes_through_keys_alone() -> None:
    table = compose(covector.open(induction()), top=0)
    first, *others = table.rows
    assert (first["writer"], first["reader"], first["way"]) == ("L0H0", "L1H0", "k")
    # Nine equal gains of the one meet the same nine of the other: Σ (1/9)² = 1/9.
    assert first["score"] == pytest.approx(1 / 3, rel=1e-10)
    assert first["cos"] == pytest.approx(1, abs=1e-10)
    assert first["q"] < 1e-4
    assert [r["score"] for r in others] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("frame", ["raw", "folded", "gauge_fixed"])
def test_scores_are_those_of_dense_products_without_the_direction_one(frame: str) -> None:
    model = random_model("gpt2").framed(frame)
    table = compose(model, top=0)
    assert table.meta["dimension"] == 19
    np.testing.assert_allclose(np.mean(table["score"] ** 2), 1 / 19, rtol=0.1)  # 144 random pairs
    for row in table.rows:
        writer = without_mean(model.map(row["writer"] + ".ov").dense())
        circuit = {"q": lambda h: model.map(h + ".qk").dense(), "k": lambda h: model.map(h + ".qk").dense().T,
                   "v": lambda h: model.map(h + ".ov").dense()}[row["way"]](row["reader"])  # fmt: skip
        reader = without_mean(circuit.T).T
        want = np.linalg.norm(writer @ reader) / (np.linalg.norm(writer) * np.linalg.norm(reader))
        assert row["score"] == pytest.approx(want, rel=1e-9)
        i, j = map(int, row["dyads"].split(" → "))
        v, u = np.linalg.svd(writer)[2][i], np.linalg.svd(reader)[0][:, j]
        assert abs(row["cos"]) == pytest.approx(abs(v @ u), rel=1e-6)


def test_a_model_without_layer_norm_keeps_the_direction_one() -> None:
    model = random_model("llama")
    table = compose(model, top=0)
    assert table.meta["direction_1"] == "kept"
    assert table.meta["dimension"] == model.spec.d_model
    row = table.rows[0]
    A = model.map(row["writer"] + ".ov").dense()
    B = {"q": model.map(row["reader"] + ".qk").dense(), "k": model.map(row["reader"] + ".qk").dense().T,
         "v": model.map(row["reader"] + ".ov").dense()}[row["way"]]  # fmt: skip
    assert row["score"] == pytest.approx(np.linalg.norm(A @ B) / (np.linalg.norm(A) * np.linalg.norm(B)), rel=1e-9)


def test_only_what_stands_earlier_is_read() -> None:
    table = compose(covector.open(toy(n_layers=2, n_heads=1)), between="all", top=0)
    writers = {"embed": 0, "pos": 0, "L0H0": 1, "L0.mlp.out": 2, "L1H0": 3, "L1.mlp.out": 4}
    readers = {"L0H0": 1, "L0.mlp": 2, "L1H0": 3, "L1.mlp": 4, "unembed": 5}
    found = set(pairs(table))
    want = {(w, r, way) for w, i in writers.items() for r, j in readers.items() if i < j
            for way in (("out",) if r == "unembed" else ("in",) if "mlp" in r else ("q", "k", "v"))}  # fmt: skip
    assert found == want


def test_in_parallel_blocks_the_mlp_does_not_read_its_own_attention() -> None:
    found = pairs(compose(covector.open(toy(parallel=True, n_heads=1)), between="all", top=0))
    assert ("L0H0", "L0.mlp", "in") not in found
    assert ("L0H0", "L1.mlp", "in") in found


def test_gated_mlps_read_twice_and_agents_have_their_own_ends() -> None:
    gated = compose(covector.open(toy(gated=True, n_heads=1)), between="all", top=0)
    assert {way for _, reader, way in pairs(gated) if reader == "L1.mlp"} == {"in", "gate"}
    agent = compose(covector.open(toy(agent="interleaved", positions="none", n_heads=1)), between="all", top=0)
    assert {"state_in", "action_in", "return_in", "timestep_in"} < set(agent["writer"])
    assert {"action_out", "state_out"} < set(agent["reader"])


def test_a_tied_embedding_is_not_found_to_compose_with_itself() -> None:
    tied, loose = (compose(covector.open(toy(tied=t)), between="all", top=0) for t in (True, False))
    assert ("embed", "unembed", "out") not in pairs(tied)
    assert ("embed", "unembed", "out") in pairs(loose)


def test_q_is_over_all_pairs_whatever_is_shown() -> None:
    model = random_model("gpt2")
    whole, some = compose(model, top=0), compose(model, top=5)
    assert len(some) == 5
    np.testing.assert_array_equal(some["q"], whole["q"][:5])
    assert np.all(np.diff(whole["z"]) <= 0)
    assert some.meta["pairs"] == len(whole) == 4 * 8 * 3 + 4 * 4 * 3


@pytest.mark.slow
def test_random_models_pass_for_chance() -> None:
    tables = [compose(random_model("gpt2", seed), top=0) for seed in range(10)]
    p = np.concatenate([t["p"] for t in tables])
    z = np.concatenate([t["z"] for t in tables])
    # Pairs share heads: as many independent ones as there are heads in all, 120, at the least.
    assert abs(np.mean(p <= 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 120)
    assert abs(z.mean()) < 4 / np.sqrt(120)
    p_cos = np.concatenate([t["p_cos"] for t in tables])
    assert np.mean(p_cos <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 120)


def test_the_picture_has_a_cell_per_writer_and_way_in_and_none_for_the_past() -> None:
    table = compose(covector.open(toy(n_layers=3, n_heads=1)), top=1)
    grid = table.picture
    assert grid.row_labels == ["L0H0", "L1H0"]
    assert grid.column_labels == [f"L{i}H0.{way}" for i in (1, 2) for way in "qkv"]
    assert np.isnan(grid.values[1, :3]).all()
    assert np.isfinite(grid.values[0]).all()


@pytest.mark.parametrize(
    ("options", "arguments", "told"),
    [({}, {"between": "layers"}, r"expected between heads or all, or places .*, got 'layers'"),
     ({}, {"top": -1}, "expected top >= 0"),
     ({"n_layers": 1}, {}, "no head behind another")],
)  # fmt: skip
def test_impossible_requests_say_what_is_possible(options: dict, arguments: dict, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        compose(covector.open(toy(**options)), **arguments)


def test_the_trained_induction_model_composes_through_keys_first_of_all(shared) -> None:
    model = covector.open(str(shared / "models" / "induction-gpt2"))
    for frame in ("raw", "folded"):
        first = compose(model, between="all", frame=frame).rows[0]
        heads = compose(model, frame=frame).rows[0]
        assert (heads["writer"], heads["reader"], heads["way"]) == ("L0H0", "L1H0", "k")
        assert first["q"] < 1e-3
