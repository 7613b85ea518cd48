"""What a notebook shows of the things one holds: models and atlases."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import covector
from synthetic_atlas import synthetic


class Cells(HTMLParser):
    """The rows of the tables of a fragment, as texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._cell = False if tag in ("td", "th") else self._cell


def test_a_model_shows_its_sizes() -> None:
    rows = dict(Cells(covector.open("demo-lm")._repr_html_()).rows)
    spec = covector.open("demo-lm").spec
    assert rows["layers"] == str(spec.n_layers)
    assert rows["d_model"] == str(spec.d_model)
    assert rows["heads"] == f"{spec.n_heads} of size {spec.d_head}"
    assert rows["inputs"] == f"{spec.n_vocab:,} tokens"
    agent = dict(Cells(covector.open("demo-dt")._repr_html_()).rows)
    assert "state" in agent["inputs"]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b"])
def test_a_name_is_text(name: str, tmp_path: Path) -> None:
    shown = synthetic(tmp_path / "x.atlas", name=name)._repr_html_()
    assert name not in shown


def test_an_atlas_shows_its_kinds_with_chance(tmp_path: Path) -> None:
    def change(table: dict, rng: np.random.Generator) -> None:
        ov = table["kind"] == "ov"
        table["p_dir"] = np.where(ov, 0.01, 0.5)
        table["q_dir"] = np.where(np.arange(len(ov)) % 2 == 0, 0.01, 1.0)

    atlas = synthetic(tmp_path / "x.atlas", change)
    header, *rows = Cells(atlas._repr_html_()).rows
    told = {row[0]: row for row in rows if row}
    assert header[0].startswith("kind")
    n = int(np.sum(atlas.column("kind") == "ov"))
    assert [cell.split(" ")[0] for cell in told["ov"][1:5]] == ["16", str(n), "1.000", str(n // 2)]
    assert told["qk"][3].startswith("0.000")
