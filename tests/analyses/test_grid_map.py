"""Maps of a grid world: planted shapes are found, smooth embeddings are no shape, values stand on their cells."""

import json
from pathlib import Path

import numpy as np
import pytest

import covector
from agent_toys import CELLS, SIDE, little_agent, unit
from covector.analyses.agent_direction import direction, of_feature, of_observable
from covector.analyses.grid_map import grid_map
from covector.cli.main import run
from covector.errors import BadRank, BadRequest
from covector.io.feature_file import save_feature
from covector.model.opened import Model
from covector.study.feature import Feature

LAYOUTS = Path(__file__).parents[1] / "layouts"
D = 64
SPREAD = np.array([(c, x, y) for c in range(2) for x in range(SIDE) for y in range(SIDE)])


def with_blob(seed: int = 0) -> tuple[Model, np.ndarray]:
    """W_in of block 0 reads keys by their nearness to (1, 3); cells are embedded orthogonally, at many lengths."""
    rng = np.random.default_rng(seed)
    cells = np.linalg.qr(rng.standard_normal((D, len(CELLS))))[0].T
    lengths = np.geomspace(1, 8, len(CELLS))[rng.permutation(len(CELLS)), None]
    weights = np.exp(-np.abs(SPREAD[:, 1:] - (1, 3)).sum(axis=1) / 2) * (SPREAD[:, 0] == 1)
    read = unit(weights @ cells)
    out = np.linalg.qr(rng.standard_normal((40, 1)))[0].T
    model = little_agent(seed, d_model=D, in__state__W=lengths * cells, L0__W_in=5 * read[:, None] @ out)
    return model, unit(weights)


def test_a_planted_shape_is_found_on_its_channel_and_its_cells() -> None:
    model, weights = with_blob()
    table = grid_map(model, direction(model, "L0.mlp.in:0"), draws=500)
    key = table.rows[0]
    assert key["channel"] == "key"
    assert max(key["familywise"], key["fam_direction"]) <= 0.01
    assert key["peak"] == "x1 y3"
    sign = np.sign(key["cos"])
    laid = sign * np.array(key["map"], dtype=float) / np.sqrt(D)
    for (_, x, y), weight in zip(SPREAD[25:], weights[25:], strict=True):
        assert laid[y, x] == pytest.approx(weight, abs=1e-9)
    wall = next(r for r in table.rows if r["channel"] == "wall")
    np.testing.assert_allclose(np.array(wall["map"], dtype=float), 0, atol=1e-9)


def test_embeddings_that_are_smooth_themselves_make_every_map_smooth_and_none_a_finding() -> None:
    rng = np.random.default_rng(3)
    waves = np.stack([np.ones(50), SPREAD[:, 1] - 2, SPREAD[:, 2] - 2, 0.5 * (SPREAD[:, 0] == 0)], axis=1)
    model = little_agent(
        d_model=D, in__state__W=waves @ rng.standard_normal((4, D)) + 0.1 * rng.standard_normal((50, D))
    )
    below, beyond = 0, 0
    for dyad in range(20):
        table = grid_map(model, direction(model, f"L0.mlp.in:{dyad}"), draws=200)
        below += table["familywise"].min() <= 0.05
        beyond += table["fam_direction"].min() <= 0.05
    assert below >= 18
    # Binomial: 20 × .05 = 1 ± 1; a random W_in reads random directions.
    assert beyond <= 4


def test_the_cell_in_front_of_the_agent_is_what_moves_it_forward_or_not(shared: Path) -> None:
    name = "dt-minigrid-obstacles"
    model = covector.open(str(shared / "models" / name), layout=LAYOUTS / f"{name}.toml")
    found = of_observable(model, "forward - left", "L0H1>out")
    table = grid_map(model, found, draws=200)
    row = next(r for r in table.rows if r["channel"] == "object")
    # By hand: no norm anywhere, so the feature is the contrast through the head's OV map.
    A, at = model.weights["out.action.W"].astype(float), model.bases["state_in"].labels.index("object x3 y5")
    f = model.weights["L0.W_V"][1].astype(float) @ model.weights["L0.W_O"][1] @ (A[:, 2] - A[:, 0])
    e = model.bases["state_in"].vectors[at].astype(float)
    assert row["peak"] == "x3 y5"
    assert row["cos"] == pytest.approx(unit(f) @ unit(e), abs=1e-6)
    assert abs(row["cos"]) > table.column("cos").chance_level
    assert table.meta["left_out"] == {"no direction": 50, "untrained": 0}
    assert "50 labels left out (no direction)" in table.not_says


def test_cells_never_seen_are_left_out(shared: Path) -> None:
    name = "dt-minigrid-memory"
    model = covector.open(str(shared / "models" / name), layout=LAYOUTS / f"{name}.toml")
    table = grid_map(model, direction(model, "L0.mlp.in:0"), draws=100)
    assert 740 <= table.meta["left_out"]["untrained"] <= 770
    assert {"key", "ball"} <= set(table["channel"])
    assert "lava" not in table["channel"]


def test_a_direction_is_the_named_side_of_a_dyad_a_feature_or_a_vector() -> None:
    model = little_agent()
    U, _, Vh = np.linalg.svd(model.map("L0H1.qk").dense())
    for text, row in (("L0H1.qk:1", U[:, 1]), ("L0H1.qk:1.query", U[:, 1]), ("L0H1.qk:2.key", Vh[2])):
        assert abs(direction(model, text).row @ row) == pytest.approx(1, abs=1e-9)
    out = np.linalg.svd(model.map("L1.mlp.out").dense())[2]
    assert abs(direction(model, "L1.mlp.out:0").row @ out[0]) == pytest.approx(1, abs=1e-9)
    for error, match, text in (
        (BadRequest, "expected a dyad such as", "L0.mlp.in"),
        (BadRequest, "expected a dyad such as", "L0.mlp.in:first"),
        (BadRequest, "expected a side in the stream", "L1.mlp.out:0.read"),
        (BadRank, "has dyads 0–39", "L0.mlp.in:40"),
    ):
        with pytest.raises(error, match=match):
            direction(model, text)
    with pytest.raises(BadRequest, match="is zero there"):
        of_feature(Feature(np.zeros(48), 0.0, "L0.attn_in", "L0H0>out", "left", "ignore"))


def test_labels_that_name_no_cells_are_refused() -> None:
    model = little_agent()
    with pytest.raises(BadRequest, match="a map needs labels 'OBJECT xX yY', got 'left'"):
        grid_map(model, direction(model, "L0.mlp.in:0"), "action_in")


def test_the_command_draws_maps_of_a_dyad_an_observable_and_a_file(tmp_path: Path, capsys) -> None:
    words = ["locate", "demo-dt", "state_in", "--draws", "100"]
    assert run([*words, "--map", "L0.mlp.in:4", "--plot", str(tmp_path / "maps.png"), "--top", "3"]) == 0
    assert "channel" in capsys.readouterr().out
    assert (tmp_path / "maps.png").read_bytes()[:4] == b"\x89PNG"
    assert run([*words, "--map", "forward - left", "--path", "L0H0>out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["meta"]["direction"] == "forward - left > L0H0>out"
    assert {len(r["map"]) for r in found["rows"]} == {7}
    assert {sum(v is not None for line in r["map"] for v in line) for r in found["rows"]} == {
        r["cells"] for r in found["rows"]
    }
    model = covector.open("demo-dt")
    made = of_observable(model, "forward - left", "L0H0>out")
    file = save_feature(Feature(3 * made.row, 0.0, "L0.attn_in", "p", "o", "ignore"), tmp_path / "f.safetensors")
    assert run([*words, "--map", str(file), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [r["cos"] for r in again["rows"]] == pytest.approx([r["cos"] for r in found["rows"]], abs=1e-9)
    save_feature(Feature(np.ones(5), 0.0, "", "", "", ""), tmp_path / "short.safetensors")
    assert run([*words, "--map", str(tmp_path / "short.safetensors")]) == 2
    assert "expected a vector of 128 entries" in capsys.readouterr().err
