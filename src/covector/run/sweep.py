"""Many small changes of one run, measured: each change is a world of its own, worlds of one layer run as one batch.

Everything before the changed layer is the same in all worlds, so they start from the stream that enters it. A change
replaces part of one hook's tensor (a head, a position, all of it) by given values.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float, Int
from covector.run.decoder import Decoder
from covector.run.hooks import HOOKS
from covector.study.observable import Observable

# Rows of the stream that run at once: measured on 2 cores, more no longer gain and scores leave the cache.
ROWS = 4096
_AXES = {hook.name: hook.axes.split() for hook in HOOKS}


@dataclass(frozen=True)
class Place:
    """What is changed: a role of a block (``z``, ``mlp_out``, ``resid_pre``, ``pattern`` …), of one head or all.

    ``slot`` names the positions (queries, for ``pattern``); None: all of them.
    """

    layer: int
    role: str
    head: int | None = None
    slot: str | None = None

    @property
    def hook(self) -> str:
        """The hook point."""
        return f"L{self.layer}.{self.role}"

    def __str__(self) -> str:
        at = "" if self.slot is None else f"@{self.slot}"
        if self.head is None:
            return f"{self.hook}{at}"
        letter = "K" if self.role in ("k", "v") else "H"
        role = "" if self.role == "z" else f".{self.role}"
        return f"L{self.layer}{letter}{self.head}{role}{at}"

    @property
    def axes(self) -> tuple[int | None, int]:
        """(axis of heads, axis of positions) of the hook's tensor."""
        axes = _AXES[self.role]
        heads = next((i for i, a in enumerate(axes) if a in ("head", "kv_head")), None)
        return heads, axes.index("position")


def replaced(value: Tensor, new: Tensor, place: Place, mask: Float[np.ndarray, "batch position"] | None) -> Tensor:
    """`value` with the part that `place` names taken from `new` (where `mask` is 1, if given)."""
    heads, positions = place.axes
    where = torch.ones((), dtype=torch.bool, device=value.device)
    if mask is not None:
        shape = [1] * value.ndim
        shape[0], shape[positions] = mask.shape
        where = torch.from_numpy(mask > 0).to(value.device).reshape(shape)
    if heads is not None and place.head is not None:
        shape = [1] * value.ndim
        shape[heads] = value.shape[heads]
        where = where & (torch.arange(value.shape[heads], device=value.device) == place.head).reshape(shape)
    return torch.where(where, new, value)


def sweep(
    decoder: Decoder,
    base: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
    places: Sequence[Place],
    masks: Mapping[str, Float[np.ndarray, "batch position"]],
    observable: Observable,
    at: Int[np.ndarray, " batch"],
) -> Iterator[tuple[Place, Float[np.ndarray, " batch"]]]:
    """Per place, the observable of every prompt when the base run has that place's activations from the source run.

    `base`, `source`: captured activations by hook, ``L{i}.resid_pre`` of the changed layers among the base's. `masks`:
    positions of every slot that a place names. Exact: everything behind the change is computed again.
    """
    by_hook: dict[str, list[Place]] = {}
    for place in places:
        by_hook.setdefault(place.hook, []).append(place)
    for hook, group in by_hook.items():
        layer, stream = group[0].layer, torch.from_numpy(base[f"L{group[0].layer}.resid_pre"])
        stream, new = (x.to(decoder.device, decoder.dtype) for x in (stream, torch.from_numpy(source[hook])))
        worlds = max(1, ROWS // (stream.shape[0] * stream.shape[1]))
        for start in range(0, len(group), worlds):
            some = group[start : start + worlds]

            def change(value: Tensor, some: Sequence[Place] = some, new: Tensor = new) -> Tensor:
                each = value.chunk(len(some))
                pairs = zip(each, some, strict=True)
                return torch.cat([replaced(v, new, p, masks[p.slot] if p.slot else None) for v, p in pairs])

            with torch.no_grad():
                run = decoder.run(
                    resid_in=stream.repeat(len(some), *[1] * (stream.ndim - 1)),
                    first=layer,
                    at=torch.from_numpy(np.tile(at, len(some))),
                    intervene={hook: change},
                )
            values = observable.of(run.outputs[observable.output][:, 0].cpu().numpy().astype(np.float64))
            yield from zip(some, values.reshape(len(some), -1), strict=True)
