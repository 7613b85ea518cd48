"""``agent.json``: what an agent needs to act, read from beside its weights, from a file given, or known by its name.

Nothing is guessed: a file without statistics, target or context is refused with what to supply, and so is a key that
nothing reads. The keys: docs/rollout.md.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from covector.errors import BadAgent
from covector.study.agent import Agent, Environment, Observation, Padding, Success

# Statistics of published checkpoints, each with its source, by the name of the checkpoint.
KNOWN = Path(__file__).with_name("agents")
_SUPPLY = (
    'write one with "environment": {"id": …}, "state": {"mean": […], "std": […]} or "as is", '
    '"return": {"target": …, "scale": …} and "context": …, beside the weights or for --agent (docs/rollout.md)'
)
_ENCODINGS = ("raw", "minigrid-one-hot")
_RULES = ("last_reward_above", "return_at_least", "survives")


def find_agent(name: str, folder: Path | None, given: str | Path | None = None) -> Agent | None:
    """The agent file of a checkpoint: the one given, the one beside its weights, or a published one; None without.

    Raises BadAgent for a file that is not there or not well-formed.
    """
    if given is not None:
        return read_agent(Path(given).expanduser())
    if folder is not None and (folder / "agent.json").exists():
        return read_agent(folder / "agent.json")
    known = KNOWN / f"{name.partition('@')[0].replace('/', '--')}.json"
    return read_agent(known) if known.exists() else None


def need_agent(name: str, folder: Path | None, given: str | Path | None = None) -> Agent:
    """As `find_agent`; raises BadAgent where there is none, with what to supply."""
    found = find_agent(name, folder, given)
    if found is None:
        known = sorted(p.stem.replace("--", "/") for p in KNOWN.glob("*.json"))
        raise BadAgent(
            f"{name}: expected an agent.json (environment, state statistics, target return, context), found none; "
            f"{_SUPPLY}; known by name: {', '.join(known)}"
        )
    return found


def read_agent(path: Path) -> Agent:
    """An agent file. Raises BadAgent, naming the key: what was expected, what came, what to do."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadAgent(f"expected an agent file at '{path}', got: {error}; check the path, or {_SUPPLY}") from error
    return parse_agent(values, str(path))


def parse_agent(values: Any, where: str) -> Agent:
    """An agent from the object of its file. Raises BadAgent."""
    top = _Keys(values, where, "")
    for key in ("environment", "state", "return", "context"):
        if key not in top.values:
            raise BadAgent(f"{where}: expected '{key}', got none; {_SUPPLY}")
    world, asked = top.inner("environment"), top.inner("return")
    mean, std = _statistics(top)
    action = top.inner("action")
    kind = action.one_of("kind", ("discrete", "continuous"), "discrete")
    agent = Agent(
        environment=Environment(world.text("id"), world.object("kwargs"), world.object("start")),
        target=asked.number("target"),
        context=top.count("context"),
        mean=mean,
        std=std,
        observation=_observation(top.inner("observation")),
        targets=tuple(asked.numbers("targets")),
        scale=asked.number("scale", 1.0),
        padding=_padding(top),
        discrete=kind == "discrete",
        actions=tuple(action.texts("names")),
        given=action.one_of("given", ("same step", "previous"), "same step"),
        most_time=top.inner("timestep").count("most", None),
        success=_success(top),
        score=_score(top),
        states=tuple(top.texts("state_names")),
        untrained=tuple(top.texts("untrained")),
        source=top.text("source", ""),
        where=where,
    )
    for keys in top.opened:
        keys.check()
    if agent.scale <= 0:
        raise BadAgent(f"{where}: return.scale: expected a number above 0, got {agent.scale:g}")
    return dataclasses.replace(agent, targets=agent.targets or (agent.target,))


def _statistics(top: "_Keys") -> tuple[np.ndarray | None, np.ndarray | None]:
    value = top.values["state"]
    if value == "as is":
        top.used.add("state")
        return None, None
    inner = top.inner("state")
    mean, std = (np.array(inner.numbers(key)) for key in ("mean", "std"))
    if not len(mean) or mean.shape != std.shape or not (std > 0).all():
        raise BadAgent(
            f'{top.where}: state: expected mean and std, equally many and std above 0, or "as is", got {len(mean)} '
            f"and {len(std)} numbers; take them from the data the agent was trained on"
        )
    return mean, std


def _observation(inner: "_Keys") -> Observation:
    key = inner.text("key", None)
    return Observation(key, inner.one_of("encoding", _ENCODINGS, "raw"), inner.text("axes", ""))


def _padding(top: "_Keys") -> Padding:
    value = top.values.get("padding", "masked")
    if value == "masked":
        top.used.add("padding")
        return Padding()
    inner = top.inner("padding")
    inner.used.update(inner.values)
    found: dict[str, float | str] = {}
    for key, fill in inner.values.items():
        asked = fill == "target" and key == "return"
        if not asked and not _is_number(fill):
            target = ' or "target"' if key == "return" else ""
            raise BadAgent(f"{top.where}: padding.{key}: expected a number{target}, got {fill!r}")
        found[key] = fill if asked else float(fill)
    return Padding(False, found)


def _success(top: "_Keys") -> Success | None:
    inner = top.inner("success")
    inner.used.update(inner.values)
    if not inner.values:
        return None
    (rule, level), *more = inner.values.items()
    if more or rule not in _RULES:
        raise BadAgent(f"{top.where}: success: expected one of {', '.join(_RULES)}, got {', '.join(inner.values)}")
    if rule == "survives":
        return Success(rule)
    if not isinstance(level, int | float) or isinstance(level, bool):
        raise BadAgent(f"{top.where}: success.{rule}: expected a number, got {level!r}")
    return Success(rule, float(level))


def _score(top: "_Keys") -> tuple[float, float] | None:
    inner = top.inner("score")
    return (inner.number("random"), inner.number("expert")) if inner.values else None


class _Keys:
    """One object of the file: typed access to its keys, and which of them were read."""

    def __init__(self, values: Any, where: str, path: str, opened: list["_Keys"] | None = None) -> None:
        if not isinstance(values, Mapping):
            raise BadAgent(f"{where}: {path or 'the file'}: expected an object, got {type(values).__name__}")
        self.values, self.where, self.path, self.used = dict(values), where, path, set[str]()
        self.opened: list[_Keys] = [] if opened is None else opened
        self.opened.append(self)

    def inner(self, key: str) -> "_Keys":
        self.used.add(key)
        return _Keys(self.values.get(key, {}), self.where, f"{self.path}{key}.", self.opened)

    def object(self, key: str) -> dict[str, Any]:
        self.used.add(key)
        found = self.values.get(key, {})
        if not isinstance(found, dict):
            raise self._bad(key, "an object", found)
        return found

    def text(self, key: str, default: Any = ...) -> Any:
        return self._typed(key, "a text", lambda v: isinstance(v, str) and bool(v), default)

    def number(self, key: str, default: Any = ...) -> float:
        return float(self._typed(key, "a finite number", _is_number, default))

    def count(self, key: str, default: Any = ...) -> Any:
        return self._typed(key, "a whole number above 0", lambda v: type(v) is int and v > 0, default)

    def numbers(self, key: str) -> list[float]:
        found = self._typed(key, "a list of numbers", lambda v: _is_list(v, _is_number), [])
        return [float(v) for v in found]

    def texts(self, key: str) -> list[str]:
        return self._typed(key, "a list of texts", lambda v: _is_list(v, lambda x: isinstance(x, str)), [])

    def one_of(self, key: str, choices: tuple[str, ...], default: str) -> Any:
        return self._typed(key, " or ".join(choices), lambda v: v in choices, default)

    def _typed(self, key: str, what: str, holds: Callable[[Any], bool], default: Any) -> Any:
        self.used.add(key)
        if key not in self.values and default is not ...:
            return default
        found = self.values.get(key)
        if not holds(found):
            raise self._bad(key, what, found)
        return found

    def _bad(self, key: str, what: str, found: Any) -> BadAgent:
        came = "none" if key not in self.values else repr(found)[:60]
        return BadAgent(f"{self.where}: {self.path}{key}: expected {what}, got {came}; see docs/rollout.md")

    def check(self) -> None:
        """Refuse a key that nothing read."""
        for key in self.values:
            if key not in self.used:
                near = difflib.get_close_matches(key, self.used, 1)
                guess = f" (did you mean '{near[0]}'?)" if near else ""
                known = ", ".join(sorted(self.used))
                raise BadAgent(f"{self.where}: {self.path}{key}: expected {known}, got '{key}'{guess}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(holds(v) for v in value)
