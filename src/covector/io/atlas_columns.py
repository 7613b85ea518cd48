"""The columns of an atlas: what each of them holds, and between which values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

# Gains and scores beyond this are no result of anything; what is squared or kept in float32 stays finite below it.
LARGEST = 1e30
_MOST_PLACE = 2.0**16 - 1


@dataclass(frozen=True)
class Rule:
    """What a column holds. ``missing``: null and NaN are allowed; ``words``: the only texts; ``high`` NaN: d_model."""

    kind: Literal["text", "integer", "number", "flag"]
    low: float = -LARGEST
    high: float = LARGEST
    missing: bool = False
    is_list: bool = False
    words: tuple[str, ...] = ()

    @property
    def holds(self) -> str:
        """What it holds, in words."""
        one = {"text": "text", "integer": "whole numbers", "number": "numbers", "flag": "true or false"}[self.kind]
        one = " or ".join(self.words) if self.words else one
        return f"lists of {one}" if self.is_list else one

    def bounds(self, d_model: int) -> tuple[float, float]:
        """The least and the largest value in an atlas of that width."""
        return self.low, float(d_model) if math.isnan(self.high) else self.high

    def within(self, d_model: int) -> str:
        """The bounds in words, with a space in front."""
        low, high = self.bounds(d_model)
        return f" from {low:g} to {high:g}"


_TEXT, _FLAG = Rule("text"), Rule("flag")
_PLACE = Rule("integer", 0.0, _MOST_PLACE, missing=True)
_DYAD = Rule("integer", 0.0, math.nan)
_SCORE, _CHANCE = Rule("number", missing=True), Rule("number", 0.0, 1.0, missing=True)
_COSINE = Rule("number", -1.001, 1.001, missing=True)
_GAIN = Rule("number", 0.0)
_SIZE = Rule("integer", 1.0, 2.0**24)
# Lists of the two poles, of one length in a row.
LISTS = ("top", "top_id", "top_cos", "bottom", "bottom_id", "bottom_cos")
# Every atlas has them; the others are there where token lists were judged.
ALWAYS = (
    "site", "layer", "head", "kind", "side", "dyad", "sigma", "gap", "turn", "noisy", "sign_margin", "cos", "p_dir",
    "p_svd", "block_first", "block_last", "basis", "zeta", "p_cov", "label", *LISTS, "q_dir", "q_svd",
)  # fmt: skip
# Scores of lists, each with its p, z and q against every null.
SCORED = ("coherence", "heldout", "intruder", "lexical")

INDEX_RULES: Mapping[str, Rule] = {
    "site": _TEXT, "kind": _TEXT, "basis": _TEXT, "label": _TEXT,
    "side": Rule("text", words=("read", "write", "query", "key")),
    "layer": _PLACE, "head": _PLACE, "dyad": _DYAD, "block_first": _DYAD, "block_last": _DYAD,
    "sigma": _GAIN, "cos": _COSINE,
    **dict.fromkeys(("noisy", "interpretable", "svd_specific", "aligned"), _FLAG),
    **dict.fromkeys(
        ("gap", "turn", "sign_margin", "zeta", "score_pole", *SCORED, "heldout_low", "heldout_high", "whole", "carried",
         "stability", *(f"z_{score}{null}" for score in SCORED for null in ("", "_svd"))), _SCORE,
    ),
    **dict.fromkeys(
        ("p_dir", "p_svd", "p_cov", "p_whole", "q_dir", "q_svd", "q_whole",
         *(f"p_{score}{null}" for score in SCORED for null in ("", "_cov", "_svd", "_pooled")),
         *(f"q_{score}{null}" for score in SCORED for null in ("", "_cov", "_svd"))), _CHANCE,
    ),
    **dict.fromkeys(("top", "bottom"), Rule("text", is_list=True)),
    **dict.fromkeys(("top_id", "bottom_id"), Rule("integer", 0.0, 2.0**31, is_list=True)),
    **dict.fromkeys(("top_cos", "bottom_cos"), Rule("number", -1.001, 1.001, is_list=True)),
}  # fmt: skip
SITE_RULES: Mapping[str, Rule] = {
    "site": _TEXT, "kind": _TEXT, "layer": _PLACE, "head": _PLACE, "n": _SIZE, "m": _SIZE,
    "inner": Rule("integer", 1.0, 2.0**24, missing=True), "noise": Rule("number", 0.0, missing=True),
    "sigma": Rule("number", is_list=True),
}  # fmt: skip
# Of a place, what readers always take; sizes only where spectra are compared.
PLACED = ("site", "layer", "head", "kind", "sigma")


def fits(given: pa.DataType, rule: Rule) -> bool:
    """Whether a column of that type can be read by a rule; one that is missing throughout has no type."""
    if rule.is_list:
        if not (pa.types.is_list(given) or pa.types.is_large_list(given)):
            return False
        given = given.value_type
    if rule.missing and pa.types.is_null(given):
        return True
    if rule.kind == "text":
        return pa.types.is_string(given) or pa.types.is_large_string(given)
    if rule.kind == "flag":
        return pa.types.is_boolean(given)
    if rule.kind == "integer":
        return pa.types.is_integer(given)
    return pa.types.is_integer(given) or pa.types.is_floating(given)
