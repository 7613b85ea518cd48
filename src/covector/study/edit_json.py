"""The terms of an edit as plain JSON values, and back; numbers are written so that they come back bit by bit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covector.study.edit_terms import Along, Dyads, Replace, Rewrite, Term


def to_list(steps: Sequence[Sequence[Term]]) -> list[list[dict[str, Any]]]:
    """Steps of terms as lists of objects."""
    return [[_object(term) for term in step] for step in steps]


def steps_of(values: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[tuple[Term, ...], ...]:
    """The terms of such lists. Raises ValueError, KeyError, TypeError or BadRequest for anything else."""
    return tuple(tuple(_term(term) for term in step) for step in values)


def _object(term: Term) -> dict[str, Any]:
    made: dict[str, Any] = {"kind": type(term).__name__.lower(), "site": term.site, "side": term.side}
    if isinstance(term, Dyads):
        return made | {"dyads": list(term.indices), "epsilon": list(term.epsilon)}
    made["said"] = term.said
    if isinstance(term, Along):
        return made | {"epsilon": list(term.epsilon), "rows": _listed(term.rows)}
    if isinstance(term, Replace):
        return made | {"dyad": term.index, "row": _listed(term.row)}
    return made | {"reads": _listed(term.reads), "writes": _listed(term.writes)}


def _term(values: Mapping[str, Any]) -> Term:
    kind, site, side = values["kind"], values["site"], values["side"]
    if kind == "dyads":
        return Dyads(site, tuple(map(int, values["dyads"])), tuple(map(float, values["epsilon"])), side)
    said = values["said"]
    if kind == "along":
        return Along(site, tuple(map(float, values["epsilon"])), _array(values["rows"]), said, side)
    if kind == "replace":
        return Replace(site, int(values["dyad"]), _array(values["row"]), said, side)
    if kind == "rewrite":
        return Rewrite(site, np.array(values["reads"]), np.array(values["writes"]), said, side)
    raise ValueError(f"a term of kind {kind!r}, expected dyads, along, replace or rewrite")


def _listed(array: np.ndarray | None) -> list[Any] | None:
    return None if array is None else array.tolist()


def _array(values: list[Any] | None) -> np.ndarray | None:
    return None if values is None else np.array(values, dtype=np.float64)
