"""Build an atlas: the parts that are missing are computed and put in place one by one, then they become the store.

Whatever interrupts the work loses the units under way and no more: the same request goes on where it stopped. Shards
compute their share of the units; whoever finds all parts there assembles them, and gets the same bytes. Two at once in
one folder do no harm: what they write is the same, and who comes second finds the atlas complete.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from threadpoolctl import threadpool_limits

from covector.atlas.assemble import assemble
from covector.atlas.budget import TORCH_BYTES, fitting_workers
from covector.atlas.decompose import decompose
from covector.atlas.nulls import draw_nulls
from covector.atlas.parts import Parts
from covector.atlas.plan import Options, Unit, compared_at, units
from covector.engine import Engine, Processes, Threads
from covector.errors import BadRequest, CorruptAtlas
from covector.io.atlas import MANIFEST, Atlas, read_manifest, write_manifest
from covector.io.atlas_check import clipped
from covector.io.atlas_parts import FOLDER, Part, write_part
from covector.linalg.half import only_float32
from covector.linalg.on_device import card, products_on
from covector.model.opened import Model
from covector.render.plain import plain

# Names of files that `covector.io.atomic` was writing when something ended it.
LEFT_BEHIND = ".*.part"


@runtime_checkable
class Progress(Protocol):
    """Told how the work goes on."""

    def __call__(self, done: int, of: int, share: float, name: str) -> None:
        """`done` of `of` units are there, `share` of the estimated work; `name` came last."""
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
    written. An atlas that is complete is opened, not built again; a part that is there is kept if its content is what
    its digest says, and was made by this request from these tensors.
    Raises BadRequest for a folder that holds something else or an atlas of another request or checkpoint, or for too
    little memory.
    """
    plan = units(model, options)
    request = _request(model, plan, options)
    parts = Parts(model, folder, request)
    if _is_complete(folder, plan, request, parts):
        _clear(folder)
        return Atlas(folder)
    if memory is not None:
        engine = _within(model, plan, options, engine, memory - (TORCH_BYTES if device != "cpu" else 0))
    _begin(folder, request)
    mine = shard.mine(plan)
    missing = [unit for unit in mine if parts.read(unit) is None]
    total, left = sum(u.flops for u in mine), sum(u.flops for u in missing)
    if engine.shares_memory and missing:
        _preload(model, plan, options)
    tell = progress or _silent
    done = len(mine) - len(missing)
    tell(done, len(mine), 1 - left / max(total, 1.0), "")
    for unit, part in engine.run(work or _Here(model, options, device), missing):
        write_part(folder, parts.stamped(part))
        done, left = done + 1, left - unit.flops
        tell(done, len(mine), 1 - left / total, unit.name)
    return _finished(model, folder, plan, request, parts)


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
            with threadpool_limits(1):  # as in the workers: the bits of an atlas do not depend on the engine
                against.judges(model)


def _within(model: Model, plan: tuple[Unit, ...], options: Options, engine: Engine, memory: int) -> Engine:
    """The engine with as many workers as the memory allows."""
    if not isinstance(engine, Threads | Processes):
        raise BadRequest(
            "--memory bounds this process and those it starts: expected --engine threads or processes with it, got a "
            "cluster; give its workers their limits where they are started (dask worker --memory-limit)"
        )
    fitting = fitting_workers(model, plan, options, engine.workers, memory, apart=not engine.shares_memory)
    return dataclasses.replace(engine, workers=fitting)


def _request(model: Model, plan: tuple[Unit, ...], options: Options) -> dict[str, Any]:
    """What makes two atlases the same; goes into the manifest."""
    request = {
        "meta": plain(dict(model.meta), "meta"),
        "reference": model.words,
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
    for key in ("meta", "options"):
        if found.get(key) != request[key]:
            raise BadRequest(_other(folder, key, found.get(key), request[key]))
    if set(found.get("parts") or ()) != set(request["parts"]):
        raise CorruptAtlas(f"{folder}: its manifest lists other parts than this version makes; build it anew elsewhere")
    if not found.get("complete"):
        return False
    if changed := parts.changed_since(plan, found.get("tensors") or {}):
        raise BadRequest(
            f"{folder} holds the atlas of a checkpoint whose tensor '{changed}' had other values; expected the one it "
            "was built from, or another --out"
        )
    return True


def _is_begun(folder: Path) -> bool:
    """Whether an atlas is there or being built; without one, parts that were copied here may be, and nothing else."""
    if folder.exists() and not folder.is_dir():
        raise BadRequest(f"cannot build an atlas in {folder}: expected a folder, found a file; choose another")
    entries = list(folder.iterdir()) if folder.exists() else []  # one look: another builder may be beginning now
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


def _other(folder: Path, key: str, found: Any, wanted: Any) -> str:
    """What differs between the atlas that is there and the one that is asked for."""
    found = found if isinstance(found, dict) else {}
    differing = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    name = differing[0] if differing else key
    return (
        f"{folder} holds an atlas with {name} = {clipped(found.get(name))}, expected {wanted.get(name)!r} to go on; "
        "repeat the request it was begun with, or choose another --out"
    )


def _finished(
    model: Model, folder: Path, plan: tuple[Unit, ...], request: dict[str, Any], parts: Parts
) -> Atlas | None:
    """The store, made of the parts if they are all there; or what somebody else has made of them meanwhile."""
    try:
        if not _complete_now(folder):
            if not all(parts.exists(unit) for unit in plan):
                return None
            _finish(model, folder, plan, request, parts)
    except Exception:
        # Whoever was first has cleared the parts away under our hands; anything else is a failure of ours.
        if not _complete_now(folder):
            raise
    _clear(folder)
    return Atlas(folder)


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
    write_manifest(folder, {**request, "parts": digests, "tensors": tensors, "directions": n, "complete": True})


def _clear(folder: Path) -> None:
    """Parts, and what interrupted writes have left; the atlas is complete without them."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    for left in folder.glob(LEFT_BEHIND):
        left.unlink(missing_ok=True)
