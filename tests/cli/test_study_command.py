"""`covector study` as it is typed."""

import json
import re
import shlex
from pathlib import Path

import pytest

from covector.analyses.studies import studies
from covector.atlas.plan import Options
from covector.building import build_atlas
from covector.cli.main import run
from synthetic_atlas import synthetic

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies.md"


def test_alone_it_lists_every_study_with_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study"]) == 0
    out = capsys.readouterr().out
    for study in studies().values():
        assert re.search(rf"^{study.name} +{re.escape(study.question)}$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 120


def test_every_study_is_a_section_of_the_page_with_its_question_and_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^## ([a-z]+)$", page, re.MULTILINE) == [
        "kinds", "sides", "basis", "poles", "index", "width", "ridge", "frames", "packing",
    ]  # fmt: skip
    for study in studies().values():
        section = page.split(f"\n## {study.name}\n")[1].split("\n## ")[0]
        assert f"*{study.question}*" in section
        assert f"covector study {study.name} " in section


@pytest.mark.parametrize("name", ["index", "basis", "packing", "kinds", "sides"])
def test_a_study_of_an_atlas_alone_fits_the_screen_and_names_the_next(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(columns, rng):
        columns["q_dir"] = columns["p_dir"] * 0.2

    atlas = synthetic(tmp_path / "a", change)
    assert run(["study", name, str(atlas.folder), "--without-model"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert max(len(line) for line in lines[:-1]) <= 120
    assert lines[-1].startswith("next: covector ")
    assert run(["study", name, str(atlas.folder), "--without-model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["rows"]
    assert found["meta"]["analysis"] == f"study_{name}"


def test_pictures_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(synthetic(tmp_path / "a").folder)
    for name in ("index", "basis", "kinds", "sides"):
        picture = tmp_path / f"{name}.svg"
        assert run(["study", name, folder, "--without-model", "--plot", str(picture)]) == 0
        assert "<svg" in picture.read_text(encoding="utf-8")
    wide = str(synthetic(tmp_path / "b", d=64).folder)
    assert run(["study", "width", folder, wide, "--plot", str(tmp_path / "width.svg")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing", "a"], "expected a study (basis, "),
        (["kinds"], "expected one atlas folder, got 0"),
        (["kinds", "a", "b"], "expected one atlas folder, got 2"),
        (["width"], "expected atlas folders, got 0"),
        (["index", "missing"], "expected an atlas"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["study", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small atlas of the bundled model; width needs a second model and has its own tests."""
    build_atlas("demo-lm", tmp_path / "demo.atlas", options=Options(rank=10, draws=300), workers=1)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^covector study (?!width)[a-z]+ .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 8
    for line in lines:
        assert run(shlex.split(line.split("#")[0])[1:]) == 0, line
    assert {p.name for p in (tmp_path / "frames").iterdir()} == {"folded", "gauge_fixed"}
