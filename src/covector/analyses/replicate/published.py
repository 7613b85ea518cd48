"""What others have published about singular directions: lists of labels, with or without values, and where they stand.

Lists that come with this package are data files beside this one, each with its source. Others are read from a file: one
of the same form, or the auto-labelled lists of `BerenMillidge/svd_directions` (JSON of layers and directions), which
have no licence and are not in this package.

Source: §3.1–3.4 of the theory page; `docs/replicate.md`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covector.errors import BadRequest

DATA = Path(__file__).parent / "data"
# The lists of `svd_directions` are named after these models: layers, width. XL is published for 26 of its 48 layers.
SIZES = {"small": (12, 768), "medium": (24, 1024), "large": (36, 1280), "xl": (48, 1600)}
_KEY = re.compile(r"(?:layer|direction|singval)_(\d+)")
LABELS = ("plain", "stripped")


@dataclass(frozen=True)
class Entry:
    """One published label: its text (as tokens are written, with its space), its id, its value; None if not told."""

    label: str | None
    id: int | None
    value: float | None


@dataclass(frozen=True)
class PublishedList:
    """The first labels at both poles of a dyad, strongest first; or only the `sizes` of its largest projections."""

    site: str
    dyad: int
    plus: tuple[Entry, ...] = ()
    minus: tuple[Entry, ...] = ()
    sizes: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """``ov``, ``in`` or ``out``."""
        return self.site.rpartition(".")[2]


@dataclass(frozen=True)
class Published:
    """Lists of one source. `shape` is that of the model they were made from, as far as it is known.

    `recipe` is how the source says that it made them, `labels` how its texts are written (``stripped``: without a
    leading space), `within` how many of our labels a published one is looked for among (None: as many as published),
    `tolerance` how far a value may be off.
    """

    name: str
    model: str
    source: str
    shape: Mapping[str, int]
    recipe: Mapping[str, str]
    tolerance: float
    labels: str
    within: int | None
    lists: tuple[PublishedList, ...]


def packaged() -> tuple[Published, ...]:
    """The sources that come with this package, by name."""
    return tuple(read_published(path) for path in sorted(DATA.glob("*.json"), key=_order))


def _order(path: Path) -> tuple[bool, str]:
    return path.stem.startswith("solu"), path.stem


def read_published(path: str | Path) -> Published:
    """The lists in a file: of our form, or of `svd_directions`. Raises BadRequest, saying what was expected."""
    path = Path(path)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"--published: expected a JSON file of lists at '{path}', got: {error}") from error
    if isinstance(told, dict) and "lists" in told:
        return _ours(told, path)
    if isinstance(told, dict) and told and all(_KEY.fullmatch(key) for key in told):
        return _labelled(told, path)
    raise BadRequest(
        f"--published: expected {{'lists': …}} (docs/replicate.md) or {{'layer_0': {{'direction_0': …}}}} in '{path}', "
        "it holds something else"
    )


def _ours(told: Mapping[str, Any], path: Path) -> Published:
    try:
        found = Published(
            name=str(told["name"]),
            model=str(told["model"]),
            source=str(told.get("source", path.name)),
            shape={str(k): int(v) for k, v in told["shape"].items()},
            recipe={str(k): str(v) for k, v in told["recipe"].items()},
            tolerance=float(told.get("tolerance", 0.001)),
            labels=str(told.get("labels", "plain")),
            within=int(told["within"]) if told.get("within") else None,
            lists=tuple(_list(one) for one in told["lists"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRequest(
            f"--published: '{path}' is not of the form that docs/replicate.md describes: {type(error).__name__} {error}"
        ) from error
    if not found.lists or found.labels not in LABELS:
        raise BadRequest(f"--published: expected lists, and labels {' or '.join(LABELS)}, in '{path}'")
    return found


def _list(told: Mapping[str, Any]) -> PublishedList:
    return PublishedList(
        str(told["site"]),
        int(told["dyad"]),
        _entries(told.get("plus", ())),
        _entries(told.get("minus", ())),
        tuple(float(v) for v in told.get("sizes", ())),
    )


def _entries(told: Sequence[Sequence[Any]]) -> tuple[Entry, ...]:
    return tuple(Entry(label, i, None if value is None else float(value)) for label, i, value in told)


def _labelled(told: Mapping[str, Any], path: Path) -> Published:
    """`svd_directions`: 15 labels per list, stripped, of one pole, whichever its SVD gave; ASCII only."""
    kind = next((k for k in ("in", "out") if f"mlp_{k}" in path.name), None)
    size = next((s for s in SIZES if re.search(rf"(?<![a-z]){s}(?![a-z])", path.name)), None)
    if kind is None or size is None:
        raise BadRequest(
            f"--published: expected mlp_in or mlp_out and {', '.join(SIZES)} in the file's name, as published, got "
            f"'{path.name}'; keep its name"
        )
    lists = []
    for layer, directions in told.items():
        for direction, entry in directions.items():
            text = entry.get("test_string", entry.get("test_str")) if isinstance(entry, dict) else None
            if not isinstance(text, str) or not _KEY.fullmatch(direction):
                raise BadRequest(f"--published: expected a test_string under {layer}, {direction} of '{path.name}'")
            entries = tuple(Entry(word, None, None) for word in text.split(", "))
            lists.append(PublishedList(f"L{_number(layer)}.mlp.{kind}", _number(direction), entries))
    n_layers, width = SIZES[size]
    return Published(
        name=path.stem,
        model=f"gpt2-{size}",
        source=f"BerenMillidge/svd_directions, {path.name}",
        shape={"d_model": width, "n_layers": n_layers},
        recipe={
            "frame": "conjecture2022", "side": "write", "basis": "token_out", "score": "raw", "labels": "ascii",
        },
        tolerance=0.0,
        labels="stripped",
        within=None,
        lists=tuple(lists),
    )  # fmt: skip


def _number(key: str) -> int:
    found = _KEY.fullmatch(key)
    assert found is not None
    return int(found[1])
