"""A model at a glance: shares and chances per place, against counts made by hand and against uniform p values."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import array, parquet
from scipy import stats

import covector
from changed_atlas import with_columns
from covector.analyses.glance import _level
from covector.analyses.spectrum_band import _centred, _shape, spectrum_bands
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.io import atlas as store
from covector.linalg import chance
from synthetic_atlas import built


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> covector.Atlas:
    folder = tmp_path_factory.mktemp("glance") / "demo.atlas"
    built = covector.build_atlas("demo-lm", folder, options=Options(draws=500, scores=False))
    assert built is not None
    return built


def test_shares_and_counts_are_those_of_the_index(atlas: covector.Atlas) -> None:
    table = covector.glance(atlas)
    given = atlas.columns("site", "p_dir", "q_dir", "zeta")
    for row in table.rows:
        here = given["site"] == row["site"]
        assert row["directions"] == here.sum()
        assert row["near"] == pytest.approx(np.mean(given["p_dir"][here] < 0.05))
        assert row["found"] == np.sum(given["q_dir"][here] < 0.05)
        assert row["zeta"] == np.abs(given["zeta"][here][np.argmin(given["p_dir"][here])])
        assert row["p_best"] == pytest.approx(min(1.0, given["p_dir"][here].min() * here.sum()), rel=1e-12)


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
    # 1,260 places of 64 and 128 directions, whose levels 6/64 and 11/128 are exceeded by .0403 and .0306: ± .0055.
    assert 1 - np.mean(shares) == pytest.approx(0.037, abs=0.017)
    # The union bound of independent p is 1 − (1 − x/n)ⁿ: uniform at x = .05 but for .0012, above it too large.
    assert np.mean(np.array(best) <= 0.05) == pytest.approx(0.049, abs=0.019)
    assert stats.kstest(best, "uniform", alternative="greater").pvalue > 0.001


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12, 64, 100, 128, 256, 1536])
def test_the_level_of_a_share_is_exceeded_by_5_percent_at_most_and_no_lower_one_is(n: int) -> None:
    from math import comb

    def exceeded(k: int) -> float:
        return 1 - sum(comb(n, i) * 0.05**i * 0.95 ** (n - i) for i in range(k + 1))

    k = round(float(_level(np.array([float(n)]))[0]) * n)
    assert exceeded(k) <= 0.05 + 1e-12
    assert k == 0 or exceeded(k - 1) > 0.05


def test_the_best_of_orthonormal_directions_is_no_likelier_than_it_says(atlas: covector.Atlas, tmp_path: Path) -> None:
    """One label and a whole basis of 64: Šidák's product would say p <= .5 of 54 % of the bases, and here of less."""
    rng = np.random.default_rng(8)
    best = []
    for i in range(12):
        p = np.ones(len(atlas))
        for site in dict.fromkeys(atlas.column("site")):
            at = np.flatnonzero(atlas.column("site") == site)
            e = rng.standard_normal(len(at))  # cosines of a basis with one label: a Haar direction
            p[at] = chance.tail(e / np.linalg.norm(e), len(at))
        best += [r["p_best"] for r in covector.glance(with_columns(atlas, tmp_path / f"ortho{i}", p_dir=p)).rows]
    # 504 bases: the share is known to .022.
    assert np.mean(np.array(best) <= 0.5) < 0.5


def test_a_place_with_nothing_to_compare_is_named_last_and_says_nothing(atlas: covector.Atlas, tmp_path: Path) -> None:
    site = atlas.column("site")
    p = np.full(len(atlas), 0.5)
    p[site == "embed"] = np.nan  # the first place of the atlas
    p[site == "pos"] = 1.0  # nothing is less near
    p[np.flatnonzero(site == "L2H3.qk")[:2]] = (0.0, 1e-9)  # below the least double
    q = np.where(np.isnan(p), np.nan, 1.0)
    table = covector.glance(with_columns(atlas, tmp_path / "blank", p_dir=p, q_dir=q))
    rows = {r["site"]: r for r in table.rows}
    assert "least likely directions: L2H3.qk (p " in table.says
    assert "embed" not in table.says
    assert rows["embed"]["directions"] == 0
    assert [rows["embed"][name] for name in ("near", "near_level", "p_best", "zeta")] == [None] * 4
    assert rows["pos"]["p_best"] == 1.0
    assert 0 < rows["L2H3.qk"]["p_best"] < 1e-300


def test_zeta_is_of_the_direction_that_p_best_is_of(atlas: covector.Atlas, tmp_path: Path) -> None:
    at = np.flatnonzero(atlas.column("site") == "L1H0.ov")
    p, zeta = np.full(len(atlas), 0.9), np.full(len(atlas), 1.0)
    p[at[3]], zeta[at[3]] = 1e-6, -4.0  # few labels: less near, and less likely
    p[at[5]], zeta[at[5]] = 1e-3, 6.0
    rows = {r["site"]: r for r in covector.glance(with_columns(atlas, tmp_path / "zeta", p_dir=p, zeta=zeta)).rows}
    assert rows["L1H0.ov"]["zeta"] == 4.0
    assert rows["L1H0.ov"]["p_best"] == pytest.approx(64e-6)


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


def inside(atlas: covector.Atlas, folder: Path, draw: Callable[[dict], np.ndarray], draws: int = 200) -> np.ndarray:
    """Whether each singular value lies in its band, where all places have drawn ones."""
    table = parquet.read_table(atlas.folder / store.SITES)
    drawn = array([list(draw(record)) for record in atlas.sites])
    folder.mkdir()
    store.write_table(folder, store.SITES, table.set_column(table.column_names.index("sigma"), "sigma", drawn))
    for name in (store.VECTORS, store.INDEX):
        (folder / name).write_bytes((atlas.folder / name).read_bytes())
    told = store.read_manifest(atlas.folder)
    store.write_manifest(folder, {name: told[name] for name in told if name not in ("format", "files")})
    noise = covector.Atlas(folder)
    bands = spectrum_bands(noise, draws=draws, seed=1)
    sigma = [np.array(record["sigma"]) for record in noise.sites]
    return np.concatenate([np.clip(S, low, high) == S for S, (low, high) in zip(sigma, bands, strict=True)])


def test_the_band_beside_a_spectrum_holds_95_percent_of_noise_of_its_own_norm(tmp_path: Path) -> None:
    """Thin heads, whose norm varies most: noise of that norm, not noise that has it in the mean."""
    model = random_model(seed=1, n_layers=4, d_model=64, d_head=4, n_vocab=60)
    atlas = built(model, tmp_path / "toy.atlas", Options(draws=100, scores=False, kinds=("ov",)))
    rng = np.random.default_rng(5)

    def product(record: dict) -> np.ndarray:
        A, B = rng.standard_normal((record["n"], 4)), rng.standard_normal((4, record["m"]))
        return np.linalg.svdvals(A @ B)[:4]

    held = np.concatenate([inside(atlas, tmp_path / str(i), product, draws=2000) for i in range(25)])
    # 400 products of 4 values: .008, and levels from 2,000 draws: .004. At the mean norm the band would hold 99 %.
    assert len(held) == 1600
    assert held.mean() == pytest.approx(0.95, abs=0.025)


def test_the_band_of_a_large_matrix_is_no_line(tmp_path: Path) -> None:
    """Beyond the twelve largest, draws of large matrices are the limit law itself: noise varies around it."""
    model = random_model(seed=1, n_layers=1, d_model=260, n_heads=1, d_head=4, n_vocab=60, d_mlp=400)
    atlas = built(model, tmp_path / "wide.atlas", Options(draws=100, scores=False, kinds=("mlp",), rank=2))
    rng = np.random.default_rng(6)

    def one(record: dict) -> np.ndarray:
        return np.linalg.svdvals(rng.standard_normal((record["n"], record["m"])))

    held = np.concatenate([inside(atlas, tmp_path / str(i), one) for i in range(3)])
    # 6 matrices of 260 values, neighbours of which move together: about 300 that are independent, .012.
    assert 0.92 <= held.mean() <= 0.99


def test_the_band_of_a_centred_side_has_a_dimension_less_and_a_thin_change_is_a_product(tmp_path: Path) -> None:
    atlas = covector.build_atlas(
        "demo-lm", tmp_path / "centred", options=Options(draws=100, scores=False, kinds=("mlp",), rank=2),
        frame="gauge_fixed",
    )  # fmt: skip
    assert atlas is not None
    centred = _centred(atlas)
    shapes = {record["site"]: _shape(record, centred) for record in atlas.sites}
    assert shapes["L0.mlp.in"] == shapes["L0.mlp.out"] == (127, 512, None)
    record = {"site": "L0.mlp.in", "kind": "mlp.in", "n": 128, "m": 512, "inner": 8}
    assert _shape(record, set()) == (128, 512, 8)


def test_an_index_that_names_a_place_the_atlas_lacks_is_refused_by_its_name(
    atlas: covector.Atlas, tmp_path: Path
) -> None:
    named = atlas.column("site").copy()
    named[5] = "L99H9.ov"
    with pytest.raises(covector.CovectorError, match=r"names the place 'L99H9\.ov'"):
        covector.glance(with_columns(atlas, tmp_path / "broken", site=named))
