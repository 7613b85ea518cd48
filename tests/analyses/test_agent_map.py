"""All dyads against all labels: the published numbers, what was planted, words of a cell, chance, faces."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import covector
from agent_toys import ACTIONS, dyads_of, little_agent, unit
from covector.analyses.agent_map import agent_map, means
from covector.analyses.agent_map_contrasts import action_contrasts
from covector.cli.main import run
from covector.errors import BadRank, BadRequest, BadSite, FrameUnavailable, UnknownBasis
from covector.model.opened import Model
from covector.render import Grid, Table

LAYOUTS = Path(__file__).parents[1] / "layouts"


@pytest.fixture(scope="module")
def obstacles(shared: Path) -> Model:
    name = "dt-minigrid-obstacles"
    return covector.open(str(shared / "models" / name), layout=LAYOUTS / f"{name}.toml")


def cell(table: Table, site: str, side: str, dyad: int, label: str) -> dict:
    wanted = (site, side, dyad, label)
    return next(r for r in table.rows if (r["site"], r["side"], r["dyad"], r["label"]) == wanted)


# §3.13 of the theory page


@pytest.mark.identity("SV-4")
@pytest.mark.parametrize(
    ("dyad", "published"), [(0, (0.4115, 0.3237, -0.7531)), (1, (0.5058, -0.4424, -0.0618))], ids=["turn", "left|right"]
)
def test_a_written_dyad_has_the_published_cosines_with_left_right_forward(obstacles, dyad, published) -> None:
    table = agent_map(obstacles, "action_out", sites="L0.mlp.out", dyads=2)
    found = np.array([cell(table, "L0.mlp.out", "write", dyad, name)["cos"] for name in ACTIONS])
    # A pair of singular vectors has either sign.
    np.testing.assert_allclose(found * np.sign(found[0]), published, atol=0.00005)


def test_the_first_written_dyads_are_turn_against_forward_and_left_against_right(obstacles) -> None:
    table = action_contrasts(obstacles, sites="L0.mlp.out", draws=500)
    first, second = ({r["dyad"]: r for r in table.rows}[i] for i in (0, 1))
    assert set(first["contrast"].split(" against ")) == {"turn", "forward"}
    assert set(second["contrast"].split(" against ")) == {"left", "right"}
    # By hand: the contrast of the raw output vectors, and the share in the plane that the differences span.
    A = obstacles.weights["out.action.W"].T.astype(float)
    W = obstacles.weights["L0.W_out"].astype(float)
    v = np.linalg.svd(W)[2]
    for row, weights in ((first, (0.5, 0.5, -1)), (second, (1, -1, 0))):
        c = np.array(weights) @ A
        assert row["cos"] == pytest.approx(abs(v[row["dyad"]] @ c) / np.linalg.norm(c), rel=1e-6)
        D = np.stack([A[0] - A[1], A[0] - A[2]])
        assert row["energy"] == pytest.approx(np.sum((np.linalg.pinv(D) @ D @ v[row["dyad"]]) ** 2), rel=1e-6)
        # Of two dimensions among 128: Beta(1, 63).
        assert row["p"] == pytest.approx(stats.beta.sf(row["energy"], 1, 63), rel=1e-9)


def test_actions_that_were_never_seen_and_heads_never_trained_have_no_cell_beyond_chance(obstacles) -> None:
    table = agent_map(obstacles, "action_in")
    assert table["q"].min() > 0.05
    assert "no dyad here lies along a label" in table.says
    state = agent_map(obstacles, "state_out", dyads=4)
    assert set(state["untrained"]) == {"head"}
    assert "the state head was never trained (weights spread evenly" in state.not_says
    assert set(agent_map(obstacles, "action_out", dyads=4)["untrained"]) == {""}


def test_the_defect_of_the_post_hides_what_the_second_mlp_matrix_writes(obstacles) -> None:
    table = agent_map(obstacles, "action_out", sites="L0.mlp.out", dyads=128)
    A = obstacles.bases["action_out"].unit().astype(float)
    rows_of_v = np.linalg.svd(obstacles.weights["L0.W_out"].astype(float))[2].T
    assert np.abs(table["cos"]).max() == pytest.approx(0.7531, abs=0.00005)
    assert np.abs(rows_of_v @ A.T).max() == pytest.approx(0.240, abs=0.0005)


# What is planted


def planted() -> tuple[Model, np.ndarray]:
    """Block 1's MLP writes turn against forward first, then an action's vector, then the common shift."""
    A = little_agent().stored["out.action.W"].T
    common = unit(A.sum(axis=0))
    turn = unit((A[0] + A[1]) / 2 - A[2])
    second = unit(A[1] - (A[1] @ turn) * turn)
    rows = np.linalg.qr(np.stack([turn, second, common]).T)[0].T
    rows *= np.sign(np.sum(rows * np.stack([turn, second, common]), axis=1, keepdims=True))
    return little_agent(L1__W_out=dyads_of(rows)), rows


@pytest.mark.identity("SV-5")
def test_a_planted_contrast_is_found_where_it_was_planted_and_by_its_name() -> None:
    model, _ = planted()
    table = action_contrasts(model, draws=500)
    top = table.rows[0]
    assert (top["site"], top["side"], top["dyad"]) == ("L1.mlp.out", "write", 0)
    assert top["energy"] == pytest.approx(1, abs=1e-9)
    assert top["cos"] == pytest.approx(1, abs=1e-9)
    assert set(top["contrast"].split(" against ")) == {"turn", "forward"}
    assert top["p_contrast"] < 1e-20
    assert top["ignored"] == pytest.approx(0, abs=1e-9)


def test_what_all_actions_share_is_seen_by_cosines_and_ignored_by_the_contrasts() -> None:
    A = little_agent().stored["out.action.W"].T
    frame = np.linalg.qr((A - A.mean(axis=0))[:2].T)[0].T
    common = unit(A.sum(axis=0) - A.sum(axis=0) @ frame.T @ frame)
    model = little_agent(L1__W_out=dyads_of(common[None]))
    row = next(r for r in action_contrasts(model, sites="L1.mlp.out", draws=200).rows)
    assert row["energy"] == pytest.approx(0, abs=1e-9)
    assert row["ignored"] == pytest.approx(1, abs=1e-9)
    cosines = [cell(agent_map(model, "action_out"), "L1.mlp.out", "write", 0, a)["cos"] for a in ACTIONS]
    assert np.abs(cosines).min() > 0.3


def test_cells_are_those_of_dense_algebra_on_every_side() -> None:
    model = little_agent()
    table = agent_map(model, "action_out,return_in", dyads=3)
    assert len(table) == (2 * 2 + 2 * 2 * 2 * 2) * 3 * 4
    assert np.all(np.diff(table["p"]) >= 0)
    units = {name: model.bases[name].unit() for name in ("action_out", "return_in")}
    for row in table.rows[:: len(table) // 40]:
        U, S, Vh = np.linalg.svd(np.asarray(model.map(row["site"]).dense(), float))
        v = U[:, row["dyad"]] if row["side"] in ("read", "query") else Vh[row["dyad"]]
        e = units[row["basis"]][model.bases[row["basis"]].labels.index(row["label"])]
        assert abs(row["cos"]) == pytest.approx(abs(v @ e), abs=1e-9)
        assert row["sigma"] == pytest.approx(S[row["dyad"]], rel=1e-9)
        assert row["p"] == pytest.approx(stats.beta.sf(row["cos"] ** 2, 0.5, 47 / 2), rel=1e-6)
        if row["side"] == "write" and row["basis"] == "action_out":
            added = S[row["dyad"]] * v @ model.stored["out.action.W"]
            assert abs(row["direct"]) == pytest.approx(abs(added[ACTIONS.index(row["label"])]), rel=1e-6)
        else:
            assert row["direct"] is None


@pytest.mark.slow
@pytest.mark.identity("SV-30")
def test_one_random_agent_in_twenty_has_a_cell_beyond_the_level_or_a_q_below_it() -> None:
    beyond, discovered, agents = 0, 0, 100
    for seed in range(agents):
        table = agent_map(little_agent(seed, d_model=16, n_layers=1), "action_out", dyads=4)
        beyond += np.abs(table["cos"]).max() > table.meta["level"]
        discovered += table["q"].min() <= 0.05
    # Union bounds: at most 5 ± 2.2 of 100.
    assert beyond <= 12
    assert discovered <= 12


def test_a_cell_says_what_its_kind_says() -> None:
    assert means("write", "action_out") == "writes the action"
    assert means("read", "action_out") == "reads an action already written"
    assert means("read", "state_in") == "reads the state input"
    assert means("query", "return_in") == "asks from the return input"
    assert means("key", "state_out:centred") == "is found by a state already written"
    assert means("write", "action_in") == "writes as the action is embedded"


# Heads without training


def test_a_head_that_agent_json_names_and_rows_as_at_the_beginning_are_marked() -> None:
    model = covector.open("demo-dt")
    assert model.meta["untrained"] == ["state", "return"]
    table = agent_map(model, "return_out,action_out", sites="L*.mlp.out", dyads=2)
    marks = {r["basis"]: r["untrained"] for r in table.rows}
    assert marks == {"return_out": "head", "action_out": ""}
    assert table.meta["untrained_heads"] == ["return_out"]
    bare = dataclasses.replace(model, identity={k: v for k, v in model.identity.items() if k != "untrained"})
    again = agent_map(bare, "return_out", sites="L*.mlp.out", dyads=2)
    assert "bias exactly zero" in again.not_says


def test_rows_as_training_found_them_can_be_left_out() -> None:
    table = np.random.default_rng(0).standard_normal((60, 48)) * 0.1
    table[:10] *= 4
    model = little_agent(in__timestep__W=table)
    found = agent_map(model, "timestep_in", sites="L0.mlp.in", dyads=1)
    marked = {r["label"] for r in found.rows if r["untrained"]}
    assert len(marked) >= 48
    assert not marked & {f"timestep {i}" for i in range(10)}
    left = agent_map(model, "timestep_in", sites="L0.mlp.in", dyads=1, without="trained")
    assert {r["label"] for r in left.rows} == {r["label"] for r in found.rows} - marked


# Faces


def test_the_picture_has_a_panel_per_block_and_matrix_side() -> None:
    model, _ = planted()
    table = agent_map(model, "action_out", dyads=2)
    grid = table.picture(table)
    assert isinstance(grid, Grid)
    # Two blocks of two heads each: 4 bands of 2 dyads with 3 seams; 6 matrix sides of 3 labels with 5 seams.
    assert grid.values.shape == (4 * 2 + 3, 6 * 3 + 5)
    assert grid.chance == table.meta["level"]
    columns = list(grid.column_labels)
    at = columns.index("W_out write · left")
    row = list(grid.row_labels).index("L1H0 · 0")
    for k, name in enumerate(ACTIONS):
        assert grid.values[row, at + k] == cell(table, "L1.mlp.out", "write", 0, name)["cos"]
    assert np.isnan(grid.values[list(grid.row_labels).index("L1H1 · 0"), at])
    assert table.plot().png()[:4] == b"\x89PNG"
    contrasts = action_contrasts(model, draws=100)
    assert contrasts.plot().png()[:4] == b"\x89PNG"


def test_requests_that_make_no_sense_are_refused() -> None:
    model = little_agent()
    for error, match, call in (
        (UnknownBasis, "expected a basis", lambda: agent_map(model, "token_out")),
        (BadRequest, "several with commas", lambda: agent_map(model, " , ")),
        (BadRank, "dyads >= 1", lambda: agent_map(model, "action_out", dyads=0)),
        (BadSite, "outside", lambda: agent_map(model, "action_out", sites="L9.mlp.in")),
        (BadRequest, "whitening", lambda: agent_map(model, "action_out:whitened")),
        (FrameUnavailable, "bias", lambda: agent_map(model.framed("raw+bias"), "action_out")),
        (BadRequest, "softmax", lambda: action_contrasts(model, "action_in")),
        (BadRequest, "2 to 32 outputs", lambda: action_contrasts(model, "state_out")),
        (BadRequest, "among left, right, forward, got 'up'", lambda: action_contrasts(model, contrasts="up - left")),
    ):
        with pytest.raises(error, match=match):
            call()


def test_actions_behind_a_tanh_have_no_contrasts() -> None:
    model = little_agent()
    out = dataclasses.replace(model.spec.outputs[0], activation="tanh")
    spec = dataclasses.replace(model.spec, outputs=(out, *model.spec.outputs[1:]))
    weights = dataclasses.replace(model.stored, spec=spec)
    with pytest.raises(BadRequest, match="go through tanh"):
        action_contrasts(dataclasses.replace(model, stored=weights, weights=weights))


def test_the_command_shows_dyads_and_contrasts_and_writes_them_all(tmp_path, capsys) -> None:
    words = ["locate", "demo-dt", "action_out", "--sites", "L2.mlp.out", "--dyads", "3", "--top", "2"]
    assert run([*words, "--by", "dyads", "--out", str(tmp_path), "--plot", str(tmp_path / "map.png")]) == 0
    shown = capsys.readouterr().out
    assert "writes the action" in shown
    assert "next: covector rollout demo-dt --arm edit=" in shown
    assert len(json.loads((tmp_path / "agent_map.json").read_text())["rows"]) == 3 * 7
    assert run([*words, "--by", "contrasts", "--contrast", "left + right - forward", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 3
    assert "turn against forward" in found["meta"]["contrasts"]
    for more, told in (
        (["--by", "rows"], "expected places, dyads, contrasts"),
        (["--by", "dyads", "--map", "L0.mlp.in:0"], "expected one of --map, --curve and --by"),
        (["--contrast", "left - right"], "--by contrasts"),
        (["--by", "dyads", "--concept", "left"], "--concept goes with places"),
        (["--path", "L0H0>out"], "--path goes with --map"),
    ):
        assert run([*words, *more]) == 2
        assert told in capsys.readouterr().err
