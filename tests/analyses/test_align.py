"""A feature in a head's singular basis: its squares sum to one, and each cosine is what the dyad's gain makes of it."""

import dataclasses

import numpy as np
import pytest

import covector
from covector.analyses.align import align
from covector.analyses.propagate import propagate
from covector.arch.toy import RMS_NORM, Plant, planted, random_model
from covector.errors import BadRequest, BadSite
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


def test_the_sentence_names_the_dyads_whose_p_is_below_five_percent() -> None:
    """Planted: dyad 1 alone writes token 3, and is neither the first row's position nor the strongest."""
    weights = planted([Plant(0, 1, 3.0), Plant(2, 3, 2.0), Plant(4, 5, 1.0)], "L0H1.ov", d_mlp=0)
    model = covector.open(weights)
    for name in ("token 3", "token 5"):
        table = align(model, Observable({name: 1.0}, model), "L0H1")
        beyond = sorted(row["dyad"] for row in table.rows if row["p"] < 0.05)
        assert beyond
        assert f"dyad{'s' * (len(beyond) > 1)} {', '.join(map(str, beyond))} carr" in table.says


def test_fewer_rows_are_the_first_ones_and_other_places_are_refused() -> None:
    model = covector.open(random_model())
    task = Observable(TASK, model)
    assert align(model, task, "L1H2", top=2).rows == align(model, task, "L1H2").rows[:2]
    for place in ("L1H2.qk", "L1.mlp.out"):
        with pytest.raises(BadSite, match=f"expected a head such as L9H7, got '{place}'"):
            align(model, task, place)
    with pytest.raises(BadRequest, match="draws of at least 19, got 18"):
        align(model, task, "L1H2", draws=18)


@pytest.mark.slow
@pytest.mark.parametrize("anatomy", [{}, {"placement": "sandwich"}, {"placement": "post"}, {"norm": None}],
                         ids=["plain", "sandwich", "post", "no norm"])  # fmt: skip
def test_the_null_is_random_readouts_through_this_head(anatomy: dict) -> None:
    """`chance` and p against draws of our own, each pulled back as an observable's read-out is, dyad by dyad."""
    weights = random_model(**anatomy)
    # Norms on the way that turn what passes, so that leaving them out shows.
    uneven = {k: v * np.geomspace(0.2, 5, 16) for k, v in weights.arrays.items() if k.endswith(("t.gain", "r.gain"))}
    weights = dataclasses.replace(weights, arrays={**weights.arrays, **uneven})
    model = covector.open(weights)
    draws, n = 2000, 1000
    rows = {row["dyad"]: row for row in align(model, Observable(TASK, model), "L0H2", draws=draws).rows}
    U = np.linalg.svd(weights["L0.W_V"][2] @ weights["L0.W_O"][2])[0][:, : len(rows)]
    rng = np.random.default_rng(9)
    # Weights on labels whose read-out is any direction: W_U n = g.
    inverse = np.linalg.pinv(weights["W_U"])
    final = weights["final_norm.gain"] if "final_norm.gain" in weights else np.ones(16)
    null = []
    for g in rng.standard_normal((n, 16)):
        label = inverse @ ((g - g.mean() if "final_norm.gain" in weights else g) / final)
        task = Observable({f"token {i}": float(w) for i, w in enumerate(label)}, model)
        feature = propagate(model, task, "L0H2", normed=True).vector
        null.append(np.abs(U.T @ feature) / np.linalg.norm(feature))
    t = np.arctanh(np.minimum(null, 1 - 1e-12))
    mean, spread = t.mean(axis=0), t.std(axis=0)
    largest = np.max((t - mean) / spread, axis=1)
    for i, row in rows.items():
        p = np.mean(largest >= (np.arctanh(abs(row["cos"])) - mean[i]) / spread[i])
        # Besides the binomial error of p, our mean and deviation have one of 1/√n of a deviation, where the density of
        # the maximum (squares of cosines sum to 1, so it moves little) is up to one per deviation.
        assert row["p"] == pytest.approx(p, abs=4 * np.sqrt((p * (1 - p) + 0.15) / n))
        level = np.tanh(mean[i] + spread[i] * np.quantile(largest, 0.95))
        assert row["chance"] == pytest.approx(level, abs=0.1)
        assert (row["p"] < 0.05) == (abs(row["cos"]) > row["chance"]) or abs(row["p"] - 0.05) < 2e-3


@pytest.mark.slow
def test_random_tasks_stand_out_no_more_often_than_promised_and_the_haar_law_rejects_them() -> None:
    """Random labels read through a head with an uneven spectrum: p < 5 % in 5 % of them, Haar far more often."""
    trials, small, haar = 300, 0, 0
    for seed in range(trials):
        weights = random_model(seed=seed, d_mlp=0, n_layers=1, d_head=6, norm=RMS_NORM)
        O = weights["L0.W_O"] * np.array([10.0, 5, 2, 1, 0.5, 0.2])[:, None]  # noqa: E741
        model = covector.open(dataclasses.replace(weights, arrays={**weights.arrays, "L0.W_O": O}))
        a, b = np.random.default_rng(seed).choice(23, 2, replace=False)
        table = align(model, Observable({f"token {a}": 1.0, f"token {b}": -1.0}, model), "L0H1", draws=99, seed=seed)
        small += min(table["p"]) < 0.05
        haar += min(table["p_haar"]) < 0.05
    assert small / trials == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / trials))
    assert haar / trials > 0.3


def test_a_task_read_along_a_weak_dyad_stands_out() -> None:
    """Beside a dyad of gain 9 the task's own of gain 3 brings nearly all of the feature: no random read-out does so."""
    plants = [Plant(0, 1, 9.0), Plant(2, 3, 3.0), Plant(4, 5, 3.0), Plant(6, 7, 3.0)]
    model = covector.open(planted(plants, "L0H1.ov", d_model=32, d_mlp=0))
    strong, weak = (align(model, Observable({f"token {i}": 1.0}, model), "L0H1") for i in (1, 3))
    assert weak.rows[0]["p"] < 0.05
    assert "carries more of it than of random read-outs" in weak.says
    # The strong dyad carries most of anything, which the Haar law takes for a find.
    assert strong.rows[0]["dyad"] == 0
    assert strong.rows[0]["p_haar"] < 1e-6
