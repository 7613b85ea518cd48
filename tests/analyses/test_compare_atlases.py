"""Two atlases compared: the same is 1, unrelated ones are chance, and what was turned by hand is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

import covector
from covector.analyses.compare_atlases import LEVEL, nearest_dyads
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from synthetic_atlas import frame, synthetic

# Rows of float16: a component is stored to 2⁻¹¹ of itself, a cosine of unit rows to about as much.
STORED = 1e-3


def changed(folder: Path, change: Callable[[dict, np.ndarray, np.ndarray], None]) -> Atlas:
    """The synthetic atlas of seed 0 with other vectors; `change` gets the columns, the vectors and random numbers."""
    return synthetic(folder, lambda table, rng: change(table, table["vectors"], rng))


def rows_of(table: dict, site: str, side: str) -> np.ndarray:
    return np.flatnonzero((table["site"] == site) & (table["side"] == side))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return synthetic(tmp_path_factory.mktemp("compare") / "base.atlas")


def test_an_atlas_is_one_with_itself(base: Atlas) -> None:
    table = covector.compare_atlases(base, base.folder)
    for name in ("nearest", "median", "shared", "agreement"):
        np.testing.assert_allclose(table[name], 1, atol=STORED)
    np.testing.assert_array_equal(table["found"], table["directions"])
    assert table["turn"].max() < 2  # arccos(1 − 5e-4) is 1.8°
    assert "No place turned" in table.says
    places = dict.fromkeys(zip(*base.columns("site", "side").values(), strict=True))
    assert list(zip(table["site"], table["side"], strict=True)) == list(places), "alike: in the order of the atlas"


def test_unrelated_atlases_are_chance(base: Atlas, tmp_path: Path) -> None:
    other = synthetic(tmp_path / "other.atlas", seed=1)
    table = covector.compare_atlases(base, other)
    # 45 places: means over them are known to a few thousandths, and each share of a subspace to 0.1.
    assert abs(np.mean(table["nearest"] - table["nearest_chance"])) < 0.01
    assert abs(np.mean(table["median"] - table["median_chance"])) < 0.01
    assert abs(np.mean(table["shared"] - table["shared_chance"])) < 0.02
    # The bound of the best of all is an upper one: not more than its level, and not far below.
    found, n = int(table["found"].sum()), int(table["directions"].sum())
    assert found / n > 0.01
    assert binomtest(found, n, LEVEL, alternative="greater").pvalue > 0.001
    assert "No place agrees" in table.says


def test_the_chance_of_the_nearest_is_that_of_random_frames(base: Atlas) -> None:
    table = covector.compare_atlases(base, base)
    rng = np.random.default_rng(5)
    r, d = 8, 32
    best = [np.abs(frame(rng, d, r) @ frame(rng, d, r).T).max(axis=1) for _ in range(3000)]
    level = table["nearest_chance"][list(table["kind"]).index("ov")]
    # 24,000 values of spread 0.09: the mean is known to 0.001 (rows of one draw are nearly independent).
    assert abs(np.mean(best) - level) < 0.003


def test_a_dyad_that_was_turned_is_named(base: Atlas, tmp_path: Path) -> None:
    def turn(table: dict, vectors: np.ndarray, rng: np.random.Generator) -> None:
        rows = rows_of(table, "L2H1.ov", "read")
        out = rng.standard_normal(32)
        out -= vectors[rows].T @ (vectors[rows] @ out)  # leaves the subspace, so that nothing else is nearer
        vectors[rows[3]] = np.cos(np.pi / 6) * vectors[rows[3]] + np.sin(np.pi / 6) * out / np.linalg.norm(out)

    table = covector.compare_atlases(changed(tmp_path / "turned.atlas", turn), base)
    first = table.rows[0]
    assert (first["site"], first["side"], first["turned"]) == ("L2H1.ov", "read", "L2H1.ov:3")
    assert first["turn"] == pytest.approx(30, abs=0.2)
    assert first["shared"] == pytest.approx((7 + np.cos(np.pi / 6) ** 2) / 8, abs=STORED)
    assert first["nearest"] == pytest.approx((7 + np.cos(np.pi / 6)) / 8, abs=STORED)
    assert "Turned most: L2H1.ov read" in table.says
    assert "L" not in table.says.split("read (")[1].split(")")[1], "no other place turned"


def test_dyads_turned_into_each_other_keep_their_subspace(base: Atlas, tmp_path: Path) -> None:
    def mix(table: dict, vectors: np.ndarray, rng: np.random.Generator) -> None:
        rows = rows_of(table, "L1H2.qk", "key")
        vectors[rows] = frame(rng, 8, 8) @ vectors[rows]

    first = covector.compare_atlases(base, changed(tmp_path / "mixed.atlas", mix)).rows[0]
    assert (first["site"], first["side"]) == ("L1H2.qk", "key")
    assert first["shared"] == pytest.approx(1, abs=STORED)
    assert first["nearest"] < 0.9


def test_signs_and_order_of_dyads_do_not_matter(base: Atlas, tmp_path: Path) -> None:
    def shuffle(table: dict, vectors: np.ndarray, rng: np.random.Generator) -> None:
        rows = rows_of(table, "L0H0.ov", "write")
        vectors[rows] = -vectors[rows[::-1]]

    other = changed(tmp_path / "shuffled.atlas", shuffle)
    table = covector.compare_atlases(base, other)
    np.testing.assert_allclose(table["nearest"], 1, atol=STORED)
    given = base.columns("site", "side")
    rows = np.flatnonzero((given["site"] == "L0H0.ov") & (given["side"] == "write"))
    found = nearest_dyads(base, other, "L0H0.ov", "write", 5)
    assert [(i, j) for i, j, _ in found] == [(rows[k], rows[7 - k]) for k in range(5)]


def test_noisy_dyads_do_not_name_the_largest_turn(base: Atlas, tmp_path: Path) -> None:
    def turn(table: dict, vectors: np.ndarray, rng: np.random.Generator) -> None:
        rows = rows_of(table, "L2H1.ov", "read")
        vectors[rows[2]] = frame(rng, 32, 1)[0]
        table["noisy"] = np.isin(np.arange(len(vectors)), rows[2:3])

    row = covector.compare_atlases(changed(tmp_path / "noisy.atlas", turn), base).rows[0]
    assert row["site"] == "L2H1.ov"
    assert row["turn"] < 2


def test_what_cannot_be_compared_is_refused(base: Atlas, tmp_path: Path) -> None:
    wide = synthetic(tmp_path / "wide.atlas", d=64)
    with pytest.raises(BadRequest, match=r"one space.*d_model 32 and .* 64"):
        covector.compare_atlases(base, wide)
    heads = synthetic(tmp_path / "heads.atlas", kinds=("ov",))
    embedding = synthetic(tmp_path / "embedding.atlas", kinds=("embed",))
    with pytest.raises(BadRequest, match="places in common"):
        covector.compare_atlases(heads, embedding)
    with pytest.raises(BadRequest, match="both atlases have"):
        nearest_dyads(base, heads, "L0.mlp.in", "read", 3)
    table = covector.compare_atlases(base, heads)
    assert table.meta["only_here"] == len(covector.compare_atlases(base, base)) - len(table)


def test_the_picture_has_a_cell_for_every_place_and_side(base: Atlas) -> None:
    table = covector.compare_atlases(base, base)
    grid = table.drawn
    assert np.isfinite(grid.values).sum() == sum(r["layer"] is not None for r in table.rows)
    assert grid.centre == 0.5, "places that are all alike are drawn alike"
