"""Coupling of two features: theorem 2 by sampling its sphere, regressions by least squares, heads by dense algebra."""

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
    free = 15 if norm.kind == "layer" else 16
    for row in table.rows:
        a, b = (propagate(model, o, row["head"]).vector for o in tasks)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert row["coupling"] == pytest.approx(a @ b / (a @ a), rel=1e-10)
        assert row["back"] == pytest.approx(a @ b / (b @ b), rel=1e-10)
        assert row["cos"] == pytest.approx(cosine, rel=1e-10)
        assert row["r2"] == pytest.approx(cosine**2, rel=1e-10)
        assert (row["norm_first"], row["norm_second"]) == pytest.approx((np.linalg.norm(a), np.linalg.norm(b)))
        # cos² of two random directions of n dimensions ~ Beta(1/2, (n−1)/2).
        assert row["p"] == pytest.approx(stats.beta.sf(cosine**2, 0.5, (free - 1) / 2), rel=1e-8)
    np.testing.assert_allclose(np.sort(table["q"]), np.sort(stats.false_discovery_control(np.asarray(table["p"]))))
    shorter = np.minimum(np.asarray(table["norm_first"]), np.asarray(table["norm_second"]))
    assert np.all(np.diff(shorter) <= 0)


def test_a_task_beside_itself_and_beside_its_opposite() -> None:
    model = covector.open(random_model())
    task = Observable({"token 3": 1.0, "token 7": -1.0}, model)
    same = couple(model, task, task)
    opposite = couple(model, task, Observable({"token 3": -2.0, "token 7": 2.0}, model))
    np.testing.assert_allclose(np.asarray(same["coupling"]), 1, **CLOSE)
    np.testing.assert_allclose(np.asarray(opposite["coupling"]), -2, **CLOSE)
    np.testing.assert_allclose(np.asarray(opposite["back"]), -0.5, **CLOSE)
    assert same.says.startswith("At 8 of 8 heads the two tasks read the same direction beyond chance, at 0 opposite")
    assert opposite.says.startswith("At 0 of 8 heads the two tasks read the same direction beyond chance, at 8 oppo")
