"""How each picture is drawn on a matplotlib figure: grid, curves, points.

Needs a figure handed in and imports nothing of matplotlib itself; `plot` opens that door. All sizes are inches, so a
label has the same size whatever the number of cells.
"""

from collections.abc import Callable
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from covector.render.draw_graph import draw_graph
from covector.render.labels import cell_len, clip, label, printable
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
    ink_on,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Spell = Callable[[str], str]  # how a text must be spelt for the fonts at hand

# Okabe and Ito's eight but for yellow, which is too faint for a line on white.
_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#333333")
_DASHES = ("-", "--", ":")
_STANDING_OUT = "#d55e00"  # beside curves in shades of blue
_KEYED = 8  # ordered curves that the key names one by one
_FEW_DECADES = 100  # a logarithmic axis that reaches over less has numbers between its decades
_GREY, _PALE, _RULE = "#767676", "#e9e9e9", "#ececec"
_LETTER = 0.076  # inches that one terminal cell of 9 pt DejaVu Sans takes, a little more than the mean letter
_BOLD = 0.088  # the same of 10 pt bold, of which titles are made
_SMALL = 400  # cells up to which a grid shows its values; four times as many with texts, which are what it is about
_LONGEST = 28  # cells of a label; longer tokens are rare, and would push the grid off the page
_NAMED = 12  # points of a scatter that get a name
_MANY = 5000  # shapes from which an SVG holds them as pixels: more would make a browser stumble
_PLOT = (6.4, 3.7)  # width of a page's column, at a shape that shows slopes


def draw(fig: "Figure", picture: Picture, title: str, spell: Spell) -> None:
    """Draw the picture on the empty figure, under the title, every text spelt by `spell`."""
    if isinstance(picture, Grid):
        ax = _draw_grid(fig, picture, spell)
    elif isinstance(picture, Curve):
        ax = _draw_curve(fig, picture, spell)
    elif isinstance(picture, Graph):
        ax = draw_graph(fig, picture, spell)
    else:
        ax = _draw_scatter(fig, picture, spell)
    if title:
        lines = wrap(spell(title), max(60, int(fig.get_figwidth() / _BOLD)))
        ax.set_title("\n".join(lines), loc="left", fontsize=10, fontweight="bold", pad=9)


def _draw_grid(fig: "Figure", grid: Grid, spell: Spell) -> "Axes":
    n_rows, n_columns = grid.values.shape
    is_annotated = grid.values.size <= (_SMALL if grid.cell_text is None else 4 * _SMALL)
    row_labels = [spell(clip(label(text), _LONGEST)) for text in grid.row_labels]
    column_labels = [spell(clip(label(text), _LONGEST)) for text in grid.column_labels]
    cell, texts = _cell_size(grid, is_annotated, spell)
    size = (n_columns * cell[0], n_rows * cell[1])
    fig.set_size_inches(size[0] + 2, size[1] + 1)
    ax = _axes_at(fig, 0.0, 0.0, *size)
    backgrounds = _colours(grid)
    rgb = np.array([[_channels(c) for c in row] for row in backgrounds])
    # White seams between cells; in a fine grid they would be all one sees.
    ax.pcolormesh(rgb, edgecolors="white", linewidth=1.0 if is_annotated else 0, rasterized=rgb.size > 3 * _MANY)
    ax.set_xlim(0, n_columns)
    ax.set_ylim(n_rows, 0)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    is_slanted = max(map(cell_len, column_labels)) * _LETTER > cell[0]
    slant = {"rotation": 55, "ha": "left"} if is_slanted else {}
    _label_axis(ax.set_xticks, column_labels, cell[0], **slant)
    _label_axis(ax.set_yticks, row_labels, cell[1])
    ax.xaxis.set_label_position("top")
    ax.set_xlabel(spell(printable(grid.column_name)), color=_GREY)
    ax.set_ylabel(spell(printable(grid.row_name)), color=_GREY)
    if is_annotated:
        _annotate(ax, grid, texts, backgrounds)
    if grid.outlined:
        _outline(ax, grid)
    _colour_bar(fig, grid, size, is_annotated, spell)
    return ax


def _cell_size(grid: Grid, is_annotated: bool, spell: Spell) -> tuple[tuple[float, float], list[list[str]]]:
    """Width and height of a cell in inches, and the texts over the values (none: an empty list)."""
    n_rows, n_columns = grid.values.shape
    if not is_annotated:  # at most a page wide and a page and a half high
        return (min(0.2, 9 / n_columns), min(0.17, 14 / n_rows)), []
    texts = [[spell(clip(label(text), _LONGEST // 2)) for text in row] for row in grid.cell_text or []]
    values = (number_text(value, grid.digits) for value in grid.values.ravel().tolist())
    widest = max(cell_len(text) for text in [*values, *(text for row in texts for text in row)])
    return (max(widest * _LETTER + 0.14, 0.5), 0.38 if texts else 0.25), texts


def _colours(grid: Grid) -> list[list[str]]:
    stops = SEQUENTIAL if grid.centre is None else DIVERGING
    return [[_PALE if np.isnan(level) else colour(level, stops) for level in row] for row in grid.levels.tolist()]


def _annotate(ax: "Axes", grid: Grid, texts: list[list[str]], backgrounds: list[list[str]]) -> None:
    """Text and value of each cell; grey where chance explains the value."""
    is_chance = grid.is_chance
    for (i, j), value in np.ndenumerate(grid.values):
        if grid.outlined and np.isnan(value):
            continue  # seams between panels, cells that are not there
        ink = _GREY if is_chance[i, j] or np.isnan(value) else ink_on(backgrounds[i][j])
        number = number_text(float(value), grid.digits)
        middle: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
        if texts:
            ax.text(j + 0.5, i + 0.34, texts[i][j], fontsize=8.5, **middle)
            ax.text(j + 0.5, i + 0.74, number, fontsize=6.5, **middle)
        else:
            ax.text(j + 0.5, i + 0.5, number, fontsize=8, **middle)


def _outline(ax: "Axes", grid: Grid) -> None:
    """A line between every cell beyond chance and its neighbours that are not."""
    beyond = np.pad(~grid.is_chance & np.isfinite(grid.values), 1)
    style: dict[str, Any] = {"color": "#1c1c1c", "linewidth": 0.9}
    rows, columns = np.nonzero(beyond[1:, 1:-1] != beyond[:-1, 1:-1])
    ax.hlines(rows, columns, columns + 1, **style)
    rows, columns = np.nonzero(beyond[1:-1, 1:] != beyond[1:-1, :-1])
    ax.vlines(columns, rows, rows + 1, **style)


def _colour_bar(fig: "Figure", grid: Grid, size: tuple[float, float], is_annotated: bool, spell: Spell) -> None:
    """The scale at the right of the grid, with its unit over it, and the chance level marked and told."""
    height = min(max(size[1], 0.9), 2.2)
    bar = _axes_at(fig, size[0] + 0.3, size[1] - height, 0.13, height)
    low, high = grid.limits
    stops = SEQUENTIAL if grid.centre is None else DIVERGING
    steps = np.linspace(0 if grid.centre is None else -1, 1, 128)
    rgb = np.array([[_channels(colour(step, stops))] for step in steps.tolist()])
    bar.imshow(rgb, extent=(0, 1, low, high), origin="lower", aspect="auto", interpolation="nearest")
    bar.spines[:].set_visible(False)
    marks = [low, high] if grid.centre is None else [low, grid.centre, high]
    bar.set_xticks([])
    bar.set_yticks(marks, [number_text(mark, grid.digits) for mark in marks])
    bar.tick_params(length=2, left=False, right=True, labelleft=False, labelright=True, labelsize=8)
    bar.set_title(spell(axis_name(grid.value_name, grid.unit)), loc="left", fontsize=8.5, pad=9)
    if grid.chance is None:
        return
    for level in {(grid.centre or 0.0) - grid.chance, (grid.centre or 0.0) + grid.chance}:
        if low <= level <= high:
            bar.axhline(float(level), color="#1c1c1c", linewidth=0.8)
    told = f"{'grey: ' if is_annotated else ''}within chance\n(±{number_text(grid.chance, grid.digits)}, between lines)"
    told += "\noutlined: beyond" if grid.outlined else ""
    bar.text(0, -0.05, told, transform=bar.transAxes, fontsize=7, color=_GREY, va="top", ha="left", linespacing=1.3)


def _draw_curve(fig: "Figure", curve: Curve, spell: Spell) -> "Axes":
    ax = _plot_axes(fig, curve, spell)
    if curve.band is not None:
        low, high = (np.broadcast_to(np.asarray(level, dtype=float), curve.x.shape) for level in curve.band)
        name = spell(printable(curve.band_name))
        # A line around it, so that a band which is hardly wider than nothing is seen.
        ax.fill_between(
            curve.x, low, high, facecolor="#dcdcdc", edgecolor="#c8c8c8", linewidth=0.8, label=name, zorder=0
        )
    ys = np.where(curve.ys > 0, curve.ys, np.nan) if curve.log_y else curve.ys
    mark = "o" if len(curve.x) <= 40 else ""  # points that were computed, as long as they can be told apart
    for (name, y), style in zip(zip(curve.names, ys, strict=True), _curve_styles(curve), strict=True):
        ax.plot(
            curve.x, y, marker=mark, markersize=3, label=spell(printable(name)) if style.pop("named") else None, **style
        )
    if curve.log_y:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default one writes TeX
        low, high = ax.get_ylim()
        ax.yaxis.set_minor_formatter(_between_decades if high < _FEW_DECADES * low else lambda *_: "")
    if np.equal(curve.x, np.round(curve.x)).all():
        ax.locator_params(axis="x", integer=True)
    _key(ax, len(curve.names) + (curve.band is not None))
    return ax


def _between_decades(value: float, _: object) -> str:
    """2 and 5 of each decade: an axis of one or two has hardly a number otherwise."""
    digits = value / 10.0 ** np.floor(np.log10(value))
    return f"{value:g}" if min(abs(digits - 2), abs(digits - 5)) < 1e-6 else ""


def _curve_styles(curve: Curve) -> list[dict[str, Any]]:
    """Colour, dash and width of each curve, and whether the key names it: of many ordered ones three."""
    if curve.shades is None:
        pairs = [(_HUES[i % len(_HUES)], _DASHES[i // len(_HUES) % len(_DASHES)]) for i in range(len(curve.names))]
        return [{"color": hue, "linestyle": dash, "linewidth": 1.4, "named": True} for hue, dash in pairs]
    ordered = [i for i, shade in enumerate(curve.shades) if shade is not None]
    named = set(ordered) if len(ordered) <= _KEYED else {ordered[0], ordered[len(ordered) // 2], ordered[-1]}
    made, standing_out = [], 0
    for i, shade in enumerate(curve.shades):
        if shade is None:
            style = {"color": _STANDING_OUT, "linestyle": _DASHES[standing_out % len(_DASHES)], "linewidth": 1.8}
            standing_out += 1
        else:
            style = {"color": colour(shade, ORDERED), "linestyle": "-", "linewidth": 1.2}
        made.append(style | {"named": shade is None or i in named})
    return made


def _draw_scatter(fig: "Figure", points: Scatter, spell: Spell) -> "Axes":
    ax = _plot_axes(fig, points, spell)
    if points.band is not None:
        name = spell(printable(points.band_name))
        low, high = map(float, points.band)
        ax.axhspan(low, high, color="#dcdcdc", linewidth=0, label=name, zorder=0)
    groups = list(points.groups) if points.groups is not None else [""] * len(points.x)
    names = list(dict.fromkeys(groups))
    is_many = len(points.x) > _MANY
    for i, name in enumerate(names):
        chosen = np.array([group == name for group in groups])
        hue = _HUES[i % len(_HUES)]
        if points.interval is not None:
            low, high = (np.asarray(bound, dtype=float)[chosen] for bound in points.interval)
            ax.vlines(points.x[chosen], low, high, color=hue, linewidth=0.8, alpha=0.5)
        shape = {"s": 6 if is_many else 18, "alpha": 0.75, "linewidths": 0, "rasterized": is_many}
        ax.scatter(points.x[chosen], points.y[chosen], color=hue, label=spell(printable(name)) or None, **shape)
    if points.diagonal:
        ends = [min(points.x.min(), points.y.min()), max(points.x.max(), points.y.max())]
        ax.plot(ends, ends, color=_GREY, linewidth=0.8, linestyle="--", label="y = x", zorder=0)
        ax.set_box_aspect(1)
    if points.labels is not None:
        _name_points(ax, points, [spell(clip(label(text), _LONGEST)) for text in points.labels])
    _key(ax, len(names) + points.diagonal + (points.band is not None))
    return ax


def _name_points(ax: "Axes", points: Scatter, labels: list[str]) -> None:
    """Names at the points that stand out most, as long as no name covers another; to the left where the plot ends."""
    usual = points.x if points.diagonal else np.nanmedian(points.y)
    standing_out = np.abs(points.y - usual)
    taken: list[tuple[float, float, float, float]] = []
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    width = _PLOT[1] if points.diagonal else _PLOT[0]  # with a diagonal the plot is square
    scale = (width / ((right - left) or 1), _PLOT[1] / ((top - bottom) or 1))
    for i in np.argsort(-np.nan_to_num(standing_out, nan=-np.inf), kind="stable")[:_NAMED].tolist():
        at = (float(points.x[i] * scale[0]), float(points.y[i] * scale[1]))
        long = cell_len(labels[i]) * _LETTER
        ends = bool(at[0] + long > right * scale[0])
        box = (at[0] - long * ends, at[1], at[0] + long * (not ends), at[1] + 0.16)
        if not all(np.isfinite(box)) or any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        side = {"xytext": (-4 if ends else 4, 3), "ha": "right" if ends else "left"}
        ax.annotate(labels[i], (points.x[i], points.y[i]), textcoords="offset points", fontsize=8, **side)


def _plot_axes(fig: "Figure", picture: Curve | Scatter, spell: Spell) -> "Axes":
    fig.set_size_inches(*_PLOT)
    ax = fig.add_subplot()
    ax.set_xlabel(spell(axis_name(picture.x_name, picture.x_unit)))
    ax.set_ylabel(spell(axis_name(picture.y_name, picture.y_unit)))
    ax.grid(True, color=_RULE, linewidth=0.7)
    ax.set_axisbelow(True)
    return ax


def _key(ax: "Axes", n: int) -> None:
    """The legend, where there is more than one thing to tell apart; beside the plot when it would cover it."""
    if n < 2:
        return
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
    ax.legend(fontsize=8, handlelength=1.6, **beside)


def _label_axis(set_ticks: Callable, labels: list[str], step: float, **style: Any) -> None:
    """Labels at the middle of their cells, every second, third … if all would overlap."""
    every = max(int(np.ceil(0.15 / step)), 1)  # 0.15 in: the height of a line of 8.5 pt
    places = range(0, len(labels), every)
    set_ticks([i + 0.5 for i in places], [labels[i] for i in places], fontsize=8.5, **style)


def _axes_at(fig: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    across, up = fig.get_size_inches()
    return fig.add_axes((left / across, bottom / up, width / across, height / up))


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _channels(text: str) -> tuple[float, ...]:
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
