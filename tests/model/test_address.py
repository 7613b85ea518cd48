"""Addresses: what is typed, what it names, and what an impossible one is told."""

import pytest

from covector.errors import BadSite
from covector.model.address import site, sites
from random_checkpoints import random_weights

SPEC = random_weights("llama").spec  # 3 layers, 4 query heads on 2 key/value heads
GPT2 = random_weights("gpt2").spec


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("L1H2", "L1H2.ov"),
        ("1.2", "L1H2.ov"),
        ("l1h2.QK", "L1H2.qk"),
        ("L0K1.v", "L0K1.v"),
        ("L0K1", "L0K1.v"),
        ("L2.mlp.gate", "L2.mlp.gate"),
        ("embed", "embed"),
        ("unembed", "unembed"),
    ],
)
def test_an_address_names_one_place_and_is_spelled_back(typed: str, named: str) -> None:
    assert str(site(typed, SPEC)) == named
    assert site(named, SPEC) == site(typed, SPEC)


def test_a_query_heads_value_is_its_key_value_heads_and_counted_once() -> None:
    assert [str(s) for s in sites("L0H*.v", SPEC)] == ["L0K0.v", "L0K1.v"]
    assert str(site("L0H3.v", SPEC)) == "L0K1.v"


def test_ranges_and_wildcards_expand_in_reading_order() -> None:
    assert [str(s) for s in sites("L0-1H2-3.ov", SPEC)] == ["L0H2.ov", "L0H3.ov", "L1H2.ov", "L1H3.ov"]
    assert len(sites("L*H*", SPEC)) == 12
    assert [str(s) for s in sites("L2.mlp.*", SPEC)] == ["L2.mlp.in", "L2.mlp.gate", "L2.mlp.out"]
    assert [str(s) for s in sites("L0.mlp.*", GPT2)] == ["L0.mlp.in", "L0.mlp.out"]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("L3H1", r"L3H1 is outside llama: layers run 0–2, heads 0–3. Did you mean L1H3\?"),
        ("L9H9", r"Did you mean L2H3\?"),
        ("L0K2", r"key/value heads 0–1"),
        ("L7.mlp.in", r"Did you mean L2.mlp.in\?"),
        ("L2-1H0", r"a range runs upwards, got 2-1"),
        ("L0H0.xy", r"expected a head's map \(ov, qk, q, k, v, o\), got 'xy'"),
        ("L0K0.q", r"a key/value head has only .k and .v"),
        ("L0.mlp.up", r"expected an MLP map \(in, gate, out\), got 'up'"),
        ("L0", r"expected an address such as"),
    ],
)
def test_an_impossible_address_is_told_what_is_possible(typed: str, told: str) -> None:
    with pytest.raises(BadSite, match=told):
        sites(typed, SPEC)


def test_a_gate_that_the_model_lacks_is_refused_by_name() -> None:
    with pytest.raises(BadSite, match="has no gate"):
        sites("L0.mlp.gate", GPT2)
