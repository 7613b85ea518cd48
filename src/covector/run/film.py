"""Recorded episodes as a film: several arms of one seed side by side, step by step, each end marked.

Episodes are played again from their seeds and recorded actions in an environment that draws; no model runs. A panel
whose episode is over stands still, framed: orange where it failed, blue where it did not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from covector.errors import BadRequest, EnvironmentFailed, MissingExtra
from covector.io.atomic import written
from covector.run.environments import Factory, World, make
from covector.run.episodes import Episode
from covector.study.agent import Agent

# Colours of a failure and of any other end: the ends of the diverging scale, told apart by every eye.
FAILED, ENDED = (192, 100, 15), (43, 108, 163)
PAPER, INK = (247, 246, 243), (30, 30, 30)
FRAME, HEAD = 6, 44
# Frames of a film; longer episodes are shown with every k-th step.
MOST_FRAMES = 300
HOLD = 12


@dataclass(frozen=True)
class Panel:
    """One arm of a film: what is written over it, and its episode."""

    name: str
    episode: Episode


def check_film(agent: Agent, path: Path, seed: int, factory: Factory | None = None) -> None:
    """Whether `film` can write such a file: the environment is begun once from the seed and draws a picture.

    Raises as `film`, and BadRequest where the folder of the file is not there.
    """
    _check_ending(path)
    if not path.expanduser().absolute().parent.is_dir():
        raise BadRequest(f"--record: expected a folder at '{path.parent}', there is none; make it, or name another")
    if path.suffix.lower() == ".mp4":
        _ffmpeg()
    world = make(agent, factory, draws=True)
    try:
        world.begin(seed)
        _drawn(world)
    finally:
        world.env.close()


def film(agent: Agent, panels: Sequence[Panel], path: Path, factory: Factory | None = None, pace: float = 6.0) -> None:
    """Write the panels' episodes side by side to `path` (.gif or .mp4), `pace` frames a second.

    The file is written beside and renamed. Raises BadRequest for another ending, episodes of different seeds or that
    do not repeat themselves; EnvironmentFailed where the environment cannot draw; MissingExtra for .mp4 without
    imageio-ffmpeg.
    """
    _check_ending(path)
    if len({p.episode.seed for p in panels}) != 1:
        raise BadRequest("film: expected episodes of one seed, got several; the beginnings would differ")
    longest = max(p.episode.length for p in panels)
    every = max(1, -(-longest // MOST_FRAMES))
    reels = [_Reel(agent, panel, every, factory) for panel in panels]
    frames = list(_together(reels))
    with written(path) as beside:
        _save(frames + frames[-1:] * HOLD, beside, path.suffix.lower(), pace)


def _check_ending(path: Path) -> None:
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise BadRequest(f"--record: expected a file that ends in .gif or .mp4, got '{path.name}'")


def _drawn(world: World) -> np.ndarray:
    try:
        picture = world.picture()
    except Exception as error:
        raise EnvironmentFailed(
            f"{world.agent.environment.id}: expected a picture, got {type(error).__name__}: {error}; without a "
            "screen set MUJOCO_GL=egl (needs EGL of Mesa) or osmesa"
        ) from error
    if picture is None:
        raise EnvironmentFailed(
            f"{world.agent.environment.id}: expected a picture, its render mode draws none; leave --record out, or "
            "make it with render_mode='rgb_array'"
        )
    return np.asarray(picture, dtype=np.uint8)


class _Reel:
    """The frames of one panel, drawn while it is played again."""

    def __init__(self, agent: Agent, panel: Panel, every: int, factory: Factory | None) -> None:
        self.panel, self.frames = panel, list[tuple[int, np.ndarray]]()
        world, episode = make(agent, factory, draws=True), panel.episode
        try:
            world.begin(episode.seed)
            self._draw(world, 0)
            total = 0.0
            for step, action in enumerate(episode.actions, 1):
                _, reward, terminated, truncated = world.step(np.asarray(action))
                total += reward
                over = terminated or truncated
                if step % every == 0 or over:
                    self._draw(world, step)
                if over != (step == episode.length):
                    raise BadRequest(
                        f"film: expected the episode of seed {episode.seed} to last {episode.length} steps again, it "
                        f"ended otherwise at {step}; this environment does not repeat itself from its seed"
                    )
        finally:
            world.env.close()

    def _draw(self, world: World, step: int) -> None:
        self.frames.append((step, _drawn(world)))

    def at(self, step: int) -> Image.Image:
        """The panel at a step: the last frame drawn until then, its head, and its frame once it is over."""
        shown = [f for s, f in self.frames if s <= step][-1]
        episode = self.panel.episode
        over = step >= episode.length
        height, width = shown.shape[:2]
        image = Image.new("RGB", (width + 2 * FRAME, height + HEAD + 2 * FRAME), PAPER)
        draw = ImageDraw.Draw(image)
        if over:
            colour = FAILED if episode.failed_at is not None else ENDED
            draw.rectangle((0, HEAD, width + 2 * FRAME - 1, HEAD + height + 2 * FRAME - 1), fill=colour)
        image.paste(Image.fromarray(shown), (FRAME, HEAD + FRAME))
        font = ImageFont.load_default(16)
        draw.text((FRAME, 4), self.panel.name, fill=INK, font=font)
        draw.text((FRAME, 24), _state(episode, step), fill=FAILED if over and episode.failed_at else INK, font=font)
        return image


def _state(episode: Episode, step: int) -> str:
    if step < episode.length:
        return f"step {step}"
    ending = "failed" if episode.failed_at is not None else "done" if episode.terminated else "time is over"
    return f"{ending} at {episode.length}, return {episode.total:.2f}"


def _together(reels: Sequence[_Reel]) -> Iterator[Image.Image]:
    for step in sorted({s for reel in reels for s, _ in reel.frames}):
        images = [reel.at(step) for reel in reels]
        sheet = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), PAPER)
        left = 0
        for image in images:
            sheet.paste(image, (left, 0))
            left += image.width
        yield sheet


def _save(frames: Sequence[Image.Image], beside: Path, suffix: str, pace: float) -> None:
    if suffix == ".gif":
        first, *rest = (f.quantize(64, dither=Image.Dither.NONE) for f in frames)
        first.save(beside, format="GIF", save_all=True, append_images=rest, duration=round(1000 / pace), loop=0)
        return
    imageio_ffmpeg = _ffmpeg()
    width, height = (2 * (side // 2) for side in frames[0].size)
    writer = imageio_ffmpeg.write_frames(str(beside.with_suffix(".part.mp4")), (width, height), fps=round(pace),
                                         macro_block_size=2, ffmpeg_log_level="error")  # fmt: skip
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(np.asarray(frame.convert("RGB"))[:height, :width]).tobytes())
    writer.close()
    beside.with_suffix(".part.mp4").replace(beside)


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingExtra(
            "--record .mp4 needs the package imageio-ffmpeg, it is missing; pip install 'covector[film]', or record "
            "a .gif"
        ) from error
    return imageio_ffmpeg
