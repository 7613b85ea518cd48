"""Principal components, against the covariance and the SVD of the centred rows."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.linalg import principal as module
from covector.linalg.principal import principal


def cloud(seed: int, n: int, d: int, offset: float = 3.0):
    """Rows of falling variance around a mean that is larger than any of them."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.linspace(2, 0.5, d) + offset * rng.standard_normal(d)


def test_components_are_those_of_the_covariance_and_of_the_centred_svd(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 17)  # several blocks, the last one short
    rows = cloud(0, 200, 9)
    found = principal(rows)
    gains, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[1:]
    assert found.variances == pytest.approx(gains**2 / 200, rel=1e-10)
    assert np.abs(np.sum(found.axes * axes, axis=1)) == pytest.approx(np.ones(9), abs=1e-10)
    assert found.axes @ np.cov(rows.T, bias=True) @ found.axes.T == pytest.approx(np.diag(found.variances), abs=1e-10)
    assert found.mean == pytest.approx(rows.mean(axis=0), abs=1e-12)
    assert (found.axes[np.arange(9), np.abs(found.axes).argmax(axis=1)] > 0).all()


def test_what_all_rows_have_in_common_changes_nothing_but_the_mean():
    rows, common = cloud(1, 60, 5), 10 * np.arange(5.0)
    one, other = principal(rows), principal(rows + common)
    assert other.axes == pytest.approx(one.axes, abs=1e-9)
    assert other.variances == pytest.approx(one.variances, rel=1e-9)
    assert other.mean - one.mean == pytest.approx(common, abs=1e-9)


def test_only_kept_rows_count_and_n_rows_have_one_component_less():
    rows = cloud(2, 40, 12).astype(np.float32)
    keep = np.arange(40) < 6
    rows[30] = np.nan
    found = principal(rows, keep)
    wanted = rows[:6].astype(np.float64)
    assert found.axes.shape == (5, 12)
    assert found.mean == pytest.approx(wanted.mean(axis=0), abs=1e-12)
    assert found.axes.T * found.variances @ found.axes == pytest.approx(np.cov(wanted.T, bias=True), abs=1e-9)


@pytest.mark.parametrize("rows", [np.ones((1, 3)), np.ones((5, 3)), np.full((4, 2), np.nan), np.ones((0, 3))])
def test_rows_that_do_not_vary_have_no_components(rows):
    with pytest.raises(BadRequest, match="expected two finite vectors or more that differ"):
        principal(rows)
