"""A process that runs commands one after another for the page's server: requests in, one line a command out.

Each line on standard input is ``{"arguments": [...]}``; the answer on standard output is ``{"code": n, "said": text}``,
with the last line that the command said on standard error (progress, and the one line of a refused request go through
as well). Slow imports happen before the first request comes.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import sys
from typing import TextIO

from covector.cli import progress
from covector.cli.main import run

# Seconds between two lines of progress: a page that is looked at shows more than a log.
PATIENCE = 0.4


class Heard(io.TextIOBase):
    """Standard error that goes through and is remembered by its last line."""

    def __init__(self, through: TextIO) -> None:
        self.through, self.last = through, ""

    def write(self, text: str) -> int:
        """Pass a text on."""
        self.last = next((line for line in reversed(text.splitlines()) if line.strip()), self.last)
        self.through.write(text)
        self.through.flush()
        return len(text)


def main() -> None:
    """Answer requests until standard input ends."""
    progress.PATIENCE = PATIENCE
    if importlib.util.find_spec("torch"):
        importlib.import_module("torch")
    # Answers go where standard output was; whatever else writes there, a library or a child, goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        arguments = json.loads(line)["arguments"]
        heard = Heard(sys.stderr)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(heard):
            code = run(arguments)
        answers.write(json.dumps({"code": code, "said": heard.last}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
