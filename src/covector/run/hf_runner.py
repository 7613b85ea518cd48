"""The transformers runner: a Hugging Face model with plain PyTorch hooks under our hook names."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from covector.arch.adapter import AdaptedWeights
from covector.arch.stored import put
from covector.errors import BadRequest
from covector.model.spec import ModelSpec
from covector.model.weights import Weights
from covector.run.hf_boundaries import Boundary, attached, boundaries
from covector.run.hf_modules import HFBlock, find_blocks, find_norms
from covector.run.hooks import Intervention, Tap, hook_names, output_hook, tap
from covector.run.random_inputs import random_inputs
from covector.run.runner import Inputs, Run, check_changes

# What transformers' forward functions call our inputs.
_ARGUMENTS = {
    "token": "input_ids",
    "type": "token_type_ids",
    "state": "states",
    "action": "actions",
    "return": "returns_to_go",
    "timestep": "timesteps",
}
# The hooks that need no boundary of their own: they are read from what the model returns.
_RETURNED = ("final_normed",)


class HFRunner:
    """Runs a transformers model; see `Runner`.

    ``hooks`` leaves out what no module boundary shows: scores, and q and k after their turn. ``changeable`` leaves out
    besides the pattern and ``resid_mid``, which are copies, and ``attn_in``/``mlp_in`` where one norm serves both.
    Raises BadRequest for a model in training mode, UnsupportedFamily for one whose modules are not recognised.
    """

    def __init__(self, model: PreTrainedModel, weights: Weights) -> None:
        if model.training:
            raise BadRequest(f"{type(model).__name__}: expected evaluation mode, it is training; call .eval() first")
        self.model, self.weights = model, weights
        self.spec: ModelSpec = weights.spec
        self.blocks: tuple[HFBlock, ...] = find_blocks(model)
        if len(self.blocks) != self.spec.n_layers:
            raise BadRequest(
                f"{type(model).__name__}: expected {self.spec.n_layers} blocks as in the anatomy, it has "
                f"{len(self.blocks)}; judge a model with the weights that were read from it"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The model's own precision."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.device

    @cached_property
    def norms(self) -> Mapping[str, nn.Module]:
        """The model's norm modules by canonical prefix, as a traced run shows them."""
        inputs = random_inputs(self.spec, length=2 * len(self.spec.assembly.inputs), batch=2)
        return find_norms(self.model, self.blocks, self.spec, lambda: self._forward(inputs, None))

    @cached_property
    def places(self) -> tuple[Boundary, ...]:
        """Every module boundary that carries a hook point."""
        eager = self.model.config._attn_implementation == "eager"
        return tuple(boundaries(self.spec, self.blocks, self.norms, eager))

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook points that can be captured, in the order of the computation."""
        found = {n for place in self.places for n in place.names}
        found |= {*_RETURNED, *(output_hook(out.name) for out in self.spec.outputs)}
        return tuple(n for n in hook_names(self.spec) if n in found)

    @property
    def changeable(self) -> tuple[str, ...]:
        """The hook points at which it can intervene."""
        fixed = {n for place in self.places if not place.changeable for n in place.names}
        return tuple(n for n in self.hooks if n not in fixed)

    def run(
        self,
        inputs: Inputs,
        *,
        mask: Tensor | None = None,
        capture: Iterable[str] = (),
        intervene: Mapping[str, Intervention] | None = None,
    ) -> Run:
        """One forward pass of the transformers model, in its own dtype; inputs as in `Decoder.run`.

        `mask` is transformers' attention mask: [batch, position], for agents [batch, timestep]. Raises BadRequest for
        inputs it cannot take (transformers needs every action of an agent, the last one too) and for a hook point
        that no module boundary shows.
        """
        fixed = [n for n in (intervene or {}) if n in self.hooks and n not in self.changeable]
        if fixed:
            raise BadRequest(
                f"intervene at {fixed[0]}: expected a place that can be replaced in a transformers model, this one is "
                "only seen there; use the reference decoder"
            )
        at = tap(self.hooks, capture, intervene)
        named = inputs if isinstance(inputs, Mapping) else {self.spec.assembly.inputs[0].name: inputs}
        named = {name: torch.as_tensor(value) for name, value in named.items()}
        with attached(self.places, at, self._lead(named)), self._at_the_end(at):
            given = self._forward(named, mask)
        return self._finish(given, at)

    def returned(self, inputs: Mapping[str, Tensor], *, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The outputs as the model's own forward returns them: an agent's only where it reads them."""
        given = self._forward(inputs, mask)
        named = {out.name: getattr(given, f"{out.name}_preds", None) for out in self.spec.outputs}
        return {name: given.logits if value is None else value for name, value in named.items()}

    def _lead(self, named: Mapping[str, Tensor]) -> tuple[int, int]:
        first = self.spec.assembly.inputs[0].name
        if first not in named:
            raise BadRequest(f"inputs: expected '{first}', got {', '.join(named) or 'none'}")
        batch, steps = named[first].shape[:2]
        return batch, steps * (len(self.spec.assembly.inputs) if self._is_agent else 1)

    def _forward(self, named: Mapping[str, Tensor], mask: Tensor | None) -> Any:
        arguments: dict[str, Any] = {}
        for name, value in named.items():
            if name not in _ARGUMENTS:
                raise BadRequest(f"inputs: expected {', '.join(_ARGUMENTS)}, got '{name}'")
            value = value.to(self.model.device)
            arguments[_ARGUMENTS[name]] = value.to(self.model.dtype) if value.is_floating_point() else value
        if self._is_agent:
            self._check_whole(named)
            arguments["return_dict"] = True
        if mask is not None:
            arguments["attention_mask"] = torch.as_tensor(mask, device=self.model.device).long()
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            arguments["use_cache"] = False
        return self.model(**arguments)

    @property
    def _is_agent(self) -> bool:
        return self.spec.assembly.mode == "interleaved"

    def _check_whole(self, named: Mapping[str, Tensor]) -> None:
        lengths = {i.name: named[i.name].shape[1] if i.name in named else 0 for i in self.spec.assembly.inputs}
        if len(set(lengths.values())) != 1:
            given = ", ".join(f"{name} {n}" for name, n in lengths.items())
            raise BadRequest(
                f"inputs: transformers expects every input at every timestep, got {given}; pad the last action "
                "(nothing earlier sees it) or use the reference decoder"
            )

    @property
    def _head(self) -> nn.Module | None:
        """The module of a language model that reads the final stream; agents have several, bare models none."""
        base = self.model.base_model
        return next((m for m in self.model.children() if m is not base), None) if base is not self.model else None

    @contextmanager
    def _at_the_end(self, at: Tap) -> Iterator[None]:
        """Taps what the head reads, and keeps it for `_finish`."""
        head = self._head
        self._final: Tensor | None = None
        if head is None:
            yield
            return

        def before(_: nn.Module, args: tuple) -> tuple:
            self._final = at("final_normed", args[0])
            return (self._final, *args[1:])

        handle = head.register_forward_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()

    def _finish(self, given: Any, at: Tap) -> Run:
        final, self._final = self._final, None
        if final is None:
            final = at("final_normed", given.last_hidden_state)
        outputs = {}
        for out in self.spec.outputs:
            head = getattr(self.model, f"predict_{out.name}", None)
            # An agent's own heads, at every position: its forward returns them at some positions only.
            value = given.logits if head is None else head(final)
            outputs[out.name] = at(output_hook(out.name), value)
        return Run(outputs, final, at.cache)

    @contextmanager
    def edited(self, changes: Mapping[str, np.ndarray]) -> Iterator["HFRunner"]:
        """Within this context the model's own parameters hold these canonical tensors; afterwards the bytes of before.

        The way back into a stored tensor is the layout in words. Raises BadRequest for a tensor that the model does
        not have and for another shape. A tied ``W_U`` that is given is untied for as long: the embedding keeps its own.
        """
        check_changes(self.weights, changes)
        if not isinstance(self.weights, AdaptedWeights):
            raise BadRequest("edit: expected weights read through a layout in words; open the checkpoint itself")
        parameters = dict(self.model.named_parameters())
        untied = self.spec.tied and "W_U" in changes
        inside = [name for name in changes if not (untied and name == "W_U")]
        targets = {name: _parameter(parameters, self.weights.place(name).tensor) for name in inside}
        kept = {target: parameters[target].detach().clone() for target in targets.values()}
        with self._output(np.asarray(changes["W_U"]) if untied else None):
            try:
                for name in inside:
                    _write(self.weights, name, changes[name], parameters[targets[name]])
                yield self
            finally:
                with torch.no_grad():
                    for target, value in kept.items():
                        parameters[target].copy_(value)

    @contextmanager
    def _output(self, own: np.ndarray | None) -> Iterator[None]:
        """An output matrix of its own ([d_model, token]) in a model that ties it; afterwards the old parameter."""
        head = self.model.get_output_embeddings()
        if own is None or head is None:
            yield
            return
        shared = head.weight
        try:
            made = torch.tensor(own.T, device=shared.device, dtype=shared.dtype)
            head.weight = nn.Parameter(made, requires_grad=False)
            yield
        finally:
            head.weight = shared


def _parameter(parameters: Mapping[str, Tensor], stored: str) -> str:
    """The model's name of a stored tensor: checkpoints of a bare model leave a prefix out."""
    fits = [n for n in parameters if n == stored or n.endswith("." + stored) or stored.endswith("." + n)]
    if len(fits) != 1:
        raise BadRequest(f"edit: expected one parameter for the stored tensor '{stored}', found {fits or 'none'}")
    return fits[0]


def _write(weights: AdaptedWeights, name: str, array: np.ndarray, parameter: Tensor) -> None:
    """Put one canonical tensor where it is stored."""
    stored = parameter.detach().cpu().to(torch.float64).numpy().copy()
    put(weights, name, array, stored)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(stored))
