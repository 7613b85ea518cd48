"""The effect of edits: exact where the model is linear, first order is a derivative, controls have the edit's size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import covector
from covector.analyses.edit_controls import DYADS, NORM, OUTPUT, dyad_changes, pieces_of, random_changes, sources
from covector.analyses.edit_effect import _mean, edit_effect, probability, rank, table_of
from covector.analyses.edit_measures import Effects, measure
from covector.analyses.edit_setup import Setup, set_up
from covector.analyses.edit_tables import by_control, by_dyad, by_prompt
from covector.analyses.edit_words import replacement
from covector.arch.toy import Plant, planted, random_model
from covector.errors import BadRequest
from covector.linalg.chance import bh
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.model.spec import Norm, Rotary
from covector.model.weights import ArrayWeights, split_name
from covector.render import Table
from covector.run.decoder import Decoder
from covector.run.edit_runs import scaled
from covector.run.edited import laid_over
from covector.run.neutral import neutral_text, read_neutral
from covector.run.prompts import Pair
from covector.study.edit import Edit
from covector.study.edit_terms import Rewrite
from covector.study.observable import Observable
from random_checkpoints import random_model as families_model

# Float64 sums of a few hundred terms of order one.
CLOSE = 1e-10
ASKED = {"token 3": 1, "token 5": -1}
MODELS: dict[str, Any] = {
    "plain": random_model,
    "rotary grouped": lambda: random_model(
        rotary=Rotary(4, 1e4), n_kv_heads=2, norm=Norm("rms", 1e-6), gated=True, activation="silu", positions="none"
    ),
    "parallel": lambda: random_model(parallel=True),
    "tied": lambda: random_model(tied=True),
}
# What the changed matrix's product passes through: the same table as the documentation's, written once more.
PLACES = {"W_Q": "q", "W_K": "k", "W_V": "v", "W_O": "attn_out", "W_in": "mlp_pre", "W_out": "mlp_out"}


def opened(name: str = "plain", **options: Any) -> Model:
    return covector.open(MODELS[name](**options))


def pairs_for(model: Model, n: int = 4, length: int = 6, seed: int = 0, same: bool = False) -> list[Pair]:
    ids = np.random.default_rng(seed).integers(0, model.spec.n_vocab, (n, 2, length))
    made = []
    for i, (a, b) in enumerate(ids.tolist()):
        made.append(
            Pair(tuple(a), tuple(a if same else b), {"end": length - 1}, (f"a{i}", f"b{i}"), (f"a{i}", f"b{i}"))
        )
    return made


def asked(model: Model) -> Observable:
    return Observable(ASKED, model)


def prepared(model: Model, edit: Any, draws: int = 5, **options: Any) -> Setup:
    return set_up(model, edit, options.pop("observables", [asked(model)]), options.pop("pairs", pairs_for(model)),
                  draws=draws, **options)  # fmt: skip


def text_for(model: Model, rows: int = 3, length: int = 8) -> np.ndarray:
    return np.random.default_rng(9).integers(0, model.spec.n_vocab, (rows, length))


def row_of(table: Table, **wanted: Any) -> dict[str, Any]:
    found = [row for row in table.rows if all(row[k] == v for k, v in wanted.items())]
    assert len(found) == 1, wanted
    return found[0]


def tokens_of(setup: Setup) -> torch.Tensor:
    """All prompts, side-major, as the bench has them."""
    return torch.from_numpy(np.concatenate([s.tokens for s in setup.bench.starts]))


# ---------------------------------------------------------------------------------------------------- exact effects


@pytest.mark.identity("SV-20")
@pytest.mark.parametrize(("dyad", "factor"), [(0, 0.0), (2, 0.4), (5, 2.5)])
def test_where_nothing_comes_after_the_effect_is_the_dyads_own_term_and_the_prediction_is_exact(
    dyad: int, factor: float
) -> None:
    model = covector.open(random_model(seed=1, norm=None))
    doses = [0.5, 1.0]
    setup = prepared(model, f"L1.mlp.out:{dyad}*{factor}", doses=doses, draws=1)
    table = table_of(measure(setup))
    found, epsilon = covector.svd(model.map("L1.mlp.out")), factor - 1
    run = Decoder(model.stored).run(tokens_of(setup), capture=["L1.mlp_post"])
    h = run.cache["L1.mlp_post"][:, -1].numpy()
    n = asked(model).vector
    effect = epsilon * found.S[dyad] * (h @ found.U[:, dyad]) * (found.Vh[dyad] @ model.weights["W_U"] @ n)
    gap = (effect[:4] - effect[4:]).mean()
    for dose in doses:
        row = row_of(table, dose=dose, on="gap", measure=str(asked(model)))
        np.testing.assert_allclose([row["change"], row["predicted"]], dose * gap, atol=CLOSE)
    logits = setup.bench.logits(setup.parts[0].change) - setup.base
    dense = epsilon * found.S[dyad] * np.outer(h @ found.U[:, dyad], found.Vh[dyad] @ model.weights["W_U"])
    np.testing.assert_allclose(logits.reshape(8, -1), dense, atol=CLOSE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("edit", ["L0H1.ov:0,2*0.3", "L0.mlp.out:1*0", "L1H0.qk:0*2", "unembed:1*0.5", "embed:0*0"])
def test_first_order_is_the_derivative_dyad_by_dyad(name: str, edit: str) -> None:
    """Against central differences with weights multiplied out, step 1e-4: their own error is below 1e-7 here."""
    model = opened(name)
    setup = prepared(model, edit, draws=1)
    pieces = pieces_of(setup, setup.parts[0])
    slopes = setup.bench.slopes([p.change for p in pieces], asked(model).vector[None], setup.weights)
    ids, decoder, step = tokens_of(setup), Decoder(model.stored), 1e-4

    def value(change: Change) -> np.ndarray:
        logits = laid_over(decoder, change).run(ids).logits[:, -1].numpy()
        return (logits @ asked(model).vector).reshape(2, -1).mean(axis=1)

    for k, piece in enumerate(pieces):
        up, down = (value(scaled(piece.change, t)) for t in (step, -step))
        np.testing.assert_allclose(slopes[0, :, k], (up - down) / (2 * step), atol=1e-6)


def test_no_interval_of_a_kl_goes_below_0() -> None:
    """Two windows leave one degree of freedom, t = 12.7: the mean less its half width is negative."""
    table = table_of(measure(prepared(opened(), "L0H1.ov:0*0", draws=3, neutral=text_for(opened(), rows=2))))
    kl = [r for r in table.rows if r["measure"] == "KL" and r["dose"] > 0]
    assert all(0 <= r["low"] <= r["change"] <= r["high"] for r in kl)
    assert any(2 * r["change"] < r["high"] for r in kl)


def test_probability_and_rank_are_those_of_the_softmax() -> None:
    logits = np.array([[0.0, 2.0, 1.0, 2.0]])
    np.testing.assert_allclose(probability(logits, 2), np.exp(1) / (1 + np.exp(1) + 2 * np.exp(2)), rtol=CLOSE)
    assert [float(rank(logits, i)[0]) for i in range(4)] == [4, 1, 3, 1]


@pytest.mark.parametrize("frame", ["raw", "folded"])
def test_a_dose_of_several_dyads_scales_every_epsilon(frame: str) -> None:
    """Biases that a frame's edit moves along with it included."""
    model = opened().framed(frame)
    setup = prepared(model, "L0H1.ov:0,2*0.2@read; L1.mlp.in:3*0", draws=1)
    half = Edit.parse("L0H1.ov:0,2*0.6@read; L1.mlp.in:3*0.5").change(model)
    made = scaled(setup.parts[0].change, 0.5)
    assert len(half.shifts) == (2 if frame == "folded" else 0)
    for one, wanted in zip(made.updates, half.updates, strict=True):
        np.testing.assert_allclose(one.delta, wanted.delta, atol=CLOSE)
    for one, wanted in zip(made.shifts, half.shifts, strict=True):
        np.testing.assert_allclose(one.values, wanted.values, atol=CLOSE)


@pytest.mark.parametrize(
    ("text", "side"), [("L0H1.ov:2=replace(ones/d)", "write"), ("L1.mlp.in:0=replace(ones)", "read")]
)
def test_a_replacement_is_told_as_an_ablation_and_an_addition(text: str, side: str) -> None:
    """Norms from dense matrices: the map less the dyad, and what stands there instead."""
    model = opened()
    site, index = text.split(":")[0], int(text.split(":")[1][0])
    M = model.map(site).dense()
    (laid,) = Edit.parse(text).resolve(model).laid
    U, S, Vh = np.linalg.svd(M)
    u, v, d = U[:, index], Vh[index], M.shape[1 if side == "write" else 0]
    turned = np.sign(laid.operator.reads[0] @ (v if side == "write" else u))  # a pair has one sign, by convention
    w = turned * np.full(d, 1 / d if "ones/d" in text else d**-0.5)
    added = S[index] * (np.outer(u, w) if side == "write" else np.outer(w, v))
    whole = added - S[index] * np.outer(u, v)
    np.testing.assert_allclose(laid.delta.dense(), whole, atol=CLOSE)
    told = replacement(laid)
    assert f"ablation, ‖ΔM‖ {S[index]:.3g}," in told
    assert f"addition of ‖ΔM‖ {np.linalg.norm(added):.3g} " in told
    assert told.endswith(f"together {np.linalg.norm(whole):.3g}.")
    assert told in table_of(measure(prepared(model, text, draws=1))).says


def test_parts_are_measured_by_themselves_and_together() -> None:
    """In a model that is linear behind them, two parts of the last block add up."""
    model = covector.open(random_model(seed=1, norm=None))
    table = table_of(measure(prepared(model, ["L1.mlp.out:0*0", "L1.mlp.out:1*0.5"], draws=2)))
    change = [row_of(table, edit=e, dose=1.0, on="gap", measure=str(asked(model)))["change"]
              for e in ("together", "L1.mlp.out:0*0", "L1.mlp.out:1*0.5")]  # fmt: skip
    np.testing.assert_allclose(change[0], change[1] + change[2], atol=CLOSE)


def test_text_is_measured_as_whole_runs_of_both_models_measure_it() -> None:
    model = opened()
    text = text_for(model)
    effects = measure(prepared(model, "L0H1.ov:0*0", draws=1, neutral=text))
    table = table_of(effects)
    both = [Decoder(w).run(torch.from_numpy(text)).logits.numpy() for w in (
        model.stored, model.edited(Edit.parse("L0H1.ov:0*0")).stored)]  # fmt: skip
    base, other = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in both)
    kl = np.sum(np.exp(base) * (base - other), axis=-1)
    loss = [-np.take_along_axis(x[:, :-1], text[:, 1:, None], axis=-1).mean() for x in (base, other)]
    found = {row["measure"]: row for row in table.rows if row["on"] == "neutral" and row["dose"] == 1}
    np.testing.assert_allclose(found["KL"]["change"], kl.mean(), atol=1e-12)
    np.testing.assert_allclose([found["loss"]["before"], found["loss"]["after"]], loss, atol=CLOSE)
    np.testing.assert_allclose(found["perplexity ×"]["change"], np.exp(loss[1] - loss[0]), rtol=CLOSE)
    means = kl.mean(axis=1)  # windows of equal length: Student's t over their means
    half = stats.t.ppf(0.975, 2) * means.std(ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found["KL"]["high"] - found["KL"]["change"], half, rtol=1e-9)
    effect = abs(row_of(table, dose=1.0, on="gap", measure=str(asked(model)))["change"])
    per = next(r for r in table.rows if r["measure"].startswith("per √KL"))["change"]
    np.testing.assert_allclose(per, effect / np.sqrt(kl.mean()), rtol=CLOSE)


# ---------------------------------------------------------------------------------------------------- planted topics


def animals() -> Model:
    """Reads token 0 and writes 1 (gain 3), 2 → 3 (gain 2), 4 → 5 (gain 1); nothing behind it but the output."""
    plants = [Plant(0, 1, 3.0), Plant(2, 3, 2.0), Plant(4, 5, 1.0)]
    return covector.open(planted(plants, "L0H1.ov", d_mlp=0))


def about(*ids: int) -> list[Pair]:
    """Prompts in which the topics' tokens stand among others."""
    rng = np.random.default_rng(4)
    made = []
    for i in range(4):
        row = [*rng.integers(6, 12, 3).tolist(), *ids]
        made.append(Pair(tuple(row), tuple(row), {"end": len(row) - 1}, (f"p{i}", f"p{i}")))
    return made


def test_removing_a_topics_dyad_lowers_that_topics_observable_and_no_other() -> None:
    model = animals()
    observables = [Observable({f"token {t}": 1}, model) for t in (1, 3, 5)]
    setup = prepared(model, "L0H1.ov:0*0", observables=observables, pairs=about(0, 2, 4), draws=20)
    effects = measure(setup)
    table = table_of(effects)
    run = Decoder(model.stored).run(tokens_of(setup), capture=["L0.pattern"])
    attention = run.cache["L0.pattern"][:, 1, -1, 3].numpy()  # what the position read gives to token 0
    rows = [row_of(table, dose=1.0, on="prompts", measure=str(o)) for o in observables]
    np.testing.assert_allclose([r["change"] for r in rows], [-3 * attention.mean(), 0, 0], atol=CLOSE)
    assert [r["p"] for r in rows[1:]] == [1, 1]  # every random change does more to them


def test_text_without_the_topic_does_not_move() -> None:
    """Topic texts as token ids: the planted topic's, and two without its token."""
    model = animals()
    text = np.array([[6, 0, 7, 0], [6, 2, 7, 2], [6, 4, 7, 4]])
    effects = measure(prepared(model, "L0H1.ov:0*0", observables=[Observable({"token 1": 1}, model)], pairs=about(0),
                               draws=3, neutral=text))  # fmt: skip
    side, setup = effects.parts[0].side, effects.setup
    assert side is not None
    assert setup.neutral is not None
    kl = {row: side.kl[-1][setup.neutral.window == row].max() for row in range(3)}
    assert kl[0] > 1e-2
    assert max(kl[1], kl[2]) < 1e-14


def test_dose_and_response_grow_together() -> None:
    model = animals()
    o = Observable({"token 1": 1}, model)
    table = edit_effect(model, "L0H1.ov:0*0", o, about(0, 2, 4), doses=(0.1, 0.2, 0.4, 0.8), draws=2,
                        neutral=text_for(model))  # fmt: skip
    rows = sorted((r for r in table.rows if r["measure"] == str(o) and r["on"] == "prompts"), key=lambda r: r["dose"])
    change = np.array([r["change"] for r in rows])
    assert [r["dose"] for r in rows] == [0, 0.1, 0.2, 0.4, 0.8, 1]
    np.testing.assert_allclose(change, change[-1] * np.array([0, 0.1, 0.2, 0.4, 0.8, 1]), atol=CLOSE)
    kl = [r["change"] for r in sorted((r for r in table.rows if r["measure"] == "KL"), key=lambda r: r["dose"])]
    assert np.all(np.diff(kl) > 0)
    assert "Monotone in the dose" in table.says


# ---------------------------------------------------------------------------------------------------------- controls

EDITS = ["L1H2.ov:0*0", "L1H2.ov:0,3*0.4@read", "L1.mlp.out:1,2*0.5", "L0.mlp.in:2*0", "L0H1.qk:0*0.2", "L1H1.k:0*0",
         "unembed:0*0.5", "embed:1*0", "pos:0*0"]  # fmt: skip


def added(setup: Setup, change: Change) -> np.ndarray:
    """What a change adds where the product of its matrix passes, at every position of every prompt, by running it."""
    (tensor,) = {u.tensor for u in change.updates}
    layer, role = split_name(tensor)
    hook = f"L{layer}.{PLACES[role]}" if layer is not None else {"W_U": "logits"}.get(role, "resid_in")
    decoder = Decoder(setup.model.stored)
    both = [d.run(tokens_of(setup), capture=[hook]).cache[hook].numpy() for d in (decoder, laid_over(decoder, change))]
    return (both[1] - both[0]).reshape(np.prod(both[0].shape[:2]), -1)


# No norm stands before the embeddings: folding leaves them alone, so raw says it all.
FOLDED = [edit for edit in EDITS if not edit.startswith(("embed", "pos"))]


@pytest.mark.parametrize(("frame", "edit"), [("raw", e) for e in EDITS] + [("folded", e) for e in FOLDED])
def test_random_changes_add_as_much_to_the_output_as_the_edit(edit: str, frame: str) -> None:
    """Measured where the product passes, in runs: the matching itself never runs an edited model."""
    model = opened().framed(frame)
    setup = prepared(model, edit, draws=3)
    part = setup.parts[0]
    wanted = np.mean(np.sum(added(setup, part.change) ** 2, axis=1))
    for change in random_changes(setup, part, setup.inputs(sources([part])), OUTPUT):
        np.testing.assert_allclose(np.mean(np.sum(added(setup, change) ** 2, axis=1)), wanted, rtol=1e-9)


@pytest.mark.parametrize("edit", [e for e in EDITS if not e.startswith(("L0.mlp.in", "unembed"))])
def test_random_changes_of_equal_norm_change_the_map_as_much(edit: str) -> None:
    """‖M' − M‖_F of the site's map, dense, for the edit and for every control."""
    model = opened()
    setup = prepared(model, edit, draws=3)
    part = setup.parts[0]
    site = part.resolved.laid[0].site

    def moved(change: Change) -> float:
        class Laid:
            def change(self, model: Model) -> Change:
                return change

            def record(self) -> dict[str, str]:
                return {}

        return float(np.linalg.norm(model.edited(Laid()).map(site).dense() - model.map(site).dense()))

    wanted = part.resolved.laid[0].norm
    np.testing.assert_allclose(moved(part.change), wanted, rtol=1e-9)
    for change in random_changes(setup, part, {}, NORM):
        np.testing.assert_allclose(moved(change), wanted, rtol=1e-9)


def test_random_changes_have_the_edits_rank_and_relative_singular_values() -> None:
    setup = prepared(opened(), "L1H2.ov:0,3*0.4", draws=2)
    part = setup.parts[0]
    own = np.linalg.svd(part.change.updates[0].delta)[1]
    assert np.sum(own > 1e-9 * own[0]) == 2
    for change in random_changes(setup, part, setup.inputs(sources([part])), OUTPUT):
        made = np.linalg.svd(change.updates[0].delta)[1]
        np.testing.assert_allclose(made / made[0], own / own[0], atol=1e-9)


@pytest.mark.parametrize("side", ["write", "read"])
def test_other_dyads_are_all_the_others_at_the_same_epsilon(side: str) -> None:
    model = opened()
    setup = prepared(model, f"L1H2.ov:1*0.4@{side}", draws=50)
    found, W_V, W_O = covector.svd(model.map("L1H2.ov")), model.weights["L1.W_V"][2], model.weights["L1.W_O"][2]
    changes = dyad_changes(setup, setup.parts[0])
    assert len(changes) == found.rank - 1
    for j, change in zip([j for j in range(found.rank) if j != 1], changes, strict=True):
        delta = change.updates[0].delta
        dense = -0.6 * found.S[j] * np.outer(found.U[:, j], found.Vh[j])
        np.testing.assert_allclose(W_V @ delta if side == "write" else delta @ W_O, dense, atol=CLOSE)


def test_sets_of_other_dyads_are_as_many_and_never_the_edits_own() -> None:
    setup = prepared(opened(), "L1.mlp.out:1,2*0.4", draws=30)
    own = {1, 2}
    found = covector.svd(setup.model.map("L1.mlp.out"))
    for change in dyad_changes(setup, setup.parts[0]):
        size = np.abs(found.U.T @ change.updates[0].delta @ found.Vh.T)
        touched = set(np.flatnonzero(np.diag(size) > 1e-9).tolist())
        assert len(touched) == 2
        assert not touched & own


@pytest.mark.slow
def test_p_is_uniform_when_the_edit_is_itself_a_random_change() -> None:
    """100 edits drawn as the controls are, 4 controls each: χ² of the five possible p; 0.1 % level."""
    model = covector.open(random_model(seed=3, n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8))
    rng, ps = np.random.default_rng(11), []
    W = model.weights["L0.W_O"][1]
    for seed in range(100):
        left, right = rng.standard_normal(4), rng.standard_normal(8)
        reads = (W.T @ np.linalg.solve(W @ W.T, left))[None]  # W readsᵀ = left: any direction of the head
        edit = Edit(((Rewrite("L0H1.ov", reads, right[None]),),))
        setup = prepared(model, edit, draws=4, doses=[1.0], seed=seed)
        part = setup.parts[0]
        before = setup.observed(None)
        controls = random_changes(setup, part, setup.inputs(sources([part])), OUTPUT)
        effects = [float(setup.mean(setup.of_group(setup.observed(c) - before, "gap"))[0])
                   for c in (part.change, *controls)]  # fmt: skip
        ps.append(round(sum(abs(e) >= abs(effects[0]) - 1e-12 for e in effects)))
    counts = np.bincount(ps, minlength=6)[1:]
    assert counts.sum() == 100
    assert stats.chisquare(counts).pvalue > 1e-3


def test_what_a_control_costs_is_its_own_kl() -> None:
    """Every kind, against runs of each control by itself on the same text."""
    model, text = opened(), text_for(opened())
    effects = measure(prepared(model, "L1H2.ov:0*0", draws=4, neutral=text))
    setup, m = effects.setup, effects.parts[0]
    inputs = setup.inputs(sources(setup.parts))
    kinds = {kind: random_changes(setup, m.part, inputs, kind) for kind in (OUTPUT, NORM)}
    kinds[DYADS] = dyad_changes(setup, m.part)
    decoder, ids = Decoder(model.stored), torch.from_numpy(text)
    base = decoder.run(ids).logits.log_softmax(-1)
    for kind, changes in kinds.items():
        runs = [laid_over(decoder, change).run(ids).logits.log_softmax(-1) for change in changes]
        kl = [float((base.exp() * (base - other)).sum(-1).mean()) for other in runs]
        np.testing.assert_allclose(m.control_kl[kind][:, -1], kl, atol=1e-13)


def test_p_of_the_table_is_the_share_of_controls_that_do_as_much() -> None:
    effects = measure(prepared(opened(), "L1H2.ov:0*0", draws=7, neutral=text_for(opened())))
    table, m, setup = table_of(effects), effects.parts[0], effects.setup
    rows = by_control(effects).rows
    own = row_of(table, dose=1.0, on="gap", measure=str(setup.observables[0]))
    for kind, name, n in ((OUTPUT, "p", 7), (NORM, "p_norm", 7), (DYADS, "p_dyads", 3)):
        null = [abs(r["effect"]) for r in rows if r["change"] == kind]
        assert len(null) == n
        assert own[name] == pytest.approx((1 + sum(x >= abs(own["change"]) for x in null)) / (1 + n))
        kl = [r["kl"] for r in rows if r["change"] == kind]
        cost = row_of(table, dose=1.0, on="neutral", measure="KL")
        assert cost[name] == pytest.approx((1 + sum(x >= cost["change"] for x in kl)) / (1 + n))
    family = [r for r in table.rows if r["q"] is not None and r["on"] != "neutral"]
    np.testing.assert_allclose([r["q"] for r in family], bh(np.array([r["p"] for r in family])))
    assert m.controls[OUTPUT].shape[1] == len(setup.doses)


# ------------------------------------------------------------------------------------------------- nothing else moves


@pytest.mark.identity("SV-14")
@pytest.mark.parametrize("edit", ["L1H2.ov:0*0", "L0.mlp.in:2*0", "unembed:0*0", "embed:0*0"])
@pytest.mark.parametrize("name", ["plain", "tied"])
def test_the_sham_is_exactly_nothing(name: str, edit: str) -> None:
    model = opened(name)
    effects = measure(prepared(model, edit, draws=1, neutral=text_for(model)))
    assert not effects.sham.any()
    assert effects.sham_kl == 0


@pytest.mark.slow
def test_the_base_is_bitwise_as_before() -> None:
    model = opened()
    before = {name: model.stored[name].tobytes() for name in model.stored.names()}
    setup = prepared(model, "L1H2.ov:0*0; L0.mlp.out:1*0.3", draws=3, neutral=text_for(model))
    first = measure(setup)
    assert {name: model.stored[name].tobytes() for name in model.stored.names()} == before
    np.testing.assert_array_equal(setup.bench.logits(), setup.base)
    again = measure(setup)
    np.testing.assert_array_equal(first.parts[0].effects, again.parts[0].effects)
    assert table_of(first).to_json() == table_of(again).to_json()


def test_an_edit_of_a_later_block_alone_gives_what_a_whole_run_gives() -> None:
    model = opened()
    setup = prepared(model, "L1H2.ov:0*0", draws=1)
    assert setup.bench.first == 1
    whole = Decoder(model.edited(Edit.parse("L1H2.ov:0*0")).stored).run(tokens_of(setup)).logits[:, -1]
    np.testing.assert_allclose(setup.bench.logits(setup.parts[0].change).reshape(8, -1), whole, atol=CLOSE)


# ------------------------------------------------------------------------------------------------ closer, and errors


def measured(**options: Any) -> Effects:
    model = opened()
    return measure(prepared(model, "L1H2.ov:0,3*0.4; L0.mlp.out:1*0", **options))


def test_directions_sum_to_the_whole_prediction_and_prompts_to_the_mean() -> None:
    effects = measured()
    table = table_of(effects)
    whole = row_of(table, edit="together", dose=1.0, on="gap", measure=str(effects.setup.observables[0]))
    directions = by_dyad(effects)
    np.testing.assert_allclose(np.sum(directions["predicted"]), whole["predicted"], atol=CLOSE)
    for row in directions.rows:
        edit = f"{row['site']}:{row['dyad']}={row['ε']:g}"
        alone = table_of(measure(prepared(opened(), edit, draws=1, doses=[1.0])))
        wanted = row_of(alone, dose=1.0, on="gap", measure=str(effects.setup.observables[0]))
        np.testing.assert_allclose([row["alone"], row["predicted"]], [wanted["change"], wanted["predicted"]])
    prompts = by_prompt(effects)
    change, side = prompts["change"], np.array(prompts["side"])
    np.testing.assert_allclose(change[side == "clean"].mean() - change[side == "corrupt"].mean(), whole["change"])


def test_what_cannot_be_measured_is_refused_before_the_work() -> None:
    model = opened()
    refused: tuple[tuple[Any, dict[str, Any], str], ...] = (
        ("L1H2.ov:0*0", {"pairs": []}, "expected prompts, got none"),
        ("L1H2.ov:0*1", {}, "changes nothing"),
        ("L1H2.ov:0*0", {"pairs": pairs_for(model, length=25)}, "at most 24 tokens"),
        ("L1H2.ov:0*0", {"doses": [2.0]}, "turns a direction around"),
        ("L1H2.ov:0*0", {"doses": [-1.0]}, "--dose"),
        ("L1H2.ov:0*0", {"draws": 0}, "--draws"),
        ("L1H2.ov:0*0", {"observables": []}, "expected something to observe"),
        ("L1H2.ov:0*0", {"dtype": "float16"}, "--dtype"),
        (["L1H2.ov:0*0", "L1H2.ov:0*0"], {}, "comes twice"),
        ([], {}, "expected an edit"),
    )
    for edit, options, told in refused:
        with pytest.raises(BadRequest, match=told):
            prepared(model, edit, **options)


def test_reflection_is_allowed_where_it_is_asked_for() -> None:
    setup = prepared(opened(), Edit.parse("L1H2.ov:0*0", reflects=True), doses=[2.0])
    assert setup.doses.tolist() == [1, 2]


def test_neutral_files_are_texts_topics_or_named(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("One two.")
    lines.write_text('{"text": "A", "topic": "fire"}\n\n{"text": "B"}\n')
    assert read_neutral([str(plain), f"sea={plain}", str(lines)]) == {
        "neutral": ["One two.", "B"], "sea": ["One two."], "fire": ["A"]}  # fmt: skip
    lines.write_text('{"topic": "fire"}')
    with pytest.raises(BadRequest, match="line 1: expected a JSON object with 'text'"):
        read_neutral([str(lines)])
    with pytest.raises(BadRequest, match="check the path"):
        read_neutral([str(tmp_path / "none.txt")])


def test_documents_of_different_lengths_are_measured_as_if_alone() -> None:
    model = covector.open("demo-lm")
    documents = {"a": ["Mary lost her hat."], "b": ["I remember the candle. The torch was near the smoke.", "The key."]}
    effects = measure(set_up(model, "L3H0.ov:0*0", "' hat'", pairs_for(model, same=True), neutral=documents, draws=1,
                             doses=[1.0]))  # fmt: skip
    text, side = effects.setup.neutral, effects.parts[0].side
    assert text is not None
    assert side is not None
    assert len(text.batches) == 1
    other = Decoder(model.edited(Edit.parse("L3H0.ov:0*0")).stored)
    for t, (topic, texts) in enumerate(documents.items()):
        for one in texts:
            alone = neutral_text(model, {topic: [one]})
            ids = torch.from_numpy(alone.batches[0])
            base, new = (d.run(ids).logits.log_softmax(-1).numpy() for d in (Decoder(model.stored), other))
            kl = np.sum(np.exp(base) * (base - new), axis=-1)[0]
            loss = np.append(np.take_along_axis((base - new)[0, :-1], ids[0, 1:, None].numpy(), axis=-1), np.nan)
            rows = [text.window == w for w in np.unique(text.window[text.topic == t])]
            assert any(
                here.sum() == len(kl)
                and np.allclose(side.kl[0][here], kl, atol=1e-13)
                and np.allclose(side.loss[0][here], loss, equal_nan=True)
                for here in rows
            )
    assert {row["on"] for row in table_of(effects).rows} >= {"a", "b", "neutral"}


def test_the_command_prints_what_the_function_gives(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from covector.cli.main import run

    text = tmp_path / "text.txt"
    text.write_text("I remember the candle. The torch was near the smoke.")
    words = ["edit", "demo-lm", "L3H0.ov:0*0", "--observe", "' she' - ' he'", "--template", "Yesterday [NAME] was",
             "--fill", "NAME=Mary,Lisa:John,Mark", "--neutral", str(text), "--draws", "3", "--dose", "1", "--json",
             "--out", str(tmp_path / "out"), "--plot", str(tmp_path / "p.svg"), "-q"]  # fmt: skip
    assert run(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["measure"] for row in rows} >= {"' she' - ' he'", "KL", "p ' she'", "rank ' he'"}
    written = (p.name for p in (tmp_path / "out").glob("*.json") if not p.name.endswith(".picture.json"))
    assert sorted(written) == [
        "edit_controls.json", "edit_dyads.json", "edit_effect.json", "edit_prompts.json"]  # fmt: skip
    assert (tmp_path / "p.svg").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected an edit"),
        (["L1H0.ov:0*0", "--by", "head"], "--by: expected effect, "),
        (["L1H0.ov:0*0", "--dose", "a", "--prompts", "none.jsonl"], "--dose: expected numbers"),
        (["L1H0.ov:0*0", "--observe", "' she'"], "expected either --template"),
        (["no edit"], "cannot read 'no edit'"),  # said before what is missing
        (["L1H0.ov:0*0", "--concept", "' she'"], "got both"),
        (["L1H0.ov:0*0", "--keep", "0.3"], "--keep belongs to --concept"),
        (["--concept", "' she'", "--raise"], "--raise belongs to --optimise"),
        (["--concept", "' she'", "--keep", "-1"], "--keep: expected a share of at least 0"),
        (["L1H0.ov:99*0", "--observe", "' she'", "--template", "[N] is", "--fill", "N=Mary:Mary"], "expected a dyad"),
    ],
)
def test_a_wrong_request_is_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    from covector.cli.main import run

    assert run(["edit", "demo-lm", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("edit", ["L0H1.ov:0*.9@read then L0H1.ov:1*.9@read", "L1.mlp.in:0*.5 then L1.mlp.in:1*.5"])
def test_steps_in_a_folded_frame_are_predicted_with_what_biases_take(edit: str) -> None:
    """The pieces of an edit in steps sum to its change, biases included: the slope is that of the whole change."""
    model = families_model("gpt2").framed("folded")
    setup = prepared(model, edit, draws=1)
    part, step = setup.parts[0], 1e-4
    slopes = setup.bench.slopes([p.change for p in pieces_of(setup, part)], asked(model).vector[None], setup.weights)
    up, down = (setup.mean(setup.observed(scaled(part.change, t))[0]) for t in (step, -step))
    np.testing.assert_allclose(slopes[0].sum(axis=1), (up - down) / (2 * step), atol=1e-6)


def test_two_terms_at_one_site_have_others_that_neither_names() -> None:
    setup = prepared(opened(), "L1.mlp.out:0*0; L1.mlp.out:1*0.5", draws=20)
    found = covector.svd(setup.model.map("L1.mlp.out"))
    for change in dyad_changes(setup, setup.parts[0]):
        size = np.diag(found.U.T @ sum(u.delta for u in change.updates) @ found.Vh.T) / found.S
        assert np.abs(size[:2]).max() < 1e-9
        np.testing.assert_allclose(np.sort(size)[:3], [-1.0, -0.5, 0.0], atol=1e-9)


def test_equal_gains_are_told() -> None:
    """Of dyads of equal gain only the span is defined: half of it removed is arbitrary, all of it is not."""
    base = random_model(seed=1)
    arrays = {n: np.array(base[n]) for n in base.names()}
    U, S, Vh = np.linalg.svd(arrays["L1.W_out"], full_matrices=False)
    S[1] = S[0]
    arrays["L1.W_out"] = (U * S) @ Vh
    weights = ArrayWeights(base.spec, arrays)
    model = Model("equal", weights, weights)
    said = {text: table_of(measure(prepared(model, text, draws=1))).not_says
            for text in ("L1.mlp.out:0*0", "L1.mlp.out:0-1*0", "L1.mlp.out:2*0")}  # fmt: skip
    told = {text: "of L1.mlp.out:0-1 only the span is defined" in words for text, words in said.items()}
    assert told == {"L1.mlp.out:0*0": True, "L1.mlp.out:0-1*0": False, "L1.mlp.out:2*0": False}


def test_the_interval_of_a_constant_is_none_whatever_the_windows_lengths() -> None:
    """The mean of windows of unequal length: their length is no part of its error. Coverage of 400 draws."""
    window = np.repeat(np.arange(8), [2, 3, 5, 8, 12, 20, 30, 40])
    here = np.ones(len(window), dtype=bool)
    mean, low, high = _mean(np.full(len(window), 3.0), window, here)
    assert (mean, low, high) == (3.0, 3.0, 3.0)
    draw = np.random.default_rng(0)
    found = np.array([_mean(5 + draw.standard_normal(len(window)), window, here) for _ in range(400)])
    covered = np.mean((found[:, 1] < 5) & (found[:, 2] > 5))
    assert covered > 0.85
    assert np.median(found[:, 2] - found[:, 1]) < 1.0


def test_edits_of_scores_say_where_they_hold() -> None:
    """Rotary: gains change at offset 0; queries and keys that are normalised: a gain common to a head does nothing."""
    model = opened("rotary grouped")
    assert "offset 0 only" in table_of(measure(prepared(model, "L1H1.qk:0*0", draws=1))).not_says
    assert "offset 0" not in table_of(measure(prepared(model, "L1H1.ov:0*0", draws=1))).not_says
    stored = families_model("qwen3").stored
    arrays = {n: np.array(stored[n]) * (not n.endswith("b_Q")) for n in stored.names()}
    weights = ArrayWeights(stored.spec, arrays)
    qwen = Model("normalised", weights, weights)
    rank = covector.svd(qwen.map("L1H1.qk")).rank
    common, one = (measure(prepared(qwen, f"L1H1.qk:{d}*.5", draws=1)) for d in (f"0-{rank - 1}", "0"))
    assert "normalised per head" in table_of(one).not_says
    assert np.abs(common.parts[0].effects).max() < 1e-3 * np.abs(one.parts[0].effects).max()


def test_a_dyad_has_one_epsilon() -> None:
    model = opened()
    with pytest.raises(BadRequest, match=r"dyad 0 of L0H0\.ov is named twice"):
        edit_effect(model, "L0H0.ov:0*0; L0H0.ov:0*0.5", Observable(ASKED, model), pairs_for(model), draws=1)
    with pytest.raises(BadRequest, match="is named twice"):
        edit_effect(model, ["L0H0.ov:0*0", "L0H0.ov:0*0.5"], Observable(ASKED, model), pairs_for(model), draws=1)


def test_side_effects_alone_are_those_measured_beside_a_task() -> None:
    """KL, loss, perplexity and topics do not depend on whether something is observed; nothing else is in the table."""
    model = opened()
    text = text_for(model)
    alone = edit_effect(model, "L1H2.ov:0*0", neutral=text, draws=5)
    beside = edit_effect(model, "L1H2.ov:0*0", [asked(model)], pairs_for(model), neutral=text, draws=5)
    assert {row["on"] for row in alone.rows} == {"neutral"}
    assert {row["measure"] for row in alone.rows} == {"KL", "loss", "perplexity ×"}
    for row in alone.rows:
        other = row_of(beside, dose=row["dose"], on="neutral", measure=row["measure"])
        for name in ("before", "change", "low", "high"):
            np.testing.assert_allclose(row[name] or 0.0, other[name] or 0.0, atol=CLOSE)
    assert "predicted" not in alone
    assert "dyad 0 removed" in alone.title
    assert alone.rows[0]["dose"] == 1


def test_controls_of_side_effects_alone_are_matched_on_the_text() -> None:
    """E‖Δoutput‖² over what the head's W_O reads in the text's own tokens: densely, for every control."""
    model = opened()
    documents = text_for(model, rows=4)
    setup = set_up(model, "L1H2.ov:0*0", neutral=documents, draws=6)
    part = setup.parts[0]
    run = Decoder(model.weights).run(torch.from_numpy(documents), capture=["L1.z"])
    z = run.cache["L1.z"].numpy()[:, :, 2].reshape(-1, run.cache["L1.z"].shape[-1])

    def size(change: Change) -> float:
        return float(np.mean(np.sum((z @ sum(u.delta for u in change.updates)) ** 2, axis=1)))

    wanted = size(part.change)
    for change in random_changes(setup, part, setup.inputs(sources([part])), OUTPUT):
        assert size(change) == pytest.approx(wanted, rel=1e-9)
    effects = measure(setup)
    kl = effects.parts[0].control_kl[OUTPUT][:, -1]
    row = row_of(table_of(effects), dose=1.0, measure="KL")
    assert row["p"] == (1 + np.sum(kl >= row["change"])) / 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--neutral FILE for side effects alone"),
        ({"observables": "'token 3'"}, "expected prompts, got none"),
        ({"prompts": True}, "expected something to observe"),
    ],
)
def test_nothing_to_measure_on_is_refused(options: dict[str, Any], said: str) -> None:
    model = opened()
    if "prompts" in options:
        options = {"prompts": pairs_for(model)}
    with pytest.raises(BadRequest, match=said):
        edit_effect(model, "L1H2.ov:0*0", **options)


def test_the_command_shows_side_effects_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from covector.cli.main import run

    text = tmp_path / "t.txt"
    text.write_text("The teacher wrote a letter to the doctor in Paris and went home happy.")
    words = ["edit", "demo-lm", "L2H3.ov:0*0", "--neutral", str(text), "--draws", "3"]
    assert run([*words, "--json", "--plot", str(tmp_path / "kl.svg")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["meta"]["observables"] == []
    assert run([*words, "--by", "dyad"]) == 2
    assert "--by dyad shows what happens on prompts" in capsys.readouterr().err
