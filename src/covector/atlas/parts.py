"""The parts of one request: which of those in a folder may be used.

A part is used if its content is what its digest says, and if it was made by the same request (frame, options, versions)
from the same tensors: parts are copied between folders and machines, and a checkpoint can be trained further under its
old name, with the same header.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covector.atlas.plan import Unit, tensor_shape, tensors_of
from covector.atlas.reference import nameless
from covector.errors import CorruptAtlas
from covector.io.atlas_parts import Part, part_place, read_part
from covector.model.opened import Model

# Values of a complete atlas' checkpoint that are compared with those it was built from, in the order of the plan: all
# of a small model, of a large one enough to tell that it was trained since, in half a second.
LOOKED_AT = 2**26


# Rises when parts hold other arrays, or arrays of another meaning: those of an older version are computed anew.
MAKES = 2


class Parts:
    """Parts in `folder` for one request of one model."""

    def __init__(self, model: Model, folder: Path, request: Mapping[str, Any]) -> None:
        self.model, self.folder = model, folder
        # The name is how somebody came to the checkpoint; on another machine it may lie elsewhere.
        told = json.dumps([MAKES, nameless(request["meta"]), request["options"]], sort_keys=True)
        self.stamp = hashlib.sha256(told.encode()).hexdigest()
        self._tensors: dict[str, dict[str, str]] = {}

    def stamped(self, part: Part) -> Part:
        """The part, with the request that it was made for in its notes."""
        return dataclasses.replace(part, notes={**part.notes, "request": self.stamp})

    def exists(self, unit: Unit) -> bool:
        """Whether there is a file for this unit, whatever is in it."""
        return part_place(self.folder, unit.name).exists()

    def read(self, unit: Unit) -> Part | None:
        """The unit's part if it may be used, else None."""
        part = read_part(self.folder, unit.name)
        if part is None or part.notes.get("request") != self.stamp:
            return None
        return part if part.notes.get("tensors") == self.tensors(unit) else None

    def need(self, unit: Unit) -> Part:
        """The unit's part. Raises CorruptAtlas where there is none that may be used."""
        part = self.read(unit)
        if part is None:
            raise CorruptAtlas(
                f"{self.folder}: expected part {unit.name} of this request, it is missing, damaged or of another one; "
                "run the same covector atlas command again, without --shard"
            )
        return part

    def tensors(self, unit: Unit) -> dict[str, str]:
        """Stored name → sha256 of the tensors that the unit's part depends on."""
        if unit.name not in self._tensors:
            self._tensors[unit.name] = tensors_of(self.model, unit)
        return self._tensors[unit.name]

    def of_others(self, plan: tuple[Unit, ...]) -> bool:
        """Whether the parts that are there are of this request but of other tensors; the first one is asked."""
        for unit in plan:
            part = read_part(self.folder, unit.name)
            if part is not None and part.notes.get("request") == self.stamp:
                return part.notes.get("tensors") != self.tensors(unit)
        return False

    def changed_since(self, plan: tuple[Unit, ...], recorded: Mapping[str, str]) -> str | None:
        """A tensor that is not what it was, among those of the first units, `LOOKED_AT` values of them."""
        seen = 0
        for unit in plan:
            now = self.tensors(unit)
            changed = [name for name in sorted(now) if recorded.get(name) != now[name]]
            if changed:
                return changed[0]
            seen += sum(math.prod(tensor_shape(self.model.spec, tensor)) for tensor in unit.tensors)
            if seen > LOOKED_AT:
                return None
        return None
