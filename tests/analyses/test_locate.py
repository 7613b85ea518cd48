"""Location: what was planted is found where it was planted, random models hold nothing, words and faces are right."""

import dataclasses
import json
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import covector
from covector.analyses.locate import locate
from covector.analyses.locate_words import not_says
from covector.arch.toy import Plant, planted
from covector.arch.toy import random_model as toy
from covector.cli.main import run
from covector.errors import BadRequest, BadSite, FrameUnavailable, NotOneToken, UnknownBasis
from covector.linalg.chance import haar_frame
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from covector.render import Scatter, Table
from random_checkpoints import random_model

PLANTS = [Plant(2 * i, 2 * i + 1, gain) for i, gain in enumerate((3.0, 2.5, 2.0, 1.5))]
READ, WRITTEN = ([f"token {getattr(p, side)}" for p in PLANTS] for side in ("read", "write"))

# A sum of squares through C, whose entries are rounded at 1e-16: orthogonal directions leave some d times that.
NOTHING = 1e-14


@cache
def with_planted(site: str) -> Model:
    return covector.open(planted(PLANTS, site, d_model=24, n_layers=3, n_vocab=14))


def changed(model: Model, **arrays: np.ndarray) -> Model:
    """The model with some canonical tensors replaced (dots in names are written as double underscores)."""
    base = model.stored
    held = {n: np.array(base[n]) for n in base.names()} | {k.replace("__", "."): v for k, v in arrays.items()}
    weights = ArrayWeights(dataclasses.replace(base.spec, tied=False), held)
    return dataclasses.replace(model, stored=weights, weights=weights)


def row_of(table: Table, site: str, side: str) -> dict:
    return next(row for row in table.rows if (row["site"], row["side"]) == (site, side))


# Planted places


@pytest.mark.identity("SV-5")
@pytest.mark.parametrize("site", ["L1H1.ov", "L2H0.ov", "L1.mlp.out"])
def test_what_a_place_writes_is_found_there_first(site: str) -> None:
    table = locate(with_planted(site), "token_out", concept=WRITTEN)
    top = table.rows[0]
    assert (top["site"], top["side"]) == (site, "write")
    assert top["first"] > 0.9  # four labels leave Student's law of three degrees: thick tails, and 29 rivals
    assert top["familywise"] == pytest.approx(1 / 1001)
    assert abs(top["cos"]) == pytest.approx(1, abs=1e-9)
    assert WRITTEN[int(top["dyad"])] == top["label"]
    assert top["energy"] == pytest.approx(1, abs=1e-9)
    # Four orthonormal directions that share all power: G = d/4.
    assert top["gain"] == pytest.approx(24 / 4, rel=1e-9)


@pytest.mark.identity("SV-39")
def test_what_a_place_reads_is_found_on_its_read_side() -> None:
    table = locate(with_planted("L1H1.ov"), "token_in", concept=READ)
    assert (table.rows[0]["site"], table.rows[0]["side"]) == ("L1H1.ov", "read")
    assert row_of(table, "L1H1.ov", "write")["energy"] < NOTHING
    swapped = locate(with_planted("L1H1.ov"), "token_in", concept=READ, side="write")
    assert swapped.rows[0]["site"] != "L1H1.ov"


def test_the_other_side_of_a_planted_place_has_none_of_it() -> None:
    table = locate(with_planted("L1H1.ov"), "token_out", concept=READ)
    assert row_of(table, "L1H1.ov", "write")["gain"] < NOTHING
    assert row_of(table, "L1H1.ov", "read")["z"] > 5


@pytest.mark.identity("SV-19")
def test_gains_are_those_of_dense_algebra_at_every_place() -> None:
    model = random_model("llama")
    table = locate(model, "token_out", concept=["token 3", "token 8"], draws=20)
    E = model.bases["token_out"].unit()[[3, 8]]
    d = model.spec.d_model
    for row in table.rows:
        M = np.asarray(model.map(row["site"]).dense(), float)
        made = E @ M if row["side"] in ("read", "query") else E @ M.T
        assert row["gain"] == pytest.approx(np.mean(np.sum(made**2, axis=1)) / (np.sum(M**2) / d), rel=1e-9)
    kinds = {(re.sub(r"\d", "", row["site"]), row["side"]) for row in table.rows}
    assert kinds == {("LH.ov", "read"), ("LH.ov", "write"), ("LH.qk", "query"), ("LH.qk", "key"),
                     ("L.mlp.in", "read"), ("L.mlp.gate", "read"), ("L.mlp.out", "write")}  # fmt: skip


@pytest.mark.identity("SV-18")
def test_energies_are_those_of_projectors_and_missing_where_the_map_spans_the_stream() -> None:
    model = random_model("gpt2")
    table = locate(model, "position_in", draws=20)
    E, d = model.bases["position_in"].unit(), model.spec.d_model
    for row in table.rows:
        M = np.asarray(model.map(row["site"]).dense(), float)
        M = M if row["side"] in ("read", "query") else M.T
        kept = np.linalg.matrix_rank(M)
        assert row["rank"] == kept
        if kept == d:
            assert row["energy"] is row["p_energy"] is None
        else:
            P = M @ np.linalg.pinv(M)
            assert row["energy"] == pytest.approx(np.mean(np.sum((E @ P) ** 2, axis=1)), rel=1e-9)
    assert any(row["energy"] is None for row in table.rows)
    assert any(row["energy"] is not None for row in table.rows)


@pytest.mark.identity("SV-7")
def test_a_rotated_stream_is_located_alike() -> None:
    model = covector.open(toy(norm=None, positions="none", biases=False, n_vocab=9))
    Q = haar_frame(16, 16, 5)
    turned = {}
    for name in model.stored.names():
        array, role = model.stored[name], name.split(".")[-1]
        reads = role in ("W_Q", "W_K", "W_V", "W_in", "W_U")
        turned[name.replace(".", "__")] = Q.T @ array if reads else array @ Q
    one, other = (locate(m, "token_out", draws=400) for m in (model, changed(model, **turned)))
    # p is simulated anew, since the set lies otherwise: two estimates differ by √(2·¼/400) = .035 at the most, one sd.
    for name in ("gain", "z", "energy", "p"):
        np.testing.assert_allclose(
            sorted_by_place(one, name), sorted_by_place(other, name), rtol=1e-6, atol=0.14 * (name == "p")
        )
    np.testing.assert_allclose(np.abs(sorted_by_place(one, "cos")), np.abs(sorted_by_place(other, "cos")), rtol=1e-8)


def sorted_by_place(table: Table, name: str) -> np.ndarray:
    order = sorted(range(len(table)), key=lambda i: (table["site"][i], table["side"][i]))
    return np.asarray(table[name])[order]


# Chance


@pytest.mark.slow
@pytest.mark.identity("SV-30")
@pytest.mark.parametrize("concept", [(), ("token 1",), ("token 1", "token 2", "token 3")], ids=["all", "one", "three"])
def test_one_random_model_in_twenty_has_any_place_beyond_chance(concept: tuple[str, ...]) -> None:
    models, found, singly = 100, 0, []
    for seed in range(models):
        model = covector.open(toy(seed=seed, n_layers=1, n_heads=2, d_model=12, d_mlp=10, norm=None, n_vocab=9))
        table = locate(model, "token_out", concept=concept, draws=199, seed=seed)
        found += table["familywise"].min() <= 0.05
        singly.append(np.mean(table["p"] <= 0.05))
    error = np.sqrt(0.05 * 0.95 / models)
    assert found / models <= 0.05 + 3 * error
    # One place alone: at its own nominal rate, too (places of a model are nearly independent, so this is sharper).
    assert np.mean(singly) == pytest.approx(0.05, abs=4 * np.std(singly) / np.sqrt(models))


def test_of_two_heads_of_random_weights_either_is_surely_the_first_in_one_of_ten_models() -> None:
    """Two labels. Labels drawn with replacement made it .46 of models."""
    models, sure = 60, 0
    for seed in range(models):
        model = covector.open(toy(seed=3000 + seed, n_layers=1, n_heads=2, biases=False, n_vocab=60))
        concept = ["token 0", "token 1"]
        table = locate(model, "token_out", sites="L*H*.ov", side="write", concept=concept, draws=200, seed=seed)
        sure += table["first"].max() >= 0.95
    assert sure / models <= 0.1 + 4 * np.sqrt(0.1 * 0.9 / models)


@pytest.mark.slow
@pytest.mark.identity("SV-30")
def test_frames_that_centre_some_sides_keep_the_rate() -> None:
    models, found = 40, 0
    sites, concept = "L1H*.ov,L1.mlp.in", ["token 1", "token 2"]  # OV reads behind a norm and writes to the bare stream
    for seed in range(models):
        model = random_model("gpt2", seed, tie_word_embeddings=False)
        table = locate(model, "token_in", frame="folded", sites=sites, concept=concept, draws=199, seed=seed)
        assert table.meta["dimension"] == [19, 20]
        found += table["familywise"].min() <= 0.05
    assert found / models <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / models)


@pytest.mark.parametrize("side", ["read", "write"])
def test_a_plant_is_found_first_where_a_frame_centres_only_one_side(side: str) -> None:
    model = random_model("gpt2", tie_word_embeddings=False)
    W_V, W_O = np.array(model.stored["L1.W_V"]), np.array(model.stored["L1.W_O"])
    E = model.stored["W_E"][[3, 5]]
    if side == "read":
        W_V[2] = np.pad(4 * E.T / model.stored["L1.attn_norm.gain"][:, None], ((0, 0), (0, W_V.shape[2] - 2)))
    else:
        W_O[2] = np.pad(4 * E, ((0, W_O.shape[1] - 2), (0, 0)))
    table = locate(changed(model, L1__W_V=W_V, L1__W_O=W_O), "token_in", frame="folded", concept=["token 3", "token 5"])
    assert table.meta["dimension"] == [19, 20]
    top = table.rows[0]
    assert (top["site"], top["side"]) == ("L1H2.ov", side)
    assert top["first"] > 0.75  # two labels, one degree
    assert top["energy"] == pytest.approx(1, abs=1e-9)
    assert top["p"] < 0.01


@pytest.mark.slow
def test_cosines_and_energies_reach_their_level_once_in_twenty() -> None:
    beyond = {"p_cos": [], "p_energy": [], "cos": [], "energy": [], "gain": []}
    for seed in range(60):
        model = covector.open(toy(seed=seed, n_layers=1, n_heads=2, d_model=12, d_head=3, d_mlp=10, norm=None))
        table = locate(model, "token_out", concept=["token 1", "token 4"], draws=199, seed=seed)
        for name, levelled in (("cos", True), ("energy", True), ("gain", True), ("p_cos", False), ("p_energy", False)):
            hit = np.abs(table[name]) > table[f"{name}_level"] if levelled else table[name] <= 0.05
            beyond[name].append(np.mean(hit))
    for name, hits in beyond.items():
        assert np.mean(hits) == pytest.approx(0.05, abs=4 * np.std(hits) / np.sqrt(60)), name


def test_the_same_request_gives_the_same_bytes_and_another_seed_other_chances() -> None:
    model = random_model("gpt2")
    one, again, other = (locate(model, "token_out", draws=99, seed=s) for s in (1, 1, 2))
    assert one.to_json() == again.to_json()
    assert one.to_json() != other.to_json()
    np.testing.assert_array_equal(one["gain"], other["gain"])


# Vectors and maps without a direction


@pytest.mark.identity("SV-40")
def test_labels_without_a_direction_are_left_out_and_counted() -> None:
    model = random_model("gpt2")
    W_U = np.array(model.stored["W_U"])
    W_U[:, 3] = 0.0
    W_U[:, 5] = np.nan
    W_U[:, 7] = 1e-37
    table = locate(changed(model, W_U=W_U), "token_out", draws=99)
    n = model.spec.n_vocab
    assert (table.meta["labels"], table.meta["left_out"]) == (n - 3, 3)
    assert "3 labels have no direction" in table.not_says
    for name in ("gain", "z", "p", "familywise", "first", "cos"):
        assert np.isfinite(table[name]).all()
    kept = np.delete(np.arange(n), [3, 5, 7])
    asked = locate(changed(model, W_U=W_U), "token_out", concept=[f"token {i}" for i in kept], draws=99)
    np.testing.assert_array_equal(table["gain"], asked["gain"])
    with pytest.raises(BadRequest, match="'token 3' has no direction in token_out"):
        locate(changed(model, W_U=W_U), "token_out", concept="token 3")


@pytest.mark.identity("SV-40")
def test_maps_of_zeros_are_left_out_and_counted() -> None:
    model = random_model("gpt2")
    W_O = np.array(model.stored["L1.W_O"])
    W_O[2] = 0
    table = locate(changed(model, L1__W_O=W_O), "token_out", draws=20)
    assert table.meta["maps_of_zeros"] == ["L1H2.ov read", "L1H2.ov write"]
    assert "2 places have a map of zeros" in table.not_says
    assert "L1H2.ov" not in table["site"]
    with pytest.raises(BadRequest, match="every map named is zero"):
        locate(changed(model, L1__W_O=W_O), "token_out", sites="L1H2.ov")


def test_a_map_that_treats_all_directions_alike_has_no_z_and_comes_last() -> None:
    model = random_model("gpt2")
    d = model.spec.d_model
    W_in = haar_frame(model.stored["L1.W_in"].shape[1], d, 1)
    table = locate(changed(model, L1__W_in=W_in), "token_out", draws=20)
    last = table.rows[-1]
    assert (last["site"], last["gain"]) == ("L1.mlp.in", pytest.approx(1))
    assert last["z"] is last["p"] is last["familywise"] is None
    assert last["first"] == 0


# Requests


def test_sites_and_sides_are_chosen_by_address() -> None:
    model = random_model("gpt2")
    table = locate(model, "token_out", sites="L1H*.ov, L2.mlp.*", side="write", draws=20)
    assert sorted(zip(table["site"], table["side"], strict=True)) == [
        *((f"L1H{h}.ov", "write") for h in range(4)), ("L2.mlp.out", "write")]  # fmt: skip
    reads = locate(model, "token_out", side="read", draws=20)
    assert set(reads["side"]) == {"read", "query", "key"}
    with pytest.raises(BadRequest, match=r"expected sites of which one writes the stream, 'L1K0\.v' has none"):
        locate(model, "token_out", sites="L1K0.v", side="write")
    with pytest.raises(BadRequest, match="expected side both, read, write, got 'left'"):
        locate(model, "token_out", side="left")
    with pytest.raises(BadSite):
        locate(model, "token_out", sites="L9H*.ov")


def test_what_cannot_be_located_is_refused_with_a_reason() -> None:
    model = random_model("gpt2")
    with pytest.raises(UnknownBasis):
        locate(model, "action_out")
    with pytest.raises(UnknownBasis, match="expected one row labelled ' she'"):
        locate(model, "token_out", concept=" she")
    with pytest.raises(BadRequest, match="not behind whitening; use token_out:centred"):
        locate(model, "token_out:whitened")
    with pytest.raises(FrameUnavailable, match=r"leave \+bias out"):
        locate(model, "token_out", frame="raw+bias")
    everything = covector.open(planted(PLANTS, "L0H0.ov", n_vocab=16, d_model=16))
    with pytest.raises(BadRequest, match="these 16 labels meet every direction alike, so the gain is 1 everywhere"):
        locate(everything, "token_out")
    with pytest.raises(BadRequest, match="a null needs draws >= 1"):
        locate(model, "token_out", draws=0)


def test_labels_that_look_hardly_trained_are_told_and_can_be_left_out() -> None:
    model = random_model("gpt2", labels={"token": tuple(f"tökén {i}" if i < 4 else f"token {i}" for i in range(61))})
    W_U = np.array(model.stored["W_U"])
    W_U[:, [9, 20]] *= 0.01
    short, n = changed(model, W_U=W_U), model.spec.n_vocab
    whole = locate(short, "token_out", draws=20)
    assert "2 of 61 labels look hardly trained; --without trained" in whole.not_says
    kept = locate(short, "token_out", without="trained", draws=20)
    assert (kept.meta["labels"], kept.meta["hardly_trained"]) == (n - 2, 0)
    assert locate(short, "token_out", without=["ascii", "trained"], draws=20).meta["labels"] == n - 6
    with pytest.raises(BadRequest, match="expected filters among ascii, trained, got 'rare'"):
        locate(short, "token_out", without="rare")


def test_a_caution_that_holds_at_several_places_is_said_once() -> None:
    table = locate(random_model("llama"), "token_out", sites="L0H*.qk,L0H*.ov", draws=99)
    beyond = dataclasses.replace(
        table, columns=[dataclasses.replace(c, values=np.zeros(len(c))) if c.name == "familywise" else c
                        for c in table.columns]
    )  # fmt: skip
    text = not_says(beyond, random_model("llama"), 0.05)
    assert text.count("rotary positions: this is the score at offset 0 only") == 1
    assert re.search(r"L0H\d\.qk, L0H\d\.qk.*: rotary", text)


def test_concepts_are_tokens_of_the_vocabulary() -> None:
    demo = covector.open("demo-lm")
    with pytest.raises(NotOneToken):
        locate(demo, "token_out", concept=" antidisestablishmentarianism", sites="L0H0")
    table = locate(demo, "token_out", concept=[" she", " he", " she"], sites="L0H*.ov", draws=20)
    assert table.meta["labels"] == 2
    assert set(table["label"]) <= {" she", " he"}


def test_the_sentences_say_how_many_how_sure_and_on_how_few_labels() -> None:
    found = locate(with_planted("L1H1.ov"), "token_out", concept=WRITTEN)
    beyond = int(np.sum(found["familywise"] <= 0.05))
    assert found.says.startswith(
        f"{beyond} of 30 places {'is' if beyond == 1 else 'are'} beyond chance (familywise 5%). L1H1.ov (write)"
    )
    assert re.search(r", and with (9\d|100)% confidence it is the first place for labels like these[;.]", found.says)
    one = locate(with_planted("L1H1.ov"), "token_out", concept=WRITTEN[0])
    assert "; how sure its rank is cannot be told from one label" in one.says
    assert all(row["first"] is None for row in one.rows)
    nothing = locate(covector.open(toy(seed=1, norm=None)), "token_out", draws=199)
    assert nothing.says.startswith("At none of ")
    own = locate(random_model("gpt2"), "token_out", sites="unembed,L0H*.ov", draws=199)
    assert own.rows[0]["site"] == "unembed"
    assert "unembed: the basis is this map's own rows" in own.not_says


def test_the_picture_is_z_by_depth_over_the_band_of_chance() -> None:
    table = locate(with_planted("L1H1.ov"), "token_out", concept=WRITTEN)
    picture = table.picture(table)
    assert isinstance(picture, Scatter)
    assert len(picture.x) == len(table)
    assert picture.labels[0] == "L1H1.ov"
    assert set(np.round(picture.x)) == {0, 1, 2}
    assert {"OV write", "MLP in read", "QK key"} <= set(picture.groups)
    low, high = picture.band
    assert low < 0 < high < 5


# The command


def test_the_command_fits_120_columns_and_its_next_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["locate", "demo-lm", "token_out", "--concept", " she", "--concept", " he", "--draws", "99"]
    assert run([*words, "--top", "5"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert max(map(len, out)) <= 120
    assert len([line for line in out if re.match(r"L\d", line) and "(" in line]) >= 5
    assert "strongest 5" in " ".join(out)
    following = out[-1].removeprefix("next: ")
    assert following.startswith("covector svd demo-lm L")
    assert run(shlex.split(following)[1:]) == 0


def test_files_and_json_hold_every_place_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["locate", "demo-lm", "position_in", "--sites", "L*H*.ov", "--draws", "20", "--top", "2", "--json"]
    assert run([*words, "--out", str(tmp_path), "--plot", str(tmp_path / "p.svg")]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(found["rows"]) == 32
    assert {"p", "q", "p_energy", "rank", "gain_level"} <= found["rows"][0].keys()
    assert found["meta"]["ranked_by"] == "z of the gain"
    assert found["meta"]["seed"] == 0
    assert (tmp_path / "locate.json").exists()
    assert (tmp_path / "p.svg").stat().st_size > 1000


def test_a_number_of_places_below_zero_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["locate", "demo-lm", "token_out", "--top", "-1"]) == 2
    assert "--top: expected a number of rows >= 0, got -1" in capsys.readouterr().err
