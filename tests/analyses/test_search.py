"""Concept tracing: planted directions are found where they are, nothing moves that should not, chance is calibrated."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import covector
from covector.analyses.query import Query, like_query, token_query, vector_query
from covector.analyses.search import score, search
from covector.analyses.search_chance import covariance_of
from covector.analyses.search_lines import hit_line
from covector.analyses.search_sites import search_sites
from covector.arch import toy
from covector.arch.toy import Plant, planted
from covector.atlas.plan import Options
from covector.atlases import trace
from covector.building import build_atlas
from covector.cli.main import run
from covector.errors import BadRequest, FrameUnavailable, NotOneToken, UnknownBasis
from covector.io.atlas import Atlas
from covector.linalg import chance
from covector.linalg.chance.haar import haar_directions
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from covector.study.expression import parse
from random_checkpoints import random_model

FEW = Options(draws=20, k=5)
PLANTS = [Plant(0, 1, 3.0), Plant(2, 3, 2.0), Plant(4, 5, 1.0)]


def atlas_of(model: Model, folder: Path, options: Options = FEW) -> Atlas:
    atlas = build_atlas(model, folder, options=options, workers=1)
    assert atlas is not None
    return atlas


def changed(model: Model, **arrays: np.ndarray) -> Model:
    """The model with some canonical tensors replaced (dots in names are written as double underscores)."""
    base = model.stored
    held = {n: np.array(base[n]) for n in base.names()} | {k.replace("__", "."): v for k, v in arrays.items()}
    weights = ArrayWeights(dataclasses.replace(base.spec, tied=False), held)
    return dataclasses.replace(model, stored=weights, weights=weights, frame=Frame())


def turned(model: Model, Q: np.ndarray) -> Model:
    """The same function with the residual stream rotated: reads Qᵀ W, writes W Q."""
    w, new = model.weights, {"W_E": model.weights["W_E"] @ Q, "W_pos": model.weights["W_pos"] @ Q}
    new["W_U"] = Q.T @ w["W_U"]
    for i in range(model.spec.n_layers):
        new |= {f"L{i}__W_{n}": Q.T @ w[f"L{i}.W_{n}"] for n in ("Q", "K", "V", "in")}
        new |= {f"L{i}__W_{n}": w[f"L{i}.W_{n}"] @ Q for n in ("O", "out")}
    return changed(model, **new)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Atlas]:
    """A tiny random GPT-2 (d = 20) with words for tokens, read and written by different vectors."""
    model = random_model("gpt2", labels={"token": tuple(f" word{i}" for i in range(61))})
    model = changed(model, W_U=np.random.default_rng(3).standard_normal((20, 61)))
    return model, atlas_of(model, tmp_path_factory.mktemp("atlas") / "a")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Atlas]:
    """A toy of random weights, d = 32: 2 layers of 4 heads of 8, MLPs as wide as the stream."""
    model = covector.open(toy.random_model(d_model=32, n_heads=4, d_mlp=32, n_vocab=40, biases=False))
    return model, atlas_of(model, tmp_path_factory.mktemp("atlas") / "a")


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Atlas]:
    """The ready toy: L0H1 reads an animal and writes its sound."""
    model = covector.open("toy")
    return model, atlas_of(model, tmp_path_factory.mktemp("atlas") / "a")


# The planted circuit is found


@pytest.mark.parametrize(
    ("typed", "place", "side", "gain"),
    [("' meow'", "L0H1.ov:0", "write", 3.0), ("' dog'", "L0H1.ov:1", "read", 2.0), ("cow", "L0H1.ov:2", "read", 1.0)],
)
def test_the_planted_dyad_is_found_on_the_side_and_pole_that_it_was_planted_on(
    animals: tuple[Model, Atlas], typed: str, place: str, side: str, gain: float
) -> None:
    model, atlas = animals
    row = trace(atlas, typed, model=model, kinds=("ov",)).rows[0]
    assert (row["place"], row["side"]) == (place, side)
    assert row["sigma"] == pytest.approx(gain, rel=1e-9)
    assert row["tokens"][0].strip() == typed.strip("' ")
    # c = (e − ē)/‖e − ē‖ with 12 orthonormal tokens, so its cosine with e is √(11/12).
    assert abs(row["cos"]) == pytest.approx(math.sqrt(11 / 12), rel=1e-9)
    assert row["exact"]
    assert row["p"] == pytest.approx(float(chance.tail(math.sqrt(11 / 12), 16)), rel=1e-6)
    assert row["pole"] == ("+" if row["cos"] > 0 else "−")


def test_left_right_plus_and_minus_belong_together(animals: tuple[Model, Atlas]) -> None:
    """What excites the pole that reads ' cat' writes the same pole's ' meow'."""
    model, atlas = animals
    reads, writes = (trace(atlas, t, model=model, kinds=("ov",)).rows[0] for t in ("' cat'", "' meow'"))
    assert (reads["place"], reads["side"], writes["side"]) == (writes["place"], "read", "write")
    assert reads["pole"] == writes["pole"]


@pytest.mark.identity("SV-38")
def test_a_query_equal_to_a_stored_direction_returns_it_first_with_cosine_one(gpt2: tuple[Model, Atlas]) -> None:
    model, atlas = gpt2
    for row in (0, 17, 60, len(atlas) - 1):
        at = atlas.rows(np.array([row]))[0]
        for stored in (atlas, None):
            found = search(atlas, vector_query(atlas.vectors[row].astype(float), atlas, "v"), model=stored and model,
                           kinds=(at["kind"],)).rows[0]  # fmt: skip
            assert (found["place"], found["side"]) == (f"{at['site']}:{at['dyad']}", at["side"])
            # Rows are float16: of unit length to 2⁻¹¹, and the length is not divided out of the stored score.
            assert found["cos"] == pytest.approx(1.0, abs=2.0**-11)


@pytest.mark.identity("SV-38")
def test_an_orthogonal_distractor_does_not_change_a_directions_p(tmp_path: Path) -> None:
    rows = []
    for i, plants in enumerate((PLANTS[:1], PLANTS)):
        model = covector.open(planted(plants, "L0H1.ov"))
        table = trace(atlas_of(model, tmp_path / str(i)), "'token 1'", model=model, kinds=("ov",), top=100)
        rows.append(next(r for r in table.rows if (r["place"], r["side"]) == ("L0H1.ov:0", "write")))
    assert rows[0]["p"] == pytest.approx(rows[1]["p"], rel=1e-9)
    assert rows[0]["q"] < rows[1]["q"]  # more were looked at


def test_more_like_a_direction_takes_its_written_side_unless_told(gpt2: tuple[Model, Atlas]) -> None:
    _, atlas = gpt2
    for address, side in (("L1H2.ov:3", "write"), ("L1H2:3.read", "read"), ("1.2:3", "write"), ("L0H0.qk:1", "query"),
                          ("L0.mlp.in:2", "read"), ("embed", "write")):  # fmt: skip
        query = like_query(atlas, address)
        at = {"embed": "embed:0"}.get(address) or address.removesuffix(".read")
        site, _, dyad = at.partition(":")
        site = {"L1H2": "L1H2.ov", "1.2": "L1H2.ov"}.get(site, site)
        row = next(i for i, r in enumerate(atlas.rows(np.arange(len(atlas)), ["site", "dyad", "side"]))
                   if (r["site"], r["dyad"], r["side"]) == (site, int(dyad), side))  # fmt: skip
        assert query.places == (f"{site}:{dyad}.{side}",)
        for rows in query.rows.values():
            assert abs(float(rows[0] @ atlas.vectors[row].astype(float))) == pytest.approx(1, abs=2.0**-11)


def test_several_directions_are_their_span(gpt2: tuple[Model, Atlas]) -> None:
    _, atlas = gpt2
    query = like_query(atlas, ("L1H2.ov:0", "L1H2.ov:1", "L1H2.ov:1.write"))
    assert query.k == 2
    found = search(atlas, query, top=2, kinds=("ov",))
    assert {(r["place"], r["side"]) for r in found.rows} == {("L1H2.ov:0", "write"), ("L1H2.ov:1", "write")}
    assert np.all(found["cos"] > 0.999)
    assert "besides what was asked for" not in search(atlas, query, top=2, kinds=("ov",)).says


# Laws: what changes nothing, and what changes one thing


@pytest.mark.identity("SV-7")
def test_a_rotation_of_the_stream_leaves_hits_cosines_and_chance(gpt2: tuple[Model, Atlas], tmp_path: Path) -> None:
    model, atlas = gpt2
    other = turned(model, np.linalg.qr(np.random.default_rng(1).standard_normal((20, 20)))[0])
    there = atlas_of(other, tmp_path / "a")
    for typed in ("' word3' + ' word4' - 0.5*' word9'",):
        before = trace(atlas, typed, model=model, top=12, exact=True)
        after = trace(there, typed, model=other, top=12, exact=True)
        assert before["exact"].all()
        assert after["exact"].all()
        assert after["place"] == before["place"]
        assert after["side"] == before["side"]
        # Signs may turn (they are fixed by coordinates); everything else is float64 algebra, condition about 1e3.
        np.testing.assert_allclose(np.abs(after["cos"]), np.abs(before["cos"]), rtol=1e-9)
        for name in ("p", "sigma"):
            np.testing.assert_allclose(after[name], before[name], rtol=1e-6)
        # q also weighs directions that are not shown, whose cosines are those of float16 rows: 1e-4, times √d·ζ in p.
        np.testing.assert_allclose(after["q"], before["q"], rtol=0.01)
        assert [r["tokens"] for r in after.rows] == [r["tokens"] for r in before.rows]
        np.testing.assert_allclose(after["p_cov"], before["p_cov"], rtol=0.3)  # other draws: 1000 of them


@pytest.mark.identity("SV-36")
def test_a_louder_head_has_larger_effects_and_the_same_cosines_gains_and_chance(
    gpt2: tuple[Model, Atlas], tmp_path: Path
) -> None:
    model, atlas = gpt2
    louder = changed(model, **{f"L{i}__W_O": 3 * model.weights[f"L{i}.W_O"] for i in range(3)})
    there = atlas_of(louder, tmp_path / "a")
    asked: dict[str, Any] = {"kinds": ("ov",), "top": 15}
    before, after = (trace(a, "' word3'", model=m, **asked) for a, m in ((atlas, model), (there, louder)))
    assert after["place"] == before["place"]
    for name in ("cos", "p", "q", "p_cov"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-9)
    for name in ("sigma", "effect"):
        np.testing.assert_allclose(after[name], 3 * before[name], rtol=1e-9)
    before, after = (trace(a, "' word3'", by="site", model=m, **asked) for a, m in ((atlas, model), (there, louder)))
    np.testing.assert_allclose(after["gain"], before["gain"], rtol=1e-9)
    np.testing.assert_allclose(after["p_gain"], before["p_gain"], rtol=1e-9)


@pytest.mark.identity("SV-6", "SV-35")
def test_the_negated_query_finds_the_same_directions_by_the_other_pole(gpt2: tuple[Model, Atlas]) -> None:
    model, atlas = gpt2
    plus, minus = (trace(atlas, t, model=model) for t in ("' word3' - ' word8'", "' word8' - ' word3'"))
    assert minus["place"] == plus["place"]
    np.testing.assert_allclose(minus["cos"], -plus["cos"], rtol=1e-12)
    assert all({a, b} == {"+", "−"} for a, b in zip(minus["pole"], plus["pole"], strict=True))
    for name in ("p", "q", "p_cov"):
        np.testing.assert_allclose(minus[name], plus[name], rtol=1e-9)
    assert all(a != b for a, b in zip(minus["tokens"], plus["tokens"], strict=True))


def test_a_concept_is_made_of_W_E_where_it_is_read_and_of_W_U_where_it_is_written(gpt2: tuple[Model, Atlas]) -> None:
    """Equation 1, from the weights themselves: centred, brought to length one, weighted, summed."""
    model, atlas = gpt2
    query = token_query(parse("2*' word3' - 0.5*' word9'"), model, atlas)
    for name, table in (("token_in", model.weights["W_E"]), ("token_out", model.weights["W_U"].T)):
        centred = np.asarray(table, dtype=np.float64) - np.mean(table, axis=0, dtype=np.float64)
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        wanted = 2 * unit[3] - 0.5 * unit[9]
        np.testing.assert_allclose(query.rows[name][0], wanted / np.linalg.norm(wanted), atol=1e-12)


def test_scores_from_the_checkpoint_are_dense_algebra_and_stored_ones_are_near(gpt2: tuple[Model, Atlas]) -> None:
    model, atlas = gpt2
    exact, stored = trace(atlas, "' word3'", model=model, exact=True), trace(atlas, "' word3'", model=model)
    query = token_query(parse("' word3'"), model, atlas)
    for row in exact.rows:
        U, _, Vh = np.linalg.svd(np.asarray(model.map(row["place"].split(":")[0]).dense(), dtype=np.float64))
        i = int(row["place"].split(":")[1])
        reads = row["side"] in ("read", "query")
        basis = "token_in" if reads or row["side"] == "key" else "token_out"
        direction = U[:, i] if reads else Vh[i]
        assert abs(row["cos"]) == pytest.approx(abs(float(query.rows[basis][0] @ direction)), rel=1e-9)
    by_place = {(r["place"], r["side"]): r for r in exact.rows}
    for row in stored.rows:
        assert row["exact"] == ("H" in row["place"])
        if not row["exact"]:
            # 20 entries of .2 rounded to 2⁻¹² of themselves: 1e-4 at the most.
            assert row["cos"] == pytest.approx(by_place[row["place"], row["side"]]["cos"], abs=2e-4)


def test_without_the_checkpoint_a_vector_is_searched_in_what_is_stored(gpt2: tuple[Model, Atlas]) -> None:
    _, atlas = gpt2  # made from a model in memory: nothing can be opened again
    table = trace(atlas, np.arange(20.0))
    assert not table["exact"].any()
    assert np.isnan(table["p_cov"]).all()


# Chance


@pytest.mark.parametrize(
    ("d", "n", "tau"),
    [(128, 1152, 0.352), (768, 9216, 0.163), (1024, 24576, 0.148), (1024, 49152, 0.152), (1600, 76800, 0.124),
     (4096, 114688, 0.079), (4096, 229376, 0.081)],
)  # fmt: skip
def test_thresholds_are_the_published_ones(d: int, n: int, tau: float) -> None:
    assert float(chance.threshold(d, n)) == pytest.approx(tau, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "searches"), [(1, 400), (3, 150)])
def test_random_concepts_pass_the_threshold_in_alpha_of_searches(
    noise: tuple[Model, Atlas], k: int, searches: int
) -> None:
    _, atlas = noise
    alpha = 0.05
    rows = haar_directions(searches * k, 32, seed=5).reshape(searches, k, 32)
    beyond, small = 0, []
    for vectors in rows:
        found = score(atlas, vector_query(vectors, atlas, "random"), alpha=alpha)
        beyond += bool((np.abs(found.cos) >= found.tau).any())
        small.append(float(np.mean(found.p < 0.05)))
    # Binomial(searches, ≤ .05). The union bound gives away little: the directions are far apart.
    assert abs(beyond - alpha * searches) <= 4 * math.sqrt(searches * alpha * (1 - alpha))
    # One p each is exactly uniform; the directions of one search are dependent, searches are not.
    assert np.mean(small) == pytest.approx(0.05, abs=4 * np.std(small) / math.sqrt(searches))


def test_false_discoveries_are_as_rare_as_q_says(noise: tuple[Model, Atlas]) -> None:
    _, atlas = noise
    found = [score(atlas, vector_query(v, atlas, "random")).q.min() < 0.05 for v in haar_directions(200, 32, seed=6)]
    assert sum(found) <= 10 + 4 * 3.1  # Binomial(200, ≤ .05)


def test_p_cov_is_how_often_directions_of_the_basis_covariance_reach_the_cosine(animals: tuple[Model, Atlas]) -> None:
    model, atlas = animals
    table = trace(atlas, "' cat' + ' dog'", model=model)
    # Twelve orthonormal tokens: directions of their covariance are Haar inside their span, where c lies with ‖Pc‖ = 1.
    np.testing.assert_allclose(table["p_cov"], chance.tail(np.abs(table["cos"]), 12), rtol=0.15, atol=1e-12)
    again = trace(atlas, "' cat' + ' dog'", model=model)
    assert again.to_json() == table.to_json()
    assert trace(atlas, "' cat' + ' dog'", model=model, seed=1).to_json() != table.to_json()


def test_looking_at_fewer_directions_changes_q_and_the_threshold_but_no_p(gpt2: tuple[Model, Atlas]) -> None:
    model, atlas = gpt2
    every, some = (trace(atlas, "' word3'", model=model, top=500, **o) for o in ({}, {"sides": ("write",)}))
    assert some.meta["directions"] < every.meta["directions"]
    assert some.meta["tau"] < every.meta["tau"]
    assert set(some["side"]) == {"write"}
    p = {(r["place"], r["side"]): r["p"] for r in every.rows}
    assert all(r["p"] == p[r["place"], r["side"]] for r in some.rows)


def test_embeddings_are_looked_at_only_when_asked(gpt2: tuple[Model, Atlas]) -> None:
    model, atlas = gpt2
    assert not {"embed", "pos"} & {
        r["place"].split(":")[0] for r in trace(atlas, "' word3'", model=model, top=500).rows
    }
    assert trace(atlas, "' word3'", model=model, kinds=("embed",)).rows[0]["place"].startswith("embed:")


def test_in_a_centred_frame_directions_have_one_dimension_less(tmp_path: Path) -> None:
    model = random_model("gpt2", labels={"token": tuple(f" word{i}" for i in range(61))}).framed("gauge_fixed")
    atlas = atlas_of(model, tmp_path / "a")
    row = trace(atlas, "' word3'", model=model).rows[0]
    assert row["p"] == pytest.approx(float(chance.tail(row["cos"], 19)), rel=1e-9)
    shifted = [trace(atlas, np.eye(20)[3] + c).to_json() for c in (0.0, 5.0)]
    rows = [json.loads(text)["rows"] for text in shifted]
    assert [r["place"] for r in rows[0]] == [r["place"] for r in rows[1]]
    np.testing.assert_allclose([r["cos"] for r in rows[0]], [r["cos"] for r in rows[1]], atol=1e-5)
    with pytest.raises(BadRequest, match="the query is the constant direction, which this frame has not"):
        trace(atlas, np.ones(20))
    both = vector_query(np.stack([np.eye(20)[3], np.ones(20)]), atlas, "with 1")
    assert both.k == 1


def test_familywise_is_of_the_best_of_all_by_the_law_that_comes_nearer(animals: tuple[Model, Atlas]) -> None:
    """Twelve orthonormal tokens of 16 dimensions: directions of their covariance are Haar in 12, so come nearer."""
    model, atlas = animals
    table = trace(atlas, "' cat' + ' dog'", model=model, top=500)
    n, cos = table.meta["directions"], np.abs(table["cos"])
    expected = np.minimum(n * np.maximum(chance.tail(cos, 12), chance.tail(cos, 16)), 1)
    np.testing.assert_allclose(table["familywise"], expected, rtol=0.15, atol=1e-12)
    # A query outside the span of the tokens: their covariance never comes near, random directions do.
    out = np.linalg.svd(np.asarray(model.bases["token_in"].vectors, dtype=float))[2][-1]
    table = trace(atlas, out, model=model, top=500)
    np.testing.assert_allclose(table["familywise"], np.minimum(n * chance.tail(np.abs(table["cos"]), 16), 1), rtol=1e-9)


def test_the_count_of_finds_beyond_the_covariance_is_of_all_and_not_of_those_shown(demo: Path) -> None:
    every, few = (trace(demo, like="L3H2.ov:1", top=top) for top in (200, 1))
    beyond = np.abs(every["cos"]) >= every.meta["tau"]
    also = int((beyond & (every.meta["directions"] * every["p_cov"] <= 0.05)).sum())
    assert every.meta["beyond"] == few.meta["beyond"] == int(beyond.sum())
    assert every.meta["beyond_covariance"] == few.meta["beyond_covariance"] == also
    assert 0 < also < int(beyond.sum())
    told = f"{also} are beyond what the best of as many directions of the basis' own covariance reaches"
    assert told in few.says
    assert told in every.says


def test_counting_by_halves_counts_what_counting_all_does(animals: tuple[Model, Atlas]) -> None:
    model, atlas = animals
    laws = covariance_of(model, token_query(parse("' cat'"), model, atlas), 0)
    name = sorted(laws.laws)[0]
    for n in (0, 1, 31, 33, 200):
        cos = np.random.default_rng(n).uniform(-1, 1, n)
        for level in (0.0, 1e-3, 0.05, 1.0):
            expected = int((laws.p(name, cos) <= level).sum()) if n else 0
            assert laws.beyond([name] * n, cos, level) == expected, (n, level)


def test_the_effect_that_is_shown_is_what_the_map_does_along_the_concept(gpt2: tuple[Model, Atlas]) -> None:
    """Write side: what the dyad adds along c when its read vector comes in; read side: how far c drives it."""
    model, atlas = gpt2
    query = token_query(parse("' word3'"), model, atlas)
    table = trace(atlas, "' word3'", model=model, kinds=("ov",), top=12)
    assert table.column("effect").unit == "×"
    for row in table.rows:
        M = np.asarray(model.map(row["place"].split(":")[0]).dense(), dtype=np.float64)
        U, _, Vh = np.linalg.svd(M)
        i = int(row["place"].split(":")[1])
        c = query.rows["token_out" if row["side"] == "write" else "token_in"][0]
        effect = U[:, i] @ M @ c if row["side"] == "write" else c @ M @ Vh[i]
        assert abs(row["effect"]) == pytest.approx(abs(float(effect)), rel=1e-6)
        assert f"effect {row['effect']:+.3g}×" in hit_line(row, 120)
        assert len(hit_line(row, 120)) <= 120


def test_where_nothing_is_found_the_nearest_is_not_followed(
    noise: tuple[Model, Atlas],
) -> None:
    _, atlas = noise
    vectors = haar_directions(20, 32, seed=11)
    for vector in vectors:
        table = trace(atlas, vector)
        assert bool(table.next) == (table.meta["beyond"] > 0)
    assert any(not trace(atlas, v).next for v in vectors)


# By site


def dense(model: Model, site: str, side: str) -> np.ndarray:
    M = np.asarray(model.map(site).dense(), dtype=np.float64)
    return M if side in ("read", "query") else M.T


def test_fit_and_gain_are_dense_algebra(gpt2: tuple[Model, Atlas]) -> None:
    model, atlas = gpt2
    query = token_query(parse("' word3' + ' word4'"), model, atlas)
    table = search_sites(atlas, query, top=500)
    assert len(table) == len(set(zip(table["site"], table["side"], strict=True))) == 3 * (4 * 4 + 2)
    for row in table.rows:
        M = dense(model, row["site"], row["side"])
        c = query.rows["token_out" if row["side"] == "write" else "token_in"][0]
        left = M @ np.linalg.lstsq(M, c, rcond=None)[0]  # the projection of c on what the side can hold
        assert row["fit"] == pytest.approx(float(left @ left), rel=1e-3)
        assert row["gain"] == pytest.approx(float(np.sum((c @ M) ** 2) * 20 / np.sum(M**2)), rel=1e-3)
        r = int(np.linalg.matrix_rank(M))
        assert row["fit_chance"] == r / 20
        if r == 20:
            assert row["p_fit"] is None
        else:
            assert row["p_fit"] == pytest.approx(float(chance.tail(math.sqrt(row["fit"]), 20, r)), rel=1e-9)


def test_fit_by_leading_dyads_is_dense_algebra_and_has_a_p_where_all_would_span_everything(
    gpt2: tuple[Model, Atlas],
) -> None:
    model, atlas = gpt2
    query = token_query(parse("' word3' + ' word4'"), model, atlas)
    whole = {(r["site"], r["side"]): r for r in search_sites(atlas, query, top=500).rows}
    for row in search_sites(atlas, query, top=500, dyads=3).rows:
        U, _, _ = np.linalg.svd(dense(model, row["site"], row["side"]))
        c = query.rows["token_out" if row["side"] == "write" else "token_in"][0]
        assert row["fit"] == pytest.approx(float(np.sum((c @ U[:, :3]) ** 2)), rel=2e-3)
        assert row["fit_chance"] == 3 / 20
        assert row["p_fit"] == pytest.approx(float(chance.tail(math.sqrt(row["fit"]), 20, 3)), rel=1e-9)
        assert row["gain"] == whole[row["site"], row["side"]]["gain"]


def test_the_planted_head_is_first_by_site(animals: tuple[Model, Atlas]) -> None:
    model, atlas = animals
    for typed, side in (("' cat' + ' dog' + ' cow'", "read"), ("meow bark moo", "write")):
        row = trace(atlas, typed, by="site", model=model, kinds=("ov",)).rows[0]
        assert (row["site"], row["side"]) == ("L0H1.ov", side)
        # Three of twelve orthonormal tokens: ‖Pc‖² = 3·(1/3)·(1 − 3/12)… with the mean taken off: 9/12.
        assert row["fit"] == pytest.approx(9 / 12, rel=2e-3)
        assert row["fit_chance"] == 3 / 16


@pytest.mark.slow
def test_random_concepts_by_site_have_uniform_p(noise: tuple[Model, Atlas]) -> None:
    _, atlas = noise
    share: dict[str, list[float]] = {"p_fit": [], "p_gain": []}
    families = []
    for vector in haar_directions(60, 32, seed=7):
        table = search_sites(atlas, vector_query(vector, atlas, "random"), top=500)
        for name, into in share.items():
            p = table[name]
            into.append(float(np.mean(p[~np.isnan(p)] < 0.1)))
        families.append(float(np.nanmin(table["familywise"])) < 0.05)
    for name, values in share.items():
        assert np.mean(values) == pytest.approx(0.1, abs=4 * np.std(values) / math.sqrt(300)), name
    assert sum(families) <= 3 + 4 * 1.7  # Binomial(60, ≤ .05)


def test_the_mean_gain_of_random_concepts_is_one(noise: tuple[Model, Atlas]) -> None:
    _, atlas = noise
    gains = [np.mean(search_sites(atlas, vector_query(v, atlas, "r"), top=500)["gain"])
             for v in haar_directions(60, 32, seed=8)]  # fmt: skip
    assert np.mean(gains) == pytest.approx(1.0, abs=4 * np.std(gains) / math.sqrt(60))


def test_a_subspace_by_site_is_judged_by_simulation(noise: tuple[Model, Atlas]) -> None:
    _, atlas = noise
    small = []
    for vectors in haar_directions(2 * 50, 32, seed=9).reshape(50, 2, 32):
        table = search_sites(atlas, vector_query(vectors, atlas, "random"), top=500, kinds=("ov",))
        assert np.isnan(table["p_gain"]).all()
        small.append(float(np.mean(table["p_fit"] < 0.1)))
    assert np.mean(small) == pytest.approx(0.1, abs=4 * np.std(small) / math.sqrt(50))


def test_an_atlas_of_few_dyads_has_no_gains_and_says_so(tmp_path: Path) -> None:
    model = random_model("gpt2", labels={"token": tuple(f" word{i}" for i in range(61))})
    atlas = atlas_of(model, tmp_path / "a", dataclasses.replace(FEW, rank=2))
    table = trace(atlas, "' word3'", by="site", model=model)
    assert np.isnan(table["gain"]).all()
    assert "built with --rank" in table.not_says
    assert np.isfinite(table["p_fit"]).all()


# What cannot be searched


def test_requests_that_contradict_themselves_are_refused_by_text(gpt2: tuple[Model, Atlas]) -> None:
    model, atlas = gpt2
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: trace(atlas), BadRequest, "expected a query .* and one of them only"),
        (lambda: trace(atlas, "' word3'", like="L0H0.ov:0"), BadRequest, "one of them only"),
        (lambda: trace(atlas, "' word3'", model=model, kinds=("av",)), BadRequest,
         "expected a kind among embed, .*'av'"),
        (lambda: trace(atlas, "' word3'", model=model, sides=("left",)), BadRequest,
         "expected a side among read, .*'left'"),
        (lambda: trace(atlas, "' word3'", model=model, top=0), BadRequest, "expected --top >= 1, got 0"),
        (lambda: trace(atlas, "' word3'", model=model, by="head"), BadRequest,
         "expected --by direction or site, got 'head'"),
        (lambda: trace(atlas, "' word3'", model=model, by="site", exact=True), BadRequest, "--exact scores single"),
        (lambda: trace(atlas, "' word3'", model=model, dyads=3), BadRequest, "expected --by site with it"),
        (lambda: trace(atlas, "' word3'", model=model, by="site", dyads=0), BadRequest, "expected --dyads >= 1, got 0"),
        (lambda: trace(atlas, "' word3'", model=model, kinds=("mlp.in",), sides=("write",)), BadRequest,
         "no direction of these sides and kinds"),
        (lambda: trace(atlas, "' word99'", model=model), UnknownBasis, "got ' word99'; near: ' word9'"),
        (lambda: trace(atlas, "' word3' - ' word3'", model=model), BadRequest, "the weighted tokens cancel"),
        (lambda: trace(atlas, np.ones(7)), BadRequest, r"expected vectors of width 20, .* got shape \(7,\)"),
        (lambda: trace(atlas, np.zeros(20)), BadRequest, "not all zeros, got nothing but zeros"),
        (lambda: trace(atlas, np.full(20, np.nan)), BadRequest, "got numbers that are not finite"),
        (lambda: trace(atlas, np.eye(20)), BadRequest, "the query spans all 20 dimensions"),
        (lambda: trace(atlas, np.ones(20), last=True), BadRequest, "--last is about phrases"),
        (lambda: trace(atlas, like="L0H0.ov:77"), BadRequest, "has no direction 'L0H0.ov:77'; L0H0.ov has dyads 0–4"),
        (lambda: trace(atlas, like="L0H9.ov:0"), BadRequest, "has no direction 'L0H9.ov:0'; type for example"),
        (lambda: trace(atlas, like="L0H0.qk:0.read"), BadRequest, "has no direction 'L0H0.qk:0.read'"),
        (lambda: trace(atlas, like=()), BadRequest, "expected a direction of the atlas, got none"),
    ]  # fmt: skip
    for call, kind, told in cases:
        with pytest.raises(kind, match=told):
            call()


def test_a_bias_frame_has_no_places(tmp_path: Path) -> None:
    model = random_model("gpt2", labels={"token": tuple(f" word{i}" for i in range(61))}).framed("raw+bias")
    atlas = atlas_of(model, tmp_path / "a")
    assert len(trace(atlas, "' word3'", model=model)) == 20
    with pytest.raises(FrameUnavailable, match="build the atlas without"):
        trace(atlas, "' word3'", model=model, by="site")


# demo-lm, from the command line


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "lm.atlas"
    assert run(["atlas", "demo-lm", "--out", str(folder), "-q"]) == 0
    return folder


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert run(["search", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_search_prints_one_line_per_direction_within_120_columns(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = lines(capsys, str(demo), "' she' - ' he'", "--top", "7")
    assert sum(bool(re.search(r" cos .* FWER .* effect [+-]\S+× *\|", line)) for line in out) == 7
    assert max(map(len, out)) <= 120
    assert "τ 0.370 (5 % of searches for a random direction" in out[0]
    assert out[-1].startswith("next: covector search ")
    assert "--like L" in out[-1]


def test_the_next_command_is_right_and_leads_to_the_place(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = lines(capsys, str(demo), "' she' - ' he'")
    out = lines(capsys, *out[-1].split()[3:])
    assert out[-1].startswith("next: covector svd demo-lm L")


def test_by_site_prints_one_line_per_place_within_120_columns(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = lines(capsys, str(demo), "' she' - ' he'", "--by", "site", "--top", "5")
    assert sum(" | fit " in line for line in out) == 5
    assert max(map(len, out)) <= 120


def test_a_search_that_finds_nothing_goes_on_by_place_and_then_to_the_whole(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "v.safetensors")
    save_file({"vector": np.random.default_rng(0).standard_normal(128)}, path)
    out = lines(capsys, str(demo), "--vector", path, "--top", "3")
    assert out[-1] == f"next: covector search {demo} --vector {path} --by site"
    out = lines(capsys, *out[-1].split()[3:])
    assert out[-1] == f"next: covector glance {demo}"


def test_json_has_every_column_and_strict_numbers(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--by", "site")):
        found = json.loads("\n".join(lines(capsys, str(demo), "she", "--json", *more)), parse_constant=pytest.fail)
        assert found["meta"]["analysis"] == "search"
        assert found["meta"]["query"]["words"].startswith("' she'|")
        assert len(found["rows"]) == 20


def test_a_vector_from_a_file_is_a_query(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atlas = Atlas(demo)
    at = int(np.flatnonzero(atlas.column("kind") == "ov")[40])
    save_file({"vector": atlas.vectors[at].astype(np.float32)}, tmp_path / "v.safetensors")
    row = atlas.rows(np.array([at]))[0]
    out = lines(capsys, str(demo), "--vector", str(tmp_path / "v.safetensors"), "--top", "1")
    assert any(line.startswith(f"{row['site']}:{row['dyad']}") and "cos +1.000" in line for line in out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["' she' + '日'"], "expected a single token, got '日'"),
        (["' a", "--top", "3"], "cannot read"),
        (["' she'", "--vector", "v.safetensors"], "expected tokens or --vector, got both"),
        (["--vector", "v.safetensors"], "expected a safetensors file with a vector at 'v.safetensors', there is none"),
        (["--vector", "narrow.safetensors"], "expected vectors of width 128, finite and not all zeros, got shape (7,)"),
        (["--vector", "two.safetensors"], "expected a tensor called 'vector', or a single one, it holds a, b"),
        ([], "expected a query"),
        (["' she'", "--kind", "head"], "expected a kind among embed, mlp.in, mlp.out, ov, pos, qk, got 'head'"),
        (["' she'", "--side", "written"], "expected a side among read, write, query, key, got 'written'"),
        (["' she'", "--expand", "-1"], "expected --expand >= 1 steps, got -1"),
        (["--like", "L0H0.ov:0", "--like", "L0H0.ov:1", "--expand", "1"], "--expand grows a direction"),
        (["' she'", "--alpha", "2"], "the error rate α lies in (0, 1), got 2"),
        (["@none.json"], "expected a JSON file of tokens at 'none.json'"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    demo: Path, words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save_file({"v": np.ones(7, np.float32)}, "narrow.safetensors")
    save_file({"a": np.ones(128, np.float32), "b": np.ones(128, np.float32)}, "two.safetensors")
    assert run(["search", str(demo), *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert told in said.err


def test_an_unknown_text_without_tokens_of_its_own_shows_the_near_ones(demo: Path) -> None:
    with pytest.raises(NotOneToken, match=r"expected a single token, got '日'.*near single tokens"):
        trace(demo, "日")


def test_a_phrase_stands_for_the_mean_of_its_tokens_or_its_last(demo: Path) -> None:
    mean, last = (trace(demo, "' fire'", last=chosen) for chosen in (False, True))
    assert "' fire' stands for the mean of its tokens" in mean.says
    assert "' fire' stands for its last token" in last.says
    assert mean.meta["query"]["words"] == "(' f' 'ire')"
    ire = trace(demo, "'ire'")
    np.testing.assert_allclose(last["cos"], ire["cos"], rtol=1e-12)


def test_a_query_is_a_value_that_knows_its_size() -> None:
    assert Query({"a": np.eye(3)[:1], "b": np.eye(3)[:2]}, "two", "subspace").k == 2
