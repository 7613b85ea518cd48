"""Roll-outs of an agent: as it is, a sham, edits and their controls on the same seeds, on all cores.

table = covector.rollout("demo-dt", {"late": "L2.mlp.out:0*0"})
"""

import contextlib
import dataclasses
import hashlib
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from covector.analyses.agent_effects import dyads_of, removal_effects, with_effects
from covector.analyses.behaviour import behaviour as behaviour_of
from covector.analyses.behaviour import every_dyad
from covector.analyses.rollout import Experiment, Options
from covector.analyses.rollout_arms import (
    CLEAN,
    SHAM,
    Arm,
    Matching,
    Task,
    arms_of,
    controls_of,
    divergences,
    matrices,
    played,
    sham,
    sizes_of,
)
from covector.analyses.rollout_runs import Failure, Key, Progress, chunks, run_tasks
from covector.analyses.rollout_stopping import Batches, Stopping, until_decided
from covector.analyses.rollout_stopping import Played as PlayedEpisodes
from covector.analyses.rollout_stopping import stopping as stopping_rule
from covector.analyses.rollout_tables import by_arm
from covector.building import anywhere
from covector.engine import Engine, engine
from covector.errors import BadRequest, CovectorError, EnvironmentFailed
from covector.io.agent_file import need_agent
from covector.io.alone import alone
from covector.io.checkpoint import open_checkpoint
from covector.io.journal import Journal
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.render import Table
from covector.run.edit_runs import decoder_of
from covector.run.environments import Factory, factory_at, packages
from covector.run.episodes import Episode, Stage, Trajectory, play
from covector.run.film import Panel, check_film, film
from covector.run.one_thread import one_thread
from covector.run.replay import matrix_inputs, moments
from covector.study.agent import Agent
from covector.study.edit import Edit
from covector.workbench import open as open_model

Tell = Callable[[str], None]
# Moments of clean episodes over which controls are matched, and over which actions are compared.
MATCHED, COMPARED = 1024, 256
# Clean episodes that the moments come from.
RECORDED = 32


@dataclass(frozen=True)
class Player:
    """An agent by its name, as every worker opens it for itself: the model, its agent file, its environment."""

    ref: str
    layout: str | None
    agent_file: str | None
    env: str | None
    dtype: str
    device: str = "cpu"
    # Of the experiment: a worker that outlives one opens everything anew for the next.
    opening: int = 0

    def __call__(self, task: Task) -> list[Episode] | Failure:
        """The episodes of a task, or what went wrong: the other tasks go on."""
        broken: list[EnvironmentFailed] = []
        try:
            episodes = played(_model_of(self), _stage_of(self), task, self.dtype, broken)
        except CovectorError as error:
            return Failure(task, str(error), len(task.seeds))
        return Failure(task, str(broken[0]), len(broken), episodes) if broken else episodes

    def agent(self) -> Agent:
        """The agent file, with another environment where one was named. Raises BadAgent."""
        checkpoint = open_checkpoint(self.ref, self.layout)
        found = need_agent(checkpoint.name, checkpoint.folder, self.agent_file)
        if self.env is None or _names_a_factory(self.env):
            return found
        other = dataclasses.replace(found.environment, id=self.env, kwargs={})
        return found if self.env == found.environment.id else dataclasses.replace(found, environment=other)


def _names_a_factory(env: str) -> bool:
    """Whether it is ``package.module:function``; gymnasium's own ``module:Id-v0`` ends in a version."""
    return ":" in env and "-v" not in env.rpartition(":")[2]


def _factory(env: str | None) -> Factory | None:
    """What makes the environments, where the caller's own function does."""
    return factory_at(env) if env is not None and _names_a_factory(env) else None


@lru_cache(maxsize=1)
def _model_of(player: Player) -> Model:
    return open_model(player.ref, player.layout).on(player.device)


class _Own(threading.local):
    """The environments of one thread: two threads must not step through the same ones."""

    player: Player | None = None
    stage: Stage | None = None


_OWN = _Own()


def _stage_of(player: Player) -> Stage:
    if _OWN.stage is None or _OWN.player != player:
        if _OWN.stage is not None:
            _OWN.stage.close()
        _OWN.player, _OWN.stage = player, Stage(player.agent(), _factory(player.env))
    return _OWN.stage


def experiment(
    model: str | Path,
    arms: Mapping[str, str | Edit] | None = None,
    *,
    agent: str | Path | None = None,
    env: str | None = None,
    layout: str | Path | None = None,
    options: Options | None = None,
    on: str | Engine = "processes",
    workers: int | None = None,
    out: str | Path | None = None,
    each: str | None = None,
    dyads: int = 16,
    record: str | Path | None = None,
    tell: Tell | None = None,
    progress: Progress | None = None,
) -> Experiment:
    """Play an agent's episodes: as it is, with a sham, with every edit of `arms`, and with their controls.

    All arms play the same seeds. `agent`: an ``agent.json`` (default: the one beside the weights). `env`: another
    registered environment, or ``package.module:function`` that makes one. `on`: ``processes``, ``threads`` or
    ``dask://host:port``. `out`: a folder for the journal of episodes; the same request goes on where it stopped.
    `each`: sites of which the first `dyads` dyads are removed, each an arm of its own (`covector.behaviour`).
    `record`: the film that `filmed` will write; what cannot be drawn is refused before anything is played. `tell` is
    given what is about to be played and how long it will take.

    Raises BadAgent without statistics or target, EnvironmentFailed, MissingExtra, BadRequest, and what
    `covector.open` and `Edit.resolve` raise.
    """
    options = options or Options()
    options.check()
    player = Player(
        anywhere(model), str(Path(layout).absolute()) if layout else None,
        str(Path(agent).absolute()) if agent else None, env, options.dtype, options.device,
        time.time_ns(),
    )  # fmt: skip
    opened, stage = _model_of(player), _stage_of(player)
    found = arms_of(opened, dict(arms or {}) | (every_dyad(opened, each, dyads) if each else {}))
    least = options.control_episodes if options.controls else 2
    rule = stopping_rule(options.episodes, options.looks, len(found), least) if options.looks else None
    if record is not None:
        check_film(stage.agent, Path(record), options.first_seed, _factory(env))
    chosen = engine(on, workers) if isinstance(on, str) else on
    with _journal(out, _request(opened, player, stage.agent, options, found)) as log:
        begun = time.perf_counter()
        targets = options.targets or (stage.agent.target,)
        recorded = _recorded(opened, stage, options, targets[0])
        pace = sum(t.episode.length for t in recorded) / max(time.perf_counter() - begun, 1e-9)
        controls, sizes = _controls(opened, stage.agent, options, found, recorded)
        tasks = _tasks(opened, options, targets, found, controls)
        if tell:
            tell(_announced(tasks, recorded, pace, chosen.workers, found, controls, rule))
        done = _played(opened, options, rule, tasks, found,
                       lambda part, told: run_tasks(part, chosen, player, log, told), progress)  # fmt: skip
    diverged = _diverged(opened, stage.agent, options, found, controls, recorded)
    stage.close()
    typed = f"{opened.words}{_typed(player, agent)}"
    return Experiment(opened, typed, stage.agent, options, targets, found, controls, done.episodes, diverged, sizes,
                      packages(stage.agent), recorded, rule, done.stops, done.counts)  # fmt: skip


@contextlib.contextmanager
def _journal(out: str | Path | None, request: Mapping[str, Any]) -> Iterator[Journal | None]:
    """The journal in a folder that nobody else writes to meanwhile; None without a folder."""
    if out is None:
        yield None
        return
    folder = _folder(out)
    with alone(folder):
        yield Journal(folder / "episodes.jsonl", request)


def rollout(model: str | Path, arms: Mapping[str, str | Edit] | None = None, **more: Any) -> Table:
    """One row per arm: return, change on the same seeds, success, and the edit among its controls.

    Everything as in `experiment`, which gives the episodes themselves; see `by_arm` for the columns.
    """
    return by_arm(experiment(model, arms, **more))


def behaviour(model: str | Path, sites: str = "L*H*.ov,L*.mlp.out", *, dyads: int = 16, **more: Any) -> Table:
    """One row per dyad of the sites, removed alone: what its weights say beside what its removal does to the agent.

    Everything as in `experiment`, without controls unless asked; see `covector.analyses.behaviour` for the columns.
    """
    options = more.pop("options", None) or Options(episodes=50, controls=0)
    return behaviour_table(experiment(model, options=options, each=sites, dyads=dyads, **more))


def behaviour_table(x: Experiment) -> Table:
    """The table of `behaviour` for an experiment with `each`."""
    decoder = decoder_of(x.model, x.options.dtype)
    with one_thread():
        return behaviour_of(x, decoder, moments(x.agent, x.model.spec, x.recorded, COMPARED))


def with_total_effects(
    table: Table, model: str | Path, *, agent: str | Path | None = None, env: str | None = None,
    layout: str | Path | None = None, options: Options | None = None, tell: Tell | None = None,
) -> Table:  # fmt: skip
    """A table of cells (`covector.agent_map`) with what removing each of its dyads does to the action.

    The first clean episodes of the agent are played, and each dyad is removed at their moments. Columns as in
    `covector.analyses.agent_effects`. Raises what `experiment` raises, and BadRequest for a table without actions.
    """
    dyads, options = dyads_of(table), options or Options(episodes=RECORDED, controls=0)
    player = Player(
        anywhere(model), str(Path(layout).absolute()) if layout else None,
        str(Path(agent).absolute()) if agent else None, env, options.dtype, options.device, time.time_ns(),
    )  # fmt: skip
    opened, stage = _model_of(player), _stage_of(player)
    if tell:
        tell(f"{len(dyads)} dyads, each removed alone at moments of {options.episodes} clean episodes")
    with contextlib.closing(stage):
        recorded = _recorded(opened, stage, options, stage.agent.target)
        seen = moments(stage.agent, opened.spec, recorded, COMPARED)
        with one_thread():
            found = removal_effects(opened, decoder_of(opened, options.dtype), seen, dyads)
    more = {"environment": stage.agent.environment.id, "packages": packages(stage.agent), "episodes": options.episodes,
            "first_seed": options.first_seed, "target": stage.agent.target, "run_dtype": options.dtype}  # fmt: skip
    return with_effects(table, found, seen, more)


def filmed(x: Experiment, panels: Sequence[Panel], path: Path, env: str | None = None) -> None:
    """Write a film of recorded episodes; see `covector.run.film.film`. `env` as in `experiment`."""
    film(x.agent, panels, path, _factory(env))


def _recorded(model: Model, stage: Stage, options: Options, target: float) -> list[Trajectory]:
    """The first clean episodes with what was seen in them; those that break down are the tasks' to report."""
    with one_thread():
        seeds, broken = options.seeds[:RECORDED], list[EnvironmentFailed]()
        found = play(decoder_of(model, options.dtype), stage, seeds, target, keep=True, broken=broken)
    if not found:
        raise broken[0]
    return found


def _controls(
    model: Model, agent: Agent, options: Options, arms: Sequence[Arm], recorded: Sequence[Trajectory]
) -> tuple[dict[str, Change], dict[str, dict[str, float]]]:
    if not arms:
        return {}, {}
    decoder = decoder_of(model, options.dtype)
    seen = moments(agent, model.spec, recorded, MATCHED)
    inputs = matrix_inputs(decoder, seen, matrices(arms))
    matching = Matching(model, options.controls, options.seed)
    sizes = {arm.name: sizes_of(matching, arm, inputs) for arm in arms}
    controls = controls_of(matching, arms, inputs, options.norm_controls) if options.controls else {}
    return controls, sizes


def _tasks(
    model: Model, options: Options, targets: Sequence[float], arms: Sequence[Arm], controls: Mapping[str, Change]
) -> list[Task]:
    """Long tasks first; controls play the first of the seeds, at the first target."""
    seeds, tasks = options.seeds, []
    for target in targets:
        tasks += chunks(CLEAN, Change(), target, seeds)
        tasks += [t for arm in arms for t in chunks(arm.name, arm.part.change, target, seeds)]
    tasks += chunks(SHAM, sham(model, arms), targets[0], seeds)
    for name, change in controls.items():
        tasks += chunks(name, change, targets[0], seeds[: options.control_episodes])
    return tasks


def _played(
    model: Model, options: Options, rule: Stopping | None, tasks: Sequence[Task], arms: Sequence[Arm],
    run: Callable[[Sequence[Task], Progress | None], dict[Key, Episode]], progress: Progress | None,
) -> PlayedEpisodes:  # fmt: skip
    """All tasks at once, or look by look where edits may stop."""
    if rule is None:
        return PlayedEpisodes(run(tasks, progress), {}, {})
    edits = {arm.name: arm.part.change for arm in arms}
    target, controls = tasks[0].target, [t for t in tasks if t.arm not in (CLEAN, SHAM, *edits)]
    told = Batches(progress, len(controls) + rule.most(len(edits) + 2), sum(len(t.seeds) for t in tasks))
    return until_decided(rule, edits, sham(model, arms), controls, target, options.seeds,
                         lambda batch: run(batch, told.of(batch)), options.seed)  # fmt: skip


def _announced(
    tasks: Sequence[Task], recorded: Sequence[Trajectory], pace: float, workers: int, arms: Sequence[Arm],
    controls: Mapping[str, Change], rule: Stopping | None = None,
) -> str:  # fmt: skip
    count = sum(len(t.seeds) for t in tasks)
    steps = count * sum(t.episode.length for t in recorded) / max(len(recorded), 1)
    minutes = steps / pace / workers / 60
    left = f"about {minutes:.0f} min" if minutes >= 1.5 else f"about {max(60 * minutes, 1):.0f} s"
    words = f"{len(arms)} edit{'s' * (len(arms) != 1)}, clean and sham"
    more = f", {len(controls)} controls" if controls else ""
    # Some edits lengthen episodes up to the environment's limit: the clean agent's pace is a lower bound then.
    longer = ", more if edits lengthen episodes" if arms else ""
    most = "at most " if rule else ""
    said = (
        f"{words}{more}: {most}{count:,} episodes, some {steps:,.0f} steps, {left} with {workers} "
        f"worker{'s' * (workers != 1)}{longer}"
    )
    return said + (f"\n{rule.words}" if rule else "")


def _typed(player: Player, agent: str | Path | None) -> str:
    """The options that name the agent, as words of a command line."""
    given = (("--agent", agent), ("--env", player.env))
    return "".join(f" {option} {shlex.quote(str(value))}" for option, value in given if value is not None)


def _folder(out: str | Path) -> Path:
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise BadRequest(f"--out {folder}: expected a folder, it is a file; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _request(model: Model, player: Player, agent: Agent, options: Options, arms: Sequence[Arm]) -> dict[str, Any]:
    """What must be the same for work to go on."""
    names = sorted({*matrices(arms), "out.action.W"})
    return {
        "model": model.name,
        "tensors": model.origins(*(n for n in names if n in model.stored)),
        "anatomy": hashlib.sha256(repr(model.spec).encode()).hexdigest()[:16],
        "environment": agent.environment.id if player.env is None else player.env,
        "packages": packages(agent),
        **{f"agent's {name}": value for name, value in agent.conduct().items()},
        "arms": {arm.name: str(arm.part.edit) for arm in arms},
        **options.record(),
    }


def _diverged(
    model: Model, agent: Agent, options: Options, arms: Sequence[Arm], controls: Mapping[str, Change],
    recorded: Sequence[Trajectory],
) -> dict[str, tuple[float, float]]:  # fmt: skip
    changes = {arm.name: arm.part.change for arm in arms} | dict(controls)
    if not changes:
        return {}
    seen = moments(agent, model.spec, recorded, COMPARED)
    with one_thread():
        return divergences(decoder_of(model, options.dtype), seen, changes)
