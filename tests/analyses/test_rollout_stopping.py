"""Stopping early: the error over all looks, what is told after a stop, and episodes that are played until then."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from covector.analyses.rollout import Experiment, Options
from covector.analyses.rollout_details import by_episode
from covector.analyses.rollout_film import panels
from covector.analyses.rollout_picture import survival
from covector.analyses.rollout_stopping import Stop, stopping, until_decided
from covector.analyses.rollout_tables import by_arm, by_control
from covector.errors import BadRequest
from covector.linalg.trials.sequential import in_own_errors, looks, p_at_look
from covector.model.overlay import Change
from covector.rollouts import experiment
from covector.run.episodes import Episode
from little_worlds import PLANTED_SITE, planted_agent

EDITS = {"planted": f"{PLANTED_SITE}:0*0", "other": f"{PLANTED_SITE}:1*0"}
STOPPED = Options(episodes=60, controls=2, control_episodes=4, looks=3)


def play(folder: Path, options: Options = STOPPED, **more) -> Experiment:
    return experiment(folder, EDITS, env="little_worlds:lamp", on="threads", workers=1, options=options, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("planted")
    planted_agent(found)
    return found


@pytest.fixture(scope="module")
def stopped(folder) -> Experiment:
    return play(folder)


# What is promised


def ends_of(rule, changes: np.ndarray) -> Stop:
    """Where an edit with these changes would stop."""
    found = [rule.look(changes[:end], 0) for end in rule.ends]
    return next((stop for stop in found if stop.decided), found[-1])


@pytest.mark.slow
def test_four_edits_that_do_nothing_are_decided_in_no_more_than_five_percent():
    """500 experiments of symmetric −1, 0, 1: .05 + 3.5 standard errors. Plain tests at each look: far more."""
    rng, rule = np.random.default_rng(3), stopping(100, 5, 4, 2)
    n, wrong, plain = 500, 0, 0
    for _ in range(n):
        both = rng.choice([-1.0, 0.0, 0.0, 1.0], size=(4, 100))
        wrong += any(ends_of(rule, changes).decided for changes in both)
        plain += bool((np.abs(z(both, rule.ends)) >= 1.96).any())
    assert wrong / n <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / n)
    assert wrong / n >= 0.015, "a rule that never stops would keep its rate too"
    assert plain / n > 0.2


def z(changes: np.ndarray, ends: tuple[int, ...]) -> np.ndarray:
    return np.stack([changes[:, :e].sum(axis=1) / np.sqrt(np.square(changes[:, :e]).sum(axis=1)) for e in ends])


def test_after_a_stop_the_change_lies_nearer_to_zero_and_at_the_first_look_it_is_the_mean():
    """A first look has nothing to correct: the plain interval. A later one has passed by what would have stopped it."""
    rng, rule = np.random.default_rng(5), stopping(90, 3, 1, 2)
    drawn = rng.normal(size=60)
    changes = 0.5 + (drawn - drawn.mean()) / drawn.std()
    stop = rule.look(changes, 0)
    assert stop.decided
    row = rule.corrected(stop, changes)
    assert 0 < row["change_low"] < row["change"] < row["plain"] == pytest.approx(changes.mean())
    assert row["p"] >= stop.p
    first = rule.corrected(Stop(0, 30, 0.001, True), changes[:30])
    error = changes[:30].std(ddof=1) / np.sqrt(30)
    assert first["change"] == pytest.approx(first["plain"], abs=1e-6)
    assert first["change_high"] - first["change_low"] == pytest.approx(2 * 1.959964 * error, rel=1e-5)
    assert first["p"] == pytest.approx(0.001, rel=1e-6)
    same = rule.corrected(Stop(1, 60, 1e-9, True), np.full(60, -0.5))
    assert same["change_low"] == same["change"] == same["change_high"] == -0.5


def test_where_signs_must_be_drawn_a_tiny_nominal_p_is_judged_by_a_bound_that_is_never_too_small():
    rng = np.random.default_rng(0)
    for _ in range(20):
        d = rng.normal(0.5, 1.0, size=12)
        exact = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) * (1 - 1e-12) for s in product((-1, 1), repeat=12)])
        assert p_at_look(d, 1e-9) == pytest.approx(exact), "few enough to count them all"
        assert min(1.0, 2 * math.exp(-(d.sum() ** 2) / (2 * d @ d))) >= exact
    many = rng.normal(2.0, 1.0, size=60)
    assert p_at_look(many, 1e-9) == pytest.approx(2 * math.exp(-(many.sum() ** 2) / (2 * many @ many)))
    assert p_at_look(many, 0.01) == pytest.approx(1 / 10_001)


def test_bounds_in_own_errors_say_the_same_as_those_on_signs():
    rng, plan = np.random.default_rng(1), looks(np.array([0.5, 1.0]))
    own = in_own_errors(plan, np.array([40.0, 80.0]))
    drawn = rng.normal(size=80)
    drawn = (drawn - drawn.mean()) / drawn.std()
    between = 0
    for shift in np.linspace(0, 0.6, 601):
        d = drawn + shift
        signs, errors = d.sum() / np.sqrt(d @ d), d.mean() / (d.std() / np.sqrt(80))
        assert (signs >= plan.bound[1]) == (errors >= own.bound[1])
        between += signs < plan.bound[1] <= errors
    assert between > 3, "the two differ"
    assert in_own_errors(plan, np.array([4.0, 80.0])).bound[0] == np.inf


# What is played


def test_the_planted_edit_stops_at_the_first_look_and_the_idle_one_plays_on(stopped):
    assert stopped.stopping is not None
    assert stopped.stopping.ends == (20, 40, 60)
    assert stopped.stops["planted"] == Stop(0, 20, stopped.stops["planted"].p, True)
    assert not stopped.stops["other"].decided
    assert stopped.counts == {"clean": 60, "sham": 60, "planted": 20, "other": 60}
    assert len([key for key in stopped.episodes if key[0] == "planted"]) == 20
    assert stopped.sham_is_clean


def test_all_stop_when_nothing_is_left_to_decide(folder):
    found = experiment(folder, {"planted": EDITS["planted"]}, env="little_worlds:lamp", on="threads", workers=1,
                       options=Options(60, 0, looks=3))  # fmt: skip
    assert set(found.counts.values()) == {20}
    assert len(found.episodes) == 60


@pytest.mark.slow
def test_episodes_until_the_stop_are_those_of_the_whole_experiment(folder, stopped):
    whole = play(folder, Options(episodes=60, controls=2, control_episodes=4))
    # Without the planted dyad both logits are equal: rounding, which depends on what shares a batch, decides.
    for key, episode in stopped.episodes.items():
        assert episode == whole.episodes[key] or key[0] in ("planted", "other/dyad/0")
    table, plain = by_arm(stopped), by_arm(whole)
    assert list(table["decided"]) == ["–", "–", "at 20", "not"]
    assert list(table["episodes"]) == [60, 60, 20, 60]
    assert table["plain"][2] == pytest.approx(np.mean(stopped.returns("planted") - 15))
    assert table["change_low"][2] < table["change"][2] < table["change_high"][2] < -5
    for name in ("p_random", "worse", "other"):
        np.testing.assert_array_equal(table[name], plain[name])
    assert "stopping" in table.meta
    assert "stopping" not in plain.meta


def test_a_look_pairs_the_episodes_by_seed():
    """Clean returns are far apart, and the edit takes 1 from each: decided at the first look if seeds are paired."""
    clean = 100 * np.random.default_rng(2).normal(size=40)

    def run(tasks):
        return {
            (t.arm, t.target, s): Episode(s, t.target, clean[s - 7] - (t.arm == "edit"), 1, True, None, ())
            for t in tasks
            for s in t.seeds
        }

    rule = stopping(40, 2, 1, 2)
    found = until_decided(rule, {"edit": Change()}, Change(), [], 1.0, range(7, 47), run, 0)
    assert found.stops["edit"] == Stop(0, 20, found.stops["edit"].p, True)
    # Twenty times the same change: 2 · 2⁻²⁰, or 2·exp(−10), as the signs are counted or bounded.
    assert found.stops["edit"].p <= 2 * math.exp(-10)
    assert found.counts == {"clean": 20, "edit": 20, "sham": 20}


def test_other_tables_take_the_episodes_that_there_are(stopped):
    assert len(by_episode(stopped)["seed"]) == 60 + 60 + 20 + 60
    assert len(by_control(stopped)["control"]) == 2 + len(stopped.controls)
    assert {p.episode.seed for p in panels(stopped)} <= {0, 1, 2, 3}
    assert survival(stopped).ys.shape[0] == 3


@pytest.mark.slow
@pytest.mark.parametrize("kept", [45, 150])
def test_interrupted_work_stops_at_the_same_place(folder, stopped, tmp_path, kept):
    play(folder, out=tmp_path)
    journal = tmp_path / "episodes.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(stopped.episodes)
    journal.write_bytes(b"".join(lines[:kept]) + lines[kept][:30])
    shares: list[float] = []
    again = play(folder, out=tmp_path, progress=lambda done, of, share, name: shares.append(share))
    assert again.episodes == stopped.episodes
    assert by_arm(again).to_json() == by_arm(stopped).to_json()
    assert shares == sorted(shares)
    assert shares[-1] <= 1


@pytest.mark.slow
def test_another_number_of_looks_is_another_request(folder, tmp_path):
    play(folder, out=tmp_path)
    with pytest.raises(BadRequest, match="holds another request: looks was 3, now 2"):
        play(folder, Options(60, 2, 4, looks=2), out=tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(60, 0, looks=1), "--looks: expected 2 to 60"),
        (Options(60, 0, looks=61), "--looks: expected 2 to 60"),
        (Options(60, 2, 31, looks=2), "none of 2 is left after the 31 that controls play"),
        (Options(60, 0, targets=(1.0, 0.0), looks=2), "expected one --target"),
    ],
)
def test_looks_that_decide_nothing_are_refused(folder, options, said):
    with pytest.raises(BadRequest, match=said):
        play(folder, options)
