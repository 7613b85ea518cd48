"""What removing a dyad does to the tokens it is about: one rank-one edit of a head's output, run on a text.

The write side of head h is changed, W_O → W_O (I − v vᵀ), which takes σ u vᵀ out of W_V W_O and nothing else. Beside it
random unit directions w of the head's own write space are taken, W_O → W_O (I + ε w wᵀ) with ε = −σ/‖M w‖, so that the
change of M = W_V W_O has the same Frobenius norm σ.

Source: F5 and N10 of the theory page; `docs/replicate.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from covector.analyses.replicate.finding import Removal, Traced
from covector.axes import Bool, Float, Int
from covector.errors import BadRequest, FrameUnavailable
from covector.linalg.chance.haar import haar_directions
from covector.linalg.svd import svd
from covector.model.opened import Model
from covector.run.decoder import Decoder
from covector.run.text import text_ids, windows

# Random removals: p of .05 then has an error of .03, and a text runs forty times per concept.
DRAWS = 39
# Tokens of the text that are looked at, and how many of a concept must be among them.
MOST, FEWEST = 20_000, 5


@dataclass(frozen=True, eq=False)
class Place:
    """A window of a text in which the next token, where `counts`, belongs to a concept."""

    tokens: Int[np.ndarray, "batch position"]
    counts: Bool[np.ndarray, "batch position"]


def removal(
    model: Model,
    traced: Sequence[Traced],
    text: str | Int[np.ndarray, " n"],
    *,
    draws: int = DRAWS,
    most: int = MOST,
    seed: int = 0,
) -> Removal:
    """Mean change of log p of each concept's tokens when its traced dyad is removed, averaged over concepts.

    `text`: read by the model's tokenizer, or token ids. Only concepts with five or more tokens in it count. The model
    runs in float32. Raises BadRequest for a text without enough of them, FrameUnavailable in a view.
    """
    if not model.frame.preserving or model.frame.bias:
        raise FrameUnavailable(f"removal runs the model: expected a frame that keeps its function, got {model.frame}")
    ids = text_ids(model, text)[:most] if isinstance(text, str) else text[:most]
    decoder = Decoder(model.weights, torch.float32, model.device)
    effects, nulls, places, words = [], [], 0, []
    for number, one in enumerate(traced):
        found = _places(model, ids, one.tokens)
        n = sum(int(place.counts.sum()) for place in found)
        if n < FEWEST:
            continue
        before = _log_p(decoder, found)
        effects.append(_changed(decoder, model, one, None, found) - before)
        nulls.append(
            [_changed(decoder, model, one, w, found) - before for w in _random(model, one, draws, (seed, number))]
        )
        places += n
        words.append(f"'{one.words}' {one.site}:{one.dyad} {effects[-1]:+.3f}")
    if not effects:
        raise BadRequest(f"the text has fewer than {FEWEST} tokens of every traced concept; give another with --text")
    return Removal(float(np.mean(effects)), np.mean(nulls, axis=0), places, ", ".join(words))


def _places(model: Model, ids: np.ndarray, tokens: tuple[int, ...]) -> list[Place]:
    """Windows whose later tokens hold some of a concept."""
    made = []
    for some in windows(model, ids):
        counts = np.zeros(some.tokens.shape, dtype=bool)
        counts[:, :-1] = np.isin(some.tokens[:, 1:], tokens)
        rows = counts.any(axis=1)
        if rows.any():
            made.append(Place(some.tokens[rows], counts[rows]))
    return made


def _log_p(decoder: Decoder, places: Sequence[Place]) -> float:
    """Mean log-probability of the concept's tokens where they come."""
    total, n = 0.0, 0
    with torch.no_grad():
        for place in places:
            tokens = torch.from_numpy(place.tokens).to(decoder.device)
            counts = torch.from_numpy(place.counts).to(decoder.device)
            told = torch.log_softmax(decoder.run(tokens).logits, dim=-1)[counts]
            after = tokens.roll(-1, dims=1)[counts]
            total += float(told.gather(1, after[:, None]).double().sum())
            n += len(after)
    return total / n


def _changed(decoder: Decoder, model: Model, one: Traced, along: np.ndarray | None, places: Sequence[Place]) -> float:
    """The same with the dyad removed, or with an edit of the same norm along a unit row."""
    found = svd(model.map(one.site))
    name, head = f"L{one.site.layer}.W_O", one.site.head
    W_O = np.array(model.weights[name], dtype=np.float64)
    row, epsilon = found.Vh[one.dyad], -1.0
    if along is not None:
        row = along
        epsilon = -float(found.S[one.dyad]) / float(np.linalg.norm(found.S * (found.Vh @ row)))
    assert head is not None, "a traced direction is a head's"
    W_O[head] += epsilon * np.outer(W_O[head] @ row, row)
    with decoder.edited({name: W_O}) as edited:
        return _log_p(edited, places)


def _random(model: Model, one: Traced, draws: int, seed: tuple[int, ...]) -> Float[np.ndarray, "draws d"]:
    """Random unit directions of the head's write space."""
    found = svd(model.map(one.site))
    return haar_directions(draws, found.rank, seed) @ found.Vh
