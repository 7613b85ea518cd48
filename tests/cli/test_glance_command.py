"""`glance`, `directions` and `compare-atlases` print what their analyses give, and refuse in one line."""

import json
from pathlib import Path

import pytest

import covector
from covector.atlas.plan import Options
from covector.cli.main import run
from covector.web.shown import Shown


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glance_command") / "dt.atlas"
    covector.build_atlas("demo-dt", folder, options=Options(draws=100, scores=False))
    return folder


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["glance", "{atlas}"], lambda a: covector.glance(a)),
        (["glance", "{atlas}", "--by", "direction", "--top", "4"], lambda a: covector.look_first(a, 4)),
        (["directions", "{atlas}", "--side", "write", "--kind", "ov", "--layers", "1-2", "--sort", "sigma"],
         lambda a: covector.directions(a, side="write", kinds=["ov"], layers=(1, 2), sort="sigma", top=20)),
        (["directions", "{atlas}", "--layers", "1", "--q", "0.05", "--rising", "--labels", "done"],
         lambda a: covector.directions(a, layers=(1, 1), most_q=0.05, rising=True, labels="done", top=20)),
        (["compare-atlases", "{atlas}", "{atlas}"], lambda a: covector.compare_atlases(a, a)),
    ],
)  # fmt: skip
def test_the_command_gives_the_rows_of_the_function(
    words: list[str], same, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([w.format(atlas=atlas) for w in words] + ["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == json.loads(same(atlas).to_json())["rows"]


@pytest.mark.parametrize(
    "words", [["search", "toy", "' cat'"], ["glance", "toy"], ["directions", "toy", "--top", "3"]], ids=lambda w: w[0]
)
def test_a_model_is_as_good_as_an_atlas_which_is_built_once_in_the_cache(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COVECTOR_CACHE", str(tmp_path))
    assert run([*words, "--json"]) == 0
    first = capsys.readouterr()
    (kept,) = (tmp_path / "atlases").iterdir()
    assert first.err == f"the atlas of toy is built first, once: {kept}\n"
    assert covector.Atlas(kept).manifest["complete"]
    assert Shown("toy").folder == kept  # where the page keeps it too
    assert run([*words, "--json"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert run([words[0], str(kept), *words[2:], "--json"]) == 0
    assert json.loads(again.out)["rows"] == json.loads(capsys.readouterr().out)["rows"]
    assert run(words) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith(f"next: covector {('search', 'directions')[words[0] == 'glance']} toy ")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["glance", "{atlas}", "--by", "head"], "expected place or direction"),
        (["glance", "{atlas}", "--top", "0"], "at least 1"),
        (["glance", "{atlas}", "--by", "direction", "--plot", "a.png"], "has no picture"),
        (["directions", "{atlas}", "--layers", "a-b"], "expected two layers"),
        (["directions", "{atlas}", "--kind", "ovv"], "expected a kind of this atlas"),
        (["directions", "nowhere"], "nowhere"),
        (["compare-atlases", "{atlas}", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_request_is_one_line(
    words: list[str], said: str, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([w.format(atlas=atlas) for w in words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
