"""Layouts in words: what each construct reads out of a stored tensor, and what is said about words that are wrong."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covector.arch.words import check_shape, cut, declared_shape, parse
from covector.errors import BadLayout, CheckpointMismatch
from covector.model.weights import canonical_axes

# Every size differs, so that no axis can be taken for another.
SIZES = {"d_model": 7, "head": 4, "kv_head": 2, "d_head": 3, "d_mlp": 5, "token": 11, "state": 6}
# q, k and v stacked along an axis have as many heads each.
EQUAL = SIZES | {"kv_head": 4}


def stored(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def read(words, role, array, sizes=SIZES):
    return cut(parse(words), role, array, sizes)


# -- constructs


def test_axes_in_canonical_order_are_read_as_they_are():
    array = stored(11, 7)
    assert np.array_equal(read("W_E: token d_model", "W_E", array), array)


def test_axes_in_another_order_are_transposed():
    array = stored(7, 5)
    assert np.array_equal(read("W_out: d_model d_mlp", "W_out", array), array.T)


@pytest.mark.parametrize(
    ("words", "row"),
    [("(W_Q: head d_head) d_model", lambda h, e: h * 3 + e), ("(W_Q: d_head head) d_model", lambda h, e: e * 4 + h)],
)
def test_a_composed_axis_splits_slowest_part_first(words, row):
    array = stored(12, 7)
    W_Q = read(words, "W_Q", array)
    assert W_Q.shape == (4, 7, 3)
    for h, e in np.ndindex(4, 3):
        assert np.array_equal(W_Q[h, :, e], array[row(h, e)])


@pytest.mark.parametrize("role", ["W_Q", "W_K", "W_V"])
@pytest.mark.parametrize(
    ("words", "column"),
    [
        ("d_model ([W_Q W_K W_V] head d_head)", lambda s, h, e: s * 12 + h * 3 + e),
        ("d_model (head [W_Q W_K W_V] d_head)", lambda s, h, e: h * 9 + s * 3 + e),
        ("d_model (head d_head [W_Q W_K W_V])", lambda s, h, e: h * 9 + e * 3 + s),
    ],
    ids=["gpt2: q, then k, then v", "neox: q|k|v per head", "interleaved"],
)
def test_a_stack_lies_where_its_bracket_stands(words, column, role):
    array, slot = stored(7, 36), "QKV".index(role[-1])
    found = read(words, role, array, EQUAL)
    for h, e in np.ndindex(4, 3):
        assert np.array_equal(found[h, :, e], array[:, column(slot, h, e)])


def test_parts_of_different_length_lie_one_after_the_other():
    words = "(W_Q: head d_head | W_K: kv_head d_head | W_V: kv_head d_head) d_model"
    array = stored(12 + 6 + 6, 7)
    assert np.array_equal(read(words, "W_Q", array), array[:12].reshape(4, 3, 7).swapaxes(1, 2))
    assert np.array_equal(read(words, "W_K", array), array[12:18].reshape(2, 3, 7).swapaxes(1, 2))
    assert np.array_equal(read(words, "W_V", array), array[18:].reshape(2, 3, 7).swapaxes(1, 2))


def test_one_tensor_may_play_two_roles():
    layout = parse("attn_norm.gain+mlp_norm.gain: d_model")
    assert layout.roles == ("attn_norm.gain", "mlp_norm.gain")
    assert all(np.array_equal(cut(layout, role, stored(7), SIZES), stored(7)) for role in layout.roles)


def test_an_axis_of_size_one_disappears():
    assert np.array_equal(read("b_O: _ d_model", "b_O", stored(1, 7)), stored(7))


def test_a_role_that_is_not_named_is_the_default():
    assert parse("head d_head d_model", default_role="W_O").roles == ("W_O",)


def test_words_say_what_may_be_absent_and_what_is_ignored():
    assert parse("W_U: token d_model ?").optional
    assert not parse("W_U: token d_model").optional
    assert parse("-").ignored
    assert not parse("W_U: token d_model").ignored


def test_labelled_inputs_and_outputs_have_axes_of_their_own():
    array = stored(7, 6)
    assert np.array_equal(read("in.state.W: d_model state", "in.state.W", array), array.T)
    assert np.array_equal(read("out.state.W: d_model state", "out.state.W", array), array)


@given(st.permutations(canonical_axes("W_O")))
def test_reading_undoes_any_order_of_axes(order):
    W_O = stored(4, 3, 7)
    array = W_O.transpose([canonical_axes("W_O").index(axis) for axis in order])
    assert np.array_equal(read("W_O: " + " ".join(order), "W_O", array), W_O)


def test_reading_makes_no_copy():
    array = stored(12, 7)
    assert np.shares_memory(read("(W_Q: head d_head) d_model", "W_Q", array), array)


# -- what is refused


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("token d_model", "expected a role such as 'W_Q:', none came; write 'W_Q: token d_model'"),
        ("(W_Q: head d_head", "expected 'an axis', got 'the end'; "),
        ("(W_Q: ) d_model", "expected an axis name, got ')'"),
        ("W_E: | d_model", "expected an axis name, got '|'"),
        ("W_E: token ]", "expected an axis name, got ']'"),
        ("(W_Q: [W_K W_V] head d_head) d_model", "expected one [stack] and no role beside it in one axis"),
        ("([W_Q W_K] [W_V W_O] d_head) d_model", "expected one [stack] and no role beside it in one axis"),
        ("([W_Q W_Q] head d_head) d_model", "a role appears twice; each canonical tensor is stored once"),
        ("W_X: token d_model", "expected a canonical tensor (W_Q, b_O, attn_norm.gain, in.state.W, …), got 'W_X'"),
        ("W_E: token token", "W_E has axes token d_model, the words give token token; name each axis once"),
        ("W_E: token", "W_E has axes token d_model, the words give token;"),
        ("(W_Q: head d_head) d_model d_mlp", "W_Q has axes head d_model d_head, the words give head"),
    ],
)
def test_words_that_are_not_a_layout_are_refused(words, text):
    with pytest.raises(BadLayout, match=re.escape(text)):
        parse(words)


def test_the_declared_shape_multiplies_composed_axes_and_adds_parts():
    words = "(W_Q: head d_head | W_K: kv_head d_head | W_V: kv_head d_head) d_model"
    assert declared_shape(parse(words), SIZES) == (24, 7)
    assert declared_shape(parse("d_model ([W_Q W_K W_V] head d_head)"), EQUAL) == (7, 36)
    assert declared_shape(parse("W_pos: position d_model"), SIZES) == (None, 7)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes_and_the_words():
    layout = parse("(W_Q: head d_head) d_model")
    check_shape(layout, "q.weight", (12, 7), SIZES, "here")
    with pytest.raises(CheckpointMismatch) as refused:
        check_shape(layout, "q.weight", (7, 12), SIZES, "here")
    assert str(refused.value) == (
        "here: cannot read W_Q: tensor 'q.weight' has shape (7, 12), the layout '(W_Q: head d_head) d_model' and the "
        "config give (12, 7); is this the config of another model?"
    )


def test_an_axis_that_the_config_does_not_size_may_have_any_length():
    layout = parse("W_pos: position d_model")
    check_shape(layout, "wpe", (99, 7), SIZES, "here")
    with pytest.raises(CheckpointMismatch, match=re.escape("give (any, 7)")):
        check_shape(layout, "wpe", (99, 8), SIZES, "here")
