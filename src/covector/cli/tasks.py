"""A task and the prompts that it is asked of, as options name them: shared by all commands that read observables."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from covector.errors import BadRequest

Task = Annotated[
    str, typer.Argument(help="Weighted labels: \"' she' - ' he'\", \"0.5*' nurse' - ' doctor'\", @file.json.")
]
Centred = Annotated[
    bool, typer.Option("--centred", help="Take off the mean weight, so that a common shift is not seen.")
]
Output = Annotated[str | None, typer.Option("--output", help="Which output's labels: token, action … (the first).")]


def observable_of(task: str, model, output: str | None, centred: bool):
    """The observable that the options name."""
    from covector.study.observable import Observable

    found = Observable.parse(task, model, output)
    return found.centred() if centred else found


def continued(
    table,
    template: list[str] | None,
    fill: list[str] | None,
    prompts: Path | None,
    inputs: list[str] | None = None,
    at: str = "end",
):
    """The table with a next command that can be pasted: "the same prompts" become the options that gave them."""
    words = [f"--template {shlex.quote(t)}" for t in template or []] + [f"--fill {shlex.quote(f)}" for f in fill or []]
    words += [f"--prompts {shlex.quote(str(prompts))}"] if prompts else []
    words += [f"--inputs {shlex.quote(text)}" for text in inputs or []]
    words += [f"--at {shlex.quote(at)}"] if inputs and at != "end" else []
    following = table.next
    for told in (" with the same prompts", " with pairs of prompts"):
        following = following.replace(told, " " + " ".join(words))
    return dataclasses.replace(table, next=following)


def check_prompts(
    template: list[str] | None, fill: list[str] | None, prompts: Path | None, inputs: Sequence[str] | None = ()
) -> None:
    """Raise BadRequest where the options name no prompts, whatever the model is; nothing is opened for it.

    `inputs`: what --inputs names, None where it was not given, () where the command has no such option.
    """
    if inputs:
        return
    if (prompts is None) == (not template):
        agent = "; of an agent, which reads no text: --inputs CLEAN.json:CORRUPT.json" if inputs is None else ""
        raise BadRequest(f"expected either --template with --fill, or --prompts FILE{agent}")
    if template and not fill:
        raise BadRequest("--template: expected --fill NAME=a.txt:b.txt (or names with commas) for its slots, got none")


def pairs_of(
    model,
    template: list[str] | None,
    fill: list[str] | None,
    prompts: Path | None,
    bos: str,
    inputs: list[str] | None = None,
):
    """Pairs of prompts, or of an agent's inputs, from the options that name them."""
    from covector.run.inputs_file import read_input_pairs
    from covector.run.prompt_fields import taken
    from covector.run.prompts import fill_template, parse_fill, read_pairs

    if inputs:
        if prompts is not None or template:
            raise BadRequest("--inputs: expected no --template and no --prompts beside it; an agent reads no text")
        return read_input_pairs(model, inputs)
    if (prompts is None) == (not template):
        agent = (
            "" if model.vocabulary is not None else f"; {model.name} reads no text: --inputs CLEAN.json:CORRUPT.json"
        )
        raise BadRequest(f"expected either --template with --fill, or --prompts FILE{agent}")
    if prompts is not None:
        found = read_pairs(model, prompts, bos)
        if told := taken(prompts):
            typer.echo(f"{prompts.name}: {told}", err=True)
        return found
    return fill_template(model, template or [], parse_fill(fill or []), bos)
