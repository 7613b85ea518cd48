"""How often the tokens of a vocabulary stand near each other in a text, for NPMI.

Source: `docs/theory/scores.md`, equation 10.
"""

from collections.abc import Sequence

import numpy as np

from covector.axes import Bool, Int
from covector.errors import BadRequest
from covector.linalg.npmi import Cooccurrence, Counter
from covector.model.opened import Model
from covector.run.text import SEPARATOR


def counted(model: Model, text: str, ids: Int[np.ndarray, " m"]) -> tuple[Cooccurrence, int]:
    """Windows of ten words that hold each of the tokens `ids`, and each pair of them; and how many tokens were read.

    Lines of ``<|endoftext|>`` part documents, and no window reaches over one. Where tokens of the vocabulary begin with
    a space, a word is such a token with what follows it up to the next.
    Raises BadRequest for a model without a tokenizer, or a text in which fewer than two of these tokens occur.
    """
    vocabulary = model.vocabulary
    if vocabulary is None:
        raise BadRequest(f"{model.name} has no tokenizer: expected a model that can read a text; leave the text out")
    counter = Counter(ids[None], max(len(vocabulary.labels), model.spec.n_vocab), starts=_starts(vocabulary.labels))
    read = 0
    for piece in (piece.strip("\n") for piece in text.split(SEPARATOR)):
        tokens = np.array(vocabulary.encode(piece), dtype=np.int64) if piece else np.zeros(0, np.int64)
        read += len(tokens)
        counter.add(tokens)
    found = counter.counts
    if np.count_nonzero(found.pairs.diagonal()) < 2:
        raise BadRequest(
            f"expected a text in which at least two tokens of the vocabulary's trained ones occur, got {read} tokens "
            "without; check the file"
        )
    return found, read


def _starts(labels: Sequence[str]) -> Bool[np.ndarray, " token"] | None:
    """Which tokens begin a word: those with a space in front, and what is no letter or figure; None where none has."""
    spaced = np.array([label[:1].isspace() for label in labels])
    return (spaced | np.array([not label[:1].isalnum() for label in labels])) if spaced.any() else None
