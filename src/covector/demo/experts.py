"""Experts that play an environment from its full state, to make trajectories that an agent can learn from.

An expert is a function of the environment that returns the next action. `to_goal` serves every MiniGrid environment
that is solved by standing on a goal square (Empty, FourRooms, crossings, lava gaps, DoorKey, MultiRoom): it counts
the actions to the goal backwards by breadth-first search over position, direction, object in hand, objects on the
floor and states of doors, and takes the first action that shortens the way. It never puts anything down, which no
single-key environment asks for.
"""

import importlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

Expert = Callable[[Any], int]
Cell = tuple[int, int]

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # of direction 0–3: right, down, left, up
ORDER = (FORWARD, LEFT, RIGHT, PICKUP, TOGGLE)  # the first of equally good actions is taken


class Item(NamedTuple):
    """Something that can be carried."""

    kind: str
    colour: str


class Door(NamedTuple):
    """A door and its state."""

    colour: str
    is_open: bool
    is_locked: bool


@dataclass(frozen=True)
class Maze:
    """What no action changes: walls (and whatever else stands in the way), lava, goals, and how many actions exist."""

    walls: frozenset[Cell]
    lava: frozenset[Cell]
    goals: frozenset[Cell]
    actions: int


class Node(NamedTuple):
    """What actions change."""

    cell: Cell
    direction: int
    held: Item | None
    items: frozenset[tuple[Cell, Item]]
    doors: frozenset[tuple[Cell, Door]]


def read(env: Any) -> tuple[Maze, Node]:
    """The state of a MiniGrid environment."""
    world = env.unwrapped
    walls, lava, goals, items, doors = [], [], [], [], []
    for x in range(world.grid.width):
        for y in range(world.grid.height):
            thing = world.grid.get(x, y)
            if thing is None:
                continue
            kind = thing.type
            if kind == "door":
                doors.append(((x, y), Door(thing.color, thing.is_open, thing.is_locked)))
            elif kind in ("key", "ball", "box"):
                items.append(((x, y), Item(kind, thing.color)))
            elif kind in ("lava", "goal"):
                (lava if kind == "lava" else goals).append((x, y))
            elif kind != "floor":
                walls.append((x, y))
    held = Item(world.carrying.type, world.carrying.color) if world.carrying else None
    x, y = (int(c) for c in world.agent_pos)
    node = Node((x, y), int(world.agent_dir), held, frozenset(items), frozenset(doors))
    return Maze(frozenset(walls), frozenset(lava), frozenset(goals), int(world.action_space.n)), node


def moves(maze: Maze, node: Node) -> Iterator[tuple[int, Node]]:
    """Actions that change something, with what they lead to; none from a goal or from lava, where episodes end."""
    if node.cell in maze.goals or node.cell in maze.lava:
        return
    yield LEFT, node._replace(direction=(node.direction - 1) % 4)
    yield RIGHT, node._replace(direction=(node.direction + 1) % 4)
    step = STEPS[node.direction]
    ahead = node.cell[0] + step[0], node.cell[1] + step[1]
    item, door = dict(node.items).get(ahead), dict(node.doors).get(ahead)
    if ahead not in maze.walls and item is None and (door is None or door.is_open):
        yield FORWARD, node._replace(cell=ahead)
    if item is not None and node.held is None and maze.actions > PICKUP:
        yield PICKUP, node._replace(held=item, items=node.items - {(ahead, item)})
    fits = door is not None and (not door.is_locked or node.held == Item("key", door.colour))
    if door is not None and fits and maze.actions > TOGGLE:
        turned = Door(door.colour, door.is_locked or not door.is_open, False)
        yield TOGGLE, node._replace(doors=node.doors - {(ahead, door)} | {(ahead, turned)})


@dataclass
class Distances:
    """Number of actions to the nearest goal, worked out for all that is reachable from a node asked for."""

    maze: Maze
    known: dict[Node, int] = field(default_factory=dict)
    explored: set[Node] = field(default_factory=set)

    def __call__(self, node: Node) -> int | None:
        """Actions from `node` to a goal; None if there is no way."""
        if node not in self.explored:
            self._explore(node)
        return self.known.get(node)

    def _explore(self, start: Node) -> None:
        before: dict[Node, list[Node]] = {start: []}
        waiting = deque([start])
        while waiting:
            node = waiting.popleft()
            for _, after in moves(self.maze, node):
                if after not in before:
                    before[after] = []
                    waiting.append(after)
                before[after].append(node)
        steps = {node: 0 for node in before if node.cell in self.maze.goals}
        waiting = deque(steps)
        while waiting:
            node = waiting.popleft()
            for earlier in before[node]:
                if earlier not in steps:
                    steps[earlier] = steps[node] + 1
                    waiting.append(earlier)
        self.known |= steps
        self.explored |= before.keys()


@lru_cache(maxsize=64)
def distances(maze: Maze) -> Distances:
    """The table of a maze, shared by all episodes in it."""
    return Distances(maze)


def steps_to_goal(env: Any) -> int | None:
    """How many actions the shortest way takes from here; None if there is no way."""
    maze, node = read(env)
    return distances(maze)(node)


def to_goal(env: Any) -> int:
    """The next action on a shortest way to a goal square; ``done`` (wait) where there is no way."""
    maze, node = read(env)
    table = distances(maze)
    found = {action: steps for action, after in moves(maze, node) if (steps := table(after)) is not None}
    return min(found, key=lambda action: (found[action], ORDER.index(action))) if found else DONE


def named(expert: str) -> Expert:
    """The function of `module:function`. Raises ValueError if the text is not of that form."""
    module, colon, function = expert.partition(":")
    if not colon:
        raise ValueError(f"expected an expert as module:function, got '{expert}'")
    return getattr(importlib.import_module(module), function)
