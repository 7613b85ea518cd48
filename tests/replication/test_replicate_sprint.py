"""Findings A–G as claims: planted ones hold, random weights do not bear them out, and what cannot be asked says why."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

import covector
from covector.analyses.replicate.finding import FAILS, HOLDS, SILENT, Asked, Removal, Traced
from covector.analyses.replicate.findings import (
    either_pole,
    growth,
    individual,
    jump,
    left,
    left_less,
    processing,
    pseudo_inverse,
    unit,
    valence,
)
from covector.analyses.replicate.removal import removal
from covector.analyses.replicate.sprint import replicate_sprint
from covector.analyses.replicate.tracing import removal_finding, tracing
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.cli.main import run
from covector.errors import BadRequest
from covector.linalg.svd import svd
from covector.model.weights import ArrayWeights
from covector.run.decoder import Decoder
from synthetic_atlas import built, synthetic

D, D_HEAD, N_HEADS, N_LAYERS, TOPICS, EACH = 48, 6, 4, 4, 30, 10
N_VOCAB = TOPICS * EACH


def random_weights(seed: int = 0, **more) -> ArrayWeights:
    shape = {"n_layers": N_LAYERS, "d_model": D, "n_heads": N_HEADS, "d_head": D_HEAD, "n_vocab": N_VOCAB, "d_mlp": 8}
    return random_model(seed=seed, **(shape | more))


def changed(weights: ArrayWeights, **arrays: np.ndarray) -> ArrayWeights:
    return ArrayWeights(weights.spec, dict(weights.arrays) | {n.replace("__", "."): a for n, a in arrays.items()})


def scaled(gains: np.ndarray) -> ArrayWeights:
    """Random heads whose OV [layer, head] has these gains."""
    weights = random_weights(norm=None, d_mlp=0, n_layers=len(gains))
    W_O = {f"L{i}__W_O": weights[f"L{i}.W_O"] * gain[:, None, None] for i, gain in enumerate(gains)}
    return changed(weights, **W_O)


def topical(*, read: bool, write: bool, aside: float = 0.0, quiet: float = 0.5, seed: int = 0) -> ArrayWeights:
    """Tokens come in topics (a centre and noise); heads read, or write, differences of two topics' centres.

    What is read stands `aside` of its topics by so much, in the dimensions that hold none; there tokens are noise of
    the size `quiet`.
    """
    rng = np.random.default_rng(seed)
    weights = random_weights(seed=seed, norm=None, d_mlp=0)
    centres = np.linalg.qr(rng.standard_normal((D, TOPICS)))[0].T
    noise, rest = rng.standard_normal((N_VOCAB, D)) / np.sqrt(D), np.linalg.svd(centres)[2][TOPICS:]
    tokens = np.repeat(centres, EACH, axis=0) + 0.5 * noise + (quiet - 0.5) * noise @ rest.T @ rest
    arrays: dict[str, np.ndarray] = {"W_E": tokens, "W_U": tokens.T}
    for layer in range(N_LAYERS):
        W_V, W_O = weights[f"L{layer}.W_V"].copy(), weights[f"L{layer}.W_O"].copy()
        for head in range(N_HEADS):
            gains = np.linspace(3, 1, D_HEAD)
            sides = []
            for planted, away in ((read, aside), (write, 0.0)):
                pairs = rng.permutation(TOPICS)[: 2 * D_HEAD].reshape(D_HEAD, 2)
                rows = (centres[pairs[:, 0]] - centres[pairs[:, 1]]) / np.sqrt(2)
                rows = (rows + away * rest[rng.permutation(len(rest))[:D_HEAD]]) / np.sqrt(1 + away**2)
                sides.append(rows if planted else np.linalg.qr(rng.standard_normal((D, D_HEAD)))[0].T)
            W_V[head], W_O[head] = sides[0].T, gains[:, None] * sides[1]
        arrays |= {f"L{layer}__W_V": W_V, f"L{layer}__W_O": W_O}
    return changed(weights, **arrays)


def asked(weights: ArrayWeights, folder, **more) -> Asked:
    """Tokens are called after their topics: ' t3a', ' t3b', …"""
    labels = tuple(f" t{i // EACH}{'abcdefghij'[i % EACH]}" for i in range(N_VOCAB))
    model = dataclasses.replace(covector.open(weights), labels={"token": labels})
    atlas = built(model, folder, Options(("ov",), draws=500))
    return Asked(model, atlas, **({"draws": 500} | more))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Asked:
    return asked(topical(read=False, write=True), tmp_path_factory.mktemp("written") / "a")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Asked:
    return asked(topical(read=True, write=True), tmp_path_factory.mktemp("both") / "a")


@pytest.fixture(scope="module")
def nothing(tmp_path_factory) -> Asked:
    return asked(random_weights(seed=4), tmp_path_factory.mktemp("nothing") / "a")


def about(other: Asked, weights: ArrayWeights) -> Asked:
    """For findings that need no atlas: another model beside the one that is there."""
    return Asked(covector.open(weights), other.atlas, draws=500)


# A: spectra over depth.


def test_growth_over_depth_is_found_and_its_reverse_is_not(nothing):
    gains = np.repeat(2.0 ** np.arange(5)[:, None], N_HEADS, axis=1)
    grown, shrunk = growth(about(nothing, scaled(gains))), growth(about(nothing, scaled(gains[::-1])))
    assert (grown.verdict, grown.ours) == (HOLDS, pytest.approx(1))
    assert grown.p == pytest.approx(1 / 120)  # one order of five in 5!
    assert (shrunk.verdict, shrunk.ours) == (FAILS, pytest.approx(-1))


def test_three_layers_cannot_show_growth(nothing):
    with pytest.raises(BadRequest, match="fewer than 4 layers"):
        growth(about(nothing, scaled(np.ones((3, N_HEADS)))))


@pytest.mark.parametrize(("layer", "verdict"), [(5, HOLDS), (4, HOLDS), (0, FAILS), (3, FAILS)])
def test_a_jump_counts_in_the_last_third_alone(nothing, layer, verdict):
    gains = np.ones((6, N_HEADS))
    gains[layer, 2] = 1000
    found = jump(about(nothing, scaled(gains)))
    assert found.verdict == verdict
    if verdict == HOLDS:
        assert f"the largest of the last third is L{layer}H2.ov" in found.why
        assert found.ours > found.chance


def test_random_heads_neither_grow_nor_jump(nothing):
    weights = about(nothing, scaled(np.ones((6, N_HEADS))))
    assert [growth(weights).verdict, jump(weights).verdict] == [FAILS, FAILS]


# B: directions by themselves.


def lower(kind: str, side: str, share: float):
    """So many of the lists of one side more coherent than chance."""

    def change(columns, rng):
        at = (columns["kind"] == kind) & (columns["side"] == side)
        few = at & (rng.random(len(at)) < share)
        columns["p_coherence"] = np.where(few, 0.001, columns["p_coherence"])

    return change


def of_atlas(folder, change=None, **more) -> Asked:
    return Asked(covector.open(random_weights()), synthetic(folder, change, **more))


def test_the_share_that_heads_write_decides_b_and_the_share_they_read_d(tmp_path):
    write = of_atlas(tmp_path / "w", lower("ov", "write", 0.2))
    read = of_atlas(tmp_path / "r", lower("ov", "read", 0.2))
    none = of_atlas(tmp_path / "n")
    assert [individual(a).verdict for a in (write, read, none)] == [HOLDS, FAILS, FAILS]
    assert [left(a).verdict for a in (write, read, none)] == [FAILS, HOLDS, FAILS]
    assert individual(write).ours == pytest.approx(0.2 + 0.8 * 0.05, abs=0.1)  # 128 lists


@pytest.mark.parametrize(("raw", "processed", "verdict"), [(0.8, 0.0, HOLDS), (0.0, 0.8, FAILS), (0.0, 0.0, FAILS)])
def test_b_i_asks_whether_raw_is_above_tl_default(tmp_path, raw, processed, verdict):
    def shift(by: float):
        def change(columns, rng):
            columns["z_coherence"] = columns["z_coherence"] + by * (columns["side"] == "write")

        return change

    frames = {"raw": raw, "tl_default": processed}
    atlases = {n: synthetic(tmp_path / n, shift(by), frame_name=n, seed=1) for n, by in frames.items()}
    found = processing(Asked(covector.open(random_weights()), atlases["raw"], atlases.__getitem__))
    assert found.verdict == verdict
    assert found.ours == pytest.approx(raw - processed, abs=1e-5)


def test_signs_of_full_and_truncated_routines_differ_and_ours_do_not(nothing):
    found = valence(about(nothing, random_weights()))
    assert found.verdict == HOLDS
    assert found.why.endswith("between ours 0")
    # Signs of two routines that know nothing of each other: half of 48, in a binomial law.
    assert 0.2 < found.ours < 0.8


# C and D: poles and sides.


def test_planted_topics_at_both_poles_are_found_there(written, nothing):
    assert [f.verdict for f in either_pole(written)] == [HOLDS, HOLDS]
    assert [f.verdict for f in either_pole(nothing)] == [FAILS, FAILS]
    assert either_pole(written)[1].ours > 0.5


def test_the_side_that_is_planted_is_the_interpretable_one(written, both, nothing):
    assert [left(a).verdict for a in (written, both, nothing)] == [FAILS, HOLDS, FAILS]
    assert [individual(a).verdict for a in (written, both, nothing)] == [HOLDS, HOLDS, FAILS]
    assert [left_less(a).verdict for a in (written, both, nothing)] == [HOLDS, FAILS, FAILS]


def test_pinv_is_worse_where_it_multiplies_what_says_nothing(tmp_path, nothing, written):
    """Tokens hardly differ in 18 of 48 dimensions, and what is read lies there for the most part: pinv sees only that.

    In random weights, and where only what is written was planted, there is nothing to be read by the transpose either.
    """
    found = pseudo_inverse(asked(topical(read=True, write=True, aside=4.0, quiet=0.1), tmp_path / "a"))
    assert (found.verdict, found.ours < 0) == (HOLDS, True)
    assert [pseudo_inverse(a).verdict for a in (nothing, written)] == [FAILS, FAILS]


# E: units.


def one_piece() -> ArrayWeights:
    """One head writes ten ways to halve a family of sixteen topics (Hadamard's patterns); the others write anything.

    Beyond each direction itself its list is the mean of the family, whichever half it names.
    """
    rng = np.random.default_rng(1)
    weights = random_weights(norm=None, d_mlp=0, d_head=10)
    centres = np.linalg.qr(rng.standard_normal((D, TOPICS)))[0].T
    tokens = np.repeat(centres, EACH, axis=0) + 0.3 / np.sqrt(D) * rng.standard_normal((N_VOCAB, D))
    W_O = weights["L2.W_O"].copy()
    W_V = weights["L2.W_V"].copy()
    W_V[1] = np.linalg.qr(rng.standard_normal((D, 10)))[0]
    W_O[1] = np.linspace(3, 1, 10)[:, None] * (hadamard(16)[1:11] @ centres[:16]) / 4
    return changed(weights, W_E=tokens, W_U=tokens.T, L2__W_O=W_O, L2__W_V=W_V)


@pytest.mark.slow
def test_a_head_of_one_family_of_topics_is_a_unit_and_random_heads_are_none(nothing):
    found = unit(about(nothing, one_piece()))
    assert found.verdict == HOLDS
    assert found.p == pytest.approx(2 * 16 / 801)  # one of 16 heads beyond all 800 draws, doubled
    assert "nearest L2H1" in found.why
    assert unit(nothing).verdict == FAILS


# F and G: tracing and removal.


def told(found) -> list[str]:
    return [f.verdict for f in found]


def test_a_planted_concept_is_traced_and_in_random_weights_none_is(written, nothing):
    concepts = tuple(f"' t{t}a' + ' t{t}b' + ' t{t}c'" for t in range(4))
    found, _ = tracing(dataclasses.replace(written, concepts=concepts))
    assert found.verdict == HOLDS
    assert found.ours > found.chance
    assert found.p < 0.05
    found, removed = tracing(dataclasses.replace(nothing, concepts=concepts))
    assert (found.verdict, removed.verdict) == (FAILS, SILENT)
    assert found.p > 0.05


def test_words_that_the_vocabulary_cannot_say_are_told(nothing):
    found, removed = tracing(dataclasses.replace(nothing, concepts=("fire + flame",)))
    assert (found.verdict, removed.verdict) == (SILENT, SILENT)
    assert "cannot say any of fire + flame" in found.why
    found, _ = tracing(dataclasses.replace(nothing, concepts=("fire + flame", "' t1a'")))
    assert "its vocabulary cannot say fire + flame" in found.why


@pytest.mark.parametrize(("effect", "verdict"), [(-0.5, HOLDS), (0.5, HOLDS), (0.01, FAILS)])
def test_a_removal_is_judged_by_its_size_among_random_ones(nothing, effect, verdict):
    null = np.linspace(-0.1, 0.1, 39)
    traced = Traced("t", nothing.model.site("L0H0.ov"), 0, 0.9, 0.5, (1,))
    with_text = dataclasses.replace(nothing, removed=lambda model, found: Removal(effect, null, 9, "t"))
    found = removal_finding(with_text, [traced])
    assert found.verdict == verdict
    assert found.p == pytest.approx((1 + (np.abs(null) >= abs(effect)).sum()) / 40)
    assert removal_finding(nothing, [traced]).why.endswith("--text")
    near = dataclasses.replace(traced, cos=0.4)
    assert "no direction that a head writes" in removal_finding(with_text, [near]).why


def test_removal_is_the_run_of_a_model_without_the_dyad():
    """The same by hand: W_V W_O less σ u vᵀ on the write side, log p of the wanted tokens where they come next."""
    weights = random_weights(norm=None, n_ctx=16)
    model, ids = covector.open(weights), np.random.default_rng(0).integers(0, 20, 64)
    site, dyad, wanted = model.site("L2H1.ov"), 1, (3, 5, 8, 13)
    found = removal(model, [Traced("t", site, dyad, 1.0, 0.5, wanted)], ids, draws=5)
    v = svd(model.map(site)).Vh[dyad]
    W_O = weights["L2.W_O"].copy()
    W_O[1] = W_O[1] @ (np.eye(D) - np.outer(v, v))
    tokens = ids.reshape(4, 16)
    log_p = []
    for each in (weights, changed(weights, L2__W_O=W_O)):
        logits = Decoder(each, torch.float64).run(torch.from_numpy(tokens)).logits
        log_p.append(torch.log_softmax(logits, -1).numpy())
    rows, at = np.nonzero(np.isin(tokens[:, 1:], wanted))
    after = tokens[rows, at + 1]
    change = (log_p[1] - log_p[0])[rows, at, after]
    assert found.places == len(rows) >= 5
    assert found.effect == pytest.approx(change.mean(), abs=2e-5)  # a run in float32
    assert len(found.null) == 5
    assert np.std(found.null) > 1e-4


def test_random_removals_change_the_map_by_the_norm_of_the_dyad(monkeypatch):
    """Every edit that runs is looked at: ‖ΔM‖ = σ of the dyad, the first of them the dyad itself."""
    weights = random_weights(norm=None, n_ctx=16)
    model, ids = covector.open(weights), np.random.default_rng(0).integers(0, 20, 64)
    seen, edited = [], Decoder.edited

    def spy(self, changes):
        seen.append(changes)
        return edited(self, changes)

    monkeypatch.setattr(Decoder, "edited", spy)
    removal(model, [Traced("t", model.site("L2H1.ov"), 1, 1.0, 0.5, (3, 5, 8, 13))], ids, draws=4)
    found = svd(model.map("L2H1.ov"))
    assert len(seen) == 5
    for i, changes in enumerate(seen):
        others = np.delete(changes["L2.W_O"] - weights["L2.W_O"], 1, axis=0)
        assert not others.any()
        delta = weights["L2.W_V"][1] @ (changes["L2.W_O"][1] - weights["L2.W_O"][1])
        assert np.linalg.norm(delta) == pytest.approx(found.S[1], rel=1e-10)
        if i == 0:
            np.testing.assert_allclose(delta, -found.S[1] * np.outer(found.U[:, 1], found.Vh[1]), atol=1e-12)


def test_a_text_without_the_concept_is_refused():
    model = covector.open(random_weights(n_ctx=16))
    traced = Traced("t", model.site("L2H1.ov"), 1, 1.0, 0.5, (200,))
    with pytest.raises(BadRequest, match="fewer than 5 tokens"):
        removal(model, [traced], np.zeros(64, dtype=np.int64))


# All of it.


@pytest.mark.slow
def test_random_weights_bear_out_nothing_but_the_shuffled_signs(nothing, tmp_path):
    def made(frame: str):
        return built(nothing.model.framed(frame), tmp_path / frame, Options(("ov",), draws=500))

    table = replicate_sprint(nothing.model, nothing.atlas, made, concepts=("' t0a' + ' t0b'",), draws=500)
    verdicts = dict(zip(table["finding"], table["verdict"], strict=True))
    assert {k for k, v in verdicts.items() if v == HOLDS} == {"B.ii"}
    assert {k for k, v in verdicts.items() if v == SILENT} == {"G"}
    assert "these hold: B.ii; these do not: A.i, A.ii, B, B.i, C.i" in table.says


@pytest.mark.slow
def test_a_planted_model_bears_out_what_was_planted(written):
    table = replicate_sprint(written.model, written.atlas, concepts=tuple(f"' t{t}a' + ' t{t}b'" for t in range(4)))
    verdicts = dict(zip(table["finding"], table["verdict"], strict=True))
    assert {k for k, v in verdicts.items() if v == HOLDS} >= {"B", "C.i", "C.ii", "D.ii", "F"}
    assert {"D", "D.i"} <= {k for k, v in verdicts.items() if v == FAILS}
    assert {k for k, v in verdicts.items() if v == SILENT} >= {"A.i", "A.ii", "B.i"}, "all heads have one spectrum"


def test_what_cannot_be_asked_of_a_small_vocabulary_says_why(tmp_path):
    model = covector.open(random_model(n_layers=2, n_vocab=30))
    atlas = built(model, tmp_path / "raw", Options(("ov",), draws=50))
    table = replicate_sprint(model, atlas, draws=500)
    for row in table.rows:
        if row["verdict"] == SILENT:
            assert row["ours"] is None
            assert row["why"]
            assert str(tmp_path) not in row["why"]
    assert "its bases hold fewer than 144 labels" in " ".join(table["why"])


def test_atlases_of_other_frames_are_refused(tmp_path):
    model = covector.open(random_weights())
    with pytest.raises(BadRequest, match="expected an atlas in the frame raw"):
        replicate_sprint(model, synthetic(tmp_path / "a", frame_name="folded"))


# The command.


def test_the_command_tells_which_options_belong_to_which_replication(capsys):
    assert run(["replicate", "sprint", "toy", "--show", "lists"]) == 2
    assert "it belongs to covector replicate conjecture" in capsys.readouterr().err
    assert run(["replicate", "conjecture", "toy", "--text", "a.txt"]) == 2
    assert "it belongs to covector replicate sprint" in capsys.readouterr().err
    assert run(["replicate", "everything", "toy"]) == 2
    assert "expected covector replicate conjecture or sprint" in capsys.readouterr().err


def test_both_commands_run_on_a_toy(tmp_path, capsys):
    assert run(["replicate", "conjecture", "toy", "--show", "lists", "--out", str(tmp_path / "out")]) == 0
    assert "No published values are compared" in capsys.readouterr().out
    assert (tmp_path / "out" / "replicated_lists.json").exists()
    assert run(["replicate", "conjecture", "toy", "--plot", str(tmp_path / "a.svg"), "--rows", "2"]) == 0
    assert capsys.readouterr().out.count("tl-demo  ") == 2
    assert run(["replicate", "sprint", "toy", "-q", "--draws", "200"]) == 0
    assert "cannot be asked" not in capsys.readouterr().err
    assert run(["replicate", "sprint", "toy", "--text", str(tmp_path / "none.txt")]) == 2
