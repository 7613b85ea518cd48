"""A concept as a direction: tokens, phrases or weighted lists, brought into the stream by each basis.

c = normalised Σ_t w_t ê_t, ê_t the unit vector of token t relative to the basis' mean. The mean is taken off because
all tokens share it: a direction along it would look related to every list.

Source: F3 of the theory page; `docs/theory/search.md`, equations 1–2.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, NotOneToken, UnknownBasis
from covector.model.bases import Basis
from covector.model.opened import Model, Vocabulary
from covector.study.expression import Expression, Term, variants, with_space

# A combination shorter than this, relative to its weights, has cancelled: what is left is rounding.
CANCELLED = 1e-6
_BYTE = re.compile(r"(<0x[0-9A-F]{2}>)+")
# What tokenizers put for a text that they cannot say.
UNKNOWN = frozenset({"<unk>", "[UNK]", "<|unk|>"})


@dataclass(frozen=True)
class Concept:
    """Ids with weights, in words; ``last`` are the same with each phrase standing for its last token alone."""

    weights: Mapping[int, float]
    last: Mapping[int, float]
    words: str
    phrases: tuple[str, ...] = ()


def concept(expression: Expression, model: Model, basis: Basis) -> Concept:
    """The labels that an expression means in this model, and what was understood, in words.

    Bare words stand for their single-token variants (sharing the weight) or, where there are none, for the tokens that
    they are after a space; phrases of several tokens stand for the mean of their tokens. Raises NotOneToken,
    UnknownBasis for a text that this model cannot say.
    """
    mean: dict[int, float] = {}
    last: dict[int, float] = {}
    said, phrases = [], []
    known: dict[str, int] = {}
    for i, label in enumerate(basis.labels):
        known.setdefault(label, i)
    for term in expression.terms:
        ids, whole = _ids(term, model, basis, known)
        phrases += [term.text] if whole else []
        for i in ids:
            mean[i] = mean.get(i, 0.0) + term.weight / len(ids)
        for i in ids[-1:] if whole else ids:
            last[i] = last.get(i, 0.0) + term.weight / (1 if whole else len(ids))
        said.append(_said(term, [basis.labels[i] for i in ids], whole))
    return Concept(mean, last, " ".join(said).removeprefix("+ "), tuple(phrases))


def direction(weights: Mapping[int, float], basis: Basis, centre: bool = True) -> Float[np.ndarray, " d"]:
    """The unit direction of weighted labels in a basis; `centre` takes the basis' mean off first.

    Raises BadRequest for labels whose vectors are null or cancel.
    """
    ids = list(weights)
    unusable = [basis.labels[i] for i in ids if not basis.usable[i]]
    if unusable:
        raise BadRequest(f"'{unusable[0]}' has no direction in {basis.name}: leave it out")
    rows = basis.vectors[ids].astype(np.float64)
    if centre and len(basis) > 1:
        rows = rows - mean_of(basis)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    total = np.array([weights[i] for i in ids]) @ rows
    length = float(np.linalg.norm(total))
    if length <= CANCELLED * sum(abs(w) for w in weights.values()):
        raise BadRequest("the weighted tokens cancel: there is no direction left; change the weights")
    return total / length


def mean_of(basis: Basis) -> Float[np.ndarray, " d"]:
    """Mean of the usable vectors, float64."""
    return (
        basis.vectors[basis.usable].mean(axis=0, dtype=np.float64)
        if not basis.usable.all()
        else (basis.vectors.mean(axis=0, dtype=np.float64))
    )


def _ids(term: Term, model: Model, basis: Basis, known: Mapping[str, int]) -> tuple[list[int], bool]:
    """Labels that a term means, and whether they are the parts of one text rather than variants of one word."""
    if not term.quoted:
        found = [known[form] for form in variants(term.text, known)]
        if found:
            return found, False
    elif term.text in known:
        return [known[term.text]], False
    if not basis.name.startswith("token_") or model.vocabulary is None:
        return [_labelled(term.text, basis, known)], False
    try:
        return [model.vocabulary.one(term.text)], False
    except NotOneToken as error:
        return _parts(term, model.vocabulary, len(basis), error)


def _parts(term: Term, vocabulary: Vocabulary, size: int, error: NotOneToken) -> tuple[list[int], bool]:
    """The tokens that a text is split into; raises `error` where they are not that text, or letters and bytes only."""
    text = with_space(term.text if term.quoted else " " + term.text)
    try:
        ids = vocabulary.encode(text)
    except NotOneToken:
        raise error from None
    labels = [vocabulary.labels[i] for i in ids]
    other = len(ids) == 1 and labels[0].strip() != text.strip()
    if not ids or max(ids) >= size or other or UNKNOWN.intersection(labels) or not any(map(_says_something, labels)):
        raise error
    return ids, len(ids) > 1


def _says_something(label: str) -> bool:
    """Whether a part of a text is more than a letter or a byte, into which any text can be split."""
    part = label.strip()
    return not _BYTE.fullmatch(part) and (len(part) > 1 or not part.isascii())


def _labelled(text: str, basis: Basis, known: Mapping[str, int]) -> int:
    """The one row of that label, or of what the shown form stands for. Raises UnknownBasis, with near labels."""
    for form in (text, with_space(text)):
        if form in known:
            return known[form]
    bare = text.strip().casefold()
    near = [label for label in known if bare in label.casefold() or label.strip().casefold() in bare][:5]
    raise UnknownBasis(
        f"basis {basis.name}: expected one of its {len(basis):,} labels, got {text!r}; near: "
        f"{', '.join(map(repr, near)) or 'none, it begins ' + ', '.join(map(repr, basis.labels[:3]))}"
    )


def _said(term: Term, labels: list[str], whole: bool) -> str:
    sign = "-" if term.weight < 0 else "+"
    weight = "" if abs(term.weight) == 1 else f"{abs(term.weight):g}*"
    told = " ".join(map(repr, labels)) if whole else "|".join(map(repr, labels))
    return f"{sign} {weight}{f'({told})' if whole else told}"
