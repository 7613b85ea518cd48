"""The table of theory §3.13, as `locate` prints it: where a trained grid-world agent has its actions and returns."""

from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses.locate import locate
from covector.model.opened import Model
from covector.render import Table

LAYOUTS = Path(__file__).parents[1] / "layouts"
ACTIONS = ("left", "right", "forward")
# A 95 % quantile of 4,000 draws has a standard error of 0.001 for cosines, 0.003 for gains.
DRAWS = 4000


@pytest.fixture(scope="module")
def agent(shared: Path) -> Model:
    name = "dt-minigrid-obstacles"
    return covector.open(str(shared / "models" / name), layout=LAYOUTS / f"{name}.toml")


@pytest.fixture(scope="module")
def found(agent: Model) -> dict[str, Table]:
    concepts = {"action_out": (), "return_in": (), "action_in": ACTIONS}
    return {basis: locate(agent, basis, concept=labels, draws=DRAWS) for basis, labels in concepts.items()}


def row(table: Table, site: str, side: str) -> dict:
    return next(r for r in table.rows if (r["site"], r["side"]) == (site, side))


PUBLISHED = [
    ("action_out", "L0.mlp.out", "write", 0.7531, 0, "forward", 0.329, 2.77),
    ("action_out", "L0H0.ov", "write", 0.5073, 0, "forward", 0.315, 2.67),
    ("action_out", "L0H1.ov", "write", 0.4813, 0, "forward", 0.315, 3.59),
    ("action_out", "L0.mlp.in", "read", 0.4730, 1, "right", 0.329, 1.50),
    ("return_in", "L0H0.qk", "key", 0.8446, 0, "return 0", 0.291, 27.4),
    ("return_in", "L0H1.qk", "key", 0.7944, 0, "return 0", 0.291, 31.9),
    ("return_in", "L0H1.ov", "read", 0.5255, 0, "return 0", 0.291, 6.12),
]


@pytest.mark.parametrize(("basis", "site", "side", "cosine", "dyad", "label", "level", "gain"), PUBLISHED)
def test_a_place_has_the_published_numbers(found, basis, site, side, cosine, dyad, label, level, gain) -> None:
    here = row(found[basis], site, side)
    assert abs(here["cos"]) == pytest.approx(cosine, abs=0.00005)
    assert (here["dyad"], here["label"]) == (dyad, label)
    assert here["cos_level"] == pytest.approx(level, abs=0.005)
    assert here["gain"] == pytest.approx(gain, abs=0.05 if gain > 10 else 0.005)
    assert here["p_cos"] < 1e-5
    assert here["familywise"] == pytest.approx(1 / (DRAWS + 1))


def test_one_gain_in_twenty_would_reach_the_published_level_by_chance(found) -> None:
    assert row(found["action_out"], "L0.mlp.out", "write")["gain_level"] == pytest.approx(1.12, abs=0.01)


def test_actions_are_written_by_the_mlp_first_and_queries_and_keys_do_not_look_for_them(found) -> None:
    table = found["action_out"]
    assert (table["site"][0], table["side"][0]) == ("L0.mlp.out", "write")
    assert 0.85 < table.rows[0]["first"] < 0.95  # of three labels, by Student's law: not certain
    # By z, not by cosine: head 0 writes the nearer direction (.507 against .481), head 1 the larger gain.
    places = list(zip(table["site"], table["side"], strict=True))
    assert places.index(("L0H1.ov", "write")) < places.index(("L0H0.ov", "write"))
    assert np.all(np.diff(table["z"]) <= 0)
    for site in ("L0H0.qk", "L0H1.qk"):
        for side in ("query", "key"):
            here = row(table, site, side)
            assert abs(here["cos"]) <= 0.300
            assert here["familywise"] > 0.05
            assert here["p_cos"] >= 0.08  # published: ≥ 0.10; the least is 0.101 ± 0.005


def test_the_return_is_what_keys_are_made_of(found) -> None:
    first, second = found["return_in"].rows[:2]
    assert {(r["site"], r["side"]) for r in (first, second)} == {("L0H0.qk", "key"), ("L0H1.qk", "key")}


def test_nothing_is_located_for_actions_that_were_never_seen(found) -> None:
    table = found["action_in"]
    assert len(table) == 10
    assert table.says.startswith("At none of 10 places is the gain beyond chance")
    assert table["familywise"].min() > 0.2
    assert np.abs(table["cos"]).max() < 0.3015
    assert table["p_cos"].min() >= 0.08
    assert table["q"].min() > 0.2
    np.testing.assert_allclose(table["gain"], 1, atol=0.35)


@pytest.mark.identity("SV-40")
def test_fifty_decayed_state_channels_are_left_out(agent: Model) -> None:
    table = locate(agent, "state_in", draws=50)
    assert (table.meta["labels"], table.meta["left_out"]) == (97, 50)
    for name in ("gain", "z", "p", "cos", "first"):
        assert np.isfinite(table[name]).all()
