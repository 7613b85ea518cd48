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


def told_of(tmp_path: Path, **columns: np.ndarray | float) -> str:
    """What is said of an atlas of heads, an MLP and an embedding with these columns, nothing called in it."""

    def change(made: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        n = len(made["site"])
        plain = {"interpretable": np.zeros(n, bool), "svd_specific": np.zeros(n, bool), "aligned": np.zeros(n, bool)}
        made |= plain | {"coherence": np.zeros(n)}
        inside = np.array([".ov" in str(s) for s in made["site"]])
        made["p_coherence_svd"] = np.where(inside, (np.arange(n) % 16 + 0.5) / 16, np.nan)
        made["q_coherence_svd"] = np.where(inside, 1.0, np.nan)
        made["q_coherence"] = np.ones(n)
        for name, value in columns.items():
            made[name] = np.where(inside, value, made[name])

    return said(synthetic(tmp_path / "a", change, kinds=("ov", "mlp.out", "embed")))


def test_embeddings_near_their_own_rows_are_counted_apart(tmp_path: Path) -> None:
    def near_in_the_embedding(made: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        n = len(made["site"])
        made |= {name: np.zeros(n, bool) for name in ("interpretable", "svd_specific", "aligned")}
        made |= {name: np.full(n, np.nan) for name in ("coherence", "p_coherence_svd", "q_coherence_svd")}
        embed = np.array([str(s) == "embed" for s in made["site"]])
        made |= {"q_dir": np.where(embed, 0.001, 0.9), "q_coherence": np.ones(n)}

    atlas = synthetic(tmp_path / "a", near_in_the_embedding, kinds=("ov", "mlp.out", "embed"))
    embedded = int((atlas.column("site") == "embed").sum())
    assert embedded > 0
    assert said(atlas).startswith(
        f"0 of {len(atlas) - embedded:,} directions in layers lie closer to a token than random ones (q < .05); of "
        f"embeddings {embedded} of {embedded} directions do, which lie near their own rows anyway."
    )


def test_rotated_bases_that_score_alike_are_told_where_nothing_is_called(tmp_path: Path) -> None:
    """p even between 0 and 1 is what rotated bases give; p below .05 for all is not."""
    alike = (
        "6.2% of lists of heads are more coherent than 95 % of those of rotated bases (5 % by chance): rotated bases"
    )
    assert alike in told_of(tmp_path)
    better = told_of(tmp_path / "b", p_coherence_svd=0.01)
    assert "100.0% of lists of heads are more coherent than 95 % of those of rotated bases (5 % by chance)." in better


def test_lists_whose_verdict_hangs_on_the_draws_are_counted(tmp_path: Path) -> None:
    text = told_of(tmp_path, q_coherence=0.09)
    assert "lists q is within a factor of two of 0.05: more --draws decide them." in text
    assert "more --draws" not in told_of(tmp_path / "b", q_coherence=0.11)
