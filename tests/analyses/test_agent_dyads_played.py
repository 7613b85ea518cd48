"""What dyads of an agent do and what the agent mostly does: removals at recorded moments, dyads against actions."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

import covector
from agent_toys import dyads_of as written
from agent_toys import little_agent
from covector.analyses.agent_map import agent_map
from covector.analyses.dyad_clusters import dyad_clusters
from covector.analyses.rollout import Options
from covector.analyses.rollout_actions import by_actions, usual
from covector.errors import BadRequest
from covector.rollouts import COMPARED, behaviour, experiment, with_total_effects
from covector.run.decoder import Decoder
from covector.run.edit_runs import decoder_of
from covector.run.replay import moments, values
from covector.study.edit import Edit
from little_worlds import PLANTED_SITE, agent_values, planted_agent, random_agent


@pytest.fixture(scope="module")
def wanderer(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("wanderer")
    random_agent(found, tanh=False, values=agent_values(True))
    return found


def play(folder: Path, **more):
    return experiment(folder, None, env="little_worlds:drift", on="threads", workers=1, options=Options(32, 0), **more)


# Total effects


@pytest.mark.slow
def test_direct_and_total_are_those_of_each_dyad_alone(wanderer):
    """Against the same numbers as rollout --each, and the total against its definition."""
    model = covector.open(wanderer)
    table = agent_map(model, "action_out", sites="L0.mlp.out,L1H1.ov", side="write", dyads=3)
    found = with_total_effects(table, wanderer, env="little_worlds:drift")
    each = behaviour(wanderer, "L0.mlp.out,L1H1.ov", dyads=3, env="little_worlds:drift", on="threads", workers=1,
                     options=Options(32, 0))  # fmt: skip
    known = {(r["site"], r["dyad"]): r for r in each.rows}
    x = play(wanderer)
    decoder: Decoder = decoder_of(x.model, "float32")
    seen = moments(x.agent, x.model.spec, x.recorded, COMPARED)
    plain = log_softmax(values(decoder, seen), axis=1)
    for row in found.rows:
        same = known[row["site"], row["dyad"]]
        for name, other in (("straight", "straight"), ("total", "kl"), ("other", "other")):
            assert row[name] == pytest.approx(same[other], rel=1e-6, abs=1e-9, nan_ok=True)
    site, dyad = found.rows[0]["site"], found.rows[0]["dyad"]
    edited = x.model.edited(Edit.parse(f"{site}:{dyad}*0"))
    moved = log_softmax(values(Decoder(edited.weights, decoder.dtype), seen), axis=1)
    expected = np.mean(np.sum(np.exp(plain) * (plain - moved), axis=1))
    assert found.rows[0]["total"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found.meta["moments"] == seen.count
    assert "moves the action most" in found.says


def test_the_planted_dyad_has_the_only_total_effect(tmp_path):
    planted_agent(tmp_path)
    table = agent_map(covector.open(tmp_path), "action_out", sites=PLANTED_SITE, side="write", dyads=4)
    rows = with_total_effects(table, tmp_path, env="little_worlds:lamp").rows
    total = {row["dyad"]: row["total"] for row in rows}
    straight = {row["dyad"]: row["straight"] for row in rows}
    assert total[0] > 0.1
    assert straight[0] == pytest.approx(total[0], rel=1e-3), "nothing but the final norm stands behind the last block"
    assert max(v for k, v in total.items() if k) < 1e-3 * total[0]


def test_total_effects_need_actions_and_the_raw_frame(wanderer):
    model = covector.open(wanderer)
    with pytest.raises(BadRequest, match="--total: expected the basis action_out"):
        with_total_effects(agent_map(model, "state_in"), wanderer)
    with pytest.raises(BadRequest, match="--total: expected frame raw"):
        with_total_effects(agent_map(model, "action_out", frame="folded"), wanderer)


# What it mostly does


def test_the_mean_action_is_the_mean_of_the_actions_taken(wanderer):
    x = play(wanderer)
    done, taken = usual(x), [a for e in x.of("clean") for a in e.actions]
    basis = x.model.bases["action_out"]
    np.testing.assert_allclose(done.mean, np.mean([basis.vectors[a] for a in taken], axis=0), rtol=1e-5, atol=1e-7)
    assert done.names[done.common] == basis.labels[max(set(taken), key=taken.count)]
    table = by_actions(x, dyads=2)
    row = next(r for r in table.rows if r["site"] == "L1.mlp.out" and r["dyad"] == 1 and r["side"] == "write")
    v = np.linalg.svd(x.model.map("L1.mlp.out").dense())[2][1]
    assert abs(row["cos"]) == pytest.approx(abs(v @ done.mean) / np.linalg.norm(done.mean), abs=1e-6)
    assert abs(row["common"]) == pytest.approx(
        abs(v @ basis.vectors[done.common]) / np.linalg.norm(basis.vectors[done.common]), abs=1e-6
    )
    nearest = np.abs(basis.unit() @ v).argmax()
    assert row["nearest"] == basis.labels[nearest]
    assert {r["rank"] for r in table.rows} == {1, 2}


def test_an_agent_that_turns_both_ways_alike_has_its_planted_dyad_at_the_actions_and_not_at_their_mean(tmp_path):
    """Heads are (−e, e): the dyad lies along either action; the mean of both, taken equally often, is what is left."""
    planted_agent(tmp_path)
    x = experiment(tmp_path, None, env="little_worlds:lamp", on="threads", workers=1, options=Options(40, 0))
    table = by_actions(x)
    row = next(r for r in table.rows if (r["site"], r["dyad"], r["side"]) == (PLANTED_SITE, 0, "write"))
    assert abs(row["common"]) == pytest.approx(1, abs=1e-5)
    assert row["p_common"] < 1e-6
    done = usual(x)
    assert abs(row["cos"]) == pytest.approx(1, abs=1e-5), "shares are not exactly equal: what is left lies along e"
    assert np.linalg.norm(done.mean) < 0.2 * np.linalg.norm(done.vectors[0])


# Groups


def states(seed: int = 8, d_model: int = 48) -> np.ndarray:
    """Embeddings of cells that do not look as training found them: a few common factors."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((50, 12)) @ rng.standard_normal((12, d_model))


def test_places_that_read_the_same_states_are_clusters():
    """Both blocks' W_in read the same four directions of the states' space; of eight dyads four pairs are alike."""
    table_of_states = states()
    rows = np.linalg.qr(table_of_states[[0, 7, 21, 33]].T)[0].T
    first, second = (np.ascontiguousarray(written(rows, seed=i).T) for i in range(2))
    agent = little_agent(in__state__W=table_of_states, L0__W_in=first, L1__W_in=second)
    table = dyad_clusters(agent, sites="L*.mlp.in", dyads=4, draws=99)
    assert table.meta["p_silhouette"] < 0.05
    of = {(r["site"], r["dyad"]): r["cluster"] for r in table.rows}
    for dyad in range(4):
        assert of["L0.mlp.in", dyad] == of["L1.mlp.in", dyad]
    assert len(set(of.values())) == 4
    assert table.says.startswith("4 clusters of 2, 2, 2, 2 dyads")


def test_random_agents_have_no_clusters_and_the_sentence_says_so():
    table = dyad_clusters(little_agent(seed=3, in__state__W=states()), draws=60)
    assert table.meta["p_silhouette"] > 0.05
    assert table.says.startswith("No clusters beyond chance")
    assert len(table) == len({(r["site"], r["side"], r["dyad"]) for r in table.rows})
