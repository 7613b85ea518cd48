"""Embeddings that were never read: negative controls inside trained models.

The corpus of demo-lm is a grammar, so that the tokens it cannot write are known. The decision transformer of the memory
task has channels that its environment never lights: their weights are still those of the initialisation.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import covector
from covector.demo.corpus import documents
from covector.io.atlas import Atlas
from covector.model.bases import undertrained
from covector.model.opened import Model
from known_truths import LEVEL, alphabet, atlas_of, never_read, of_never_read

LAYOUT = Path(__file__).parents[1] / "layouts" / "dt-minigrid-memory.toml"


@pytest.fixture(scope="module")
def demo() -> Model:
    return covector.open("demo-lm")


@pytest.fixture(scope="module")
def demo_atlas(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return atlas_of(demo, tmp_path_factory.mktemp("demo") / "a")


def test_the_alphabet_of_the_truth_is_that_of_its_documents() -> None:
    assert alphabet() == set("".join(document.text for document in documents(1, 1500)))


def test_tokens_that_no_text_can_hold_are_flagged_and_tokens_of_texts_are_not(demo: Model) -> None:
    labels, flagged = demo.bases["token_in"].labels, undertrained(demo.bases["token_in"])
    never = never_read(labels)
    never[0] = False  # starts every document
    assert never.sum() > 100
    assert flagged[never].all()
    assert demo.vocabulary is not None
    seen = {i for document in documents(2, 1000) for i in demo.vocabulary.encode(document.text)}
    assert not flagged[sorted(seen)].any()
    assert len(seen) > 1000  # else the line above says little


def test_flagged_tokens_are_in_no_list_that_is_judged(demo: Model) -> None:
    chosen = demo.bases.dictionary("token_in")
    never = undertrained(demo.bases["token_in"])
    assert not chosen.keep[never].any()
    rows = np.random.default_rng(0).standard_normal((50, demo.spec.d_model))
    lists = chosen.lists(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert not never[lists.top].any()
    assert not never[lists.bottom].any()


def test_what_never_read_tokens_share_is_met_no_more_often_than_chance_while_others_are_called(
    demo: Model, demo_atlas: Atlas
) -> None:
    found = of_never_read(demo, demo_atlas)
    assert found.called > LEVEL * len(demo_atlas)
    # One fixed direction against many: p is exact, the directions of a site are orthogonal.
    assert (found.p < LEVEL).mean() <= LEVEL + 4 * np.sqrt(LEVEL * (1 - LEVEL) / len(found.p))
    assert not (found.q < LEVEL).any()
    # They are a tenth of the vocabulary, and of called lists they are at most as much.
    assert found.listing <= found.called * found.tokens / found.of


@pytest.fixture(scope="module")
def memory(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Atlas]:
    model = covector.open(shared / "models" / "dt-minigrid-memory", layout=LAYOUT)
    return model, atlas_of(model, tmp_path_factory.mktemp("memory") / "a")


def untrained_channels(model: Model) -> np.ndarray:
    """Channels as long as torch.nn.Linear makes them: 128 numbers, uniform within ±1/√980.

    Squared length 128/(3·980), standard deviation √128·√(4/45)/980; 4.5 of these on either side.
    """
    n, d = model.bases["state_in"].vectors.shape
    squares = model.bases["state_in"].norms ** 2
    return np.abs(squares - d / (3 * n)) < 4.5 * np.sqrt(d * 4 / 45) / n


@pytest.mark.identity("SV-30")
def test_channels_that_are_never_lit_are_met_at_the_level_and_lit_ones_are_called(
    memory: tuple[Model, Atlas],
) -> None:
    """The p of an atlas, restricted to either kind of channel: largest |cos|, union of exact tails, BH by SciPy."""
    model, atlas = memory
    never = untrained_channels(model)
    assert never.sum() > 600
    assert (~never).sum() > 200
    units = model.bases["state_in"].unit().astype(np.float64)
    rows = atlas.vectors[atlas.column("basis") == "state_in"].astype(np.float64)
    d = rows.shape[1]

    def p(of: np.ndarray) -> np.ndarray:
        best = np.abs(rows @ units[of].T).max(axis=1)
        return np.minimum(1.0, of.sum() * stats.beta.sf(best**2, 0.5, (d - 1) / 2))

    # Rows of a site are orthonormal, channels independent: the binomial error holds.
    error = np.sqrt(LEVEL * (1 - LEVEL) / len(rows))
    assert abs((p(never) < LEVEL).mean() - LEVEL) < 4 * error
    assert not (stats.false_discovery_control(p(never)) < LEVEL).any()
    assert (p(~never) < LEVEL).mean() > 4 * LEVEL
    assert (stats.false_discovery_control(p(~never)) < LEVEL).mean() > LEVEL


def test_the_atlas_names_never_lit_channels_where_it_calls_nothing_and_seldom_where_it_calls(
    memory: tuple[Model, Atlas],
) -> None:
    model, atlas = memory
    never = untrained_channels(model)
    told = atlas.columns("basis", "q_dir", "cos", "top_id", "bottom_id")
    at = np.flatnonzero(told["basis"] == "state_in")
    nearest = np.array([told["top_id" if told["cos"][i] > 0 else "bottom_id"][i][0] for i in at])
    called = told["q_dir"][at] < LEVEL
    assert called.sum() > LEVEL * len(at)
    # Were calls blind to training, never-lit channels would be named as often as they are many.
    assert never[nearest[called]].mean() < 0.1 < 0.5 * never.mean()
    # Where nothing is called a random direction is nearest to any channel: as often as they are many, or a little less.
    assert never[nearest[~called]].mean() > 0.75 * never.mean()
