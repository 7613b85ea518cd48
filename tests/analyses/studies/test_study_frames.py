"""The same places in several frames."""

import numpy as np
import pytest

import covector
from covector.analyses.studies.frames import frames
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest, FrameUnavailable
from covector.model.spec import Norm
from synthetic_atlas import built, synthetic


def with_shift(by: float):
    """The same directions and scores, those of ov read higher by so much."""

    def change(columns, rng):
        columns["z_coherence"] = columns["z_coherence"] + by * ((columns["kind"] == "ov") & (columns["side"] == "read"))

    return change


def test_an_effect_of_one_step_on_one_side_is_found_there_and_nowhere_else(tmp_path):
    atlases = {
        name: synthetic(tmp_path / name, with_shift(by), frame_name=name, seed=1)
        for name, by in (("raw", 0.0), ("folded", 0.7), ("gauge_fixed", 0.7))
    }
    table = frames(atlases["raw"], atlases.__getitem__)
    for r in table.rows:
        moved = (r["kind"], r["side"]) == ("ov", "read") and r["step"] in ("fold", "both")
        assert r["effect"] == pytest.approx(0.7 if moved else 0, abs=1e-6)
        assert (r["q"] < 0.01) == moved
        assert r["overlap"] == pytest.approx(1, abs=1e-2)
    assert table.says.startswith("Changed coherence beyond chance: fold, ov read +0.70 sd (p < .001); both, ov read")


def test_frames_of_unrelated_directions_have_no_effect_and_chance_overlap(tmp_path):
    atlases = {n: synthetic(tmp_path / n, frame_name=n, seed=i, layers=6) for i, n in enumerate(("raw", "folded"))}
    table = frames(atlases["raw"], atlases.__getitem__, names=("raw", "folded"), leading=4)
    for r in table.rows:
        assert r["q"] > 0.01
        assert r["overlap_null"] == pytest.approx(4 / 32)
        if r["sites"] == 24:
            assert r["overlap"] == pytest.approx(4 / 32, abs=0.03)


def test_real_frames_of_random_weights_agree_with_their_definition(tmp_path):
    """Folding takes the part along 1 out of what is read, the gauge out of what is written; nothing gains coherence."""
    model = covector.open(random_model(seed=2, n_layers=3, d_model=32, d_head=8, d_mlp=0, n_vocab=300))
    options = Options(("ov",), draws=500)

    def made(name):
        return built(model.framed(name), tmp_path / name, options)

    table = frames(made("raw"), made, leading=4)
    rows = {(r["step"], r["side"]): r for r in table.rows}
    assert rows["fold", "read"]["one_after"] < 1e-6 < 0.005 < rows["fold", "read"]["one_before"]
    assert rows["centre", "write"]["one_after"] < 1e-6 < 0.005 < rows["centre", "write"]["one_before"]
    assert rows["fold", "write"]["overlap"] < 1
    assert rows["centre", "read"]["overlap"] > 0.5
    assert all(r["q"] > 0.01 for r in table.rows)


def test_frames_that_a_model_lacks_are_left_out_and_said(tmp_path):
    model = covector.open(random_model(seed=2, n_layers=2, norm=Norm("rms", 1e-6), n_vocab=150))
    options = Options(("ov",), draws=50)

    def made(name):
        return built(model.framed(name), tmp_path / name, options)

    table = frames(made("raw"), made)
    assert table.meta["frames"] == ["raw", "folded"]
    assert "This model has no frame gauge_fixed." in table.says


def test_a_model_with_one_frame_alone_is_refused(tmp_path):
    def refused(name):
        raise FrameUnavailable("no norms")

    with pytest.raises(BadRequest, match="expected two frames or more"):
        frames(synthetic(tmp_path / "a"), refused)


def test_the_interval_of_an_effect_holds_it(tmp_path):
    def noisy(by):
        def change(columns, rng):
            columns["z_coherence"] = np.random.default_rng(int(10 * by)).standard_normal(len(columns["dyad"])) + by

        return change

    atlases = {n: synthetic(tmp_path / n, noisy(by), frame_name=n) for n, by in (("raw", 0.0), ("folded", 0.5))}
    for r in frames(atlases["raw"], atlases.__getitem__, names=("raw", "folded")).rows:
        if r["sites"] == 16:
            assert r["low"] < 0.5 < r["high"]
