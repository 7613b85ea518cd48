"""Graphs as pictures: checked when they are made, drawn from left to right, the same bytes each time."""

from pathlib import Path

import numpy as np
import pytest

from covector.analyses.paths_picture import path_graph
from covector.errors import BadRequest
from covector.propagation.search import Part
from covector.render import Graph
from covector.render.plot import Drawing
from covector.study.path import Path as Steps
from covector.study.path import Step


def graph(**changes: object) -> Graph:
    values: dict = {
        "names": ["a", "b", "out"], "x": [0, 1, 2], "y": [0, 0, 0], "edges": [(0, 1, 2.0), (1, 2, -1.0)],
        "columns": ["in", "L0", "out"], "rows": ["end"], "value_name": "share", "unit": "logits",
    }  # fmt: skip
    return Graph(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"edges": [(0, 3, 1.0)]}, "edges between them"), ({"x": [0, 1]}, "a place for each"), ({"rows": []}, "outside")],
)
def test_a_graph_that_does_not_fit_together_is_refused(changes: dict, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        graph(**changes)


def test_a_graph_is_drawn_with_its_names_and_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, second = (Drawing(graph(), "title").svg() for _ in range(2))
    assert first == second
    for text in ("a", "b", "out", "L0", "orange works against"):
        assert f"{text}<" in first


def test_edges_sum_the_paths_that_pass_them() -> None:
    def part(share: float, *steps: Step) -> Part:
        return Part(Steps(steps), np.array([share]))

    embed, head, mlp = Step("embed", slot="NAME"), Step("v", 0, 1, slot="NAME"), Step("mlp", 1, slot="end")
    found = path_graph([part(2.0, embed, head, mlp), part(-0.5, embed, head), part(9.0, mlp)], ["NAME", "end"], 2)
    assert found is not None
    named = {(found.names[i], found.names[j]): w for i, j, w in found.edges}
    # The unfinished path of 9 is not drawn; both complete ones pass embed → L0H1.
    assert named == {("embed", "L0H1"): 1.5, ("L0H1", "L1.mlp"): 2.0, ("L1.mlp", "out"): 2.0, ("L0H1", "out"): -0.5}
    where = {name: (found.columns[x], found.rows[y]) for name, x, y in zip(found.names, found.x, found.y, strict=True)}
    assert where["L0H1"] == ("L0 attn", "NAME")
    assert where["L1.mlp"] == ("L1 mlp", "end")
