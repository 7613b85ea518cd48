"""The two sentences of each view: their numbers against the weights, and what is said where nothing can be asked."""

from pathlib import Path

import numpy as np
import pytest

import covector
from covector.io.agent_file import find_agent
from covector.io.checkpoint import open_checkpoint
from covector.study.observable import Observable
from covector.web.asking import Asking
from covector.web.fitting import fitted
from covector.web.openings import VIEWS, kept, openings
from covector.web.shown import Shown


def test_the_strongest_writer_is_that_of_all_dyads(demo_atlas: Path) -> None:
    model = covector.open("demo-lm")
    fit = fitted(model, None, atlas=covector.open_atlas(demo_atlas))
    readout = Observable.parse(fit.values["task"], model).readout(model)
    moved = {}
    for site in [*model.sites("L*H*.ov"), *model.sites("L*.mlp.out")]:
        _, S, Vh = np.linalg.svd(np.asarray(model.map(site).dense(), dtype=np.float64), full_matrices=False)
        moved |= {f"{site}:{i}": S[i] * abs(Vh[i] @ readout) for i in range(min(len(S), 40))}
    best = max(moved, key=lambda name: moved[name])
    assert fit.writer is not None
    assert fit.writer.dyad == best
    assert fit.writer.moved == pytest.approx(moved[best], rel=2e-3)  # the atlas keeps directions in float16
    says, bound = openings(model, fit, None)["observables"]
    assert f"16 heads and 4 MLPs of demo-lm could move {fit.values['task']}" in says
    assert f"{best} writes the most of it, {moved[best]:.2f} logits" in says
    assert "no effect" in bound


def test_with_and_without_an_atlas_the_same_writer_is_named(demo_atlas: Path) -> None:
    model = covector.open("demo-lm")
    one, other = fitted(model, None, atlas=covector.open_atlas(demo_atlas)), fitted(model, None)
    assert one.writer is not None
    assert other.writer is not None
    assert one.writer.dyad == other.writer.dyad


def test_an_agent_says_what_it_chooses_among_and_plays(agent_atlas: Path) -> None:
    told = Asking(Shown(str(agent_atlas))).openings()
    checkpoint = open_checkpoint("demo-dt")
    agent = find_agent(checkpoint.name, checkpoint.folder)
    assert agent is not None
    assert told["agents"][0].startswith("demo-dt chooses among 7 actions; by the weights alone ")
    assert agent.environment.id in told["agents"][0]
    assert "is given episodes, not prompts" in told["edits"][0]


def test_a_model_that_cannot_be_opened_says_so_on_every_view(
    agent_atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Shown(str(agent_atlas))
    monkeypatch.setitem(shown.bundle.atlas.manifest, "reference", "no/such-folder/at-all")
    told = Asking(shown).openings()
    assert set(told) == set(VIEWS)
    assert all("cannot be opened" in says for says, _ in told.values())


def result(view: str, model: str, says: str, bound: str = "") -> dict:
    return {
        "view": view,
        "result": {"says": says, "not_says": bound, "title": "T", "meta": {"model": model, "analysis": "edit_effect"}},
    }


def test_a_report_says_what_it_keeps_and_names_results_of_other_models() -> None:
    told = kept([result("edits", "demo-lm", "First."), result("edits", "x/other", "Second.")], "demo-lm")
    assert told["edits"][0] == "2 results are kept here: edit_effect."
    assert "1 of these results are of another model (x/other)" in told["edits"][1]
    assert told["agents"] == (
        "This report keeps no result of this kind.",
        "A report computes nothing: it holds what commands wrote with --out when it was made.",
    )
    own = kept([result("results", "/home/of/somebody/demo-lm", "Says.", "Bound.")], "demo-lm")
    assert own["results"][0] == "1 result is kept here: edit_effect."
    assert "another model" not in own["results"][1]
