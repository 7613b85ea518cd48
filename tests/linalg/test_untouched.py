"""Rows and heads as training found them are told from trained ones, whatever law they were drawn from."""

import numpy as np
import pytest

from covector.linalg.untouched import untouched_head, untouched_rows

D = 96


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D))


def decayed(table: np.ndarray, by: float = 0.4) -> np.ndarray:
    """What decay by constant steps leaves: small entries become zero, the others lose the same amount."""
    return np.sign(table) * np.maximum(np.abs(table) - by, 0.0)


@pytest.mark.parametrize("law", [lambda t: t, lambda t: 0.02 * t, decayed, np.tanh], ids=["1", ".02", "decay", "tanh"])
def test_a_table_of_independent_entries_is_untouched_but_for_one_row_in_a_hundred(law) -> None:
    assert untouched_rows(law(rows(400))).mean() > 0.99


@pytest.mark.identity("SV-39")
def test_rows_that_training_made_longer_or_turned_together_are_found_among_untouched_ones() -> None:
    table = rows(300)
    table[:20] *= 1.8
    table[20:40] += 0.9 * rows(1, seed=5)
    found = untouched_rows(table)
    assert not found[:20].any()
    # Most of those that share a direction stand out by their length; the few that do not are too few to align.
    assert found[20:40].sum() <= 4
    assert found[40:].mean() > 0.98


def test_a_table_whose_rows_share_a_direction_has_no_untouched_row() -> None:
    assert not untouched_rows(rows(200) + 0.5 * rows(1, seed=1)).any()
    smooth = np.cumsum(rows(200), axis=0)
    assert not untouched_rows(smooth / np.linalg.norm(smooth, axis=1, keepdims=True)).any()


def test_few_rows_cannot_show_it_and_null_rows_are_never_untouched() -> None:
    assert not untouched_rows(rows(15)).any()
    table = rows(100)
    table[::4] = 0.0
    found = untouched_rows(table)
    assert not found[::4].any()
    assert found.sum() >= 74


def test_a_head_with_a_bias_of_zeros_and_gaussian_weights_is_untouched() -> None:
    assert "bias exactly zero" in untouched_head(0.05 * rows(7), np.zeros(7))
    assert untouched_head(0.05 * rows(7), np.full(7, 1e-7)) == ""
    assert untouched_head(0.05 * rows(7), None) == ""
    assert untouched_head(rows(7) ** 3, np.zeros(7)) == ""


def test_a_head_within_the_bounds_of_torch_is_untouched_and_one_entry_beyond_shows_training() -> None:
    rng = np.random.default_rng(3)
    W, b = rng.uniform(-1, 1, (7, D)) / np.sqrt(D), rng.uniform(-1, 1, 7) / np.sqrt(D)
    assert "evenly" in untouched_head(W, b)
    assert "evenly" in untouched_head(W.astype(np.float16).astype(float), b.astype(np.float16).astype(float))
    W[0, 0] = 1.1 / np.sqrt(D)
    assert untouched_head(W, b) == ""
    assert untouched_head(rng.uniform(-0.5, 0.5, (7, D)) / np.sqrt(D), b) == ""
    assert untouched_head(np.zeros((3, D)), None) == "all zero"


@pytest.mark.identity("SV-30")
@pytest.mark.parametrize(
    ("name", "table", "least", "most"),
    # The theory page counts 754 of 980 state channels at their first length; episodes of 50 steps reach 50 of 1001.
    [("dt-minigrid-memory", "state_embedding", 740, 770), ("dt-minigrid-memory", "time_embedding", 940, 970)],
)
def test_untouched_rows_of_a_real_agent_are_those_that_the_theory_page_counts(shared, name, table, least, most) -> None:
    from covector.io.tensors import open_folder

    stored = open_folder(shared / "models" / name)
    found = stored.read(f"{table}.weight").astype(float)
    vectors = found.T if table == "state_embedding" else found
    assert least <= untouched_rows(vectors).sum() <= most
