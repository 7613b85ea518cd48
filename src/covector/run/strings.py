"""Runs of strings under many edits: the answer at the second A, and every next token in strings without repeats."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covector.axes import Float, Int
from covector.model.overlay import Change
from covector.run.decoder import Decoder
from covector.run.edited import laid_over

ROWS = 128


@dataclass(frozen=True, eq=False)
class Rows:
    """Strings run up to the first edited block: where their output is read, and the right answer there."""

    tokens: Int[np.ndarray, "n position"]
    at: Int[np.ndarray, " n"]
    answer: Int[np.ndarray, " n"]
    stream: Tensor | None


def rows_of(
    decoder: Decoder,
    tokens: Int[np.ndarray, "n position"],
    at: Int[np.ndarray, " n"],
    answer: Int[np.ndarray, " n"],
    first: int | None,
) -> Rows:
    """Run what all edits have in common, once: up to block `first` (None: nothing)."""
    parts = [_entering(decoder, some, first) for some in _some(tokens)]
    return Rows(tokens, at, answer, None if parts[0] is None else torch.cat([p for p in parts if p is not None]))


def passing(
    decoder: Decoder, tokens: Int[np.ndarray, "n position"], hooks: Sequence[str], rows: int = 32
) -> Iterator[dict[str, np.ndarray]]:
    """What passes at hook points, `rows` strings at a time, in float64."""
    for begin in range(0, len(tokens), rows):
        with torch.no_grad():
            cache = decoder.run(torch.from_numpy(np.array(tokens[begin : begin + rows])), capture=hooks).cache
        yield {hook: cache[hook].double().cpu().numpy() for hook in hooks}


def answers(
    decoder: Decoder, rows: Rows, ids: Int[np.ndarray, " token"], some: Int[np.ndarray, " n"], first: int | None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """p(answer) at the second A, and its logit against the mean logit of the other tokens `ids`, of some rows."""
    p, against = [], []
    for begin in range(0, len(some), ROWS):
        here = some[begin : begin + ROWS]
        stream = None if rows.stream is None else rows.stream[torch.from_numpy(here)]
        logits = _logits(decoder, rows.tokens[here], stream, first, torch.from_numpy(rows.at[here]))[:, 0]
        logits = logits.double().cpu()
        answer = torch.from_numpy(rows.answer[here])[:, None]
        own = logits.gather(1, answer)[:, 0]
        p.append(logits.log_softmax(-1).gather(1, answer)[:, 0].exp().numpy())
        others = logits[:, torch.from_numpy(np.array(ids))].sum(1) - own
        against.append((own - others / (len(ids) - 1)).numpy())
    return np.concatenate(p), np.concatenate(against)


def outside(
    decoder: Decoder,
    strings: Int[np.ndarray, "n position"],
    ids: Int[np.ndarray, " token"],
    n_start: int,
    changes: Sequence[Change],
    first: int | None,
) -> tuple[Float[np.ndarray, "edit token"], Float[np.ndarray, " edit"]]:
    """In strings without repeats: rise of −log p of every token where it is next, and the mean KL(base ‖ edited)."""
    sums, kl, seen = np.zeros((len(changes), len(ids))), np.zeros(len(changes)), np.zeros(len(ids))
    place = {int(t): i for i, t in enumerate(ids)}
    read = max(n_start, 1) - 1  # the first token is predicted where there is one before it
    for tokens in _some(strings):
        stream = _entering(decoder, tokens, first)
        following = torch.from_numpy(tokens[:, read + 1 :])[..., None]
        which = np.array([place[int(t)] for t in tokens[:, read + 1 :].ravel()])
        base = _log_p(decoder, tokens, stream, first)[:, read:]
        np.add.at(seen, which, 1)
        for i, change in enumerate(changes):
            other = _log_p(laid_over(decoder, change), tokens, stream, first)[:, read:]
            rise = (base - other)[:, :-1].gather(-1, following)[..., 0].numpy().ravel()
            np.add.at(sums[i], which, rise)
            kl[i] += float((base.exp() * (base - other)).sum())
    return sums / np.maximum(seen, 1), kl / (len(strings) * (strings.shape[1] - read))


def _some(strings: Int[np.ndarray, "n position"]) -> Iterator[Int[np.ndarray, "n position"]]:
    for first in range(0, len(strings), ROWS):
        yield strings[first : first + ROWS]


def _log_p(decoder: Decoder, tokens: np.ndarray, stream: Tensor | None, first: int | None) -> Tensor:
    return _logits(decoder, tokens, stream, first, None).double().cpu().log_softmax(-1)


def _logits(
    decoder: Decoder, tokens: np.ndarray, stream: Tensor | None, first: int | None, at: Tensor | None
) -> Tensor:
    with torch.no_grad():
        if stream is None or first is None:
            return decoder.run(torch.from_numpy(np.array(tokens)), at=at).logits
        return decoder.run(resid_in=stream, first=first, at=at).logits


def _entering(decoder: Decoder, tokens: np.ndarray, first: int | None) -> Tensor | None:
    if first is None:
        return None
    hook = f"L{first}.resid_pre"
    with torch.no_grad():
        return decoder.run(torch.from_numpy(np.array(tokens)), capture=[hook]).cache[hook]
