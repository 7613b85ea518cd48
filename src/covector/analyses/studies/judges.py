"""Directions that no atlas holds, judged as an atlas judges its own: lists, coherence, p against Haar directions."""

from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg import chance
from covector.linalg.chance.laws import Law, Matched
from covector.linalg.chance.lists import ListNull, haar_lists
from covector.linalg.dictionary import Dictionary
from covector.linalg.list_scores import list_scores
from covector.linalg.topk import poles
from covector.model.bases import Basis
from covector.model.opened import Model

# Random directions behind every p and z of a study: p of .05 is then right to a tenth of itself.
DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Judged:
    """Coherence of r directions beyond themselves, p and z against random directions, p of the best cosine."""

    coherence: Float[np.ndarray, " r"]
    p: Float[np.ndarray, " r"]
    z: Float[np.ndarray, " r"]
    p_dir: Float[np.ndarray, " r"]


@dataclass(frozen=True, eq=False)
class Judge:
    """A basis with its null. `centred` says that directions have no part along 1; d is the dimension they live in."""

    basis: Basis
    dictionary: Dictionary
    null: ListNull
    d: int
    seed: int

    def __call__(self, rows: Float[np.ndarray, "r d"]) -> Judged:
        """Judge unit rows."""
        found = list_scores(rows, self.dictionary.lists(rows), self.dictionary, seed=self.seed)
        usable = self.basis.usable
        lengths = np.where(usable, self.basis.norms, 1.0)
        keep = None if usable.all() else usable
        near = poles(rows, self.basis.vectors, 1, keep=keep, lengths=lengths)
        best = np.maximum(near.top_score[:, 0], -near.bottom_score[:, 0])
        return Judged(
            coherence=found.coherence,
            p=np.atleast_1d(self.null.p("coherence", found.coherence)),
            z=np.atleast_1d(self.null.z("coherence", found.coherence)),
            p_dir=np.atleast_1d(chance.p_dir(np.minimum(best, 1.0), self.d, int(usable.sum()))),
        )


def judge(
    model: Model, basis: str, *, centred: bool = False, law: Law | None = None, draws: int = DRAWS, seed: int = 0
) -> Judge:
    """The judge of one basis; `law` is of the random directions (None: Haar, without a part along 1 if `centred`).

    Raises BadRequest where the basis is too small for lists.
    """
    chosen = model.bases.centred(basis) if centred else model.bases[basis]
    dictionary = model.bases.dictionary(basis, centred)
    if min(dictionary.scored, dictionary.first, dictionary.later) < 3:
        raise BadRequest(
            f"{model.name}: expected a basis of 144 labels or more for token lists, {basis} has {len(chosen)}; "
            "covector locate reads single cosines"
        )
    d = model.spec.d_model
    if law is None and centred:
        law = Matched(without_one(d))
    null = haar_lists(dictionary, draws=draws, seed=seed, law=law)
    return Judge(chosen, dictionary, null, d - centred, seed)


def without_one(d: int) -> Float[np.ndarray, "m d"]:
    """An orthonormal basis of the directions without a part along 1."""
    columns = np.concatenate([np.ones((d, 1)), np.eye(d)[:, : d - 1]], axis=1)
    return np.ascontiguousarray(np.linalg.qr(columns)[0][:, 1:].T)
