"""Judged columns of an atlas: what each direction's lists score by themselves, whoever is judged beside it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import covector
from covector.arch.toy import random_model
from covector.atlas.plan import Options
from covector.building import build_atlas
from covector.io.atlas import Atlas
from covector.linalg.chance.lists import basis_lists
from covector.linalg.list_scores import list_scores
from covector.model.opened import Model

JUDGED = (
    "coherence", "heldout", "heldout_low", "heldout_high", "intruder", "p_intruder", "lexical", "whole", "carried",
    "p_coherence_svd", "z_coherence_svd", "stability", "score_pole",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return covector.open(
        random_model(seed=5, n_layers=2, d_model=24, n_heads=3, d_head=6, d_mlp=40, n_vocab=400, n_ctx=8)
    )


def made(model: Model, folder: Path, **more: int) -> Atlas:
    atlas = build_atlas(model, folder, options=Options(k=4, draws=40, **more), workers=1)  # type: ignore[arg-type]
    assert atlas is not None
    return atlas


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return made(model, tmp_path_factory.mktemp("judged") / "a")


def rows_of(atlas: Atlas) -> pd.DataFrame:
    return pd.read_parquet(atlas.folder / "index.parquet")


@pytest.mark.parametrize("rank", [1, 4])
def test_what_a_dyads_lists_score_does_not_depend_on_how_many_are_kept(model, whole, tmp_path, rank):
    few, every = rows_of(made(model, tmp_path / "b", rank=rank)), rows_of(whole)
    every = every[every.dyad < rank].reset_index(drop=True)
    assert list(every.site) == list(few.site)
    for name in JUDGED:
        # The rows that a product has beside a row move its last digits.
        np.testing.assert_allclose(few[name], every[name], rtol=1e-5, atol=1e-8, err_msg=name)


def test_lists_judged_together_are_those_judged_alone(model, whole):
    """Every side by itself, from the map's own vectors in float64."""
    rows, seen = rows_of(whole), 0
    for place, side in {(s, d) for s, d in zip(rows.site, rows.side, strict=True) if ".ov" in s or ".qk" in s}:
        found = covector.svd(model.map(place))
        basis = model.bases["token_out" if side == "write" else "token_in"]
        words = model.bases.dictionary(basis.name)
        vectors = found.Vh if side in ("write", "key") else found.U.T
        alone = list_scores(vectors, words.lists(vectors), words, seed=0)
        rotated = basis_lists(words, vectors, draws=len(vectors), seed=0)
        assert rotated is not None
        told = rows[(rows.site == place) & (rows.side == side)]
        np.testing.assert_allclose(told.coherence, alone.coherence, rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(told.heldout, alone.auc, atol=1e-6)
        np.testing.assert_allclose(told.p_coherence_svd, rotated.p("coherence", alone.coherence), rtol=1e-4)
        np.testing.assert_allclose(told.z_coherence_svd, rotated.z("coherence", alone.coherence), rtol=1e-4, atol=1e-6)
        seen += 1
    assert seen == 2 * 3 * 4


def test_more_rotations_are_pooled(model, whole, tmp_path):
    more, once = rows_of(made(model, tmp_path / "c", rotations=5)), rows_of(whole)
    np.testing.assert_allclose(more.coherence, once.coherence, rtol=1e-6)
    told = np.isfinite(once.p_coherence_svd)
    assert told.any()
    assert (told == np.isfinite(more.p_coherence_svd)).all()
    assert more.p_coherence_svd.min() < 1 / 7 - 1e-9 <= once.p_coherence_svd.min() + 1e-9  # of 30 draws, and of 6
