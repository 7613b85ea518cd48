"""The explorer as one file: the built page and the data of an atlas, to be sent, opened from disk, and printed.

The page's script and style stand inside, the data in blocks of gzip and base64 that no browser runs. The content
security policy lets run what has the digests that were written with it, and nothing be loaded: a report whose script
was changed shows nothing. The same request gives the same bytes.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covector.analyses.compare_atlases import compare_atlases
from covector.io.atlas import MANIFEST
from covector.web.assets import assets
from covector.web.beside import all_beside
from covector.web.bundle import PARTS, Bundle, table_data
from covector.web.openings import kept as kept_openings
from covector.web.stored import stored
from covector.web.words import names, typed

# Film players are given data addresses alone, like images.
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data: blob:; media-src data:; "
    "base-uri 'none'; form-action 'none'"
)
# Signs that end a script, or let a later one not end it, wherever they stand; in strings, templates and regular
# expressions, where alone a built script has them, \x3C is the same sign.
_ENDS_SCRIPT = re.compile(r"<(?=!--|/?script)", re.IGNORECASE)
_ENDS_STYLE = re.compile(r"</(?=style)", re.IGNORECASE)


@dataclass(frozen=True)
class Report:
    """The file, and how many bytes of it each block takes."""

    content: bytes
    sizes: Mapping[str, int]


def report(bundle: Bundle, shown: str, *, other: Bundle | None = None, results: Sequence[Path] = ()) -> Report:
    """The report of an atlas.

    `shown`: how a command names it; `other`: a second atlas to compare with; `results`: folders that ``--out`` wrote.
    Raises BadRequest for a folder without results or an atlas of another space, NoPage where the page is missing.
    """
    blocks = dict(_blocks(bundle, shown, other, stored(results)))
    packed = {name: _packed(content) for name, content in blocks.items()}
    page, sizes = _page(_name(bundle.part("overview")["meta"]["model"]), packed)
    return Report(page, sizes | {name: len(text) for name, text in packed.items()})


def _name(text: str) -> str:
    """The last part of a path: who gets a report is not told the sender's folders. A hub's name stays whole."""
    return Path(text).name if Path(text).is_absolute() or text.startswith((".", "~")) else text


def _overview(bundle: Bundle, shown: str) -> dict[str, Any]:
    """The overview, with names for paths; a model by name is named as if its atlas were built beside the report."""
    told, manifest = bundle.part("overview"), bundle.atlas.manifest
    reference = " --layout ".join(_name(part) for part in str(manifest["reference"]).split(" --layout "))
    folder = _name(shown) if (Path(shown) / MANIFEST).is_file() else f"{Path(shown).name}.atlas"
    words = names(_name(shown), folder, {**manifest, "reference": reference})
    meta = {**told["meta"], "model": _name(told["meta"]["model"])}
    meta = {k: v for k, v in meta.items() if k != "layout"}
    return {**told, "meta": meta, "reference": reference, "shown": _name(shown), "words": words}


def _blocks(
    bundle: Bundle, shown: str, other: Bundle | None, kept: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every block, as `frontend/src/data/source.ts` asks for them."""
    views = dict(sorted(Counter(str(entry["view"]) for entry in kept).items()))
    named = None if other is None else str(other.atlas.folder)
    told = _overview(bundle, shown)
    openings = kept_openings(kept, str(told["meta"]["model"]))
    said = {view: {"says": says, "not_says": bound} for view, (says, bound) in openings.items()}
    yield "overview", _json(told | {"other": named and Path(named).name, "kept": views, "openings": said})
    for part in PARTS:
        yield part, bundle.part(part)
    yield "stored", _json(kept)
    if other is not None:
        compared = table_data(compare_atlases(bundle.atlas, other.atlas))
        command, python = compare_words(shown, str(named))
        yield "compare", _json({**compared, "command": command, "python": python})
        yield "beside", _json(all_beside(bundle.atlas, other.atlas))


def compare_words(a: str, b: str) -> tuple[str, str]:
    """The command and the Python line that compare two atlases."""
    return f"covector compare-atlases {typed(a)} {typed(b)}", f"covector.compare_atlases({a!r}, {b!r})"


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _packed(content: bytes) -> bytes:
    """gzip without a clock, in letters that no HTML parser stumbles over."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0))


def _page(model: str, blocks: Mapping[str, bytes]) -> tuple[bytes, dict[str, int]]:
    built = assets()
    script = _ENDS_SCRIPT.sub(r"\\x3C", built["app.js"][1].decode())
    style = _ENDS_STYLE.sub(r"<\\/", built["app.css"][1].decode())
    policy = POLICY.format(script=_digest(script), style=_digest(style))
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8" />\n'
        f'<meta http-equiv="content-security-policy" content="{policy}" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        '<meta name="color-scheme" content="light dark" />\n<link rel="icon" href="data:," />\n'
        f"<title>{html.escape(model)} · covector</title>\n<style>{style}</style></head>\n"
        '<body><div id="app"></div>\n'
        "<noscript>This report draws with JavaScript, which it holds itself; it loads nothing.</noscript>\n"
    )
    data = [
        f'<script type="application/octet-stream" id="data-{name}">'.encode() + text + b"</script>\n"
        for name, text in blocks.items()
    ]
    # The policy stands before what it judges; the data before the script that reads them.
    tail = f'<script type="module">{script}</script>\n</body></html>\n'
    return b"".join([head.encode(), *data, tail.encode()]), {"page": len(head.encode()) + len(tail.encode())}


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
