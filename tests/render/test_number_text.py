"""Numbers as text: as many digits as they deserve."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covector.render import number_text


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.4312, 3, "0.431"),
        (0.4, 3, "0.400"),
        (-0.4312, 2, "-0.43"),
        (0.4312, None, "0.431"),
        (123.456, None, "123"),
        (9.996, None, "10.0"),
        (1e-12, None, "1e-12"),
        (3.14e-5, None, "3.14e-5"),
        (0.0, None, "0"),
        (-0.0, 2, "0.00"),
        (2.5e7, None, "2.5e7"),
        (7, None, "7"),
        (7, 3, "7"),
        (np.int64(50257), None, "50257"),
        (True, None, "yes"),
        (None, 3, "–"),
        (math.nan, 3, "–"),
        (math.inf, 3, "∞"),
        (-math.inf, None, "-∞"),
    ],
)
def test_a_number_has_the_digits_it_deserves(value, digits, expected):
    assert number_text(value, digits) == expected


def test_a_number_that_is_not_zero_is_never_printed_as_zero():
    assert number_text(0.0004, 3) == "4e-4"
    assert number_text(-0.002, 2) == "-0.002"
    assert number_text(0.4, 0) == "0.4"


@given(st.floats(-1e300, 1e300))  # beyond, rounding up could leave float64
def test_three_significant_digits_are_within_half_a_unit_of_the_third(value):
    # half a unit of the third digit is at most 0.5 % of the number; 1e-9 for the rounding of the comparison itself
    assert abs(float(number_text(value)) - value) <= 0.005 * abs(value) * (1 + 1e-9) + 5e-324
