"""Single neurons changed in one run, or sets of them, everything behind them computed again."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float, Int
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.points import as_inputs
from covector.study.observable import Observable

# Layer and number.
Neuron = tuple[int, int]


class NeuronRun:
    """One batch of pairs: both runs' neurons, and the observable when some of them are changed."""

    def __init__(
        self,
        decoder: Decoder,
        observable: Observable,
        clean: Int[np.ndarray, "batch position"] | Mapping[str, np.ndarray],
        corrupt: Int[np.ndarray, "batch position"] | Mapping[str, np.ndarray],
        at: Int[np.ndarray, " batch"],
    ) -> None:
        self.decoder, self.observable, self.at = decoder, observable, torch.from_numpy(at)
        self.layers = [i for i, block in enumerate(decoder.spec.blocks) if block.mlp]
        last = f"L{decoder.spec.n_layers - 1}.resid_post"
        names = [f"L{i}.{role}" for i in self.layers for role in ("mlp_post", "resid_pre")] + [last]
        with torch.no_grad():
            self.base = decoder.run(as_inputs(clean), at=self.at, capture=names)
            self.other = decoder.run(as_inputs(corrupt), at=self.at, capture=names)
        self.last = self.base.cache[last].cpu().numpy()
        self.clean, self.corrupt = (self._value(run.outputs) for run in (self.base, self.other))

    def _value(self, outputs: Mapping[str, Tensor]) -> Float[np.ndarray, " batch"]:
        return self.observable.of(outputs[self.observable.output][:, 0].cpu().numpy())

    def source(self, source: str) -> dict[int, Tensor]:
        """What neurons are given, layer by layer."""
        own = {i: self.base.cache[f"L{i}.mlp_post"] for i in self.layers}
        other = {i: self.other.cache[f"L{i}.mlp_post"] for i in self.layers}
        if source == "corrupt":
            return other
        if source == "zero":
            return {i: torch.zeros_like(x) for i, x in own.items()}
        return {i: (0.5 * (x + other[i])).mean(0, keepdim=True).expand_as(x) for i, x in own.items()}

    def changed(
        self, sets: Sequence[Sequence[Neuron]], new: Mapping[int, Tensor]
    ) -> Iterator[Float[np.ndarray, " batch"]]:
        """The observable with each set of neurons changed, everything behind computed again."""
        for some in sets:
            by_layer: dict[int, list[int]] = {}
            for layer, i in some:
                by_layer.setdefault(layer, []).append(i)
            hooks = {
                f"L{layer}.mlp_post": lambda x, layer=layer, ids=ids: _put(x, ids, new[layer])
                for layer, ids in by_layer.items()
            }
            start = min(by_layer)
            with torch.no_grad():
                run = self.decoder.run(
                    resid_in=self.base.cache[f"L{start}.resid_pre"], first=start, at=self.at, intervene=hooks
                )
            yield self._value(run.outputs)

    def direct(
        self, every: Sequence[Neuron], new: Mapping[int, Tensor], at: Int[np.ndarray, " batch"]
    ) -> Float[np.ndarray, "k batch"]:
        """How much each neuron's activation falls at the position that is read."""
        rows = np.arange(len(at))
        drop = {i: (self.base.cache[f"L{i}.mlp_post"] - new[i]).cpu().numpy()[rows, at] for i in self.layers}
        return np.stack([drop[layer][:, i] for layer, i in every])

    def scale(self, model: Model, at: Int[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
        """1/σ of the final norm in the clean run; 1 without one."""
        norm = model.spec.final_norm
        if norm is None:
            return np.ones(len(at))
        x = self.last[np.arange(len(at)), at]
        x = x - x.mean(axis=1, keepdims=True) if norm.kind == "layer" else x
        return 1 / np.sqrt(np.mean(x * x, axis=1) + norm.eps)


def _put(x: Tensor, ids: Sequence[int], new: Tensor) -> Tensor:
    where = torch.tensor(list(ids), device=x.device)
    x = x.clone()
    x[..., where] = new[..., where]
    return x
