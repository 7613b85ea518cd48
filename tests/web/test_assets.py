"""The built page in the package is what its sources give; nobody needs Node to see it."""

import shutil
from pathlib import Path

from covector.web.assets import assets, built_from, source_digest

FRONTEND = Path(__file__).resolve().parents[2] / "frontend"


def test_the_shipped_page_was_built_from_these_sources() -> None:
    assert built_from() == source_digest(FRONTEND), "the page's sources changed since it was built: run make frontend"


def test_a_changed_a_renamed_and_an_added_source_are_seen_and_a_test_is_not(tmp_path: Path) -> None:
    copy = tmp_path / "frontend"
    shutil.copytree(FRONTEND, copy, ignore=shutil.ignore_patterns("node_modules"))
    before = source_digest(copy)
    assert before == source_digest(FRONTEND)
    (copy / "src" / "new.test.ts").write_text("anything")
    assert source_digest(copy) == before
    main = copy / "src" / "main.ts"
    text = main.read_text()
    main.write_text(text + " ")
    changed = source_digest(copy)
    main.write_text(text)
    main.rename(copy / "src" / "first.ts")
    renamed = source_digest(copy)
    shutil.copy(copy / "src" / "first.ts", main)
    assert len({before, changed, renamed, source_digest(copy)}) == 4


def test_the_page_is_one_script_and_one_style_and_names_what_it_contains() -> None:
    found = assets()
    assert set(found) == {"index.html", "app.js", "app.css"}
    assert b"Svelte" in found["app.js"][1][:400]
    assert b"Permission is hereby granted" in found["app.js"][1][:2000]


def test_the_page_names_no_address_to_load_from() -> None:
    """The names of XML namespaces are no addresses; links in messages of libraries are never followed."""
    for name, (_, content) in assets().items():
        for scheme in (b'src="http', b'href="http', b"@import", b"url(http", b"importScripts"):
            assert scheme not in content, (name, scheme)
