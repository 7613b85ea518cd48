"""The questions for what is shown: forms that fit its model, and the words of each in the shell and in Python."""

import shlex
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from covector.errors import CovectorError
from covector.io.agent_file import find_agent
from covector.io.checkpoint import open_checkpoint
from covector.study.agent import Agent
from covector.web.fitting import Fit, fitted, unopened
from covector.web.openings import closed, openings
from covector.web.questions import Question, Subject, find
from covector.web.questions_asked import QUESTIONS
from covector.web.shown import Shown


class Asking:
    """What can be asked of the model that is shown. Used by many threads; its model is opened once, when needed."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self._lock = threading.Lock()

    def forms(self) -> list[dict[str, Any]]:
        """Every question as a form, with examples, or with the reason why this model cannot be asked it."""
        with self._lock:
            fit = self._fit
        return [question.told(fit) for question in QUESTIONS]

    def openings(self) -> dict[str, tuple[str, str]]:
        """What each view of questions can say of this model, and what not."""
        with self._lock:
            fit = self._fit
        if fit.why_not(()):
            return closed()
        return openings(self.shown.model, fit, self._agent())

    def question(self, name: str) -> Question:
        """The question of that name. Raises BadRequest."""
        return find(QUESTIONS, name)

    def words(self, name: str, values: Mapping[str, Any]) -> tuple[str, str]:
        """The command and the Python lines. Raises BadRequest for values that are not what the question takes."""
        question = self.question(name)
        return question.command(self.subject, values), question.in_python(self.subject, values)

    def arguments(self, name: str, values: Mapping[str, Any], folder: Path) -> list[str]:
        """What the worker runs, writing into `folder`. Raises BadRequest."""
        return self.question(name).run_arguments(self.subject, values, folder)

    @cached_property
    def subject(self) -> Subject:
        """How commands and Python name what is shown."""
        shown = self.shown
        if shown.is_model:
            return Subject(shown.words, shown.words, "", shown.in_python)
        reference, _, layout = str(shown.bundle.atlas.manifest["reference"]).partition(" --layout ")
        return Subject(shown.words, "".join(shlex.split(reference)), "".join(shlex.split(layout)), shown.in_python)

    @cached_property
    def _fit(self) -> Fit:
        try:
            return fitted(self.shown.model, self._agent(), atlas=self.shown.atlas)
        except CovectorError as error:
            return unopened(str(error))

    def _agent(self) -> Agent | None:
        try:
            checkpoint = open_checkpoint(self.subject.reference, self.subject.layout or None)
            return find_agent(checkpoint.name, checkpoint.folder)
        except CovectorError:
            return None  # the question itself says what is wrong with the file
