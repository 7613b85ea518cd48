"""A concept that grows: by tokens of what it finds, no others, and it says how it went."""

import json
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses import expand as module
from covector.analyses.expand import expanded
from covector.analyses.query import Query, token_query, vector_query
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.atlases import trace
from covector.building import build_atlas
from covector.demo.corpus import load_truth
from covector.errors import BadRequest
from covector.io.atlas import Atlas
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from covector.study.expression import of_weights, parse

# Tokens 0–4 are a topic: cosine .8 with each other; the planted dyad writes their common direction.
TOPIC, TOKENS, D = 5, 200, 48


def topical(seed: int = 0) -> Model:
    """A toy whose head L0H1 writes the centre of a topic; beside the topic, tokens are random."""
    base = random_model(
        seed=seed, n_layers=1, n_heads=2, d_model=D, d_head=8, n_vocab=TOKENS, norm=None, positions="none", biases=False
    )
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((TOKENS, D)) / np.sqrt(D)
    centre = rng.standard_normal(D)
    centre /= np.linalg.norm(centre)
    own = rng.standard_normal((TOPIC, D))
    own -= np.outer(own @ centre, centre)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    tokens[:TOPIC] = np.sqrt(0.8) * centre + np.sqrt(0.2) * own
    W_V, W_O = (np.array(base.arrays[f"L0.{name}"]) for name in ("W_V", "W_O"))
    W_V[1], W_O[1] = 0, 0
    W_V[1, :, 0], W_O[1, 0] = tokens[10], 4 * centre
    arrays = dict(base.arrays) | {"W_E": tokens, "W_U": tokens.T, "L0.W_V": W_V, "L0.W_O": W_O}
    return covector.open(ArrayWeights(base.spec, arrays))


@pytest.fixture(scope="module")
def planted_topic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Atlas]:
    model = topical()
    atlas = build_atlas(model, tmp_path_factory.mktemp("atlas") / "a", options=Options(draws=20, k=8), workers=1)
    assert atlas is not None
    return model, atlas


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Atlas]:
    model = covector.open("demo-lm")
    atlas = build_atlas(model, tmp_path_factory.mktemp("atlas") / "a", options=Options(draws=20))
    assert atlas is not None
    return model, atlas


def grow(atlas: Atlas, model: Model, typed: str, most: int = 4, **options: object) -> tuple[Query, list[dict]]:
    return expanded(atlas, token_query(parse(typed), model, atlas), model, most=most, options=options)


def test_two_words_of_a_planted_topic_grow_to_the_topic(planted_topic: tuple[Model, Atlas]) -> None:
    model, atlas = planted_topic
    query, steps = grow(atlas, model, "'token 0' + 'token 1'")
    assert set(steps[-1]["tokens"]) <= {f"token {i}" for i in range(TOPIC)}
    assert len(steps[-1]["tokens"]) >= TOPIC - 1
    assert steps[-1]["stopped"] == "settled"
    # Nearer to the planted direction than the two words were.
    centre = np.asarray(model.weights["L0.W_O"])[1, 0] / 4
    start = token_query(parse("'token 0' + 'token 1'"), model, atlas)
    assert abs(query.rows["token_out"][0] @ centre) > abs(start.rows["token_out"][0] @ centre)


def test_words_that_no_direction_holds_do_not_grow_and_it_says_so(planted_topic: tuple[Model, Atlas]) -> None:
    model, atlas = planted_topic
    query, steps = grow(atlas, model, "'token 20' - 'token 21'", kinds=("ov",), sides=("write",), alpha=1e-6)
    assert steps == [{"stopped": "no token of a direction beyond the threshold"}]
    np.testing.assert_array_equal(
        query.rows["token_out"], token_query(parse("'token 20' - 'token 21'"), model, atlas).rows["token_out"]
    )
    assert query.notes == ("Not expanded (no token of a direction beyond the threshold)",)


def test_the_path_is_recorded_step_by_step(planted_topic: tuple[Model, Atlas]) -> None:
    model, atlas = planted_topic
    table = trace(atlas, "'token 0' + 'token 1'", model=model, expand=4)
    steps = table.meta["expansion"]
    previous: set[str] = set()
    for step in steps:
        tokens = set(step["tokens"])
        assert step["jaccard"] == pytest.approx(len(tokens & previous) / len(tokens | previous))
        assert module.DRIFTED <= step["cosine_with_start"] <= 1
        previous = tokens
    assert steps[-1]["jaccard"] >= module.SETTLED
    assert f"to {len(previous)} tokens" in table.says
    assert "settled" in table.says


def test_a_step_that_drifts_is_recorded_and_undone(
    planted_topic: tuple[Model, Atlas], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, atlas = planted_topic
    monkeypatch.setattr(module, "DRIFTED", 0.9999)
    start = token_query(parse("'token 0' + 'token 1'"), model, atlas)
    query, steps = expanded(atlas, start, model, most=4, options={})
    assert len(steps) == 1
    assert steps[0]["stopped"].startswith("drifted: cosine 0.9")
    for name, rows in start.rows.items():
        np.testing.assert_array_equal(query.rows[name], rows)


def test_hardly_trained_tokens_do_not_join(planted_topic: tuple[Model, Atlas], monkeypatch: pytest.MonkeyPatch) -> None:
    model, atlas = planted_topic
    monkeypatch.setattr(module, "undertrained", lambda basis: np.arange(len(basis)) == 3)
    _, steps = grow(atlas, model, "'token 0' + 'token 1'")
    assert "token 3" not in steps[-1]["tokens"]
    assert len(steps[-1]["tokens"]) >= TOPIC - 2


def test_a_vector_grows_too_and_a_subspace_does_not(planted_topic: tuple[Model, Atlas]) -> None:
    model, atlas = planted_topic
    centre = np.asarray(model.weights["L0.W_O"])[1, 0]
    _, steps = expanded(atlas, vector_query(centre, atlas, "v"), model, most=2, options={})
    assert set(steps[0]["tokens"]) <= {f"token {i}" for i in range(TOPIC)}
    with pytest.raises(BadRequest, match="--expand grows a direction, this query has 2 dimensions"):
        expanded(atlas, vector_query(np.eye(D)[:2], atlas, "v"), model, most=2, options={})
    with pytest.raises(BadRequest, match="expected --expand >= 1 steps, got 0"):
        expanded(atlas, vector_query(centre, atlas, "v"), model, most=0, options={})


def test_four_words_of_a_topic_of_the_demo_find_words_of_that_topic(demo: tuple[Model, Atlas]) -> None:
    """Over all 24 topics: 19 grow, precision .99, recall .49; without the gate precision was .27."""
    model, atlas = demo
    known = set(model.bases["token_out"].labels)
    precision, recall = [], []
    for words in list(load_truth().data["topics"].values())[:12]:
        truth = {f" {word}" for word in words} & known
        query = token_query(of_weights([f" {word}" for word in words[:4]]), model, atlas)
        _, steps = expanded(atlas, query, model, most=4, options={})
        found = set(steps[-1].get("tokens", ()))
        if found:
            precision.append(len(found & truth) / len(found))
            recall.append(len(found & truth) / len(truth))
    assert len(precision) >= 6
    # Far above what a drifting expansion gives (.27), below what was measured: another BLAS may move a borderline word.
    assert np.mean(precision) > 0.9
    assert np.mean(recall) > 0.35


def test_the_expansion_is_deterministic(demo: tuple[Model, Atlas], tmp_path: Path) -> None:
    model, atlas = demo
    one, two = (trace(atlas, "' flame' + ' smoke' + ' ash' + ' spark'", model=model, expand=3) for _ in range(2))
    assert one.to_json() == two.to_json()
    assert json.loads(one.to_json())["meta"]["expansion"][0]["tokens"]
