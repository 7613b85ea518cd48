"""Paired episodes of an agent, its edits and their controls: on an agent whose deciding dyad is known, and by hand.

The planted agent (`little_worlds.planted_agent`) turns to where a lamp shines; the direction in which its action is
read is written by one dyad of one W_out and by nothing else.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import covector
from covector.analyses.rollout import Experiment, Options
from covector.analyses.rollout_arms import arms_of
from covector.analyses.rollout_details import by_episode, by_target
from covector.analyses.rollout_picture import survival
from covector.analyses.rollout_tables import by_arm, by_control
from covector.errors import BadRequest, EnvironmentFailed
from covector.linalg.svd import svd
from covector.rollouts import experiment
from little_worlds import BROKEN, PLANTED_SITE, agent_values, planted_agent, random_agent

PLANTED, OTHER = f"{PLANTED_SITE}:0*0", f"{PLANTED_SITE}:1*0"
SMALL = Options(episodes=52, controls=1, control_episodes=2)
QUICK = Options(4, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("planted")
    planted_agent(found)
    return found


@pytest.fixture(scope="module")
def played(folder) -> Experiment:
    return experiment(
        folder, {"planted": PLANTED, "other": OTHER}, env="little_worlds:lamp", on="threads", workers=2,
        options=Options(episodes=20, controls=19, control_episodes=3, targets=(15.0, 0.0)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def wanderer(tmp_path_factory) -> Path:
    """A random agent with discrete actions in `Drift`."""
    found = tmp_path_factory.mktemp("wanderer")
    random_agent(found, tanh=False, values=agent_values(True))
    return found


def play(folder: Path, how: str = "threads", workers: int = 1, env: str = "drift", **more: Any) -> Experiment:
    more.setdefault("options", SMALL)
    return experiment(
        folder, {"cut": "L1.mlp.out:0*0"}, env=f"little_worlds:{env}", on=how, workers=workers, **more
    )  # fmt: skip


# The planted truth


def test_locate_names_the_planted_site_first_and_no_other(folder):
    table = covector.locate(covector.open(folder), "action_out")
    assert (table["site"][0], table["side"][0]) == (PLANTED_SITE, "write")
    assert table["familywise"][0] < 0.005
    assert min(table["familywise"][1:]) > 0.05
    assert table["cos"][0] == pytest.approx(1, abs=1e-6)


def test_removing_the_planted_dyad_breaks_the_agent_and_nothing_else_does(played):
    rows = {name: i for i, name in enumerate(by_arm(played)["arm"][:4])}
    table = {c: by_arm(played)[c] for c in ("return", "change", "p", "holm", "worse", "p_random", "p_dyads", "success")}
    planted, other = rows["planted"], rows["other"]
    assert table["return"][rows["clean"]] == table["return"][other] == 15
    assert table["success"][rows["clean"]] == table["success"][other] == 1
    # Without the dyad both logits are equal up to rounding: a coin that is not the lamp's. P(15 right) = 2⁻¹⁵.
    assert table["success"][planted] == 0
    assert table["return"][planted] < 5
    assert table["p"][planted] < 1e-5
    assert table["worse"][planted] == 0
    assert table["p_random"][planted] == pytest.approx(1 / 20)
    assert table["p_dyads"][planted] == pytest.approx(1 / len([*played.names("planted", "dyad"), 0]))
    assert table["worse"][other] == table["p"][other] == 1
    np.testing.assert_array_equal(played.control_effects("planted"), 0)
    # Of the other edit's controls exactly the planted dyad breaks the agent.
    effects = played.control_effects("other", "dyad").mean(axis=1)
    assert (effects < -8).sum() == 1
    assert (effects == 0).sum() == len(effects) - 1


def test_the_sham_is_the_clean_agent_action_by_action(played):
    assert played.sham_is_clean
    assert [e.actions for e in played.of("sham")] == [e.actions for e in played.of("clean")]


def test_each_arm_plays_the_same_seeds_and_controls_the_first_of_them(played):
    for target in played.targets:
        for name in ("clean", "planted", "other"):
            assert [e.seed for e in played.of(name, target)] == list(range(20))
    count = sum(len([k for k in played.episodes if k[0] == name]) for name in played.controls)
    assert count == 3 * len(played.controls)
    assert len(played.names("planted", "random")) == len(played.names("other", "random")) == 19


# The tables, by hand


def test_rows_are_means_over_the_episodes(played):
    table = by_arm(played)
    for i, (name, target) in enumerate(zip(table["arm"], table["asked"], strict=True)):
        own, clean = ([e.total for e in played.of(arm, target)] for arm in (name, "clean"))
        assert table["return"][i] == pytest.approx(np.mean(own))
        assert table["length"][i] == np.mean([e.length for e in played.of(name, target)])
        assert table["success"][i] == np.mean([e.length == 15 and e.total == 15 for e in played.of(name, target)])
        if name != "clean":
            assert table["change"][i] == pytest.approx(np.mean(np.subtract(own, clean)))
            assert table["change_low"][i] <= table["change"][i] <= table["change_high"][i]
    assert len(table["arm"]) == 4 + 3  # the sham plays the first target alone


def test_controls_and_episodes_and_targets_are_listed(played):
    controls = by_control(played)
    assert len(controls["control"]) == 2 + len(played.controls)
    assert controls["control"][0] in ("planted", "other/dyad/0")
    row = list(controls["control"]).index("planted")
    own = np.array([e.total for e in played.of("planted")[:3]]) - 15
    assert controls["change"][row] == pytest.approx(own.mean())
    assert controls["error"][row] == pytest.approx(own.std(ddof=1) / 3**0.5)
    episodes = by_episode(played)
    assert len(episodes["seed"]) == 20 * 7
    assert set(episodes["failed"]) == {"yes", "no"}
    assert episodes["actions"][0].split()[0] in ("left", "right")
    targets = by_target(played)
    assert list(targets["arm"]) == ["clean", "clean", "planted", "planted", "other", "other"]
    np.testing.assert_allclose(targets["slope"][:2], 0, atol=1e-12)


def test_pictures_are_drawn_of_each_table(played, tmp_path):
    pytest.importorskip("matplotlib")
    for make in (by_arm, by_control, by_target):
        path = tmp_path / f"{make.__name__}.svg"
        make(played).plot(path)
        assert path.stat().st_size > 1000


@pytest.mark.slow
def test_norm_controls_change_the_map_as_much_as_the_edit(folder):
    x = experiment(folder, {"planted": PLANTED}, env="little_worlds:lamp", on="threads", workers=1,
                   options=Options(8, 2, 2, norm_controls=19))  # fmt: skip
    own = svd(x.model.map(PLANTED_SITE)).S[0]
    names = x.names("planted", "norm")
    assert len(names) == 19
    for name in names:
        (update,) = x.controls[name].updates
        assert np.linalg.norm(update.left @ update.right) == pytest.approx(own, rel=1e-9)
    table = by_arm(x)
    clean, edit = (np.mean(x.returns(arm, count=2)) for arm in ("clean", "planted"))
    as_low = sum(np.mean(x.returns(name, count=2)) - clean <= edit - clean for name in names)
    assert table["p_norm"][2] == pytest.approx((1 + as_low) / 20)
    assert {"random, equal ‖ΔM‖", "random", "other dyad", "edit"} == set(by_control(x)["kind"])
    assert "p_norm" not in [c.name for c in by_arm(play(folder, env="lamp", options=QUICK)).columns]


# Who runs it, and what becomes of interruptions


@pytest.mark.slow
def test_the_same_request_gives_the_same_bits_whoever_runs_it(wanderer):
    options = Options(12, 2, 4)
    first = play(wanderer, options=options)
    for how in ("threads", "processes"):
        other = play(wanderer, how, 2, options=options)
        assert other.episodes == first.episodes
        assert other.diverged == first.diverged
    assert len({e.length for e in first.of("clean")}) > 3


@pytest.mark.slow
def test_threads_do_not_share_environments(wanderer):
    """Many short tasks on four threads, against one: the same episodes."""
    options = Options(episodes=6, controls=4, control_episodes=6)
    assert play(wanderer, "threads", 4, options=options).episodes == play(wanderer, options=options).episodes


@pytest.mark.slow
@pytest.mark.parametrize("discrete", [True, False])
def test_interrupted_work_goes_on_and_ends_with_the_same_table(tmp_path, discrete):
    random_agent(tmp_path, tanh=not discrete, values=agent_values(discrete))
    env, out = "drift" if discrete else "smooth_drift", tmp_path / "out"
    whole = play(tmp_path, env=env, out=out)
    lines = (out / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole.episodes)
    # As if it had been stopped within a part, while a line was written.
    (out / "episodes.jsonl").write_bytes(b"".join(lines[:90]) + lines[90][:40])
    told: list[float] = []
    again = play(tmp_path, env=env, out=out, progress=lambda done, of, share, name: told.append(share))
    assert 0 < told[0] < 1, "what is kept is not played again"
    assert again.episodes == whole.episodes
    assert again.sham_is_clean
    kept = play(tmp_path, env=env, out=out, progress=lambda done, of, share, name: told.append(share))
    assert told[-1] == 1
    assert kept.episodes == whole.episodes
    assert kept.sham_is_clean
    assert by_arm(kept).to_json() == by_arm(whole).to_json()


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"options": Options(5, 0)}, "episodes"),
        ({"options": Options(4, 0, dtype="float64")}, "run_dtype"),
        ({"env": "fragile_drift"}, "environment"),
        ({"scale": 2.0}, "agent's scale"),
        ({"context": 3}, "agent's context"),
        ({"mean": 0.2}, "agent's means"),
    ],
)
def test_another_request_is_refused_by_its_key(wanderer, tmp_path, more, key):
    play(wanderer, out=tmp_path, options=QUICK)
    more = {"options": QUICK} | more
    values = agent_values(True)
    values["return"]["scale"] = more.pop("scale", values["return"]["scale"])
    values["context"] = more.pop("context", values["context"])
    values["state"]["mean"][0] = more.pop("mean", values["state"]["mean"][0])
    (tmp_path / "other.json").write_text(json.dumps(values))
    with pytest.raises(BadRequest, match=f"holds another request: {key} was"):
        play(wanderer, out=tmp_path, agent=tmp_path / "other.json", **more)


def test_an_agent_file_that_changed_between_two_calls_is_read_again(wanderer, tmp_path):
    totals = []
    for target in (6.0, 0.0):
        values = agent_values(True)
        values["return"]["target"] = target
        (tmp_path / "agent.json").write_text(json.dumps(values))
        totals.append(play(wanderer, agent=tmp_path / "agent.json", options=QUICK).targets)
    assert totals == [(6.0,), (0.0,)]


def test_a_breakdown_names_its_seed_and_all_other_episodes_are_kept(wanderer, tmp_path):
    options = Options(44, 0)
    sound = play(wanderer, options=options)
    with pytest.raises(EnvironmentFailed, match=rf"seed {BROKEN[0]} .*the floor gave way.* more episodes broke down; "):
        play(wanderer, workers=2, env="fragile_drift", out=tmp_path, options=options)
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()[1:]]
    kept = {(line["arm"], line["target"], line["seed"]): line["length"] for line in lines}
    for arm in ("clean", "sham", "cut"):
        assert [s for a, _, s in sorted(kept) if a == arm] == [s for s in range(44) if s not in BROKEN]
        assert all(kept[arm, 6.0, e.seed] == e.length for e in sound.of(arm) if e.seed not in BROKEN)


# Requests that cannot be played


def test_names_of_arms_that_are_taken_are_refused(wanderer):
    model = covector.open(wanderer)
    for name in ("clean", "sham", "a/b"):
        with pytest.raises(BadRequest, match=f"--arm {name}: expected a name of your own"):
            arms_of(model, {name: PLANTED})
    with pytest.raises(BadRequest, match="changes nothing"):
        arms_of(model, {"none": f"{PLANTED_SITE}:0*1"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(episodes=1), "--episodes: expected 2 or more, got 1"),
        (Options(episodes=10, controls=-1), "--control-episodes: expected"),
        (Options(episodes=10, control_episodes=11), "--control-episodes: expected 2 to 10"),
        (Options(episodes=40, controls=0, norm_controls=3), "--norm-controls: expected 0 or more, beside --controls"),
        (Options(first_seed=-1), "--first-seed: expected 0 or more"),
        (Options(targets=(1.0, float("nan"))), "--target: expected finite"),
        (Options(targets=(1.0, 1.0)), "--target: expected every return once"),
    ],
)
def test_numbers_that_cannot_be_played_are_refused(wanderer, options, said):
    with pytest.raises(BadRequest, match=said):
        play(wanderer, options=options)


def test_the_picture_counts_what_happens(played: Experiment, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Failures where there are some; where none ends an episode, who has not reached the goal yet."""
    curve = survival(played)
    assert curve.y_name == "share that has not failed"
    lost = [e for e in played.of("planted") if e.failed_at is not None and e.failed_at <= 3]
    at = int(np.searchsorted(curve.x, 3))
    assert curve.ys[1, at] == pytest.approx(1 - len(lost) / len(played.of("planted")), abs=1e-12)
    done = {k: replace(e, terminated=e.length < 15, success=e.length < 15) for k, e in played.episodes.items()}
    reached = survival(replace(played, episodes=done))
    assert reached.y_name == "share that has not succeeded yet"
    assert reached.ys == pytest.approx(curve.ys, abs=1e-12), "the same ends, told as successes"
