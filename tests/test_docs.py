"""The docs run: every Python block, every shell line that names covector; pages made from code are up to date."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from covector.cli.main import run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ("cli.md", "families.md", "hooks.md", "python.md")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p.name not in GENERATED], ids=relative)
def test_the_python_on_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    # A worked example of layouts.md is a file beside the weights: its TOML blocks are written where it says.
    layouts = blocks(page, "toml")
    if layouts and page.name == "layouts.md":
        (tmp_path / "layout.toml").write_text(layouts[0])
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)


def commands(page: Path) -> list[str]:
    """Lines of shell blocks that run covector on bundled models; others name checkpoints a reader has to have."""
    lines = [
        line.split("#")[0].strip() for block in blocks(page, "") + blocks(page, "sh") for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("covector ") and "demo-" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), [(p, c) for p in PAGES for c in commands(p)], ids=str)
def test_a_command_on_a_page_runs(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(line)[1:]) == 0


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_says_what_the_code_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: the shape checks of the test run would show in signatures.
    code = f"import sys; sys.path.insert(0, 'docs'); import generate; sys.stdout.write(generate.PAGES[{name!r}]())"
    made = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made, "run `make docs`"


def test_the_generator_knows_every_generated_page() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(module.PAGES) == set(GENERATED)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_equations_that_docstrings_cite_exist() -> None:
    """`docs/theory/maps.md`, equations 1–6: the page exists and numbers at least that many."""
    for source in (ROOT / "src").rglob("*.py"):
        for name, last in re.findall(r"`docs/theory/(\w+)\.md`, equations? [\d–]*?(\d+)\b", source.read_text("utf-8")):
            page = (ROOT / "docs" / "theory" / f"{name}.md").read_text(encoding="utf-8")
            numbered = {int(n) for n in re.findall(r"\\tag\{(\d+)\}|\((\d+)\)\$?", page) for n in n if n}
            assert int(last) in numbered, (source.name, name, last)
