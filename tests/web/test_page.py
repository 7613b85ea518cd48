"""The page in a browser: every view, by clicks and keys, on the bundled model and on a real one."""

import json
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from browser import Watched, opened

import covector
from covector.atlas.plan import Options
from covector.cli.main import run
from covector.web.asking import Asking
from covector.web.shown import Shown

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from axe_playwright_python.sync_playwright import Axe

VIEWS = ("Model", "Place", "Directions", "Concept", "Observables", "Edits", "Steering", "Agents", "Compare")


@pytest.fixture(scope="module")
def address(served: Callable[..., str], demo_atlas: Path) -> str:
    return served(demo_atlas)


def visit(watched: Watched, address: str, view: str) -> None:
    """Open a view by its link and wait until it says something."""
    watched.page.goto(address)
    watched.page.get_by_role("navigation").get_by_role("link", name=view, exact=True).click()
    watched.page.wait_for_selector("main p, main h2")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_view_opens_by_its_link_and_complains_of_nothing(address: str, dark: bool) -> None:
    with opened(dark=dark) as watched:
        for view in VIEWS:
            visit(watched, address, view)
            assert watched.page.locator("main").inner_text().strip()
            assert watched.page.locator("nav a[aria-current=page]").inner_text() == view
        watched.quiet()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_serious(address: str, view: str, dark: bool) -> None:
    with opened(dark=dark) as watched:
        visit(watched, address, view)
        watched.page.wait_for_timeout(600)
        found = Axe().run(watched.page).response["violations"]
        serious = [
            f"{v['id']}: {v['nodes'][0]['html'][:200]} {v['nodes'][0].get('failureSummary', '')[:200]}"
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert serious == []


def test_a_click_on_the_map_opens_the_place_and_a_dyad_its_numbers(address: str, demo_atlas: Path) -> None:
    with opened() as watched:
        visit(watched, address, "Model")
        watched.page.locator('[data-site="L3H0.ov"]').click()
        watched.page.wait_for_selector("h2:has-text('L3H0.ov')")
        watched.page.get_by_role("button", name="1", exact=True).click()
        chosen = watched.page.get_by_label("Chosen dyad")
        rows = covector.trace(demo_atlas, like="L3H0.ov:1", top=1)
        assert rows["place"][0] == "L3H0.ov:1"
        assert "L3H0.ov:1" in chosen.inner_text()
        assert "dyad=1" in watched.page.url
        watched.page.reload()
        assert "L3H0.ov:1" in watched.page.get_by_label("Chosen dyad").inner_text(), "the view is in its address"
        watched.quiet()


def test_the_map_is_walked_by_arrow_keys(address: str) -> None:
    with opened() as watched:
        visit(watched, address, "Model")
        watched.page.locator('[data-site="L0H0.ov"]').focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
            watched.page.keyboard.press(key)
        assert watched.page.evaluate("document.activeElement.dataset.site") == "L1H1.ov"
        watched.page.keyboard.press("Enter")
        watched.page.wait_for_selector("h2:has-text('L1H1.ov')")


def test_filters_leave_the_rows_that_the_atlas_has(address: str, demo_atlas: Path) -> None:
    atlas = covector.open_atlas(demo_atlas)
    told = atlas.columns("q_dir", "side", "kind")
    expected = int(((told["q_dir"] <= 0.05) & (told["side"] == "write") & (told["kind"] == "ov")).sum())
    with opened() as watched:
        visit(watched, address, "Directions")
        watched.page.get_by_label("q below").select_option("0.05")
        watched.page.get_by_label("Side").select_option("write")
        watched.page.get_by_role("button", name="ov", exact=True).click()
        region = watched.page.get_by_role("region", name=re.compile("Directions"))
        assert region.get_attribute("aria-label").startswith(f"Directions, {expected} rows")
        watched.quiet()


def test_a_search_in_the_lists_finds_every_direction_that_lists_the_word(address: str, demo_atlas: Path) -> None:
    atlas = covector.open_atlas(demo_atlas)
    rows = atlas.rows(np.arange(len(atlas)), ["top", "bottom"])
    listing = sum(any("germany" in w.lower() for w in [*r["top"], *r["bottom"]]) for r in rows)
    with opened() as watched:
        visit(watched, address, "Directions")
        watched.page.get_by_label("Labels").fill("Germany")
        region = watched.page.get_by_role("region", name=re.compile(f"^Directions, {listing} rows"))
        region.wait_for()
        watched.quiet()


def test_a_filtered_list_is_what_its_command_and_its_python_line_give(
    address: str, demo_atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = len(
        covector.directions(
            demo_atlas, kinds=["ov", "mlp.out"], side="write", site="l*h", layers=(1, 3), most_q=0.2, labels="ea"
        )
    )
    asked = "q=0.2&side=write&kinds=ov,mlp.out&from=1&to=3&words=ea&sort=sigma&order=up&site=l*h"
    with opened() as watched:
        watched.page.goto(f"{address}#/directions?{asked}")
        region = watched.page.get_by_role("region", name=re.compile(f"^Directions, {n} rows"))
        region.wait_for()  # the lists of labels come after the first drawing
        places = region.locator("tbody tr[data-row] td:first-child").all_inner_texts()
        command, python = watched.page.locator(".words code").all_inner_texts()
        watched.quiet()
    assert run([*shlex.split(command)[1:], "--json", "--top", "1000"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert 3 < n == len(rows)
    assert places == [r["place"] for r in rows][: len(places)]
    assert [r["place"] for r in eval(python, {"covector": covector}).rows] == [r["place"] for r in rows]


@pytest.mark.parametrize("odd", ["row=-5", "row=abc", "row=1.5", "q=abc&side=x&flag=y&from=-1&sort=z&x=w"])
def test_a_link_that_says_what_is_not_there_is_as_if_it_did_not(address: str, odd: str, demo_atlas: Path) -> None:
    with opened() as watched:
        watched.page.goto(f"{address}#/directions?{odd}")
        region = watched.page.get_by_role("region", name=re.compile(r"^Directions, \d+ rows"))
        n = int(str(region.get_attribute("aria-label")).split()[1])
        assert n == len(covector.open_atlas(demo_atlas))
        assert watched.page.locator(".words code").first.inner_text() == f"covector directions {demo_atlas}"
        watched.quiet()


@pytest.mark.parametrize("view", ["Observables", "Edits", "Steering"])
def test_a_view_of_questions_opens_with_what_it_can_say_of_this_model_and_the_words_to_type(
    address: str, view: str, demo_atlas: Path
) -> None:
    says, bound = Asking(Shown(str(demo_atlas))).openings()[view.lower()]
    with opened() as watched:
        visit(watched, address, view)
        words = watched.page.locator(".words").first
        words.wait_for()
        assert says in words.inner_text()
        assert bound in words.inner_text()
        assert "demo-lm" in says
        same = watched.page.get_by_role("list", name="The same elsewhere").first
        same.wait_for()
        assert same.locator("code").first.inner_text().startswith("covector ")
        field = watched.page.get_by_role("textbox").first
        field.fill("' aunt' - ' uncle'")
        watched.page.get_by_text(re.compile("^covector .*' aunt' - ' uncle'")).first.wait_for()
        watched.quiet()


def test_rows_are_chosen_by_arrow_keys_and_the_detail_follows(address: str) -> None:
    with opened() as watched:
        visit(watched, address, "Directions")
        region = watched.page.get_by_role("region", name=re.compile("Directions"))
        region.focus()
        for _ in range(3):
            watched.page.keyboard.press("ArrowDown")
        third = region.locator("tbody tr[data-row]").nth(2)
        assert third.locator("td").first.inner_text() in watched.page.get_by_label("Chosen direction").inner_text()


def test_a_concept_is_searched_in_the_whole_atlas(address: str, demo_atlas: Path) -> None:
    table = covector.trace(demo_atlas, "' she'", top=60)
    with opened() as watched:
        visit(watched, address, "Concept")
        watched.page.get_by_label("Concept").fill("' she'")
        watched.page.keyboard.press("Enter")
        first = watched.page.locator("main tbody tr").first
        first.wait_for()
        assert first.locator("td").first.inner_text() == table["place"][0]
        assert table.says in watched.page.locator("main").inner_text()
        first.click()
        watched.page.wait_for_selector(f"h2:has-text('{table['place'][0].split(':')[0]}')")
        watched.quiet()


def test_a_wrong_concept_is_answered_in_one_line(address: str) -> None:
    with opened() as watched:
        visit(watched, address, "Concept")
        watched.page.get_by_label("Concept").fill("' she' +* ' he'")
        watched.page.keyboard.press("Enter")
        alert = watched.page.get_by_role("alert")
        alert.wait_for()
        assert "expected" in alert.inner_text()
        assert "\n" not in alert.inner_text().strip()


def test_pictures_and_tables_are_saved_as_files(address: str, tmp_path: Path) -> None:
    with opened() as watched:
        visit(watched, address, "Model")
        for name, begins in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
            with watched.page.expect_download() as download:
                watched.page.get_by_role("button", name=name, exact=True).first.click()
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            assert path.read_bytes().startswith(begins)
        watched.page.get_by_text("All numbers").click()
        with watched.page.expect_download() as download:
            watched.page.get_by_role("button", name="JSON", exact=True).click()
        download.value.save_as(tmp_path / "glance.json")
        assert json.loads((tmp_path / "glance.json").read_text())["columns"][0]["name"] == "site"
        watched.quiet()


@pytest.mark.slow
def test_a_narrow_page_scrolls_only_its_tables(address: str) -> None:
    with opened(width=420) as watched:
        for view in VIEWS:
            visit(watched, address, view)
            wide = watched.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 1, view


@pytest.mark.slow
def test_a_model_without_an_atlas_is_built_with_progress_and_kept(served: Callable[..., str], tmp_path: Path) -> None:
    address = served("toy", cache=tmp_path)
    with opened() as watched:
        watched.page.goto(address)
        watched.page.wait_for_selector("main svg", timeout=90_000)
        assert "directions" in watched.page.locator("h1").inner_text()
    assert len(list((tmp_path / "atlases").iterdir())) == 1


@pytest.mark.slow
def test_a_build_that_was_cancelled_goes_on_from_the_page(served: Callable[..., str], tmp_path: Path) -> None:
    address = served("demo-dt", cache=tmp_path)
    with opened() as watched:
        page = watched.page
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_text("what is done is kept").wait_for()
        page.get_by_role("button", name="Go on", exact=True).click()
        page.wait_for_selector("main svg")
        assert "demo-dt" in page.locator("h1").inner_text()
        watched.quiet()


@pytest.mark.slow
def test_every_view_of_a_real_model(served: Callable[..., str], shared: Path, tmp_path: Path) -> None:
    covector.build_atlas(shared / "models" / "stories260k", tmp_path / "stories.atlas", options=Options(draws=500))
    address = served(tmp_path / "stories.atlas")
    with opened() as watched:
        for view in VIEWS:
            visit(watched, address, view)
        watched.page.goto(f"{address}#/site?site=L2H1.ov")
        watched.page.reload()
        watched.page.wait_for_selector("figure svg")
        watched.page.get_by_role("button", name="Read again").click()
        watched.page.wait_for_selector("section h2")
        watched.quiet()


def test_a_question_is_answered_on_the_page_with_its_words_and_its_picture(address: str) -> None:
    table = covector.head_norms(covector.open("demo-lm"), "' she' - ' he'")
    with opened() as watched:
        watched.page.set_default_timeout(90_000)
        watched.page.goto(f"{address}#/observables?ask=norms&task=%27+she%27+-+%27+he%27")
        watched.page.get_by_role("button", name="Run", exact=True).click()
        answer = watched.page.get_by_role("region", name=table.title, exact=True)
        answer.wait_for()
        assert table.says in answer.inner_text()
        assert "covector observe norms" in answer.inner_text()
        assert answer.locator("figure svg").count() == 1
        watched.quiet()


@pytest.mark.slow
def test_an_edit_is_moved_by_its_dose_and_the_tokens_follow(address: str) -> None:
    with opened() as watched:
        watched.page.set_default_timeout(120_000)
        watched.page.goto(f"{address}#/edits")
        watched.page.get_by_role("button", name="Run", exact=True).click()
        slider = watched.page.get_by_role("slider").first
        slider.wait_for()
        before = watched.page.locator("main").inner_text()
        slider.focus()
        watched.page.keyboard.press("Home")
        assert watched.page.locator("main").inner_text() != before
        watched.quiet()


@pytest.mark.slow
def test_who_comes_back_finds_the_job_that_runs_and_can_cancel_it(
    served: Callable[..., str], agent_atlas: Path
) -> None:
    pytest.importorskip("minigrid")
    with opened() as watched:
        watched.page.set_default_timeout(90_000)
        page, here = watched.page, served(agent_atlas)
        page.goto(f"{here}#/agents?ask=rollout&episodes=3000")
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_role("button", name="Cancel", exact=True).wait_for()
        page.get_by_role("link", name="Model", exact=True).click()
        page.get_by_role("link", name="Agents", exact=True).click()
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_text("cancelled").wait_for()
        page.goto(f"{here}#/agents?ask=locate")
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_role("region", name=re.compile("action_out")).first.wait_for()
        watched.quiet()
