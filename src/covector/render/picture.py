"""What to draw, as values: a grid of cells, curves, or points, whatever draws them.

A picture names its axes and their units, and the level chance gives; it knows no backend. `plot` draws it to files,
`grid_text` in a terminal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.errors import BadRequest
from covector.render.column import COSINE_UNITS
from covector.render.labels import printable
from covector.render.number import Number

# Blue to orange over near-white: ordered alike for every common colour blindness, and in print; the ends are dark
# enough to tell sign from size, and not so dark that a label on them cannot be read.
DIVERGING = ("#2b6ca3", "#9cc3e0", "#f7f6f3", "#f0bd8c", "#c0640f")
SEQUENTIAL = ("#f7f6f3", "#9cc3e0", "#2b6ca3")
# Pale to dark blue, dark enough for a line on white from its beginning.
ORDERED = ("#a9cbe6", "#2b6ca3", "#0a2540")
_INK, _PAPER = "#000000", "#ffffff"


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells coloured by value: tokens × dyads, heads × layers.

    `values` [rows, columns], NaN where not defined. Colours run both ways from `centre`, equally far; `centre=None`
    runs one way, from the least to the greatest value. `chance` is how far from the centre chance alone gets.
    `cell_text` [rows, columns] is printed in the cells, over the value. `outlined` draws a line around the cells beyond
    chance, for grids too fine to print their values.
    Raises BadRequest if sizes differ or a cosine comes without its chance level.
    """

    values: np.ndarray
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    cell_text: Sequence[Sequence[str]] | None = None
    value_name: str = "value"
    unit: str = ""
    centre: Number | None = 0.0
    chance: Number | None = None
    digits: int | None = 2
    row_name: str = ""
    column_name: str = ""
    outlined: bool = False

    def __post_init__(self) -> None:
        values = _frozen(self.values)
        shape = (len(self.row_labels), len(self.column_labels))
        if values.shape != shape or 0 in shape:
            raise BadRequest(f"a grid with {shape[0]} × {shape[1]} labels came with values of shape {values.shape}")
        if self.cell_text is not None and [len(row) for row in self.cell_text] != [shape[1]] * shape[0]:
            raise BadRequest(f"a grid of {shape[0]} × {shape[1]} cells came with texts for other cells")
        if {self.unit, self.value_name} & COSINE_UNITS and self.chance is None:
            raise BadRequest("a grid of cosines came without the level chance gives: give chance=")
        object.__setattr__(self, "values", values)

    @property
    def levels(self) -> np.ndarray:
        """Where each value stands on the colour scale: -1 to 1 around the centre, or 0 to 1 without one; NaN stays."""
        low, high = self.limits
        if self.centre is None:
            return (self.values - low) / ((high - low) or 1.0)
        return (self.values - self.centre) / ((high - self.centre) or 1.0)

    @property
    def limits(self) -> tuple[float, float]:
        """The values at the two ends of the colour scale."""
        finite = self.values[np.isfinite(self.values)]
        if not finite.size:
            return (0.0, 1.0) if self.centre is None else (float(self.centre - 1), float(self.centre + 1))
        if self.centre is None:
            low, high = float(finite.min()), float(finite.max())
            return low, high if high > low else low + 1.0
        reach = float(np.abs(finite - self.centre).max()) or 1.0
        return float(self.centre - reach), float(self.centre + reach)

    @property
    def is_chance(self) -> np.ndarray:
        """Which cells chance alone explains (none if no level is given)."""
        if self.chance is None:
            return np.zeros(self.values.shape, dtype=bool)
        return np.abs(self.values - (self.centre or 0.0)) <= self.chance


@dataclass(frozen=True, eq=False)
class Curve:
    """One or more curves over a common x, with the band that chance gives.

    `ys` [curves, points]; `band` is (low, high), each a level or one value per point. An empty unit says that the
    quantity has none. `shades` places each curve on an ordered scale, 0 to 1 (layers, steps of training), which its
    colour shows; None is a curve of its own colour that stands out. Raises BadRequest if sizes differ.
    """

    x: np.ndarray
    ys: np.ndarray
    names: Sequence[str]
    x_name: str
    y_name: str
    x_unit: str
    y_unit: str
    log_y: bool = False
    band: tuple[Number | np.ndarray, Number | np.ndarray] | None = None
    band_name: str = "chance"
    shades: Sequence[Number | None] | None = None

    def __post_init__(self) -> None:
        x, ys = _frozen(self.x), _frozen(np.atleast_2d(self.ys))
        if x.ndim != 1 or ys.shape != (len(self.names), len(x)):
            raise BadRequest(f"{len(self.names)} curves over {len(x)} points came with ys of shape {ys.shape}")
        if self.shades is not None and len(self.shades) != len(self.names):
            raise BadRequest(f"{len(self.names)} curves came with {len(self.shades)} shades: one each, or None")
        if self.y_unit in COSINE_UNITS and self.band is None:
            raise BadRequest("curves of cosines came without the band chance gives: give band=")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "ys", ys)


@dataclass(frozen=True, eq=False)
class Scatter:
    """Points, with their intervals and names, in groups told apart by colour.

    `interval` is (low, high), each one value per point. `diagonal` draws y = x, for predicted against measured.
    `band` is the (low, high) that chance gives y. An empty unit says that the quantity has none.
    Raises BadRequest if sizes differ.
    """

    x: np.ndarray
    y: np.ndarray
    x_name: str
    y_name: str
    x_unit: str
    y_unit: str
    labels: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    interval: tuple[np.ndarray, np.ndarray] | None = None
    diagonal: bool = False
    band: tuple[Number, Number] | None = None
    band_name: str = "chance"

    def __post_init__(self) -> None:
        x, y = _frozen(self.x), _frozen(self.y)
        beside = [self.labels, self.groups, *(self.interval or ())]
        if x.ndim != 1 or x.shape != y.shape or any(b is not None and len(b) != len(x) for b in beside):
            sizes = [len(b) for b in [x, y, *beside] if b is not None]
            raise BadRequest(f"a scatter expects one x, y, label, group and interval per point, came {sizes}")
        if self.y_unit in COSINE_UNITS and self.band is None:
            raise BadRequest("points that are cosines came without the band chance gives: give band=")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)


@dataclass(frozen=True, eq=False)
class Graph:
    """Named nodes in columns (`x`, whole numbers) and rows (`y`), and weighted edges between them, left to right.

    ``edges`` are (from, to, weight); width is |weight|, colour its sign. ``columns`` and ``rows`` name the places.
    Raises BadRequest for an edge whose node is missing, or places without a name.
    """

    names: Sequence[str]
    x: Sequence[int]
    y: Sequence[int]
    edges: Sequence[tuple[int, int, float]]
    columns: Sequence[str]
    rows: Sequence[str]
    value_name: str
    unit: str

    def __post_init__(self) -> None:
        n = len(self.names)
        if not len(self.x) == len(self.y) == n or any(not (0 <= i < n and 0 <= j < n) for i, j, _ in self.edges):
            raise BadRequest(f"a graph of {n} nodes expects a place for each and edges between them")
        if n and (max(self.x) >= len(self.columns) or max(self.y) >= len(self.rows)):
            raise BadRequest(
                f"a graph of {len(self.columns)} columns and {len(self.rows)} rows came with nodes outside"
            )


Picture = Grid | Curve | Scatter | Graph


def colour(level: Number, stops: Sequence[str] = DIVERGING) -> str:
    """The colour `#rrggbb` at `level` of the scale: -1 to 1 for a diverging one, 0 to 1 for a sequential one."""
    place = (level + 1) / 2 if stops is DIVERGING else level
    place = min(max(place, 0.0), 1.0) * (len(stops) - 1)
    left = min(int(place), len(stops) - 2)
    pairs = zip(_rgb(stops[left]), _rgb(stops[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - left)):02x}" for a, b in pairs)


def ink_on(background: str) -> str:
    """Black or white, whichever is easier to read on the colour (WCAG relative luminance)."""
    channels = [c / 255 for c in _rgb(background)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    # At 0.179 the contrast against black and against white is the same, 4.58; small text is asked to have 4.5.
    return _INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else _PAPER


def axis_name(name: str, unit: str) -> str:
    """The name with its unit, as an axis or a header shows it."""
    is_said = not unit or name == unit or {name, unit} <= COSINE_UNITS
    return printable(name if is_said else f"{name} ({unit})")


def _frozen(values: np.ndarray) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def _rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
