"""A feature in a head's singular basis: its squares sum to one, and each cosine is what the dyad's gain makes of it."""

import numpy as np
import pytest

import covector
from covector.analyses.align import align
from covector.arch.toy import Plant, planted, random_model
from covector.errors import BadSite
from covector.linalg.svd import svd
from covector.study.observable import Observable

TASK = {"token 3": 1.0, "token 7": -1.0}


@pytest.mark.identity("OP-20")
@pytest.mark.parametrize("anatomy", [{}, {"n_kv_heads": 2}, {"norm": None}], ids=["plain", "grouped", "no norm"])
def test_squared_cosines_sum_to_one_and_each_is_gain_times_what_is_written(anatomy: dict) -> None:
    weights = random_model(**anatomy)
    model = covector.open(weights)
    table = align(model, Observable(TASK, model), "L1H2")
    values = 2 // (4 // anatomy.get("n_kv_heads", 4))
    U, S, Vh = np.linalg.svd(weights["L1.W_V"][values] @ weights["L1.W_O"][2])
    gain = weights["final_norm.gain"] if "final_norm.gain" in weights else np.ones(16)
    u = gain * (weights["W_U"][:, 3] - weights["W_U"][:, 7])
    u = u - u.mean() if "final_norm.gain" in weights else u
    behind = U[:, :4] @ (S[:4] * (Vh[:4] @ u))
    first = weights["L1.attn_norm.gain"] * behind if "L1.attn_norm.gain" in weights else behind
    first = first - first.mean() if "L1.attn_norm.gain" in weights else first
    assert sum(row["cos"] ** 2 for row in table.rows) == pytest.approx(1, rel=1e-12)
    assert [row["cumulative"] for row in table.rows] == pytest.approx(np.cumsum([r["cos"] ** 2 for r in table.rows]))
    assert table.meta["norm"] == pytest.approx(np.linalg.norm(behind), rel=1e-11)
    sizes = [abs(row["cos"]) for row in table.rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in table.rows:
        i = row["dyad"]
        assert row["sigma"] == pytest.approx(S[i], rel=1e-11)
        # Signs of singular vectors are free: read and written sides flip together, so the product is not.
        assert abs(row["cos"]) == pytest.approx(abs(S[i] * (Vh[i] @ u)) / np.linalg.norm(behind), rel=1e-9)
        assert abs(row["writes"]) == pytest.approx(abs(Vh[i] @ u) / np.linalg.norm(u), rel=1e-9)
        assert row["cos"] * row["writes"] >= 0
        assert abs(row["cos_before"]) == pytest.approx(abs(U[:, i] @ first) / np.linalg.norm(first), rel=1e-9)
    total = np.cumsum(sorted((r["cos"] ** 2 for r in table.rows), reverse=True))
    assert table.meta["dyads_for_90"] == 1 + int(np.sum(total < 0.9))
    assert sum(row["cos_before"] ** 2 for row in table.rows) <= 1 + 1e-12


@pytest.mark.identity("OP-20")
def test_slices_of_qk_sum_to_the_score() -> None:
    weights = random_model(biases=False)
    model = covector.open(weights)
    dense = weights["L1.W_Q"][2] @ weights["L1.W_K"][2].T
    found = svd(model.map("L1H2.qk"))
    x, y = np.random.default_rng(0).standard_normal((2, 16))
    slices = found.S * (x @ found.U) * (found.Vh @ y)
    assert slices.sum() == pytest.approx(x @ dense @ y, rel=1e-11)


def test_a_planted_dyad_carries_its_own_token() -> None:
    weights = planted([Plant(0, 1, 3.0), Plant(2, 3, 2.0), Plant(4, 5, 1.0)], "L0H1.ov", d_mlp=0)
    model = covector.open(weights)
    table = align(model, Observable({"token 3": 1.0}, model), "L0H1")
    first = table.rows[0]
    assert first["dyad"] == 1
    assert (abs(first["cos"]), first["sigma"], abs(first["writes"])) == pytest.approx((1, 2, 1), rel=1e-12)
    assert table.meta["dyads_for_90"] == 1
    both = align(model, Observable({"token 1": 1.0, "token 3": -1.0}, model), "L0H1")
    assert [row["dyad"] for row in both.rows[:2]] == [0, 1]
    assert [abs(row["cos"]) for row in both.rows[:2]] == pytest.approx(np.array([3, 2]) / np.sqrt(13), rel=1e-12)
    assert both.rows[0]["cos"] * both.rows[0]["writes"] > 0


def test_fewer_rows_are_the_first_ones_and_other_places_are_refused() -> None:
    model = covector.open(random_model())
    task = Observable(TASK, model)
    assert align(model, task, "L1H2", top=2).rows == align(model, task, "L1H2").rows[:2]
    for place in ("L1H2.qk", "L1.mlp.out"):
        with pytest.raises(BadSite, match=f"expected a head such as L9H7, got '{place}'"):
            align(model, task, place)
