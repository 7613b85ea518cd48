"""Pictures as plotly figures: every kind, the values of the picture, labels as text, and one line without plotly."""

import builtins
import importlib.util
import json

import numpy as np
import pytest
from test_plot import CURVE, GRID, SCATTER

from covector.errors import BadRequest, MissingExtra
from covector.render import Column, Graph, Table
from covector.render.plotly_plot import plotly_figure

GRAPH = Graph(
    ["embed", " a<b>", "out"], [0, 1, 2], [0, 1, 0], [(0, 1, 2.0), (1, 2, -1.0)], ["in", "mid", "end"], ["x", "y"],
    "share", "logits",
)  # fmt: skip
needs_plotly = pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="plotly is absent")


@needs_plotly
def test_a_grid_has_its_values_its_scale_and_its_labels():
    figure = plotly_figure(GRID, "t")
    (trace,) = figure.data
    assert [[None if v is None else round(v, 2) for v in row] for row in trace.z] == [
        [0.43, -0.31], [0.05, None], [-0.6, 0.2],
    ]  # fmt: skip
    assert (trace.zmin, trace.zmax) == (-0.6, 0.6)
    assert figure.layout.yaxis.autorange == "reversed", "the first row stands on top, as in a file"
    assert list(figure.layout.yaxis.ticktext) == ["·the", "日本", "\\n"]
    assert "within chance" in trace.customdata[1][0]
    assert "within chance" not in trace.customdata[0][0]


@needs_plotly
def test_a_curve_has_its_band_and_a_logarithmic_axis():
    figure = plotly_figure(CURVE)
    low, high, *curves = figure.data
    assert list(low.y) == [0.1] * 4
    assert list(high.y) == [0.3, 0.3, 0.2, 0.2]
    assert [list(c.y) for c in curves] == CURVE.ys.tolist()
    assert figure.layout.yaxis.type == "log"


@needs_plotly
def test_a_scatter_has_groups_intervals_and_the_diagonal():
    figure = plotly_figure(SCATTER)
    assert [t.name for t in figure.data] == ["fit", "prediction"]
    fit = figure.data[0]
    assert list(fit.x) == [0.0, 2.0, None]
    np.testing.assert_allclose(fit.error_y.array[:2], [0.9, -1.5])
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1) == (line.y0, line.y1) == (0.0, 2.5)


@needs_plotly
def test_a_graph_has_an_edge_a_pair_as_wide_as_its_weight_and_by_its_sign():
    *edges, nodes = plotly_figure(GRAPH).data
    assert edges[0].line.width == 2 * edges[1].line.width
    assert edges[0].line.color != edges[1].line.color
    assert (list(edges[0].x), list(edges[0].y)) == ([0, 1], [0, 1])
    assert list(nodes.x) == [0, 1, 2]


@needs_plotly
@pytest.mark.parametrize("picture", [GRID, CURVE, SCATTER, GRAPH], ids=lambda p: type(p).__name__)
def test_labels_are_text_and_never_tags_or_formulas(picture):
    figure = plotly_figure(picture, "<b>title</b> of $x$")
    told = json.dumps(json.loads(figure.to_json()))
    assert "<b>" not in told
    assert "$" not in told


@needs_plotly
def test_a_table_gives_its_picture_or_says_that_it_has_none():
    table = Table([Column("x", np.arange(2))], title="t", picture=GRID)
    assert table.plotly().layout.title.text == "t"
    with pytest.raises(BadRequest, match="no picture"):
        Table([Column("x", np.arange(2))]).plotly()


def test_without_plotly_one_line_says_what_to_install(monkeypatch):
    given = builtins.__import__

    def without(name, *rest):
        if name.startswith("plotly"):
            raise ImportError(name)
        return given(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'covector\[notebook\]'"):
        plotly_figure(GRID)
