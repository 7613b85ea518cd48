"""The names that callers rely on, frozen: of a spec, a site, a map, a decomposition, a basis, a table and its meta.

Adding is allowed (the sets are lower bounds); a name that disappears breaks somebody's notebook.
"""

import dataclasses

import pytest

import covector
from covector.linalg.maps import Dense, Factored, Map, Space
from covector.linalg.svd import SVD
from covector.model.address import Site
from covector.model.bases import Basis
from covector.model.frames import PRESERVING, VIEWS
from covector.model.spec import MLP, Attention, Block, ModelSpec, Norm, Rotary, Sublayer
from random_checkpoints import random_model

FIELDS = {
    ModelSpec: {"family", "d_model", "blocks", "assembly", "outputs", "n_ctx", "final_norm", "tied"},
    Block: {"sublayers", "parallel"},
    Sublayer: {"part", "reads", "post", "after", "scale"},
    Attention: {"n_heads", "n_kv_heads", "d_head", "scale", "causal", "window", "rotary", "qk_norm", "softcap"},
    MLP: {"d_mlp", "activation", "gated"},
    Norm: {"kind", "eps", "offset"},
    Rotary: {"dim", "theta", "interleaved", "rule", "scaling"},
    Site: {"layer", "head", "kind"},
    Space: {"kind", "size", "where"},
    SVD: {"U", "S", "Vh", "reads", "writes", "blocks", "gap", "wedin", "noisy", "sign_margin", "cut", "route"},
    Basis: {"name", "side", "labels"},
}
PROPERTIES = {
    ModelSpec: {"n_layers", "n_heads", "n_kv_heads", "d_head", "d_mlp", "n_vocab"},
    Map: {"shape", "apply", "dense", "T"},
    Basis: {"vectors", "norms"},
    covector.Table: {"rows", "meta", "to_json", "to_pandas", "show", "plot", "save", "load"},
    covector.Model: {"spec", "bases", "map", "site", "sites", "framed", "meta"},
}
META = {"model", "family", "dtype", "frame", "files", "versions", "analysis", "site", "policy", "null", "seed"}


@pytest.mark.parametrize("noun", FIELDS, ids=lambda n: n.__name__)
def test_a_noun_keeps_its_fields_and_is_frozen(noun: type) -> None:
    assert FIELDS[noun] <= {f.name for f in dataclasses.fields(noun)}
    assert noun.__dataclass_params__.frozen


@pytest.mark.parametrize("noun", PROPERTIES, ids=lambda n: n.__name__)
def test_a_noun_keeps_its_questions(noun: type) -> None:
    fields = {f.name for f in dataclasses.fields(noun)} if dataclasses.is_dataclass(noun) else set()
    assert PROPERTIES[noun] <= set(dir(noun)) | fields


def test_every_result_says_where_it_comes_from() -> None:
    model = dataclasses.replace(random_model("gpt2"), identity={"files": {}, "versions": {}})
    assert covector.readout(model, "L0H0").meta.keys() >= META


def test_maps_are_values_of_three_kinds_with_named_sides() -> None:
    model = random_model("llama")
    assert isinstance(model.map("L0H0.ov"), Factored)
    assert isinstance(model.map("L0.mlp.out"), Dense)
    assert model.map("L0H0.ov").reads == model.map("L1.mlp.in").reads == Space("residual", model.spec.d_model)


def test_frames_keep_their_names() -> None:
    assert PRESERVING == ("raw", "folded", "gauge_fixed", "tl_default")
    assert VIEWS == ("tl_demo", "conjecture2022")
