"""Judged columns of an atlas: what each direction's lists score by themselves, whoever is judged beside it."""

import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import covector
from covector.arch.toy import random_model
from covector.atlas.judge import DENSE_DRAWS, null_scores
from covector.atlas.plan import Against, Options
from covector.atlas.verdict import AGAINST_DRAWS
from covector.building import build_atlas
from covector.io.atlas import Atlas
from covector.linalg.chance.lists import ListNull, basis_lists, haar_lists, matched_lists
from covector.linalg.chance.pareto import tail_p
from covector.linalg.list_scores import list_scores
from covector.linalg.maps import Map
from covector.linalg.stability import DRAWS, ONE_PERCENT, stability
from covector.linalg.svd import SVD
from covector.model.opened import Model

JUDGED = (
    "coherence", "heldout", "heldout_low", "heldout_high", "intruder", "p_intruder", "lexical", "whole", "carried",
    "p_coherence_svd", "z_coherence_svd", "p_heldout_svd", "z_intruder_svd", "z_lexical_svd", "stability", "score_pole",
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
    rows = pd.read_parquet(atlas.folder / "index.parquet")
    assert isinstance(rows, pd.DataFrame)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 4])
def test_what_a_dyads_lists_score_does_not_depend_on_how_many_are_kept(model, whole, tmp_path, rank):
    few, every = rows_of(made(model, tmp_path / "b", rank=rank)), rows_of(whole)
    every = every[every.dyad < rank].reset_index(drop=True)
    assert list(every.site) == list(few.site)
    for name in JUDGED:
        # The rows that a product has beside a row move its last digits.
        np.testing.assert_allclose(few[name], every[name], rtol=1e-5, atol=1e-8, err_msg=name)


def spellings(words: list[str]) -> float:
    """Mean cosine of pairs of counts of character pairs and triples, by counting."""
    counted = []
    for word in words:
        marked = f"<{word.strip('·▁Ġ ').casefold()}>"
        counted.append(Counter(marked[i : i + n] for n in (2, 3) for i in range(len(marked) - n + 1)))
    cosines = [
        sum(a[g] * b[g] for g in a) / np.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
        for a, b in combinations(counted, 2)
    ]
    return float(np.mean(cosines))


def compared(null: ListNull, scored: int, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What null lists score, under the names of columns."""
    told = null.scores
    spelt = np.round([spellings([str(labels[i]) for i in row[:scored]]) for row in told.members], 10)
    return {"coherence": told.coherence, "heldout": told.auc, "intruder": told.intruder, "lexical": spelt}


def sides(model: Model, atlas: Atlas) -> Iterator[tuple[pd.DataFrame, Map, SVD, np.ndarray, str, str]]:
    """Rows of every side of every map that are compared with tokens, and the map's own vectors in float64."""
    rows = rows_of(atlas)
    for place, side in sorted({(p, s) for p, s in zip(rows.site, rows.side, strict=True) if not p.endswith("embed")}):
        m = model.map(place)
        found = covector.svd(m)
        told = rows.loc[(rows.site == place) & (rows.side == side)]
        assert isinstance(told, pd.DataFrame)
        vectors = found.Vh if side in ("write", "key") else found.U.T
        yield told, m, found, vectors[: len(told)], side, "token_out" if side == "write" else "token_in"


def test_lists_judged_together_are_those_judged_alone(model, whole):
    """Every side by itself. All judged columns, each against what it is said to be."""
    seen = 0
    for told, _, _, vectors, _, basis in sides(model, whole):
        words, labels = model.bases.dictionary(basis), model.bases[basis].labels
        lists = words.lists(vectors)
        alone = list_scores(vectors, lists, words, seed=0)
        near = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        near(told.coherence, alone.coherence)
        np.testing.assert_array_equal(told.score_pole, np.where(alone.by_pole[:, 0] >= alone.by_pole[:, 1], 1, -1))
        np.testing.assert_allclose(told.heldout, alone.auc, atol=1e-6)
        np.testing.assert_allclose(told.heldout_low, alone.low, atol=1e-5)
        np.testing.assert_allclose(told.heldout_high, alone.high, atol=1e-5)
        assert (told.heldout_low < told.heldout).all()
        assert (told.heldout < told.heldout_high).all()
        near(told.whole, alone.whole)
        np.testing.assert_allclose(told.carried, alone.carries / alone.whole, rtol=1e-4)
        members = np.where(told.score_pole.to_numpy()[:, None] > 0, lists.top, lists.bottom)[:, : words.scored]
        by_hand = [spellings([str(labels[i]) for i in row]) for row in members]
        np.testing.assert_allclose(told.lexical, by_hand, atol=1e-6)
        again = list_scores(vectors, lists, words, seed=0, intruders=True).intruder
        np.testing.assert_allclose(told.intruder, again, atol=1e-6)
        assert 0 < again.mean() < 1
        if len(vectors) == 6:  # a head's whole subspace
            rotated = basis_lists(words, vectors, draws=6, seed=0, intruders=True)
            assert rotated is not None
            for name, null in compared(rotated, words.scored, labels).items():
                told_p, told_z, values = told[f"p_{name}_svd"], told[f"z_{name}_svd"], told[name].to_numpy()
                values = np.round(values, 10) if name == "lexical" else values
                reached = [(1 + np.sum(null >= value)) / 7 for value in values]
                p = reached if name in ("intruder", "lexical") else tail_p(values, null)
                np.testing.assert_allclose(told_p, p, rtol=1e-4, err_msg=name)
                flat = np.ptp(null) == 0
                z = np.full(6, np.nan) if flat else (values - null.mean()) / null.std(ddof=1)
                np.testing.assert_allclose(told_z, z, rtol=1e-4, atol=1e-5, err_msg=name)
            seen += 1
        else:
            assert told.filter(regex="_svd$").drop(columns="q_svd").isna().all().all()
    assert seen == 2 * 3 * 4


def test_chances_are_tails_among_lists_of_random_directions_of_the_same_basis(model, whole):
    """p and z of every score, against both laws, q over every direction of the atlas."""
    every = rows_of(whole)
    for basis in ("token_in", "token_out"):
        words, labels = model.bases.dictionary(basis), model.bases[basis].labels
        haar, cov = (of(words, draws=40, intruders=True) for of in (haar_lists, matched_lists))
        by_law = {"": compared(haar, words.scored, labels), "_cov": compared(cov, words.scored, labels)}
        for told in (told for told, *_, of in sides(model, whole) if of == basis):
            for law, nulls in by_law.items():
                for name, null in nulls.items():
                    values = np.round(told[name].to_numpy(), 10) if name == "lexical" else told[name].to_numpy()
                    reached = [(1 + np.sum(null >= value)) / 41 for value in values]
                    p = reached if name in ("intruder", "lexical") else tail_p(values, null)
                    np.testing.assert_allclose(told[f"p_{name}{law}"], p, rtol=1e-3, err_msg=name + law)
            for name, null in by_law[""].items():
                z = (told[name] - null.mean()) / null.std(ddof=1)
                np.testing.assert_allclose(told[f"z_{name}"], z, rtol=1e-4, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(told.p_whole, tail_p(told.whole.to_numpy(), haar.scores.whole), rtol=1e-3)
    for score in ("coherence", "heldout", "intruder", "lexical"):
        for q, p in ((f"q_{score}", f"p_{score}"), (f"q_{score}_cov", f"p_{score}_cov"),
                     (f"q_{score}_svd", f"p_{score}_pooled")):  # fmt: skip
            defined = every[p].notna()
            np.testing.assert_allclose(every[q][defined], stats.false_discovery_control(every[p][defined]), rtol=1e-12)
            assert every[q][~defined].isna().all()
            assert defined.sum() > 100


def beside(value: float, others: np.ndarray) -> float:
    """Equation 19; NaN where the others are alike."""
    spread = others.std(ddof=1) * np.sqrt(1 + 1 / len(others))
    return float(np.round((value - others.mean()) / spread, 9)) if np.ptp(others) > 1e-9 else np.nan


def test_every_score_of_a_head_is_pooled_with_those_of_rotated_bases_of_all_heads(model, whole):
    """Each rotated list beside the five others of its basis, direction i beside those without the i-th."""
    names = ("coherence", "heldout", "intruder", "lexical")
    pools, own = ({name: list[float]() for name in names} for _ in range(2))
    for told, _, _, vectors, _, basis in sides(model, whole):
        words, labels = model.bases.dictionary(basis), model.bases[basis].labels
        rotated = basis_lists(words, vectors, draws=6, seed=0, intruders=True) if len(vectors) == 6 else None
        for name, null in compared(rotated, words.scored, labels).items() if rotated else ():
            pools[name] += [beside(null[i], np.delete(null, i)) for i in range(6)]
            own[name] += [beside(value, np.delete(null, i)) for i, value in enumerate(told[name])]
    every = rows_of(whole)
    of_heads = np.concatenate([told.index for told, *_ in sides(model, whole) if len(told) == 6])
    for name in names:
        drawn, z = np.array(pools[name]), np.array(own[name])
        drawn, defined = drawn[np.isfinite(drawn)], np.isfinite(z)
        told = every[f"p_{name}_pooled"][of_heads].to_numpy()
        assert (np.isfinite(told) == defined).all()
        counted = np.array([(1 + np.sum(drawn >= value)) / (len(drawn) + 1) for value in z[defined]])
        # Where ten draws or more reach a value it is counted; one that is within rounding of a draw may fall on
        # either side of it. Beyond, a tail is fitted, which `chance.pareto` is tested for.
        inside = counted * (len(drawn) + 1) > 11
        off = np.abs(told[defined] - counted)[inside]
        assert inside.sum() > 60
        assert (off <= 1.5 / len(drawn)).mean() > 0.97, name


def test_of_null_draws_nothing_is_kept_that_no_column_is_made_of(model):
    kept = null_scores(model, Against("token_out", False), Options(draws=40))
    assert set(kept) == {draws for _, draws in AGAINST_DRAWS.values()}


def test_stability_is_that_of_the_side_and_the_map(model, whole):
    """The two sides of a map turn by different amounts; noise is drawn per place."""
    differ = 0
    for told, m, found, _, side, _ in sides(model, whole):
        site = model.site(told.site.iloc[0])
        layer, head = (0 if at is None else at + 1 for at in (site.layer, site.head))
        place = (0, layer, head, zlib.crc32(site.kind.encode()))
        moved = stability(m, found, delta=ONE_PERCENT, draws=DRAWS if head else DENSE_DRAWS, seed=place)
        expected, other = (moved.write, moved.read) if side in ("write", "key") else (moved.read, moved.write)
        np.testing.assert_allclose(told.stability, expected[: len(told)], rtol=1e-5)
        differ += bool(head) and not np.allclose(expected, other, rtol=3e-5)
    assert differ == 2 * 3 * 4


def test_more_rotations_are_pooled(model, whole, tmp_path):
    more, once = rows_of(made(model, tmp_path / "c", rotations=5)), rows_of(whole)
    np.testing.assert_allclose(more.coherence, once.coherence, rtol=1e-6)
    told = np.isfinite(once.p_coherence_svd)
    assert told.any()
    assert (told == np.isfinite(more.p_coherence_svd)).all()
    assert more.p_coherence_svd.min() < 1 / 7 - 1e-9 <= once.p_coherence_svd.min() + 1e-9  # of 30 draws, and of 6
