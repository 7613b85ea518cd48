"""Power of the written rules on planted topics, beside what they call where nothing was planted.

A dyad that is the centre of its topic shares everything with its list (`aligned`); one beside the centre leaves its
list something beyond it (`interpretable`). At strength 0 the same atlas has no topic in it.
"""

import dataclasses

import numpy as np
import pytest
from scipy import stats

import covector
from known_truths import D_HEAD, WIDE, atlas_of, planted_model, rotated_internals, verdicts

LEVEL = 0.05
SCORED = {"kinds": ("ov",), "scores": True, "draws": 1000}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory):
    """(strength, tilt) → the verdicts on one model."""
    folder, made = tmp_path_factory.mktemp("verdicts"), {}

    def of(strength: float, tilt: float):
        if (strength, tilt) not in made:
            model, plants = planted_model(strength, 0, dataclasses.replace(WIDE, tilt=tilt))
            made[strength, tilt] = verdicts(atlas_of(model, folder / f"{strength}-{tilt}", **SCORED), plants)
        return made[strength, tilt]

    return of


def test_a_dominant_dyad_at_the_centre_of_its_topic_is_aligned_and_not_interpretable(judged) -> None:
    found = judged(4.0, 0.0)
    assert found.topics == WIDE.layers  # every second layer, both sides of its head
    assert (found.aligned, found.interpretable) == (found.topics, 0)


def test_a_dominant_dyad_beside_the_centre_of_its_topic_is_interpretable(judged) -> None:
    found = judged(4.0, WIDE.tilt)
    # Some lie so near the centre after noise that the direction still carries half of what the list shares.
    assert found.interpretable >= found.topics / 2
    assert found.interpretable + found.aligned >= 0.95 * found.topics


@pytest.mark.parametrize("tilt", [0.0, WIDE.tilt])
def test_verdicts_grow_with_strength_from_nothing(judged, tilt: float) -> None:
    counts = [judged(s, tilt).interpretable + judged(s, tilt).aligned for s in (0.0, 0.5, 4.0)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert 0 < counts[1] < WIDE.layers


@pytest.mark.parametrize("case", [(0.0, 0.0), (4.0, 0.0), (4.0, WIDE.tilt)], ids=str)
def test_directions_that_were_not_planted_are_called_no_more_often_than_the_level(judged, case: tuple) -> None:
    found = judged(*case)
    # False calls of q are at most the level of all calls in the mean; 10⁻³ beyond that, with one for the fraction.
    calls = found.interpretable + found.aligned + found.others_called
    assert found.others_called <= stats.binom.isf(1e-3, calls, LEVEL) + 1
    assert found.others == WIDE.layers * 2 * D_HEAD - 2 * found.topics


def test_no_topic_is_called_once_the_blocks_are_rotated_against_the_embeddings(tmp_path, judged) -> None:
    """The same weights up to a rotation of the stream, the same spectra, the same rule."""
    weights, plants = planted_model(4.0, 0, WIDE)
    turned = rotated_internals(covector.open(weights), seed=1)
    atlas = atlas_of(turned, tmp_path / "turned", **SCORED)
    found = verdicts(atlas, plants)
    assert judged(4.0, WIDE.tilt).interpretable > 0
    assert found.interpretable + found.aligned + found.others_called == 0
    told = atlas.column("p_coherence")
    assert (told < LEVEL).mean() <= LEVEL + 4 * np.sqrt(LEVEL * (1 - LEVEL) / len(told))


@pytest.mark.parametrize("rotations", [1, 2])
def test_with_few_random_bases_no_direction_of_a_model_can_be_called_svd_specific(tmp_path, rotations: int) -> None:
    """A limit, stated: p >= 1/(rotations·d_head + 1), and q = N·p/rank over N directions needs rank > N·p/level."""
    model, _ = planted_model(4.0, 0, dataclasses.replace(WIDE, layers=2))
    atlas = atlas_of(model, tmp_path / "a", **(SCORED | {"rotations": rotations}))
    least = 1 / (rotations * D_HEAD + 1)
    assert np.nanmin(atlas.column("p_coherence_svd")) >= least - 1e-12
    assert (atlas.column("p_coherence_svd") <= least + 1e-12).sum() < len(atlas) * least / LEVEL
    assert not atlas.column("svd_specific").any()
