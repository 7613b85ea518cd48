"""The arms of an experiment with an agent: as it is, a sham, the edits, and what else could have been changed.

Source: theory page F14; `docs/theory/rollouts.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax

from covector.analyses.edit_controls import NORM, OUTPUT, dyad_changes, effect_sizes, random_changes, sources
from covector.analyses.edit_setup import Part
from covector.errors import BadRequest, EnvironmentFailed
from covector.model.opened import Model
from covector.model.overlay import Change, Update
from covector.run.decoder import Decoder
from covector.run.edit_runs import decoder_of
from covector.run.edited import laid_over
from covector.run.episodes import Episode, Stage, play
from covector.run.one_thread import one_thread
from covector.run.replay import Moments, values
from covector.study.agent import Agent
from covector.study.edit import Edit

CLEAN, SHAM, CONTROL, DYAD, NORMED = "clean", "sham", "random", "dyad", "norm"
# What kinds of controls are called.
KINDS = {CONTROL: "random", DYAD: "other dyad", NORMED: "random, equal ‖ΔM‖"}


@dataclass(frozen=True)
class Task:
    """Episodes of one arm: its name, the change of weights, the return asked for, the seeds."""

    arm: str
    change: Change
    target: float
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Arm:
    """One edit that is tried on the agent."""

    name: str
    part: Part


@dataclass(frozen=True)
class Matching:
    """What controls are drawn for: the model, how many, and the seed of the draws."""

    model: Model
    draws: int
    seed: int


def arms_of(model: Model, given: Mapping[str, str | Edit]) -> list[Arm]:
    """The edits, resolved on the model. Raises BadRequest for a name that is taken, and what `Edit.resolve` raises."""
    found = []
    for name, edit in given.items():
        if name in (CLEAN, SHAM) or "/" in name:
            raise BadRequest(f"--arm {name}: expected a name of your own without '/', '{name}' is not; choose another")
        own = Edit.parse(edit) if isinstance(edit, str) else edit
        part = Part(name, own, own.resolve(model))
        if all(one.norm == 0 for one in part.resolved.laid):
            raise BadRequest(f"--arm {name}: '{own}' changes nothing (ε 0); expected a factor other than 1, as *0")
        found.append(Arm(name, part))
    return found


def sham(model: Model, arms: Sequence[Arm]) -> Change:
    """A change of zero through the same mechanism: of the matrices that the edits change, else of the action head."""
    updates = {(u.tensor, u.head): u for arm in arms for u in arm.part.change.updates}
    if not updates:
        shape = model.stored["out.action.W"].shape
        return Change((Update("out.action.W", np.zeros((shape[0], 1)), np.zeros((1, shape[1]))),))
    return Change(tuple(Update(u.tensor, 0 * u.left, u.right, u.head) for u in updates.values()))


def controls_of(
    matching: Matching, arms: Sequence[Arm], inputs: Mapping[str, np.ndarray], normed: int = 0
) -> dict[str, Change]:
    """Controls by name, ``arm/random/7``, ``arm/dyad/3`` and ``arm/norm/2``.

    Random changes of equal E‖Δoutput‖², other dyads, and `normed` random changes of equal ‖ΔM‖ of the map.
    """
    found = {}
    for index, arm in enumerate(arms):
        for i, change in enumerate(random_changes(matching, arm.part, inputs, OUTPUT, index)):
            found[f"{arm.name}/{CONTROL}/{i}"] = change
        for i, change in enumerate(dyad_changes(matching, arm.part, index)):
            found[f"{arm.name}/{DYAD}/{i}"] = change
        for i, change in enumerate(random_changes(replace(matching, draws=normed), arm.part, inputs, NORM, index)):
            found[f"{arm.name}/{NORMED}/{i}"] = change
    return found


def sizes_of(matching: Matching, arm: Arm, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """√E‖Δoutput‖² of an arm by changed matrix, over the inputs."""
    return effect_sizes(matching, arm.part, inputs)


def matrices(arms: Sequence[Arm]) -> list[str]:
    """The matrices whose inputs the matching needs."""
    return sources([arm.part for arm in arms])


def played(
    model: Model, stage: Stage, task: Task, dtype: str, broken: list[EnvironmentFailed] | None = None
) -> list[Episode]:
    """The episodes of a task, on one thread, so that its bits do not depend on where it runs; `broken` as in `play`."""
    with one_thread():
        decoder = laid_over(decoder_of(model, dtype), task.change)
        return [t.episode for t in play(decoder, stage, task.seeds, task.target, broken=broken)]


def divergences(decoder: Decoder, seen: Moments, changes: Mapping[str, Change]) -> dict[str, tuple[float, float]]:
    """How far each change moves what the agent would do at recorded moments: two numbers.

    Discrete actions: the share of moments with another action, and KL(clean ‖ changed) in nats. Continuous ones: the
    share that moves by more than a tenth of the clean standard deviation, and the mean squared change.
    """
    plain = values(decoder, seen)
    return {name: apart(seen.agent, plain, values(laid_over(decoder, c), seen)) for name, c in changes.items()}


def apart(agent: Agent, plain: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Two numbers for how far action outputs [moment, action] lie apart; see `divergences`."""
    if not agent.discrete:
        far = np.abs(other - plain) > 0.1 * plain.std(axis=0)
        return float(far.any(axis=1).mean()), float(np.square(other - plain).mean())
    p, q = (log_softmax(x, axis=1) for x in (plain, other))
    kl = float(np.sum(np.exp(p) * (p - q), axis=1).mean())
    return float((plain.argmax(axis=1) != other.argmax(axis=1)).mean()), kl
