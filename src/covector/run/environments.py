"""Environments as an agent meets them: one episode at a time, begun from a seed, its state as plain numbers.

Gymnasium's environments are made by name or by a factory of the caller's. They are never reset behind one's back:
whoever counts episodes begins each one. What differs between environments (which key of an observation, one-hot
planes, the order of axes, normalisation) is the agent file's to say and done here, for many observations at once.
"""

import difflib
import importlib
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from covector.axes import Float, Int, Integer
from covector.errors import BadAgent, EnvironmentFailed, MissingExtra
from covector.model.spec import ModelSpec
from covector.study.agent import COLOURS, DOORS, OBJECTS, Agent

Factory = Callable[[], Any]
# How often an episode is begun anew until the environment starts as the agent file wants it.
MOST_STARTS = 1000
# Packages that register their environments when they are imported, by the beginning of their ids.
_PACKAGES = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
# Filters of warnings belong to the process, threads make environments one after the other.
_QUIET = threading.Lock()
_EXTRA = "pip install 'covector[agents]'"


@dataclass(frozen=True, eq=False)
class World:
    """One environment of an agent: ``begin`` an episode, ``step`` through it. Observations come as they are."""

    env: Any
    agent: Agent

    def begin(self, seed: int) -> np.ndarray:
        """The first observation of the episode of this seed; where the agent file asks for a start, the first such.

        Raises EnvironmentFailed where no start like that comes.
        """
        observed, _ = self.env.reset(seed=int(seed))
        for _ in range(MOST_STARTS):
            if self._starts_well():
                return self._seen(observed)
            observed, _ = self.env.reset()
        raise EnvironmentFailed(
            f"{self.agent.environment.id}: expected an episode that starts with {dict(self.agent.environment.start)}, "
            f"{MOST_STARTS} did not (seed {seed}); see 'start' in {self.agent.where or 'the agent file'}"
        )

    def step(
        self, action: int | Int[np.ndarray, ""] | Float[np.ndarray, " action"]
    ) -> tuple[np.ndarray, float, bool, bool]:
        """(observation, reward, terminated, truncated). Raises ArithmeticError for a reward that is not finite."""
        observed, reward, terminated, truncated, _ = self.env.step(int(action) if self.agent.discrete else action)
        if not math.isfinite(reward):
            raise ArithmeticError(f"expected a finite reward, got {reward}")
        return self._seen(observed), float(reward), bool(terminated), bool(truncated)

    def picture(self) -> Any:
        """What the environment draws now; [height, width, 3] uint8."""
        return self.env.render()

    def _starts_well(self) -> bool:
        inner = self.env.unwrapped
        return all(_same(getattr(inner, name, None), value) for name, value in self.agent.environment.start.items())

    def _seen(self, observed: Any) -> np.ndarray:
        key = self.agent.observation.key
        try:
            return np.asarray(observed if key is None else observed[key])
        except (KeyError, IndexError, TypeError) as error:
            keys = ", ".join(observed) if isinstance(observed, Mapping) else type(observed).__name__
            raise EnvironmentFailed(
                f"{self.agent.environment.id}: expected an observation with '{key}', got {keys}; set observation.key"
            ) from error


def _same(found: Any, wanted: Any) -> bool:
    try:
        return bool(np.array_equal(np.asarray(found), np.asarray(wanted)))
    except ValueError:
        return False


def make(agent: Agent, factory: Factory | None = None, *, draws: bool = False) -> World:
    """An environment of the agent's, by its name or by the caller's factory; `draws`: it can be asked for pictures.

    Raises MissingExtra without gymnasium or the package of that environment, EnvironmentFailed for an id that nothing
    registered (with near ones), or one that cannot be made.
    """
    if factory is not None:
        return World(factory(), agent)
    gymnasium = _gymnasium(agent.environment.id)
    name, kwargs = agent.environment.id, dict(agent.environment.kwargs)
    if draws:
        kwargs["render_mode"] = "rgb_array"
    try:
        with _QUIET, warnings.catch_warnings():
            # Which version is played is recorded; an older one is often the one that an agent was trained in.
            warnings.filterwarnings("ignore", message=".*is out of date", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            return World(gymnasium.make(name, disable_env_checker=True, **kwargs), agent)
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingExtra(f"{name}: expected its package, it is missing ({error}); {_EXTRA}") from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        known = list(gymnasium.registry)
        near = difflib.get_close_matches(name.partition(":")[2] or name, known, 3, 0.5)
        hint = f"near ones: {', '.join(near)}" if near else f"{len(known)} are registered"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentFailed(f"expected a registered environment, got '{name}' ({reason}); {hint}") from error
    except (TypeError, ValueError) as error:
        raise EnvironmentFailed(f"{name}: cannot be made with {kwargs}: {error}; mend environment.kwargs") from error


def _gymnasium(name: str) -> Any:
    try:
        gymnasium = importlib.import_module("gymnasium")
        for start, package in _PACKAGES.items():
            if name.startswith(start):
                importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(f"{name}: expected the package {error.name}, it is missing; {_EXTRA}") from error
    return gymnasium


def factory_at(text: str) -> Factory:
    """The callable that ``package.module:name`` names: it takes nothing and returns an environment.

    Raises EnvironmentFailed where there is none.
    """
    module, _, name = text.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise EnvironmentFailed(
            f"expected a factory 'package.module:function', got '{text}': {error}; it must be importable from here"
        ) from error
    if not callable(found):
        raise EnvironmentFailed(f"expected '{text}' to be callable, it is {type(found).__name__}")
    return found


def check_state(agent: Agent, spec: ModelSpec, seen: int) -> None:
    """Raises BadAgent where an environment gives states of `seen` numbers and the model reads another number."""
    state = spec.input("state")
    if state is None or seen != state.n:
        raise BadAgent(
            f"{agent.environment.id}: expected states of {state.n if state else 0} numbers, which the model reads, the "
            f"environment gives {seen}; check environment.id, observation.encoding and observation.key"
        )


def check_fit(agent: Agent, spec: ModelSpec, world: World) -> None:
    """Raises BadAgent where the sizes of model, agent file and environment disagree, as far as nothing has begun."""
    state, out = spec.input("state"), spec.output("action")
    if state is None or out is None:
        raise BadAgent(f"expected a model with a state input and an action output, {spec.family} has none; see inspect")
    if agent.mean is not None and len(agent.mean) != state.n:
        raise BadAgent(
            f"{agent.where}: expected {state.n} state means, which the model reads, got {len(agent.mean)}; these are "
            "statistics of another environment"
        )
    space = world.env.action_space
    size = getattr(space, "n", None) if agent.discrete else (getattr(space, "shape", None) or (None,))[0]
    if size is None or (int(size) < out.n if agent.discrete else int(size) != out.n):
        kind = "discrete actions" if agent.discrete else "numbers per action"
        raise BadAgent(
            f"{agent.environment.id}: expected {out.n} {kind}, which the model gives, the environment takes {space}; "
            "check environment.id and action.kind"
        )


def encoded(agent: Agent, observed: np.ndarray) -> Float[np.ndarray, "batch state"]:
    """States as the model reads them, from observations stacked along the first axis; float32."""
    values = observed
    if agent.observation.encoding == "minigrid-one-hot":
        values = one_hot(np.asarray(observed))
    if agent.observation.axes:
        values = np.transpose(values, (0, *(1 + i for i in _order(agent.observation.axes, values.ndim - 1))))
    flat = values.reshape(len(values), -1)
    if agent.mean is None or agent.std is None:
        return flat.astype(np.float32)
    if flat.shape[1] != len(agent.mean):
        return flat.astype(np.float32)  # check_fit says which of the two is wrong
    return ((flat - agent.mean) / agent.std).astype(np.float32)


def one_hot(images: Integer[np.ndarray, "batch x y three"]) -> Float[np.ndarray, "batch x y channel"]:
    """MiniGrid's images [batch, x, y, 3] as 20 planes: 11 objects, 6 colours, 3 door states.

    The same as minigrid's OneHotPartialObsWrapper. Raises EnvironmentFailed for images of another kind.
    """
    sizes = (len(OBJECTS), len(COLOURS), len(DOORS))
    if images.ndim != 4 or images.shape[-1] != 3 or (images.max((0, 1, 2), initial=0) >= sizes).any():
        raise EnvironmentFailed(
            f"minigrid-one-hot: expected images [x, y, 3] of object, colour and door state, got {images.shape[1:]} "
            f"up to {images.max(initial=0)}; use observation.encoding raw"
        )
    planes = [np.eye(n, dtype=np.float32)[images[..., i]] for i, n in enumerate(sizes)]
    return np.concatenate(planes, axis=-1)


def _order(axes: str, ndim: int) -> Sequence[int]:
    before, arrow, after = (part.split() for part in axes.partition("->"))
    if not arrow or sorted(before) != sorted(after) or len(set(before)) != len(before) or len(before) != ndim:
        raise BadAgent(f"observation.axes: expected as 'x y channel -> channel x y' for {ndim} axes, got '{axes}'")
    return [before.index(name) for name in after]


def packages(agent: Agent) -> dict[str, str]:
    """Versions of what the environment stands on: returns are comparable between equal ones only."""
    found = {}
    for name in ("gymnasium", *_stands_on(agent.environment.id)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _stands_on(name: str) -> tuple[str, ...]:
    """Packages besides gymnasium; of an environment that nothing registered all that may be."""
    try:
        registered = _gymnasium(name).registry.get(name)
    except MissingExtra:
        return ()
    if registered is None:
        return ("minigrid", "mujoco")
    module = str(registered.entry_point).partition(":")[0]
    if module.startswith("gymnasium."):
        return ("mujoco",) if module.startswith("gymnasium.envs.mujoco") else ()
    return (module.partition(".")[0],)
