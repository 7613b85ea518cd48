"""What an atlas records of the checkpoint it was made from: words that open it from any folder, and what it is.

The words are for whoever opens the checkpoint again; whether two requests are of one checkpoint is asked of its
content: the same one may be spelled in another way, or lie elsewhere.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covector.arch.toy import TOYS
from covector.io.checkpoint import BUNDLED
from covector.model.change import CHANGED_TO

LAYOUT = " --layout "
# Of a model's meta: how somebody came to it. What it is stays.
_NAMES = ("model", "folder")


def anywhere(ref: str | Path) -> str:
    """The name of a model as somebody in another folder would type it."""
    folder = Path(ref).expanduser()
    bundled = str(ref) in BUNDLED or str(ref) in TOYS
    return str(folder.absolute()) if folder.is_dir() and not bundled else str(ref)


def reference(words: str) -> str:
    """Words that open a model (`Model.words`), folders and layouts by their absolute paths."""
    return CHANGED_TO.join(_absolute(side) for side in words.split(CHANGED_TO))


def _absolute(words: str) -> str:
    ref, option, layout = words.partition(LAYOUT)
    found = shlex.quote(anywhere(_unquoted(ref)))
    if not option:
        return found
    return found + option + shlex.quote(str(Path(_unquoted(layout)).expanduser().absolute()))


def _unquoted(words: str) -> str:
    return "".join(shlex.split(words))


def nameless(meta: Any) -> Any:
    """A model's meta, or a part of it, without names and places; nested mappings too."""
    if not isinstance(meta, Mapping):
        return meta
    return {key: nameless(value) for key, value in meta.items() if key not in _NAMES}
