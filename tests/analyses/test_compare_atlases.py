"""Two atlases compared: the same is 1, unrelated ones are chance, and what was turned by hand is named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.stats import binomtest

import covector
from covector.analyses.compare_atlases import LEVEL, nearest_dyads
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from covector.io.atlas import Atlas, write_manifest
from synthetic_atlas import built, frame, synthetic

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
    assert table["turn"].max() < 1e-3  # the same bits
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
    assert first["turn"] == pytest.approx(30, abs=0.06)
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
    assert row["turn"] < 0.06
    # Nor where it is the second atlas that leaves it open.
    table = covector.compare_atlases(base, Atlas(tmp_path / "noisy.atlas"))
    assert max(r["turn"] for r in table.rows if (r["site"], r["side"]) == ("L2H1.ov", "read")) < 0.06


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


def off_one(rows: np.ndarray) -> np.ndarray:
    """Orthonormal rows without a part along 1, near the given ones."""
    return np.linalg.qr((rows - rows.mean(axis=1, keepdims=True)).T)[0].T


def asked(atlas: Atlas, **changes: dict) -> Atlas:
    """The same atlas with other entries in parts of its manifest."""
    values = {k: v for k, v in atlas.manifest.items() if k != "format"}
    write_manifest(atlas.folder, values | {k: values[k] | v for k, v in changes.items()})
    return Atlas(atlas.folder)


@pytest.mark.parametrize("degrees", [0.2, 1.0])
def test_a_small_turn_is_a_turn(base: Atlas, tmp_path: Path, degrees: float) -> None:
    """Rows of float16 keep angles to 2⁻¹¹ each; a turn by a fifth of a degree is eight times that."""
    angle = np.radians(degrees)

    def turn(table: dict, vectors: np.ndarray, rng: np.random.Generator) -> None:
        rows = rows_of(table, "L3H3.qk", "key")
        beside = np.linalg.qr(np.concatenate([vectors[rows], rng.standard_normal((8, 32))]).T)[0].T[8:]
        vectors[rows] = np.cos(angle) * vectors[rows] + np.sin(angle) * beside

    table = covector.compare_atlases(base, changed(tmp_path / "turned.atlas", turn))
    first = table.rows[0]
    assert (first["site"], first["side"]) == ("L3H3.qk", "key")
    assert first["turn"] == pytest.approx(degrees, abs=0.06)
    assert first["nearest"] == pytest.approx(np.cos(angle), abs=np.sin(angle) * 1e-3)
    assert f"Turned most: L3H3.qk key (mean |cos| 0.{'9999' if degrees < 1 else '9998'}" in table.says


def test_the_largest_turn_by_chance_is_that_of_as_many_unrelated_directions(base: Atlas, tmp_path: Path) -> None:
    table = covector.compare_atlases(base, synthetic(tmp_path / "other.atlas", seed=1))
    rng = np.random.default_rng(7)
    for kind, r in (("ov", 8), ("mlp.in", 32)):
        best = [np.abs(frame(rng, 32, r) @ frame(rng, 32, r).T).max(axis=1) for _ in range(1500)]
        row = next(row for row in table.rows if row["kind"] == kind)
        largest = np.degrees(np.arccos(np.min(best, axis=1)))
        # Medians of 1,500: known to 0.15°. The dependence of orthonormal rows, which the level leaves out, is 0.3°.
        assert row["turn_chance"] == pytest.approx(np.median(largest), abs=0.6)
        assert row["median_chance"] == pytest.approx(np.median(best), abs=0.004)
    turned = [r["turn"] > r["turn_chance"] for r in table.rows]
    assert binomtest(sum(turned), len(turned), 0.5).pvalue > 0.001


def test_unrelated_atlases_of_one_direction_a_place_do_not_agree(tmp_path: Path) -> None:
    """Of 45 places one or two have their only direction found by chance: no place stands out by that."""
    one = {"d_head": 1, "kinds": ("ov", "qk"), "layers": 4, "heads": 4}
    a, b = (synthetic(tmp_path / f"{seed}.atlas", seed=seed, **one) for seed in (0, 1))
    table = covector.compare_atlases(a, b)
    assert 0 < table["found"].sum() < 10
    assert "No place agrees" in table.says


def test_one_place_that_agrees_among_many_is_told(base: Atlas, tmp_path: Path) -> None:
    def keep(table: dict, rng: np.random.Generator) -> None:
        rows = rows_of(table, "L1H1.ov", "write")
        table["vectors"][rows] = base.vectors[rows]

    table = covector.compare_atlases(base, synthetic(tmp_path / "kept.atlas", keep, seed=1))
    assert "Turned most" in table.says
    assert table.rows[-1]["site"] == "L1H1.ov"


def test_directions_without_a_part_along_1_are_compared_in_one_dimension_less(tmp_path: Path) -> None:
    def centre(table: dict, rng: np.random.Generator) -> None:
        for site, side in dict.fromkeys(zip(table["site"], table["side"], strict=True)):
            rows = rows_of(table, site, side)[:31]
            table["vectors"][rows] = off_one(table["vectors"][rows])

    # 31 of the 32 directions of a whole space have no part along 1: --rank 31 keeps these.
    a, b = (synthetic(tmp_path / f"{seed}.atlas", centre, seed=seed, d_head=8) for seed in (0, 1))
    row = next(r for r in covector.compare_atlases(a, b).rows if r["kind"] == "ov")
    assert row["shared_chance"] == pytest.approx(8 / 31)
    rng = np.random.default_rng(4)
    best = [np.abs(frame(rng, 31, 8) @ frame(rng, 31, 8).T).max(axis=1) for _ in range(4000)]
    # 32,000 values of spread .09, nearly independent: .0005; one dimension more would be .005 less.
    assert row["nearest_chance"] == pytest.approx(np.mean(best), abs=0.002)
    whole = next(r for r in covector.compare_atlases(a, b).rows if r["kind"] == "mlp.in")
    assert whole["shared_chance"] == 1, "the 32nd has a part along 1"


def test_an_atlas_that_keeps_fewer_directions_is_compared_with_as_many(tmp_path: Path) -> None:
    model = random_model(seed=2, n_layers=1, d_model=32, d_head=8, n_vocab=60)
    whole = built(model, tmp_path / "whole.atlas", Options(draws=100, scores=False))
    cut = built(model, tmp_path / "cut.atlas", Options(draws=100, scores=False, rank=3))
    table = covector.compare_atlases(whole, cut)
    np.testing.assert_array_equal(table["directions"], 3)
    np.testing.assert_allclose(table["agreement"], 1, atol=STORED)
    assert "No place turned" in table.says
    np.testing.assert_allclose(covector.compare_atlases(cut, whole)["agreement"], 1, atol=STORED)
    # A place that has no more directions, whoever asked for more, has lost the others.
    lost = covector.compare_atlases(whole, asked(cut, options={"rank": None}))
    assert lost["agreement"].max() < 0.7


def test_read_directions_without_their_bias_share_what_their_spans_share(base: Atlas, tmp_path: Path) -> None:
    """Rows of a frame with biases are not orthonormal; the share in common is that of their principal angles."""
    span: dict[str, np.ndarray] = {}

    def skew(name: str) -> Callable[[dict, np.ndarray, np.random.Generator], None]:
        def turned(table: dict, vectors: np.ndarray, rng: np.random.Generator) -> None:
            rows = rows_of(table, "L0H2.ov", "read")
            mixed = (np.eye(8) + 0.35 * np.random.default_rng(len(name)).standard_normal((8, 8))) @ vectors[rows]
            if name == "other":
                mixed[:2] = frame(rng, 32, 2)
            vectors[rows] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
            span[name] = vectors[rows].copy()

        return turned

    a, b = (changed(tmp_path / f"{name}.atlas", skew(name)) for name in ("one", "other"))
    a, b = (asked(x, meta={"frame": "folded+bias"}) for x in (a, b))
    row = next(r for r in covector.compare_atlases(a, b).rows if (r["site"], r["side"]) == ("L0H2.ov", "read"))
    cosines = np.cos(subspace_angles(span["one"].T, span["other"].T))
    assert row["shared"] == pytest.approx(np.mean(cosines**2), abs=5 * STORED)
    assert row["shared"] < 0.95
