"""A number as text, with as many digits as it deserves and never rounded to a zero it is not."""

import math
from numbers import Integral

import numpy as np

UNDEFINED = "–"  # stands where a number is not defined (NaN) or a text is missing
# Without a stated precision three significant digits are shown: singular values and statistics are read to a per cent.
SIGNIFICANT = 3
_SMALL = 1e-3  # below it leading zeros are harder to count than an exponent is to read
_LARGE = 1e6  # from here on thousands of digits would claim more than a float32 sum can know


Number = float | int | np.floating | np.integer


def number_text(value: Number | None, digits: int | None = None) -> str:
    """The number with `digits` decimals, or with three significant digits if `digits` is None; `–` if undefined.

    A number that is not zero is never printed as zero: 0.0004 with three decimals is `4e-4`. Integers are printed
    whole, booleans as yes and no.
    """
    if value is None:
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return str(int(value))
    value = float(value)
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return f"{0:.{digits or 0}f}"
    if digits is None:
        return _significant(value, SIGNIFICANT)
    if abs(value) >= _LARGE:
        return _power(value, SIGNIFICANT)
    if float(f"{value:.{digits}f}") == 0:
        return _significant(value, 1)
    return f"{value:.{digits}f}"


def _significant(value: float, figures: int) -> str:
    if not _SMALL <= abs(value) < _LARGE:
        return _power(value, figures)
    rounded = float(f"{value:.{figures - 1}e}")  # 9.996 counts as 10.0: the exponent after rounding decides
    decimals = max(figures - 1 - math.floor(math.log10(abs(rounded))), 0)
    return f"{value:.{decimals}f}"


def _power(value: float, figures: int) -> str:
    mantissa, exponent = f"{value:.{figures - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def probability(value: float | None) -> str:
    """A probability in five cells: ``.031``, ``2e-07``, ``–`` where it is not defined."""
    if not value:
        return ("–" if value is None else "0").rjust(5)
    if value >= 0.0995:
        return f"{value:.2f}".lstrip("0").rjust(5) if value < 1 else "1".rjust(5)
    return (f"{value:.3f}".lstrip("0") if value >= 0.001 else f"{value:.0e}").rjust(5)
