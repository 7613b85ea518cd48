"""What the experiments of observable propagation were run on: tasks, prompts, names, published numbers; stand-ins.

Data files in ``obprop_data``: ``tasks.json`` and ``published.json`` (one line per number, with its cell). Where the
weights are absent, `stand_in` makes a random checkpoint of the same anatomy, scaled down, that reads the same prompts.

Source: §2 of the theory page; Dunefsky & Cohan 2024 (arXiv 2312.16291) and the notebooks of its repository.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from covector.arch.config import Config
from covector.arch.family import family_of
from covector.arch.toy import random_weights
from covector.errors import BadRequest, NotOneToken
from covector.model.opened import Model

DATA = Path(__file__).parent / "obprop_data"
# Name of the stand-in for absent weights.
RANDOM = "random"
# Words, and what stands between them, as the published tokenizer splits these prompts (names are one token there).
_PIECES = re.compile(r"<\|endoftext\|>|\)\{|\):| #| //|'\w+| ?\w+| ?[^\w\s]|\s")


@cache
def tasks() -> Mapping[str, Any]:
    """Observables, templates, names, and the shape of the published model."""
    return json.loads((DATA / "tasks.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Published:
    """One published number: what it is, where it stands, how far ours may be off, and what to measure."""

    section: str
    kind: str
    what: str
    value: float
    source: str
    tolerance: tuple[str, float] | None
    defects: tuple[str, ...]
    note: str
    args: Mapping[str, Any]

    def agrees(self, ours: float) -> bool:
        """Whether a number of ours is within the tolerance."""
        if self.tolerance is None:
            return False
        kind, size = self.tolerance
        return abs(ours - self.value) <= size * (abs(self.value) if kind == "rel" else 1.0)


def published() -> tuple[Published, ...]:
    """Every number of §2.2 to §2.10, in order."""
    told = json.loads((DATA / "published.json").read_text(encoding="utf-8"))
    return tuple(
        Published(
            t["section"], t["kind"], t["what"], float(t["published"]), t["source"],
            None if t["tolerance"] is None else (t["tolerance"][0], float(t["tolerance"][1])),
            tuple(t.get("defects", ())), t.get("note", ""), t["args"],
        )
        for t in told
    )  # fmt: skip


@dataclass(frozen=True)
class Names:
    """Female and male names, as many of one as of the other; pair i is entry i of both."""

    female: tuple[str, ...]
    male: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.female)


def own_names() -> Names:
    """The ten and ten published ones."""
    return Names(tuple(tasks()["female"]), tuple(tasks()["male"]))


def read_gendered(path: Path) -> Names:
    """Names of a text file, ``Mary,F`` a line (comma, tab or space; more columns are ignored), cut to equal numbers.

    So the "Gender by Name" table of the UCI repository can be given as it is. Raises BadRequest.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(
            f"--names: expected a UTF-8 file of names at '{path}', got: {error}; check the path"
        ) from error
    found: dict[str, list[str]] = {"F": [], "M": []}
    for line in lines:
        cells = re.split(r"[,\t ]+", line.strip())
        if len(cells) > 1 and cells[1].upper() in found:
            found[cells[1].upper()].append(cells[0])
    n = min(map(len, found.values()))
    if n < 2:
        raise BadRequest(f"--names: expected lines such as 'Mary,F' and 'John,M', at least two of each, in '{path}'")
    return Names(tuple(found["F"][:n]), tuple(found["M"][:n]))


@dataclass(frozen=True)
class PromptWords:
    """Reads the prompts of these experiments word by word; other words have no token."""

    labels: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return [self.one(piece) for piece in _PIECES.findall(text)]

    def one(self, text: str) -> int:
        """Id of one piece; NotOneToken for a piece that no prompt has."""
        try:
            return self.labels.index(text)
        except ValueError:
            raise NotOneToken(f"expected a word of the published prompts, got {text!r}") from None


def stand_in(divide: int = 16, names: Names | None = None, seed: int = 0) -> Model:
    """A random checkpoint with the published layers, heads, windows and norms; every width is divided by `divide`.

    1 is the full size: 1.3 billion parameters, 11 GB while they are drawn. 16 is 128 wide, 8 per head. Raises
    BadRequest for a divisor that leaves nothing of a head.
    """
    given = dict(tasks()["config"])
    heads = given["num_heads"]
    if divide < 1 or given["hidden_size"] % (heads * divide):
        raise BadRequest(f"--size: expected a divisor of {given['hidden_size'] // heads}, got {divide}; 16 is quick")
    labels = _words(names or own_names())
    for key in ("hidden_size", "intermediate_size", "vocab_size"):
        given[key] = given[key] // divide
    given["vocab_size"] = max(given["vocab_size"], len(labels))
    given["max_position_embeddings"] = 256
    spec = family_of(given["model_type"], "the published shape").spec(Config(given))
    weights = random_weights(spec, seed=seed)
    labels += tuple(f" word{i}" for i in range(given["vocab_size"] - len(labels)))
    return Model(RANDOM, weights, weights, labels={"token": labels}, vocabulary=PromptWords(labels))


def _words(names: Names) -> tuple[str, ...]:
    told = tasks()
    texts = ["<|endoftext|>", *(t for some in told["templates"].values() for t in some), told["linearised_at"]["obj"]]
    texts += [p.args["prompt"] for p in published() if p.kind == "logit"]
    texts += [f" {n}" for n in (*names.female, *names.male, *told["linearised_at"]["obj_names"])]
    texts += re.findall(r"'([^']+)'", " ".join(told["observables"].values()))
    return tuple(
        dict.fromkeys(piece for text in texts for piece in _PIECES.findall(text.replace("[NAME]", names.female[0])))
    )


def same_shape(model: Model) -> bool:
    """Whether a model has the published sizes, so that values can be compared."""
    told, spec = tasks()["config"], model.spec
    attn = spec.blocks[0].attn if spec.blocks else None
    sizes = (spec.d_model, spec.n_layers, attn.n_heads if attn else 0, spec.n_vocab)
    return sizes == tuple(told[k] for k in ("hidden_size", "num_layers", "num_heads", "vocab_size"))


def same_heads(model: Model) -> bool:
    """Whether a model has as many layers and heads, each with an MLP behind it, so that all places exist."""
    told, spec = tasks()["config"], model.spec
    every = all(b.attn and b.mlp and b.attn.n_heads == told["num_heads"] for b in spec.blocks)
    return spec.n_layers == told["num_layers"] and every


def steps_of(path: str) -> list[tuple[int, int | None, int | None]]:
    """(layer, head or None for an MLP, position) from the output backwards: ``13.11@5<=9.1@3<=mlp1@3``."""
    found = []
    for step in path.split("<="):
        name, _, at = step.partition("@")
        layer, head = (name[3:], None) if name.startswith("mlp") else name.split(".")
        found.append((int(layer), None if head is None else int(head), int(at) if at else None))
    return found


DEFECTS = {
    "B1": "LayerNorms swapped: attention uses the MLP's, the MLP attention's",
    "B2": "the final gain is applied behind the head instead of before it",
    "B3": "features of heads in layers 13, 15, 17 are read on the stream of layer 6",
    "B4": "the feature of layer 6 is read on the stream before the MLP of layer 1",
}


def defects_of(given: Sequence[str]) -> frozenset[str]:
    """The defects that these words name; ``all``, or B1 … B4. Raises BadRequest for another."""
    words = {w.strip() for text in given for w in text.split(",") if w.strip()}
    unknown = words - DEFECTS.keys() - {"all"}
    if unknown:
        raise BadRequest(
            f"--as-published: expected all or some of {', '.join(DEFECTS)}, got {', '.join(sorted(unknown))}"
        )
    return frozenset(DEFECTS) if "all" in words else frozenset(words)
