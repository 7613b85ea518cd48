"""A report: what the file holds, that it is the same again, that nothing in it can break out, and that it is small."""

import ast
import base64
import gzip
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from big_atlas import write_big_atlas
from pyarrow import parquet

import covector
from covector.cli.main import run
from covector.errors import BadRequest
from covector.io.atlas import INDEX, MANIFEST, Atlas
from covector.render import Table
from covector.web import stored as kept
from covector.web.bundle import Bundle
from covector.web.report import report
from covector.web.stored import stored, view_of

SRC = Path(covector.__file__).parent
BREAKING = "</script><script>document.title='broken out'</script><!-- <script>"


class Parsed(HTMLParser):
    """The scripts, styles and policy of a page, as a parser of HTML sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.style, self.policy, self._in = "", "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in = tag
        if tag == "script":
            self.scripts.append((given, ""))
        if tag == "meta" and given.get("http-equiv") == "content-security-policy":
            self.policy = given["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        if self._in == "style":
            self.style += data

    def block(self, name: str) -> bytes:
        (text,) = [text for given, text in self.scripts if given.get("id") == f"data-{name}"]
        return gzip.decompress(base64.b64decode(text))


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two commands wrote, with a film beside them."""
    folder = tmp_path_factory.mktemp("kept") / "results"
    assert run(["observe", "norms", "demo-lm", "' she' - ' he'", f"--out={folder}", "-q"]) == 0
    assert run(["svd", "demo-lm", "L3H0", "--out", str(folder), "--json"]) == 0
    (folder / "film.gif").write_bytes(b"GIF89a" + bytes(20))
    return folder


@pytest.fixture(scope="module")
def whole(demo_atlas: Path, agent_atlas: Path, results: Path) -> Parsed:
    made = report(Bundle(Atlas(demo_atlas)), "demo.atlas", other=Bundle(Atlas(agent_atlas)), results=[results])
    return Parsed(made.content.decode())


def test_the_blocks_are_what_the_server_gives(whole: Parsed, demo_atlas: Path) -> None:
    bundle = Bundle(Atlas(demo_atlas))
    for part in ("directions", "labels", "spectra"):
        assert whole.block(part) == bundle.part(part)
    overview = json.loads(whole.block("overview"))
    assert overview["glance"] == json.loads(json.dumps(bundle.overview["glance"]))
    assert overview["shown"] == "demo.atlas"
    assert overview["kept"] == {"observables": 1, "results": 1}


def test_the_policy_lets_run_what_stands_in_the_file_and_loads_nothing(whole: Parsed) -> None:
    (script,) = [text for given, text in whole.scripts if given.get("type") == "module"]
    rules = dict(part.strip().split(" ", 1) for part in whole.policy.split(";"))
    assert rules["script-src"] == f"'{digest(script)}'"
    assert rules["style-src"] == f"'{digest(whole.style)}'"
    assert rules["default-src"] == "'none'"
    assert not any(word in whole.policy for word in ("http", "unsafe", "*"))
    assert all(given.get("type") in ("module", "application/octet-stream") for given, _ in whole.scripts)
    assert not any("src" in given for given, _ in whole.scripts)


def test_the_same_request_gives_the_same_bytes(demo_atlas: Path, results: Path) -> None:
    one, two = (report(Bundle(Atlas(demo_atlas)), "demo.atlas", results=[results]).content for _ in range(2))
    assert one == two


def test_the_comparison_is_the_analysis_and_names_pairs_that_are_nearest(
    whole: Parsed, demo_atlas: Path, agent_atlas: Path
) -> None:
    a, b = Atlas(demo_atlas), Atlas(agent_atlas)
    table = covector.compare_atlases(a, b)
    told = json.loads(whole.block("compare"))
    assert {c["name"]: c["values"] for c in told["columns"]}["nearest"] == table["nearest"].tolist()
    beside = json.loads(whole.block("beside"))
    assert set(beside) == {f"{r['site']} {r['side']}" for r in table.rows}
    pair = beside["L1H0.ov write"][2]
    given = b.columns("site", "side", "dyad")
    (row,) = np.flatnonzero((given["site"] == "L1H0.ov") & (given["side"] == "write") & (given["dyad"] == pair["dyad"]))
    mine = a.vectors[pair["row"]].astype(np.float64)
    there = b.vectors[(given["site"] == "L1H0.ov") & (given["side"] == "write")].astype(np.float64)
    assert pair["cos"] == pytest.approx(np.abs(there @ mine).max(), abs=1e-3)
    assert abs(b.vectors[row].astype(np.float64) @ mine) == pytest.approx(pair["cos"], abs=1e-3)
    assert pair["top"] == list(b.rows(np.array([row]), ["top"])[0]["top"])[: len(pair["top"])]


def test_labels_and_titles_cannot_break_out(demo_atlas: Path, tmp_path: Path) -> None:
    made = report(Bundle(Atlas(planted(demo_atlas, tmp_path))), BREAKING)
    parsed = Parsed(made.content.decode())
    assert len(parsed.scripts) == len(made.sizes)  # the page's script, and one a block
    assert BREAKING.encode() in parsed.block("labels")
    assert b"<title>&lt;/script&gt;" in made.content


def planted(atlas: Path, tmp_path: Path) -> Path:
    """The atlas with markup as its model's name and as labels of its first direction."""
    folder = tmp_path / "planted.atlas"
    shutil.copytree(atlas, folder)
    table = parquet.read_table(folder / INDEX)
    for column, value in (("label", BREAKING), ("top", [BREAKING])):
        values = table.column(column).to_pylist()
        values[0] = value if column == "label" else value + values[0][1:]
        at = table.column_names.index(column)
        table = table.set_column(at, column, pa.array(values, table.schema.field(column).type))
    parquet.write_table(table, folder / INDEX)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["meta"]["model"] = BREAKING
    manifest.pop("files", None)  # the table is another one now
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.slow
def test_a_hundred_thousand_directions_take_less_than_15_mb(tmp_path: Path) -> None:
    assert write_big_atlas(tmp_path / "big.atlas") > 99_000
    made = report(Bundle(Atlas(tmp_path / "big.atlas")), "big.atlas")
    assert len(made.content) < 15e6
    assert sum(made.sizes.values()) == pytest.approx(len(made.content), rel=1e-3)
    assert made.sizes["page"] < 400_000


def test_a_stored_result_keeps_its_command_and_stands_where_one_asks_for_it(results: Path) -> None:
    norms, svd = stored([results])
    assert (norms["view"], svd["view"]) == ("observables", "results")
    assert norms["result"]["command"] == "covector observe norms demo-lm \"' she' - ' he'\""
    assert svd["result"]["command"] == "covector svd demo-lm L3H0"
    assert norms["result"]["picture"]["kind"] == "grid"
    table = Table.load(results / "head_norms.json")
    assert next(c for c in norms["result"]["columns"] if c["name"] == "norm")["values"] == table["norm"].tolist()
    assert norms["films"][0].startswith("data:image/gif;base64,R0lGODlh")


def analyses() -> dict[str, str]:
    """Every name that a result gives its analysis, as the sources spell it, and where."""
    found = {}
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            pairs = zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ()
            for key, value in pairs:
                if isinstance(key, ast.Constant) and key.value == "analysis":
                    assert isinstance(value, ast.Constant), f"{path.name}: an analysis whose name is computed"
                    found[value.value] = path.name
    return found


def test_every_analysis_has_its_view() -> None:
    listed = [name for names in kept.VIEWS.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(analyses())
    assert set(kept.DETAILS) <= set(listed)
    routes = (SRC.parents[1] / "frontend" / "src" / "data" / "route.svelte.ts").read_text(encoding="utf-8")
    assert set(kept.VIEWS) <= set(re.findall(r'\["(\w+)", "\w+"\]', routes))
    assert view_of("never heard of") == "results"


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is none"):
        stored([tmp_path / "absent"])
    with pytest.raises(BadRequest, match="there are none"):
        stored([tmp_path])
    (tmp_path / "film.gif").write_bytes(b"GIF89a")
    with pytest.raises(BadRequest, match="beside the films"):
        stored([tmp_path])


def test_other_files_of_a_folder_are_left_out_and_broken_pictures_refused(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    shutil.copytree(results, folder)
    (folder / "edit.json").write_text('{"format": 1, "terms": []}')
    assert len(stored([folder])) == 2
    (folder / "head_norms.picture.json").write_text('{"kind": "spiral"}')
    with pytest.raises(BadRequest, match="values of a picture"):
        stored([folder])


def test_the_command_says_how_large_it_is_and_what_is_next(
    demo_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert run(["report", str(demo_atlas), "--out", str(out)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: {len(out.read_bytes()) / 1e6:.1f} MB (page ")
    assert second == f"next: covector view {demo_atlas}"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"], "written beside and renamed"
    assert run(["report", str(demo_atlas), "--out", str(tmp_path / "report.pdf")]) == 2
    assert run(["report", str(demo_atlas), "--out", str(out), "--results", str(tmp_path / "absent")]) == 2
    assert run(["report", "no-such-model", "--out", str(out)]) == 2
