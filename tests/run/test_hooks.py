"""Hook points: one list, names with a star, and a tap that replaces before it keeps."""

import pytest
import torch

from covector.errors import BadRequest
from covector.model.spec import Attention
from covector.run.decoder import Decoder
from covector.run.hooks import HOOKS, hook_names, select, tap

NAMES = ("resid_in", "L0.q", "L0.z", "L1.q", "L1.z", "logits")


def test_every_hook_point_of_a_model_is_documented(toy):
    documented = {hook.name for hook in HOOKS}
    roles = {name.split(".", 1)[1] if name[0] == "L" else name for name in hook_names(toy.spec)}
    assert {role if not role.startswith("out.") else "out.NAME" for role in roles} <= documented


def test_every_documented_hook_point_occurs_in_some_model(toys):
    models = [toys(w) for w in ("pre-norm", "grouped", "interleaved")]
    names = {n.rsplit(".", 1)[-1] for m in models for n in hook_names(m.spec)} | {"out.NAME"}
    assert {hook.name for hook in HOOKS} <= names


def test_a_documented_shape_has_the_axes_of_the_tensor(toy):
    decoder = Decoder(toy)
    spec = toy.spec
    stream = torch.randn(2, 6, spec.d_model, dtype=torch.float64)
    cache = decoder.run(resid_in=stream, capture="*").cache
    axes = {hook.name: hook.axes.split() for hook in HOOKS}
    sizes = {"batch": 2, "position": 6, "d_model": spec.d_model, "token": spec.n_vocab}
    for name, value in cache.items():
        if name.startswith("out."):
            continue
        role, attn = name.rsplit(".", 1)[-1], spec.blocks[int(name[1])].attn if name[0] == "L" else None
        mlp = spec.blocks[int(name[1])].mlp if name[0] == "L" else None
        here = sizes | ({"d_mlp": mlp.d_mlp} if mlp else {})
        if isinstance(attn, Attention):
            here |= {"head": attn.n_heads, "kv_head": attn.n_kv_heads, "d_head": attn.d_head}
        assert tuple(value.shape) == tuple(here[axis] for axis in axes[role]), name


def test_a_star_stands_for_any_text():
    assert select(["L*.q", "logits"], NAMES) == {"L0.q", "L1.q", "logits"}
    assert select("L1.z", NAMES) == {"L1.z"}


def test_an_unknown_hook_point_is_refused_with_its_neighbours():
    with pytest.raises(
        BadRequest, match=r"capture: expected a hook point of this model, got 'L7.z'; it has L0.z, L1.z"
    ):
        tap(NAMES, capture=["L7.z"])
    with pytest.raises(BadRequest, match=r"intervene: expected a hook point of this model, got 'L\*.z'"):
        tap(NAMES, intervene={"L*.z": lambda x: x})


def test_a_tap_keeps_what_goes_on_after_an_intervention():
    at = tap(NAMES, ["L0.z"], {"L0.z": lambda x: x + 1})
    assert at("L0.z", torch.zeros(2)).tolist() == [1, 1]
    assert at.cache["L0.z"].tolist() == [1, 1]
    assert at("L0.q", torch.zeros(2)).tolist() == [0, 0]
    assert set(at.cache) == {"L0.z"}


def test_an_intervention_that_changes_the_shape_is_refused():
    at = tap(NAMES, intervene={"L0.z": lambda x: x[:1]})
    with pytest.raises(BadRequest, match=r"intervene at L0.z: expected a tensor of shape \(2, 3\) back, got \(1, 3\)"):
        at("L0.z", torch.zeros(2, 3))
