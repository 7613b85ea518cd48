"""A film is the episodes again: as many frames as steps, panels side by side, ends marked, nothing half written."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import minigrid  # noqa: F401  registers its environments
import numpy as np
import pytest
from PIL import Image, ImageSequence

from covector.errors import BadRequest, EnvironmentFailed
from covector.io.agent_file import parse_agent
from covector.run.episodes import Episode
from covector.run.film import ENDED, FAILED, FRAME, HEAD, HOLD, Panel, check_film, film

AGENT = parse_agent(
    {
        "environment": {"id": "MiniGrid-Empty-5x5-v0"},
        "observation": {"key": "image"},
        "state": "as is",
        "return": {"target": 1.0},
        "context": 4,
        "success": {"last_reward_above": 0},
    },
    "test",
)
# Two steps along the wall, turn right, two steps down: the goal.
TO_GOAL = (2, 2, 1, 2, 2)


def reached() -> Episode:
    env = gymnasium.make("MiniGrid-Empty-5x5-v0")
    env.reset(seed=5)
    total, terminated = 0.0, False
    for action in TO_GOAL:
        _, reward, terminated, _, _ = env.step(action)
        total += float(reward)
    assert terminated, "five steps reach the goal of this room"
    return Episode(5, 1.0, total, len(TO_GOAL), True, True, TO_GOAL)


def lost() -> Episode:
    """The same actions, told as a failure."""
    return replace(reached(), success=False, total=0.0)


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(image)]


def duration(path: Path) -> float:
    """Milliseconds."""
    with Image.open(path) as image:
        return sum(frame.info["duration"] for frame in ImageSequence.Iterator(image))


def test_a_film_has_a_frame_for_every_step_and_a_panel_for_every_arm(tmp_path: Path) -> None:
    film(AGENT, [Panel("clean", reached()), Panel("edit", lost())], tmp_path / "f.gif")
    shown = frames(tmp_path / "f.gif")
    # The last frame is held; GIF keeps equal frames as one longer frame, so its time counts.
    assert duration(tmp_path / "f.gif") == pytest.approx(
        (len(TO_GOAL) + 1 + HOLD) * 167, abs=90
    )  # GIF counts hundredths
    env = gymnasium.make("MiniGrid-Empty-5x5-v0", render_mode="rgb_array")
    env.reset(seed=5)
    picture = np.asarray(env.render(), dtype=int)
    height, width = picture.shape[:2]
    assert shown[0].shape == (height + HEAD + 2 * FRAME, 2 * (width + 2 * FRAME), 3)
    left = shown[0][HEAD + FRAME : HEAD + FRAME + height, FRAME : FRAME + width]
    assert np.abs(left - picture).mean() < 3, "the first frame is the environment's first picture, up to the palette"
    for action in TO_GOAL:
        env.step(action)
    end = shown[-1][HEAD + FRAME : HEAD + FRAME + height, FRAME : FRAME + width]
    assert np.abs(end - np.asarray(env.render(), dtype=int)).mean() < 3
    assert list(tmp_path.iterdir()) == [tmp_path / "f.gif"]


def test_an_end_is_framed_by_what_it_was(tmp_path: Path) -> None:
    film(AGENT, [Panel("clean", reached()), Panel("edit", lost())], tmp_path / "f.gif")
    first, last = (frames(tmp_path / "f.gif")[i] for i in (0, -1))
    half = last.shape[1] // 2
    for column, colour in ((2, ENDED), (half + 2, FAILED)):
        assert np.abs(last[HEAD + 2, column] - colour).max() < 12
        assert np.abs(first[HEAD + 2, column] - colour).max() > 60


def test_what_cannot_be_filmed_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"ends in \.gif or \.mp4"):
        film(AGENT, [Panel("clean", reached())], tmp_path / "f.avi")
    with pytest.raises(BadRequest, match="one seed"):
        film(AGENT, [Panel("a", reached()), Panel("b", replace(reached(), seed=6))], tmp_path / "f.gif")
    cut = replace(reached(), actions=TO_GOAL[:3], length=3)
    with pytest.raises(BadRequest, match="does not repeat itself"):
        film(AGENT, [Panel("clean", cut)], tmp_path / "f.gif")
    assert not list(tmp_path.iterdir())


def test_the_other_format_is_a_film_too(tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs the extra 'film'")
    film(AGENT, [Panel("clean", reached())], tmp_path / "f.mp4", pace=4.0)
    count, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "f.mp4"))
    assert count == len(TO_GOAL) + 1 + HOLD
    assert seconds == pytest.approx(count / 4, abs=0.3)
    assert list(tmp_path.iterdir()) == [tmp_path / "f.mp4"]


def test_what_cannot_be_drawn_is_refused_beforehand(tmp_path: Path) -> None:
    check_film(AGENT, tmp_path / "f.gif", 5)
    with pytest.raises(EnvironmentFailed, match="expected a picture, its render mode draws none"):
        check_film(AGENT, tmp_path / "f.gif", 5, lambda: gymnasium.make("MiniGrid-Empty-5x5-v0"))
    with pytest.raises(BadRequest, match="expected a folder at"):
        check_film(AGENT, tmp_path / "none" / "f.gif", 5)
    with pytest.raises(BadRequest, match=r"ends in \.gif or \.mp4"):
        check_film(AGENT, tmp_path / "f.png", 5)
    assert not list(tmp_path.iterdir())
