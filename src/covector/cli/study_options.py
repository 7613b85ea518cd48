"""The options of studies: how they are typed, which of them a study knows, and what its function is given."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covector.errors import BadRequest

if TYPE_CHECKING:
    from covector.analyses.studies.study import Study

Kinds = Annotated[
    str | None,
    typer.Option("--kinds", "--kind", help="Kinds that count, commas between (width, size; ridge: one): ov."),
]
Cosine = Annotated[
    float | None,
    typer.Option("--cosine", help="Raw cosine that is a find (width): what 5 % reach by chance at the smallest."),
]
Rule = Annotated[
    str | None,
    typer.Option("--rule", help="What is significant (packing): near, the default, coherent or interpretable."),
]
Leading = Annotated[
    int | None,
    typer.Option("--leading", help="First dyads of every site that count (kinds, sides, factorial, frames)."),
]
Draws = Annotated[
    int | None,
    typer.Option("--draws", help="Draws of chance, 20 at least (all but basis, frames, size, width)."),
]
Number = Annotated[
    int | None,
    typer.Option("--number", help="Directions per method (dictionary of an atlas: as many as a head has; index: 64)."),
]
Windows = Annotated[int | None, typer.Option("--windows", help="How many windows of indices (index): 8.")]
Sites = Annotated[str | None, typer.Option("--sites", help="Places, commas between (index): the embeddings.")]
Bases = Annotated[
    str | None,
    typer.Option("--bases", help="Bases that what is read is looked up in, commas between (sides)."),
]
Frames = Annotated[
    str | None,
    typer.Option("--frames", help="Frames, commas between (frames): raw,folded,gauge_fixed."),
]
Path = Annotated[str | None, typer.Option("--path", help="λ, commas between (ridge): 0,.001,.01,.1,1,10,inf.")]
Labels = Annotated[int | None, typer.Option("-k", help="Labels per pole (poles): 10.")]
Rotations = Annotated[int | None, typer.Option("--rotations", help="Random bases of every head (activations): 40.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Seed of what is drawn (all but basis, frames, size, width): 0.")
]

# Keywords of functions that the command line calls otherwise.
CALLED = {"kind": "kinds", "names": "frames", "k": "-k"}
# Keywords that are not typed: with `--without-model` nothing is centred.
UNTYPED = ("centred",)
# Without the model nothing is judged again.
JUDGED_AGAIN = ("draws", "bases", "number")
# Fewer draws leave no p below .05.
FEWEST = 20


def keywords(study: "Study", typed: Mapping[str, Any], atlases: int) -> dict[str, Any]:
    """What a study's function is given by keyword: of the options `typed` (None: left out) those that are its own.

    Raises BadRequest for one that the study does not know, with those that it has, and for what cannot be read.
    """
    own = _own(study, atlases, bool(typed["without_model"]))
    given = _typed(typed)
    wrong = next((name for name in given if name not in (*own, *_of_command(study, atlases))), None)
    if wrong:
        raise BadRequest(_refusal(study, wrong, typed, atlases))
    return {own[name]: _read(name, own[name], value) for name, value in given.items() if name in own}


def refuse_alone(typed: Mapping[str, Any]) -> None:
    """Raise BadRequest for options of studies where no study is named."""
    for name in _typed(typed):
        raise BadRequest(f"study: expected the name of a study with {_flag(name)}; covector study lists them")


def _typed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were not left out; 0 is a value."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _own(study: "Study", atlases: int, without_model: bool) -> dict[str, str]:
    """Options that are keywords of the study's function, with these."""
    said = [p.name for p in signature(study.function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    said = [name for name in said if name not in UNTYPED]
    if study.needs == "toy" and not atlases:
        said = ["seed"]
    if without_model and study.needs == "model":
        said = [name for name in said if name not in JUDGED_AGAIN]
    return {CALLED.get(name, name): name for name in said}


def _of_command(study: "Study", atlases: int) -> list[str]:
    """Options that say what the study is given first."""
    there = {
        "text": study.needs in ("text", "counts"),
        "cache": study.needs == "frames",
        "without_model": not _takes_model(study, atlases),
        "device": study.needs == "text",
    }
    return [name for name, has in there.items() if has]


def _takes_model(study: "Study", atlases: int) -> bool:
    """Whether a study says nothing without a model."""
    if study.needs == "model":
        return signature(study.function).parameters["model"].default is Parameter.empty
    return study.needs in ("sizes", "frames", "counts", "text") or (study.needs == "toy" and atlases > 0)


def _refusal(study: "Study", wrong: str, typed: Mapping[str, Any], atlases: int) -> str:
    """Why an option is refused, in one line."""
    if wrong == "without_model":
        return f"study {study.name}: expected no --without-model, it needs the checkpoint; leave it out"
    if wrong in _own(study, 1, without_model=False):
        if not atlases:
            return (
                f"study {study.name}: expected an atlas with {_flag(wrong)}, toys have none; leave it out, or name one"
            )
        return f"study {study.name}: expected no {_flag(wrong)} with --without-model, nothing is judged; leave one out"
    known = [*_own(study, atlases, bool(typed["without_model"])), *_of_command(study, atlases)]
    has = f"its options are {', '.join(map(_flag, known))}" if known else "it has no options of its own"
    return f"study {study.name}: expected no {_flag(wrong)}; {has}"


def _flag(name: str) -> str:
    return name if name.startswith("-") else f"--{name.replace('_', '-')}"


def _read(option: str, name: str, value: Any) -> Any:
    """The value of one option as functions take it."""
    if option == "draws" and value < FEWEST:
        raise BadRequest(f"--draws: expected {FEWEST} or more, fewer leave no p below .05; got {value}")
    if name not in ("bases", "names", "path"):
        return value
    words = [word.strip() for word in value.split(",") if word.strip()]
    if not words:
        raise BadRequest(f"{_flag(option)}: expected words with commas between, got '{value}'")
    return _numbers(value, words) if name == "path" else words


def _numbers(typed: str, words: list[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if not numbers or not all(number >= 0 for number in numbers):
        raise BadRequest(f"--path: expected λ from 0 to inf with commas between (0,.1,inf), got '{typed[:40]}'")
    return numbers
