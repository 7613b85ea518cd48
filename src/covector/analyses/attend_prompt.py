"""The prompt of `attend`: what runs, what each position is called, and which position a few words mean."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.errors import BadRequest, FrameUnavailable
from covector.model.opened import Model
from covector.model.spec import Assembly
from covector.propagation.linearised import Linearised, Policies
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair, single

# Names that stand in a list of what could have been asked for.
LISTED = 12


@dataclass(frozen=True, eq=False)
class Asked:
    """One prompt that has run: the model held at it, a name per position, and how to say it on a command line."""

    linear: Linearised
    names: tuple[str, ...]
    slots: Mapping[str, int]
    text: str
    typed: str

    @classmethod
    def run(cls, model: Model, prompt: Pair | str | Mapping[str, np.ndarray]) -> "Asked":
        """Run a text, the clean side of a pair, or an agent's inputs by name ([1, time] or [1, time, n]).

        Raises BadRequest for a text without a tokenizer, FrameUnavailable for a frame that changes the function.
        """
        if model.frame.bias or not model.frame.preserving:
            raise FrameUnavailable(
                f"a prompt runs through the model: expected a frame that keeps it, without +bias, got {model.frame}"
            )
        pair = single(model, prompt) if isinstance(prompt, str) else prompt
        given = pair if isinstance(pair, Mapping) else np.array([pair.clean])
        run = captured(Decoder(model.weights, device=model.device), given)
        linear = Linearised(model.weights, (run,), Policies.all("frozen"))
        length = run["resid_in"].shape[1]
        if isinstance(pair, Mapping):
            names = _position_names(model, pair, length)
            return cls(linear, names, {"end": length - 1}, " ".join(names), "--inputs FILE")
        names = tuple(_token(model, i) for i in pair.clean)
        return cls(linear, names, pair.slots, pair.texts[0], _typed(model, pair))

    def position(self, words: str, option: str) -> int:
        """The position that a slot (``end``, ``NAME+1``), a number, or a token's text means; see `position_named`."""
        return position_named(words, self.names, self.slots, option)

    def told(self, position: int) -> str:
        """``' Mary' (2)``."""
        return f"'{self.names[position]}' ({position})"


def position_named(words: str, names: Sequence[str], slots: Mapping[str, int], option: str) -> int:
    """The position that a slot (``end``, ``NAME+1``), a number, or the text of a token that stands there once means.

    A text may leave out a leading space. Raises BadRequest for none, or several (their positions are listed).
    """
    base = re.sub(r"[+-]\d+$", "", words)
    if base in slots or base.isdecimal():
        filler = (0,) * len(names)
        return Pair(filler, filler, slots, ("", "")).position(words)
    found = [i for i, name in enumerate(names) if name == words]
    found = found or [i for i, name in enumerate(names) if name.strip() == words.strip()]
    if len(found) > 1:
        places = ", ".join(map(str, found))
        raise BadRequest(f"{option} '{words}': expected one position, this token stands at {places}; name a number")
    if not found:
        some = ", ".join(f"{i} '{name}'" for i, name in enumerate(names[:LISTED]))
        more = " …" if len(names) > LISTED else ""
        raise BadRequest(
            f"{option} '{words}': expected a slot ({', '.join(slots)}), a position or a token; got none of: {some}"
            f"{more}"
        )
    return found[0]


def _typed(model: Model, pair: Pair) -> str:
    """The options that run this prompt again, with the start token as it was."""
    plain = model.vocabulary is not None and single(model, pair.texts[0]).clean != pair.clean
    return f"--prompt {shlex.quote(pair.texts[0])}{' --bos no' if plain else ''}"


def _token(model: Model, i: int) -> str:
    labels = model.labels.get("token", ())
    return labels[i] if i < len(labels) else str(i)


def _position_names(model: Model, inputs: Mapping[str, np.ndarray], length: int) -> tuple[str, ...]:
    assembly: Assembly = model.spec.assembly
    if assembly.mode == "interleaved":
        n = len(assembly.inputs)
        return tuple(f"{assembly.inputs[i % n].name} {i // n}" for i in range(length))
    if assembly.mode == "summed":
        return tuple(f"step {i}" for i in range(length))
    return tuple(_token(model, int(i)) for i in inputs[assembly.inputs[0].name][0])
