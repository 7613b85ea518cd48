"""Weight scores beside effects: where an action is planted in one dyad, score, change of actions and harm agree."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import spearmanr

import covector
from covector.analyses.behaviour import every_dyad, scored
from covector.analyses.rollout import Experiment, Options
from covector.analyses.rollout_arms import CLEAN, arms_of
from covector.errors import BadRequest
from covector.render import Table
from covector.rollouts import behaviour_table, experiment
from covector.run.edit_runs import decoder_of
from covector.run.edited import laid_over
from covector.run.replay import moments, values
from little_worlds import PLANTED_DYAD, PLANTED_SITE, planted_agent

SITES = "L*.mlp.out,L1H*.ov"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Table]:
    folder = tmp_path_factory.mktemp("planted")
    planted_agent(folder)
    x = experiment(
        folder, env="little_worlds:lamp", options=Options(episodes=12, controls=0), each=SITES, dyads=4, on="threads",
        workers=1,
    )  # fmt: skip
    return x, behaviour_table(x)


@pytest.mark.slow
def test_the_planted_dyad_scores_and_harms_most(played: tuple[Experiment, Table]) -> None:
    _, table = played
    assert (table["site"][0], int(table["dyad"][0])) == (PLANTED_SITE, PLANTED_DYAD)
    assert abs(table["cos"][0]) == pytest.approx(1, abs=1e-5), "it writes the very direction that the head reads"
    assert np.argmax(np.abs(table["cos"])) == 0
    assert np.argmax(table["harm"]) == 0
    assert table["harm"][0] > 8, "without it each step of 15 is a guess"
    assert table["contrast"][0] == pytest.approx(1, abs=1e-5)
    # Nothing else writes that direction: straight out, no other dyad moves the action.
    assert np.abs(table["cos"][1:]).max() < 1e-5
    assert table["straight"][1:].max() < 1e-7  # float32


def test_scores_are_those_of_the_weights(played: tuple[Experiment, Table], tmp_path: Path) -> None:
    x, table = played
    W = x.model.stored["L1.W_out"].astype(np.float64)
    _, S, Vh = np.linalg.svd(W, full_matrices=False)
    A = x.model.stored["out.action.W"].astype(np.float64).T
    units = A / np.linalg.norm(A, axis=1, keepdims=True)
    rows = {(r["site"], int(r["dyad"])): r for r in table.rows}
    centred = A - A.mean(axis=0)
    for i in range(4):
        row = rows["L1.mlp.out", i]
        assert row["σ"] == pytest.approx(S[i], rel=1e-6)
        assert abs(row["cos"]) == pytest.approx(np.abs(units @ Vh[i]).max(), abs=1e-6)
        assert row["gain"] == pytest.approx(S[i] * np.linalg.norm(centred @ Vh[i]), rel=1e-5, abs=1e-6)


def test_effects_are_those_of_the_edited_model(played: tuple[Experiment, Table]) -> None:
    x, table = played
    decoder = decoder_of(x.model, "float64")
    seen = moments(x.agent, x.model.spec, x.recorded, 256)
    plain = log_softmax(values(decoder, seen), axis=1)
    rows = {f"{r['site']}:{int(r['dyad'])}": r for r in table.rows}
    for arm in x.arms[:3]:
        other = log_softmax(values(laid_over(decoder, arm.part.change), seen), axis=1)
        kl = (np.exp(plain) * (plain - other)).sum(axis=1).mean()
        assert rows[arm.name]["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        harm = (x.returns(CLEAN) - x.returns(arm.name)).mean()
        assert rows[arm.name]["harm"] == pytest.approx(harm, abs=1e-12)


def test_the_rank_correlations_are_over_all_dyads(played: tuple[Experiment, Table]) -> None:
    _, table = played
    found = table.meta["rank_correlations"]["cos ~ kl"]
    assert found["n"] == len(table)
    assert found["value"] == pytest.approx(spearmanr(np.abs(table["cos"]), table["kl"]).statistic, abs=1e-9)
    assert found["low"] <= found["value"] <= found["high"]


def test_a_side_outside_the_stream_is_refused_and_too_few_dyads_are(tmp_path: Path) -> None:
    planted_agent(tmp_path)
    model = covector.open(tmp_path)
    with pytest.raises(BadRequest, match="three dyads or more"):
        every_dyad(model, "L0.mlp.out", 2)
    (arm,) = arms_of(model, {"in": "L1.mlp.in:0*0"})
    assert scored(model, arm).side == "read"
