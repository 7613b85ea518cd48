"""Paths as text: what is typed comes back, and what a model lacks is refused by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covector.arch.toy import random_model
from covector.errors import BadRequest, BadSite
from covector.model.spec import ModelSpec
from covector.study.path import Path, Step, parse_path

SPEC = random_model(n_layers=4, n_heads=3, d_model=12, d_head=4).spec
PARALLEL = random_model(n_layers=2, parallel=True).spec
SLOTS = st.one_of(st.none(), st.sampled_from(["end", "NAME", "NAME+2", "end-1", "7", "*"]))


# A place per layer: a head (edge, head, dyad, slot), an MLP (slot), each or neither.
HEADS = st.tuples(st.sampled_from("vqk"), st.integers(0, 2), st.one_of(st.none(), st.integers(0, 3)), SLOTS)
LAYERS = st.lists(st.tuples(st.one_of(st.none(), HEADS), st.booleans(), SLOTS), min_size=4, max_size=4)


@settings(max_examples=200, deadline=None)
@given(LAYERS, st.booleans(), SLOTS)
def test_a_path_is_read_back_as_it_was_written(layers: list, embed: bool, slot: str | None) -> None:
    steps = [Step("embed", slot=slot)] if embed else []
    for layer, (head, mlp, at) in enumerate(layers):
        steps += [Step(head[0], layer, *head[1:])] if head else []
        steps += [Step("mlp", layer, slot=at)] if mlp else []
    path = Path(tuple(steps))
    text = str(path)
    assert parse_path(text, SPEC) == path
    assert parse_path(text.removesuffix("out").removesuffix(">"), SPEC) == path
    assert parse_path(text.replace(">", " > "), SPEC) == path


@pytest.mark.parametrize(
    ("typed", "steps"),
    [
        ("L0H1:2>L2H0.q>L3.mlp>out", (Step("v", 0, 1, 2), Step("q", 2, 0), Step("mlp", 3))),
        ("1.2 > 3.0", (Step("v", 1, 2), Step("v", 3, 0))),
        ("l1h2.K:3@NAME+1>l1.MLP", (Step("k", 1, 2, 3, "NAME+1"), Step("mlp", 1))),
        ("Embed@end>OUT", (Step("embed", slot="end"),)),
        ("", ()),
        ("out", ()),
    ],
)
def test_what_may_be_typed(typed: str, steps: tuple[Step, ...]) -> None:
    assert parse_path(typed, SPEC).steps == steps


@pytest.mark.parametrize(
    ("typed", "error", "told"),
    [
        ("L0H1>fish>out", BadRequest, r"expected steps such as L6H6:2, .* got 'fish' in 'L0H1>fish>out'"),
        ("L0H1.o", BadRequest, "got 'L0H1.o'"),
        ("L0.mlp:2", BadRequest, "got 'L0.mlp:2'"),
        ("L4H0", BadSite, r"L4H0 is outside the model: layers run 0–3"),
        ("L1H3", BadSite, r"L1H3 is outside the model: block 1 has 3 heads \(from 0\)"),
        ("L1H2:4", BadSite, r"L1H2:4: a head's map has 4 dyads \(from 0\)"),
        ("L2H0>L1H0", BadSite, r"L2H0 does not feed L1H0; write the earliest first"),
        ("L1H0>L1H1", BadSite, r"L1H0 does not feed L1H1"),
        ("L1.mlp>L1H1", BadSite, r"L1.mlp does not feed L1H1"),
        ("L0H0>embed", BadSite, r"expected embed at the beginning of a path, it stands after L0H0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(typed: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        parse_path(typed, SPEC)


def test_what_feeds_what_is_said_by_the_anatomy() -> None:
    assert len(parse_path("L0H0>L0.mlp", SPEC).steps) == 2
    with pytest.raises(BadSite, match=r"L0H0 does not feed L0\.mlp"):
        parse_path("L0H0>L0.mlp", PARALLEL)
    without = random_model(d_mlp=0).spec
    with pytest.raises(BadSite, match="block 0 has no MLP"):
        parse_path("L0.mlp", without)
    no_heads: ModelSpec = random_model(n_heads=0).spec
    with pytest.raises(BadSite, match="block 0 has 0 heads"):
        parse_path("L0H0", no_heads)
