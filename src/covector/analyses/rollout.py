"""An experiment with an agent, played: the episodes of every arm, and what its tables are made from.

Source: theory page F14; `docs/theory/rollouts.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from covector.analyses.rollout_arms import CLEAN, CONTROL, SHAM, Arm
from covector.analyses.rollout_runs import Key
from covector.analyses.rollout_stopping import Stop, Stopping, record
from covector.axes import Bool, Float
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.run.episodes import Episode, Trajectory
from covector.study.agent import Agent


@dataclass(frozen=True)
class Options:
    """How much is played. Episode i has the seed first_seed + i in every arm; controls play the first of them.

    `targets`: returns asked for (default: the agent file's target); controls are compared at the first. `seed` draws
    the controls and the resampling. Models run in `dtype` on `device`. `looks` above 0: arms are compared so many times
    while they are played, and an edit stops when it is decided (`covector.analyses.rollout_stopping`). `norm_controls`:
    so many random changes of equal ‖ΔM‖ besides, which play as the controls do.
    """

    episodes: int = 300
    controls: int = 100
    control_episodes: int = 30
    targets: tuple[float, ...] = ()
    first_seed: int = 0
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    looks: int = 0
    norm_controls: int = 0

    @property
    def seeds(self) -> range:
        """The seeds of the episodes."""
        return range(self.first_seed, self.first_seed + self.episodes)

    def check(self) -> None:
        """Raises BadRequest for numbers that cannot be played."""
        if self.episodes < 2:
            raise BadRequest(f"--episodes: expected 2 or more, got {self.episodes}; 200 or more are worth reading")
        if self.controls < 0 or (self.controls and not 2 <= self.control_episodes <= self.episodes):
            raise BadRequest(
                f"--control-episodes: expected 2 to {self.episodes} (the arms' --episodes), got "
                f"{self.control_episodes}; or --controls 0 for none"
            )
        if self.norm_controls < 0 or (self.norm_controls and not self.controls):
            raise BadRequest(
                f"--norm-controls: expected 0 or more, beside --controls, got {self.norm_controls}, beside "
                f"{self.controls}"
            )
        if self.first_seed < 0:
            raise BadRequest(f"--first-seed: expected 0 or more, got {self.first_seed}")
        if not np.isfinite(self.targets).all():
            raise BadRequest(f"--target: expected finite numbers, got {list(self.targets)}")
        if len(set(self.targets)) < len(self.targets):
            raise BadRequest(f"--target: expected every return once, got {list(self.targets)}")
        if self.looks and len(self.targets) > 1:
            raise BadRequest(
                f"--stop: expected one --target, at which edits are decided, got {len(self.targets)}; a calibration "
                "plays all episodes, leave --stop out"
            )

    def record(self) -> dict[str, Any]:
        """For the meta of results, and to tell one request from another."""
        return {
            "episodes": self.episodes, "controls": self.controls, "control_episodes": self.control_episodes,
            "targets": list(self.targets), "first_seed": self.first_seed, "seed": self.seed, "run_dtype": self.dtype,
            "device": self.device, **({"looks": self.looks} if self.looks else {}),
            **({"norm_controls": self.norm_controls} if self.norm_controls else {}),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Experiment:
    """What was played. ``episodes`` by (arm, target, seed); ``diverged`` and ``sizes`` by arm (and control).

    ``typed`` names model and agent as words of a command line; ``recorded`` are clean episodes with what was seen.
    Where edits could stop early, ``stopping`` is the rule, ``stops`` where each did, ``counts`` the episodes of an arm.
    """

    model: Model
    typed: str
    agent: Agent
    options: Options
    targets: tuple[float, ...]
    arms: Sequence[Arm]
    controls: Mapping[str, Change]
    episodes: Mapping[Key, Episode]
    diverged: Mapping[str, tuple[float, float]]
    sizes: Mapping[str, Mapping[str, float]]
    packages: Mapping[str, str]
    recorded: Sequence[Trajectory] = ()
    stopping: Stopping | None = None
    stops: Mapping[str, Stop] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def count(self, *arms: str) -> int:
        """How many episodes all of these arms have (controls aside)."""
        return min(self.counts.get(arm, self.options.episodes) for arm in arms)

    def of(self, arm: str, target: float | None = None, count: int | None = None) -> list[Episode]:
        """The episodes of an arm in the order of their seeds; the first `count`."""
        at = self.targets[0] if target is None else target
        seeds = self.options.seeds[: self.count(arm) if count is None else count]
        return [self.episodes[arm, at, seed] for seed in seeds]

    def returns(self, arm: str, target: float | None = None, count: int | None = None) -> Float[np.ndarray, " n"]:
        """Their returns."""
        return np.array([e.total for e in self.of(arm, target, count)])

    def successes(
        self, arm: str, target: float | None = None, count: int | None = None
    ) -> Bool[np.ndarray, " n"] | None:
        """Which were successes; None where the agent file has no rule."""
        found = [e.success for e in self.of(arm, target, count)]
        return None if any(s is None for s in found) else np.array(found, dtype=bool)

    def lengths(self, arm: str, target: float | None = None, count: int | None = None) -> Float[np.ndarray, " n"]:
        """Their lengths in steps."""
        return np.array([e.length for e in self.of(arm, target, count)], dtype=np.float64)

    def failed(self, arm: str, target: float | None = None, count: int | None = None) -> Bool[np.ndarray, " n"]:
        """Which ended in failure (the others' time to failure is censored at their length)."""
        return np.array([e.failed_at is not None for e in self.of(arm, target, count)])

    def times(self, arm: str, target: float | None = None, count: int | None = None) -> Float[np.ndarray, " n"]:
        """Times to failure: the length of an episode that failed; the longest of all for one that did not.

        Who reached the goal has no failure before the end of time, however early the goal was.
        """
        horizon = max(e.length for e in self.episodes.values())
        return np.where(self.failed(arm, target, count), self.lengths(arm, target, count), float(horizon))

    def names(self, arm: str, kind: str) -> list[str]:
        """The controls of an arm of one kind: random changes, or other dyads."""
        return [name for name in self.controls if name.startswith(f"{arm}/{kind}/")]

    def control_effects(self, arm: str, kind: str = CONTROL) -> Float[np.ndarray, "control n"]:
        """Change of return of every control on every one of its seeds, against clean."""
        n = self.options.control_episodes
        clean = self.returns(CLEAN, count=n)
        rows = [self.returns(name, count=n) - clean for name in self.names(arm, kind)]
        return np.array(rows).reshape(-1, n)

    @cached_property
    def sham_is_clean(self) -> bool:
        """Whether the sham's episodes are the clean ones, action by action."""
        return self.of(SHAM) == self.of(CLEAN)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What every table of this experiment records."""
        agent = self.agent
        return self.model.meta | {
            "analysis": "rollout",
            "policy": "none: measured",
            "environment": agent.environment.id,
            "environment_kwargs": dict(agent.environment.kwargs),
            "packages": dict(self.packages),
            "agent_file": agent.where,
            "agent_source": agent.source,
            "scale": agent.scale,
            "context": agent.context,
            "success": str(agent.success) if agent.success else None,
            "played_targets": list(self.targets),
            "edits": {arm.name: str(arm.part.edit) for arm in self.arms},
            "output_sizes": {name: dict(sizes) for name, sizes in self.sizes.items()},
            "sham_is_clean": self.sham_is_clean,
            "null": f"{self.options.controls} random changes of each edit's matrices, of its rank and relative "
            "singular values, scaled to its E‖Δoutput‖² over clean episodes; the other dyads with the same ε",
            **({"stopping": record(self.stopping, self.stops)} if self.stopping else {}),
            **self.options.record(),
        }
