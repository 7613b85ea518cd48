"""Paths as a small graph: components by depth and position, edges as wide as the complete paths that pass them."""

import itertools
from collections.abc import Sequence

from covector.propagation.search import Part
from covector.render import Graph
from covector.study.path import Step

# Complete paths that are drawn, the largest |share| first; more hide each other.
DRAWN = 12


def path_graph(parts: Sequence[Part], slots: Sequence[str], layers: int) -> Graph | None:
    """The graph of the largest complete paths, or of the largest beginnings where none is complete; None for none."""
    complete = sorted((p for p in parts if p.complete), key=lambda p: -abs(p.share))[:DRAWN]
    chosen = complete or sorted(parts, key=lambda p: -abs(p.share))[:DRAWN]
    if not chosen:
        return None
    nodes: dict[str, tuple[int, str]] = {}
    edges: dict[tuple[str, str], float] = {}
    for part in chosen:
        steps = list(part.path.steps)
        names = [str(step) for step in steps] + ["out"]
        for step, name in zip(steps, names, strict=False):
            nodes[name] = (_column(step), step.slot or "")
        nodes["out"] = (2 * layers + 1, steps[-1].slot or "")
        for pair in itertools.pairwise(names):
            edges[pair] = edges.get(pair, 0.0) + part.share
    order = {name: i for i, name in enumerate(nodes)}
    used = sorted({column for column, _ in nodes.values()})
    rows = [slot for slot in slots if any(slot == s for _, s in nodes.values())] or [""]
    return Graph(
        names=[name.partition("@")[0] for name in nodes],
        x=[used.index(column) for column, _ in nodes.values()],
        y=[rows.index(slot) if slot in rows else 0 for _, slot in nodes.values()],
        edges=[(order[a], order[b], float(w)) for (a, b), w in edges.items()],
        columns=[_column_name(column, layers) for column in used],
        rows=[row or "all positions" for row in rows],
        value_name=f"share of the {len(chosen)} largest {'complete ' if complete else ''}paths",
        unit="logits",
    )


def _column(step: Step) -> int:
    return 0 if step.kind == "embed" else 2 * step.layer + (2 if step.kind == "mlp" else 1)


def _column_name(column: int, layers: int) -> str:
    if column == 0:
        return "embed"
    if column == 2 * layers + 1:
        return "out"
    layer, mlp = divmod(column - 1, 2)
    return f"L{layer} {'mlp' if mlp else 'attn'}"
