"""Which episodes of an experiment are worth seeing: one seed, clean beside the edits and a control."""

import numpy as np

from covector.analyses.rollout import Experiment
from covector.analyses.rollout_arms import CLEAN, CONTROL
from covector.errors import BadRequest
from covector.run.film import Panel


def panels(x: Experiment, seed: int | None = None) -> list[Panel]:
    """Clean, every edit, and the first edit's random change of median effect, on one seed.

    Without `seed`: the first seed on which clean does not fail and the first edit does, else the first on which they
    act differently, else the first; among the controls' seeds where there are controls. Raises BadRequest for a seed
    that was not played.
    """
    control = _median_control(x)
    count = x.options.control_episodes if control else x.count(CLEAN, *(arm.name for arm in x.arms))
    seeds = list(x.options.seeds[:count])
    if seed is not None and seed not in seeds:
        raise BadRequest(f"--record-seed: expected one of the seeds played, {seeds[0]}–{seeds[-1]}, got {seed}")
    at = seeds.index(_telling(x, seeds) if seed is None else seed)
    names = [CLEAN, *(arm.name for arm in x.arms), *([control] if control else [])]
    shown = {control: "random change of equal output"} if control else {}
    return [Panel(shown.get(name, name), x.of(name, count=count)[at]) for name in names]


def _telling(x: Experiment, seeds: list[int]) -> int:
    if not x.arms:
        return seeds[0]
    pairs = list(zip(x.of(CLEAN, count=len(seeds)), x.of(x.arms[0].name, count=len(seeds)), strict=True))
    fails = [c.seed for c, e in pairs if c.failed_at is None and e.failed_at is not None]
    loses = [c.seed for c, e in pairs if c.success and not e.success]
    differs = [c.seed for c, e in pairs if c.actions != e.actions]
    return (fails or loses or differs or seeds)[0]


def _median_control(x: Experiment) -> str | None:
    names = x.names(x.arms[0].name, CONTROL) if x.arms else []
    if not names:
        return None
    effects = x.control_effects(x.arms[0].name).mean(axis=1)
    return names[int(np.argsort(effects, kind="stable")[len(effects) // 2])]
