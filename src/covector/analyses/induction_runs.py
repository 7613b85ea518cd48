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

ROWS = 64


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
    """Run what all edits have in common, once."""
    return Rows(tokens, at, answer, _entering(decoder, tokens, first))


def drops(
    decoder: Decoder, rows: Rows, ids: Int[np.ndarray, " token"], changes: Sequence[Change], first: int | None
) -> tuple[float, Float[np.ndarray, "edit n"], Float[np.ndarray, "edit n"]]:
    """Mean p(answer) of the model as it is; under every change the falls of p(answer), and of the answer's logit
    against the mean logit of the other tokens `ids`, string by string."""
    answer = torch.from_numpy(rows.answer)
    column = torch.from_numpy(np.argmax(ids[None] == rows.answer[:, None], axis=1))

    def read(one: Decoder) -> tuple[np.ndarray, np.ndarray]:
        logits = _logits(one, rows.tokens, rows.stream, first, torch.from_numpy(rows.at))[:, 0].double().cpu()
        p = logits.log_softmax(-1).gather(1, answer[:, None]).exp()[:, 0]
        own = logits[:, torch.from_numpy(ids)]
        mine = own.gather(1, column[:, None])[:, 0]
        return p.numpy(), (mine - (own.sum(1) - mine) / (len(ids) - 1)).numpy()

    p, logit = read(decoder)
    after = [read(laid_over(decoder, change)) for change in changes]
    return float(p.mean()), p - np.stack([a for a, _ in after]), logit - np.stack([b for _, b in after])


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
