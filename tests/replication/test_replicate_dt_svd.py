"""The decision-transformer post asked again: its defects give its figures, and a planted agent decides its claims."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

import covector
from covector.analyses.replicate import dt_svd_played
from covector.analyses.replicate.dt_svd import replicate_dt_svd
from covector.analyses.replicate.dt_svd_claim import CLAIMS, FAILS, HOLDS, SILENT, Claim
from covector.analyses.replicate.dt_svd_defects import rows_of_v, scrambled, sign_patterns
from covector.analyses.replicate.dt_svd_edits import direction, makeup, pieces, published_edits
from covector.analyses.replicate.dt_svd_parts import K, V, looked
from covector.analyses.replicate.dt_svd_played import Played, options_of, played_claims
from covector.analyses.replicate.dt_svd_weights import actions, printed
from covector.analyses.rollout import Experiment, Options
from covector.analyses.rollout_arms import CLEAN
from covector.cli.main import run
from covector.errors import BadRequest
from covector.linalg.trials.paired import paired_difference
from covector.model.opened import Model
from covector.rollouts import experiment
from covector.study.edit import Edit
from little_worlds import agent_values, planted_agent, random_agent

pytestmark = pytest.mark.slow

LAYOUTS = Path(__file__).parents[1] / "layouts"
DRAWS = 400


def of(claims: list[Claim], key: str) -> Claim:
    return next(c for c in claims if c.key == key)


# The published figures


@pytest.fixture(scope="module", params=["dt-minigrid-obstacles", "dt-minigrid-memory"])
def agent(request, shared: Path) -> Model:
    return covector.open(str(shared / "models" / request.param), layout=LAYOUTS / f"{request.param}.toml")


# Theory §0.1 and §0.2: by block, the largest |cos| of W_out with an action, what rows of V give; W_in, and scrambled.
FIGURES = {
    "dt-minigrid-obstacles": [(0.753, 0.240, 0.473, 0.289)],
    "dt-minigrid-memory": [(0.805, 0.345, 0.611, 0.332), (0.871, 0.310, 0.625, 0.323)],
}


def figures(model: Model) -> list[tuple[float, ...]]:
    return next(rows for name, rows in FIGURES.items() if name in model.name)


def test_rows_of_v_collapse_to_the_published_figures(agent: Model) -> None:
    seen = looked(agent, DRAWS, 0)
    units = seen.labels("action_out").units
    for part, (right, wrong, *_) in zip(seen.parts((V,)), figures(agent), strict=True):
        assert np.abs(part.rows @ units.T).max() == pytest.approx(right, abs=0.0005)
        assert part.defect is not None
        # The published digits are those of the signs that LAPACK gives; with others they would be among these.
        assert np.abs(part.defect @ units.T).max() == pytest.approx(wrong, abs=0.0005)
        others = [np.abs(r @ units.T).max() for r in sign_patterns(part.defect, draws=300, seed=1)]
        assert min(others) < wrong < max(others) < right / 1.6


def test_the_defect_turns_the_claim_on_k_and_v_around(agent: Model) -> None:
    claims = actions(looked(agent, DRAWS, 0))
    rows = figures(agent)
    k, v = max(r[2] for r in rows), max(r[0] for r in rows)
    lower = of(claims, "A2")
    assert lower.ours == pytest.approx(v - k, abs=0.001)
    assert (lower.verdict, lower.as_published) == (FAILS, HOLDS)
    assert lower.defect_p < 0.05 < lower.p
    assert (of(claims, "A1").verdict, of(claims, "A3").verdict) == (HOLDS, FAILS)


def test_a_reshape_for_a_transpose_collapses_to_the_published_figures(agent: Model) -> None:
    units = looked(agent, DRAWS, 0).labels("action_out").units
    for block, (*_, right, wrong) in enumerate(figures(agent)):
        part = looked(agent, DRAWS, 0).parts((K,), (block,))[0]
        mixed = scrambled(agent.stored[f"L{block}.W_in"])
        assert np.abs(part.rows @ units.T).max() == pytest.approx(right, abs=0.0005)
        assert np.abs(mixed @ units.T).max() == pytest.approx(wrong, abs=0.0005)


def test_point_two_four_is_what_chance_gives(planted: Model) -> None:
    claim = printed(looked(planted, 4000, 0))
    # One pair: cos² ~ Beta(1/2, 127/2). Largest of a whole basis: 5–95 % .209–.308, of nine .264–.349 (theory §0.3).
    assert claim.defect_p == pytest.approx(beta.sf(0.24**2, 0.5, 63.5), rel=1e-9)
    assert claim.defect_p == pytest.approx(0.0062, abs=0.00005)
    assert claim.chance == pytest.approx(0.349, abs=0.01)
    assert claim.p > 0.95, "the 5 % quantile of nine matrices is .264"
    assert (claim.verdict, claim.as_published) == (FAILS, HOLDS)
    # 4,000 draws with a spread of .03 leave .0005.
    one, nine = (float(m) for m in re.findall(r"mean (\.\d+)", claim.why))
    assert (one, nine) == (pytest.approx(0.251, abs=0.0021), pytest.approx(0.302, abs=0.0021))
    assert "p .367" in claim.why


# The defects by themselves


def test_a_row_of_v_is_a_coordinate_and_not_a_direction() -> None:
    rng = np.random.default_rng(0)
    U, Q = (np.linalg.qr(rng.standard_normal(shape))[0] for shape in ((40, 12), (12, 12)))
    W = U * np.arange(12, 0, -1.0) @ Q.T
    rows = rows_of_v(W)
    assert rows is not None
    # Entry j of row i is what dyad j writes to coordinate i.
    for i in range(12):
        np.testing.assert_allclose(np.abs(rows[i]), np.abs(Q[i]), atol=1e-12)
    assert np.abs(rows @ Q[:, 0]).max() < 0.99 < np.abs(rows.T @ Q[:, 0]).max()
    assert rows_of_v(rng.standard_normal((5, 12))) is None


def test_scrambling_keeps_the_entries_and_loses_the_directions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(8), rng.standard_normal(20)
    W = np.outer(a, b)
    assert np.abs(np.linalg.svd(W.T, full_matrices=False)[2] @ a).max() == pytest.approx(np.linalg.norm(a))
    assert np.abs(scrambled(W) @ a).max() < 0.9 * np.linalg.norm(a)


# The edits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("planted")
    planted_agent(found)
    return found


@pytest.fixture(scope="module")
def planted(folder: Path) -> Model:
    return covector.open(folder)


def weights(model: Model, edit: Edit, name: str) -> np.ndarray:
    return model.edited(edit).stored[name].astype(np.float64)


@pytest.mark.parametrize(("arm", "index"), [("K0", 0), ("K2", 2), ("V0", 0), ("V2", 2)])
def test_the_edits_are_what_the_post_types(planted: Model, arm: str, index: int) -> None:
    name = "L1.W_in" if arm[0] == "K" else "L1.W_out"
    stored = planted.stored[name].astype(np.float64)
    M = stored.T if arm[0] == "K" else stored
    U, S, V = np.linalg.svd(M, full_matrices=False)
    # A dyad has no sign, what is put in one place of it has: the post's result hangs on LAPACK's, ours on our own rule.
    own = direction(planted, arm[0], 1, index)
    V[index, :] = np.sign(V[index] @ own) / V.shape[1]
    made = U * S @ V
    edited = weights(planted, published_edits(planted, 1)[arm], name)
    np.testing.assert_allclose(edited.T if arm[0] == "K" else edited, made, atol=2e-7 * S[0])  # stored in float32


@pytest.mark.parametrize("matrix", ["K", "V"])
def test_removal_and_addition_make_the_whole_edit(planted: Model, matrix: str) -> None:
    name = "L1.W_in" if matrix == "K" else "L1.W_out"
    stored = planted.stored[name].astype(np.float64)
    parts = pieces(planted, 1, seed=0)
    whole, removed, added = (
        weights(planted, edit, name) - stored
        for edit in (published_edits(planted, 1)[f"{matrix}0"], parts[f"{matrix}0 removed"], parts[f"{matrix}0 added"])
    )
    np.testing.assert_allclose(whole, removed + added, atol=1e-12 * float(np.linalg.norm(stored)))
    shares, d = makeup(planted, matrix, 1), planted.spec.d_model
    assert shares[0] == pytest.approx(np.sum(removed**2) / np.sum(whole**2), rel=1e-9)
    assert shares[1] == pytest.approx(np.sum(added**2) / np.sum(whole**2), rel=1e-9)
    overlap = direction(planted, matrix, 1) @ np.full(d, 1 / d)
    assert 1 / shares[0] == pytest.approx(1 + 1 / d - 2 * overlap, rel=1e-9)
    # A random vector in its place is as long as 1/d everywhere; the unit vector along 1 is √d times as long.
    for piece, times in (("random", 1.0), ("ones", np.sqrt(d))):
        other = weights(planted, parts[f"{matrix}0 {piece}"], name) - stored - removed
        assert np.linalg.norm(other) == pytest.approx(times * np.linalg.norm(added), rel=1e-9)


def test_an_edit_of_all_blocks_is_all_edits(planted: Model) -> None:
    parts = pieces(planted, 1, seed=0)
    assert {"K0 L0", "V0 L0", "K0 all", "V0 all"} <= parts.keys()
    for block, alone in ((0, parts["V0 L0"]), (1, published_edits(planted, 1)["V0"])):
        name = f"L{block}.W_out"
        np.testing.assert_allclose(weights(planted, parts["V0 all"], name), weights(planted, alone, name), atol=1e-12)
    with pytest.raises(BadRequest, match="--block: expected one with an MLP, of 0, 1, got 2"):
        published_edits(planted, 2)


# Played: one dyad of L1's W_out decides


def player(folder: Path, env: str):
    def play(arms: Mapping[str, Edit], options: Options, name: str) -> Experiment:
        return experiment(folder, arms, env=f"little_worlds:{env}", options=options, on="threads", workers=1)

    return play


@pytest.fixture(scope="module")
def answered(folder: Path, planted: Model) -> list[Claim]:
    options = Options(episodes=14, controls=19, control_episodes=2)
    return played_claims(planted, player(folder, "lamp"), block=1, options=options, draws=DRAWS)


def test_every_claim_has_an_answer(answered: list[Claim], planted: Model) -> None:
    table = replicate_dt_svd(planted, answered, draws=DRAWS)
    assert list(table["finding"]) == list(CLAIMS)
    assert set(table["verdict"]) <= {HOLDS, FAILS, SILENT}
    assert all(table["why"])
    asked = [r for r in table.rows if r["finding"].startswith("B") and r["verdict"] != SILENT]
    assert all(r["p"] is not None and 0 < r["p"] <= 1 for r in asked)
    assert table.meta["played"]


def test_where_v_decides_editing_v_is_not_the_lesser_evil(answered: list[Claim]) -> None:
    # Whoever turns away from the lamp has failed, of 15 steps: without the deciding dyad a coin is thrown.
    v = of(answered, "B3")
    assert v.ours < -8
    assert v.p < 0.001
    assert v.verdict == FAILS, "K's first reads the lamp and harms as well, V's not less"
    assert of(answered, "B1").verdict == HOLDS
    assert of(answered, "B5").verdict == HOLDS
    assert of(answered, "B2").verdict == FAILS
    assert "success 100% → 0%" in v.why
    assert "rank p .050" in v.why, "below all of 19 random changes"
    # Its third direction decides nothing, and neither do those of the block before.
    assert of(answered, "B4").ours == pytest.approx(0, abs=1)


@pytest.mark.parametrize(
    ("k", "v", "answer"),
    [(-0.5, -0.1, HOLDS), (-0.5, -0.4, FAILS), (0.0, -0.5, FAILS), (0.0, 0.0, SILENT), (0.2, 0.0, SILENT)],
)
def test_much_less_is_half_and_is_asked_only_of_harm(k: float, v: float, answer: str, monkeypatch) -> None:
    monkeypatch.setattr(dt_svd_played, "_controls", lambda *_: 0.0)
    monkeypatch.setattr(dt_svd_played, "_told", lambda *_: "")
    noise = np.tile([-0.01, 0.01], 20)
    changes = {"K0": k + noise, "V0": v - noise, CLEAN: np.zeros(40)}

    def against(_: Played, arm: str, other: str = CLEAN):
        return paired_difference(changes[arm] - changes[other])

    monkeypatch.setattr(Played, "against", against)
    assert dt_svd_played._less(object.__new__(Played), "B3", 0).verdict == answer


def test_the_edit_is_the_removal_in_disguise(answered: list[Claim]) -> None:
    claim = of(answered, "B8")
    assert claim.verdict == FAILS
    assert "97.0% removal" in claim.why or "97" in claim.why.split("%")[0]


def test_random_agents_bear_out_few_claims(tmp_path: Path) -> None:
    held, asked = 0, 0
    for seed in range(6):
        random_agent(tmp_path / str(seed), tanh=False, values=agent_values(True), seed=seed)
        table = replicate_dt_svd(covector.open(tmp_path / str(seed)), draws=200)
        # C4 is arithmetic; C6 claims that there is nothing; A2 and A3 compare parts.
        rows = [r for r in table.rows if r["finding"] in ("A1", "A2", "A3", "C1", "C2", "C3", "C5") and r["p"]]
        held, asked = held + sum(r["verdict"] == HOLDS for r in rows), asked + len(rows)
    # Of 36 to 42 claims at 5 %, more than 6 hold with a chance below 1 %.
    assert asked >= 36
    assert held <= 6


# The door


def test_without_episodes_the_edits_are_not_decided(planted: Model) -> None:
    table = replicate_dt_svd(planted, draws=DRAWS)
    assert {r["verdict"] for r in table.rows if r["finding"].startswith("B")} == {SILENT}
    stopped = next(r for r in table.rows if r["finding"] == "A2")
    assert stopped["as_published"] == SILENT, "24 rows of W_out in 32 dimensions: V has no row as long as the stream"
    assert stopped["defect"] is None


def test_models_that_are_no_agents_are_refused() -> None:
    with pytest.raises(BadRequest, match="expected an agent with an output for actions"):
        replicate_dt_svd(covector.open("demo-lm"))


def test_numbers_of_episodes_are_checked() -> None:
    assert options_of().episodes == 100
    assert options_of(episodes=10).control_episodes == 10
    with pytest.raises(BadRequest, match="--episodes"):
        options_of(episodes=1)


def test_the_command_line_refuses_what_has_no_use(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert run(["replicate", "dt-svd", str(folder), "--no-play", "--episodes", "5"]) == 2
    assert "--no-play: nothing is played, so --episodes has no use" in capsys.readouterr().err
    assert run(["replicate", "sprint"]) == 2
    assert "expected a model" in capsys.readouterr().err
    assert run(["replicate", "sprint", "demo-lm", "--no-play"]) == 2
    assert "takes no --no-play; it belongs to covector replicate dt-svd" in capsys.readouterr().err


def test_the_command_line_answers_without_episodes(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert run(["replicate", "dt-svd", str(folder), "--no-play", "--draws", "200"]) == 0
    shown = capsys.readouterr().out
    assert "A2   does not" in shown or "A2   holds here" in shown
    assert "not played; leave --no-play out" in shown
