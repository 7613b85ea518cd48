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
from covector.errors import BadRequest
from covector.model.spec import ModelSpec
from covector.propagation.anatomy import components
from covector.run.decoder import Decoder
from covector.run.hooks import HOOKS, Intervention
from covector.run.runner import Inputs, Run, Runner
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
    runner: Runner,
    base: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
    places: Sequence[Place],
    masks: Mapping[str, Float[np.ndarray, "batch position"]],
    observable: Observable,
    at: Int[np.ndarray, " batch"],
    *,
    route: Sequence[Place] | None = None,
    inputs: Inputs | None = None,
) -> Iterator[tuple[Place, Float[np.ndarray, " batch"]]]:
    """Per place, the observable of every prompt when the base run has that place's activations from the source run.

    `base`, `source`: captured activations by hook, ``L{i}.resid_pre`` of the changed layers among the base's. `masks`:
    positions of every slot that a place names. `route`: how the change goes on. None: everything behind it is computed
    again. Empty: straight to the output, every later component held at the base run. Else through these receivers alone
    (heads' z, ``mlp_post``): they see the change with everything between held, and what they then do differently is put
    into the base run, all behind them computed again (path patching). Exact. A receiver that a place does not feed is
    left out for it. `inputs`: what the base run read; the decoder goes on from the changed layer and needs none, other
    runners begin again with every world.
    """
    by_hook: dict[str, list[Place]] = {}
    for place in places:
        by_hook.setdefault(place.hook, []).append(place)
    for hook, group in by_hook.items():
        new = torch.from_numpy(source[hook]).to(runner.device, runner.dtype)
        batch, length = base["resid_in"].shape[:2]
        worlds = max(1, ROWS // (batch * length))
        for start in range(0, len(group), worlds):
            some = group[start : start + worlds]

            def change(value: Tensor, some: Sequence[Place] = some, new: Tensor = new) -> Tensor:
                pairs = zip(value.chunk(len(some)), some, strict=True)
                return torch.cat([replaced(v, new, p, masks[p.slot] if p.slot else None) for v, p in pairs])

            seers = None if route is None else [r for r in route if feeds(runner.spec, group[0], r)]
            run = Worlds(runner, base, len(some), np.tile(at, len(some)), inputs)
            held = {} if seers is None else run.held(group[0])
            outputs = run.forward(group[0].layer, {**held, hook: change}, [r.hook for r in seers or ()])
            if seers:
                outputs = run.forward(min(r.layer for r in seers), _received(seers, outputs.cache))
            values = observable.of(outputs.outputs[observable.output][:, 0].cpu().numpy().astype(np.float64))
            yield from zip(some, values.reshape(len(some), -1), strict=True)


def feeds(spec: ModelSpec, place: Place, receiver: Place) -> bool:
    """Whether what changes at a place can reach what a receiver reads."""
    by_sublayer = {c.name: c for c in components(spec)}
    reader = by_sublayer[f"L{receiver.layer}.{'mlp' if receiver.role.startswith('mlp') else 'attn'}"]
    if place.role == "resid_pre":
        return place.layer <= receiver.layer
    return by_sublayer[f"L{place.layer}.{'mlp' if place.role.startswith('mlp') else 'attn'}"].writes <= reader.reads


@dataclass(frozen=True)
class Worlds:
    """Copies of a base run that go on together: the decoder from the stream that enters a block, others from inputs."""

    runner: Runner
    base: Mapping[str, np.ndarray]
    n: int
    at: Int[np.ndarray, " batch"]
    inputs: Inputs | None = None

    def repeated(self, hook: str) -> Tensor:
        """What passed a hook in the base run, once per world."""
        value = torch.from_numpy(self.base[hook]).to(self.runner.device, self.runner.dtype)
        return value.repeat(self.n, *[1] * (value.ndim - 1))

    def forward(
        self, first: int, intervene: Mapping[str, Intervention], capture: Sequence[str] = (), *, grad: bool = False
    ) -> Run:
        """From the block `first` to the outputs; `grad` keeps what gradients need."""
        with torch.set_grad_enabled(grad):
            if not isinstance(self.runner, Decoder):
                return self._again(intervene, capture)
            return self.runner.run(
                resid_in=self.repeated(f"L{first}.resid_pre"),
                first=first,
                at=torch.from_numpy(self.at),
                capture=capture,
                intervene=intervene,
            )

    def _again(self, intervene: Mapping[str, Intervention], capture: Sequence[str]) -> Run:
        """From the inputs; the outputs where they are read, as the decoder gives them."""
        if self.inputs is None:
            raise BadRequest("a runner that begins with the inputs: expected what the base run read, got none")
        named = (
            self.inputs if isinstance(self.inputs, Mapping) else {self.runner.spec.assembly.inputs[0].name: self.inputs}
        )
        many = {name: value.repeat(self.n, *[1] * (value.ndim - 1)) for name, value in named.items()}
        run = self.runner.run(many, capture=capture, intervene=intervene)
        rows, at = (torch.from_numpy(x).to(self.runner.device) for x in (np.arange(len(self.at)), self.at))
        read = {name: value[rows, at][:, None] for name, value in run.outputs.items()}
        return Run(read, run.resid_final[rows, at][:, None], run.cache)

    def held(self, sender: Place) -> dict[str, Intervention]:
        """Every sublayer from the sender's block on gives what it gave in the base run, but for the sender's own."""
        own = "mlp_out" if sender.role.startswith("mlp") else "" if sender.role == "resid_pre" else "attn_out"
        hooks = [
            f"L{layer}.{sub.name}_out"
            for layer, block in enumerate(self.runner.spec.blocks)
            for sub in block.sublayers
            if layer > sender.layer or (layer == sender.layer and f"{sub.name}_out" != own)
        ]
        return {hook: _always(self.repeated(hook)) for hook in hooks}


def _always(value: Tensor) -> Intervention:
    """An intervention that puts in the same whatever passes."""
    return lambda _: value


def _received(route: Sequence[Place], seen: Mapping[str, Tensor]) -> dict[str, Intervention]:
    """Interventions that give receivers what they did when they saw the change."""
    by_hook: dict[str, list[Place]] = {}
    for place in route:
        by_hook.setdefault(place.hook, []).append(place)

    def put(places: list[Place], new: Tensor) -> Intervention:
        def change(value: Tensor) -> Tensor:
            for place in places:
                value = replaced(value, new, place, None)
            return value

        return change

    return {hook: put(places, seen[hook]) for hook, places in by_hook.items()}
