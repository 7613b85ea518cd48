"""The adapter accounts for every stored tensor: used, ignored by name, or refused with its name."""

import re

import numpy as np
import pytest

from covector.arch.adapter import adapt
from covector.errors import CheckpointMismatch
from covector.io.tensors import ArrayTensors
from covector.model.spec import MLP, Assembly, Attention, Block, Input, ModelSpec, Norm, Output, Sublayer

NORM = Norm("rms", 1e-6, offset=1.0)
LAYOUTS = {
    "wte.weight": "W_E: token d_model",
    "h.{i}.norm.weight": "attn_norm.gain: d_model",
    "h.{i}.qkv.weight": "d_model ([W_Q W_K W_V] head d_head)",
    "h.{i}.proj.weight": "(W_O: head d_head) d_model",
    "h.{i}.fc.weight": "W_in: d_model d_mlp",
    "h.{i}.fc.bias": "b_in: d_mlp ?",
    "h.{i}.out.weight": "W_out: d_mlp d_model",
    "lm_head.weight": "W_U: token d_model ?",
}


def spec(tied=False):
    block = Block((Sublayer(Attention(2, 2, 3, 1.0), reads=NORM), Sublayer(MLP(5, "relu"))))
    inputs, outputs = (Input("token", 7, "lookup"),), (Output("token", 7),)
    return ModelSpec("test", 4, (block, block), Assembly("tokens", inputs), outputs, n_ctx=8, tied=tied)


def checkpoint(prefix="", **changes):
    """Arrays as LAYOUTS declare them, random; `changes` replaces tensors (dots as __), None leaves one out."""
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (7, 4), "lm_head.weight": (7, 4)}
    for i in range(2):
        shapes |= {f"h.{i}.norm.weight": (4,), f"h.{i}.qkv.weight": (4, 18), f"h.{i}.proj.weight": (6, 4)}
        shapes |= {f"h.{i}.fc.weight": (4, 5), f"h.{i}.fc.bias": (5,), f"h.{i}.out.weight": (5, 4)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {name.replace("__", "."): value for name, value in changes.items()}
    return ArrayTensors({prefix + k: v for k, v in arrays.items() if v is not None}, where="here")


def weights(source, tied=False, layouts=LAYOUTS, **options):
    return adapt(spec(tied), layouts, source, **options)


def refusal(*args, **kwargs):
    with pytest.raises(CheckpointMismatch) as refused:
        weights(*args, **kwargs)
    return str(refused.value)


def test_every_canonical_tensor_is_read_from_where_its_layout_says():
    source = checkpoint()
    found = weights(source)
    assert np.array_equal(found["L1.W_K"][1], source.read("h.1.qkv.weight")[:, 9:12])
    assert np.array_equal(found["W_U"], source.read("lm_head.weight").T)
    assert found.place("L1.W_K").tensor == "h.1.qkv.weight"
    assert found.stored("L1.W_K") == "float32"


def test_what_is_read_cannot_be_written_to():
    found = weights(checkpoint())
    with pytest.raises(ValueError, match="read-only"):
        found["L0.W_in"][0, 0] = 1


def test_gains_stored_without_their_one_get_it_without_rounding():
    stored = np.full(4, 1e-9, np.float32)
    gain = weights(checkpoint(h__0__norm__weight=stored))["L0.attn_norm.gain"]
    assert np.array_equal(gain, stored.astype(np.float64) + 1)
    assert gain[0] > 1


def test_a_missing_tensor_is_named_with_its_layout_and_its_nearest_kin():
    text = refusal(checkpoint(h__1__qkv__weight=None))
    assert text.startswith(
        "here: expected tensor 'h.1.qkv.weight' (d_model ([W_Q W_K W_V] head d_head)), it is missing"
    )
    assert "the file has h.0.qkv.weight, " in text


def test_a_tensor_of_another_shape_is_named_with_both_shapes():
    text = refusal(checkpoint(h__1__fc__weight=np.zeros((5, 4), np.float32)))
    assert "cannot read W_in: tensor 'h.1.fc.weight' has shape (5, 4), the layout 'W_in: d_model d_mlp'" in text
    assert "give (4, 5)" in text


def test_a_tensor_that_nothing_reads_is_named():
    extra = {f"h__{i}__lora__weight": np.zeros(1) for i in range(5)}
    text = refusal(checkpoint(**extra))
    assert "nothing reads h.0.lora.weight, h.1.lora.weight, h.2.lora.weight and 2 more; the layout family" in text


def test_a_tensor_may_be_ignored_by_name_and_only_by_its_whole_name():
    mask = checkpoint(h__0__bias=np.zeros(1))
    assert weights(mask, ignored=(r"h\.\d+\.bias",)).ignored == ("h.0.bias",)
    assert "nothing reads h.0.bias;" in refusal(mask, ignored=(r"h\.\d+\.bia",))


def test_words_may_ignore_a_tensor_whether_it_is_there_or_not():
    layouts = LAYOUTS | {"table": "-"}
    assert "table" not in weights(checkpoint(table=np.zeros(3)), layouts=layouts).names()
    assert weights(checkpoint(), layouts=layouts).ignored == ()


def test_an_optional_tensor_may_be_absent_but_not_what_the_anatomy_needs():
    assert "L0.b_in" not in weights(checkpoint(h__0__fc__bias=None))
    text = refusal(checkpoint(lm_head__weight=None))
    assert text.startswith("here: expected a tensor for W_U, the anatomy (test) needs it and none came")


def test_a_canonical_tensor_stored_twice_is_refused():
    layouts = LAYOUTS | {"embed_out.weight": "W_U: token d_model ?"}
    text = refusal(checkpoint(embed_out__weight=np.zeros((7, 4))), layouts=layouts)
    assert "W_U is declared twice, by 'lm_head.weight' and 'embed_out.weight'; remove one" in text


def test_a_tied_unembedding_is_the_embedding_transposed():
    found = weights(checkpoint(lm_head__weight=None), tied=True)
    assert np.array_equal(found["W_U"], found["W_E"].T)
    assert found.place("W_U").tensor == "wte.weight"
    assert found.names().count("W_U") == 1


def test_a_tied_checkpoint_may_hold_a_copy_but_no_other_unembedding():
    copy = checkpoint().read("wte.weight").copy()
    assert weights(checkpoint(lm_head__weight=copy), tied=True).names().count("W_U") == 1
    copy[3, 2] += 1
    text = refusal(checkpoint(lm_head__weight=copy), tied=True)
    assert "the config ties the unembedding to the embedding, but 'lm_head.weight' differs from 'wte.weight'" in text


@pytest.mark.parametrize("prefix", ["", "transformer.", "model.transformer."])
def test_a_declared_prefix_may_be_missing_or_present(prefix):
    prefixes = ("transformer.", "model.transformer.")
    found = weights(checkpoint(prefix), prefixes=prefixes)
    assert found.place("L0.W_Q").tensor == prefix + "h.0.qkv.weight"
    assert np.array_equal(found["L0.W_Q"], weights(checkpoint())["L0.W_Q"])


def test_each_tensor_may_stand_under_another_of_the_prefixes():
    arrays = checkpoint()
    source = ArrayTensors(
        {("b." if "lm_head" in n else "a.") + n: arrays.read(n) for n in arrays.names()}, where="here"
    )
    assert weights(source, prefixes=("a.", "b.")).place("W_U").tensor == "b.lm_head.weight"


def test_a_prefix_may_hold_for_a_part_of_the_tensors():
    arrays = checkpoint("transformer.")
    head = arrays.read("transformer.lm_head.weight")
    source = ArrayTensors(
        {n: arrays.read(n) for n in arrays.names() if "lm_head" not in n} | {"lm_head.weight": head}, where="here"
    )
    assert np.array_equal(weights(source, prefixes=("transformer.",))["W_U"], head.T)


def test_a_prefix_that_is_not_declared_is_refused():
    assert re.search(r"expected tensor 'wte\.weight' .*, it is missing", refusal(checkpoint("other.")))
