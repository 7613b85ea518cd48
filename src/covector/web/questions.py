"""The questions that the page can ask: each is a command of `covector` with its fields, translated both ways.

The page builds its forms from this list, the server runs the command and nothing else, and both show the words to type.
A value can not become an option (``--flag=value``) nor name a file (no ``@file``): texts are written into the job's
own folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from covector.errors import BadRequest
from covector.web.fitting import Fit, Need
from covector.web.words import typed

Kind = Literal["text", "lines", "number", "numbers", "choice", "flag", "document"]
# What Python is given of the fields: by name, as literals; ``more`` the keywords that were filled in.
Literals = Mapping[str, str]
LONGEST = 20_000
YES = (True, "true", "yes")


@dataclass(frozen=True)
class Field:
    """One thing to fill in.

    `flag`: the option (``--observe``), or empty for a word of its own. `keyword`: the parameter in Python, where it is
    given. ``lines``: several values, one a line; as words of their own, or the option again for each. ``numbers``:
    with commas. ``document``: a text, given to the command as a file.
    """

    name: str
    label: str
    kind: Kind = "text"
    flag: str = ""
    default: str = ""
    about: str = ""
    choices: tuple[str, ...] = ()
    needed: bool = False
    keyword: str = ""


@dataclass(frozen=True)
class Subject:
    """What is asked about, as it is named. `words`: an atlas folder or a model, as it was typed.

    `reference` and `layout` are the checkpoint, for commands that open it in processes of their own; `python` is the
    expression that opens the model.
    """

    words: str
    reference: str
    layout: str
    python: str


@dataclass(frozen=True)
class Question:
    """A command as a form.

    `view` is the page it stands on; `python` the same in Python, of the fields as literals, where ``model`` is the
    opened model. `needs`: what a model must have for it. `beside`: a question that is run with the same values first.
    ``from_checkpoint``: the command takes no atlas.
    """

    name: str
    view: str
    title: str
    about: str
    words: tuple[str, ...]
    fields: tuple[Field, ...]
    python: Callable[[Literals], str]
    needs: tuple[Need, ...] = ()
    films: bool = False
    beside: str = ""
    from_checkpoint: bool = False

    def told(self, fit: Fit) -> dict[str, Any]:
        """The form, as the page takes it, with what fits the model: examples, offers, or why it cannot be asked."""
        names = ("name", "view", "title", "about", "beside")
        fields = [
            asdict(f) | {"default": fit.values.get(f.name, f.default), "offers": list(fit.offers.get(f.name, ()))}
            for f in self.fields
        ]
        return {n: getattr(self, n) for n in names} | {"fields": fields, "refused": fit.why_not(self.needs)}

    def run_arguments(self, subject: Subject, values: Mapping[str, Any], folder: Path) -> list[str]:
        """The words after ``covector`` that write every result into `folder`."""
        film = [f"--record={folder / 'film.gif'}"] if self._records(values) else []
        words = self.arguments(subject, values, folder)
        at = words.index("--")
        return [*words[:at], f"--out={folder}", *film, *words[at:]]

    def arguments(self, subject: Subject, values: Mapping[str, Any], folder: Path | None = None) -> list[str]:
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
        for field in self.fields:
            given = _given(self.name, field, values.get(field.name, field.default), folder)
            if field.kind == "flag":
                options += given if field.name != "film" else []
            elif field.flag:
                options += [f"{field.flag}={v}" for v in given]
            else:
                own += given
        named = subject.reference if self.from_checkpoint else subject.words
        if self.from_checkpoint and subject.layout:
            options.append(f"--layout={subject.layout}")
        return [*self.words, *options, "--", named, *own]

    def command(self, subject: Subject, values: Mapping[str, Any]) -> str:
        """The command as a person types it."""
        words = self.arguments(subject, values)
        at = words.index("--")
        named = [w for w in self.words if not w.startswith("--")]
        options = [*words[len(named) : at], *(["--record=film.gif"] if self._records(values) else [])]
        return "covector " + " ".join([*named, *map(typed, words[at + 1 :]), *map(_option, options)])

    def in_python(self, subject: Subject, values: Mapping[str, Any]) -> str:
        """The same in Python, whose last line is the table."""
        literals, more = {"reference": repr(subject.reference)}, ""
        for field in self.fields:
            value = values.get(field.name, field.default)
            literals[field.name] = _literal(field, value)
            if field.keyword and (value in YES if field.kind == "flag" else str(value).strip()):
                more += f", {field.keyword}={literals[field.name]}"
        literals |= {"more": more, "layout": f", layout={subject.layout!r}" if subject.layout else ""}
        opened = "" if self.from_checkpoint else f"model = {subject.python}\n"
        path = "import pathlib\n" if "pathlib.Path(" in more else ""
        return f"{path}import covector\n{opened}{self.python(literals)}"

    def _records(self, values: Mapping[str, Any]) -> bool:
        return self.films and values.get("film") in YES


def _given(question: str, field: Field, value: Any, folder: Path | None) -> list[str]:
    """The values of one field as words. Raises BadRequest where it is not of its kind."""
    where = f"{question}: {field.label}"
    if field.kind == "flag":
        if value not in (*YES, False, "false", "no", ""):
            raise BadRequest(f"{where}: expected yes or no, got '{str(value)[:40]}'")
        return [field.flag] if value in YES else []
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise BadRequest(f"{where}: expected a text or a number, got {type(value).__name__}")
    text = str(value)
    if len(text) > LONGEST or "\0" in text:
        raise BadRequest(f"{where}: expected at most {LONGEST} characters of text, got {len(text)}")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise BadRequest(f"{where}: expected text, got half of a character (a lone surrogate); type it again")
    if not text.strip():
        if field.needed:
            raise BadRequest(f"{where}: expected a value, got none; {field.about or 'fill it in'}")
        return []
    if field.kind == "document":
        return [_document(field, text, folder)]
    if field.kind in ("number", "numbers") and not all(map(_is_number, _parts(field, text))):
        plural = "a number" if field.kind == "number" else "numbers with commas"
        raise BadRequest(f"{where}: expected {plural}, got '{text[:40]}'")
    if field.kind == "choice" and text not in field.choices:
        raise BadRequest(f"{where}: expected one of {', '.join(field.choices)}, got '{text[:40]}'")
    lines = text.split("\n") if field.kind == "lines" else [text]
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    for line in lines:
        _check(where, field, line)
    return lines


def _check(where: str, field: Field, line: str) -> None:
    """Raise BadRequest for a line that a command would take for a file, or that no shell line holds."""
    if any(ord(c) < 32 and c != "\t" for c in line):
        raise BadRequest(f"{where}: expected one line without control characters, got {line[:40]!r}")
    named = line.partition("=")[2]  # --arm NAME='@edit.json', --fill NAME=names.txt:other.txt
    is_file = line.lstrip().startswith("@") or named.strip(" '\"").startswith("@")
    if field.name == "fill":
        is_file = is_file or any(_may_be_file(side.strip()) for side in named.split(":"))
    if field.name == "map":
        is_file = is_file or line.strip().endswith(".safetensors")
    if is_file:
        raise BadRequest(f"{where}: expected what is meant itself, got a file ('{line[:40]}'); type the command")


def _may_be_file(text: str) -> bool:
    """Whether a list of names would be opened: it ends as a text file does, names a folder, or lies there."""
    if "/" in text or "\\" in text or text.startswith("~") or text.endswith(".txt"):
        return True
    try:
        return bool(text) and Path(text).exists()
    except OSError:  # too long a name for a file
        return False


def _document(field: Field, text: str, folder: Path | None) -> str:
    if folder is None:
        return f"{field.name}.txt"
    path = folder / f"{field.name}.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _parts(field: Field, text: str) -> list[str]:
    return [text] if field.kind == "number" else text.split(",")


def _is_number(text: str) -> bool:
    try:
        return float(text) - float(text) == 0
    except ValueError:
        return False


def _number(text: str) -> str:
    value = float(text)
    return repr(int(value)) if value == int(value) and "." not in text and "e" not in text.lower() else repr(value)


def _option(word: str) -> str:
    flag, equals, value = word.partition("=")
    # A value that begins with a minus sign must stay joined, or it would be read as an option.
    joint = "=" if value.startswith("-") else " "
    return f"{flag}{joint}{typed(value)}" if equals else flag


def _literal(field: Field, value: Any) -> str:
    text = str(value)
    if field.kind == "lines":
        return repr([line.rstrip("\r") for line in text.split("\n") if line.strip()])
    if field.kind == "number":
        return _number(text) if text.strip() else "None"
    if field.kind == "numbers":
        return f"[{', '.join(repr(float(part)) for part in text.split(',') if part.strip())}]"
    if field.kind == "document":
        return f"pathlib.Path('{field.name}.txt').read_text(encoding='utf-8')"
    return repr(value in YES) if field.kind == "flag" else repr(text)


def find(questions: Sequence[Question], name: str) -> Question:
    """The question of that name. Raises BadRequest, listing them."""
    for question in questions:
        if question.name == name:
            return question
    raise BadRequest(f"expected a question ({', '.join(q.name for q in questions)}), got '{name[:40]}'")
