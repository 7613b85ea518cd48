"""Independent components of labels in the span of their leading principal components."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg.chance.haar import haar_frame
from covector.linalg.factorings import STEPS, recovery
from covector.linalg.independent import independent, random_turns, turned
from covector.linalg.principal import principal

pytest.importorskip("sklearn")


def sparse(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Codes of k independent sources, each in a fifth of n rows; variance 1 in the mean."""
    return (rng.random((n, k)) < 0.2) * rng.standard_normal((n, k)) * np.sqrt(5)


def test_sparse_sources_of_equal_variance_are_found_where_principal_components_mix_them() -> None:
    """Variances that are equal leave PCA any basis of the span; 4,000 rows fix the sources to about 1/√4000."""
    truth, rng = haar_frame(20, 6, 1), np.random.default_rng(2)
    labels = 3 + sparse(4000, 6, rng) @ truth + 0.05 * rng.standard_normal((4000, 20))
    found = principal(labels)
    ica = independent(labels, found, 6)
    assert ica.converged
    assert ica.steps < STEPS["ica"]
    assert recovery(ica.axes, truth).min() > 0.99
    assert recovery(found.axes[:6], truth).mean() < 0.85


def test_axes_read_the_sources_where_those_are_not_orthogonal() -> None:
    """The reading of s_j is orthogonal to every other source's direction: a row of the inverse of the mixing."""
    truth, rng = haar_frame(8, 4, 3), np.random.default_rng(4)
    mixing = truth + 0.6 * np.roll(truth, 1, axis=0)
    labels = sparse(6000, 4, rng) @ mixing
    reading = np.linalg.pinv(mixing).T
    reading /= np.linalg.norm(reading, axis=1, keepdims=True)
    assert recovery(independent(labels, principal(labels), 4).axes, reading).min() > 0.99


def test_what_every_basis_reads_of_labels_is_uncorrelated_and_the_unit_matrix_is_pca() -> None:
    rng = np.random.default_rng(5)
    labels = rng.standard_normal((300, 7)) * np.linspace(3, 1, 7)
    found = principal(labels)
    np.testing.assert_allclose(turned(found, np.eye(4)), found.axes[:4], atol=1e-12)
    for axes in (independent(labels, found, 4).axes, *random_turns(found, 4, 3, seed=1)):
        np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(axes @ found.axes[4:].T, 0, atol=1e-10)
        # scikit-learn makes its matrix orthogonal to about 1e-8.
        np.testing.assert_allclose(np.corrcoef(axes @ labels.T), np.eye(4), atol=1e-6)


def test_rows_that_are_not_kept_are_not_seen_and_the_seed_alone_decides() -> None:
    rng = np.random.default_rng(6)
    labels, keep = sparse(900, 5, rng), np.arange(900) % 3 > 0
    other = np.where(keep[:, None], labels, 100 * rng.standard_normal((900, 5)))
    one, same = (independent(x, principal(x, keep), 5, keep, seed=2) for x in (labels, other))
    np.testing.assert_array_equal(one.axes, same.axes)
    np.testing.assert_array_equal(one.axes, independent(labels, principal(labels, keep), 5, keep, seed=2).axes)


def test_an_ica_that_was_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, "ica", 2)
    labels = np.random.default_rng(7).standard_normal((500, 12))
    stopped = independent(labels, principal(labels), 12)
    assert not stopped.converged
    assert stopped.steps == 2


def test_one_axis_or_fewer_labels_than_axes_are_refused() -> None:
    labels = np.random.default_rng(8).standard_normal((9, 12))
    found = principal(labels)
    with pytest.raises(BadRequest, match="expected two axes or more and more labels than axes, got 1 axes"):
        independent(labels, found, 1)
    with pytest.raises(BadRequest, match="got 8 axes of 3 labels"):
        independent(labels, found, 8, np.arange(9) < 3)
