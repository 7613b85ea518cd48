"""Three agents with public weights, in their environments: returns as their cards say, from the example agent files.

Cards: dt-cartpole 50 episodes from seed 0, dt-minigrid-memory 60, dt-minigrid-obstacles 200 from seed 1000. Fewer are
played here where they take long; then the card's mean has to lie within three standard errors of ours.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import covector
from covector.io.agent_file import read_agent
from covector.run.decoder import Decoder
from covector.run.episodes import Episode, Stage, play

EXAMPLES, LAYOUTS = Path(__file__).parents[2] / "examples/agents", Path(__file__).parents[1] / "layouts"


def episodes(shared: Path, name: str, target: float, seeds: range) -> list[Episode]:
    pytest.importorskip("minigrid")
    model = covector.open(shared / "models" / name, layout=LAYOUTS / f"{name}.toml")
    agent = read_agent(EXAMPLES / f"{name}.json")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = play(Decoder(model.weights, torch.float32), Stage(agent), list(seeds), target)
    finally:
        torch.set_num_threads(threads)
    return [t.episode for t in found]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "mean", "shortest", "longest"), [(0.0, 245.4, 208, 270), (-500.0, 9.2, 8, 11)])
def test_the_cart_pole_agent_falls_as_early_as_it_is_asked_to(shared, target, mean, shortest, longest):
    few = 12 if mean > 100 else 50
    found = np.array([e.length for e in episodes(shared, "dt-cartpole", target, range(few))])
    if few == 50:
        assert round(found.mean(), 1) == mean
        assert (found.min(), found.max()) == (shortest, longest)
    assert shortest <= found.min() <= found.max() <= longest
    assert abs(found.mean() - mean) < 3 * found.std(ddof=1) / few**0.5


@pytest.mark.parametrize(("target", "returned", "success"), [(1.0, 0.892, 1.0), (0.0, 0.0, 0.0)])
def test_the_memory_agent_goes_to_the_object_that_the_target_asks_for(shared, target, returned, success):
    found = episodes(shared, "dt-minigrid-memory", target, range(60))
    assert round(float(np.mean([e.total for e in found])), 3) == returned
    assert np.mean([bool(e.success) for e in found]) == success
    assert round(float(np.mean([e.length for e in found])), 1) == 6.0


def test_the_obstacles_agent_reaches_the_goal_as_often_as_its_card_says(shared):
    found = episodes(shared, "dt-minigrid-obstacles", 1.0, range(1000, 1200))
    assert round(float(np.mean([e.total for e in found])), 3) == 0.765
    assert round(float(np.mean([bool(e.success) for e in found])), 2) == 0.89
    assert round(float(np.mean([e.length for e in found])), 1) == 18.5


def test_the_obstacles_agent_collides_when_it_is_asked_to(shared):
    found = episodes(shared, "dt-minigrid-obstacles", -1.0, range(1000, 1040))
    assert {e.total for e in found} == {-1.0}
    assert not any(e.success for e in found)
