"""Curves in an order (layers, steps) are coloured by it; those that stand out keep a colour of their own."""

import numpy as np
import pytest

from covector.errors import BadRequest
from covector.render.draw import _curve_styles
from covector.render.picture import ORDERED, Curve, colour
from covector.render.plot import figure


def curve(n: int, shades: list[float | None] | None, standing_out: int = 0) -> Curve:
    count = n + standing_out
    names = [f"L{i}" for i in range(count)]
    return Curve(np.arange(1, 6), np.ones((count, 5)), names, "index", "σ", "", "", True, (0.5, 0.5), shades=shades)


def test_shades_run_from_pale_to_dark_and_none_stands_out() -> None:
    styles = _curve_styles(curve(3, [0.0, 0.5, 1.0, None], 1))
    assert [s["color"] for s in styles[:3]] == [colour(x, ORDERED) for x in (0.0, 0.5, 1.0)]
    assert styles[3]["color"] not in {s["color"] for s in styles[:3]}
    assert styles[3]["linewidth"] > styles[0]["linewidth"]


def test_of_many_ordered_curves_the_key_names_the_ends_the_middle_and_what_stands_out() -> None:
    styles = _curve_styles(curve(24, [*(i / 23 for i in range(24)), None], 1))
    assert [i for i, s in enumerate(styles) if s["named"]] == [0, 12, 23, 24]
    drawn = figure(curve(24, [*(i / 23 for i in range(24)), None], 1))
    legend = drawn.axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["chance", "L0", "L12", "L23", "L24"]
    assert len(drawn.axes[0].get_lines()) == 25


def test_a_curve_without_shades_is_named_and_coloured_apart() -> None:
    styles = _curve_styles(curve(9, None))
    assert all(s["named"] for s in styles)
    assert len({(s["color"], s["linestyle"]) for s in styles}) == 9


def test_there_is_one_shade_per_curve() -> None:
    with pytest.raises(BadRequest, match="3 curves came with 2 shades"):
        curve(3, [0.0, 1.0])


def test_a_band_as_thin_as_a_line_is_drawn() -> None:
    band = figure(curve(2, [0.0, 1.0])).axes[0].collections[0]
    assert band.get_linewidth()[0] > 0
