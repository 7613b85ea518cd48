"""Scores against the number of parameters."""

import numpy as np
import pytest

from covector.analyses.studies.size import size
from covector.errors import BadRequest
from synthetic_atlas import synthetic


def of_share(share: float, z: float = 0.0):
    """An atlas in which so many of the OV directions are near a label and coherent, evenly over sites."""

    def change(columns, rng):
        hit = (columns["dyad"] % 8) < round(8 * share)
        columns["p_dir"] = np.where(hit, 0.01, 0.9)
        columns["p_coherence"] = np.where(hit, 0.01, 0.9)
        columns["z_coherence"] = np.full(len(hit), z)

    return change


def test_slopes_are_per_tenfold_of_the_parameters(tmp_path):
    """Shares ¼, ½, ¾ at 10³, 10⁴, 10⁵: 25 points per tenfold, exactly; z falls by 2 each."""
    atlases = [synthetic(tmp_path / str(i), of_share(s, -2.0 * i)) for i, s in enumerate((0.25, 0.5, 0.75))]
    table = size(atlases, [1000, 10_000, 100_000])
    for name, wanted in (("near", 0.25), ("coherent", 0.25), ("z", -2.0)):
        assert table.meta["slopes"][name]["value"] == pytest.approx(wanted, abs=1e-9)
        assert table.meta["slopes"][name]["models_low"] == pytest.approx(wanted, abs=1e-6)
    assert "Over n = 3 models the share of coherent lists rises with size: +25.0 points" in table.says
    assert "the mean z of lists falls with size: -2.00 sd" in table.says
    assert "n = 3 models is small" in table.not_says
    assert list(table["parameters"]) == [1000, 10_000, 100_000]


def test_models_are_told_in_the_order_of_their_size_whatever_the_order_given(tmp_path):
    a, b = (synthetic(tmp_path / n, of_share(s), name=n) for n, s in (("a", 0.25), ("b", 0.5)))
    table = size([b, a], [500, 50])
    assert list(table["model"]) == ["a", "b"]
    assert table.meta["slopes"]["near"]["value"] == pytest.approx(0.25, abs=1e-9)
    assert "two models, which differ by +25.0 points" in table.says
    # Both are 32 wide: a study of width would refuse them.
    assert table.next == f"covector study kinds {b.folder}"


@pytest.mark.slow
def test_the_interval_over_models_holds_a_slope_of_nothing_at_the_nominal_rate(tmp_path):
    """200 sets of four models, scores as random as an atlas of nothing: misses within 3 standard errors of .05."""
    rng = np.random.default_rng(0)
    atlases = [synthetic(tmp_path / str(i), seed=i, kinds=("ov",), layers=3, heads=4) for i in range(24)]
    misses = 0
    for _ in range(200):
        chosen = rng.permutation(24)[:4]
        found = size([atlases[i] for i in chosen], [100, 1000, 10_000, 100_000]).meta["slopes"]["z"]
        misses += not found["models_low"] <= 0 <= found["models_high"]
    assert abs(misses / 200 - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 200)


def test_models_without_lists_count_by_single_labels_only(tmp_path):
    def without(columns, rng):
        columns["z_coherence"] = np.full(len(columns["dyad"]), np.nan)
        columns["p_coherence"] = np.full(len(columns["dyad"]), np.nan)

    atlases = [synthetic(tmp_path / "a", without), synthetic(tmp_path / "b"), synthetic(tmp_path / "c")]
    table = size(atlases, [10, 100, 1000])
    assert np.isnan(table["coherent"][0])
    assert np.isnan(table["z"][0])
    assert table["near"][0] == pytest.approx(0.05, abs=0.05)
    assert "Over n = 3 models the share near a label" in table.says
    assert "share of coherent lists is known of two models" in table.says


def test_wrong_requests_are_refused(tmp_path):
    atlas = synthetic(tmp_path / "a")
    with pytest.raises(BadRequest, match="of two models of different size or more"):
        size([atlas, atlas], [10, 10])
    with pytest.raises(BadRequest, match="of two models of different size or more"):
        size([atlas], [10, 20])
    with pytest.raises(BadRequest, match="expected directions of kind nothing"):
        size([atlas, atlas], [10, 20], kinds="nothing")


def test_models_of_one_site_have_no_interval_over_sites(tmp_path):
    """The embedding is one site: what other sites would show is not known, and nothing is said to fall or rise."""
    a, b = (synthetic(tmp_path / n, of_share(s), name=n) for n, s in (("a", 0.25), ("b", 0.5)))
    table = size([a, b], [50, 500], kinds="embed")
    slope = table.meta["slopes"]["near"]
    assert (slope["low"], slope["high"]) == (None, None)
    assert "too few sites in a model for an interval" in table.says
