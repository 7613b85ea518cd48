"""Selective induction: exact on a planted copier, laws on random models, strings, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from covector.analyses.induction_edit import reads_of
from covector.analyses.induction_strings import distinct, pool_of, repeats, start_of, twice
from covector.analyses.selective_induction import selective_induction
from covector.analyses.selective_measures import Found, Setup, measure, set_up
from covector.analyses.selective_tables import by_head, by_target, by_token
from covector.arch import toy
from covector.errors import BadRequest, BadSite, NotOneToken
from covector.linalg.interval import half_width
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.study.edit import Edit
from random_checkpoints import random_model

N = 21  # tokens of the copier, its start token included
FEW = tuple(f"t{i}" for i in range(1, 9))


@pytest.fixture(scope="module")
def copier() -> Model:
    weights = toy.induction(n_vocab=N, n_ctx=16)
    labels = ("<start>", *(f"t{i}" for i in range(1, N)))
    return Model("copier", weights, weights, labels={"token": labels})


@pytest.fixture(scope="module")
def broken(copier: Model) -> Found:
    return measure(set_up(copier, "t5", pairs=4, draws=30))


def test_strings_have_no_repeat_but_the_one_that_is_asked_for() -> None:
    ids, rng = np.arange(3, 12), np.random.default_rng(0)
    plain = distinct(ids, [1], 40, 7, rng)
    assert plain.shape == (40, 8)
    assert (plain[:, 0] == 1).all()
    assert all(len(set(row)) == 8 for row in plain.tolist())
    again = twice(ids, [1], 5, 7, rng)
    np.testing.assert_array_equal(again[:, 1:8], again[:, 8:])


@pytest.mark.parametrize("role", ["A", "B"])
@pytest.mark.parametrize("length", [4, 9])
def test_repeats_read_a_b_then_a(role: str, length: int) -> None:
    """… A B … A: A twice up to the place that is read, B once, right behind the first A; nothing else twice."""
    ids = np.arange(3, 12)
    found = repeats(ids, [1], 7, 30, length, 0, role)
    assert ((found.b if role == "B" else found.a) == 7).all()
    assert len(set((found.a if role == "B" else found.b)[:8].tolist())) == 8  # each other once before one comes twice
    for row, at, a, b in zip(found.tokens, found.at, found.a, found.b, strict=True):
        seen = row[: at + 1].tolist()
        first = seen.index(a)
        assert seen[-1] == a
        assert seen[first + 1] == b
        assert at - first >= 3
        assert len(set(seen)) == len(seen) - 1
    if length == 9:
        assert len(set(found.at.tolist())) > 3  # in many places


def test_the_copier_is_found_by_both_scores(broken: Found) -> None:
    """L1H0 looks at what followed (1 of its attention) and copies; L0H0 looks one place back and writes no output."""
    table = by_head(broken)
    assert broken.setup.heads == ("L1H0",)
    looks = dict(zip(table["head"], table["looks"], strict=True))
    copies = dict(zip(table["head"], table["copies"], strict=True))
    assert looks["L1H0"] == pytest.approx(1, abs=1e-9)
    assert looks["L0H0"] == pytest.approx(0, abs=1e-9)
    assert (copies["L1H0"], copies["L0H0"]) == (1, 0)


def test_only_the_token_breaks_and_by_exactly_what_was_planted(broken: Found) -> None:
    """Its logit is 1 beside 0s before and 0 after, so p falls from e/(e + N − 1) to 1/N; for no other token anything.

    The ridge of 1e-6 is what the zeros and the 1 are off by.
    """
    fall = math.e / (math.e + N - 1) - 1 / N
    n = len(broken.setup.ids)
    np.testing.assert_allclose(broken.p, math.e / (math.e + N - 1), rtol=1e-12)
    np.testing.assert_allclose(broken.fall, fall * np.eye(n), atol=1e-6)
    np.testing.assert_allclose(broken.logits.mean(axis=2), np.eye(n), atol=1e-5)
    table = by_target(broken)
    assert list(table["verdict"]) == ["only it"] * n
    assert table["target"][0] == "t5"
    assert "Only it breaks: p(t5)" in table.says


def test_outside_of_repeats_nothing_breaks(broken: Found) -> None:
    """As A the token is looked for, not read: nothing changes. Nor does its loss where it comes for the first time.

    Strings in which the answer is the edit's own token are not asked.
    """
    np.testing.assert_allclose(broken.fall_as_a, 0, atol=1e-6)
    own = np.isnan(broken.as_a)
    assert own.any()
    assert not own[np.arange(len(own)), np.arange(len(own))].any()
    np.testing.assert_allclose(np.diag(broken.next), 0, atol=1e-5)
    assert broken.next.max() < 1e-5  # others only gain what it does not get


def test_the_drift_on_strings_without_repeats_is_the_tokens_share_of_the_mean(broken: Found) -> None:
    """At place i the copier gives each of i + 1 tokens seen a logit of 1/(i + 1), the start token too; the edit takes
    the target's. KL in closed form, at every place from the start token on."""
    setup = broken.setup
    places, kl = setup.length + 1, 0.0
    n = len(setup.ids)
    for i in range(places):
        logits = np.zeros(N)
        logits[: i + 1] = 1 / (i + 1)
        p = np.exp(logits) / np.exp(logits).sum()
        if i:
            changed = logits.copy()
            changed[1] = 0  # any of the i tokens that are not the start's
            q = np.exp(changed) / np.exp(changed).sum()
            kl += (i / n) * np.sum(p * np.log(p / q))  # the target is among i of n with chance i/n
    assert broken.kl.mean() == pytest.approx(kl / places, rel=1e-4)


def test_keeping_a_share_keeps_that_share_of_the_logit(copier: Model) -> None:
    found = measure(set_up(copier, "t5", tokens=FEW, pairs=4, keep=0.4))
    np.testing.assert_allclose(np.diag(found.logits.mean(axis=2)), 0.6, atol=1e-5)


def test_dyads_that_are_tokens_do_the_same(copier: Model) -> None:
    """All gains of the copier are equal, so its dyads may be any: where they are the tokens F6 removes one of them."""
    found = measure(set_up(copier, "t5", tokens=FEW, pairs=4, way="dyads"))
    fall = math.e / (math.e + N - 1) - 1 / N
    np.testing.assert_allclose(found.fall, fall * np.eye(len(found.setup.ids)), atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("way", ["least", "dyads"])
def test_what_is_measured_is_what_the_edited_model_does(name: str, way: str) -> None:
    """Falls, KL and loss against whole runs of `model.edited(edit)`, with norms, biases, rotary and grouped heads."""
    model = random_model(name)
    setup = set_up(model, heads=["L1H0", "L1H1"], tokens=[str(i) for i in range(8)], pairs=4, start="no", way=way)
    found = measure(setup)
    t = 2
    plain, edited = Decoder(model.weights), Decoder(model.edited(setup.edit(t)).weights)
    rows = repeats(setup.ids, (), int(setup.ids[5]), 4, setup.length, (setup.seed, 5), "B")
    falls = []
    for row, at in zip(rows.tokens, rows.at, strict=True):
        p = [torch.softmax(d.run(torch.from_numpy(row[None, : at + 1])).logits[0, -1], -1)[5] for d in (plain, edited)]
        falls.append(float(p[0] - p[1]))
    np.testing.assert_allclose(found.each[t, 5], falls, rtol=1e-8, atol=1e-14)
    assert max(map(abs, falls)) > 1e-6


def test_what_is_read_is_what_the_heads_matrix_multiplies() -> None:
    """x W_V + b_V is the value that passes in that block, place by place."""
    model, strings = random_model("gpt2"), np.arange(12).reshape(2, 6)
    decoder = Decoder(model.weights)
    values = decoder.run(torch.from_numpy(strings), capture=["L1.v"]).cache["L1.v"].numpy()
    x = reads_of(decoder, strings, np.arange(12), [0, 1])[1].rows
    found = np.einsum("nd,hdr->nhr", x, model.weights["L1.W_V"]) + model.weights["L1.b_V"]
    np.testing.assert_allclose(found.reshape(values.shape), values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_edit_takes_the_mean_input_away_and_leaves_other_heads(name: str) -> None:
    """e W_V' = keep · e W_V for the edited heads, every other matrix is the same to the bit."""
    model = random_model(name)
    setup = set_up(model, heads=["L1H0"], tokens=[str(i) for i in range(8)], pairs=4, start="no", keep=0.25)
    e = setup.maker.reads[1].means[3]
    edited = model.edited(setup.edit(3)).weights
    before, after = (np.einsum("d,hdr->hr", e, w["L1.W_V"].astype(np.float64)) for w in (model.weights, edited))
    np.testing.assert_allclose(after[0], 0.25 * before[0], rtol=1e-8)
    np.testing.assert_array_equal(edited["L1.W_V"][1:], model.weights["L1.W_V"][1:])
    for other in ("L0.W_V", "L1.W_O", "L1.W_Q", "W_E"):
        np.testing.assert_array_equal(edited[other], model.weights[other])


def test_both_ways_change_as_much_of_the_output() -> None:
    """E‖xΔM‖² over the strings without repeats is the same for the least change and for the dampened dyads."""
    model, sizes = random_model("gpt2"), []
    for way in ("least", "dyads"):
        setup = set_up(model, heads=["L1H0"], tokens=[str(i) for i in range(8)], pairs=4, start="no", way=way)
        laid = setup.edit(1).resolve(setup.model).laid
        change = sum(one.delta.dense() for one in laid)
        x = setup.maker.reads[1].rows
        sizes.append(float(np.mean(np.sum((x @ change) ** 2, axis=1))))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-6)


def test_e_and_sigma_come_from_other_strings_than_are_measured(broken: Found) -> None:
    """What is read is of strings without repeats, with the start token, every token among them."""
    reads = broken.setup.maker.reads[1]
    np.testing.assert_allclose(reads.moment, reads.rows.T @ reads.rows / len(reads.rows), atol=1e-12)
    for t in range(len(broken.setup.ids)):
        np.testing.assert_allclose(reads.means[t], reads.rows[reads.which == t].mean(axis=0), atol=1e-12)
    assert (reads.which == -1).sum() == len(reads.which) // (broken.setup.length + 1)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(copier: Model) -> None:
    first, second, third = (selective_induction(copier, "t5", tokens=FEW, pairs=4, seed=s).to_json() for s in (0, 0, 1))
    assert first == second
    assert first != third


def test_the_tokens_of_one_edit_stand_with_the_most_hit_first(broken: Found) -> None:
    table = by_token(broken)
    assert table["token"][0] == "t5"
    assert table["fall"][0] > 0.05 > max(table["fall"][1:])


def test_an_edit_survives_being_written(broken: Found) -> None:
    setup = broken.setup
    again = Edit.from_json(setup.edit(0).bound(setup.model).to_json())
    for one, other in zip(again.change(setup.model).updates, setup.edit(0).change(setup.model).updates, strict=True):
        np.testing.assert_allclose(one.delta, other.delta, atol=1e-12)


def test_tokens_of_like_frequency_stand_beside_the_target() -> None:
    """With many tokens: the nearest numbers of the same form, or the nearest counts of a text."""
    labels = ("<s>", *(f" w{chr(97 + i)}" for i in range(20)), *(f"v{chr(97 + i)}" for i in range(20)))
    model = random_model("gpt2", labels={"token": labels}, vocab_size=41)
    near = pool_of(model, " wj", (), 6)
    assert near[0] == 10
    assert sorted(near[1:].tolist()) == [7, 8, 9, 11, 12, 13]
    counts = np.zeros(41, dtype=int)
    counts[[10, 2, 4, 19]] = 50
    assert {2, 4, 19} < set(pool_of(model, " wj", (), 6, counts).tolist())
    assert start_of(model) == [0]
    assert start_of(model, "no") == []


def test_a_model_without_induction_heads_is_told_so() -> None:
    with pytest.raises(BadSite, match="expected induction heads, found none: L"):
        set_up(random_model("gpt2"), tokens=[str(i) for i in range(8)], start="no")


def test_bad_requests_are_refused(copier: Model) -> None:
    with pytest.raises(BadRequest, match="--keep: expected a share from 0"):
        set_up(copier, keep=1.0)
    with pytest.raises(BadRequest, match="--pairs: expected at least 4"):
        set_up(copier, pairs=3)
    with pytest.raises(BadRequest, match="--draws: expected at least 19"):
        set_up(copier, draws=18)
    with pytest.raises(BadRequest, match="--way: expected least or dyads"):
        set_up(copier, way="most")
    with pytest.raises(BadRequest, match="--ridge"):
        set_up(copier, ridge=-1.0)
    with pytest.raises(BadRequest, match="--length: expected 4 to 14"):
        set_up(copier, length=40)
    with pytest.raises(BadRequest, match="at least 5 tokens"):
        set_up(copier, tokens=["t1", "t2"])
    with pytest.raises(BadRequest, match="--start: expected auto, no or a token"):
        set_up(copier, start="x")
    with pytest.raises(BadRequest, match="expected --token"):
        set_up(random_model("gpt2", vocab_size=41), draws=19)
    with pytest.raises(NotOneToken):
        set_up(copier, "nothing")
    with pytest.raises(BadRequest, match="sees the tokens to come"):
        set_up(
            dataclasses.replace(copier, weights=toy.random_model(causal=False), stored=toy.random_model(causal=False))
        )


def test_one_letter_of_a_trained_model_breaks_alone(shared) -> None:
    """induction-gpt2 predicts p > .9 for every letter; the edit for q leaves less than half, no other loses .1."""
    import covector

    model = covector.open(str(shared / "models" / "induction-gpt2"))
    letters = list("qabcdefgh")
    setup: Setup = set_up(model, "q", tokens=letters, pairs=4)
    assert setup.heads == ("L1H0",)
    table = by_target(measure(setup))
    row = table.rows[0]
    assert row["verdict"] == "only it"
    assert row["fall"] > 0.45
    assert row["its_fall"] < 0.1
    assert abs(row["as_a"]) < 0.1


def test_a_token_that_is_not_copied_has_nothing_to_break(copier: Model) -> None:
    """The edit laid over the model, then asked for again: p(t5) is at a guess; nothing is called broken, or a ratio."""
    edited = copier.edited(set_up(copier, "t5", tokens=FEW, pairs=4, draws=30).edit(0))
    found = measure(set_up(edited, "t5", tokens=FEW, pairs=4, draws=30))
    assert found.p[0] == pytest.approx(1 / N, rel=1e-6)  # all tokens are equally likely
    assert found.p[1:].min() > 2 / N
    table = by_target(found)
    first = table.rows[0]
    assert first["verdict"] == "not copied"
    assert abs(first["fall"]) < 1e-9
    assert table.says.startswith("There is nothing to break: p(t5)")
    assert "(1 more is not copied in the first place)" in table.says


def test_intervals_of_a_fall_stay_within_what_can_fall(broken: Found) -> None:
    """Strings on which a token of p .9 falls by 0 and by 1: Student's interval alone would reach beyond p and p − 1."""
    each = broken.each.copy()
    each[0, 1] = [0.9, 0.9, 0.9, 0.0]
    found = dataclasses.replace(broken, each=each, p=np.where(np.arange(len(broken.p)) == 1, 0.9, broken.p))
    low, high = found.interval(np.array([0]), np.array([1]))
    wide = float(half_width(each[0, 1]))
    assert high[0] == 0.9 < each[0, 1].mean() + wide
    assert low[0] == pytest.approx(max(each[0, 1].mean() - wide, -0.1))
    table = by_target(found)
    assert all(row["high"] <= p + 1e-12 for row, p in zip(table.rows, found.p, strict=True))
