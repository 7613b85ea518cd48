"""Composition dyad by dyad, against dense algebra in float64 and against planted dyads."""

import numpy as np
import pytest
from scipy import stats

import covector
from covector.analyses import compose_dyads as module
from covector.analyses.compose import compose
from covector.analyses.compose_dyads import compose_dyads
from covector.arch.toy import induction
from covector.arch.toy import random_model as toy
from covector.errors import BadRequest, BadSite
from random_checkpoints import random_model


def dense_ends(model: covector.Model, writer: str, reader: str, way: str) -> tuple[np.ndarray, np.ndarray]:
    """What is written (d × d) and how it is read, direction 1 taken off by a projector where norms are LayerNorms."""
    d = model.spec.d_model
    off = np.eye(d) - (1 / d if model.spec.final_norm.kind == "layer" else 0)
    circuit = model.map(f"{reader}.ov" if way == "v" else f"{reader}.qk").dense().astype(np.float64)
    return model.map(f"{writer}.ov").dense().astype(np.float64) @ off, off @ (circuit.T if way == "k" else circuit)


def by_hand(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's values, as they are defined: the least level at which each is rejected."""
    n, ranks = len(p), stats.rankdata(p, method="max")
    return np.array([min(1.0, (n * p[p >= one] / ranks[p >= one]).min()) for one in p])


@pytest.mark.parametrize(("family", "lost"), [("gpt2", 1), ("llama", 0)])
@pytest.mark.parametrize("frame", ["raw", "folded"])
def test_every_number_is_that_of_dense_matrices(family: str, lost: int, frame: str) -> None:
    model = random_model(family).framed(frame)
    table = compose_dyads(model, between="L0H1,L1H2", top=0)
    d, r = model.spec.d_model - lost, model.spec.blocks[0].attn.d_head
    assert table.meta["dyads"] == len(table) == 3 * r * r
    assert table.meta["dimension"] == d
    for way in "qkv":
        W, R = dense_ends(model, "L0H1", "L1H2", way)
        (_, s, v), (u, t, _) = np.linalg.svd(W), np.linalg.svd(R)
        cosines = np.abs(v[:r] @ u[:, :r])
        carried = (s[:r, None] * t[:r] * cosines / np.linalg.norm(W @ R)) ** 2
        assert carried.sum() == pytest.approx(1, rel=1e-10)
        rows = [row for row in table.rows if row["way"] == way]
        assert {(row["writes"], row["reads"]) for row in rows} == set(np.ndindex(r, r))
        for row in rows:
            at = row["writes"], row["reads"]
            assert row["cos"] == pytest.approx(cosines[at], abs=1e-6)  # dyads turn by eps over their gap
            assert row["share"] == pytest.approx(carried[at], abs=1e-6)
            assert row["p"] == pytest.approx(stats.beta.sf(row["cos"] ** 2, 0.5, (d - 1) / 2), rel=1e-8)
            assert row["p_union"] == pytest.approx(min(1, r * r * row["p"]), rel=1e-12)
    np.testing.assert_allclose(table["q"], by_hand(np.asarray(table["p"])), rtol=1e-9)
    assert np.all(np.diff(table["cos"]) <= 0)


@pytest.mark.parametrize("way", ["q", "k", "v"])
def test_a_dyad_that_is_planted_between_two_heads_is_found_where_it_is(way: str) -> None:
    """L0H1 writes a unit direction third by gain; L1H0 has it second in its queries, keys or values."""
    d, r = 40, 5
    weights = toy(n_layers=2, n_heads=2, d_model=d, d_head=r, norm=None)
    arrays, rng = {name: array.copy() for name, array in weights.arrays.items()}, np.random.default_rng(1)
    shared = np.linalg.qr(rng.standard_normal((d, 1)))[0][:, 0]

    def frame_with(place: int) -> np.ndarray:
        rows = np.linalg.qr(np.column_stack([shared, rng.standard_normal((d, r - 1))]))[0].T
        return np.insert(rows[1:], place, shared, axis=0)

    gains = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    arrays["L0.W_V"][1], arrays["L0.W_O"][1] = frame_with(4).T * gains, frame_with(2)
    left, right = {"q": ("W_Q", "W_K"), "k": ("W_K", "W_Q"), "v": ("W_V", "W_O")}[way]
    arrays[f"L1.{left}"][0] = frame_with(1).T * gains
    other = np.linalg.qr(rng.standard_normal((d, r)))[0]
    arrays[f"L1.{right}"][0] = other if way != "v" else other.T
    first = compose_dyads(covector.open(type(weights)(weights.spec, arrays)), top=1).rows[0]
    assert [first[name] for name in ("writer", "writes", "reader", "way", "reads")] == ["L0H1", 2, "L1H0", way, 1]
    assert first["cos"] == pytest.approx(1, abs=1e-9)
    assert first["p_union"] < 1e-9
    assert first["q"] < 1e-9


def test_the_best_dyads_of_each_pair_are_those_that_compose_tells() -> None:
    model = random_model("gpt2")
    table = compose_dyads(model, top=0)
    best: dict = {}
    for row in table.rows:  # most aligned first
        best.setdefault((row["writer"], row["reader"], row["way"]), row)
    whole = compose(model, top=0)
    assert len(best) == len(whole) == table.meta["pairs"]
    for row in whole.rows:
        one = best[row["writer"], row["reader"], row["way"]]
        assert f"{one['writes']} → {one['reads']}" == row["dyads"]
        assert one["cos"] == pytest.approx(abs(row["cos"]), rel=1e-9)
        assert one["share"] == pytest.approx(row["share"], rel=1e-9)
        assert one["p_union"] == pytest.approx(row["p_cos"], rel=1e-9)


def test_q_is_over_the_whole_request_whatever_is_shown() -> None:
    model = random_model("gpt2")
    whole, some = compose_dyads(model, between="L0H0,L1H1", top=0), compose_dyads(model, between="L0H0,L1H1", top=4)
    assert len(some) == 4
    np.testing.assert_array_equal(some["q"], whole["q"][:4])
    np.testing.assert_allclose(whole["q"], by_hand(np.asarray(whole["p"])), rtol=1e-9)


def test_named_places_are_heads_mlps_embeddings_and_outputs_in_the_order_of_the_model() -> None:
    model = covector.open(toy(n_layers=2, n_heads=1, gated=True))

    def pairs(between: str) -> set[tuple[str, str, str]]:
        table = compose_dyads(model, between=between, top=0)
        return set(zip(table["writer"], table["reader"], table["way"], strict=True))

    assert pairs("L1H0, L0H0") == {("L0H0", "L1H0", way) for way in "qkv"}
    assert pairs("embed,L1.mlp") == {("embed", "L1.mlp", "in"), ("embed", "L1.mlp", "gate")}
    assert pairs("L0.mlp.out,unembed,L0.mlp") == {("L0.mlp.out", "unembed", "out")}
    assert set(compose(model, between="L0H0,L1H0", top=0)["way"]) == {"q", "k", "v"}


@pytest.mark.slow
def test_of_random_models_single_cosines_have_a_uniform_p() -> None:
    p = np.concatenate([compose_dyads(random_model("gpt2", seed), top=0)["p"] for seed in range(10)])
    # Cosines of two frames are dependent: as many independent ones as there are dyads in all, 10 models' 600, at least.
    assert abs(np.mean(p <= 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 600)
    assert abs(p.mean() - 0.5) < 4 * 0.289 / np.sqrt(600)


def test_the_picture_is_that_of_the_places_of_the_first_row() -> None:
    model = covector.open(induction())
    table = compose_dyads(model, top=2)
    first, grid = table.rows[0], table.drawn
    assert (first["writer"], first["reader"], first["way"]) == ("L0H0", "L1H0", "k")
    assert grid.values[first["writes"], first["reads"]] == pytest.approx(first["cos"])
    assert (grid.row_name, grid.column_name) == ("L0H0 dyad", "L1H0.k dyad")


def test_impossible_requests_say_what_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    model = covector.open(toy(n_layers=2, n_heads=2))
    with pytest.raises(BadRequest, match=r"places .* \(L1H1, L0\.mlp, L0\.mlp\.out, unembed\), got 'L1'"):
        compose_dyads(model, between="L0H0,L1")
    with pytest.raises(BadSite, match=r"L5H0"):
        compose_dyads(model, between="L0H0,L5H0")
    with pytest.raises(BadRequest, match="expected a writer and a place behind it that reads, got 'L0H0,L0H1'"):
        compose_dyads(model, between="L0H0,L0H1")
    with pytest.raises(BadRequest, match="expected top >= 0"):
        compose_dyads(model, top=-1)
    monkeypatch.setattr(module, "LARGEST", 50)
    with pytest.raises(BadRequest, match=r"expected at most 50 pairs of dyads, 'heads' has .*--between L0H0,L1H0"):
        compose_dyads(model)
