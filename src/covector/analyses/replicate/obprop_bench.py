"""What the numbers of observable propagation are measured with: read-outs, head features, prompts, runs kept.

Source: theory page §1.2–1.7, and the defects of §3 where a number is asked as published.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from covector.analyses.replicate.obprop_tasks import Names, steps_of, tasks
from covector.axes import Float
from covector.errors import BadRequest
from covector.model.activations import activation, derivative
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair, fill_template, single
from covector.study.observable import Observable

WINDOW = 128
Run = Mapping[str, np.ndarray]


@dataclass(eq=False)
class Bench:
    """A model with the published tasks: everything is float64 but the runs, which have the decoder's precision."""

    model: Model
    names: Names
    defects: frozenset[str] = frozenset()
    text: str | None = None
    dtype: str = "float64"
    _kept: dict = field(default_factory=dict, repr=False)

    @property
    def decoder(self) -> Decoder:
        """The reference decoder, kept."""
        return self._once("decoder", lambda: Decoder(self.model.weights, getattr(torch, self.dtype), self.model.device))

    def _once(self, key, make):
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def part(self, name: str) -> np.ndarray | None:
        """A canonical tensor in float64; None where there is none."""
        return self._once(("part", name), lambda: np.asarray(self.model.weights[name], dtype=np.float64)
                          if name in self.model.weights else None)  # fmt: skip

    def need(self, name: str) -> np.ndarray:
        """A tensor that these experiments cannot do without."""
        found = self.part(name)
        if found is None:
            raise BadRequest(f"{self.model.name} has no {name}")
        return found

    # Read-outs and features -----------------------------------------------------------------------------------------

    def observable(self, task: str) -> Observable:
        """The task's weights on tokens."""
        return self._once(("obs", task), lambda: Observable.parse(tasks()["observables"][task], self.model))

    def u(self, task: str) -> Float[np.ndarray, " d"]:
        """W_U n."""
        return self._once(("u", task), lambda: self.observable(task).readout(self.model))

    def through(self, f: Float[np.ndarray, " d"], head: tuple[int, int]) -> Float[np.ndarray, " d"]:
        """A functional on what a head writes, as one on what it reads behind its norm: W_V (W_O f)."""
        layer, h = head
        return self._value_rows(layer, h) @ (self.need(f"L{layer}.W_O")[h] @ f)

    def _value_rows(self, layer: int, h: int) -> np.ndarray:
        attn = self.model.spec.blocks[layer].attn
        assert attn is not None
        return self.need(f"L{layer}.W_V")[attn.kv_of(h)]

    def raw(self, task: str, head: tuple[int, int]) -> Float[np.ndarray, " d"]:
        """The feature without any norm."""
        return self.through(self.u(task), head)

    def normed(self, f: Float[np.ndarray, " d"], norm: str) -> Float[np.ndarray, " d"]:
        """P(γ ⊙ f): behind a norm to before it, its scale 1. B1 takes the other norm of the block."""
        if "B1" in self.defects and norm.startswith("L"):
            norm = norm.replace("attn", "#").replace("mlp", "attn").replace("#", "mlp")
        gain = self.part(f"{norm}.gain")
        f = f if gain is None else f * gain
        return f - f.mean()

    def path_feature(self, task: str, path: str) -> Float[np.ndarray, " d"]:
        """Direction of a path's feature before the norm of its first component, heads attending fully; scales are 1.

        MLPs have the slopes between the first pair of prompts, at the place where the path reads them.
        """
        f, length = self.normed(self.u(task), "final_norm"), self.first(task)[0]["resid_in"].shape[1]
        for layer, head, at in steps_of(path):
            at = length - 1 if at is None else at
            if head is None:
                f = self._mlp(f, layer, self.first(task), at)
                f = self.normed(f, f"L{layer}.mlp_norm")
            else:
                f = self.normed(self.through(f, (layer, head)), f"L{layer}.attn_norm")
        return f

    def _mlp(self, f: np.ndarray, layer: int, runs: Sequence[Run], at: int) -> np.ndarray:
        mlp = self.model.spec.blocks[layer].mlp
        assert mlp is not None
        a, b = (run[f"L{layer}.mlp_pre"][0, at].astype(np.float64) for run in runs)
        act, slope = activation(mlp.activation), derivative(mlp.activation)
        apart = np.abs(a - b) > 1e-9
        m = np.where(apart, (act(a) - act(b)) / np.where(apart, a - b, 1.0), slope((a + b) / 2))
        return self.need(f"L{layer}.W_in") @ (m * (self.need(f"L{layer}.W_out") @ f))

    # Prompts and runs -----------------------------------------------------------------------------------------------

    def pairs(self, task: str, templates: Sequence[int] = (0, 1, 2), names: Names | None = None) -> list[Pair]:
        """Female (clean) and male (corrupt) prompts of a task's templates, template-major, start token in front."""
        names = names or self.names
        sides = {"NAME": (list(names.female), list(names.male))}
        return [p for i in templates for p in fill_template(self.model, tasks()["templates"][task][i], sides, "yes")]

    def first(self, task: str) -> tuple[Run, Run]:
        """Runs of the pair that the notebooks linearise at: the first female and male prompt of the task."""
        return self._once(("first", task), lambda: self._first(task))

    def _first(self, task: str) -> tuple[Run, Run]:
        pair = self.first_pair(task)
        return captured(self.decoder, np.array([pair.clean])), captured(self.decoder, np.array([pair.corrupt]))

    def first_pair(self, task: str) -> Pair:
        """The prompts of `first`."""
        one = Names(self.names.female[:1], self.names.male[:1])
        return self.pairs(task, (0,), one)[0]

    def finals(self, task: str, template: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Last streams at the last token, [2 n, d] (female, then male), how many are female, and the observable."""
        return self._once(("finals", task, template), lambda: self._finals(task, template))

    def _finals(self, task: str, template: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = self.pairs(task, (template,))
        last = f"L{self.model.spec.n_layers - 1}.resid_post"
        x, y = [], []
        for prompts in ([p.clean for p in pairs], [p.corrupt for p in pairs]):
            for run, out in self.run(prompts, [last]):
                x.append(run[last][:, -1].astype(np.float64))
                y.append(self.observable(task).of(out.astype(np.float64)))
        return np.concatenate(x), np.array([len(pairs)]), np.concatenate(y)

    def run(self, prompts: Sequence[Sequence[int]], hooks: Sequence[str]) -> Iterator[tuple[Run, np.ndarray]]:
        """Captured hooks and last logits, prompts of equal length, at most 16 at once, in order."""
        for start in range(0, len(prompts), 16):
            some = np.array(prompts[start : start + 16])
            with torch.no_grad():
                run = self.decoder.run(torch.from_numpy(some), capture=list(hooks))
            yield {k: v.cpu().numpy() for k, v in run.cache.items()}, run.logits[:, -1].cpu().numpy()

    def prompt_run(self, text: str, bos: bool) -> np.ndarray:
        """Last logits of one prompt."""
        ids = single(self.model, text, "yes" if bos else "no").clean
        return next(self.run([ids], []))[1][0].astype(np.float64)

    def streams(self, task: str, hook: str, *, templates: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What passes a hook at the name of every prompt [n, d], and the observable, template by template."""
        return self._once(("streams", task, hook, tuple(templates)), lambda: self._streams(task, hook, templates))

    def _streams(self, task: str, hook: str, templates: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        x, y = [], []
        for template in templates:
            pairs = self.pairs(task, (template,))
            for side in ("clean", "corrupt"):
                at = pairs[0].slots["NAME"]
                for run, out in self.run([getattr(p, side) for p in pairs], [hook]):
                    x.append(run[hook][:, at].astype(np.float64))
                    y.append(self.observable(task).of(out.astype(np.float64)))
        return np.concatenate(x), np.concatenate(y)

    def text_rows(self, hook: str) -> Float[np.ndarray, "n d"]:
        """What passes a hook along the text, in windows of 128 tokens, the first token of each left out."""
        return self._once(("text", hook), lambda: self._text_rows(hook))

    def _text_rows(self, hook: str) -> np.ndarray:
        if self.text is None:
            raise NotAsked("needs --text FILE (published on Pile-10k)")
        assert self.model.vocabulary is not None
        ids = self.model.vocabulary.encode(self.text)
        whole = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
        if not whole:
            raise NotAsked(f"needs a text of at least {WINDOW} tokens, got {len(ids)}")
        rows = [run[hook][:, 1:].reshape(-1, run[hook].shape[-1]) for run, _ in self.run(whole, [hook])]
        return np.concatenate(rows).astype(np.float64)


class NotAsked(Exception):
    """A number that cannot be measured here; its text says what is missing."""


def fit(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Least squares of y on x: intercept, slope, r²."""
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        raise NotAsked("needs more prompts than there are")
    slope = float(np.cov(x, y)[0, 1] / np.var(x, ddof=1))
    return {"slope": slope, "intercept": float(y.mean() - slope * x.mean()), "r2": float(np.corrcoef(x, y)[0, 1] ** 2)}


def cosine(a: Float[np.ndarray, " d"], b: Float[np.ndarray, " d"]) -> float:
    """Between two features."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
