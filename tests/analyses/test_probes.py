"""Probes beside features: solutions of their problems, found where planted, at chance where there is nothing."""

import numpy as np
import pytest

import covector
from covector.analyses.probes import fitted, probes, signed_square
from covector.arch.toy import random_model
from covector.errors import BadRequest
from covector.linalg.agreement import correlation, separation
from covector.linalg.probing import RIDGE, least_squares, logistic, mean_difference
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from covector.run.prompts import Pair
from covector.study.observable import Observable

D = 40


def planted(n: int, seed: int, strength: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows that differ along e₀, and values that are read there."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2, D))
    x[:, 0, 0] += strength / 2
    x[:, 1, 0] -= strength / 2
    return x, x[:, :, 0].copy()


def scores(f: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    rows, values = np.concatenate([x[:, 0], x[:, 1]]), np.concatenate([y[:, 0], y[:, 1]])
    return separation(rows @ f, np.arange(len(rows)) < len(x)), signed_square(correlation(rows @ f, values))


def test_least_squares_is_ridge_regression_in_the_rows_own_coordinates() -> None:
    """Independent: the d × d normal equations, with more dimensions than rows and with fewer."""
    rng = np.random.default_rng(0)
    for n in (10, 200):
        x, y = rng.standard_normal((n, D)) + 3, rng.standard_normal(n)
        c = x - x.mean(axis=0)
        penalty = RIDGE * np.sum(c * c) / n
        wanted = np.linalg.solve(c.T @ c + penalty * np.eye(D), c.T @ (y - y.mean()))
        np.testing.assert_allclose(least_squares(x, y > 0, y), wanted, rtol=1e-8, atol=1e-10)


def test_the_logistic_probe_stands_where_its_gradient_is_zero() -> None:
    """Stationarity in all d coordinates and the constant, for which the best is found by bisection."""
    rng = np.random.default_rng(1)
    x, positive = rng.standard_normal((60, D)) + 1, rng.random(60) < 0.4
    f = logistic(x, positive, np.zeros(60))
    c = x - x.mean(axis=0)
    scale = np.sqrt(np.mean(np.sum(c * c, axis=1)))
    low, high = -50.0, 50.0
    for _ in range(200):
        b = 0.5 * (low + high)
        p = 1 / (1 + np.exp(-(c @ f + b)))
        low, high = (b, high) if p.sum() < positive.sum() else (low, b)
    gradient = c.T @ (p - positive) / scale + RIDGE * 60 * f * scale
    assert np.abs(gradient).max() < 1e-4


def test_mean_difference_points_from_the_second_class_to_the_first() -> None:
    x, y = planted(200, 0)
    f = fitted("mean difference", x, y)
    # Mean of 200 per class: standard error of each coordinate .1.
    assert f[0] == pytest.approx(4, abs=0.5)
    assert np.abs(f[1:]).max() < 0.5
    rows = np.concatenate([x[:, 0], x[:, 1]])
    np.testing.assert_allclose(mean_difference(rows, np.arange(400) < 200, np.zeros(400)), f)


@pytest.mark.parametrize("name", ["mean difference", "least squares", "logistic"])
def test_probes_find_a_planted_direction_and_nothing_in_shuffled_labels(name: str) -> None:
    x, y = planted(60, 0)
    test = planted(200, 1)
    assert scores(fitted(name, x, y), *test)[0] > 0.95
    null = [scores(fitted(name, x, y, np.random.default_rng(s)), *test) for s in range(40)]
    auc, r2 = np.mean(null, axis=0)
    # Spread of the AUC of a shuffled fit about .25 (it has a share of the strong direction): error of 40 means .04.
    assert abs(auc - 0.5) < 0.16
    assert abs(r2) < 0.2


def everything_read_at_name() -> Model:
    """One head that attends evenly, no norms and no MLP: the answer is linear in what stands at NAME."""
    weights = random_model(n_layers=1, n_heads=1, d_model=24, d_mlp=0, norm=None, n_vocab=40)
    arrays = {name: np.array(weights[name]) for name in weights.names()}
    arrays["L0.W_Q"][:], arrays["L0.b_Q"][:] = 0, 0
    return covector.open(ArrayWeights(weights.spec, arrays))


def pairs_for(model: Model, n: int, seed: int) -> list[Pair]:
    """Prompts that differ at NAME alone; the answer of the clean one is the higher."""
    observable, rng, found = asked(model), np.random.default_rng(seed), []
    weights = model.weights
    f = weights["L0.W_V"][0] @ weights["L0.W_O"][0] @ observable.readout(model)
    read = np.asarray(weights["W_E"]) @ f
    rest = (1, 9, 9, 9, 2)
    for a, b in rng.integers(0, 40, (n, 2)):
        high, low = (int(a), int(b)) if read[a] > read[b] else (int(b), int(a))
        clean, corrupt = ((rest[0], i, *rest[1:]) for i in (high, low))
        found.append(Pair(clean, corrupt, {"NAME": 1, "end": 5}, ("", "")))
    return found


def asked(model: Model) -> Observable:
    return Observable({"token 3": 1, "token 5": -1}, model)


def test_where_the_path_carries_all_the_feature_needs_no_examples() -> None:
    model = everything_read_at_name()
    table = probes(model, asked(model), "L0H0@NAME", pairs_for(model, 12, 0), pairs_for(model, 20, 1), sizes=(1, 12))
    rows = {(row["method"], row["pairs"]): row for row in table.rows}
    for key in (("feature, no data", 0), ("feature", 1), ("feature", 12)):
        assert rows[key]["r2"] == pytest.approx(1, abs=1e-9)
    assert rows["least squares", 1]["r2"] < 0.7
    assert rows["least squares", 12]["r2"] > rows["least squares", 1]["r2"]
    assert abs(rows["shuffled labels", 12]["auc"] - 0.5) < 0.25
    assert table.meta["kind"] == "prediction"


def test_sizes_that_cannot_be_are_refused() -> None:
    model = everything_read_at_name()
    with pytest.raises(BadRequest, match="from 1 to 4"):
        probes(model, asked(model), "L0H0@NAME", pairs_for(model, 4, 0), pairs_for(model, 4, 1), sizes=(5,))
