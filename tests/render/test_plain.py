"""Values as plain JSON ones."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from covector.errors import BadTable
from covector.render import plain


@dataclass(frozen=True)
class Policy:
    norms: str
    points: np.ndarray


def test_numpy_paths_and_dataclasses_become_plain_values():
    value = {
        "n": np.int32(3),
        "x": np.float32(0.5),
        "yes": np.bool_(True),
        "policy": Policy("frozen", np.array([[1, 2]])),
        "file": Path("a") / "b",
        "pair": (1, "two"),
    }
    expected = {"n": 3, "x": 0.5, "yes": True, "policy": {"norms": "frozen", "points": [[1, 2]]}, "file": "a/b"}
    assert plain(value) == {**expected, "pair": [1, "two"]}
    assert {type(v) for v in plain(value).values()} == {int, float, bool, dict, str, list}


def test_what_json_has_no_word_for_becomes_null():
    assert plain([math.nan, math.inf, np.float64(-math.inf), 1.0]) == [None, None, None, 1.0]


def test_a_lone_surrogate_becomes_an_escape_that_utf8_can_carry():
    assert plain("a\udc80") == "a\\udc80"
    json.dumps(plain("a\udc80"), ensure_ascii=False).encode()


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", 1j, object(), np.array([1j]), Policy])
def test_an_unknown_type_is_refused_by_place_and_type(value):
    with pytest.raises(BadTable, match=r"^meta\.null\[1\] (is a|has dtype) .*: give "):
        plain({"null": [0, value]}, "meta")


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(BadTable, match="has the key 3, JSON keys are texts"):
        plain({3: "x"})
