"""Build an atlas: the parts that are missing are computed and put in place one by one, then they become the store.

Whatever interrupts the work loses the units under way and no more: the same request goes on where it stopped. Shards
compute their share of the units; whoever finds all parts there assembles them, and gets the same bytes. Two at once in
one folder do no harm: what they write is the same, and whoever finds the atlas finished by the other opens it.
"""

import contextlib
import dataclasses
import json
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heapreplace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from covector.atlas.assemble import assemble
from covector.atlas.budget import TORCH_BYTES, fitting_workers
from covector.atlas.decompose import decompose
from covector.atlas.nulls import draw_nulls
from covector.atlas.parts import Parts
from covector.atlas.plan import Options, Unit, compared_at, units
from covector.atlas.reference import nameless, reference
from covector.engine import Engine, Processes, Threads
from covector.errors import BadRequest, CorruptAtlas
from covector.io.atlas import MANIFEST, Atlas, check_digests, read_manifest, told_of_files, write_manifest
from covector.io.atlas_check import clipped, with_defaults
from covector.io.atlas_parts import FOLDER, Part, write_part
from covector.linalg.half import only_float32
from covector.linalg.lapack import at_most_threads
from covector.linalg.on_device import card, products_on
from covector.model.opened import Model
from covector.render.plain import plain

# Names of files that `covector.io.atomic` was writing when something ended it.
LEFT_BEHIND = ".*.part"
# Letters of a model's name that a refusal quotes.
MOST_NAMED = 50


@runtime_checkable
class Progress(Protocol):
    """Told how the work goes on."""

    def __call__(self, done: int, of: int, share: float, name: str) -> None:
        """`done` of `of` units are there, `share` of the estimated time is over; `name` came last."""
        ...


@dataclass(frozen=True)
class Shard:
    """One of `of` shares of the units, counted from 1 as it is typed (3/8)."""

    index: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.of:
            raise BadRequest(f"expected a shard such as 3/8 (1 to 8 of 8), got {self.index}/{self.of}")

    def mine(self, plan: tuple[Unit, ...]) -> list[Unit]:
        """Every of-th unit: each share has units from all of the model, so shares take about equally long."""
        return list(plan[self.index - 1 :: self.of])


WHOLE = Shard()


def compute(model: Model, unit: Unit, options: Options, device: str = "cpu") -> Part:
    """One unit's part; on a `device` only the products with vocabularies are made.

    In float32: of a table in half precision no count of memory knows.
    """
    with only_float32(), products_on(card(device)):
        return draw_nulls(model, unit, options) if unit.basis else decompose(model, unit, options)


def build(
    model: Model,
    folder: Path,
    options: Options,
    *,
    engine: Engine,
    work: Callable[[Unit], Part] | None = None,
    memory: int | None = None,
    shard: Shard = WHOLE,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Atlas | None:
    """Build, or go on building, the atlas of a model in `folder`; None when units of other shards are still missing.

    `work` computes a unit's part where the engine cannot share this model (it must travel by pickle). `memory` bounds
    the anonymous memory of this process and those it starts: fewer work at a time, or it is refused before anything is
    written. An atlas that is complete is opened, not built again, and its files are read and compared with their
    digests; a part that is there is kept if its content is what its digest says, and was made by this request from
    these tensors.
    Raises BadRequest for a folder that holds something else or an atlas of another request or checkpoint, or for too
    little memory; CorruptAtlas for a complete one whose files are not what was built.
    """
    plan = units(model, options)
    request = _request(model, plan, options)
    parts = Parts(model, folder, request)
    if _is_complete(folder, plan, request, parts):
        return _verified(folder)
    if memory is not None:
        engine = _within(model, plan, options, engine, memory, beside=TORCH_BYTES if device != "cpu" else 0)
    _begin(folder, request)
    mine = shard.mine(plan)
    missing = [unit for unit in mine if parts.read(unit) is None]
    if engine.shares_memory and missing:
        _preload(model, plan, options)
    pace = _Pace(mine, missing, engine.workers, progress or _silent)
    try:
        for unit, part in engine.run(work or _Here(model, options, device), missing):
            if _complete_now(folder):
                break  # by another builder: nobody waits for the rest
            write_part(folder, parts.stamped(part))
            pace.done(unit)
        return _finished(model, folder, plan, request, parts)
    except Exception:
        # Whoever was first has cleared the parts away under our hands; anything else is a failure of ours.
        if not _is_complete(folder, plan, request, parts):
            raise
    _clear(folder)
    return Atlas(folder)


class _Pace:
    """What share of the time is over, told after every unit, those that are under way counted.

    Workers are taken to be equally fast: one that has not come back has worked since it began as long as the others,
    but is not done. What is left takes as long as the worker who ends last.
    """

    def __init__(self, mine: list[Unit], missing: list[Unit], workers: int, tell: Progress) -> None:
        self.of, self.count, self.tell = len(mine), len(mine) - len(missing), tell
        left = sum(unit.cost for unit in missing)
        self.had = 1 - left / max(sum(unit.cost for unit in mine), 1e-9)
        self.waiting = deque(missing)  # units begin in this order
        self.clock, self.under_way = 0.0, dict[str, tuple[float, float]]()
        for _ in range(workers):
            self._begin()
        tell(self.count, self.of, self.had, "")

    def done(self, unit: Unit) -> None:
        """One more is in its place."""
        cost, began = self.under_way.pop(unit.name, (unit.cost, self.clock - unit.cost))
        self.clock, self.count = max(self.clock, began + cost), self.count + 1
        self._begin()
        self.tell(self.count, self.of, self._share(), unit.name)

    def _begin(self) -> None:
        if self.waiting:
            unit = self.waiting.popleft()
            self.under_way[unit.name] = (unit.cost, self.clock)

    def _share(self) -> float:
        busy = [max(0.1 * cost, began + cost - self.clock) for cost, began in self.under_way.values()] or [0.0]
        heapify(busy)
        for unit in self.waiting:
            heapreplace(busy, busy[0] + unit.cost)
        return self.had + (1 - self.had) * self.clock / max(self.clock + max(busy), 1e-9)


class _Here:
    """The work done in this process."""

    def __init__(self, model: Model, options: Options, device: str) -> None:
        self.model, self.options, self.device = model, options, device

    def __call__(self, unit: Unit) -> Part:
        return compute(self.model, unit, self.options, self.device)


def _silent(done: int, of: int, share: float, name: str) -> None:
    """No progress."""


def _preload(model: Model, plan: tuple[Unit, ...], options: Options) -> None:
    """Read the bases once, before threads ask for them all at the same time."""
    for against in dict.fromkeys(a for unit in plan for site in unit.sites for a in compared_at(model, site).values()):
        basis = against.of(model)
        _ = basis.vectors, basis.norms, basis.usable
        if options.scores:
            with at_most_threads(1):  # as in the workers: the bits of an atlas do not depend on the engine
                against.judges(model)


def _within(
    model: Model, plan: tuple[Unit, ...], options: Options, engine: Engine, memory: int, *, beside: int
) -> Engine:
    """The engine with as many workers as the memory allows."""
    if not isinstance(engine, Threads | Processes):
        raise BadRequest(
            "--memory bounds this process and those it starts: expected --engine threads or processes with it, got a "
            "cluster; give its workers their limits where they are started (dask worker --memory-limit)"
        )
    apart = not engine.shares_memory
    fitting = fitting_workers(model, plan, options, engine.workers, memory, apart=apart, beside=beside)
    return dataclasses.replace(engine, workers=fitting)


def _request(model: Model, plan: tuple[Unit, ...], options: Options) -> dict[str, Any]:
    """What makes two atlases the same; goes into the manifest."""
    request = {
        "meta": plain(dict(model.meta), "meta"),
        "reference": reference(model.words),
        "d_model": model.spec.d_model,
        "options": options.to_dict(),
        "parts": {unit.name: None for unit in plan},
    }
    return json.loads(json.dumps(request))  # as it will be read back


def _is_complete(folder: Path, plan: tuple[Unit, ...], request: dict[str, Any], parts: Parts) -> bool:
    """Whether the folder holds this atlas, complete. Raises BadRequest for any other content."""
    if not _is_begun(folder):
        return False
    found = read_manifest(folder)
    _check_same(folder, found, request)
    if set(found.get("parts") or ()) != set(request["parts"]):
        raise CorruptAtlas(f"{folder}: its manifest lists other parts than this version makes; build it anew elsewhere")
    if not found.get("complete"):
        if found["meta"].get("model") != request["meta"]["model"] and parts.of_others(plan):
            raise BadRequest(_another_model(folder, found["meta"], request["meta"]))
        return False
    if changed := parts.changed_since(plan, found.get("tensors") or {}):
        raise BadRequest(
            f"{folder} holds the atlas of a checkpoint whose tensor '{changed}' had other values; expected the one it "
            "was built from, or another --out"
        )
    return True


def _is_begun(folder: Path) -> bool:
    """Whether an atlas is there or being built; without one, parts that were copied here may be, and nothing else."""
    try:
        if folder.exists() and not folder.is_dir():
            raise BadRequest(f"cannot build an atlas in {folder}: expected a folder, found a file; choose another")
        entries = list(folder.iterdir()) if folder.exists() else []  # one look: another builder may be beginning now
    except OSError as error:
        raise BadRequest(
            f"cannot build an atlas in {folder}: expected a folder that can be read, the system says "
            f"'{error.strerror}'; choose another --out"
        ) from error
    begun = any(entry.name == MANIFEST for entry in entries)
    if not begun and any(entry.name != FOLDER and not entry.match(LEFT_BEHIND) for entry in entries):
        raise BadRequest(f"cannot build an atlas in {folder}: expected a new or empty folder; choose another")
    return begun


def _begin(folder: Path, request: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    if not (folder / MANIFEST).exists():
        write_manifest(folder, {**request, "complete": False})


def _check_same(folder: Path, found: dict[str, Any], request: dict[str, Any]) -> None:
    """Raise BadRequest unless the atlas that is there is of this model (by content) and of this request."""
    meta, wanted = found.get("meta") or {}, request["meta"]
    if _model(meta) != _model(wanted):
        raise BadRequest(_another_model(folder, meta, wanted))
    if nameless(meta) != nameless(wanted):
        raise BadRequest(_other(folder, nameless(meta), nameless(wanted)))
    options = with_defaults(found.get("options") or {})
    if options != request["options"]:
        raise BadRequest(_other(folder, options, request["options"]))


def _model(meta: dict[str, Any]) -> dict[str, Any]:
    """Of a meta what says which model it is, whatever is asked of it and by which program."""
    return {key: value for key, value in nameless(meta).items() if key not in ("frame", "versions", "device")}


def _another_model(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Which model the atlas is of that is there, and what it has that the wanted one has not."""
    telling = [key for key in ("family", "dtype", "revision") if found.get(key) != wanted.get(key)]
    was, now = (f" ({telling[0]} {clipped(of.get(telling[0]))})" if telling else "" for of in (found, wanted))
    told = "" if telling else ": other tensors"
    return (
        f"{folder} holds an atlas of another model, {_end(found.get('model'))}{was}; this one is "
        f"{_end(wanted['model'])}{now}{told}; choose another --out, or remove that folder"
    )


def _end(name: Any) -> str:
    """A model's name in quotes; of a long one its end, which tells folders apart."""
    text = str(name)
    return clipped(text) if len(text) < MOST_NAMED else "…" + clipped(text[-MOST_NAMED:])


def _other(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs between the atlas that is there and the one that is asked for."""
    differing = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    name = differing[0]
    return (
        f"{folder} holds an atlas with {name} = {clipped(found.get(name))}, expected {wanted.get(name)!r} to go on; "
        "repeat the request it was begun with, or choose another --out"
    )


def _finished(
    model: Model, folder: Path, plan: tuple[Unit, ...], request: dict[str, Any], parts: Parts
) -> Atlas | None:
    """The store, made of the parts if they are all there; or what somebody else has made of them meanwhile."""
    if not _complete_now(folder):
        if not all(parts.exists(unit) for unit in plan):
            return None
        _finish(model, folder, plan, request, parts)
    _clear(folder)
    return Atlas(folder)


def _verified(folder: Path) -> Atlas:
    """A complete atlas whose files are what was built. Raises CorruptAtlas."""
    atlas = Atlas(folder)
    check_digests(atlas)
    _clear(folder)
    return atlas


def _complete_now(folder: Path) -> bool:
    return bool(read_manifest(folder).get("complete"))


def _finish(model: Model, folder: Path, plan: tuple[Unit, ...], request: dict[str, Any], parts: Parts) -> None:
    """Assemble, and say so in the manifest."""
    n = assemble(model, folder, plan, parts.need)
    digests, tensors = {}, {}
    for unit in plan:
        part = parts.need(unit)
        digests[unit.name] = part.sha256
        tensors |= parts.tensors(unit)
    made = {"parts": digests, "tensors": tensors, "directions": n, "files": told_of_files(folder), "complete": True}
    write_manifest(folder, {**request, **made})


def _clear(folder: Path) -> None:
    """Parts, and what interrupted writes have left; the atlas is complete without them."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    for left in folder.glob(LEFT_BEHIND):
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)
