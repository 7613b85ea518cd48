"""Single episodes of an experiment with an agent, and achieved returns over the returns asked for.

Source: theory page F14; `docs/theory/rollouts.md`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from covector.analyses.rollout import Experiment
from covector.analyses.rollout_arms import CLEAN, SHAM
from covector.analyses.rollout_picture import calibrated
from covector.analyses.rollout_words import said_by_episode, said_by_target
from covector.errors import BadRequest
from covector.linalg.trials.calibration import calibration
from covector.linalg.trials.resample import mean_interval
from covector.render import Column, Table

NAN = float("nan")


def by_episode(x: Experiment) -> Table:
    """One row per arm, return asked for and seed: what came of it. Controls are left to the journal."""
    rows = [(name, e) for target in x.targets for name in _played(x, target) for e in x.of(name, target)]
    columns = [
        Column("arm", [name for name, _ in rows]),
        Column("asked", np.array([e.target for _, e in rows]), about="the return asked for"),
        Column("seed", np.array([e.seed for _, e in rows]), about="of the episode: the same in every arm"),
        Column("return", np.array([e.total for _, e in rows]), "", 3),
        Column("length", np.array([e.length for _, e in rows]), "steps"),
        Column("success", ["–" if e.success is None else "yes" if e.success else "no" for _, e in rows]),
        Column("failed", ["yes" if e.failed_at is not None else "no" for _, e in rows], about="ended by a failure"),
        Column("actions", [_actions(x, e.actions) for _, e in rows], about="what was done, shortened"),
    ]
    return Table(columns, x.meta | {"by": "episode"}, *said_by_episode(x), key=("arm", "asked", "seed"))


def _rounded(slope: float) -> float:
    """A slope without the rounding of equal returns."""
    return 0.0 if abs(slope) < 1e-12 else slope


def _played(x: Experiment, target: float) -> Sequence[str]:
    edits = [arm.name for arm in x.arms]
    return [CLEAN, *([SHAM] if target == x.targets[0] else []), *edits]


def _actions(x: Experiment, actions: Sequence[Any]) -> str:
    if not x.agent.discrete:
        return ""
    names = x.agent.actions
    shown = [names[a] if a < len(names) else str(a) for a in actions[:12]]
    return " ".join(shown) + (" …" if len(actions) > 12 else "")


def by_target(x: Experiment) -> Table:
    """One row per arm and return asked for, with the slope of achieved on asked return over them.

    Slope 1 and a rank correlation of 1 are an agent that does what it is asked for; the rest is not extrapolated.
    """
    if len(x.targets) < 2:
        raise BadRequest(
            f"--by target: expected several returns asked for, got {len(x.targets)}; give --target 1,0.5,0"
        )
    rows, slopes = [], {}
    asked = np.array(x.targets)
    for name in (CLEAN, *(arm.name for arm in x.arms)):
        achieved = np.array([x.returns(name, t) for t in x.targets])
        slopes[name] = calibration(asked, achieved, seed=x.options.seed)
        for target, got in zip(x.targets, achieved, strict=True):
            low, high = (float(v) for v in mean_interval(got, seed=x.options.seed))
            ok = x.successes(name, target)
            rows.append((name, target, got.mean(), low, high, NAN if ok is None else ok.mean(), slopes[name]))
    columns = [
        Column("arm", [r[0] for r in rows]),
        Column("asked", np.array([r[1] for r in rows]), "", 3, "the return asked for"),
        Column("return", np.array([r[2] for r in rows]), "", 3, "mean over episodes"),
        Column("low", np.array([r[3] for r in rows]), "", 3, "95 % interval (BCa)"),
        Column("high", np.array([r[4] for r in rows]), "", 3, "upper end"),
        Column("success", np.array([r[5] for r in rows]), "", 2, "share of episodes"),
        Column("slope", np.array([_rounded(r[6].slope) for r in rows]), "", 3, "achieved on asked, over the targets"),
        Column("slope_low", np.array([_rounded(r[6].low) for r in rows]), "", 3, "95 % interval over episodes"),
        Column("slope_high", np.array([_rounded(r[6].high) for r in rows]), "", 3, "upper end"),
        Column("rank", np.array([r[6].rank for r in rows]), "", 2, "Spearman's correlation over the targets"),
        Column("p", np.array([r[6].p for r in rows]), "", 3, "chance of such a slope if asking makes no difference"),
    ]
    return Table(columns, x.meta | {"by": "target"}, *said_by_target(x, slopes),
                 picture=lambda _: calibrated(x), key=("arm", "asked"))  # fmt: skip
