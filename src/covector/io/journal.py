"""A journal of long work: one JSON object per line, added as pieces are done, so that what is done survives.

The first line is the request; work is continued only for the same one. A last line that was cut off is dropped.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from covector.errors import BadRequest
from covector.io.atomic import written


class Journal:
    """The lines of `path`; made where there is none. Raises BadRequest where the file is of another request."""

    def __init__(self, path: Path, request: Mapping[str, Any]) -> None:
        self.path, self.request = path, json.loads(json.dumps(request))
        self.lines = self._read() if path.exists() else []
        if not path.exists():
            with written(path) as beside:
                beside.write_text(json.dumps({"request": self.request}, ensure_ascii=False) + "\n", encoding="utf-8")

    def _read(self) -> list[dict[str, Any]]:
        lines = self.path.read_bytes().split(b"\n")
        whole, cut = lines[:-1], lines[-1]
        try:
            found = [json.loads(line) for line in whole]
            before = dict(found[0]["request"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise BadRequest(
                f"{self.path}: expected a journal of roll-outs, it is none ({error}); choose another folder"
            ) from error
        different = [key for key in {*before, *self.request} if before.get(key) != self.request.get(key)]
        if different:
            key = sorted(different)[0]
            raise BadRequest(
                f"{self.path}: holds another request: {key} was {_short(before.get(key))}, now "
                f"{_short(self.request.get(key))}; choose another --out, or ask the same to go on"
            )
        if cut:
            with written(self.path) as beside:
                beside.write_bytes(b"\n".join(whole) + b"\n")
        return found[1:]

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines; all of them reach the disk before this returns."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
