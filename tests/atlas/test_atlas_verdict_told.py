"""What a judged atlas says of its verdicts when it is built."""

from pathlib import Path

import numpy as np
import pytest

import covector
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.building import build_atlas, said
from covector.linalg.dictionary import FEWEST, SHORTEST, list_sizes
from synthetic_atlas import synthetic


@pytest.mark.parametrize(("d_head", "rotations", "decided"), [(2, 1, False), (3, 1, False), (2, 2, True), (4, 1, True)])
def test_heads_too_narrow_for_a_q_against_rotated_bases_are_told(
    tmp_path: Path, d_head: int, rotations: int, decided: bool
) -> None:
    """Four rotated directions per head are the fewest that have a deviation without one of them."""
    weights = random_model(seed=1, n_layers=1, d_model=16, n_heads=2, d_head=d_head, biases=False, n_vocab=400)
    options = Options(kinds=("ov",), k=5, draws=300, rotations=rotations)
    atlas = build_atlas(covector.open(weights), tmp_path / "a", options=options)
    assert atlas is not None
    assert np.isfinite(atlas.column("p_coherence_svd")).all()
    assert np.isfinite(atlas.column("q_coherence_svd")).all() == decided
    assert ("None can be svd_specific: one rotation of so narrow a head" in said(atlas)) != decided


def test_lists_that_cannot_be_judged_are_not_called_uninterpretable(tmp_path: Path) -> None:
    sizes = {n: min(list_sizes(n)) for n in (FEWEST - 1, FEWEST)}
    assert sizes == {FEWEST - 1: SHORTEST - 1, FEWEST: SHORTEST}
    weights = random_model(seed=1, n_layers=1, d_model=16, n_heads=2, d_head=4, biases=False, n_vocab=60)
    atlas = build_atlas(covector.open(weights), tmp_path / "a", options=Options(kinds=("ov",), k=5, draws=60))
    assert atlas is not None
    assert "No list could be judged: that takes 144 tokens" in said(atlas)
    assert "interpretable" not in said(atlas)


def test_rotated_bases_are_told_of_those_that_have_any(tmp_path: Path) -> None:
    """Two of three interpretable directions lie in heads; none is specific, and one rotation could hardly say so."""

    def change(columns: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        head = np.flatnonzero(columns["site"] == "L0H0.ov")
        other = np.flatnonzero(columns["site"] == "L0.mlp.out")
        columns["interpretable"] = np.isin(np.arange(len(columns["site"])), [*head[:2], other[0]])
        columns["svd_specific"] = np.zeros(len(columns["site"]), bool)
        columns["aligned"] = np.zeros(len(columns["site"]), bool)
        columns["coherence"] = np.zeros(len(columns["site"]))
        inside = np.array([".ov" in str(s) for s in columns["site"]])
        columns["p_coherence_svd"] = np.where(inside, 0.03, np.nan)
        columns["q_coherence_svd"] = np.where(inside, 0.25, np.nan)

    text = said(synthetic(tmp_path / "a", change, kinds=("ov", "mlp.out")))
    assert "3 are interpretable by the rule" in text
    assert (
        "Of the 2 in heads 0 also against rotated bases of their head (the least q of the atlas is 0.25; more" in text
    )
