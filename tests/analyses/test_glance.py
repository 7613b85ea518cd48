"""A model at a glance: shares and chances per place, against counts made by hand and against uniform p values."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import covector
from covector.atlas.plan import Options
from covector.io import atlas as store
from covector.linalg.chance.random_matrix import spectrum_null


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> covector.Atlas:
    folder = tmp_path_factory.mktemp("glance") / "demo.atlas"
    built = covector.build_atlas("demo-lm", folder, options=Options(draws=500, scores=False))
    assert built is not None
    return built


def with_columns(atlas: covector.Atlas, folder: Path, **columns: np.ndarray) -> covector.Atlas:
    """The same atlas with other values in some columns of its index."""
    from pyarrow import array, parquet

    table = parquet.read_table(atlas.folder / store.INDEX)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, array(values))
    folder.mkdir()
    store.write_table(folder, store.INDEX, table)
    for name in (store.VECTORS, store.SITES, store.MANIFEST):
        (folder / name).write_bytes((atlas.folder / name).read_bytes())
    return covector.Atlas(folder)


def test_shares_and_counts_are_those_of_the_index(atlas: covector.Atlas) -> None:
    table = covector.glance(atlas)
    given = atlas.columns("site", "p_dir", "q_dir", "zeta")
    for row in table.rows:
        here = given["site"] == row["site"]
        assert row["directions"] == here.sum()
        assert row["near"] == pytest.approx(np.mean(given["p_dir"][here] < 0.05))
        assert row["found"] == np.sum(given["q_dir"][here] < 0.05)
        assert row["zeta"] == np.abs(given["zeta"][here]).max()
        # Šidák in its plain form; where p is small the two differ by rounding of 1 − p alone.
        assert row["p_best"] == pytest.approx(1 - (1 - given["p_dir"][here].min()) ** here.sum(), rel=1e-6, abs=1e-13)


def test_sizes_are_norms_of_the_map_itself(atlas: covector.Atlas) -> None:
    model = covector.open("demo-lm")
    rows = {r["site"]: r for r in covector.glance(atlas).rows}
    for site in ("L1H2.ov", "L0H3.qk", "L2.mlp.out", "embed"):
        M = np.asarray(model.map(site).dense(), dtype=np.float64)
        assert rows[site]["frobenius"] == pytest.approx(np.linalg.norm(M), rel=1e-6)
        assert rows[site]["sigma1"] == pytest.approx(np.linalg.norm(M, 2), rel=1e-6)
        assert rows[site]["stable"] == pytest.approx((np.linalg.norm(M) / np.linalg.norm(M, 2)) ** 2, rel=1e-6)


def test_under_chance_shares_stay_under_their_level_and_the_best_is_uniform(
    atlas: covector.Atlas, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    shares, best = [], []
    for i in range(30):
        p = rng.random(len(atlas))
        rows = covector.glance(with_columns(atlas, tmp_path / str(i), p_dir=p, q_dir=np.ones_like(p))).rows
        shares += [row["near"] <= row["near_level"] for row in rows]
        best += [row["p_best"] for row in rows]
    # 1,260 places: the share under the level is .95 but for the normal approximation of a binomial with n ≥ 64 (.02).
    assert 0.93 <= np.mean(shares) <= 0.985
    assert stats.kstest(best, "uniform").pvalue > 0.001


def test_a_place_with_planted_directions_is_named_first(atlas: covector.Atlas, tmp_path: Path) -> None:
    site = atlas.column("site")
    p = np.full(len(atlas), 0.5)
    p[np.flatnonzero(site == "L2H3.qk")[:5]] = 1e-12
    table = covector.glance(with_columns(atlas, tmp_path / "planted", p_dir=p, q_dir=p))
    assert "least likely directions: L2H3.qk" in table.says
    assert {r["site"]: r["found"] for r in table.rows}["L2H3.qk"] == 5


def test_without_scores_nothing_is_called_and_it_says_so(atlas: covector.Atlas) -> None:
    table = covector.glance(atlas.folder)
    assert np.isnan(np.asarray(table["called"], dtype=float)).all()
    assert "built without scores" in table.not_says


def test_the_picture_has_a_cell_per_place_of_a_layer(atlas: covector.Atlas) -> None:
    table = covector.glance(atlas)
    grid = table.drawn
    rows = {r["site"]: r["near"] for r in table.rows}
    assert grid.values[list(grid.row_labels).index("H2.ov"), list(grid.column_labels).index("L3")] == rows["L3H2.ov"]
    assert grid.values[list(grid.row_labels).index("mlp.in"), 1] == rows["L1.mlp.in"]


@pytest.mark.parametrize(("site", "inner"), [("L0H1.ov", 32), ("L0.mlp.in", None)])
def test_the_band_beside_a_spectrum_holds_95_percent_of_noise_of_its_norm(
    atlas: covector.Atlas, site: str, inner: int | None
) -> None:
    from covector.analyses.spectrum_band import spectrum_bands

    at = next(i for i, r in enumerate(atlas.sites) if r["site"] == site)
    record = atlas.sites[at]
    low, high = spectrum_bands(atlas, seed=1)[at]
    n, m = sorted((record["n"], record["m"]))
    fresh = spectrum_null(n, m, inner, draws=400, seed=99).values
    scaled = fresh * np.linalg.norm(record["sigma"]) / np.sqrt(np.mean(np.sum(fresh**2, axis=1)))
    inside = np.mean((low <= scaled) & (scaled <= high))
    # Levels from 200 draws cover .95 with an error of .015 each, correlated along the index.
    assert 0.92 <= inside <= 0.975


def test_an_index_that_names_a_place_the_atlas_lacks_is_refused_by_its_name(
    atlas: covector.Atlas, tmp_path: Path
) -> None:
    named = atlas.column("site").copy()
    named[5] = "L99H9.ov"
    with pytest.raises(covector.CovectorError, match=r"names the place 'L99H9\.ov'"):
        covector.glance(with_columns(atlas, tmp_path / "broken", site=named))
