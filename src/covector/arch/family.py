"""One layout family: which configs it reads, the anatomy they describe, and its tensors declared in words.

A family is a file in this folder with a module-level ``FAMILY``. It is found by listing the folder; nothing else is
registered anywhere.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from covector.arch.config import Config
from covector.errors import UnsupportedFamily
from covector.model.spec import ModelSpec
from covector.model.weights import Weights


@dataclass(frozen=True)
class Family:
    """How one family of checkpoints is read.

    ``tensors(config)`` maps stored names (``{i}`` stands for the layer, ``a | b`` for either name) to layouts in
    words; ``prefixes`` are what may stand before every name or be missing; ``ignored`` are regular expressions of
    names that carry no weight.
    ``hf_class`` is the transformers class that judges the loader. ``notes(weights)`` are facts about one checkpoint
    that every result of it should record.
    """

    name: str
    model_types: tuple[str, ...]
    spec: Callable[[Config], ModelSpec]
    tensors: Callable[[Config], Mapping[str, str]]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    hf_class: str = ""
    tiny: Callable[[], Mapping[str, Any]] = dict
    notes: Callable[[Weights], Mapping[str, Any]] | None = None


@cache
def _file_names() -> tuple[str, ...]:
    return tuple(info.name for info in pkgutil.iter_modules(importlib.import_module("covector.arch").__path__))


def _family_in(name: str) -> Family | None:
    found = getattr(importlib.import_module(f"covector.arch.{name}"), "FAMILY", None)
    return found if isinstance(found, Family) else None


@cache
def families() -> dict[str, Family]:
    """Every family by name, found by listing this folder."""
    return {family.name: family for family in map(_family_in, _file_names()) if family}


def family_of(model_type: str, where: str) -> Family:
    """The family that reads `model_type`; UnsupportedFamily, listing what is supported, when none does."""
    # Most families are called as their model_type: then the other files need not be read.
    if model_type in _file_names():
        own = _family_in(model_type)
        if own and model_type in own.model_types:
            return own
    for family in families().values():
        if model_type in family.model_types:
            return family
    known = sorted(t for f in families().values() for t in f.model_types)
    raise UnsupportedFamily(
        f"{where}: expected a supported model_type, got '{model_type}'; supported: {', '.join(known)}. "
        "A home-made transformer opens with a layout.toml beside its weights or --layout FILE; see docs/layouts.md"
    )
