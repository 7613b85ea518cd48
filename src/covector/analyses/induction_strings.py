"""Random strings of a model's own tokens: without repeats, said twice, and … A B … A.

Tokens of a string are distinct, but for the repeat that is asked for. So a model that copies has one thing to copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Bool, Int
from covector.errors import BadRequest, NotOneToken
from covector.linalg.chance.streams import Seed, generator
from covector.model.opened import Model
from covector.run.prompts import start_ids

# Tokens of a string, where the context and the vocabulary have room for as many.
LENGTH = 14
# A string has at least … A B x A.
SHORTEST = 4


@dataclass(frozen=True, eq=False)
class Repeats:
    """Strings … A B … A in rows of one length: what stands behind the second A (at ``at``) is never read."""

    tokens: Int[np.ndarray, "n position"]
    at: Int[np.ndarray, " n"]
    a: Int[np.ndarray, " n"]
    b: Int[np.ndarray, " n"]


def labels_of(model: Model) -> tuple[str, ...]:
    """Labels of the tokens; their numbers where they have none."""
    return model.labels.get("token") or tuple(map(str, range(model.spec.n_vocab)))


def start_of(model: Model, start: str = "auto") -> list[int]:
    """The token that strings begin with, as a list of one id or of none.

    ``auto``: the known start token, or else the first label in angle brackets; ``no``: none; or a label.
    Raises BadRequest for a label that the model has not.
    """
    labels = labels_of(model)
    if start == "no":
        return []
    if start != "auto":
        if start not in labels:
            raise BadRequest(f"--start: expected auto, no or a token of {model.name}, got '{start}'")
        return [labels.index(start)]
    return start_ids(model, "auto") or [i for i, text in enumerate(labels) if _special(text)][:1]


def pool_of(
    model: Model,
    token: str | None,
    given: Sequence[str],
    draws: int,
    counts: Int[np.ndarray, " token"] | None = None,
) -> Int[np.ndarray, " n"]:
    """Ids of the tokens that strings are made of, the target first: those given, or all, or those of like frequency.

    `given` are labels, or texts that are cut into tokens. More than `draws` + 1 are cut to those whose frequency is
    nearest to the target's: nearest in `counts` (of a text), or, without, nearest ids, as vocabularies of merges number
    tokens by frequency; only tokens that begin with a space (or not) and are made of letters (or not) as the target.
    Labels in angle brackets are left out.
    Raises BadRequest for fewer than `SHORTEST` + 1 tokens, NotOneToken.
    """
    labels = labels_of(model)
    target = None if token is None else one_token(model, token)
    if given:
        named = dict.fromkeys(i for text in given for i in _tokens(model, text))
        ids = np.array([i for i in named if i != target], dtype=np.int64)
    else:
        ids = np.array([i for i, text in enumerate(labels) if not _special(text) and i != target], dtype=np.int64)
    if target is not None and not given and len(ids) > draws:
        like = ids[[_form(labels[i]) == _form(labels[target]) for i in ids]]
        order = np.abs(like - target) if counts is None else np.abs(np.log1p(counts[like]) - np.log1p(counts[target]))
        ids = np.sort(like[np.argsort(order, kind="stable")][:draws])
    elif len(ids) > draws + (target is None):
        raise BadRequest(
            f"{model.name} has {len(ids)} tokens: expected --token, to take those of like frequency, or --tokens"
        )
    found = ids if target is None else np.concatenate([[target], ids])
    if len(found) < SHORTEST + 1:
        raise BadRequest(f"expected at least {SHORTEST + 1} tokens to make strings of, got {len(found)}; name more")
    return found


def one_token(model: Model, text: str) -> int:
    """The id of a token, by its label or as text. Raises NotOneToken."""
    labels = labels_of(model)
    if text in labels:
        return labels.index(text)
    if model.vocabulary is None:
        near = ", ".join(f"'{t}'" for t in labels[:4])
        raise NotOneToken(f"expected one token of {model.name}, such as {near}, got '{text}'")
    return model.vocabulary.one(text)


def _tokens(model: Model, text: str) -> list[int]:
    """A label, or a text that is cut into tokens."""
    if text in labels_of(model) or model.vocabulary is None:
        return [one_token(model, text)]
    return [i for i in model.vocabulary.encode(text) if not _special(labels_of(model)[i])]


def length_for(model: Model, n_tokens: int, start: Sequence[int], length: int | None) -> int:
    """Distinct tokens of a string. Raises BadRequest for more than context and tokens have room for."""
    most = min(n_tokens, model.spec.n_ctx - len(start) - 1)
    if length is not None and not SHORTEST <= length <= most:
        raise BadRequest(f"--length: expected {SHORTEST} to {most} tokens for strings of {model.name}, got {length}")
    found = min(most, LENGTH) if length is None else length
    if found < SHORTEST:
        raise BadRequest(f"{model.name} has a context of {model.spec.n_ctx}: expected room for … A B x A")
    return found


def distinct(
    ids: Int[np.ndarray, " n"], start: Sequence[int], count: int, length: int, rng: np.random.Generator
) -> Int[np.ndarray, "count position"]:
    """Strings without a repeat: the start token and `length` others."""
    rows = rng.permuted(np.tile(ids, (count, 1)), axis=1)[:, :length]
    return np.concatenate([np.tile(np.array(start, dtype=np.int64), (count, 1)), rows], axis=1)


def twice(
    ids: Int[np.ndarray, " n"], start: Sequence[int], count: int, length: int, rng: np.random.Generator
) -> Int[np.ndarray, "count position"]:
    """The same said twice after the start token."""
    rows = distinct(ids, start, count, length, rng)
    return np.concatenate([rows, rows[:, len(start) :]], axis=1)


def repeats(
    ids: Int[np.ndarray, " n"], start: Sequence[int], token: int, count: int, length: int, seed: Seed, role: str
) -> Repeats:
    """Strings … A B … A in which `token` is B, or A (`role`); the other, the rest and the places are drawn.

    Each other token stands opposite once before one does twice; at least one token stands between B and the second A.
    """
    rng = generator(seed, f"induction strings {role}")
    others = ids[ids != token]
    each = np.concatenate([rng.permutation(others) for _ in range(-(-count // len(others)))])[:count]
    own = np.full(count, token)
    a, b = (each, own) if role == "B" else (own, each)
    first = len(start)
    tokens = np.zeros((count, first + length + 1), dtype=np.int64)
    tokens[:, :first] = start
    at = np.zeros(count, dtype=np.int64)
    for row in range(count):
        rest = rng.permutation(ids[(ids != a[row]) & (ids != b[row])])
        at[row] = rng.integers(first + 3, first + length + 1)
        place = int(rng.integers(first, at[row] - 2))
        tokens[row, first:] = np.insert(np.resize(rest, length - 1), place - first, [a[row], b[row]])
        tokens[row, at[row]] = a[row]
    _check_alone(tokens, at, a, b)
    return Repeats(tokens, at, a, b)


def _check_alone(tokens: np.ndarray, at: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """A stands twice, B once, up to where the output is read."""
    seen: Bool[np.ndarray, "n position"] = np.arange(tokens.shape[1]) <= at[:, None]
    assert (np.sum((tokens == a[:, None]) & seen, axis=1) == 2).all()
    assert (np.sum((tokens == b[:, None]) & seen, axis=1) == 1).all()


def _special(label: str) -> bool:
    return len(label) > 2 and label.startswith("<") and label.endswith(">")


def _form(label: str) -> tuple[bool, bool]:
    return label[:1].isspace(), label.strip().isalpha()
