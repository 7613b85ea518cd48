"""Edited models on prompts and on text: outputs, KL and loss token by token, and gradients in the doses.

What comes before the first changed block is the same for every change: it is run once, and each change starts from the
stream that enters that block. Changes that reach the embeddings run whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from covector.axes import Bool, Float, Int
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.model.overlay import Change, Shift, Update
from covector.model.spec import ModelSpec
from covector.model.weights import Held, split_name
from covector.run.decoder import Decoder
from covector.run.edited import first_block, laid_over, slopes
from covector.run.neutral import Neutral
from covector.run.prompts import Pair, batches

# Where what a matrix multiplies is captured.
SOURCES = {
    "W_Q": "attn_normed", "W_K": "attn_normed", "W_V": "attn_normed", "W_O": "z", "W_in": "mlp_normed",
    "W_gate": "mlp_normed", "W_out": "mlp_post",
}  # fmt: skip
Tick = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Start:
    """Rows of tokens of one length, where their output is read (None: everywhere), and the stream runs start from."""

    tokens: Int[np.ndarray, "batch position"]
    at: Int[np.ndarray, " batch"] | None
    stream: Tensor | None


def decoder_of(model: Model, dtype: str) -> Decoder:
    """The reference decoder of the weights as they are stored: what a `Change` is a change of. Raises BadRequest."""
    known = {"float64": torch.float64, "float32": torch.float32}
    if dtype not in known:
        raise BadRequest(f"--dtype: expected float64 or float32, got '{dtype}'")
    return Decoder(Held(model.stored), known[dtype], model.device)


def scaled(change: Change, dose: float) -> Change:
    """The change times a number: W + t ΔW. For terms that do not overlap the same as every ε times that number."""
    return Change(
        tuple(Update(u.tensor, dose * u.left, u.right, u.head) for u in change.updates),
        tuple(Shift(s.tensor, dose * s.values, s.head) for s in change.shifts),
    )


def begins(spec: ModelSpec, changes: Sequence[Change]) -> int | None:
    """The first block that any of the changes touches; None where one reaches the embeddings."""
    for name in (name for change in changes for name in change.tensors):
        layer, role = split_name(name)
        if layer is None and not (role in ("W_U", "b_U") or role.startswith("out.")):
            return None
    return min((first_block(spec, change) for change in changes), default=0) if spec.n_layers else None


@dataclass(frozen=True, eq=False)
class Bench:
    """Prompts, run once up to the first changed block; sides of a pair are the first axis of everything."""

    decoder: Decoder
    first: int | None
    pairs: tuple[Pair, ...]
    sides: int
    starts: tuple[Start, ...]

    @property
    def tokens(self) -> int:
        """Tokens of one run over all prompts."""
        return sum(s.tokens.size for s in self.starts)

    def logits(self, change: Change | None = None) -> Float[np.ndarray, "side n token"]:
        """The token output at the position read, with a change in the weights; `None`: the model as it is."""
        decoder = self.decoder if change is None else laid_over(self.decoder, change)
        with torch.no_grad():
            parts = [_logits(decoder, s, self.first) for s in self.starts]
        none = np.zeros((self.sides, 0, decoder.spec.n_vocab))
        return np.concatenate([none, *(self._sided(x.double().cpu().numpy()) for x in parts)], axis=1)

    def slopes(
        self,
        pieces: Sequence[Change],
        vectors: Float[np.ndarray, "observable token"],
        weights: Float[np.ndarray, " n"],
    ) -> Float[np.ndarray, "observable side piece"]:
        """d/dt of each observable's weighted mean over the pairs, per side, as the pieces are laid on; at t = 0."""
        total = np.zeros((len(vectors) * self.sides, len(pieces)))
        done = 0
        for start in self.starts:
            n = len(start.tokens) // self.sides
            share = weights[done : done + n]
            done += n

            def means(decoder: Decoder, start: Start = start, share: np.ndarray = share) -> Tensor:
                logits = _logits(decoder, start, self.first)
                values = logits @ torch.from_numpy(vectors).to(logits).T
                sided = values.reshape(self.sides, len(share), -1)
                return torch.einsum("sno,n->os", sided, torch.from_numpy(share).to(logits)).flatten()

            total += slopes(self.decoder, means, pieces)
        return total.reshape(len(vectors), self.sides, len(pieces))

    def _sided(self, x: Float[np.ndarray, "rows token"]) -> Float[np.ndarray, "side n token"]:
        return x.reshape(self.sides, -1, x.shape[-1])


def bench(decoder: Decoder, pairs: Sequence[Pair], at: str, first: int | None) -> Bench:
    """Run the prompts once. One side where no pair compares anything; pairs come in the order of their batches."""
    sides = 2 if any(p.clean != p.corrupt for p in pairs) else 1
    some, starts = [], []
    for batch in batches(pairs):
        if isinstance(batch.clean, Mapping) or isinstance(batch.corrupt, Mapping):
            raise BadRequest("edit: expected prompts of tokens, got episodes of an agent")
        tokens = np.concatenate([batch.clean, batch.corrupt][:sides])
        some += batch.pairs
        starts.append(_start(decoder, tokens, np.tile(batch.at(at), sides), first))
    return Bench(decoder, first, tuple(some), sides, tuple(starts))


def inputs_of(
    decoder: Decoder,
    batches: Sequence[Int[np.ndarray, "_ _"]],
    kept: Sequence[Bool[np.ndarray, "_ _"]],
    tensors: Sequence[str],
) -> dict[str, np.ndarray]:
    """What each matrix multiplies at the positions kept: rows, or ids for embeddings.

    ``W_O``: [rows, head, d_head]; the others [rows, n].
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    hooks = {name: _source(name) for name in tensors}
    for tokens, own in zip(batches, kept, strict=True):
        with torch.no_grad():
            run = decoder.run(_ids(tokens), capture=sorted({h for h in hooks.values() if h}))
        for name, hook in hooks.items():
            if hook:
                found[name].append(run.cache[hook].double().cpu().numpy()[own])
            elif name == "W_E":
                found[name].append(tokens[own])
            else:
                places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)[own]
                found[name].append(places + decoder.spec.assembly.position_offset)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def drifts(
    decoder: Decoder, text: Neutral, changes: Sequence[Change], first: int | None, tick: Tick
) -> tuple[Float[np.ndarray, "k n"], Float[np.ndarray, "k n"], Float[np.ndarray, " n"]]:
    """(KL(base ‖ changed), change of the loss, the base's loss) of every token of the text, in nats.

    The loss is −log p of the token that follows; NaN at the last of a window.
    """
    kl, more, loss = [], [], []
    for tokens, kept in zip(text.batches, text.kept, strict=True):
        start = _start(decoder, tokens, None, first)
        plain = _log_p(decoder, start, first)
        p, own = plain.exp(), _loss(plain, tokens, kept)
        both = []
        for change in changes:
            other = _log_p(laid_over(decoder, change), start, first)
            drift = (p * (plain - other)).sum(-1).cpu().numpy()
            both.append((drift[kept], (_loss(other, tokens, kept) - own)[kept]))
            tick(tokens.size)
        kl.append(np.stack([k for k, _ in both]))
        more.append(np.stack([x for _, x in both]))
        loss.append(own[kept])
    return np.concatenate(kl, axis=1), np.concatenate(more, axis=1), np.concatenate(loss)


def _loss(
    log_p: Tensor, tokens: Int[np.ndarray, "batch position"], kept: Bool[np.ndarray, "batch position"]
) -> Float[np.ndarray, "batch position"]:
    found = np.full(tokens.shape, np.nan)
    following = _ids(tokens[:, 1:]).to(log_p.device)[..., None]
    found[:, :-1] = -log_p[:, :-1].gather(-1, following)[..., 0].cpu().numpy()
    found[:, :-1][~kept[:, 1:]] = np.nan
    return found


def _log_p(decoder: Decoder, start: Start, first: int | None) -> Tensor:
    with torch.no_grad():
        return _logits(decoder, start, first).double().log_softmax(-1)


def _logits(decoder: Decoder, start: Start, first: int | None) -> Tensor:
    at = None if start.at is None else torch.from_numpy(start.at)
    if start.stream is None or first is None:
        found = decoder.run(_ids(start.tokens), at=at).logits
    else:
        found = decoder.run(resid_in=start.stream, first=first, at=at).logits
    return found if at is None else found[:, 0]


def _start(decoder: Decoder, tokens: np.ndarray, at: np.ndarray | None, first: int | None) -> Start:
    if first is None:
        return Start(tokens, at, None)
    last = decoder.spec.n_layers
    hook = f"L{first}.resid_pre" if first < last else f"L{last - 1}.resid_post"
    with torch.no_grad():
        run = decoder.run(_ids(tokens), capture=[hook])
    return Start(tokens, at, run.cache[hook])


def _ids(tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(tokens))


def _source(name: str) -> str | None:
    layer, role = split_name(name)
    if layer is not None:
        return f"L{layer}.{SOURCES[role]}"
    return None if name in ("W_E", "W_pos") else "final_normed"
