"""How a graph of components is drawn: columns by depth, rows by place, edges as wide as what passes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from covector.render.labels import clip, label
from covector.render.picture import Graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches between columns and rows, and points of the widest edge.
_ACROSS, _UP, _WIDEST = 1.25, 0.75, 7.0
_FOR, _AGAINST = "#0072b2", "#d55e00"
_LONGEST = 16


def draw_graph(fig: "Figure", graph: Graph, spell: Callable[[str], str]) -> "Axes":
    """Draw on the empty figure; nodes that share a place are set side by side, one below the other."""
    width, height = _ACROSS * max(len(graph.columns), 2), _UP * max(len(graph.rows), 2)
    fig.set_size_inches(width + 1.6, height + 1.2)
    across, up = fig.get_size_inches()
    ax = fig.add_axes((1.2 / across, 0.6 / up, width / across, height / up))
    places = _places(graph)
    largest = max((abs(weight) for _, _, weight in graph.edges), default=1.0) or 1.0
    for i, j, weight in graph.edges:
        a, b = places[i], places[j]
        bend = 0.0 if a[1] != b[1] or b[0] - a[0] <= 1 else -0.25
        ax.annotate(
            "", xy=b, xytext=a,
            arrowprops={
                "arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, "alpha": 0.55, "capstyle": "round",
                "linewidth": max(0.4, _WIDEST * abs(weight) / largest),
                "color": _FOR if weight > 0 else _AGAINST, "connectionstyle": f"arc3,rad={bend}",
            },
        )  # fmt: skip
    for name, place in zip(graph.names, places, strict=True):
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "#767676", "linewidth": 0.7}
        ax.text(*place, spell(clip(label(name), _LONGEST)), ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    ax.set_xlim(-0.6, len(graph.columns) - 0.4)
    ax.set_ylim(len(graph.rows) - 0.4, -0.6)
    ax.set_xticks(range(len(graph.columns)), [spell(label(c)) for c in graph.columns])
    ax.set_yticks(range(len(graph.rows)), [spell(clip(label(r), _LONGEST)) for r in graph.rows])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xlabel(spell(f"width: {graph.value_name} ({graph.unit}), widest {largest:.3g}; orange works against"))
    return ax


def _places(graph: Graph) -> list[tuple[float, float]]:
    """Where nodes stand: those of one place spread around it."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, place in enumerate(zip(graph.x, graph.y, strict=True)):
        groups.setdefault(place, []).append(i)
    found: dict[int, tuple[float, float]] = {}
    for (x, y), members in groups.items():
        for k, i in enumerate(members):
            shift = (k - (len(members) - 1) / 2) / max(len(members), 2)
            found[i] = (x + 0.25 * shift, y + 0.9 * shift)
    return [found[i] for i in range(len(graph.names))]
