"""What the faces need of a table: its columns and its words.

The terminal, HTML and file modules take a `Sheet`, so that they need not know `Table`, which calls them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from covector.render.column import Column


@runtime_checkable
class Sheet(Protocol):
    """Columns of equal length, where they come from (`meta`), and the words around them."""

    @property
    def columns(self) -> Sequence[Column]:
        """The columns, left to right."""
        ...

    @property
    def meta(self) -> Mapping:
        """Provenance as plain JSON values."""
        ...

    @property
    def title(self) -> str:
        """One line over the table."""
        ...

    @property
    def says(self) -> str:
        """The sentence that says what the table shows."""
        ...

    @property
    def not_says(self) -> str:
        """The sentence that says what it does not show."""
        ...

    @property
    def next(self) -> str:
        """The command worth typing next."""
        ...

    @property
    def lines(self) -> Callable | None:
        """How a row is printed in a terminal; None for the aligned grid."""
        ...

    @property
    def key(self) -> Sequence[str]:
        """The columns that name a row."""
        ...


def row_dicts(columns: Sequence[Column]) -> list[dict]:
    """One dict per row, plain Python values, None where a number is not defined."""
    names = [c.name for c in columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.plain_values() for c in columns), strict=True)]
