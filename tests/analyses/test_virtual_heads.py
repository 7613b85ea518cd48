"""Virtual heads ranked without data: against paths pulled back one by one, for every family."""

import json
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest

from covector.analyses.head_norms import head_norms
from covector.analyses.propagate import propagate
from covector.analyses.virtual_chain import chain_of
from covector.analyses.virtual_heads import Sphere, readout, virtual_heads
from covector.arch.family import families
from covector.arch.toy import Plant, planted, random_model
from covector.cli.main import run
from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.spec import Norm
from covector.model.weights import Weights
from covector.study.observable import Observable
from random_checkpoints import random_weights

ANATOMIES: dict[str, Callable[[], Weights]] = {
    **{name: (lambda name=name: random_weights(name)) for name in families() if name != "transformer_lens"},
    "grouped": lambda: random_model(n_layers=3, n_kv_heads=2),
    "parallel": lambda: random_model(n_layers=3, parallel=True, norm=Norm("rms", 1e-6)),
    "post-norm": lambda: random_model(n_layers=3, placement="post"),
    "sandwich": lambda: random_model(n_layers=3, placement="sandwich"),
    "no norm": lambda: random_model(n_layers=3, norm=None),
    "attention only": lambda: random_model(n_layers=4, n_heads=2, d_mlp=0),
    "heads as wide as the stream": lambda: random_model(n_layers=3, n_heads=2, d_head=16),
    "an agent": lambda: random_model(n_layers=3, agent="interleaved"),
}


def opened(weights: Weights) -> Model:
    labels = {out.name: tuple(f"w{i}" for i in range(out.n)) for out in weights.spec.outputs}
    return Model("random", weights, weights, Frame(), labels)


def every_path(model: Model, length: int) -> list[str]:
    blocks = [(i, block.attn.n_heads) for i, block in enumerate(model.spec.blocks) if block.attn]
    return [
        ">".join(f"L{layer}H{h}" for (layer, _), h in zip(layers, heads, strict=True))
        for m in range(1, length + 1)
        for layers in combinations(blocks, m)
        for heads in product(*(range(n) for _, n in layers))
    ]


@pytest.mark.slow
@pytest.mark.identity("OP-3")
@pytest.mark.parametrize("name", ANATOMIES)
def test_the_top_paths_are_those_of_pulling_back_every_path_by_itself(name: str) -> None:
    model = opened(ANATOMIES[name]())
    observable = Observable.parse("'w1' - 'w0'", model)
    wanted = {path: propagate(model, observable, path).norm for path in every_path(model, 3)}
    table = virtual_heads(model, observable, length=3, top=10, draws=20)
    best = sorted(wanted.values(), reverse=True)[:10]
    assert table.meta["proven"]
    assert table.meta["paths"] == len(wanted)
    # A few hundred float64 roundings.
    np.testing.assert_allclose(table["norm"], best, rtol=1e-10)
    np.testing.assert_allclose([wanted[path] for path in table["path"]], table["norm"], rtol=1e-10)


def test_heads_alone_have_the_norms_of_head_norms() -> None:
    model = opened(random_model(n_layers=3, n_kv_heads=2))
    alone, norms = virtual_heads(model, "'w1' - 'w0'", length=1, top=99, draws=20), head_norms(model, "'w1' - 'w0'")
    assert alone["path"] == norms["head"]
    np.testing.assert_allclose(alone["norm"], norms["norm"], rtol=1e-12)


def test_folding_and_centring_the_weights_change_no_path() -> None:
    model = opened(random_model(n_layers=3))
    raw, folded = (virtual_heads(model, "'w1' - 'w0'", top=15, draws=20, frame=f) for f in ("raw", "folded"))
    assert raw["path"] == folded["path"]
    np.testing.assert_allclose(folded["norm"], raw["norm"], rtol=1e-9)


def test_heads_of_one_layer_feed_no_head_of_that_layer() -> None:
    for parallel in (False, True):
        model = opened(random_model(n_layers=3, parallel=parallel))
        table = virtual_heads(model, "'w1' - 'w0'", length=9, top=10_000, draws=1)
        assert sorted(table["path"]) == sorted(every_path(model, 3))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "no norm"])
def test_the_baseline_is_what_random_readouts_get_through_the_path(name: str) -> None:
    model = opened(ANATOMIES[name]())
    observable = Observable.parse("'w1' - 'w0'", model)
    table = virtual_heads(model, observable, top=6, draws=4000, seed=3)
    f, sphere = readout(model, observable)
    chain, names = chain_of(model)
    u = sphere.draw(generator(11, "test"), 4000) * np.linalg.norm(f)
    for row in table.rows:
        path = [names.index(head) for head in row["path"].split(">")]
        lengths = np.linalg.norm(u @ chain.operator(path).T, axis=1)
        # Relative error of a root mean square over 4000 draws, five deviations; a path's own p within five of its own.
        error = 5 * np.std(lengths**2) / np.mean(lengths**2) / np.sqrt(4000) / 2
        assert row["norm"] / np.sqrt(np.mean(lengths**2)) == pytest.approx(row["ratio"], rel=error)
        assert np.mean(lengths >= row["chance"]) == pytest.approx(0.05, abs=5 * np.sqrt(2 * 0.05 * 0.95 / 4000))
        p = np.mean(lengths >= row["norm"])
        assert abs(p - row["p"]) < 5 * np.sqrt(2 * max(p * (1 - p), 1e-3) / 4000)


def test_p_of_all_pays_for_the_number_of_paths_once() -> None:
    model = opened(random_model(n_layers=3, d_model=24, n_heads=2, d_head=4))
    short, long = (virtual_heads(model, "'w1' - 'w0'", length=m, top=99, draws=4000) for m in (1, 3))
    p_all = dict(zip(long["path"], long["p_all"], strict=True))
    for row in short.rows:
        if p_all[row["path"]] < 1:
            assert p_all[row["path"]] / long.meta["paths"] == pytest.approx(
                row["p_all"] / short.meta["paths"], rel=1e-9
            )
        if row["p_all"] < 1:  # the saddlepoint beside Monte Carlo: 6 % and its error
            p = row["p_all"] / short.meta["paths"]
            assert p == pytest.approx(row["p"], abs=0.06 * p + 5 * np.sqrt(p / 4000) + 1 / 4000)


def test_ranking_by_ratio_finds_the_largest_ratio_of_all_paths() -> None:
    model = opened(random_model(n_layers=4, n_heads=2))
    every = virtual_heads(model, "'w1' - 'w0'", length=3, top=10_000, draws=1)
    table = virtual_heads(model, "'w1' - 'w0'", length=3, top=5, by="ratio", draws=1)
    best = np.argsort(-every["ratio"])[:5]
    assert table["path"] == [every["path"][i] for i in best]
    np.testing.assert_allclose(table["ratio"], every["ratio"][best], rtol=1e-7)
    np.testing.assert_allclose(table["norm"], every["norm"][best], rtol=1e-10)


def test_a_planted_head_stands_first_and_beyond_chance() -> None:
    model = opened(planted([Plant(0, 1, 3.0)], "L0H1.ov", d_model=32))
    table = virtual_heads(model, "'w1'", top=2)
    assert table["path"][0] == "L0H1"
    assert table["norm"][0] == pytest.approx(3.0)
    assert table["p_all"][0] < 1e-3
    assert "sum to 1" in table.not_says


def test_a_search_that_ran_out_of_budget_says_what_it_could_have_missed() -> None:
    model = opened(random_model(n_layers=5, n_heads=4, norm=None))
    table = virtual_heads(model, "'w1' - 'w0'", length=5, top=5, budget=1, draws=1)
    assert not table.meta["proven"]
    assert table.meta["gap"] > 0
    assert f"up to {table.meta['gap']:.0%} longer" in table.says
    assert "NOT proven" in table.title
    assert table.next.endswith("--length 5 --top 5 --budget 4")
    best = virtual_heads(model, "'w1' - 'w0'", length=5, top=5, draws=1)
    assert best.meta["proven"]
    assert best["norm"][-1] <= table.meta["bound"]


def test_it_says_that_it_is_values_only_and_made_without_data() -> None:
    table = virtual_heads(opened(random_model()), "'w1' - 'w0'", draws=1)
    assert table.meta["kind"] == "prediction"
    assert "values only" in table.not_says
    assert "not their scale" in table.meta["convention"]


def test_random_readouts_have_no_part_that_a_centring_norm_takes_away() -> None:
    u = Sphere(8, True).draw(np.random.default_rng(0), 100)
    np.testing.assert_allclose(u.sum(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1)
    assert (Sphere(8, True).free, Sphere(8, False).free) == (7, 8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "size"}, "expected by norm or ratio"),
        ({"top": 0}, "top and draws of at least 1"),
        ({"length": 4, "by": "ratio"}, "length of at most 3"),
        ({"budget": 5, "by": "ratio"}, "no budget"),
        ({"length": 0}, "at least 1 head"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(options: dict, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        virtual_heads(opened(random_model()), "'w1' - 'w0'", **options)


def test_the_command_prints_what_the_function_returns(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["observe", "virtual", "demo-lm", "' she' - ' he'", "--top", "3", "--draws", "50"]
    assert run([*words, "--length", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["meta"]["proven"] is True
    assert result["meta"]["length"] == 2
    assert len(result["rows"]) == 3
    assert run([*words, "--budget", "0"]) == 2
    assert "budget of at least 1" in capsys.readouterr().err
