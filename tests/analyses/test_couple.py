"""Coupling of two features: theorem 2 by sampling its sphere, regressions by least squares, heads by dense algebra."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

import covector
from covector.analyses.couple import couple, coupling, fitted
from covector.analyses.propagate import propagate
from covector.arch.toy import RMS_NORM, random_model
from covector.errors import BadRequest
from covector.model.spec import Norm
from covector.study.observable import Observable

CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def two(d: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = 2 * rng.standard_normal(d)
    return a, 0.5 * a + 1.5 * rng.standard_normal(d)


@pytest.mark.identity("OP-10")
@pytest.mark.parametrize(("k", "s"), [(3.0, 4.0), (-2.0, 4.0), (0.0, 1.0)])
def test_theorem_2_on_its_sphere(k: float, s: float) -> None:
    a, b = two()
    found = coupling(a, b)
    mean, least, most, deviation = found.expected(k, s)
    draws, d = 100_000, len(a)
    # Uniform on {‖x‖ = s, x·a = k}: the foot of the plane plus a direction at random within it.
    free = np.random.default_rng(1).standard_normal((draws, d))
    free -= np.outer(free @ a, a) / (a @ a)
    radius = math.sqrt(s**2 - k**2 / (a @ a))
    x = k * a / (a @ a) + radius * free / np.linalg.norm(free, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), s, rtol=1e-12)
    np.testing.assert_allclose(x @ a, k, atol=1e-10)
    sample = x @ b
    assert sample.mean() == pytest.approx(mean, abs=4 * deviation / math.sqrt(draws))
    # The sampled deviation has a relative error of about 1/√(2·draws).
    assert sample.std() == pytest.approx(deviation, rel=4 / math.sqrt(draws))
    assert least <= sample.min()
    assert sample.max() <= most
    p = b - found.coefficient * a
    best = k * a / (a @ a) + radius * p / np.linalg.norm(p)
    assert best @ b == pytest.approx(most, rel=1e-12)
    assert (2 * k * a / (a @ a) - best) @ b == pytest.approx(least, rel=1e-12)


@pytest.mark.identity("OP-10")
def test_the_same_holds_for_gaussian_inputs_with_their_r_squared() -> None:
    a, b = two()
    found = coupling(a, b)
    x = 0.7 * np.random.default_rng(2).standard_normal((200_000, len(a)))
    slope, intercept = np.polyfit(x @ a, x @ b, 1)
    rest = np.std(x @ b - slope * (x @ a))
    assert slope == pytest.approx(found.coefficient, abs=4 * rest / np.std(x @ a) / math.sqrt(len(x)))
    assert intercept == pytest.approx(0, abs=4 * rest / math.sqrt(len(x)))
    assert rest == pytest.approx(0.7 * np.linalg.norm(b) * math.sqrt(1 - found.cosine**2), rel=0.01)
    assert 1 - rest**2 / np.var(x @ b) == pytest.approx(found.r2, abs=0.01)


def test_an_empty_sphere_is_refused() -> None:
    a, b = two()
    with pytest.raises(BadRequest, match="no input of length 1 reads 100 on a feature of length"):
        coupling(a, b).expected(100.0, 1.0)


@pytest.mark.identity("OP-11")
def test_coupling_algebra() -> None:
    a, b = two()
    there, back = coupling(a, b), coupling(b, a)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert there.coefficient == pytest.approx(a @ b / (a @ a), rel=1e-13)
    assert there.back == pytest.approx(back.coefficient, rel=1e-13)
    assert there.coefficient * back.coefficient == pytest.approx(cosine**2, rel=1e-13)
    assert (there.cosine, there.r2) == pytest.approx((cosine, cosine**2), rel=1e-13)
    assert coupling(a, a).coefficient == pytest.approx(1, rel=1e-14)
    assert coupling(2 * a, -3 * b).coefficient == pytest.approx(-1.5 * there.coefficient, rel=1e-13)
    assert coupling(-a, b).coefficient == pytest.approx(-there.coefficient, rel=1e-13)
    with pytest.raises(BadRequest, match="two features of one length, neither null"):
        coupling(a, np.zeros(9))


@pytest.mark.identity("OP-12")
def test_with_the_covariance_of_data_it_is_the_least_squares_slope() -> None:
    a, b = two()
    rng = np.random.default_rng(3)
    x = np.exp(rng.standard_normal((60, 9))) @ rng.standard_normal((9, 9)) + 5
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    for y1, y2 in ((a, b), (b, a)):
        slope, r2 = fitted(y1, y2, covariance)
        design = np.column_stack([x @ y1, np.ones(len(x))])
        (wanted, _), residual, *_ = np.linalg.lstsq(design, x @ y2, rcond=None)
        assert slope == pytest.approx(wanted, rel=1e-9)
        assert r2 == pytest.approx(1 - residual[0] / np.sum((x @ y2 - (x @ y2).mean()) ** 2), rel=1e-9)
    assert fitted(a, b, covariance)[0] * fitted(b, a, covariance)[0] == pytest.approx(fitted(a, b, covariance)[1])
    # The isotropic coefficient is the case of a covariance of equal entries.
    assert fitted(a, b, 7 * np.eye(9)) == pytest.approx((coupling(a, b).coefficient, coupling(a, b).r2), rel=1e-12)


@pytest.mark.parametrize("norm", [RMS_NORM, Norm("layer", 1e-5)], ids=["rms", "layer"])
def test_every_head_is_coupled_as_its_features_are(norm: Norm) -> None:
    model = covector.open(random_model(norm=norm))
    tasks = Observable({"token 3": 1.0, "token 7": -1.0}, model), Observable({"token 3": 1.0, "token 9": -1.0}, model)
    table = couple(model, *tasks)
    for row in table.rows:
        a, b = (propagate(model, o, row["head"]).vector for o in tasks)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert row["coupling"] == pytest.approx(a @ b / (a @ a), rel=1e-10)
        assert row["back"] == pytest.approx(a @ b / (b @ b), rel=1e-10)
        assert row["cos"] == pytest.approx(cosine, rel=1e-10)
        assert row["r2"] == pytest.approx(cosine**2, rel=1e-10)
        assert (row["norm_first"], row["norm_second"]) == pytest.approx((np.linalg.norm(a), np.linalg.norm(b)))
    np.testing.assert_allclose(np.sort(table["q"]), np.sort(stats.false_discovery_control(np.asarray(table["p"]))))
    shorter = np.minimum(np.asarray(table["norm_first"]), np.asarray(table["norm_second"]))
    assert np.all(np.diff(shorter) <= 0)


@pytest.mark.parametrize("norm", [None, RMS_NORM, Norm("layer", 1e-5)], ids=["none", "rms", "layer"])
def test_the_null_is_random_readouts_as_alike_through_the_same_head(norm: Norm | None) -> None:
    """p and chance against pairs of our own through dense maps; both sides have Monte-Carlo error."""
    weights, d, n, draws = random_model(norm=norm, n_kv_heads=2), 16, 20_000, 2000
    model = covector.open(weights)
    tasks = Observable({"token 3": 1.0, "token 7": -1.0}, model), Observable({"token 3": 1.0, "token 9": -1.0}, model)
    table = couple(model, *tasks, draws=draws)
    P = np.eye(d) - (1 / d if norm and norm.kind == "layer" else 0)
    final = weights["final_norm.gain"] if norm else np.ones(d)
    f, g = (P @ (final * (weights["W_U"][:, 3] - weights["W_U"][:, i])) for i in (7, 9))
    rho = f @ g / np.linalg.norm(f) / np.linalg.norm(g)
    assert table.meta["readouts_cos"] == pytest.approx(rho, rel=1e-10)
    rng = np.random.default_rng(5)
    A = rng.standard_normal((n, d)) @ P
    B = rng.standard_normal((n, d)) @ P
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    B -= np.sum(A * B, axis=1, keepdims=True) * A
    B = rho * A + np.sqrt(1 - rho**2) * B / np.linalg.norm(B, axis=1, keepdims=True)
    for row in table.rows:
        layer, head = int(row["head"][1]), int(row["head"][3])
        first = weights[f"L{layer}.attn_norm.gain"] if norm else np.ones(d)
        ov = weights[f"L{layer}.W_V"][head // 2] @ weights[f"L{layer}.W_O"][head]
        X, Y = ((D @ ov.T * first) @ P for D in (A, B))
        null = np.abs(np.sum(X * Y, axis=1)) / np.linalg.norm(X, axis=1) / np.linalg.norm(Y, axis=1)
        p = np.mean(null >= abs(row["cos"]))
        assert row["p"] == pytest.approx(p, abs=4 * np.sqrt((p * (1 - p) + 1e-3) * (1 / draws + 1 / n)))
        # Share of our draws beyond their 95 % level: binomial error of both samples, four times.
        assert np.mean(null > row["chance"]) == pytest.approx(0.05, abs=4 * np.sqrt(0.0475 * (1 / draws + 1 / n)))
        assert row["p_max"] >= row["p"] - 4 * np.sqrt(0.25 / draws)


@pytest.mark.slow
@pytest.mark.parametrize("shared_label", [False, True], ids=["disjoint", "one label in common"])
def test_random_tasks_are_alike_no_more_often_than_promised(shared_label: bool) -> None:
    """Random heads and labels: p < 5 % at 5 % of the heads, p_max < 5 % anywhere in 5 % of the pairs of tasks.

    A law of cosines in d_model dimensions gives p < 5 % at most heads: features lie in d_head of them.
    """
    trials, small, any_small, naive = 100, [], 0, []
    for seed in range(trials):
        model = covector.open(random_model(seed=seed, d_mlp=0, norm=Norm("layer", 1e-5)))
        a, b, c, e = np.random.default_rng(seed).choice(23, 4, replace=False)
        second = {f"token {a if shared_label else c}": 1.0, f"token {e}": -1.0}
        tasks = Observable({f"token {a}": 1.0, f"token {b}": -1.0}, model), Observable(second, model)
        table = couple(model, *tasks, draws=99, seed=seed)
        small.append(np.mean(np.asarray(table["p"]) < 0.05))
        any_small += min(table["p_max"]) < 0.05
        naive.append(np.mean(stats.beta.sf(np.asarray(table["cos"]) ** 2, 0.5, 7) < 0.05))
    # Heads of a pair of tasks depend on each other: the error of the mean is taken over the pairs.
    assert np.mean(small) == pytest.approx(0.05, abs=4 * np.std(small) / np.sqrt(trials))
    assert any_small / trials == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / trials))
    assert np.mean(naive) > 0.15


def test_a_planted_shared_direction_is_found_at_its_head_alone() -> None:
    """Head L1H2 reads both tasks along its first direction; their read-outs have little in common."""
    weights = random_model(norm=None, d_mlp=0, d_model=96, d_head=24, n_vocab=40)
    n, m = (weights["W_U"][:, i] - weights["W_U"][:, i + 1] for i in (3, 9))
    O = weights["L1.W_O"].copy()  # noqa: E741
    # All that the head writes of either read-out, it writes for what it reads first.
    both = np.array([n, m])
    O[2] -= O[2] @ both.T @ np.linalg.pinv(both.T)
    O[2, 0] += 5 * (n / (n @ n) + m / (m @ m))
    model = covector.open(dataclasses.replace(weights, arrays={**weights.arrays, "L1.W_O": O}))
    tasks = [Observable({f"token {i}": 1.0, f"token {i + 1}": -1.0}, model) for i in (3, 9)]
    table = couple(model, *tasks)
    rows = {row["head"]: row for row in table.rows}
    assert rows["L1H2"]["cos"] > 0.95
    assert [name for name, row in rows.items() if row["p_max"] < 0.05] == ["L1H2"]


def test_a_task_beside_itself_and_beside_its_opposite() -> None:
    model = covector.open(random_model())
    task = Observable({"token 3": 1.0, "token 7": -1.0}, model)
    same = couple(model, task, task)
    opposite = couple(model, task, Observable({"token 3": -2.0, "token 7": 2.0}, model))
    np.testing.assert_allclose(np.asarray(same["coupling"]), 1, **CLOSE)
    np.testing.assert_allclose(np.asarray(opposite["coupling"]), -2, **CLOSE)
    np.testing.assert_allclose(np.asarray(opposite["back"]), -0.5, **CLOSE)
    # Every pair of read-outs with cosine ±1 gives ±1 at every head: nothing is beyond what they share.
    for table, sign in ((same, 1), (opposite, -1)):
        np.testing.assert_allclose(np.asarray(table["cos"]), sign, **CLOSE)
        assert np.all(np.asarray(table["p"]) == 1)
        assert np.all(np.asarray(table["p_max"]) == 1)
        assert table.says.startswith(f"The two read-outs are one (cos {sign})")


def test_too_few_draws_are_refused_and_seeds_repeat() -> None:
    model = covector.open(random_model())
    tasks = Observable({"token 3": 1.0}, model), Observable({"token 7": 1.0}, model)
    with pytest.raises(BadRequest, match="draws of at least 19, got 18"):
        couple(model, *tasks, draws=18)
    one, two, other = (couple(model, *tasks, draws=50, seed=seed) for seed in (1, 1, 2))
    assert one.rows == two.rows
    assert [r["p"] for r in one.rows] != [r["p"] for r in other.rows]
