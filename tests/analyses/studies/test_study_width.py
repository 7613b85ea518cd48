"""Finds against width, by ζ and by the raw cosine."""

import numpy as np
import pytest
from scipy import stats

from covector.analyses.studies.width import width
from covector.errors import BadRequest
from synthetic_atlas import synthetic

LABELS = 300


def haar_tail(cos, d):
    return stats.beta.sf(np.square(cos), 0.5, (d - 1) / 2)


def best_of(labels: int, share: float = 0.0):
    """Best cosines of random directions with `labels` far-apart vectors, and a share that has ζ = 7 at any width."""

    def change(columns, rng):
        d = columns["vectors"].shape[1]
        n = len(columns["cos"])
        cos = np.sqrt(stats.beta.isf(1 - rng.random(n) ** (1 / labels), 0.5, (d - 1) / 2))
        meant = rng.random(n) < share
        columns["cos"] = np.where(meant, 7 / np.sqrt(d), cos)
        columns["zeta"] = np.sqrt(d) * columns["cos"]
        columns["p_dir"] = np.minimum(1, labels * haar_tail(columns["cos"], d))

    return change


def made(tmp_path, shares=(0.0, 0.0, 0.0), widths=(64, 128, 256), seed=0, layers=6, heads=4):
    return [
        synthetic(tmp_path / f"{seed}.{d}", best_of(LABELS, s), d=d, d_head=8, layers=layers, heads=heads,
                  kinds=("ov",), seed=seed + d, name=f"m{d}") for d, s in zip(widths, shares, strict=True)
    ]  # fmt: skip


def test_a_raw_cosine_finds_less_in_wider_models_of_nothing_while_zeta_stays_at_chance(tmp_path):
    table = width(made(tmp_path))
    by_cosine, by_zeta = np.asarray(table["by_cosine"]), np.asarray(table["by_zeta"])
    assert by_cosine[0] == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 384))
    assert by_cosine[1] < by_cosine[0] / 2
    assert by_zeta == pytest.approx(np.full(3, 0.049), abs=4 * np.sqrt(0.05 * 0.95 / 384))
    slopes = table.meta["slopes"]
    assert slopes["by_zeta"]["low"] < 0 < slopes["by_zeta"]["high"]
    assert slopes["by_cosine"]["value"] < -0.01
    assert "does not change beyond its interval" in table.says


def test_directions_as_good_at_every_width_are_lost_to_a_raw_cosine(tmp_path):
    """Half of them with ζ = 7: cosines .88, .62, .44, the last one below the threshold of the smallest width."""
    table = width(made(tmp_path, (0.5, 0.5, 0.5)))
    assert 0.45 < table.meta["cosine"] < 7 / np.sqrt(128)
    slopes = table.meta["slopes"]
    assert slopes["by_cosine"]["high"] < 0
    assert slopes["by_zeta"]["low"] < 0 < slopes["by_zeta"]["high"]


def test_the_raw_threshold_is_what_chance_reaches_in_one_of_twenty_at_the_smallest_width(tmp_path):
    table = width(made(tmp_path)[::-1])
    assert list(table["d"]) == [64, 128, 256]
    assert LABELS * haar_tail(table.meta["cosine"], 64) == pytest.approx(0.05, rel=1e-6)
    wanted = [LABELS * haar_tail(table.meta["cosine"], d) for d in (64, 128, 256)]
    assert np.asarray(table["cosine_chance"]) == pytest.approx(wanted, rel=1e-6)


def test_the_slope_is_that_of_the_shares_on_log2_of_the_width(tmp_path):
    table = width(made(tmp_path, shares=(0.6, 0.4, 0.2)))
    wanted = np.array(stats.linregress(np.log2([64, 128, 256]), np.asarray(table["by_zeta"])))
    slope = table.meta["slopes"]["by_zeta"]
    assert slope["value"] == pytest.approx(float(wanted[0]), rel=1e-9)
    assert slope["models_high"] - slope["value"] == pytest.approx(float(wanted[4]) * stats.t.ppf(0.975, 1), rel=1e-6)
    assert slope["low"] < -0.15 < slope["high"] + 0.1
    assert slope["high"] < 0


@pytest.mark.slow
def test_two_models_of_one_share_are_not_said_to_differ(tmp_path):
    """40 pairs of 3 sites and 16: 95 % are covered, less 3 standard errors (.034)."""
    covered = 0
    for seed in range(40):
        few = made(tmp_path / "few", (0.3,), (64,), seed=1000 * seed, layers=3, heads=1)
        many = made(tmp_path / "many", (0.3,), (128,), seed=1000 * seed, layers=4, heads=4)
        slope = width([*few, *many]).meta["slopes"]["by_zeta"]
        covered += slope["low"] <= 0 <= slope["high"]
    assert covered / 40 > 0.95 - 3 * 0.034


def test_one_width_or_a_kind_that_is_not_there_is_refused(tmp_path):
    atlases = made(tmp_path)
    with pytest.raises(BadRequest, match="expected atlases of two widths or more"):
        width(atlases[:1])
    with pytest.raises(BadRequest, match="expected directions of kind qk"):
        width(atlases, kinds="qk")
    with pytest.raises(BadRequest, match=r"expected a cosine in \(0, 1\)"):
        width(atlases, cosine=2.0)
