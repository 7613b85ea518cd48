"""What both sides of a score's dyads read, as tokens: what the query is like, and what it looks for in a key.

A dyad's sign is a convention, so its lists are those of the pole on which this prompt's query stands: there the query
side is like `query_tokens` and looks for `key_tokens`. A positive score says that the key has it, a negative one that
the key has the opposite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from covector.analyses.side import orthonormal, read_side
from covector.axes import Float
from covector.linalg import chance
from covector.model.address import Site
from covector.model.bases import left
from covector.model.circuits import side_centred
from covector.model.opened import Model
from covector.render import Column
from covector.render.labels import cell_len, clip, pad, shown
from covector.render.number import probability


@dataclass(frozen=True, eq=False)
class TokenSide:
    """One side of every row: lists of labels with cosines on the query's pole, None where a row is no dyad."""

    name: str
    basis: str
    labels: list[list[str] | None]
    cosines: Float[np.ndarray, " n"]
    p: Float[np.ndarray, " n"]
    tau: float


def token_side(
    name: str,
    model: Model,
    site: Site,
    directions: Float[np.ndarray, "r d_model"],
    index: Sequence[int],
    signs: Float[np.ndarray, " n"],
    k: int,
) -> TokenSide:
    """The `k` labels nearest to each row's direction (row `index` of `directions`, −1 for none) times its sign.

    p: chance that a random direction comes as near to any label, at either pole (upper bound).
    """
    wanted = model.bases.default("read")
    centred = side_centred(model.stored.spec, model.frame, site, second=name == "key")
    basis = model.bases.centred(wanted) if centred else model.bases[wanted]
    spanned = orthonormal(directions)
    subspace = None if len(spanned) == directions.shape[1] else spanned
    keep = left(basis, model.bases[wanted], ())
    read = read_side(np.ascontiguousarray(directions), subspace, basis, k=k, keep=keep, centred=centred)
    labels: list[list[str] | None] = []
    cosines = np.full(len(index), np.nan)
    for row, (i, sign) in enumerate(zip(index, signs, strict=True)):
        if i < 0:
            labels.append(None)
            continue
        ids, scores = (read.top, read.top_score) if sign > 0 else (read.bottom, -read.bottom_score)
        labels.append([basis.labels[j] for j in ids[i]])
        cosines[row] = scores[i, 0]
    p = np.atleast_1d(chance.p_dir(np.abs(cosines), read.d, read.n))
    return TokenSide(name, wanted, labels, cosines, p, read.tau)


def token_columns(side: TokenSide) -> list[Column]:
    """Lists, the first label's cosine, and its p."""
    about = {"query": "labels nearest to what the query is like", "key": "labels nearest to what it looks for"}
    return [
        Column(f"{side.name}_tokens", side.labels, about=f"{about[side.name]} ({side.basis})"),
        Column(f"{side.name}_cos", side.cosines, "cos", 3, "cosine with the first of them", chance=side.tau),
        Column(f"{side.name}_p", side.p, about="chance that a random direction comes as near to any label"),
    ]


def token_line(row: dict[str, Any], width: int) -> str:
    """``dyad 3 +1.21 (.40) | query is like … (p .02) → looks for … (p 1e-4)``."""
    bar = row["chance"]
    beside = f"({bar:.2f})" if bar is not None else ""
    head = f"{row['part']:<12}{row['contrast']:+8.3f} {beside:>7} "
    if not row.get("query_tokens"):
        return head.rstrip()
    ends = [f"p {probability(row[f'{side}_p'])}" for side in ("query", "key")]
    room = max(10, (width - cell_len(head) - sum(cell_len(e) + 3 for e in ends) - cell_len("| is  → seeks ")) // 2)
    lists = [pad(clip(" ".join(shown(t) for t in row[f"{s}_tokens"]), room), room) for s in ("query", "key")]
    return f"{head}| is {lists[0]} {ends[0]} → seeks {lists[1]} {ends[1]}"
