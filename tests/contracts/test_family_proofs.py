"""Every family proves itself on a tiny random checkpoint, and every planted defect is caught and named.

A new file in `arch/` is picked up by itself. Every parameter of the checkpoint is random, gains around 1 and biases
around 0, so that no piece can be right by being absent.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch

from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.config import Config
from covector.arch.family import families
from covector.errors import CheckpointMismatch, NotProven
from covector.io.tensors import ArrayTensors
from covector.model.spec import MLP, Attention, ModelSpec, Sublayer
from covector.model.weights import ArrayWeights, Weights
from covector.run.hf_load import tiny_judge
from covector.run.hf_runner import HFRunner
from covector.run.proof import first_failure, prove, require_proven

JUDGED = sorted(name for name, family in families().items() if family.hf_class)
# Branches that move a boundary of the judge, and that a tiny config does not take.
VARIANTS = {
    "bert": {"is_decoder": True, "tie_word_embeddings": False},
    "gpt_neox": {"use_parallel_residual": False, "attention_bias": False},
    "opt": {"do_layer_norm_before": False},
    "phi": {"qk_layernorm": False},
}


@cache
def proven(name: str) -> tuple[HFRunner, ArrayWeights]:
    """The judge of a family, and our reading of its checkpoint as arrays."""
    model, weights = tiny_judge(families()[name])
    arrays = {tensor: weights[tensor] for tensor in weights.names()}
    return HFRunner(model, weights), ArrayWeights(weights.spec, arrays)


def test_families_are_found():
    assert {"gpt2", "llama"} <= set(JUDGED)


@pytest.mark.identity("SV-1")
@pytest.mark.parametrize("name", JUDGED)
def test_a_family_proves_itself(name):
    runner, weights = proven(name)
    checks = prove(weights, runner)
    require_proven(checks, name)
    # One linear piece of each kind in each block, its pattern, and the free run of every block.
    for layer in range(weights.spec.n_layers):
        made = {check.name for check in checks if check.name.startswith(f"L{layer}.")}
        assert {f"L{layer}.{r}" for r in ("q", "k", "v", "pattern", "z", "attn_out", "mlp_pre", "mlp_out")} <= made
        assert f"run.L{layer}.resid_post" in {check.name for check in checks}
    linear = [check for check in checks if check.tolerance == 1e-10]
    assert max(check.difference for check in linear) < 1e-12


@pytest.mark.identity("SV-1")
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_family_proves_the_branches_that_its_tiny_config_does_not_take(name):
    model, weights = tiny_judge(families()[name], changes=VARIANTS[name])
    require_proven(prove(weights, model), name)


@pytest.mark.parametrize("name", JUDGED)
def test_a_family_proves_itself_in_float32(name):
    model, weights = tiny_judge(families()[name], dtype=torch.float32, seed=1)
    require_proven(prove(weights, model, dtype=torch.float32), name)


Plant = Callable[[Weights], Weights]


@dataclass(frozen=True)
class Defect:
    """A wrong reading of a checkpoint, the models in which it is one, and the pieces that may be named for it."""

    applies: Callable[[ModelSpec], bool]
    plant: Plant
    named: tuple[str, ...]


def _arrays(**makers: Callable[[Weights], np.ndarray]) -> Plant:
    """Other arrays in the first block."""

    def plant(w: Weights) -> Weights:
        return ArrayWeights(w.spec, w.arrays | {f"L0.{role}": make(w) for role, make in makers.items()})

    return plant


def _sublayers(change: Callable[[Sublayer], Sublayer]) -> Plant:
    """Another anatomy in every block."""

    def plant(w: Weights) -> Weights:
        blocks = tuple(replace(b, sublayers=tuple(change(s) for s in b.sublayers)) for b in w.spec.blocks)
        return ArrayWeights(replace(w.spec, blocks=blocks), w.arrays)

    return plant


def _attention(change: Callable[[Attention], Attention]) -> Plant:
    return _sublayers(lambda s: replace(s, part=change(s.part)) if isinstance(s.part, Attention) else s)


def _mlp(change: Callable[[MLP], MLP]) -> Plant:
    return _sublayers(lambda s: replace(s, part=change(s.part)) if isinstance(s.part, MLP) else s)


def _transposed(w: Weights) -> np.ndarray:
    """W_Q as it looks when a square output x input matrix is taken for input x output."""
    heads, d_model, d_head = w["L0.W_Q"].shape
    square = w["L0.W_Q"].transpose(1, 0, 2).reshape(d_model, d_model)
    return square.T.reshape(d_model, heads, d_head).transpose(1, 0, 2)


def _with_eps(w: Weights, factor: float) -> Weights:
    def change(norm):
        return norm and replace(norm, eps=norm.eps * factor)

    def sub(s: Sublayer) -> Sublayer:
        return replace(s, reads=change(s.reads), post=change(s.post), after=change(s.after))

    return _sublayers(sub)(w)


def _several(spec: ModelSpec) -> bool:
    return spec.n_heads > 1


DEFECTS = {
    "transposed square W_Q": Defect(lambda s: s.n_heads * s.d_head == s.d_model, _arrays(W_Q=_transposed), ("L0.q",)),
    "permuted heads in W_Q": Defect(_several, _arrays(W_Q=lambda w: np.roll(w["L0.W_Q"], 1, axis=0)), ("L0.q",)),
    "permuted heads in W_O": Defect(_several, _arrays(W_O=lambda w: np.roll(w["L0.W_O"], 1, axis=0)), ("L0.attn_out",)),
    "heads permuted everywhere alike": Defect(
        lambda s: s.n_heads == s.n_kv_heads > 1,
        _arrays(**{f"W_{m}": lambda w, m=m: np.roll(w[f"L0.W_{m}"], 1, axis=0) for m in "QKVO"}),
        ("L0.q",),
    ),
    "swapped k and q": Defect(
        lambda s: s.n_heads == s.n_kv_heads,
        _arrays(W_Q=lambda w: w["L0.W_K"], W_K=lambda w: w["L0.W_Q"]),
        ("L0.q",),
    ),
    "swapped v and k": Defect(lambda s: True, _arrays(W_V=lambda w: w["L0.W_K"], W_K=lambda w: w["L0.W_V"]), ("L0.k",)),
    "swapped gate and in": Defect(
        lambda s: s.blocks[0].mlp.gated,
        _arrays(W_in=lambda w: w["L0.W_gate"], W_gate=lambda w: w["L0.W_in"]),
        ("L0.gate",),
    ),
    "wrong sign of W_out": Defect(lambda s: True, _arrays(W_out=lambda w: -w["L0.W_out"]), ("L0.mlp_out",)),
    "wrong eps": Defect(
        lambda s: True,
        lambda w: _with_eps(w, 10),
        ("L0.attn_norm", "L0.attn_after"),
    ),
    "wrong rotary pairing": Defect(
        lambda s: s.attention.rotary is not None,
        _attention(lambda a: replace(a, rotary=replace(a.rotary, interleaved=not a.rotary.interleaved))),
        ("L0.pattern",),
    ),
    "wrong rotary base": Defect(
        lambda s: s.attention.rotary is not None,
        _attention(lambda a: replace(a, rotary=replace(a.rotary, theta=1.1 * a.rotary.theta))),
        ("L0.pattern",),
    ),
    "missing 1/√d_head": Defect(
        lambda s: s.attention.scale != 1, _attention(lambda a: replace(a, scale=1.0)), ("L0.pattern",)
    ),
    "a 1/√d_head too much": Defect(
        lambda s: s.attention.scale == 1, _attention(lambda a: replace(a, scale=a.d_head**-0.5)), ("L0.pattern",)
    ),
    "the other causality": Defect(
        lambda s: all(b.attn.window is None for b in s.blocks),
        _attention(lambda a: replace(a, causal=not a.causal)),
        ("L0.pattern",),
    ),
    "a window one wider": Defect(
        lambda s: any(b.attn.window for b in s.blocks),
        _attention(lambda a: replace(a, window=a.window and a.window + 1)),
        tuple(f"L{i}.pattern" for i in range(9)),
    ),
    "no soft cap on scores": Defect(
        lambda s: s.attention.softcap is not None, _attention(lambda a: replace(a, softcap=None)), ("L0.pattern",)
    ),
    "no norm of q and k": Defect(
        lambda s: s.attention.qk_norm is not None, _attention(lambda a: replace(a, qk_norm=None)), ("L0.pattern",)
    ),
    "another activation": Defect(lambda s: True, _mlp(lambda m: replace(m, activation="quick_gelu")), ("L0.mlp_post",)),
    "no post norm": Defect(
        lambda s: s.blocks[0].sublayers[0].post is not None,
        _sublayers(lambda s: replace(s, post=None)),
        ("L0.attn_added",),
    ),
    "sublayers in parallel that are not, or the other way round": Defect(
        lambda s: s.blocks[0].sublayers[0].after is None,
        lambda w: ArrayWeights(
            replace(w.spec, blocks=tuple(replace(b, parallel=not b.parallel) for b in w.spec.blocks)), w.arrays
        ),
        ("L0.mlp_in",),
    ),
    "embeddings of the next row": Defect(
        lambda s: "token" in {i.name for i in s.assembly.inputs},
        lambda w: ArrayWeights(
            replace(w.spec, tied=False), {"W_U": w["W_E"].T} | w.arrays | {"W_E": np.roll(w["W_E"], 1, 0)}
        ),
        ("resid_in",),
    ),
    "positions from another row": Defect(
        lambda s: s.assembly.positions != "none",
        lambda w: ArrayWeights(w.spec, w.arrays | {"W_pos": np.roll(w["W_pos"], 1, axis=0)}),
        ("resid_in",),
    ),
    "no final norm": Defect(
        lambda s: s.final_norm is not None,
        lambda w: ArrayWeights(replace(w.spec, final_norm=None), w.arrays),
        ("final_normed",),
    ),
}


# Planted in every family that has the piece; the others, which no family treats in a way of its own, in two.
EVERYWHERE = {
    "transposed square W_Q",
    "permuted heads in W_Q",
    "permuted heads in W_O",
    "swapped k and q",
    "swapped gate and in",
    "wrong eps",
    "wrong rotary pairing",
    "missing 1/√d_head",
}


def _cases() -> list[tuple[str, str]]:
    specs = {name: families()[name].spec(Config(families()[name].tiny())) for name in JUDGED}
    cases = []
    for defect, planted in DEFECTS.items():
        fits = [name for name, spec in specs.items() if planted.applies(spec)]
        assert fits, f"no family has what '{defect}' breaks"
        some = fits if defect in EVERYWHERE else sorted({fits[0], fits[-1]})
        cases += [(name, defect) for name in some]
    return cases


@pytest.mark.parametrize(("name", "defect"), _cases())
def test_a_planted_defect_is_caught_and_named(name, defect):
    runner, weights = proven(name)
    planted = DEFECTS[defect]
    failed = first_failure(prove(planted.plant(weights), runner))
    assert failed is not None
    assert failed.name in planted.named
    assert failed.difference > 10 * failed.tolerance


# Configs whose attention or MLP matrices are square, so that no shape gives a transposed one away.
SQUARE = {
    "gpt2": {"n_inner": 20},
    "gptj": {},
    "opt": {"ffn_dim": 20},
    "llama": {"num_key_value_heads": 4, "head_dim": 6, "intermediate_size": 24},
    "bert": {},
}


def _tampered(name: str, judge_state: dict[str, np.ndarray], tensor: str) -> AdaptedWeights:
    """The checkpoint with one stored matrix transposed, read as always."""
    family = families()[name]
    config = Config({**family.tiny(), **SQUARE[name]})
    source = ArrayTensors(judge_state | {tensor: judge_state[tensor].T.copy()}, where="tampered")
    return adapt(family.spec(config), family.tensors(config), source, prefixes=family.prefixes, ignored=family.ignored)


@pytest.mark.identity("SV-39")
@pytest.mark.parametrize("name", sorted(SQUARE))
def test_a_transposed_square_matrix_in_a_checkpoint_never_passes(name):
    model, weights = tiny_judge(families()[name], changes=SQUARE[name])
    runner = HFRunner(model, weights)
    state = {tensor: value.numpy() for tensor, value in model.state_dict().items()}
    first = {weights.place(n).tensor: n for n in weights.names() if n.startswith("L0.")}
    square = [t for t in first if state[t].ndim == 2 and state[t].shape[0] == state[t].shape[1]]
    assert square
    for tensor in square:
        with pytest.raises(NotProven, match=rf"tampered: L0\.{_PIECE[first[tensor]]}: expected ours"):
            require_proven(prove(_tampered(name, state, tensor), runner), "tampered")


# The piece that each matrix makes.
_PIECE = {
    "L0.W_Q": "q",
    "L0.W_K": "k",
    "L0.W_V": "v",
    "L0.W_O": "attn_out",
    "L0.W_in": "mlp_pre",
    "L0.W_gate": "gate",
    "L0.W_out": "mlp_out",
}


@pytest.mark.identity("SV-39")
def test_a_transposed_matrix_that_is_not_square_is_refused_before_any_proof():
    model, _ = tiny_judge(families()["gptj"])
    state = {tensor: value.numpy() for tensor, value in model.state_dict().items()}
    with pytest.raises(CheckpointMismatch, match=r"cannot read W_in: tensor 'transformer.h.0.mlp.fc_in.weight'"):
        _tampered("gptj", state, "transformer.h.0.mlp.fc_in.weight")
