"""Edits as values: what they do to maps, to their spectra and to each other, for every family and every side."""

import itertools

import numpy as np
import pytest

import covector
from covector.errors import BadRequest, CovectorError
from covector.linalg.svd import svd
from covector.model.opened import Model
from covector.study.edit import Edit
from covector.study.edit_resolve import meant
from random_checkpoints import random_model

FAMILIES = ("gpt2", "llama", "gpt_neox", "gptj", "gemma2", "opt", "bert", "decision_transformer")
# Weights are of order 1 and float64: sums of a few dozen products.
ROUNDING = 1e-12
SITES = ("L1H1.ov", "L1H1.qk", "L1H2.q", "L1H2.o", "L1K0.k", "L1K0.v", "L1.mlp.in", "L1.mlp.out")


def dense(model: Model, site: str) -> np.ndarray:
    return model.map(site).dense().astype(np.float64)


def gpt2() -> Model:
    return random_model("gpt2")


@pytest.mark.identity("SV-12")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_dyads_change_by_their_gains_alone(family: str, site: str) -> None:
    """M' = M + Σ ε σ u vᵀ, and ‖ΔM‖² = Σ ε²σ², at every site of every family."""
    model = random_model(family)
    M, d = dense(model, site), svd(model.map(site))
    epsilon = {0: -0.7, 2: 1.5, 3: -1.0}
    edit = Edit.dyads(site, epsilon)
    want = M + sum(e * d.S[i] * np.outer(d.U[:, i], d.Vh[i]) for i, e in epsilon.items())
    np.testing.assert_allclose(dense(model.edited(edit), site), want, atol=ROUNDING * d.S[0])
    (laid,) = edit.resolve(model).laid
    assert laid.norm == pytest.approx(np.sqrt(sum((e * d.S[i]) ** 2 for i, e in epsilon.items())), rel=1e-10)
    np.testing.assert_allclose(laid.delta.dense(), want - M, atol=ROUNDING * d.S[0])


@pytest.mark.identity("SV-12")
@pytest.mark.parametrize("side", ["read", "write"])
@pytest.mark.parametrize("site", ["L1H1.ov", "L1H1.qk", "L1.mlp.in", "L1.mlp.out", "L1H2.q", "L1H2.o"])
def test_both_sides_give_the_same_map(site: str, side: str) -> None:
    """M(I + Σ ε vvᵀ) = (I + Σ ε uuᵀ)M, whichever factor takes it."""
    model = gpt2()
    one, other = (model.edited(Edit.dyads(site, {1: -0.4, 0: 2.0}, s)) for s in (side, ""))
    np.testing.assert_allclose(dense(one, site), dense(other, site), atol=1e-12)


@pytest.mark.identity("SV-11")
@pytest.mark.parametrize("family", FAMILIES)
def test_removing_a_dyad_is_ablation(family: str) -> None:
    """ε = −1: uᵀM' = 0, M'v = 0, the other gains stay, the rank falls by one."""
    model = random_model(family)
    for site in ("L1H1.ov", "L0.mlp.out"):
        d = svd(model.map(site))
        after = svd(model.edited(Edit.parse(f"{site}:1*0")).map(site))
        M = dense(model.edited(Edit.parse(f"{site}:1*0")), site)
        assert np.abs(d.U[:, 1] @ M).max() < ROUNDING * d.S[0]
        assert np.abs(M @ d.Vh[1]).max() < ROUNDING * d.S[0]
        assert after.rank == d.rank - 1
        np.testing.assert_allclose(after.S, np.delete(d.S, 1), atol=ROUNDING * d.S[0])


@pytest.mark.identity("SV-11")
@pytest.mark.parametrize("epsilon", [-0.9, -0.3, 0.5, 4.0])
def test_an_edit_and_its_inverse_compose_to_nothing(epsilon: float) -> None:
    """ε and −ε/(1 + ε); the inverse is laid over the edited model."""
    model = gpt2()
    edit = Edit.dyads("L1H1.ov", {0: epsilon, 3: epsilon / 2})
    back = model.edited(edit).edited(edit.inverse(model))
    np.testing.assert_allclose(back.weights["L1.W_O"], model.weights["L1.W_O"], atol=ROUNDING * (1 + abs(epsilon)))


def test_the_inverse_of_a_replacement_and_of_steps() -> None:
    model = gpt2()
    draw = np.random.default_rng(3)
    edit = Edit.replace_direction("L1H1.ov", 0, draw.standard_normal(20)).then(
        Edit.parse("L1H1.ov:1*3; L0.mlp.in:2*.5")
    )
    edited = model.edited(edit)
    assert np.abs(edited.weights["L1.W_O"] - model.weights["L1.W_O"]).max() > 0.1
    back = edited.edited(edit.inverse(model))
    for name in edit.change(model).tensors:
        np.testing.assert_allclose(back.weights[name], model.weights[name], atol=1e-10)


def test_what_is_removed_has_no_inverse() -> None:
    with pytest.raises(BadRequest, match="only the base still has it"):
        Edit.parse("L1H1.ov:0*0").inverse(gpt2())


@pytest.mark.identity("SV-14")
def test_a_sham_changes_no_bit() -> None:
    """ε = 0: every tensor of the edited model is the base's, bit by bit."""
    model = gpt2()
    edited = model.edited(Edit.parse("L1H1.ov:0-2*1; L0.mlp.in:3=0@read"))
    for name in model.weights.names():
        assert np.array_equal(edited.weights[name], model.weights[name])


def test_the_base_is_not_touched() -> None:
    model = gpt2()
    before = {name: model.weights[name].copy() for name in model.weights.names()}
    model.edited(Edit.parse("L*H*.ov:0*0; L*.mlp.out:0-3*2")).map("L1H1.ov").dense()
    assert all(np.array_equal(before[name], model.weights[name]) for name in before)


@pytest.mark.identity("SV-15")
def test_removing_every_dyad_of_a_head_zeroes_its_ov() -> None:
    model = gpt2()
    edited = model.edited(Edit.parse(f"L1H2.ov:0-{svd(model.map('L1H2.ov')).rank - 1}*0"))
    assert np.abs(edited.map("L1H2.ov").dense()).max() < 1e-13
    np.testing.assert_array_equal(edited.map("L1H1.ov").dense(), model.map("L1H1.ov").dense())


def test_replacing_a_direction_is_removal_and_addition() -> None:
    """``V[i] = w``: M − σ u vᵀ + σ u wᵀ, with w as it is."""
    model = gpt2()
    M, d = dense(model, "L1H1.ov"), svd(model.map("L1H1.ov"))
    w = np.full(20, 1 / 20)
    want = M + d.S[2] * np.outer(d.U[:, 2], w - d.Vh[2])
    np.testing.assert_allclose(
        dense(model.edited(Edit.parse("L1H1.ov:2=replace(ones/d)")), "L1H1.ov"), want, atol=1e-12
    )
    read = M + d.S[2] * np.outer(w - d.U[:, 2], d.Vh[2])
    found = dense(model.edited(Edit.parse("L1H1.ov:2=replace(ones/d)@read")), "L1H1.ov")
    np.testing.assert_allclose(found, read, atol=1e-12)


def test_a_concept_is_erased_from_what_is_written() -> None:
    """M(I − QᵀQ) for the span of the vectors: nothing is written into it, what is orthogonal stays."""
    model, draw = gpt2(), np.random.default_rng(0)
    span = draw.standard_normal((2, 20))
    M, after = dense(model, "L1H1.ov"), dense(model.edited(Edit.within("L1H1.ov", span, -1.0)), "L1H1.ov")
    assert np.abs(after @ span.T).max() < 1e-12
    projector = np.eye(20) - np.linalg.pinv(span) @ span
    np.testing.assert_allclose(after, M @ projector, atol=1e-12)


def test_grouped_heads_share_what_reads() -> None:
    """A value's read side belongs to the group: refused at the head, taken at its key/value head, for all its heads."""
    model = random_model("llama")
    with pytest.raises(BadRequest, match=r"shared by H0, H1.*L1K0\.v"):
        model.edited(Edit.parse("L1H1.ov:0*0@read"))
    with pytest.raises(BadRequest, match=r"shared by H2, H3.*L1K1\.k"):
        model.edited(Edit.parse("L1H2.qk:0*0@write"))
    edited = model.edited(Edit.parse("L1K0.v:0*0"))
    changed = [not np.allclose(dense(edited, f"L1H{h}.ov"), dense(model, f"L1H{h}.ov")) for h in range(4)]
    assert changed == [True, True, False, False]
    edited = model.edited(Edit.parse("L1H1.ov:0*0"))
    changed = [not np.allclose(dense(edited, f"L1H{h}.ov"), dense(model, f"L1H{h}.ov")) for h in range(4)]
    assert changed == [False, True, False, False]


@pytest.mark.parametrize(("text", "changed"), [("embed:0*0", "W_E"), ("unembed:0*0", "W_U")])
def test_a_tied_embedding_is_untied(text: str, changed: str) -> None:
    """The side that is edited changes, the other stays as it was."""
    model = gpt2()
    assert model.spec.tied
    edited = model.edited(Edit.parse(text))
    assert not edited.spec.tied
    tables = {"W_E": model.weights["W_E"], "W_U": model.weights["W_E"].T}
    for name, table in tables.items():
        assert np.allclose(edited.weights[name], table) == (name != changed)


FRAMED = [
    (family, frame, text)
    for family, frame in (("gpt2", "folded"), ("gpt2", "gauge_fixed"), ("gpt2", "tl_default"), ("llama", "folded"))
    for text in ("L1H1.ov:0*.3", "L1H1.qk:1*2", "L1K0.v:0*0", "L1.mlp.in:3*.5", "L1.mlp.out:1*0", "L1H2.q:0*.5@write")
] + [("gpt2", f, "L1H1.ov:0*.3@read") for f in ("folded", "gauge_fixed", "tl_default")]


@pytest.mark.parametrize(("family", "frame", "text"), FRAMED)
def test_an_edit_found_in_a_frame_reaches_the_stored_weights(family: str, frame: str, text: str) -> None:
    """The stored weights, edited and then framed, are the framed weights edited: map, and every bias as it was."""
    framed = random_model(family).framed(frame)
    site, edit = text.split(":")[0], Edit.parse(text)
    d, (term,) = svd(framed.map(site)), edit.steps[0]
    index, epsilon = term.indices[0], term.epsilon[0]  # type: ignore[union-attr]
    want = dense(framed, site) + epsilon * d.S[index] * np.outer(d.U[:, index], d.Vh[index])
    edited = framed.edited(edit)
    np.testing.assert_allclose(dense(edited, site), want, atol=1e-11)
    for name in edited.weights.names():
        if name.split(".")[-1].startswith("b"):
            np.testing.assert_allclose(edited.weights[name], framed.weights[name], atol=1e-11)


def test_a_bound_edit_keeps_its_frame() -> None:
    """Dyads found in `folded` are laid over the raw model as those of `folded`."""
    model = gpt2()
    edit = Edit.parse("L1H1.ov:0*0@read").bound(model.framed("folded"))
    assert edit.frame == "folded"
    one, other = model.edited(edit), model.framed("folded").edited(Edit.parse("L1H1.ov:0*0@read"))
    np.testing.assert_allclose(one.stored["L1.W_V"], other.stored["L1.W_V"], atol=1e-12)
    raw = model.edited(Edit.parse("L1H1.ov:0*0@read"))
    assert np.abs(one.stored["L1.W_V"] - raw.stored["L1.W_V"]).max() > 1e-3


def test_refusals_of_frames() -> None:
    model = gpt2()
    with pytest.raises(CovectorError, match="published view"):
        model.framed("conjecture2022").edited(Edit.parse("L1H1.ov:0*0"))
    with pytest.raises(CovectorError, match="bias in front"):
        model.framed("folded+bias").edited(Edit.parse("L1H1.ov:0*0"))
    with pytest.raises(BadRequest, match="expected a tensor b_U"):
        model.framed("folded").edited(Edit.parse("unembed:0*0"))
    no_bias = random_model("gptj")
    with pytest.raises(BadRequest, match=r"expected a tensor L1\.b_V"):
        no_bias.framed("folded").edited(Edit.parse("L1H1.ov:0*0@read"))


def test_a_gain_too_small_to_divide_by_is_refused() -> None:
    from covector.model.weights import ArrayWeights

    base = gpt2()
    arrays = {name: np.array(base.weights[name]) for name in base.weights.names()}
    arrays["L1.attn_norm.gain"][4] = 1e-9
    weights = ArrayWeights(base.spec, arrays)
    model = Model("small", weights, weights).framed("folded")
    with pytest.raises(BadRequest, match=r"gains γ of L1\.attn_norm that can be divided by"):
        model.edited(Edit.parse("L1H1.ov:0*0@read"))
    model.edited(Edit.parse("L1H1.ov:0*0"))


def test_edits_that_overlap_must_commute() -> None:
    """Dyads of one decomposition commute; those of OV and of its factor do not: an order is offered, and taken."""
    model = gpt2()
    both = model.edited(Edit.parse("L1H1.ov:0*.5; L1H1.ov:0*.5; L1H1.ov:1*0"))
    one = model.edited(Edit.parse("L1H1.ov:0*.25; L1H1.ov:1*0"))
    np.testing.assert_allclose(both.weights["L1.W_O"], one.weights["L1.W_O"], atol=1e-13)
    with pytest.raises(BadRequest, match=r"'L1H1\.ov:0\*0 then L1H1\.o:0\*0'"):
        model.edited(Edit.parse("L1H1.ov:0*0; L1H1.o:0*0"))
    ordered, turned = (
        model.edited(Edit.parse(" then ".join(p))) for p in itertools.permutations(("L1H1.ov:0*0", "L1H1.o:0*0"))
    )
    assert np.abs(ordered.weights["L1.W_O"] - turned.weights["L1.W_O"]).max() > 1e-3
    # Two hands of one matrix commute, (I + P)W(I + Q): a dyad halved by both is quartered.
    both = model.edited(Edit.parse("L1H1.o:0*.5@read; L1H1.o:0*.5@write"))
    one = model.edited(Edit.parse("L1H1.o:0*.25"))
    np.testing.assert_allclose(both.weights["L1.W_O"], one.weights["L1.W_O"], atol=1e-13)


def test_then_means_the_dyads_of_the_edited_model() -> None:
    """Removing dyad 0 twice removes the two leading dyads."""
    model = gpt2()
    twice = model.edited(Edit.parse("L1H1.ov:0*0 then L1H1.ov:0*0"))
    once = model.edited(Edit.parse("L1H1.ov:0-1*0"))
    np.testing.assert_allclose(twice.map("L1H1.ov").dense(), once.map("L1H1.ov").dense(), atol=1e-12)
    steps = model.edited(Edit.parse("L1H1.ov:0*0")).edited(Edit.parse("L1H1.ov:0*0"))
    np.testing.assert_array_equal(steps.weights["L1.W_O"], twice.weights["L1.W_O"])


TEXTS = [
    ("L1H1.ov:3*0", "L1H1.ov: dyad 3 removed (ε −1)"),
    ("L1H1.ov:3=-1", "L1H1.ov: dyad 3 removed (ε −1)"),
    ("L1H1.ov:0,2-3*0.3", "L1H1.ov: dyads 0,2-3 kept at 30 % (ε −0.7)"),
    ("1.1:0*2", "1.1: dyad 0 amplified 2-fold (ε 1)"),
    ("L1.mlp.in:0*0@write", "L1.mlp.in: dyad 0 removed (ε −1), on the side that writes"),
    ("L1H1.ov:0=replace(ones/d)", "L1H1.ov: the direction of dyad 0 replaced by ones/d"),
    ("L0H*.ov:0*0; L1H1.ov:0*0 then L1H1.ov:0*.5", "L0H*.ov: dyad 0 removed (ε −1); L1H1.ov: dyad 0 removed (ε −1), "
     "then L1H1.ov: dyad 0 kept at 50 % (ε −0.5)"),
]  # fmt: skip


def test_many_terms_are_counted_in_words() -> None:
    edit = Edit.parse("; ".join(f"L{i}H{h}.ov:0-1*0.5" for i in (0, 1) for h in range(4)))
    assert edit.in_words() == "16 dyads of 8 sites changed, ε from −0.5 to −0.5"


@pytest.mark.parametrize(("text", "words"), TEXTS)
def test_text_and_json_come_back(text: str, words: str) -> None:
    edit, model = Edit.parse(text), gpt2()
    assert edit.in_words() == words
    assert Edit.parse(str(edit)) == edit
    assert Edit.from_json(edit.to_json()) == edit
    bound = edit.bound(model)
    again = Edit.from_json(bound.to_json())
    assert again == bound
    assert again.base == {n: model.stored.origin(n)[1] for n in again.base}
    for name in edit.change(model).tensors:
        np.testing.assert_array_equal(model.edited(again).weights[name], model.edited(edit).weights[name])


def test_vectors_come_back_from_json_bit_by_bit(tmp_path: object) -> None:
    model, draw = gpt2(), np.random.default_rng(1)
    edit = Edit.within("L1H1.ov", draw.standard_normal((3, 20)), -0.3) + Edit.parse("L0H0.ov:1*0")
    again = Edit.from_json(edit.to_json())
    assert again == edit
    np.testing.assert_array_equal(model.edited(again).weights["L1.W_O"], model.edited(edit).weights["L1.W_O"])


def test_an_edit_of_another_model_is_refused() -> None:
    edit = Edit.parse("L1H1.ov:0*0").bound(random_model("gpt2", seed=0))
    with pytest.raises(BadRequest, match=r"edit of another model: L1\.W_O was"):
        random_model("gpt2", seed=1).edited(edit)
    with pytest.raises(BadRequest, match=r"edit of another model: expected the tensor"):
        random_model("gpt2", n_layer=1).edited(edit)


BAD = [
    ("L1H1.ov:3", "cannot read 'L1H1.ov:3'"),
    ("L1H1.ov:0*-1", r"turns a direction around; --reflect"),
    ("L1H1.ov:0=-1.5", "expected ε of at least −1"),
    ("L1H1.ov:0*0@left", "expected @write or @read"),
    ("L1H1.ov:5-2*0", "runs upwards"),
    ("L1H1.ov:0=replace(up)", r"expected replace\(ones/d\)"),
    ("L1H1.ov:0-1=replace(ones)", "expected one dyad to replace"),
    ("L1H1.ov:7*0", r"expected a dyad 0–4 \(numerical rank is?"),
    ("L9H1.ov:0*0", "layers run 0–2"),
    ("embed:0*0@read", "its other side is a list of labels"),
    ("", "expected at least one change"),
    ("@nowhere.json", "expected an edit.json at 'nowhere.json'"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_what_cannot_be_meant_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(CovectorError, match=said.replace("rank is?", "rank")) as error:
        gpt2().edited(Edit.parse(text))
    assert "\n" not in str(error.value)


def test_reflection_is_made_on_request() -> None:
    model = gpt2()
    d = svd(model.map("L1H1.ov"))
    edited = model.edited(Edit.parse("L1H1.ov:0*-1", reflects=True))
    want = dense(model, "L1H1.ov") - 2 * d.S[0] * np.outer(d.U[:, 0], d.Vh[0])
    np.testing.assert_allclose(dense(edited, "L1H1.ov"), want, atol=1e-12)


def test_results_of_an_edited_model_say_so() -> None:
    edited = gpt2().edited(Edit.parse("L1H1.ov:0*0")).edited(Edit.parse("L0H1.ov:0*2"))
    assert [e["edit"] for e in edited.meta["edits"]] == ["L1H1.ov:0*0", "L0H1.ov:0*2"]
    assert edited.stored.origin("L1.W_O") != gpt2().stored.origin("L1.W_O")
    assert edited.stored.origin("L1.W_V") == gpt2().stored.origin("L1.W_V")


@pytest.mark.parametrize(("family", "site", "side"), [
    (f, s, side) for f in ("gpt2", "gpt_neox") for s, side in (("L1H1.ov", "write"), ("L1.mlp.out", "write"),
                                                              ("L1H1.qk", "read"), ("L1.mlp.in", "read"))
])  # fmt: skip
@pytest.mark.parametrize("frame", ["folded", "gauge_fixed", "tl_default"])
def test_a_direction_with_a_part_along_1_does_in_a_frame_what_it_does_to_the_framed_matrix(
    family: str, site: str, side: str, frame: str
) -> None:
    """M'= M_f(I + ε ccᵀ), up to what is written along 1 in a frame that takes it off."""
    framed = random_model(family).framed(frame)
    c = np.random.default_rng(4).standard_normal(framed.spec.d_model) + 1.0
    c /= np.linalg.norm(c)
    M = dense(framed, site)
    want = M - 0.7 * (np.outer(M @ c, c) if side == "write" else np.outer(c, c @ M))
    got = dense(framed.edited(Edit.within(site, c, -0.7, side)), site)
    if frame != "folded" and side == "write":
        want -= want.mean(axis=1, keepdims=True)
    if side == "read":  # read through a LayerNorm, where nothing lies along 1
        want -= want.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(got, want, atol=1e-11)


def test_spans_that_commute_are_not_refused_for_rounding() -> None:
    """Two bases of one span: the order makes nothing, though every product of two terms is there."""
    model, draw = gpt2(), np.random.default_rng(0)
    Q = np.linalg.qr(draw.standard_normal((20, 3)))[0].T
    for _ in range(30):
        other = np.linalg.qr(draw.standard_normal((3, 3)))[0] @ Q
        (Edit.within("L1H1.ov", Q, -0.5) + Edit.within("L1H1.ov", other, -0.3)).resolve(model)


def test_what_is_as_good_as_removed_has_no_inverse() -> None:
    with pytest.raises(BadRequest, match="only the base still has it"):
        Edit.dyads("L1H1.ov", {0: -1 + 1e-14}).inverse(gpt2())


def test_a_bias_behind_a_gate_cannot_take_what_a_folded_norm_adds_in_front_of_it() -> None:
    import dataclasses

    from covector.arch.toy import random_model as toy
    from covector.model.spec import MLP
    from covector.model.weights import ArrayWeights

    base = toy(gated=True, activation="silu")
    spec, draw = base.spec, np.random.default_rng(0)
    blocks = tuple(dataclasses.replace(b, sublayers=tuple(
        dataclasses.replace(s, part=dataclasses.replace(s.part, bias_after_gate=True)) if isinstance(s.part, MLP) else s
        for s in b.sublayers)) for b in spec.blocks)  # fmt: skip
    arrays = {n: np.array(base[n]) for n in base.names()}
    arrays["L1.mlp_norm.bias"] = draw.standard_normal(spec.d_model)
    weights = ArrayWeights(dataclasses.replace(spec, blocks=blocks), arrays)
    model = Model("gated", weights, weights)
    model.edited(Edit.parse("L1.mlp.in:0*0"))
    with pytest.raises(BadRequest, match="expected a bias in front of the gate"):
        model.framed("folded").edited(Edit.parse("L1.mlp.in:0*0"))
    model.framed("folded").edited(Edit.parse("L1.mlp.gate:0*0; L1.mlp.out:0*0"))


@pytest.mark.parametrize(("angle", "kept"), [(1e-7, 1), (1e-3, 1), (5e-3, 2), (1.0, 2)])
def test_directions_within_a_tenth_of_a_degree_are_one(angle: float, kept: int) -> None:
    """Two vectors `angle` radians apart, of unlike lengths: one where tan of half the angle is below 1e-3."""
    draw = np.random.default_rng(0)
    one, away = np.linalg.qr(draw.standard_normal((20, 2)))[0].T
    pair = np.stack([one, 1e-4 * (np.cos(angle) * one + np.sin(angle) * away)])
    (term,) = Edit.within("L1H1.ov", pair, -1.0).steps[0]
    assert len(term.rows) == len(term.epsilon) == kept
    middle = np.cos(angle / 2) * one + np.sin(angle / 2) * away
    assert np.linalg.norm(term.rows @ middle) == pytest.approx(1, abs=1e-6)
    erased = dense(gpt2().edited(Edit.within("L1H1.ov", pair, -1.0)), "L1H1.ov")
    assert np.linalg.norm(erased @ one) <= angle * np.linalg.norm(dense(gpt2(), "L1H1.ov"))


def test_several_edits_are_one_in_the_order_given() -> None:
    a, b, c = (Edit.parse(text) for text in ("L0H0.ov:0*0", "L1H1.ov:1*0.5", "L0H0.ov:0*0 then L0H0.ov:0*0"))
    assert str(Edit.together([a, b])) == "L0H0.ov:0*0; L1H1.ov:1*0.5"
    assert str(Edit.together([a, b, c])) == f"{Edit.together([a, b])} then {c}"
    with pytest.raises(BadRequest, match="expected an edit, got none"):
        Edit.together([])


def test_a_phrase_is_one_direction_and_says_so() -> None:
    """The mean of its tokens' unit vectors, the basis' mean taken off; words that are tokens need no explanation."""
    model = covector.open("demo-lm")
    basis = model.bases["token_out"]
    (phrase,) = Edit.parse("L0H0.ov:(' good friend')*0").resolve(model).laid
    rows = (basis.vectors - basis.vectors.mean(axis=0))[[basis.labels.index(x) for x in (" good", " friend")]]
    total = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(phrase.operator.reads[0], total / np.linalg.norm(total), atol=1e-6)
    assert meant(phrase, model) == "(' good' ' friend')"
    for text in ("L0H0.ov:(' flame' + ' smoke')*0", "L0H0.ov:(flame)*0", "L0H0.ov:0*0"):
        (plain,) = Edit.parse(text).resolve(model).laid
        assert meant(plain, model) == ""
