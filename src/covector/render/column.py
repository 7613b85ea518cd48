"""One column of a table: a name, its values, their unit, their precision and what chance alone would give."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from covector.errors import BadTable
from covector.render.labels import label, printable, shown
from covector.render.number import UNDEFINED, Number, number_text
from covector.render.plain import plain, plain_text

# A column in this unit must state its chance level: a cosine alone says nothing (0.2 is much in 768 dimensions, nothing
# in 16, and the best of 50,000 tokens reaches it by luck).
COSINE_UNITS = frozenset({"cos", "cosine"})


@dataclass(frozen=True, eq=False)
class Column:
    """Values under a name, all numbers, all texts, or all lists.

    Numbers are held as a read-only numpy array (NaN: not defined; booleans are numbers), texts as a list of str (None:
    missing), lists as a list of lists of numbers or of texts. `digits` are decimals, None lets each number have three
    significant ones. `chance` is the level chance gives, or the name of the column that holds it row by row.
    Raises BadTable if the values are mixed, not one-dimensional, or a cosine without its chance level.
    """

    name: str
    values: np.ndarray | Sequence
    unit: str = ""
    digits: int | None = None
    about: str = ""
    chance: Number | str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise BadTable("a column needs a name, it came without one")
        if self.unit in COSINE_UNITS and self.chance is None:
            raise BadTable(
                f"column '{self.name}' is a cosine without a chance level: "
                "give chance= the level, or the name of the column that holds it"
            )
        if self.chance is not None and not isinstance(self.chance, str):
            object.__setattr__(self, "chance", float(self.chance))
        object.__setattr__(self, "values", _held(self.name, self.values))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers (and so stand flush right)."""
        return isinstance(self.values, np.ndarray)

    @property
    def numbers(self) -> np.ndarray:
        """The values as a read-only array. Raises BadTable if they are no numbers."""
        if isinstance(self.values, np.ndarray):
            return self.values
        raise BadTable(f"column '{self.name}' holds texts or lists, numbers were asked for")

    @property
    def chance_level(self) -> float | None:
        """The one level that chance gives every row, if there is one."""
        return None if self.chance is None or isinstance(self.chance, str) else float(self.chance)

    @property
    def chance_column(self) -> str | None:
        """The name of the column that holds the chance level of each row, if there is one."""
        return self.chance if isinstance(self.chance, str) else None

    @property
    def is_list(self) -> bool:
        """Whether each value is a list."""
        return not self.is_number and any(isinstance(v, list) for v in self.values)

    def plain_values(self) -> list:
        """The values as plain Python ones; NaN becomes None, infinities stay."""
        if not isinstance(self.values, np.ndarray):
            return [list(v) if isinstance(v, list) else v for v in self.values]
        values = self.values.tolist()
        if self.values.dtype.kind == "f" and np.isnan(self.values).any():
            return [None if math.isnan(v) else v for v in values]
        return values

    def texts(self) -> list[str]:
        """The values as they are printed: numbers with their digits, tokens as `shown`, lists joined by spaces."""
        if isinstance(self.values, np.ndarray):
            return [number_text(v, self.digits) for v in self.values.tolist()]
        return [self._text(v) for v in self.values]

    def _text(self, value: list | str | None) -> str:
        if isinstance(value, list):
            return " ".join(_word(v, self.digits) for v in value)
        return UNDEFINED if value is None else label(value)

    def taken(self, indices: np.ndarray) -> "Column":
        """The same column with the rows `indices`, in that order."""
        if isinstance(self.values, np.ndarray):
            return dataclasses.replace(self, values=self.values[indices])
        return dataclasses.replace(self, values=[self.values[i] for i in indices.tolist()])

    def taken_first(self, n: int) -> "Column":
        """The same column with its first `n` rows."""
        return self.taken(np.arange(min(n, len(self))))

    def header(self) -> str:
        """The line under the name: unit and chance level, where there are any."""
        unit = "" if self.unit == self.name else self.unit
        if self.chance_column:
            return printable(f"{unit} (chance)".strip())
        level = "" if self.chance_level is None else f"chance {number_text(self.chance_level, self.digits)}"
        return printable(", ".join(filter(None, [unit, level])))


def _held(name: str, values: np.ndarray | Sequence) -> np.ndarray | list:
    """The values copied into the form a column holds them in."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf":
        array = values.copy()
        array.setflags(write=False)
        return array
    if isinstance(values, np.ndarray):
        if values.ndim == 0 or values.dtype.kind not in "biufUO":
            raise BadTable(
                f"column '{name}' expects a row of numbers, texts or lists, "
                f"came with dtype {values.dtype} and shape {values.shape}"
            )
        values = values.tolist()
    if isinstance(values, str):
        raise BadTable(f"column '{name}' expects one value per row, came as the single text {values!r}")
    return _held_list(name, list(values))


def _held_list(name: str, values: list) -> np.ndarray | list:
    given = [v for v in values if v is not None]
    if given and all(_is_real(v) for v in given):
        array = np.array([math.nan if v is None else v for v in values])
        array.setflags(write=False)
        if array.dtype.kind in "biuf":  # a Python int beyond 64 bits makes an object array
            return array
    elif all(isinstance(v, str) for v in given):
        return [None if v is None else plain_text(v) for v in values]
    elif all(isinstance(v, list | tuple | np.ndarray) for v in given):
        lists = [None if v is None else plain(v, f"{name}[{i}]") for i, v in enumerate(values)]
        return _checked_lists(name, lists)
    kinds = sorted({type(v).__name__ for v in given})
    raise BadTable(
        f"column '{name}' expects numbers, texts, or lists throughout, came with {', '.join(kinds)}: "
        "use one column for each kind"
    )


def _checked_lists(name: str, lists: list) -> list:
    leaves = [leaf for row in lists if row is not None for leaf in _leaves(row) if leaf is not None]
    if all(isinstance(leaf, str) for leaf in leaves) or all(_is_real(leaf) for leaf in leaves):
        return lists
    raise BadTable(f"column '{name}' mixes numbers and texts inside its lists: use one column for each")


def _leaves(value: list) -> list:
    return [leaf for v in value for leaf in (_leaves(v) if isinstance(v, list) else [v])]


def _word(value: Any, digits: int | None) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_word(v, digits) for v in value) + "]"
    return shown(value) if isinstance(value, str) else number_text(value, digits)


def _is_real(value: object) -> bool:
    return isinstance(value, Real | np.bool_)
