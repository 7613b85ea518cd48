"""Shared features over chains of heads: found where planted, no more often than promised where not."""

import json

import numpy as np
import pytest

from covector.analyses.propagate import propagate
from covector.analyses.shared import chosen_paths, compared, random_pairs, shared, standardised
from covector.analyses.virtual_chain import chain_of
from covector.analyses.virtual_heads import Sphere
from covector.arch.toy import random_model
from covector.cli.main import run
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.virtual import Chain, compress
from covector.linalg.virtual_gains import all_gains
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.study.observable import Observable


def opened(**anatomy: object) -> Model:
    weights = random_model(**{"n_layers": 3, "n_heads": 2, **anatomy})  # type: ignore[arg-type]
    return Model("random", weights, weights, Frame(), {"token": tuple(f"w{i}" for i in range(weights.spec.n_vocab))})


def random_chain(seed: int = 0, d: int = 16, r: int = 4, layers: int = 2) -> Chain:
    rng = np.random.default_rng(seed)
    return Chain(tuple(
        compress(rng.standard_normal((2, d, r)), rng.standard_normal((2, r, d)) / d) for _ in range(layers)
    ))  # fmt: skip


def all_chosen(chain: Chain, length: int = 2) -> list[list[tuple[int, ...]]]:
    return [chosen_paths(all_gains(chain, length), chain, head, 99) for head in range(chain.n_heads)]


def test_cosines_are_those_of_features_pulled_back_path_by_path() -> None:
    model = opened(n_kv_heads=1)
    tasks = [Observable.parse(text, model) for text in ("'w1' - 'w0'", "'w2' - 'w3'")]
    table = shared(model, *tasks, top=1000, draws=19)
    for row in table.rows:
        a, b = (propagate(model, task, row[side]) for task, side in zip(tasks, ("first", "second"), strict=True))
        assert row["first"].split(">")[0] == row["second"].split(">")[0]
        assert row["cos"] == pytest.approx(a.vector @ b.vector / a.norm / b.norm, abs=1e-10)
        assert (row["norm_first"], row["norm_second"]) == (pytest.approx(a.norm), pytest.approx(b.norm))
    # Every pair of paths that begin at one head: 7·7, 3·3 and 1 … per layer of two heads, up to three heads long.
    assert table.meta["pairs"] == len(table) == 2 * (7 + 2) ** 2 + 2 * 3**2 + 2 * 1


def test_the_choice_of_the_best_pair_is_paid_for_exactly() -> None:
    """Any of the draws could have been the tasks: p_max of the best pair is at most α in α of all cases."""
    chain, sphere = random_chain(), Sphere(16, False)
    chosen, draws, trials = all_chosen(chain), 19, 300
    below = 0
    for trial in range(trials):
        A, B = random_pairs(sphere, 0.4, draws + 1, trial)
        below += compared(chain, chosen, A, B, 1).p_max[0] <= 0.1
    # Binomial around 0.1, four deviations.
    assert abs(below / trials - 0.1) < 4 * np.sqrt(0.1 * 0.9 / trials)


def planted_chain() -> tuple[Chain, np.ndarray, np.ndarray]:
    """Two heads of the last layer hand the same direction to L0H0 where one reads task A, the other task B."""
    rng, d, r = np.random.default_rng(4), 48, 12
    frame = np.linalg.qr(rng.standard_normal((d, d)))[0].T
    a, b, v = frame[:3]
    V = rng.standard_normal((3, d, r)) / np.sqrt(d)
    O = rng.standard_normal((3, r, d)) / np.sqrt(d)  # noqa: E741
    first = compress(rng.standard_normal((3, d, r)), rng.standard_normal((3, r, d)))
    for h, task in ((0, a), (2, b)):
        V[h, :, 0] = v
        O[h] -= np.outer(O[h] @ task, task)
        O[h, 0] += 5 * task
    return Chain((first, compress(V, O))), a, b


def test_a_planted_shared_feature_is_found_though_the_readouts_are_orthogonal() -> None:
    chain, a, b = planted_chain()
    A, B = random_pairs(Sphere(len(a), False), 0.0, 400, 1)
    found = compared(chain, all_chosen(chain), np.vstack([a, A]), np.vstack([b, B]), 20)
    heads = {0: "L0H0", 1: "L0H1", 2: "L0H2"}
    significant = {pair for pair, p in zip(found.pairs, found.p_max, strict=True) if p < 0.05}
    assert {((h, 3), (h, 5)) for h in heads} <= significant
    assert all({first[-1], second[-1]} == {3, 5} for first, second in significant)
    for pair, cos in zip(found.pairs, found.cos, strict=True):
        if pair in {((h, 3), (h, 5)) for h in heads}:
            assert cos == pytest.approx(1.0, abs=1e-9)
    assert found.beyond >= 3


def test_readouts_that_are_alike_make_no_discovery() -> None:
    """The law of random cosines calls every pair of equal paths a discovery; alike read-outs explain it."""
    chain, sphere = random_chain(d=32, r=16, layers=1), Sphere(32, False)
    A, B = random_pairs(sphere, 0.97, 200, 3)
    found = compared(chain, all_chosen(chain, 1), A, B, 9)
    assert np.all(chance.p_dir(np.abs(found.cos), 16, 1) * found.count < 0.01)
    assert np.all(found.p_max > 0.05)
    assert np.all(found.level > 0.9)


def test_one_task_with_itself_is_no_discovery_on_equal_paths() -> None:
    table = shared(opened(), "'w1' - 'w0'", "'w1' - 'w0'", top=1000, draws=99)
    same = [row for row in table.rows if row["first"] == row["second"]]
    assert all(row["cos"] == pytest.approx(1) and row["above"] == 0 and row["p_max"] == 1 for row in same)
    assert len(same) == 26


def test_the_order_of_the_tasks_does_not_matter_to_a_cosine() -> None:
    model = opened()
    one, two = (shared(model, *tasks, top=1000, draws=19) for tasks in
                (("'w1' - 'w0'", "'w2' - 'w3'"), ("'w2' - 'w3'", "'w1' - 'w0'")))  # fmt: skip
    cosines = {(row["first"], row["second"]): row["cos"] for row in one.rows}
    assert all(cosines[row["second"], row["first"]] == pytest.approx(row["cos"], abs=1e-12) for row in two.rows)


def test_random_pairs_have_the_cosine_and_lie_where_readouts_lie() -> None:
    for rho in (-1.0, -0.3, 0.0, 0.675, 1.0):
        u, w = random_pairs(Sphere(9, True), rho, 50, 0)
        np.testing.assert_allclose(np.sum(u * w, axis=1), rho, atol=1e-12)
        np.testing.assert_allclose([np.linalg.norm(x, axis=1) for x in (u, w)], 1, rtol=1e-12)
        np.testing.assert_allclose([x.sum(axis=1) for x in (u, w)], 0, atol=1e-12)


def test_paths_are_chosen_by_gain_without_seeing_the_tasks() -> None:
    chain = random_chain(layers=3)
    gains = all_gains(chain, 3)
    every, some = chosen_paths(gains, chain, 0, 99), chosen_paths(gains, chain, 0, 4)
    assert len(every) == 1 + 4 + 4
    assert some == every[:4]
    size = [float(np.linalg.norm(chain.operator(path))) for path in every]
    np.testing.assert_allclose(size, sorted(size, reverse=True))


def test_blocks_of_paths_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened()
    whole = shared(model, "'w1' - 'w0'", "'w2' - 'w3'", draws=19)
    monkeypatch.setattr("covector.analyses.shared.BLOCK", 1)
    blocks = shared(model, "'w1' - 'w0'", "'w2' - 'w3'", draws=19)
    assert (blocks["first"], blocks["second"]) == (whole["first"], whole["second"])
    for name in ("cos", "above", "p", "p_max"):
        np.testing.assert_allclose(blocks[name], whole[name], atol=1e-10)


def test_pairs_without_freedom_score_nothing() -> None:
    C = np.ones((5, 1, 2))
    C[:, 0, 1] = [0.1, 0.2, 0.3, 0.4, 0.9]
    scores = standardised(C)
    np.testing.assert_array_equal(scores[:, 0, 0], 0)
    np.testing.assert_allclose([scores[:, 0, 1].mean(), scores[:, 0, 1].std()], [0, 1], atol=1e-12)


def test_it_says_what_it_compared_and_with_which_null() -> None:
    model = opened()
    table = shared(model, "'w1' - 'w0'", "'w2' - 'w3'", draws=19)
    assert table.meta["kind"] == "prediction"
    assert "random read-outs with cosine" in table.meta["null"]
    assert table.column("cos").chance_column == "chance"
    assert chain_of(model)[1][0] == "L0H0"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"length": 4}, "at most 3 heads"),
        ({"top": 0}, "at least 1"),
        ({"paths": 0}, "at least 1"),
        ({"draws": 5}, "19"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(options: dict, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        shared(opened(), "'w1' - 'w0'", "'w2' - 'w3'", **options)


def test_the_command_prints_what_the_function_returns(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["observe", "shared", "demo-lm", "' she' - ' he'", "' her' - ' him'", "--draws", "19", "--top", "2"]
    assert run([*words, "--length", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["meta"]["pairs"] == 16
    assert len(result["rows"]) == 2
    assert run([*words, "--length", "9"]) == 2
    assert "at most 3 heads" in capsys.readouterr().err
