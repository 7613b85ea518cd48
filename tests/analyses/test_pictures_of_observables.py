"""Pictures show the numbers of their tables: what they draw adds up to what the table says, places included."""

from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses.align import align
from covector.analyses.attend import attend
from covector.analyses.attribute import attribute
from covector.arch.toy import random_model
from covector.model.opened import Model
from covector.render import Curve, Grid, Scatter
from covector.run.prompts import Pair

PROMPT = Pair((3, 9, 4, 7, 2, 8), (3, 9, 4, 7, 2, 8), {"end": 5}, ("", ""))


@pytest.fixture(scope="module")
def model() -> Model:
    return covector.open(random_model())


def drawn(table: covector.Table) -> Grid | Curve | Scatter:
    assert callable(table.picture)
    found = table.picture(table)
    assert isinstance(found, Grid | Curve | Scatter)
    return found


@pytest.mark.parametrize("by", ["component", "token"])
def test_the_cells_of_an_answer_add_up_to_it(model: Model, by: str) -> None:
    table = attribute(model, "'token 3' - 'token 5'", PROMPT, by=by)
    grid = drawn(table)
    assert isinstance(grid, Grid)
    assert np.nansum(grid.values) == pytest.approx(table.meta["value"], rel=1e-9)


def test_a_component_stands_in_its_layer_and_column(model: Model) -> None:
    table = attribute(model, "'token 3' - 'token 5'", PROMPT)
    grid = drawn(table)
    assert isinstance(grid, Grid)
    rows = {row["part"]: row["logits"] for row in table.rows}
    cells = {(r, c): grid.values[i, j] for i, r in enumerate(grid.row_labels) for j, c in enumerate(grid.column_labels)}
    assert cells["L1", "H2"] == rows["L1H2"]
    assert cells["L0", "mlp"] == rows["L0.mlp"]
    assert cells["embed", "whole"] == rows["embed"]
    assert cells["biases", "whole"] == rows["biases"]
    assert list(grid.row_labels) == ["embed", "L0", "L1", "biases"]


def test_heads_by_tokens_sum_to_the_heads(model: Model) -> None:
    grid = drawn(attribute(model, "'token 3' - 'token 5'", PROMPT, by="head"))
    assert isinstance(grid, Grid)
    whole = {r["part"]: r["logits"] for r in attribute(model, "'token 3' - 'token 5'", PROMPT).rows}
    for name, row in zip(grid.row_labels, grid.values, strict=True):
        assert row.sum() == pytest.approx(whole[name], rel=1e-9, abs=1e-12)
    assert len(grid.column_labels) == 6
    assert np.all(np.diff(np.abs(grid.values).sum(axis=1)) <= 1e-12)


def test_the_lens_ends_at_the_answer(model: Model) -> None:
    table = attribute(model, "'token 3' - 'token 5'", PROMPT, by="lens")
    curve = drawn(table)
    assert isinstance(curve, Curve)
    assert curve.ys[0, -1] == pytest.approx(table.meta["value"], rel=1e-9)
    assert list(curve.x) == [0, 1, 2, 3, 4]  # the embeddings, and two sublayers of each of two blocks


def test_each_side_of_the_writers_adds_up_to_the_contrast(model: Model) -> None:
    table = attend(model, "L1H1", PROMPT, 2, by="writers")
    grid = drawn(table)
    assert isinstance(grid, Grid)
    np.testing.assert_allclose(np.nansum(grid.values, axis=0), table.meta["contrast"], rtol=1e-9)
    rows = list(grid.row_labels)
    assert rows.index("embed") < rows.index("L0H0") < rows.index("L0H1") < rows.index("L0.mlp")


def test_all_pairs_add_up_to_the_contrast_and_stand_where_they_belong(model: Model) -> None:
    table = attend(model, "L1H1", PROMPT, 2, by="pairs", top=10_000)
    grid = drawn(table)
    assert isinstance(grid, Grid)
    assert np.nansum(grid.values) == pytest.approx(table.meta["contrast"], rel=1e-9)
    first = table.rows[0]
    at = list(grid.row_labels).index(first["query"]), list(grid.column_labels).index(first["key"])
    assert grid.values[at] == first["contrast"]


def test_dyads_are_drawn_over_their_index_and_the_band_is_their_chance(model: Model) -> None:
    table = attend(model, "L1H1", PROMPT, 2)
    points = drawn(table)
    assert isinstance(points, Scatter)
    rows = {row["part"]: row for row in table.rows}
    for x, y, name in zip(points.x, points.y, points.labels or (), strict=True):
        row = rows[f"dyad {x:.0f}"]
        assert y == row["contrast"]
        assert (name != "") == (abs(y) > row["chance"])
        assert points.band == (-row["chance"], row["chance"])


def test_the_energy_of_a_feature_is_drawn_beside_that_of_random_read_outs(model: Model) -> None:
    table = align(model, "'token 3' - 'token 5'", "L1H2")
    curve = drawn(table)
    assert isinstance(curve, Curve)
    cos = {row["dyad"]: row["cos"] for row in table.rows}
    np.testing.assert_allclose(curve.ys[0], np.cumsum([cos[i] ** 2 for i in range(len(cos))]), rtol=1e-12)
    assert curve.ys[0, -1] == pytest.approx(1)
    assert curve.band is not None
    low, high = (np.asarray(level) for level in curve.band)
    assert np.all(low <= high)
    # 40 observables of random pairs of tokens, none of which the null has seen: 5 % lie outside, at most 6 of 40 with
    # probability .99 were they the null's own.
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(40):
        a, b = rng.choice(model.spec.n_vocab, 2, replace=False)
        own = drawn(align(model, f"'token {a}' - 'token {b}'", "L1H2", draws=19))
        assert isinstance(own, Curve)
        outside += not low[0] <= own.ys[0, 0] <= high[0]
    assert outside <= 6


@pytest.mark.parametrize("by", ["dyads", "tokens", "writers", "pairs", "keys"])
def test_every_split_is_drawn_to_a_file(model: Model, by: str, tmp_path: Path) -> None:
    table = attend(model, "L1H1", PROMPT, 2, by=by)
    table.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
