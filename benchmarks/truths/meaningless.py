"""Models in which no direction means anything, made from one that was trained, and how much of them is called."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.arch.toy import random_weights
from covector.demo.corpus import documents, load_truth
from covector.io.atlas import Atlas
from covector.linalg import chance
from covector.model.bases import undertrained
from covector.model.opened import Model
from covector.model.weights import ArrayWeights
from truths.planted import LEVEL

READERS, WRITERS = ("W_Q", "W_K", "W_V", "W_in", "W_gate"), ("W_O", "W_out")


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    """Every canonical tensor, float64."""
    return {name: np.asarray(model.weights[name], dtype=np.float64) for name in model.weights.names()}


def haar(rng: np.random.Generator, d: int) -> np.ndarray:
    """An orthogonal matrix, evenly distributed."""
    Q, R = np.linalg.qr(rng.standard_normal((d, d)))
    return Q * np.sign(np.diag(R))


def with_arrays(model: Model, arrays: Mapping[str, np.ndarray]) -> Model:
    """The model with other weights, its labels kept."""
    weights = ArrayWeights(model.stored.spec, dict(arrays))
    return dataclasses.replace(model, stored=weights, weights=weights)


def rotated_internals(model: Model, seed: int) -> Model:
    """Blocks turned against embeddings by one rotation of the stream: every spectrum stays, every alignment goes."""
    Q = haar(np.random.default_rng((seed, 11)), model.spec.d_model)
    arrays = arrays_of(model)
    for name, value in arrays.items():
        role = name.rpartition(".")[2]
        if name.startswith("L") and role in READERS:
            arrays[name] = Q.T @ value
        elif name.startswith("L") and role in WRITERS:
            arrays[name] = value @ Q
    return with_arrays(model, arrays)


def rotated_bases(model: Model, seed: int) -> Model:
    """Every OV and QK map with its singular vectors replaced by a random basis of the same two subspaces."""
    rng = np.random.default_rng((seed, 12))
    arrays = arrays_of(model)
    for layer, block in enumerate(model.spec.blocks):
        if block.attn is None:
            continue
        for first, second in (("W_V", "W_O"), ("W_Q", "W_K")):
            A, B = arrays[f"L{layer}.{first}"].copy(), arrays[f"L{layer}.{second}"].copy()
            for h in range(len(A)):
                U, S, Vh = np.linalg.svd(A[h] @ (B[h].T if second == "W_K" else B[h]), full_matrices=False)
                r = min(A[h].shape)
                left, right = U[:, :r] @ haar(rng, r), haar(rng, r) @ Vh[:r]
                A[h] = left * np.sqrt(S[:r])
                B[h] = right.T * np.sqrt(S[:r]) if second == "W_K" else np.sqrt(S[:r])[:, None] * right
            arrays |= {f"L{layer}.{first}": A, f"L{layer}.{second}": B}
    return with_arrays(model, arrays)


def untrained(model: Model, seed: int) -> Model:
    """The same anatomy with random weights, embeddings too."""
    return with_arrays(model, random_weights(model.stored.spec, seed=seed).arrays)


def untrained_blocks(model: Model, seed: int) -> Model:
    """Random blocks between the trained embeddings."""
    kept = {n: a for n, a in arrays_of(model).items() if not n.startswith("L")}
    return with_arrays(model, dict(random_weights(model.stored.spec, seed=seed).arrays) | kept)


@dataclass(frozen=True)
class Called:
    """Shares of an atlas: directions with p_dir and p_svd below the level, and those that q and the rule call."""

    n: int
    p_dir: float
    q_dir: int
    p_svd: float
    q_svd: int
    p_coherence: float  # NaN where nothing was judged
    interpretable: int


def called(atlas: Atlas) -> Called:
    """Counts over all directions; p_svd over those of heads."""
    told = atlas.columns("p_dir", "q_dir", "p_svd", "q_svd")
    heads = ~np.isnan(told["p_svd"])
    judged = atlas.columns("p_coherence", "interpretable") if "interpretable" in atlas.names else {}
    p = judged.get("p_coherence", np.full(1, np.nan))
    return Called(
        n=len(atlas),
        p_dir=float((told["p_dir"] < LEVEL).mean()),
        q_dir=int((told["q_dir"] < LEVEL).sum()),
        p_svd=float((told["p_svd"][heads] < LEVEL).mean()) if heads.any() else float("nan"),
        q_svd=int((told["q_svd"][heads] < LEVEL).sum()),
        p_coherence=float("nan") if np.isnan(p).all() else float((p < LEVEL).mean()),
        interpretable=int(judged["interpretable"].sum()) if judged else -1,
    )


def alphabet() -> set[str]:
    """Every character that the corpus of the bundled model can write."""
    truth = load_truth()
    fixed = [slot.text for kind in truth.templates.values() for template in kind for slot in template]
    pronouns = [word for words in truth.data["pronouns"].values() for word in words.values()]
    return set("".join([*fixed, *truth.pool, *pronouns, " "]))


def never_read(labels: Sequence[str]) -> np.ndarray:
    """Which tokens no text of that corpus can hold: they have a character, or a byte, that it never writes."""
    known = alphabet()
    return np.array([label.startswith("<0x") or not set(label) <= known for label in labels])


@dataclass(frozen=True)
class NeverRead:
    """What an atlas makes of tokens that were never read.

    ``wrongly``: flagged tokens among those that 1,000 documents hold. ``shared``: mean cosine of never-read tokens with
    their mean. ``p``, ``q``: of each direction's |cos| with that mean (exact Beta; BH over the atlas).
    """

    tokens: int
    of: int
    flagged: int
    wrongly: int
    shared: float
    p: np.ndarray
    q: np.ndarray
    called: int
    listing: int


def of_never_read(model: Model, atlas: Atlas) -> NeverRead:
    """Tokens of the bundled model that its corpus cannot write: flags, and directions that q_dir calls or lists."""
    basis = model.bases["token_in"]
    never, flagged = never_read(basis.labels), undertrained(basis)
    never[0] = False  # starts every document
    assert model.vocabulary is not None
    seen = np.zeros(len(never), bool)
    for document in documents(0, 1000):
        seen[list(model.vocabulary.encode(document.text))] = True
    mean = basis.vectors[never].mean(axis=0, dtype=np.float64)
    mean /= np.linalg.norm(mean)
    p = np.asarray(chance.tail(np.abs(atlas.vectors.astype(np.float64) @ mean), model.spec.d_model))
    told = atlas.columns("q_dir", "top_id", "bottom_id")
    called = np.flatnonzero(told["q_dir"] < LEVEL)
    listing = sum(bool(never[[*told["top_id"][i], *told["bottom_id"][i]]].any()) for i in called)
    return NeverRead(
        tokens=int(never.sum()), of=len(never), flagged=int((never & flagged).sum()),
        wrongly=int((flagged & seen).sum()), shared=float((basis.unit()[never] @ mean).mean()), p=p, q=chance.bh(p),
        called=len(called), listing=listing,
    )  # fmt: skip
