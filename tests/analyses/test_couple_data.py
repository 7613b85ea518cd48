"""Coupling beside prompts, of several tasks, of two features: against least squares, spheres and pairwise tables."""

import math

import numpy as np
import pytest

import covector
from covector.analyses.couple import couple, coupling, fitted
from covector.analyses.couple_null import random_alike
from covector.analyses.couple_readings import Readings, within
from covector.analyses.propagate import propagate
from covector.analyses.shared import random_pairs
from covector.analyses.shares import shares
from covector.analyses.virtual_heads import Sphere
from covector.arch.toy import RMS_NORM, random_model
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.model.spec import Norm
from covector.render import Grid, Scatter
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair
from covector.study.observable import Observable

LAYER = Norm("layer", 1e-5)
NORMS = pytest.mark.parametrize("norm", [None, RMS_NORM, LAYER], ids=["none", "rms", "layer"])


def tasks_of(model: Model, n: int = 2) -> list[Observable]:
    return [Observable({f"token {3 + i}": 1.0, f"token {12 + 2 * i}": -1.0}, model) for i in range(n)]


def prompts(n: int = 6, length: int = 7, seed: int = 0) -> list[Pair]:
    """Pairs that differ at position 2 and begin alike, as filled templates do."""
    rng = np.random.default_rng(seed)
    rest = rng.integers(0, 23, length)
    made = []
    for name in rng.permutation(23)[: 2 * n].reshape(n, 2):
        sides = [tuple(int(t) for t in (*rest[:2], x, *rest[3:])) for x in name]
        names = (f"a{name[0]}", f"b{name[1]}")
        made.append(Pair(sides[0], sides[1], {"NAME": 2, "end": length - 1}, ("", ""), names))
    return made


def read_at(model: Model, token: str, pairs: list[Pair]) -> list[tuple[np.ndarray, np.ndarray]]:
    """By layer what heads read behind the norm, gain and bias included: of clean prompts, of corrupt ones alone."""
    seen, rows = set(), ([], [])
    role = "attn_normed" if model.spec.final_norm else "attn_in"
    for side, out in enumerate(rows):
        for pair in pairs:
            ids = (pair.clean, pair.corrupt)[side]
            run = captured(Decoder(model.weights), np.array([ids]))
            for t in range(1, len(ids)) if token == "all" else [2]:
                if ids[: t + 1] not in seen:
                    seen.add(ids[: t + 1])
                    out.append([run[f"L{layer}.{role}"][0, t] for layer in range(2)])
    clean, other = (np.array(side).swapaxes(0, 1) for side in rows)
    return list(zip(clean, other, strict=True))


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - slope * x - intercept
    return float(slope), float(1 - rest @ rest / np.sum((y - y.mean()) ** 2))


@pytest.mark.identity("OP-12")
@NORMS
@pytest.mark.parametrize("token", ["all", "NAME"])
def test_the_coefficient_of_the_data_is_the_slope_of_regression(norm: Norm | None, token: str) -> None:
    """Readings here are of features behind the norm, whose gain and bias the inputs then have: another route."""
    model, pairs = covector.open(random_model(norm=norm, n_kv_heads=2)), prompts()
    one, two = tasks_of(model)
    table = couple(model, one, two, pairs=pairs, token=token, draws=19)
    inputs = read_at(model, token, pairs)
    for row in table.rows:
        a, b = (propagate(model, task, row["head"], normed=norm is not None).vector for task in (one, two))
        clean, other = inputs[int(row["head"][1])]
        centred = clean - clean.mean(axis=0)
        assert fitted(a, b, centred.T @ centred / len(clean)) == pytest.approx((row["data"], row["r2_data"]), rel=1e-7)
        assert least_squares(clean @ a, clean @ b) == pytest.approx((row["data"], row["r2_data"]), rel=1e-7)
        assert least_squares(other @ a, other @ b) == pytest.approx((row["slope"], row["r2_slope"]), rel=1e-7)
    # 6 names, then 4 positions behind each of 6; position 1 is common to all prompts, so corrupt ones add none.
    assert table.meta["inputs"] == ({"clean": 31, "other": 30} if token == "all" else {"clean": 6, "other": 6})


def test_a_head_that_looks_both_ways_has_every_position_of_every_prompt() -> None:
    model = covector.open(random_model(causal=False, norm=LAYER))
    table = couple(model, *tasks_of(model), pairs=prompts(), draws=19)
    assert table.meta["inputs"] == {"clean": 36, "other": 36}


def test_with_nothing_but_clean_prompts_there_is_no_other_slope_and_no_attribution() -> None:
    model = covector.open(random_model())
    pairs = [Pair(p.clean, p.clean, p.slots, p.texts, p.names) for p in prompts()]
    table = couple(model, *tasks_of(model), pairs=pairs, draws=19)
    for column in ("slope", "r2_slope", "ratio", "direct_first"):
        assert np.isnan(np.asarray(table[column])).all()
    assert np.isfinite(np.asarray(table["data"])).all()
    with pytest.raises(BadRequest, match="expected prompts that differ"):
        couple(model, *tasks_of(model), pairs=pairs, picture="attributions")


@pytest.mark.identity("OP-10")
@pytest.mark.parametrize("norm", [RMS_NORM, LAYER], ids=["rms", "layer"])
def test_the_interval_is_that_of_normed_inputs_which_read_the_standard_size(norm: Norm) -> None:
    """Inputs of length √d, even in all directions that the norm leaves, with a reading of ‖y1‖: drawn and measured."""
    model = covector.open(random_model(norm=norm))
    one, two = tasks_of(model)
    table, rng, draws = couple(model, one, two, draws=19), np.random.default_rng(4), 100_000
    for row in table.rows[:3]:
        a, b = (propagate(model, task, row["head"]).vector for task in (one, two))
        size = np.linalg.norm(a)
        free = rng.standard_normal((draws, 16))
        free -= free.mean(axis=1, keepdims=True) if norm is LAYER else 0
        free -= np.outer(free @ a, a) / size**2
        x = a / size + math.sqrt(16 - 1) * free / np.linalg.norm(free, axis=1, keepdims=True)
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 4, rtol=1e-12)
        np.testing.assert_allclose(x @ a, size, rtol=1e-10)
        seen = x @ b / size
        width = (row["high"] - row["low"]) / 2 / 1.959964
        assert (row["low"] + row["high"]) / 2 == pytest.approx(row["coupling"], abs=1e-12)
        # The sampled deviation has a relative error of about 1/√(2·draws); centring is worth a factor of √(15/14).
        assert width == pytest.approx(seen.std(), rel=4 / math.sqrt(2 * draws))
        assert row["least"] <= seen.min()
        assert seen.max() <= row["most"]
        p = b - b @ a / size**2 * a
        best = a / size + math.sqrt(15) * p / np.linalg.norm(p)
        assert row["most"] == pytest.approx(best @ b / size, rel=1e-10)


def test_without_a_norm_inputs_have_no_length_to_expect() -> None:
    model = covector.open(random_model(norm=None))
    table = couple(model, *tasks_of(model), draws=19)
    for name in ("low", "high", "least", "most"):
        assert np.isnan(np.asarray(table[name])).all()


def test_so_many_inputs_are_within_as_the_sphere_says_and_those_of_few_directions_are_not() -> None:
    rng, n, d = np.random.default_rng(5), 40_000, 64
    a, b = rng.standard_normal((2, 1, d))
    even = rng.standard_normal((n, d)) * rng.uniform(0.5, 2, (n, 1))
    # Inputs along the second feature's own part alone are far outside.
    along = np.outer(rng.standard_normal(n), b[0] - (a[0] @ b[0]) / (a[0] @ a[0]) * a[0])
    # Inputs that read much of the first feature have little left for the second.
    steep = rng.standard_normal((n, d))
    steep -= np.outer(steep @ a[0], a[0]) / (a[0] @ a[0])
    steep = steep / np.linalg.norm(steep, axis=1, keepdims=True) + 2 * a[0] / np.linalg.norm(a[0])
    for x, expected in ((even, 0.95), (steep, 0.95), (along, None)):
        values = np.stack([x @ a[0], x @ b[0]])[None]
        seen = Readings(values, np.sum(x * x, axis=1)[None], ("",) * n)
        (share,) = within([seen], 0, 1, np.stack([a, b]), [d])
        # A coordinate of a sphere of 63 dimensions is beyond 1.96 deviations less often than a normal one by 0.001.
        assert share == pytest.approx(expected, abs=0.006) if expected else share < 0.01


def test_tasks_that_are_one_up_to_a_factor_have_that_factor_everywhere() -> None:
    model, pairs = covector.open(random_model()), prompts()
    one = Observable({"token 3": 1.0, "token 7": -1.0}, model)
    two = Observable({"token 3": -2.5, "token 7": 2.5}, model)
    table = couple(model, one, two, pairs=pairs, draws=19)
    for name in ("coupling", "low", "high", "data", "slope"):
        np.testing.assert_allclose(np.asarray(table[name]), -2.5, rtol=1e-6)
    kept = np.asarray(table["ratio"])[np.isfinite(np.asarray(table["ratio"]))]
    np.testing.assert_allclose(kept, -2.5, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(table["within"]), 1)


def test_the_ratio_is_that_of_the_shares_where_the_first_is_not_next_to_nothing() -> None:
    model, pairs = covector.open(random_model(seed=3)), prompts(seed=2)
    one, two = tasks_of(model)
    table = couple(model, one, two, pairs=pairs, draws=19)
    first, second = ({r["component"]: r["direct"] for r in shares(model, t, pairs).rows} for t in (one, two))
    largest = max(abs(v) for name, v in first.items() if "H" in name)
    kept = []
    for row in table.rows:
        head = row["head"]
        assert (row["direct_first"], row["direct_second"]) == pytest.approx((first[head], second[head]), rel=1e-12)
        if abs(first[head]) >= 0.05 * largest:
            assert row["ratio"] == pytest.approx(second[head] / first[head], rel=1e-12)
            kept.append((row["coupling"], row["ratio"]))
        else:
            assert row["ratio"] is None
    assert len(kept) > 2
    found, (x, y) = table.meta["agreements"]["coupling_ratio"], np.array(kept).T
    assert (found["kind"], found["n"]) == ("accounting", len(kept))
    assert found["slope"] == pytest.approx(x @ y / (x @ x), rel=1e-10)
    assert found["r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-10)
    assert {name: a["kind"] for name, a in table.meta["agreements"].items()} == {
        "coupling_slope": "prediction", "data_slope": "fit", "coupling_ratio": "accounting",
    }  # fmt: skip
    for word in ("(prediction)", "(fit)", "(accounting)"):
        assert word in table.says


def test_three_tasks_are_three_tables_of_two() -> None:
    model, pairs = covector.open(random_model(norm=LAYER)), prompts()
    tasks = tasks_of(model, 3)
    every = couple(model, *tasks, pairs=pairs, draws=400)
    assert len(every.rows) == 3 * 8
    for i, j in ((0, 1), (0, 2), (1, 2)):
        alone = {r["head"]: r for r in couple(model, tasks[i], tasks[j], pairs=pairs, draws=400).rows}
        mine = [row for row in every.rows if row["tasks"] == f"{i + 1}·{j + 1}"]
        assert [row["head"] for row in mine] == list(dict.fromkeys(row["head"] for row in every.rows))
        for row in mine:
            two = alone[row["head"]]
            for name in ("coupling", "back", "cos", "low", "data", "slope", "r2_slope", "within", "direct_second"):
                assert row[name] == pytest.approx(two[name], rel=1e-10), name
            assert row["ratio"] == (None if two["ratio"] is None else pytest.approx(two["ratio"], rel=1e-10))
            # Two sets of 400 draws: binomial errors of both, four times.
            assert row["p"] == pytest.approx(two["p"], abs=4 * math.sqrt(2 * (two["p"] * (1 - two["p"]) + 0.003) / 400))
            assert row["p_max"] >= two["p_max"] - 4 * math.sqrt(2 * 0.25 / 400)
    assert every.rows[0]["head"] == every.rows[2]["head"]


def test_random_read_outs_are_as_alike_as_the_tasks_and_even_otherwise() -> None:
    rng, draws = np.random.default_rng(0), 4000
    rows = rng.standard_normal((3, 12)) + 1.5 * rng.standard_normal(12)
    rows -= rows.mean(axis=1, keepdims=True)
    rows = np.concatenate([rows, -rows[:1]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = random_alike(Sphere(12, True), rows, draws, 0)
    np.testing.assert_allclose(
        found @ found.transpose(0, 2, 1), np.broadcast_to(rows @ rows.T, (draws, 4, 4)), atol=1e-9
    )
    np.testing.assert_allclose(found.sum(axis=2), 0, atol=1e-9)
    for row in found.swapaxes(0, 1):
        # Each entry of E[x xᵀ] = P/11 has a deviation of about 1/11 per draw at most.
        np.testing.assert_allclose(row.T @ row / draws, (np.eye(12) - 1 / 12) / 11, atol=5 / 11 / math.sqrt(draws))


def test_two_tasks_have_the_draws_of_shared_paths() -> None:
    rows = np.array([[1.0, 0, 0, 0, 0], [0.6, 0.8, 0, 0, 0]])
    found = random_alike(Sphere(5, False), rows, 50, 7)
    np.testing.assert_allclose(found, np.stack(random_pairs(Sphere(5, False), 0.6, 50, 7), axis=1), atol=1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_random_tasks_are_beyond_chance_no_more_often_than_promised(n: int) -> None:
    """p_max below 5 % anywhere in 5 % of random models and tasks, two at a time or three."""
    trials, hits = 60, 0
    for seed in range(trials):
        model = covector.open(random_model(seed=seed, d_mlp=0, norm=RMS_NORM))
        labels = np.random.default_rng(seed).permutation(23)[: 2 * n].reshape(n, 2)
        tasks = [Observable({f"token {a}": 1.0, f"token {b}": -1.0}, model) for a, b in labels]
        hits += min(couple(model, *tasks, draws=99, seed=seed)["p_max"]) < 0.05
    assert hits / trials <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)


def test_of_two_features_it_is_their_coupling() -> None:
    model = covector.open(random_model())
    f, g = (propagate(model, task, "L1H2") for task in tasks_of(model))
    assert covector.couple(f, g) == coupling(f, g)
    assert covector.couple(f, g).coefficient == pytest.approx(f.vector @ g.vector / (f.vector @ f.vector), rel=1e-13)
    elsewhere = propagate(model, tasks_of(model)[0], "L0H0")
    with pytest.raises(BadRequest, match="two features of one space"):
        covector.couple(f, elsewhere)
    for mixed in ((f, "token 3"), (model, f), (f, g, tasks_of(model)[0])):
        with pytest.raises(BadRequest, match=r"couple\(feature, feature\), or couple\(model, task, task"):
            covector.couple(*mixed)
    with pytest.raises(BadRequest, match="at least two tasks, got one"):
        covector.couple(model, tasks_of(model)[0])


def test_pictures() -> None:
    model, pairs = covector.open(random_model(seed=3)), prompts()
    two, three = tasks_of(model), tasks_of(model, 3)
    grid = couple(model, *three, draws=19).picture(None)
    assert isinstance(grid, Grid)
    assert grid.values.shape == (3 * 2, 4)
    table = couple(model, *two, pairs=pairs, draws=19)
    points = table.picture(table)
    assert isinstance(points, Scatter)
    assert (np.polyfit(points.x[:31], points.y[:31], 1)[0], len(points.x)) == (
        pytest.approx(table.rows[0]["data"], rel=1e-9), 61
    )  # fmt: skip
    ratios = couple(model, *two, pairs=pairs, draws=19, picture="attributions")
    points = ratios.picture(ratios)
    kept = {r["head"]: (r["coupling"], r["ratio"]) for r in ratios.rows if r["ratio"] is not None}
    assert list(points.labels) == sorted(kept)
    np.testing.assert_allclose(np.column_stack([points.x, points.y]), [kept[name] for name in points.labels])
    for words, told in (({"picture": "readings"}, "shows prompts"), ({"picture": "x"}, "expected auto, heads")):
        with pytest.raises(BadRequest, match=told):
            couple(model, *two, **words)


def test_refusals() -> None:
    model = covector.open(random_model())
    with pytest.raises(BadRequest, match="expected frame raw, got folded"):
        couple(model, *tasks_of(model), frame="folded", pairs=prompts())
    with pytest.raises(BadRequest, match=r"at least three different inputs .* got 2 at 'NAME'"):
        couple(model, *tasks_of(model), pairs=prompts(n=2), token="NAME")
    with pytest.raises(BadRequest, match="expected a slot among"):
        couple(model, *tasks_of(model), pairs=prompts(), token="WHO")
