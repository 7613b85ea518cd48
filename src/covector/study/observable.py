"""Observables: linear functionals on a model's outputs, typed as weighted tokens or actions.

    Observable.parse("' she' - ' he'", model)
    Observable({" she": 1, " he": -1}, model)

Source: `docs/theory/observables.md`.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, UnknownBasis
from covector.model.opened import Model
from covector.model.spec import Output, output_bias, output_weight
from covector.study.expression import Expression, Term, of_weights, parse, variants, with_space, written

# Weights that sum to less than this, relative to their sizes, count as balanced.
BALANCED = 1e-9


@dataclass(frozen=True, init=False)
class Observable:
    """Weights on the labels of one output: obs(y) = Σᵢ wᵢ y[idᵢ] + shift·Σⱼ yⱼ.

    ``output`` names the output ("token", "action" …), ``size`` its labels; ``words`` is what was understood, in the
    grammar that `parse` reads. ``shift`` is not 0 for centred observables alone. ``softmax`` says that a common shift
    of all outputs means nothing, so that weights should sum to zero.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    labels: tuple[str, ...]
    output: str
    size: int
    words: str
    shift: float
    softmax: bool

    def __init__(
        self, weights: Mapping[str, int | float] | Expression, model: Model, output: str | None = None
    ) -> None:
        """The observable that these texts mean in a model; a mapping's texts are meant letter by letter.

        `output`: which output's labels (default: the model's first). A bare word in an `Expression` stands for its
        single-token variants, which share its weight. Raises NotOneToken (showing the split) for a text of several
        tokens, UnknownBasis for a label that the output lacks, BadRequest for weights that cancel or no such output.
        """
        expression = weights if isinstance(weights, Expression) else of_weights(weights)
        out = _output(model, output)
        labels = model.bases[f"{out.name}_out"].labels
        known: dict[str, int] = {}
        for i, label in enumerate(labels):
            known.setdefault(label, i)
        found: dict[int, float] = {}
        said = []
        for term in expression.terms:
            ids = _ids(term, model, out, known)
            for i in ids:
                found[i] = found.get(i, 0.0) + term.weight / len(ids)
            said += [Term(term.weight / len(ids), labels[i], True) for i in ids]
        found = {i: w for i, w in found.items() if w}
        if not found:
            raise BadRequest(f"the weights of {expression} cancel: nothing is observed; change the weights")
        self._set(tuple(found), tuple(found.values()), tuple(labels[i] for i in found), out, written(said), 0.0)

    @classmethod
    def parse(cls, text: str, model: Model, output: str | None = None) -> "Observable":
        """The observable that a text means: ``"' she' - ' he'"``, ``@file.json``. Raises as the constructor does."""
        return cls(parse(text), model, output)

    def _set(
        self,
        ids: tuple[int, ...],
        weights: tuple[float, ...],
        labels: tuple[str, ...],
        out: Output,
        words: str,
        shift: float,
    ) -> None:
        softmax = out.name == "token" or (out.activation is None and out.n > 1)
        values = {
            "ids": ids, "weights": weights, "labels": labels, "output": out.name, "size": out.n, "words": words,
            "shift": shift, "softmax": softmax,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return self.words

    @property
    def typed(self) -> str:
        """It as words of a command line, in quotes, with the options that it needs."""
        centred = self.words.startswith("centred(")
        words = self.words.removeprefix("centred(").removesuffix(")") if centred else self.words
        quoted = shlex.quote(words) if re.search(r'["$`\\!]', words) else f'"{words}"'
        output = "" if self.output == "token" else f" --output {shlex.quote(self.output)}"
        return quoted + (" --centred" if centred else "") + output

    @property
    def unit(self) -> str:
        """What it is measured in: logits, or the output itself where nothing makes probabilities of it."""
        return "logits" if self.softmax else self.output

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(sum(self.weights)) + self.shift * self.size

    @property
    def balanced(self) -> bool:
        """Whether the weights sum to zero, so that a common shift of all outputs leaves it alone."""
        return abs(self.total) <= BALANCED * sum(map(abs, self.weights))

    @property
    def warning(self) -> str:
        """What to know about it before reading on; empty if nothing."""
        if self.balanced or not self.softmax:
            return ""
        return (
            f"the weights of {self.words} sum to {self.total:g}: softmax ignores a common shift of all logits, so part "
            "of this number means nothing; --centred takes that part away"
        )

    def centred(self) -> "Observable":
        """The same less its mean weight on all labels: blind to a common shift."""
        made = object.__new__(Observable)
        for name in self.__dataclass_fields__:
            object.__setattr__(made, name, getattr(self, name))
        object.__setattr__(made, "shift", self.shift - self.total / self.size)
        object.__setattr__(made, "words", f"centred({self.words})" if not self.balanced else self.words)
        return made

    @cached_property
    def vector(self) -> Float[np.ndarray, " n"]:
        """Weights on every label of the output, dense."""
        dense = np.full(self.size, self.shift)
        np.add.at(dense, list(self.ids), self.weights)
        return dense

    def of(self, outputs: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
        """Its value on outputs (logits, after their soft-cap)."""
        value = outputs[..., list(self.ids)] @ np.array(self.weights)
        return np.asarray(value + self.shift * outputs.sum(axis=-1) if self.shift else value)

    def readout(self, model: Model) -> Float[np.ndarray, " d_model"]:
        """scale · W_U n: the functional on what the output matrix multiplies, before any soft-cap; float64."""
        out = _output(model, self.output)
        W = _matrix(model, out.name)
        found = W[:, list(self.ids)].astype(np.float64) @ np.array(self.weights)
        if self.shift:
            found = found + self.shift * W.sum(axis=1, dtype=np.float64)
        return out.scale * found

    def constant(self, model: Model) -> float:
        """scale · b_U·n: what the output's bias adds."""
        out = _output(model, self.output)
        name = output_bias(out.name)
        return out.scale * float(model.weights[name].astype(np.float64) @ self.vector) if name in model.weights else 0.0


def _output(model: Model, name: str | None) -> Output:
    outputs = model.stored.spec.outputs
    if not outputs:
        raise BadRequest(f"{model.name} has no outputs: expected a model whose outputs have labels")
    if name is None:
        return outputs[0]
    found = next((o for o in outputs if o.name == name), None)
    if found is None:
        raise BadRequest(f"expected an output among {', '.join(o.name for o in outputs)}, got '{name}'")
    return found


def _matrix(model: Model, name: str) -> np.ndarray:
    weight = output_weight(name)
    return model.weights["W_E"].T if weight not in model.weights and model.spec.tied else model.weights[weight]


def _ids(term: Term, model: Model, out: Output, known: Mapping[str, int]) -> list[int]:
    """Labels that a term means: one, or the single-token variants of a bare word."""
    if not term.quoted:
        found = [known[form] for form in variants(term.text, known)]
        if found:
            return found
    for form in (term.text, with_space(term.text)):
        if form in known:
            return [known[form]]
    if out.name == "token" and model.vocabulary is not None:
        return [model.vocabulary.one(term.text)]
    if term.text.isdecimal() and int(term.text) < out.n:
        return [int(term.text)]
    near = ", ".join(map(repr, list(known)[:5]))
    raise UnknownBasis(f"output {out.name}: expected one of its {out.n} labels, got {term.text!r}; it begins {near}")
