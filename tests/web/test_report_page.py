"""A report opened from disk with the network off: every view, print, and a script that was changed."""

from pathlib import Path

import pytest
from browser import Watched, opened
from test_report import BREAKING, planted

import covector
from covector.atlas.plan import Options
from covector.cli.main import run
from covector.io.atlas import Atlas
from covector.web.bundle import Bundle
from covector.web.report import report

VIEWS = ("Model", "Place", "Directions", "Concept", "Observables", "Edits", "Steering", "Agents", "Compare")


@pytest.fixture(scope="module")
def file(demo_atlas: Path, agent_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a comparison and three stored results, one with a film."""
    folder = tmp_path_factory.mktemp("page")
    kept = folder / "kept"
    assert run(["observe", "norms", "demo-lm", "' she' - ' he'", "--out", str(kept), "-q"]) == 0
    assert run(["svd", "demo-lm", "L3H0", "--out", str(kept), "--json"]) == 0
    assert run(["locate", "demo-dt", "action_out", "--out", str(kept), "-q"]) == 0
    (kept / "film.gif").write_bytes(GIF)
    out = folder / "report.html"
    words = ["report", str(demo_atlas), str(agent_atlas), "--out", str(out), "--results", str(kept), "-q"]
    assert run(words) == 0
    return out


# One red pixel, by the specification of GIF89a.
GIF = bytes.fromhex("47494638396101000100800000ff0000ffffff2c00000000010001000002024401003b")


def visit(watched: Watched, file: Path, view: str) -> None:
    watched.page.goto(file.as_uri())
    watched.page.get_by_role("navigation").get_by_role("link", name=view, exact=True).click()
    watched.page.wait_for_selector("main p, main h2")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_view_opens_from_disk_and_complains_of_nothing(file: Path, dark: bool) -> None:
    with opened(dark=dark, offline=True) as watched:
        for view in (*VIEWS, "Results"):
            visit(watched, file, view)
            assert watched.page.locator("main").inner_text().strip()
            watched.page.wait_for_timeout(300)
        watched.quiet()


def test_places_directions_and_concepts_are_live(file: Path) -> None:
    with opened(offline=True) as watched:
        page = watched.page
        visit(watched, file, "Model")
        page.locator('[data-site="L3H0.ov"]').click()
        page.wait_for_selector("h2:has-text('L3H0.ov')")
        page.wait_for_selector("figure svg")
        visit(watched, file, "Directions")
        page.get_by_label("Side").select_option("write")
        page.locator("main tbody tr[data-row]").first.click()
        assert page.get_by_label("Chosen direction").locator("h3").inner_text().endswith("token_out")
        visit(watched, file, "Concept")
        page.get_by_label("Concept").fill("she")
        page.keyboard.press("Enter")
        page.wait_for_selector("main tbody tr")
        watched.quiet()


def test_the_comparison_names_a_place_and_shows_its_dyads_beside_the_other(
    file: Path, demo_atlas: Path, agent_atlas: Path
) -> None:
    first = covector.compare_atlases(demo_atlas, agent_atlas).rows[0]
    with opened(offline=True) as watched:
        visit(watched, file, "Compare")
        watched.page.get_by_role("group", name="Places to open").get_by_role("button").first.click()
        panel = watched.page.get_by_label(f"{first['site']} {first['side']} in both")
        panel.wait_for()
        assert panel.locator("tbody tr").count() == min(24, int(first["directions"]))
        assert f"{first['nearest']:.3f} (chance {first['nearest_chance']:.3f})" in panel.inner_text()
        watched.quiet()


@pytest.mark.slow
def test_stored_results_stand_on_their_views_with_their_command(file: Path) -> None:
    with opened(offline=True) as watched:
        for view, command in (
            ("Observables", "covector observe norms demo-lm"),
            ("Agents", "covector locate demo-dt action_out"),
            ("Results", "covector svd demo-lm L3H0"),
        ):
            visit(watched, file, view)
            watched.page.wait_for_selector("main section figure svg")
            assert command in watched.page.locator("main").inner_text()
        visit(watched, file, "Steering")
        assert "--results" in watched.page.locator("main").inner_text()
        watched.quiet()


def test_a_print_shows_the_map_the_strongest_directions_and_the_results(file: Path) -> None:
    with opened(offline=True, dark=True) as watched:
        page = watched.page
        visit(watched, file, "Directions")
        page.wait_for_timeout(500)
        page.evaluate(
            "addEventListener('beforeprint', () => window.printed = ["
            "'.print tbody tr', '.print figure svg', '.print h2', 'canvas'"
            "].map((s) => document.querySelectorAll(s).length))"
        )
        assert page.pdf()[:5] == b"%PDF-"
        rows, pictures, titles, canvases = page.evaluate("window.printed")
        assert rows > 40
        assert pictures >= 4  # the map, the comparison, the stored results
        assert titles >= 5  # the strongest directions, the comparison, three results
        assert canvases == 0
        assert page.locator(".print").count() == 0, "the view that was open is back"
        page.emulate_media(media="print")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)", "paper is light"
        watched.quiet()


def test_markup_in_labels_and_names_is_shown_as_text(demo_atlas: Path, tmp_path: Path) -> None:
    out = tmp_path / "planted.html"
    out.write_bytes(report(Bundle(Atlas(planted(demo_atlas, tmp_path))), BREAKING).content)
    with opened(offline=True) as watched:
        visit(watched, out, "Directions")
        watched.page.get_by_label("Labels").fill("broken out")
        watched.page.wait_for_selector("tr[data-row='0']")
        assert BREAKING[:20] in watched.page.locator("main").inner_text()
        assert BREAKING[:20] in watched.page.locator("h1").inner_text()
        assert watched.page.title().startswith(BREAKING[:20])
        watched.quiet()


def test_a_script_that_was_changed_does_not_run(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    at = content.index(b'<script type="module">') + len(b'<script type="module">')
    changed = tmp_path / "changed.html"
    changed.write_bytes(content[:at] + b" " + content[at:])
    with opened(offline=True) as watched:
        watched.page.goto(changed.as_uri())
        watched.page.wait_for_timeout(800)
        assert watched.page.locator("main").count() == 0
        assert any("Content Security Policy" in line for line in watched.complaints)


@pytest.mark.slow
def test_a_report_of_a_real_model(shared: Path, tmp_path: Path) -> None:
    atlas = tmp_path / "stories.atlas"
    covector.build_atlas(str(shared / "models" / "stories260k"), atlas, options=Options(draws=200, scores=False))
    assert run(["report", str(atlas), "--out", str(tmp_path / "stories.html"), "-q"]) == 0
    with opened(offline=True, width=700) as watched:
        for view in VIEWS:
            visit(watched, tmp_path / "stories.html", view)
        watched.quiet()
