"""Why a head looks there: the parts of a score against the running decoder, finite differences, and laws."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

import covector
from captured_runs import length_of, run_of
from covector.analyses.attend import attend
from covector.analyses.attend_prompt import Asked
from covector.analyses.attend_splits import Glance, Row, by_dyads, by_pairs, by_writers
from covector.arch.family import families
from covector.arch.toy import RMS_NORM, induction, random_model
from covector.linalg.bilinear import contributing, largest_in_turned_bases, turned_size
from covector.linalg.chance.haar import rotation
from covector.model.opened import Model
from covector.model.spec import Rotary
from covector.model.weights import ArrayWeights, Weights
from covector.propagation.anatomy import Component
from covector.propagation.linearised import Linearised, Policies
from covector.propagation.scores import HeadScore
from covector.propagation.writers import writers
from covector.run.pieces import turn
from covector.run.random_inputs import random_inputs
from random_checkpoints import random_weights

# Sums of a few hundred products of order one to ten in float64.
CLOSE = {"rtol": 1e-10, "atol": 1e-11}
GROUPED = {"n_kv_heads": 2, "rotary": Rotary(4, 1e2), "qk_norm": RMS_NORM}
ANATOMIES: dict[str, Callable[[], Weights]] = {
    **{name: (lambda name=name: random_weights(name)) for name in families() if name != "transformer_lens"},
    "grouped rotary qk-norm": lambda: random_model(**GROUPED),
    "interleaved rotary": lambda: random_model(rotary=Rotary(2, 1e4, interleaved=True), norm=RMS_NORM),
    "rotary short of rank": lambda: random_model(d_model=8, n_heads=2, d_head=12, rotary=Rotary(8, 1e2), norm=RMS_NORM),
    "window": lambda: random_model(window=3),
    "no norm": lambda: random_model(norm=None),
    "post-norm": lambda: random_model(placement="post"),
    "sandwich parallel": lambda: random_model(placement="sandwich", parallel=True),
    "both ways": lambda: random_model(causal=False),
    "agent": lambda: random_model(agent="interleaved", positions="zero"),
}
# Those whose scores are not linear in a query or a key: a norm stands there.
NORMED_KEYS = ("grouped rotary qk-norm", "phi", "qwen3", "gemma3")
# From the end to a key before it that every window here still shows.
T, S = 5, 3


def at_end(weights: Weights, seed: int = 1) -> tuple[Component, dict[str, np.ndarray], Glance]:
    """The last head of the last attention, looking from position 5 to position 3 of a random prompt."""
    run = run_of(weights, random_inputs(weights.spec, length=length_of(weights), batch=1, seed=seed))
    linear = Linearised(weights, (run,), Policies.all("frozen"))
    c = [c for c in linear.components if c.attn][-1]
    assert c.attn is not None
    return c, run, Glance(HeadScore(linear, c, c.attn.n_heads - 1), T, S)


def by_hand(c: Component, run: dict[str, np.ndarray], head: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores before the soft-cap, contrast weights) of query T, from queries, keys and the pattern of the decoder."""
    assert c.attn is not None
    group = head * c.attn.n_kv_heads // c.attn.n_heads
    raw = c.attn.scale * run[c.hook("k_turned")][0, :, group] @ run[c.hook("q_turned")][0, T, head]
    weights = -run[c.hook("pattern")][0, head, T]
    weights = weights / (1 + weights[S])
    weights[S] = 1.0
    return raw, weights


def totals(rows: Iterable[Row]) -> tuple[float, float]:
    rows = list(rows)
    return sum(r.score for r in rows), sum(r.contrast for r in rows)


@pytest.mark.identity("OP-20", "SV-21")
@pytest.mark.parametrize("name", ANATOMIES)
def test_every_split_sums_to_the_score_that_the_decoder_has(name: str) -> None:
    c, run, glance = at_end(ANATOMIES[name]())
    assert c.attn is not None
    raw, weights = by_hand(c, run, c.attn.n_heads - 1)
    wanted = float(raw[S]), float(raw @ weights)
    cap = c.attn.softcap
    capped = cap * np.tanh(raw[S] / cap) if cap else raw[S]
    np.testing.assert_allclose(capped, run[c.hook("scores")][0, -1, T, S], **CLOSE)
    each = by_writers(glance)
    splits = {
        "dyads": by_dyads(glance, draws=20, seed=0).rows,
        "query writers": [r for r in each if r.side == "query"],
        "key writers": [r for r in each if r.side == "key"],
        "pairs": by_pairs(glance, 7),
        "whole": [Row("", glance.score, glance.contrast)],
    }
    for split, rows in splits.items():
        np.testing.assert_allclose(totals(rows), wanted, err_msg=split, **CLOSE)


@pytest.mark.identity("SV-21")
@pytest.mark.parametrize("name", ["gpt2", "grouped rotary qk-norm", "rotary short of rank"])
def test_dyads_sum_to_the_score_in_as_few_terms_as_no_basis_of_the_query_space_undercuts(name: str) -> None:
    """F18 of singular-vectors §2: the sum is the score exactly, whatever the basis; how sparse it is is its own.

    The score less its constants is x Ω y' / (σσ') from the weights; a basis O of the query space splits it into
    (x U O)_i (Oᵀ Uᵀ Ω y')_i: the same sum, another number of terms.
    """
    c, run, glance = at_end(ANATOMIES[name]())
    assert c.attn is not None
    raw, _ = by_hand(c, run, c.attn.n_heads - 1)
    split = by_dyads(glance, draws=200, seed=3)
    np.testing.assert_allclose(sum(r.score for r in split.rows), raw[S], **CLOSE)
    of_dyads = [r for r in split.rows if r.name.startswith("dyad ")]
    scores = np.array([r.score for r in of_dyads])
    contrasts = np.array([r.contrast for r in of_dyads])
    a = np.array([r.more[1] for r in of_dyads])
    assert split.needed == contributing(contrasts, 0.9)
    counts = []
    for i in range(400):
        turned = rotation(len(a), seed=(11, i))
        for offered, wanted in ((scores / a, scores), (contrasts / a, contrasts)):
            np.testing.assert_allclose(((a @ turned) * (offered @ turned)).sum(), wanted.sum(), rtol=1e-9, atol=1e-10)
        counts.append(contributing((a @ turned) * (contrasts / a @ turned), 0.9))
    # 200 draws beside 400: the median of a count, which is an integer, is off by one at most.
    assert abs(split.usual - np.median(counts)) <= 1
    assert abs(split.p - np.mean(np.array(counts) <= split.needed)) < 0.15


def test_the_sentence_says_how_few_dyads_do_it_beside_a_random_basis() -> None:
    table = attend(covector.open("demo-lm"), "L0H0", "Yesterday Mary was happy because", to=" Mary", draws=200)
    found = table.meta["contributing"]
    parts = np.array([r["contrast"] for r in table.rows if r["part"].startswith("dyad ")])
    assert found["dyads"] == contributing(parts, 0.9)
    assert found["random_basis"] > found["dyads"]
    assert f"{found['dyads']} of 32 dyads" in table.says


@pytest.mark.parametrize("name", ANATOMIES)
def test_what_every_sublayer_reads_is_the_sum_of_its_writers(name: str) -> None:
    weights = ANATOMIES[name]()
    run = run_of(weights, random_inputs(weights.spec, length=length_of(weights), batch=2, seed=1))
    linear = Linearised(weights, (run,), Policies.all("frozen"))
    for c in linear.components:
        parts = list(writers(linear, c, prompt=1))
        np.testing.assert_allclose(
            sum(w.rows for w in parts), run[c.hook(f"{c.sub.name}_normed")][1], err_msg=c.name, **CLOSE
        )
        assert len({w.name for w in parts}) == len(parts)


@pytest.mark.parametrize("name", [n for n in ANATOMIES if n not in NORMED_KEYS])
@pytest.mark.parametrize("side", ["query", "key"])
def test_taking_a_writer_away_on_one_side_takes_its_row_off_the_score(name: str, side: str) -> None:
    """A finite difference of the running decoder: the score is linear in each side, so any step is exact."""
    weights = ANATOMIES[name]()
    c, run, glance = at_end(weights)
    assert c.attn is not None
    assert c.attn.qk_norm is None
    inputs = random_inputs(weights.spec, length=length_of(weights), batch=1, seed=1)
    rows = {r.name: r for r in by_writers(glance) if r.side == side}
    position = T if side == "query" else S
    every = list(writers(glance.head.linear, c))
    cap = c.attn.softcap
    for w in (every[0], every[1], every[-1]):
        taken = torch.zeros(1, len(w.rows), w.rows.shape[1], dtype=torch.float64)
        taken[0, position] = torch.from_numpy(w.rows[position].copy())
        moved = run_of(weights, inputs, intervene={c.hook("attn_normed"): lambda x, taken=taken: x - taken})
        before, after = (r[c.hook("scores")][0, -1, T, S] for r in (run, moved))
        if cap:
            before, after = (cap * np.arctanh(z / cap) for z in (before, after))
        np.testing.assert_allclose(before - after, rows[w.name].score, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NORMED_KEYS)
def test_with_a_key_norm_a_step_that_keeps_a_keys_length_moves_the_score_as_the_held_form_says(name: str) -> None:
    """Along such steps the held scale stays right to first order, so that the held form is the derivative there."""
    weights = ANATOMIES[name]()
    c, run, glance = at_end(weights)
    assert c.attn is not None
    assert c.attn.qk_norm is not None
    inputs = random_inputs(weights.spec, length=length_of(weights), batch=1, seed=1)
    head, rng = glance.head, np.random.default_rng(0)
    k, W = run[c.hook("k")][0, S, head.kv], np.asarray(weights[c.hook("W_K")])[head.kv]
    if c.attn.qk_norm.kind == "layer":
        k = k - k.mean()
    step = rng.standard_normal(W.shape[0])
    step -= W @ k * (step @ W @ k) / (W @ k @ W @ k)
    assert abs(step @ W @ k) < 1e-12
    h, delta = 1e-5, np.zeros(head.read.shape)
    delta[S] = step
    found = []
    for sign in (1, -1):
        moved = torch.from_numpy(sign * h * delta)
        run = run_of(weights, inputs, intervene={c.hook("attn_normed"): lambda x, moved=moved: x + moved})
        found.append(run[c.hook("scores")][0, -1, T, S])
    q = head.query(head.read)[T] + head.constant("q")[T]
    wanted = head.meets(q, head.key(delta)[S])
    assert abs(wanted) > 1e-3
    # Central differences: error h² times a third derivative of order 10, rounding 1e-15/h.
    np.testing.assert_allclose((found[0] - found[1]) / (2 * h), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.identity("OP-16")
def test_what_does_not_depend_on_the_key_is_in_the_score_and_not_in_the_contrast() -> None:
    weights = random_model()
    _, _, glance = at_end(weights)
    rows = {r.name: r for r in by_dyads(glance, draws=20, seed=0).rows}
    other = ArrayWeights(
        weights.spec, {n: np.array(weights[n]) for n in weights.names()} | {"L1.b_K": 3 + np.zeros((4, 4))}
    )
    _, _, again = at_end(other)
    moved = {r.name: r for r in by_dyads(again, draws=20, seed=0).rows}
    for name in ("query × b_K", "b_Q × b_K"):
        assert abs(rows[name].score) > 1e-3
        assert abs(moved[name].score - rows[name].score) > 1e-2
        assert abs(rows[name].contrast) < 1e-13
    np.testing.assert_allclose(again.contrast, glance.contrast, **CLOSE)
    np.testing.assert_allclose(again.weight, glance.weight, **CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "window", "grouped rotary qk-norm", "both ways"])
def test_the_log_odds_of_looking_there_are_the_contrast_less_the_entropy_of_the_rest(name: str) -> None:
    _, _, glance = at_end(ANATOMIES[name]())
    rest = -glance.weights[glance.weights < 0]
    entropy = -np.sum(rest * np.log(rest))
    np.testing.assert_allclose(
        np.log(glance.weight / (1 - glance.weight)), glance.contrast - entropy, rtol=1e-10, atol=1e-11
    )


def test_the_contrast_is_defined_where_all_of_the_attention_is_on_one_key() -> None:
    model = covector.open(induction())
    table = attend(model, "L1H0", {"token": np.array([[0, 3, 5, 7, 3]])}, to=2)
    assert table.meta["weight"] == 1.0
    # Score 40 where the token before is the current one, 0 elsewhere: by construction.
    np.testing.assert_allclose([table.meta["score"], table.meta["contrast"]], 40.0)


def test_the_planted_induction_head_reads_what_the_previous_token_head_wrote() -> None:
    model = covector.open(induction())
    asked = {"token": np.array([[0, 3, 5, 7, 3]])}
    table = attend(model, "L1H0", asked, by="pairs")
    assert table.meta["key"] == 2
    assert (table["query"][0], table["key"][0]) == ("embed", "L0H0")
    np.testing.assert_allclose(table["contrast"][0], 40.0)
    before = attend(model, "L0H0", asked, start=2, by="pairs")
    assert before.meta["key"] == 1
    assert (before["query"][0], before["key"][0]) == ("pos", "pos")


@pytest.mark.identity("OP-24")
@pytest.mark.parametrize("interleaved", [False, True])
def test_dyads_at_an_offset_are_those_of_the_form_that_the_decoder_turns(interleaved: bool) -> None:
    weights = random_model(rotary=Rotary(4, 1e2, interleaved=interleaved), n_kv_heads=2)
    c, _, glance = at_end(weights)
    assert c.attn is not None
    assert c.attn.rotary is not None
    turned = [
        turn(torch.from_numpy(np.array(weights[c.hook(name)][row]))[:, None, None], c.attn.rotary, torch.tensor([[at]]))
        for name, row, at in (("W_Q", 3, T), ("W_K", 1, S))
    ]
    Q, K = (x[:, 0, 0].numpy() for x in turned)
    found = glance.head.at_offset(T - S)
    np.testing.assert_allclose((found.U * found.S) @ found.Vh, c.attn.scale * Q @ K.T, atol=1e-12)


@pytest.mark.identity("OP-22")
def test_another_basis_of_the_heads_own_coordinates_changes_no_dyad() -> None:
    weights = random_model()
    G = np.random.default_rng(5).standard_normal((4, 4))
    arrays = {n: np.array(weights[n]) for n in weights.names()}
    for name, factor in (("Q", G), ("K", np.linalg.inv(G).T)):
        arrays[f"L1.W_{name}"][3] = arrays[f"L1.W_{name}"][3] @ factor
        arrays[f"L1.b_{name}"][3] = arrays[f"L1.b_{name}"][3] @ factor
    splits = [by_dyads(at_end(w)[2], draws=20, seed=0).rows for w in (weights, ArrayWeights(weights.spec, arrays))]
    for row, other in zip(*splits, strict=True):
        np.testing.assert_allclose((row.score, row.contrast), (other.score, other.contrast), rtol=1e-8, atol=1e-10)


def test_frames_that_keep_the_function_keep_the_score_and_the_contrast() -> None:
    model = covector.open(random_model())
    tables = [attend(model, "L1H2", {"token": np.arange(6)[None]}, to=3, frame=f) for f in ("raw", "folded")]
    for name in ("score", "contrast", "weight"):
        np.testing.assert_allclose(tables[0].meta[name], tables[1].meta[name], rtol=1e-9)
    for table in tables:
        np.testing.assert_allclose(table["contrast"].sum(), table.meta["contrast"], rtol=1e-9)
        np.testing.assert_allclose(table["share"].sum(), 1.0, rtol=1e-9)


def test_one_dyads_score_is_its_gain_times_both_coefficients() -> None:
    for weights in (random_model(), random_model(**GROUPED)):
        for r in by_dyads(at_end(weights)[2], draws=20, seed=0).rows:
            if r.name.startswith("dyad"):
                np.testing.assert_allclose(r.score, np.prod(r.more), rtol=1e-12)


def test_the_largest_term_in_a_turned_plane_has_its_mean_in_closed_form() -> None:
    # cos θ cos(θ − φ) = ½(cos φ + cos(2θ − φ)), and the other term has a minus: E max = ½(|cos φ| + 2/π).
    for phi in (0.0, 0.7, np.pi / 2, 3.0):
        a, c = np.array([2.0, 0.0]), 1.5 * np.array([np.cos(phi), np.sin(phi)])
        null = largest_in_turned_bases(a, c, draws=20000, seed=0)
        wanted = 0.5 * 3.0 * (abs(np.cos(phi)) + 2 / np.pi)
        assert abs(null.mean() - wanted) < 4 * null.std() / np.sqrt(20000)


def test_a_random_basis_is_called_beyond_chance_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(2), 0
    a, c = rng.standard_normal((2, 12))
    null = np.sort(largest_in_turned_bases(a, c, draws=1999, seed=0))
    for trial in range(400):
        turn_of = rotation(12, seed=(7, trial))
        hits += bool(np.abs((a @ turn_of) * (c @ turn_of)).max() >= null[-100])
    # 5 % of 400, binomial standard deviation 4.4, and that of the level itself a little less.
    assert 6 <= hits <= 36


def test_the_size_of_a_turned_writer_is_its_standard_deviation_over_rotations() -> None:
    rng = np.random.default_rng(0)
    rows, f = 1 + rng.standard_normal((2, 4, 9))
    values = np.array([np.sum(f * (rows @ rotation(9, seed=(1, i)))) for i in range(3000)])
    # A sample standard deviation of 3000 near-normal values has a relative error of 1.3 %.
    np.testing.assert_allclose(values.std(), turned_size(rows, f) / 3, rtol=0.05)


def test_an_agent_is_asked_by_position_or_by_what_stands_there() -> None:
    weights = random_model(agent="interleaved")
    model = covector.open(weights)
    inputs = {n: v.numpy() for n, v in random_inputs(weights.spec, length=9, batch=1, seed=0).items()}
    by_name = attend(model, "L1H1", inputs, to="state 1", start="action 2", by="writers")
    by_number = attend(model, "L1H1", inputs, to=4, start=8, by="writers")
    assert by_name.meta["score"] == by_number.meta["score"]
    assert by_name.meta["tokens"][:4] == ["return 0", "state 0", "action 0", "return 1"]
    query = np.array([side == "query" for side in by_name["side"]])
    np.testing.assert_allclose(by_name["contrast"][query].sum(), by_name.meta["contrast"], rtol=1e-9)


def test_keys_lists_every_key_with_the_models_own_weights() -> None:
    weights = random_model(window=3)
    model = covector.open(weights)
    table = attend(model, "L1H1", {"token": np.arange(6)[None]}, by="keys")
    run = run_of(weights, np.arange(6)[None])
    assert list(table["position"]) == [3, 4, 5]
    np.testing.assert_allclose(table["weight"], run["L1.pattern"][0, 1, 5, 3:])
    assert sorted(table["rank"]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"to": "a"}, "expected one position, this token stands at 0, 2"),
        ({"to": "zebra"}, "expected a slot .end., a position or a token"),
        ({"to": 4, "start": 2}, "cannot look there from 'a' .2.; it sees positions 0 to 2"),
        ({"start": 0}, "sees one key only"),
        ({"to": "end+3"}, "choose one inside it"),
        ({"by": "wishes"}, "expected --by dyads, writers, pairs, tokens, keys"),
        ({"head": "L0.mlp.in"}, "expected a query head"),
        ({"frame": "folded+bias"}, "expected a frame that keeps it"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_in_words(asked: dict, told: str) -> None:
    weights = random_model(n_vocab=5)
    model = Model("toy", weights, weights, labels={"token": ("a", " b", "c", "d", "e")})
    given = {"head": "L1H0", "prompt": {"token": np.array([[0, 1, 0, 3, 4]])}} | asked
    with pytest.raises(covector.CovectorError, match=told):
        attend(model, given.pop("head"), given.pop("prompt"), **given)


def test_a_tokens_text_may_leave_out_its_leading_space() -> None:
    weights = random_model(n_vocab=5)
    model = Model("toy", weights, weights, labels={"token": ("a", " b", "c", "d", "e")})
    asked = Asked.run(model, {"token": np.array([[0, 1, 0, 3, 4]])})
    assert asked.position("b", "--to") == asked.position(" b", "--to") == 1
    assert asked.position("end-1", "--to") == 3


def test_tokens_stand_on_the_pole_of_the_query() -> None:
    """A query that is one token's input: the list of a dyad begins on that token's side, never on the other."""
    model = covector.open("demo-lm")
    table = attend(model, "L2H1", "Yesterday Mary was happy because", by="tokens", k=3)
    plain = attend(model, "L2H1", "Yesterday Mary was happy because", by="dyads")
    np.testing.assert_array_equal(table["contrast"], plain["contrast"])
    basis = model.bases["token_in"]
    dyads = covector.svd(model.map("L2H1.qk"))
    for row in [r for r in table.rows if r["part"].startswith("dyad")][:4]:
        u = dyads.U[:, int(row["part"].removeprefix("dyad "))]
        cosines = basis.unit() @ (u * np.sign(row["at_query"]))
        assert row["query_tokens"][0] == basis.labels[int(np.argmax(cosines))]
        np.testing.assert_allclose(row["query_cos"], cosines.max(), atol=1e-6)


@pytest.mark.slow
def test_a_trained_induction_head_looks_behind_the_last_occurrence_at_what_the_layer_below_wrote(shared: Path) -> None:
    """On 20 random strings with one repeated letter; the layer below has one head, which looks at the token before."""
    model = covector.open(str(shared / "models" / "induction-gpt2"))
    rng = np.random.default_rng(0)
    looked, led, before = [], [], []
    for _ in range(20):
        letters = rng.permutation(np.arange(1, 27))[:12]
        at = int(rng.integers(2, 9))
        ids = {"token": np.array([[0, *letters, letters[at]]])}
        looked.append(attend(model, "L1H0", ids, by="keys").meta["key"] == at + 2)
        side = [r for r in attend(model, "L1H0", ids, to=at + 2, by="writers").rows if r["side"] == "key"]
        led.append(max(side, key=lambda r: r["contrast"])["part"] == "L0H0")
        before.append(attend(model, "L0H0", ids, start=at + 2, by="keys").meta["key"] == at + 1)
    # Found: 20 of 20 each. One slip in twenty would not be another story.
    assert min(sum(looked), sum(led), sum(before)) >= 19
