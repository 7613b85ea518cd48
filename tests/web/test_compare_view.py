"""The comparison of two atlases as the server gives it, and on its page."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import opened

import covector


def told(address: str, path: str) -> tuple[int, object]:
    """Status and JSON of an answer."""
    try:
        with urllib.request.urlopen(f"{address}api/{path}") as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def two(served: Callable[..., str], demo_atlas: Path, agent_atlas: Path) -> str:
    return served(demo_atlas, agent_atlas)


def test_the_twin_is_the_analysis(two: str, demo_atlas: Path, agent_atlas: Path) -> None:
    status, twin = told(two, "compare")
    assert status == 200
    assert isinstance(twin, dict)
    table = covector.compare_atlases(demo_atlas, agent_atlas)
    assert twin["says"] == table.says
    assert {c["name"]: c["values"] for c in twin["columns"]}["agreement"] == table["agreement"].tolist()
    assert twin["python"] == f"covector.compare_atlases({str(demo_atlas)!r}, {str(agent_atlas)!r})"
    status, dyads = told(two, "beside?site=L1H0.ov&side=write")
    assert status == 200
    assert isinstance(dyads, list)
    assert len(dyads) == 24


def test_what_is_not_there_is_refused_with_a_reason(two: str, served: Callable[..., str], demo_atlas: Path) -> None:
    assert told(two, "beside?site=L9H9.ov&side=write")[0] == 400
    assert told(two, "beside?site=L1H0.ov")[0] == 422
    status, why = told(served(demo_atlas), "compare")
    assert status == 400
    assert "a second atlas" in str(why)


@pytest.mark.slow
def test_a_click_on_a_place_puts_its_dyads_beside_the_other(two: str, demo_atlas: Path, agent_atlas: Path) -> None:
    rows = covector.compare_atlases(demo_atlas, agent_atlas).rows
    with opened() as watched:
        watched.page.goto(f"{two}#/compare")
        watched.page.locator("main section tbody tr.pick").nth(2).click()
        panel = watched.page.get_by_label(f"{rows[2]['site']} {rows[2]['side']} in both")
        panel.locator("tbody tr .word").first.wait_for()
        assert f"{rows[2]['shared']:.3f} (chance {rows[2]['shared_chance']:.3f})" in panel.inner_text().replace(
            "\n", " "
        )
        assert f"place={rows[2]['site']}" in watched.page.url
        watched.page.reload()
        panel.wait_for()
        watched.quiet()
