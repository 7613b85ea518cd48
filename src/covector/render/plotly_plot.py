"""Pictures as plotly figures, for notebooks: the same marks and colours as in files, with the values under the pointer.

plotly reads tags in texts; labels are escaped, so that a token that looks like one stays text.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from covector.errors import MissingExtra
from covector.render.labels import label, printable
from covector.render.number import number_text
from covector.render.picture import (
    DIVERGING,
    ORDERED,
    SEQUENTIAL,
    Curve,
    Graph,
    Grid,
    Picture,
    Scatter,
    axis_name,
    colour,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Eight hues for groups, alike in lightness; the explorer's page has the same.
HUES = ("#3b7dbb", "#d07a21", "#4f9d69", "#b25ea8", "#b0a030", "#c9504b", "#3aa5a5", "#7b7b86")
_BAND, _SOFT = "rgba(120,120,120,0.18)", "#8a8a8a"
_FOR, _AGAINST = "#0072b2", "#d55e00"
# Pixels: the widest edge of a graph; a row of a grid.
_WIDEST, _ROW = 14.0, 24


def plotly_figure(picture: Picture, title: str = "") -> "Figure":
    """The picture as a plotly Figure, free to be changed further. Raises MissingExtra without plotly."""
    try:
        from plotly.graph_objects import Figure
    except ImportError as missing:
        raise MissingExtra(
            "a plotly figure needs plotly, not installed here: pip install 'covector[notebook]'"
        ) from missing
    traces, layout = _DRAWN[type(picture)](picture)
    plain = {"template": "none", "margin": {"t": 60, "l": 80, "r": 30, "b": 60}, "font": {"size": 12}}
    return Figure(data=traces, layout={**plain, "title": {"text": _text(title), "font": {"size": 14}}, **layout})


def _grid(grid: Grid) -> tuple[list[dict], dict]:
    low, high = grid.limits
    stops = SEQUENTIAL if grid.centre is None else DIVERGING
    unit = _text(axis_name(grid.value_name, grid.unit))
    shown = [[number_text(v, grid.digits) if np.isfinite(v) else "" for v in row] for row in grid.values]
    texts = shown if grid.cell_text is None else [[_label(t) for t in row] for row in grid.cell_text]
    told = [
        [f"{_label(r)}, {_label(c)}: {shown[i][j]}{', within chance' * bool(grid.is_chance[i, j])}"
         for j, c in enumerate(grid.column_labels)]
        for i, r in enumerate(grid.row_labels)
    ]  # fmt: skip
    trace: dict[str, Any] = {
        "type": "heatmap", "z": _values(grid.values), "zmin": low, "zmax": high, "text": texts,
        "customdata": told,
        "x": list(range(len(grid.column_labels))), "y": list(range(len(grid.row_labels))),
        "texttemplate": "%{text}" if len(grid.column_labels) <= 24 else "",
        "colorscale": [[i / (len(stops) - 1), stop] for i, stop in enumerate(stops)],
        "colorbar": {"title": {"text": unit}}, "xgap": 1, "ygap": 1, "textfont": {"size": 10},
        "hovertemplate": "%{customdata} %{text}<extra></extra>" if grid.cell_text else "%{customdata}<extra></extra>",
    }  # fmt: skip
    layout = {
        "xaxis": _ticks(grid.column_labels, grid.column_name) | {"side": "top"},
        "yaxis": _ticks(grid.row_labels, grid.row_name) | {"autorange": "reversed"},
        "height": 180 + _ROW * len(grid.row_labels),
        "margin": {"t": 110, "l": 80, "r": 30, "b": 30},
    }
    return [trace], layout


def _curve(curve: Curve) -> tuple[list[dict], dict]:
    x = _values(curve.x)
    traces: list[dict] = [] if curve.band is None else _band(x, curve.band, curve.band_name)
    for i, (name, y) in enumerate(zip(curve.names, curve.ys, strict=True)):
        shade = None if curve.shades is None else curve.shades[i]
        hue = HUES[i % len(HUES)] if shade is None else colour(shade, ORDERED)
        mode = "lines+markers" if len(x) <= 60 else "lines"
        traces.append(
            {"type": "scatter", "mode": mode, "x": x, "y": _values(y), "name": _label(name), "line": {"color": hue}}
        )
    axis = {"title": {"text": _text(axis_name(curve.y_name, curve.y_unit))}, "type": "log" if curve.log_y else "linear"}
    return traces, {
        "xaxis": {"title": {"text": _text(axis_name(curve.x_name, curve.x_unit))}},
        "yaxis": axis,
        "showlegend": len(traces) > 1,
    }


def _band(x: list, band: Sequence[Any], name: str) -> list[dict]:
    low, high = (_values(np.broadcast_to(np.asarray(bound, dtype=np.float64), len(x))) for bound in band)
    line = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0}, "hoverinfo": "skip"}
    return [
        {**line, "y": low, "showlegend": False},
        {**line, "y": high, "fill": "tonexty", "fillcolor": _BAND, "name": _text(name)},
    ]


def _scatter(points: Scatter) -> tuple[list[dict], dict]:
    groups = list(points.groups) if points.groups is not None else [""] * len(points.x)
    traces = [
        _points(points, [i for i, g in enumerate(groups) if g == group], group, HUES[k % len(HUES)])
        for k, group in enumerate(dict.fromkeys(groups))
    ]
    shapes: list[dict] = []
    if points.diagonal:
        both = np.concatenate([points.x, points.y])
        low, high = (float(f(both[np.isfinite(both)])) if np.isfinite(both).any() else 0.0 for f in (np.min, np.max))
        shapes.append({"type": "line", "x0": low, "y0": low, "x1": high, "y1": high,
                       "line": {"color": _SOFT, "dash": "dot", "width": 1}})  # fmt: skip
    if points.band is not None:
        low, high = map(float, points.band)
        shapes.append({"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high, "fillcolor": _BAND,
                       "line": {"width": 0}, "layer": "below", "name": _text(points.band_name)})  # fmt: skip
    return traces, {
        "xaxis": {"title": {"text": _text(axis_name(points.x_name, points.x_unit))}},
        "yaxis": {"title": {"text": _text(axis_name(points.y_name, points.y_unit))}},
        "shapes": shapes,
        "showlegend": len(traces) > 1,
    }


def _points(points: Scatter, rows: list[int], group: str, hue: str) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "markers", "x": _values(points.x[rows]), "y": _values(points.y[rows]),
        "name": _label(group) if group else "", "marker": {"color": hue, "size": 7},
    }  # fmt: skip
    if points.labels is not None:
        trace |= {"text": [_label(points.labels[i]) for i in rows], "hovertemplate": "%{text}<br>%{x}, %{y}"}
    if points.interval is not None:
        low, high = (np.asarray(bound, dtype=np.float64)[rows] for bound in points.interval)
        trace["error_y"] = {
            "type": "data", "symmetric": False, "array": _values(high - points.y[rows]),
            "arrayminus": _values(points.y[rows] - low), "thickness": 1, "width": 0,
        }  # fmt: skip
    return trace


def _graph(graph: Graph) -> tuple[list[dict], dict]:
    largest = max((abs(w) for *_, w in graph.edges if np.isfinite(w)), default=1.0) or 1.0
    traces: list[dict] = [
        {
            "type": "scatter", "mode": "lines", "x": [graph.x[i], graph.x[j]], "y": [graph.y[i], graph.y[j]],
            "line": {"width": max(_WIDEST * abs(w) / largest, 1), "color": _FOR if w > 0 else _AGAINST},
            "opacity": 0.55, "showlegend": False, "name": "", "text": [number_text(w, None)] * 2,
            "hovertemplate": f"{_label(graph.names[i])} → {_label(graph.names[j])}<br>%{{text}}",
        }
        for i, j, w in graph.edges if np.isfinite(w)
    ]  # fmt: skip
    traces.append(
        {
            "type": "scatter", "mode": "markers+text", "x": list(graph.x), "y": list(graph.y), "showlegend": False,
            "text": [_label(n) for n in graph.names], "textposition": "top center", "hoverinfo": "text",
            "marker": {"color": "#1c1c1c", "size": 9}, "name": "",
        }
    )  # fmt: skip
    unit = _text(axis_name(graph.value_name, graph.unit))
    return traces, {
        "xaxis": _ticks(graph.columns, f"width: {unit}, widest {largest:.3g}; orange works against"),
        "yaxis": _ticks(graph.rows, "") | {"autorange": "reversed"},
    }


_DRAWN: dict[type, Any] = {Grid: _grid, Curve: _curve, Scatter: _scatter, Graph: _graph}


def _ticks(labels: Sequence[str], name: str) -> dict[str, Any]:
    """An axis of named places; the same name may stand there twice."""
    return {
        "tickmode": "array", "tickvals": list(range(len(labels))), "ticktext": [_label(t) for t in labels],
        "title": {"text": _text(name)}, "showgrid": False, "zeroline": False,
    }  # fmt: skip


def _values(array: np.ndarray) -> list:
    """Plain numbers; what is not defined as None, which plotly leaves out."""
    return [None if not np.isfinite(v) else v for v in array.tolist()] if array.ndim == 1 else list(map(_values, array))


def _label(text: str) -> str:
    return _escaped(label(text))


def _text(text: str) -> str:
    return _escaped(printable(text))


def _escaped(text: str) -> str:
    """Without tags, and without the signs between which plotly sets formulas."""
    return escape(text, quote=False).replace("$", "&#36;")
