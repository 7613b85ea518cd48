"""Pictures as files: the three kinds, the same bytes each time, and text that survives."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from covector.errors import BadRequest, MissingExtra
from covector.render import Column, Curve, Grid, Scatter, Table
from covector.render.plot import Drawing, figure

GRID = Grid(
    np.array([[0.43, -0.31], [0.05, np.nan], [-0.6, 0.2]]),
    [" the", "日本", "\n"],
    ["dyad 0", "a dyad with a long name"],
    cell_text=[[" $x$", "<b>"], ["_{y}", ""], ["한국어", "\x07"]],
    value_name="cosine",
    chance=0.12,
    row_name="token",
    column_name="dyad",
)
CURVE = Curve(
    np.arange(4),
    np.array([[3.0, 2.0, 1.0, 0.0], [3.0, 0.3, 0.03, 0.003]]),
    ["L9H6.ov", "random"],
    *("dyad", "gain"),
    *("", "σ"),
    log_y=True,
    band=(0.1, np.array([0.3, 0.3, 0.2, 0.2])),
)
SCATTER = Scatter(
    np.array([0.0, 1.0, 2.0, np.nan]),
    np.array([0.1, 0.9, 2.5, 1.0]),
    *("predicted", "measured"),
    *("logit", "logit"),
    labels=[" she", "日", "x", "y"],
    groups=["fit", "prediction", "fit", "fit"],
    interval=(np.zeros(4), np.ones(4)),
    diagonal=True,
)


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("picture", [GRID, CURVE, SCATTER], ids=["grid", "curve", "scatter"])
def test_the_same_picture_gives_the_same_bytes(picture):
    assert Drawing(picture, "t").svg() == Drawing(picture, "t").svg()


def test_a_png_is_the_same_in_another_process_whatever_the_readers_settings(tmp_path):
    drawing = Drawing(CURVE, "Spectrum").save(tmp_path / "a.png")
    script = (
        "import sys, matplotlib; matplotlib.rcParams['axes.facecolor'] = 'red'\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from test_plot import CURVE, Drawing; Drawing(CURVE, 'Spectrum').save(sys.argv[1])"
    )
    paths = [*filter(None, sys.path), str(Path(__file__).parent)]
    subprocess.run([sys.executable, "-c", script, tmp_path / "b.png", *paths], check=True)
    assert drawing.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert drawing.read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_grid_shows_every_label_text_value_unit_and_the_chance_level():
    found = texts(Drawing(GRID, "What L9H6.ov writes").svg())
    assert {"·the", "日本", r"\n", "·$x$", "<b>", "_{y}", "한국어", r"\x07"} <= set(found)
    assert {"0.43", "-0.31", "–", "token", "dyad"} <= set(found)
    assert {"cosine", "What L9H6.ov writes", "a dyad with a long name"} <= set(found)
    assert any("±0.12" in text for text in found)


def test_axes_say_their_units_and_the_band_its_name():
    assert {"dyad", "gain (σ)", "L9H6.ov", "random", "chance"} <= set(texts(Drawing(CURVE).svg()))
    assert {"predicted (logit)", "measured (logit)", "fit", "prediction", "y = x"} <= set(texts(Drawing(SCATTER).svg()))


def test_points_that_stand_out_get_their_names():
    found = texts(Drawing(SCATTER).svg())
    assert "x" in found
    assert "y" not in found  # that point has no place


def test_a_name_at_the_right_end_stands_left_of_its_point():
    """So that it does not run over the key beside the plot; with a diagonal the plot is square."""
    y = np.array([0.0, 5.0, 9.0])
    points = Scatter(
        np.array([0.0, 1.0, 10.0]), y, "x", "y", "", "", labels=["left", "mid", "L0.mlp.out:38"], diagonal=True
    )
    sides = {t.get_text(): t.get_ha() for t in figure(points).axes[0].texts}
    assert sides["L0.mlp.out:38"] == "right"
    assert sides["mid"] == "left"


def test_a_fine_grid_has_fewer_labels_than_rows():
    fine = Grid(np.ones((200, 4)), [f"r{i}" for i in range(200)], list("abcd"))
    ax = figure(fine).axes[0]
    assert 50 < len(ax.get_yticks()) <= 100
    assert not ax.texts


def test_a_png_spells_what_no_font_here_can_draw(monkeypatch):
    monkeypatch.setattr("covector.render.plot._glyphs", lambda: frozenset(map(ord, "abc·the")))
    labels = [t.get_text() for t in figure(GRID, glyphs_only=True).axes[0].get_yticklabels()]
    assert labels[:2] == ["·the", r"\u65e5\u672c"]


def test_a_table_draws_its_picture_to_each_kind_of_file(tmp_path):
    table = Table([Column("a", [1])], title="T <1>", says="It says.", not_says="It does not.", picture=GRID)
    for suffix in ("svg", "html"):
        table.plot(tmp_path / f"p.{suffix}")
    html = (tmp_path / "p.html").read_text()
    assert html.startswith("<!doctype html>")
    assert "T &lt;1&gt;" in html
    assert "It does not." in html
    assert "<?xml" not in html
    assert "日本" in html
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert table.plot()._repr_svg_() == (tmp_path / "p.svg").read_text()


def test_another_suffix_is_refused_naming_the_three(tmp_path):
    with pytest.raises(BadRequest, match=r"ends in \.png, \.svg or \.html, came 'p.pdf'"):
        Drawing(GRID).save(tmp_path / "p.pdf")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install covector\[plot\]"):
        Drawing(GRID).svg()


def test_rendering_a_table_imports_no_heavy_library():
    script = (
        "import sys, covector.render\n"
        "heavy = {'pandas', 'pyarrow', 'matplotlib', 'rich.console', 'rich.text', 'jaxtyping', 'torch', 'scipy'}\n"
        "sys.exit(repr(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.returncode == 0, done.stderr
