"""`covector study` as it is typed."""

import json
import re
import shlex
from importlib.util import find_spec
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
        "kinds", "sides", "frequency", "basis", "activations", "dictionary", "poles", "index", "width", "size", "ridge",
        "frames", "factorial", "packing",
    ]  # fmt: skip
    for study in studies().values():
        section = page.split(f"\n## {study.name}\n")[1].split("\n## ")[0]
        assert f"*{study.question}*" in section
        assert f"covector study {study.name} " in section


@pytest.mark.slow
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
        (["nothing", "a"], "expected a study (activations, "),
        (["kinds"], "expected one atlas folder or model, got 0"),
        (["kinds", "a", "b"], "expected one atlas folder or model, got 2"),
        (["width"], "expected atlas folders or models, got 0"),
        (["index", "missing.atlas"], "expected an atlas"),
        (["index", "missing"], "no atlas at 'missing', and as a model: "),
        (["size"], "expected atlas folders or models, got 0"),
        (["dictionary", "a", "b"], "expected one atlas folder or model, got 2"),
        (["activations", "a"], "expected --text FILE"),
        (["frequency", "a", "--text", "missing.txt"], "expected a UTF-8 text file at 'missing.txt'"),
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
    """On a small atlas of the bundled model; width and size need other models and have their own tests.

    So has the dictionary of an atlas, with fewer draws: its command has no option for them and takes 34 s of one core.
    """
    build_atlas("demo-lm", tmp_path / "demo.atlas", options=Options(rank=10, draws=300), workers=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COVECTOR_CACHE", str(tmp_path / "cache"))
    Path("stories.txt").write_text("the king had a red hat and the queen a blue one\n" * 40, encoding="utf-8")
    lines = re.findall(r"^covector study (?!width|size)[a-z]+.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    if find_spec("sklearn") is None:
        lines = [line for line in lines if "dictionary" not in line]
    lines = [line for line in lines if not line.startswith("covector study dictionary demo.atlas")]
    assert len(lines) >= 11
    for line in lines:
        assert run(shlex.split(line.split("#")[0])[1:]) == 0, line
    assert {p.name for p in (tmp_path / "frames").iterdir()} == {"folded", "gauge_fixed"}


@pytest.mark.slow
def test_a_text_is_counted_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(("ov",), rank=2, draws=20, scores=False)
    build_atlas("demo-lm", tmp_path / "demo.atlas", options=options, workers=1)
    text = tmp_path / "text.txt"
    text.write_text("the king had a red hat and the queen a blue one\n" * 40, encoding="utf-8")
    for name, words in (("frequency", "a text of "), ("activations", " positions of a text")):
        assert run(["study", name, str(tmp_path / "demo.atlas"), "--text", str(text), "--json"]) == 0
        captured = capsys.readouterr()
        found = json.loads(captured.out, parse_constant=pytest.fail)
        assert words in json.dumps(found, ensure_ascii=False) or found["meta"]["positions"] > 300
        assert found["meta"]["analysis"] == f"study_{name}"


def test_sizes_are_counted_from_the_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tied table counts once: the toy has 12 · 16 of them, and one layer of two heads and an MLP."""
    options = Options(("ov",), rank=2, draws=20, scores=False)
    for name in ("toy", "demo-lm"):
        build_atlas(name, tmp_path / name, options=options, workers=1)
    assert run(["study", "size", str(tmp_path / "demo-lm"), str(tmp_path / "toy"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"]
    heads, mlp = 2 * 4 * 16 * 8, 2 * 16 * 24
    assert rows[0]["parameters"] == 12 * 16 + heads + mlp
    assert rows[1]["model"] == "demo-lm"
