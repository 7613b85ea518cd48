"""Joint units: a head that was planted to be about one thing is found, random heads are not, subspaces are not SVDs."""

import dataclasses

import numpy as np
import pytest

import covector
from covector.analyses import joint_unit
from covector.analyses.joint_unit import joint_units
from covector.arch.toy import random_model as toy
from covector.errors import BadRequest, UnknownBasis
from covector.linalg.units import joint_similarity
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from random_checkpoints import random_model

TOPIC, GROUPED, TOKENS, M = 60, 32, 400, 4


def model_with_topic(seed: int = 0, turned: bool = False) -> Model:
    """Tokens 0–59 share a topic direction; 32 of them fall in four groups; L1H2 writes the groups, one per direction.

    `turned`: L1H2 writes the same subspace, with singular directions that are mixtures of the groups and the rest.
    """
    model, rng = random_model("gpt2", seed, n_embd=40), np.random.default_rng(seed)
    base, r = model.stored, model.spec.d_head
    axes = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    W_U = 0.7 * rng.standard_normal((TOKENS, 40)) / np.sqrt(40)
    W_U[:GROUPED] += 1.2 * axes[np.repeat(np.arange(M), GROUPED // M)]
    W_U[:TOPIC] += axes[M]
    W_V, W_O = (rng.standard_normal(base[f"L1.{n}"].shape) * 0.05 for n in ("W_V", "W_O"))
    W_V[2] = np.linalg.qr(rng.standard_normal((40, r)))[0] * np.linspace(4, 1, r)
    written = np.concatenate([axes[:M], axes[M + 1 : r + 1]])
    W_O[2] = np.linalg.qr(rng.standard_normal((r, r)))[0] @ written if turned else written
    held = {n: np.array(base[n]) for n in base.names()} | {"W_U": W_U.T, "L1.W_V": W_V, "L1.W_O": W_O}
    spec = dataclasses.replace(base.spec, tied=False, outputs=(dataclasses.replace(base.spec.outputs[0], n=TOKENS),))
    weights = ArrayWeights(spec, held)
    labels = (*(f"topic{i}" for i in range(TOPIC)), *(f"word{i}" for i in range(TOKENS - TOPIC)))
    return dataclasses.replace(model, stored=weights, weights=weights, frame=Frame(), labels={"token_out": labels})


@pytest.mark.parametrize("metric", ["whitened", "centred"])
def test_a_head_about_one_topic_is_found_and_its_words_are_shown(metric: str) -> None:
    table = joint_units(model_with_topic(), rank=M, k=8, draws=400, metric=metric)
    rows = {r["head"]: r for r in table.rows}
    found = rows.pop("L1H2")
    assert found["p_others"] < 0.02
    assert found["q_inside"] < 0.05
    assert all(word.startswith("topic") for word in found["unit"])
    assert found["J"] > 1.2 * max(r["J"] for r in rows.values())


def test_random_heads_are_of_one_piece_no_more_often_than_chance_says() -> None:
    """p ≤ .05 in 5 % of heads, within four standard errors; both nulls."""
    tables = [joint_units(random_model("gpt2", seed), rank=4, k=4, draws=60, seed=seed) for seed in range(12)]
    for which in ("p_others", "p_inside"):
        p = np.concatenate([t[which] for t in tables])
        assert np.mean(p <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / len(p))
        # Directions put together from several heads are not orthogonal, a head's own are: others are more alike.
        assert np.mean(p) >= 0.5 - 4 * np.sqrt(1 / 12 / len(p))
        assert which == "p_others" or np.mean(p) <= 0.5 + 4 * np.sqrt(1 / 12 / len(p)) + 1 / 61


def test_a_turn_inside_the_head_changes_what_its_own_subspace_says() -> None:
    """The same subspace with other singular directions: no longer better than random directions of it."""
    straight, turned = (
        next(r for r in joint_units(model_with_topic(turned=t), rank=M, k=8, draws=100).rows if r["head"] == "L1H2")
        for t in (False, True)
    )
    assert straight["p_inside"] < turned["p_inside"]
    assert turned["p_inside"] > 0.05


def test_directions_inside_are_orthonormal_and_of_the_written_subspace() -> None:
    model = random_model("gpt2")
    lists = joint_unit._lists(model, "token_out", 3, "whitened")
    found, seen = covector.svd(model.map("L1H2.ov")), []

    class Recording(joint_unit._Lists):
        def of(self, directions: np.ndarray) -> np.ndarray:
            seen.append(directions)
            return super().of(directions)

    joint_unit._inside(Recording(lists.basis, lists.units, lists.root, 3), found, 4, 25, (0, 1, 2))
    rows = np.concatenate(seen)
    assert len(rows) == 25 * 4
    np.testing.assert_allclose(rows @ found.Vh.T @ found.Vh, rows, atol=1e-12)
    np.testing.assert_allclose(rows[:4] @ rows[:4].T, np.eye(4), atol=1e-12)


def test_mixtures_are_of_all_heads_at_the_same_indices() -> None:
    axes = np.eye(40)
    own = np.broadcast_to(axes[0], (3, 2, 40))  # of one piece entirely
    rest = [np.repeat(axes[1 + 3 * j : 4 + 3 * j, None], 2, axis=1) for j in range(4)]  # nothing in common
    every = joint_unit._others([own, *rest], 124, 0)
    # All 5³ ways but the head's own, each once: J is 1/3 when the one head gives two of three directions, 1 when all.
    for null, ones in zip(every, [0, 1, 1, 1, 1], strict=True):
        assert null is not None
        counts = dict(zip(*np.unique(np.round(null, 9), return_counts=True), strict=True))
        assert counts.pop(1.0, 0) == ones
        assert counts == {0: 124 - 12 - ones, round(1 / 3, 9): 12}
    # One draw fewer than ways: drawn with replacement, the head itself among them (1/125 of 123 draws, on average).
    drawn = [joint_unit._others([own, *rest], 123, seed)[0] for seed in range(200)]
    shares = [np.mean(null == 1) for null in drawn if null is not None]
    assert np.mean(shares) == pytest.approx(1 / 125, abs=4 * np.std(shares) / np.sqrt(200))


@pytest.mark.slow
@pytest.mark.parametrize("draws", [255, 200])
def test_a_head_among_few_is_more_of_one_piece_than_mixtures_as_often_as_p_says(draws: int) -> None:
    """Four heads of four random directions, 256 ways: over all of them p is uniform; drawn, ties count against it.

    Without the head's own directions in the pool there are 81 ways, and p falls to its floor in 4 % of heads.
    """
    models, rng = 400, np.random.default_rng(0)
    found = np.empty((models, 4))
    for model in range(models):
        heads = list(rng.standard_normal((4, 4, 2, 5)))
        J = [float(joint_similarity(h)[0]) for h in heads]
        null = joint_unit._others(heads, draws, model)
        found[model] = joint_unit._compared("others", np.array(J), null)[1].numbers
    for level in (1 / (draws + 1), 0.05, 0.5):
        hits = np.mean(found <= level + 1e-9, axis=1)
        error, expected = np.std(hits) / np.sqrt(models), np.floor(level * (draws + 1) + 1e-6) / (draws + 1)
        assert np.mean(hits) <= expected + 4 * error
        assert draws < 255 or np.mean(hits) >= expected - 4 * error


@pytest.mark.parametrize(("heads", "directions", "told"), [(4, 2, False), (4, 3, False), (4, 4, True), (2, 6, True)])
def test_where_no_p_could_earn_a_star_none_is_told_and_it_is_said(heads: int, directions: int, told: bool) -> None:
    """Of h^m mixtures the least p is 1/h^m, and one head alone earns a star below .05/h."""
    weights = toy(n_layers=1, n_heads=heads, d_model=24, d_head=6, n_vocab=60, positions="none")
    table = joint_units(covector.open(weights), rank=directions, k=4, draws=20)
    assert np.isfinite(table["p_others"]).all() == np.isfinite(table["others_level"]).all() == told
    assert np.isnan(table["p_others"]).all() != told
    assert (f"{heads} of them are not compared with mixtures (p NaN)" in table.says) != told
    assert np.isfinite(table["p_inside"]).all()
    # Benjamini and Hochberg: j of h heads at 1/(draws + 1) earn stars from j/h·.05 on.
    enough = next(j for j in range(1, heads + 1) if 0.05 * j / heads >= 1 / 21)
    assert f"a star takes {enough} heads at the least p there is (1/21); --draws {20 * heads} lets" in table.says
    many = joint_units(covector.open(weights), rank=directions, k=4, draws=20 * heads)
    assert "a star takes" not in many.says


def test_a_rotation_of_the_stream_changes_no_score() -> None:
    model = random_model("gpt2")
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((20, 20)))[0]
    w = model.weights
    held = {n: np.array(model.stored[n]) for n in model.stored.names()}
    held |= {f"L{i}.W_V": Q.T @ w[f"L{i}.W_V"] for i in range(3)} | {f"L{i}.W_O": w[f"L{i}.W_O"] @ Q for i in range(3)}
    held |= {"W_U": Q.T @ w["W_U"], "W_E": w["W_E"] @ Q}
    weights = ArrayWeights(dataclasses.replace(model.spec, tied=False), held)
    turned = dataclasses.replace(model, stored=weights, weights=weights)
    np.testing.assert_allclose(
        joint_units(turned, rank=3, k=4, draws=20)["J"], joint_units(model, rank=3, k=4, draws=20)["J"], rtol=1e-7
    )


def test_the_same_request_gives_the_same_bytes() -> None:
    one, two = (joint_units(random_model("gpt2"), rank=3, k=3, draws=25, seed=4).to_json() for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [({"rank": 13}, BadRequest, "expected rank from 2 to 12, got 13"),
     ({"k": 40}, BadRequest, "at most half of the 61"),
     ({"draws": 1}, BadRequest, "expected draws from 20"), ({"basis": "words"}, UnknownBasis, "expected a basis")],
)  # fmt: skip
def test_impossible_requests_say_what_is_possible(arguments: dict, error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        joint_units(random_model("gpt2"), **arguments)
