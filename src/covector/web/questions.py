"""The questions that the page can ask: each is a command of `covector` with its fields, translated both ways.

The page builds its forms from this list, the server runs the command and nothing else, and both show the words to type.
A value can not become an option (``--flag=value``) nor name a file (no ``@file``): texts are written into the job's
own folder.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from covector.errors import BadRequest

Kind = Literal["text", "lines", "number", "choice", "flag", "document"]
LONGEST = 20_000


@dataclass(frozen=True)
class Field:
    """One thing to fill in.

    `flag`: the option (``--observe``), or empty for a word of its own. ``lines``: several values, one a line; as
    words of their own, or the option again for each. ``document``: a text, given to the command as a file.
    """

    name: str
    label: str
    kind: Kind = "text"
    flag: str = ""
    default: str = ""
    about: str = ""
    choices: tuple[str, ...] = ()
    needed: bool = False


@dataclass(frozen=True)
class Question:
    """A command as a form. `view` is the page it stands on; `python` the same in Python, with {model} and {field}."""

    name: str
    view: str
    title: str
    about: str
    words: tuple[str, ...]
    fields: tuple[Field, ...]
    python: str
    films: bool = False

    def told(self) -> dict[str, Any]:
        """The form, as the page takes it."""
        names = ("name", "view", "title", "about")
        return {n: getattr(self, n) for n in names} | {"fields": [asdict(f) for f in self.fields]}

    def run_arguments(self, model: str, values: Mapping[str, Any], folder: Path) -> list[str]:
        """The words after ``covector`` that write every result into `folder`."""
        film = [f"--record={folder / 'film.gif'}"] if self.films and values.get("film") in (True, "true", "yes") else []
        words = self.arguments(model, values, folder)
        at = words.index("--")
        return [*words[:at], f"--out={folder}", *film, *words[at:]]

    def arguments(self, model: str, values: Mapping[str, Any], folder: Path | None = None) -> list[str]:
        """The words after ``covector``, for `values` by field name. Documents are written into `folder`.

        Without a folder the words to show a person: documents as file names to save them under.
        Raises BadRequest for an unknown field, one of another kind, and one that is needed and missing.
        """
        known = {f.name for f in self.fields}
        unknown = [str(n) for n in values if n not in known]
        if unknown:
            raise BadRequest(f"{self.name}: expected the fields {', '.join(sorted(known))}, got '{unknown[0][:40]}'")
        own: list[str] = []
        options: list[str] = []
        for field in (f for f in self.fields if f.name != "film"):
            given = _given(self.name, field, values.get(field.name, field.default), folder)
            if field.flag:
                is_flag = field.kind == "flag"
                options += [field.flag if is_flag else f"{field.flag}={v}" for v in given]
            else:
                own += given
        return [*self.words, *options, "--", model, *own]

    def command(self, model: str, values: Mapping[str, Any]) -> str:
        """The command as a person types it."""
        words = [w for w in self.arguments(model, values) if w != "--"]
        at = len(self.words)
        options = [w for w in words[at:] if w.startswith("--")]
        own = [w for w in words[at:] if not w.startswith("--")]
        return "covector " + " ".join([*self.words, *map(_typed, own), *map(_typed, options)])

    def in_python(self, model: str, values: Mapping[str, Any]) -> str:
        """The same in Python; `model` is the expression that opens it."""
        filled = {f.name: _literal(f, values.get(f.name, f.default)) for f in self.fields}
        return self.python.format(model=model, **filled)


def _given(question: str, field: Field, value: Any, folder: Path | None) -> list[str]:
    """The values of one field as words. Raises BadRequest where it is not of its kind."""
    where = f"{question}: {field.label}"
    if field.kind == "flag":
        return [field.flag] if value in (True, "true", "yes") else []
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise BadRequest(f"{where}: expected a text or a number, got {type(value).__name__}")
    text = str(value)
    if len(text) > LONGEST or "\0" in text:
        raise BadRequest(f"{where}: expected at most {LONGEST} characters of text, got {len(text)}")
    if not text.strip():
        if field.needed:
            raise BadRequest(f"{where}: expected a value, got none; {field.about or 'fill it in'}")
        return []
    if field.kind == "document":
        if folder is None:
            return [f"{field.name}.txt"]
        path = folder / f"{field.name}.txt"
        path.write_text(text, encoding="utf-8")
        return [str(path)]
    if field.kind == "number" and not _is_number(text):
        raise BadRequest(f"{where}: expected a number, got '{text[:40]}'")
    if field.kind == "choice" and text not in field.choices:
        raise BadRequest(f"{where}: expected one of {', '.join(field.choices)}, got '{text[:40]}'")
    lines = [line for line in text.splitlines() if line.strip()] if field.kind == "lines" else [text]
    for line in lines:
        if line.lstrip().startswith("@") or "=@" in line:
            raise BadRequest(f"{where}: expected what is meant itself, got a file ('{line[:40]}'); type the command")
    return lines


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _typed(word: str) -> str:
    """One word of a shell line, in double quotes where that reads better."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if shlex.quote(value) == value:
        quoted = value
    elif not set(value) & set('"$`\\!'):
        quoted = f'"{value}"'
    else:
        quoted = shlex.quote(value)
    return f"{flag} {quoted}" if equals else (flag or quoted)


def _literal(field: Field, value: Any) -> str:
    if field.kind == "lines":
        return repr([line for line in str(value).splitlines() if line.strip()])
    if field.kind == "number":
        return str(value)
    if field.kind == "document":
        return f"open('{field.name}.txt').read()"
    return repr(value)


def find(questions: Sequence[Question], name: str) -> Question:
    """The question of that name. Raises BadRequest, listing them."""
    for question in questions:
        if question.name == name:
            return question
    raise BadRequest(f"expected a question ({', '.join(q.name for q in questions)}), got '{name[:40]}'")
