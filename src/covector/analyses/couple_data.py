"""What the heads' features of several tasks read of prompts: the data side of a coupling.

A reading is feature · x̂, with x̂ what the head reads behind its norm and before the norm's gain (length √d): logits per
unit of attention, without the constant of biases, which slopes do not see.

Source: `docs/theory/observables.md`, equation 12; theory page §1.6.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from covector.analyses.couple_readings import Readings
from covector.analyses.shares import shares
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.norms import normalised
from covector.model.opened import Model
from covector.propagation.anatomy import components
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Batch, Pair, batches
from covector.study.observable import Observable


def readings(
    model: Model, features: Float[np.ndarray, "task head d"], pairs: Sequence[Pair], token: str = "all"
) -> tuple[Readings, Readings]:
    """Of the clean prompts' inputs, and of those inputs of the corrupt prompts that no clean prompt has.

    `token`: ``all`` takes every position but the first, which most models use as a sink, or the slot whose input is
    read. Where attention looks back only, an input is what stands up to its position: each different one counts once.
    Raises BadRequest for a slot that is not there, and where fewer than three clean inputs are left.
    """
    decoder = Decoder(model.weights, device=model.device)
    seen: set = set()
    sides = []
    for side in (0, 1):
        found = list(_side(model, decoder, features, pairs, token, side, seen))
        empty = np.empty((*features.shape[1::-1], 0)), np.empty((features.shape[1], 0))
        values = np.concatenate([empty[0], *(f[0] for f in found)], axis=2)
        squares = np.concatenate([empty[1], *(f[1] for f in found)], axis=1)
        sides.append(Readings(values, squares, tuple(label for f in found for label in f[2])))
    if len(sides[0].labels) < 3:
        raise BadRequest(
            f"expected at least three different inputs to fit a slope to, got {len(sides[0].labels)} at '{token}'; "
            "give more names, or another token (all: every position)"
        )
    return sides[0], sides[1]


def _side(
    model: Model,
    decoder: Decoder,
    features: Float[np.ndarray, "task head d"],
    pairs: Sequence[Pair],
    token: str,
    side: int,
    seen: set,
) -> Iterator[tuple[Float[np.ndarray, "head task n"], Float[np.ndarray, "head n"], list[str]]]:
    """(readings, ‖x̂‖², labels) per batch of one side, of inputs that were not `seen`."""
    causal = all(block.attn is None or block.attn.causal for block in model.spec.blocks)
    for batch in batches(pairs):
        rows, columns, labels = _chosen(model, batch, token, side, seen, causal)
        if not rows:
            continue
        run = captured(decoder, (batch.clean, batch.corrupt)[side])
        values, squares, first = [], [], 0
        for c in components(model.spec):
            if c.attn is None:
                continue
            x = run[c.hook("attn_in")][rows, columns].astype(np.float64)
            x = normalised(x, c.sub.reads.kind == "layer", c.sub.reads.eps) if c.sub.reads else x
            mine = features[:, first : first + c.attn.n_heads]
            first += c.attn.n_heads
            values.append(np.einsum("thd,nd->htn", mine, x))
            squares.append(np.broadcast_to(np.sum(x * x, axis=1), (c.attn.n_heads, len(x))))
        yield np.concatenate(values), np.concatenate(squares), labels


def _chosen(
    model: Model, batch: Batch, token: str, side: int, seen: set, causal: bool
) -> tuple[list[int], list[int], list[str]]:
    """Rows and positions of a batch that are read, and their names."""
    words, rows, columns, labels = model.labels.get("token", ()), list[int](), list[int](), list[str]()
    for i, pair in enumerate(batch.pairs):
        ids = (pair.clean, pair.corrupt)[side]
        for t in range(1, len(pair)) if token == "all" else [pair.position(token)]:
            key = ((ids[: t + 1], t) if causal else (ids, t)) if ids else (side, id(pair), t)
            if key in seen:
                continue
            seen.add(key)
            rows.append(i)
            columns.append(t)
            labels.append(words[ids[t]] if ids and words else pair.slot_of(t))
    return rows, columns, labels


def attributions(
    model: Model, tasks: Sequence[Observable], pairs: Sequence[Pair], names: Sequence[str], at: str
) -> Float[np.ndarray, "task head"]:
    """Every head's direct share of each task's difference clean − corrupt (`covector.shares`); accounting."""
    found = []
    for task in tasks:
        table = shares(model, task, pairs, at=at)
        by_name = dict(zip(table["component"], table["direct"], strict=True))
        found.append([by_name[name] for name in names])
    return np.array(found)
