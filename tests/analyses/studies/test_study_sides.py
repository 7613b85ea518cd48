"""What heads read against what they write, on the same dyads."""

import numpy as np
import pytest

import covector
from covector.analyses.studies.sides import sides
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.errors import BadRequest
from synthetic_atlas import built, reading_topics, synthetic


def shifted(by: float, side: str):
    def change(columns, rng):
        at = (columns["kind"] == "ov") & (columns["side"] == side)
        columns["z_coherence"] = columns["z_coherence"] + by * at

    return change


@pytest.mark.parametrize(("by", "side", "sign"), [(1.0, "read", 1), (1.0, "write", -1), (-1.0, "read", -1)])
def test_a_planted_difference_is_found_with_its_sign_and_size(tmp_path, by, side, sign):
    found = sides(synthetic(tmp_path / "a", shifted(by, side))).rows[0]
    # 16 heads of 8 dyads: the mean difference has a standard error of √(2/8/16) = 0.125.
    assert found["difference"] == pytest.approx(sign, abs=4 * 0.125)
    assert found["low"] < sign < found["high"]
    assert found["p"] < 0.01
    assert found["heads"] == 16


@pytest.mark.slow
def test_on_sides_that_are_alike_p_is_nominal(tmp_path):
    p = [sides(synthetic(tmp_path / str(i), seed=i, kinds=("ov",))).rows[0]["p"] for i in range(100)]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=4 * 0.05)


def test_dyads_are_paired_within_their_head(tmp_path):
    """Heads differ by far more than their sides do: unpaired, nothing would be seen."""

    def change(columns, rng):
        head = np.array([0.0 if h is None else 50.0 * h for h in columns["head"]])
        columns["z_coherence"] = 0.1 * columns["z_coherence"] + head + 0.5 * (columns["side"] == "read")

    found = sides(synthetic(tmp_path / "a", change)).rows[0]
    assert found["difference"] == pytest.approx(0.5, abs=0.1)
    assert found["p"] < 0.001


def test_every_basis_of_the_read_side_is_a_row_and_the_atlas_own_agrees_with_its_columns(tmp_path):
    model = covector.open(random_model(seed=5, n_layers=3, d_model=32, d_head=8, n_vocab=300))
    atlas = built(model, tmp_path / "a", Options(("ov",), draws=1000))
    table = sides(atlas, model, draws=1000)
    assert list(table["basis"]) == ["token_in", "token_in_mlp0", "token_out", "token_in:ridge=1"]
    assert (np.asarray(table["p"]) > 0.01).all()
    again = sides(atlas, model, bases=["token_out", "token_in"], draws=1000)
    assert list(again["basis"]) == ["token_in", "token_out"]
    assert again.rows[1] == table.rows[2] | {"q": again.rows[1]["q"]}


def test_a_planted_reading_is_seen_in_the_basis_that_has_it(tmp_path):
    """Heads read near topics of the unembedding: z is high in token_out, not in token_in."""
    model = covector.open(reading_topics())
    atlas = built(model, tmp_path / "a", Options(("ov",), draws=500))
    found = {r["basis"]: r for r in sides(atlas, model, bases=["token_in", "token_out"], draws=500).rows}
    assert found["token_out"]["z_read"] > 1 > 0.5 > abs(found["token_in"]["z_read"])
    assert found["token_out"]["difference"] > 0.5
    assert found["token_out"]["q"] < 0.05


def test_an_atlas_without_heads_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="expected heads with an OV map"):
        sides(synthetic(tmp_path / "a", kinds=("mlp.in",)))
