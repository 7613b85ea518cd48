"""What a picture is, before anything draws it."""

import math

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.render import Curve, Grid, Scatter
from covector.render.picture import DIVERGING, SEQUENTIAL, axis_name, colour, ink_on


def test_colours_run_equally_far_both_ways_from_the_centre():
    grid = Grid(np.array([[1.5, 0.0, math.nan]]), ["r"], list("abc"), centre=1.0)
    assert grid.limits == (0.0, 2.0)
    assert grid.levels[0, :2].tolist() == [0.5, -1.0]
    assert math.isnan(grid.levels[0, 2])


def test_without_a_centre_colours_run_from_least_to_greatest():
    grid = Grid(np.array([[1.0, 3.0, 2.0]]), ["r"], list("abc"), centre=None)
    assert grid.limits == (1.0, 3.0)
    assert grid.levels.tolist() == [[0.0, 1.0, 0.5]]


@pytest.mark.parametrize("centre", [0.0, None])
@pytest.mark.parametrize("value", [0.0, 2.0, math.nan])
def test_a_grid_of_one_value_has_a_scale(centre, value):
    grid = Grid(np.full((1, 2), value), ["r"], list("ab"), centre=centre)
    low, high = grid.limits
    assert low < high
    assert np.isfinite(grid.levels).all() == (not math.isnan(value))


def test_chance_is_counted_from_the_centre():
    grid = Grid(np.array([[1.05, 0.8, math.nan]]), ["r"], list("abc"), centre=1.0, chance=0.1)
    assert grid.is_chance.tolist() == [[True, False, False]]


def test_a_picture_does_not_share_memory_with_its_values():
    values = np.ones((1, 1))
    grid = Grid(values, ["r"], ["c"])
    values[0, 0] = 5
    assert grid.values[0, 0] == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Grid(np.ones((2, 2)), ["a"], ["b", "c"]), "1 × 2 labels came with values of shape (2, 2)"),
        (lambda: Grid(np.ones((1, 1)), ["a"], ["b"], cell_text=[["x", "y"]]), "came with texts for other cells"),
        (lambda: Grid(np.ones((1, 1)), ["a"], ["b"], value_name="cosine"), "without the level chance gives"),
        (lambda: Grid(np.ones((0, 1)), [], ["b"]), "0 × 1 labels"),
        (lambda: Curve(np.arange(3), np.ones((2, 3)), ["a"], "x", "y", "", ""), "1 curves over 3 points"),
        (lambda: Curve(np.arange(1), np.ones((1, 1)), ["a"], "x", "y", "", "cos"), "without the band chance gives"),
        (lambda: Scatter(np.ones(2), np.ones(3), "x", "y", "", ""), "came [2, 3]"),
        (lambda: Scatter(np.ones(2), np.ones(2), "x", "y", "", "", labels=["a"]), "came [2, 2, 1]"),
        (lambda: Scatter(np.ones(2), np.ones(2), "x", "y", "", "cos"), "without the band chance gives"),
    ],
)
def test_a_picture_that_does_not_fit_together_is_refused(make, reason):
    with pytest.raises(BadRequest) as error:
        make()
    assert reason in str(error.value)


def test_the_scale_is_exact_at_its_stops_and_clipped_beyond():
    assert [colour(level) for level in (-2, -1, -0.5, 0, 0.5, 1, 2)] == [
        DIVERGING[0],
        *DIVERGING,
        DIVERGING[-1],
    ]
    assert [colour(level, SEQUENTIAL) for level in (0, 0.5, 1)] == list(SEQUENTIAL)


@pytest.mark.parametrize("stops", [DIVERGING, SEQUENTIAL])
def test_ink_can_be_read_on_every_colour_of_the_scale(stops):
    def luminance(text):
        channels = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for level in np.linspace(-1, 1, 201).tolist():
        background = colour(level, stops)
        dark, light = sorted([luminance(background), luminance(ink_on(background))])
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # what WCAG (AA) asks of small text


def test_an_axis_says_its_unit():
    assert axis_name("gain", "σ") == "gain (σ)"
    assert axis_name("dyad", "") == "dyad"
    assert axis_name("cosine", "cos") == "cosine"
