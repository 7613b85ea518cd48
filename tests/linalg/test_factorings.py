"""Directions that several factorings find, and how planted ones are recovered."""

import sys

import numpy as np
import pytest

from covector.errors import BadRequest, MissingExtra
from covector.linalg.chance.haar import haar_directions, haar_frame
from covector.linalg.factorings import CONTROLS, METHODS, atoms, explained, recovery, sparse_toy

pytest.importorskip("sklearn")


def test_recovery_knows_neither_order_nor_sign() -> None:
    truth = haar_directions(12, 5, 0)
    rng = np.random.default_rng(0)
    order, signs = rng.permutation(12), rng.choice([-1.0, 1.0], (12, 1))
    np.testing.assert_allclose(recovery(signs * truth[order], truth), 1, atol=1e-12)


def test_one_direction_stands_for_one_feature_and_the_rest_get_nothing() -> None:
    """A greedy match would give feature 0 its .99 and leave .1 for feature 1; together .9 + .98 is more."""
    a, b = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    one = np.array([0.72, 0.69, 0.0]) / np.hypot(0.72, 0.69)
    two = np.array([0.9, 0.1, np.sqrt(1 - 0.82)])
    found = recovery(np.stack([one, two]), np.stack([a, b]))
    np.testing.assert_allclose(found, [0.9, 0.69 / np.hypot(0.72, 0.69)], atol=1e-12)
    assert recovery(a[None], np.stack([a, b])).tolist() == [1.0, 0.0]


def test_the_toy_has_the_features_and_the_frequency_that_it_says() -> None:
    data, features = sparse_toy(6, 9, rows=20_000, active=1.5, noise=0.0, seed=1)
    amounts = data @ np.linalg.pinv(features)
    np.testing.assert_allclose(amounts @ features, data, atol=1e-10)
    there = np.abs(amounts) > 1e-9
    # 20,000 rows of 6 features with probability ¼: the standard error of the mean number is .0075.
    assert there.sum(axis=1).mean() == pytest.approx(1.5, abs=0.03)
    assert amounts[there].min() > 0.499
    assert amounts[there].max() < 1.501


@pytest.mark.parametrize("method", METHODS + CONTROLS)
def test_atoms_are_unit_rows_that_depend_on_the_seed_alone(method: str) -> None:
    data, _ = sparse_toy(10, 6, rows=200, active=2.0, noise=0.01, seed=0)
    found = atoms(method, data, 5, 3)
    assert found.shape == (5, 6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(found, atoms(method, data, 5, 3))


def test_the_rotated_basis_spans_what_the_singular_one_spans() -> None:
    data, _ = sparse_toy(10, 6, rows=100, active=2.0, noise=0.01, seed=0)
    svd, rotated = atoms("svd", data, 3), atoms("rotated", data, 3, 1)
    np.testing.assert_allclose(rotated.T @ rotated, svd.T @ svd, atol=1e-10)
    assert recovery(rotated, svd).max() < 1 - 1e-3


def test_svd_recovers_orthogonal_features_of_different_strength_and_ica_those_of_equal_strength_too() -> None:
    truth = haar_frame(8, 4, 2)
    rng = np.random.default_rng(3)
    codes = rng.laplace(size=(4000, 4))
    assert recovery(atoms("svd", codes * [4, 3, 2, 1] @ truth, 4), truth).min() > 0.98
    skew = truth + 0.5 * np.roll(truth, 1, axis=0)
    skew /= np.linalg.norm(skew, axis=1, keepdims=True)
    assert recovery(atoms("ica", codes @ skew, 4), skew).min() > 0.98
    assert recovery(atoms("svd", codes @ skew, 4), skew).mean() < 0.9


def test_sparse_coding_recovers_more_features_than_dimensions() -> None:
    data, truth = sparse_toy(24, 12, rows=1500, active=2.0, noise=0.01, seed=5)
    found = recovery(atoms("sparse", data, 24), truth).mean()
    assert found > recovery(atoms("rows", data, 24), truth).mean() + 0.1
    assert found > recovery(atoms("random", data, 24), truth).mean() + 0.2
    assert recovery(atoms("svd", data, 24), truth).mean() < 0.5


def test_nmf_of_split_rows_finds_rays() -> None:
    """A feature and its opposite, never together, are two atoms of split rows, and one direction with a sign."""
    rng = np.random.default_rng(6)
    f = haar_directions(2, 7, 8)
    data = np.concatenate([np.outer(rng.uniform(0.5, 1.5, 300), sign * row) for row in f for sign in (1, -1)])
    found = atoms("nmf", data, 4)
    assert len(found) == 4
    signed = np.stack([f[0], -f[0], f[1], -f[1]]) @ found.T
    assert (signed.max(axis=1) > 0.999).all()
    assert len(set(signed.argmax(axis=1).tolist())) == 4


def test_the_share_explained_is_that_of_the_span() -> None:
    rng = np.random.default_rng(9)
    data = rng.standard_normal((50, 6))
    frame = haar_frame(6, 3, 1)
    mixed = rng.standard_normal((3, 3)) @ frame
    assert explained(data, mixed) == pytest.approx(np.sum((data @ frame.T) ** 2) / np.sum(data**2), rel=1e-10)


@pytest.mark.parametrize(("method", "number"), [("pca", 2), ("svd", 0)])
def test_wrong_requests_are_refused(method: str, number: int) -> None:
    with pytest.raises(BadRequest, match="expected a method"):
        atoms(method, np.ones((3, 2)), number)


def test_data_without_content_and_toys_without_features_are_refused() -> None:
    with pytest.raises(BadRequest, match="expected finite rows"):
        atoms("svd", np.zeros((3, 2)), 1)
    with pytest.raises(BadRequest, match="expected sizes >= 1"):
        sparse_toy(3, 4, rows=5, active=4.0, noise=0.0, seed=0)


def test_without_the_library_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert atoms("svd", np.eye(3), 2).shape == (2, 3)
    with pytest.raises(MissingExtra, match="pip install"):
        atoms("ica", np.eye(3), 2)
