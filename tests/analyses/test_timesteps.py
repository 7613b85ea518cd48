"""Curves over time: a planted clock is found, a smooth table by itself is not one, unreached steps are left out."""

import json

import numpy as np
import pytest

from agent_toys import STEPS, little_agent, unit
from covector.analyses.agent_direction import direction
from covector.analyses.timesteps import components, timesteps
from covector.cli.main import run
from covector.errors import BadRequest
from covector.model.opened import Model

D = 48


def smooth_table(seed: int = 0) -> np.ndarray:
    """Steps that drift: neighbours are alike, and the first components go with time."""
    walk = np.cumsum(np.random.default_rng(seed).standard_normal((STEPS, D)), axis=0)
    return walk + np.random.default_rng(seed + 1).standard_normal((STEPS, D))


def reading(table: np.ndarray, row: np.ndarray, seed: int = 0) -> Model:
    out = np.linalg.qr(np.random.default_rng(seed).standard_normal((40, 1)))[0].T
    return little_agent(seed, in__timestep__W=table, L0__W_in=2 * row[:, None] @ out)


def test_a_direction_that_the_table_grows_along_follows_time() -> None:
    rng = np.random.default_rng(4)
    row = unit(rng.standard_normal(D))
    table = rng.standard_normal((STEPS, D)) + np.linspace(-8, 8, STEPS)[:, None] * row
    model = reading(table, row)
    found = timesteps(model, [direction(model, "L0.mlp.in:0")], draws=500).rows[0]
    units = table / np.linalg.norm(table, axis=1, keepdims=True)
    curve = units @ row
    assert abs(found["trend"]) == pytest.approx(abs(np.corrcoef(curve, np.arange(STEPS))[0, 1]), rel=1e-9)
    assert abs(found["peak"]) == pytest.approx(np.abs(curve).max(), rel=1e-9)
    assert found["step"] == np.abs(curve).argmax()
    # Mean over Haar directions of the variance of u·e: the trace of the table's covariance over d.
    scale = np.trace(np.cov(units.T, bias=True)) / D
    assert found["swing"] == pytest.approx(curve.std() / np.sqrt(scale), rel=1e-9)
    assert found["familywise"] == pytest.approx(1 / 501)
    np.testing.assert_allclose(np.abs(found["curve"]), np.sqrt(D) * np.abs(curve), atol=1e-9)


def test_random_directions_along_a_smooth_table_are_called_in_one_model_of_twenty() -> None:
    called, naive, models = 0, 0, 60
    for seed in range(models):
        row = unit(np.random.default_rng((seed, 7)).standard_normal(D))
        model = reading(smooth_table(seed), row, seed)
        found = timesteps(model, [direction(model, "L0.mlp.in:0")], draws=199, seed=seed).rows[0]
        called += found["familywise"] <= 0.05
        # Steps taken for independent: |r| beyond 1.96/√n.
        naive += abs(found["trend"]) > 1.96 / np.sqrt(STEPS)
    # Binomial: 60 × .05 = 3 ± 1.7; the naive test calls most of them a trend.
    assert called <= 8
    assert naive > models / 2


@pytest.mark.identity("SV-39")
def test_steps_that_were_never_reached_are_gaps_in_the_curve_and_in_no_statistic() -> None:
    rng = np.random.default_rng(5)
    row = unit(rng.standard_normal(D))
    table = 0.02 * rng.standard_normal((STEPS, D))
    table[:20] += np.linspace(-1, 1, 20)[:, None] * row + 0.3 * unit(rng.standard_normal(D))
    model = reading(table, row)
    found = timesteps(model, [direction(model, "L0.mlp.in:0")], draws=200)
    assert found.meta["trained"] == 20
    assert [v is None for v in found.rows[0]["curve"]] == [t >= 20 for t in range(STEPS)]
    units = table[:20] / np.linalg.norm(table[:20], axis=1, keepdims=True)
    assert abs(found.rows[0]["trend"]) == pytest.approx(abs(np.corrcoef(units @ row, np.arange(20))[0, 1]), rel=1e-9)
    assert "40 steps look untrained" in found.not_says
    picture = found.picture(found)
    assert len(picture.x) == 20


def test_components_of_a_drifting_table_go_with_time_and_those_of_noise_do_not() -> None:
    model = little_agent(in__timestep__W=smooth_table())
    first = components(model, draws=50).rows[0]
    table = model.bases["timestep_in"].unit()
    values = np.linalg.svd(table - table.mean(axis=0), compute_uv=False) ** 2
    assert first["share"] == pytest.approx(values[0] / values.sum(), rel=1e-9)
    assert first["share"] > 2 * first["share_level"]
    assert first["with_time"] > 0.8
    assert np.corrcoef(first["scores"], np.arange(STEPS))[0, 1] == pytest.approx(first["with_time"], rel=1e-9)
    # Noise with one direction in common, so that it does not look untouched; its order means nothing.
    rng = np.random.default_rng(6)
    noise = rng.standard_normal((STEPS, D)) + 2 * rng.standard_normal(D) * rng.choice([-1, 1], STEPS)[:, None]
    assert components(little_agent(in__timestep__W=noise), draws=50).rows[0]["p_time"] > 0.01


def test_a_table_that_nothing_trained_and_a_model_without_one_say_so() -> None:
    model = little_agent(in__timestep__W=np.random.default_rng(8).standard_normal((STEPS, D)))
    with pytest.raises(BadRequest, match="expected 8 trained steps or more"):
        timesteps(model, [direction(model, "L0.mlp.in:0")])
    from covector import open as open_model

    toy = open_model("toy")
    with pytest.raises(BadRequest, match="expected an agent with a table of timesteps"):
        timesteps(toy, [direction(toy, "L0H0.ov:0")])
    with pytest.raises(BadRequest, match="expected a direction"):
        timesteps(model, [])


def test_the_bundled_agent_tells_time_where_its_first_head_attends_and_copies(tmp_path, capsys) -> None:
    words = ["locate", "demo-dt", "timestep_in", "--draws", "400"]
    assert run([*words, "--curve", "L0H0.ov:0", "--curve", "L0H0.qk:0.key", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["direction"] for r in rows] == ["L0H0.ov:0 read", "L0H0.qk:0 key"]
    assert all(r["familywise"] <= 0.05 and r["swing"] > 2 for r in rows)
    assert run([*words, "--curve", "components", "--plot", str(tmp_path / "c.svg")]) == 0
    assert "goes with time" in capsys.readouterr().out
    assert run([*words, "--curve", "components", "--curve", "L0H0.ov:0"]) == 2
    assert "of the table alone" in capsys.readouterr().err
