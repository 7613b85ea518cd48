"""The edits of the decision-transformer post, and what they are made of, as edits that an agent can play.

The post's ``V[0,:] = 1/128; M = U S V`` takes a direction out and puts a vector of length 1/√d in its place. It is
played whole, and in its pieces: the removal alone, the addition alone, a random vector of the same length, the unit
vector along 1, the same on another dyad, on other blocks, and on all at once.

Source: F12 and §0.4 of the theory page; `docs/replicate-dt-svd.md`, `docs/theory/edits.md`.
"""

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.chance.streams import generator
from covector.linalg.svd import svd
from covector.model.opened import Model
from covector.study.edit import Edit
from covector.study.edit_terms import Rewrite

# The post's K is W_in (a reader), its V is W_out (a writer); first and third direction, counted from 0.
MATRICES = {"K": "in", "V": "out"}
FIRST, THIRD = 0, 2
REMOVED, ADDED, RANDOM, ONES, OTHER, ALL = "removed", "added", "random", "ones", "other", "all"


def site_of(matrix: str, block: int) -> str:
    """``L2.mlp.in`` for K of block 2."""
    return f"L{block}.mlp.{MATRICES[matrix]}"


def published_edits(model: Model, block: int) -> dict[str, Edit]:
    """K0, K2, V0, V2: first and third direction of each matrix of a block replaced by 1/d everywhere.

    Raises BadRequest for a block that is not there or has no such MLP.
    """
    blocks = blocks_of(model)
    if block not in blocks:
        raise BadRequest(f"--block: expected one with an MLP, of {', '.join(map(str, blocks))}, got {block}")
    return {
        f"{matrix}{index}": Edit.replace_direction(site_of(matrix, block), index)
        for matrix in MATRICES for index in (FIRST, THIRD)
    }  # fmt: skip


def pieces(model: Model, block: int, seed: int) -> dict[str, Edit]:
    """What the first direction's edit is made of and compared with, in both matrices: ``K0 removed`` and so on."""
    found: dict[str, Edit] = {}
    for matrix in MATRICES:
        site, name = site_of(matrix, block), f"{matrix}{FIRST}"
        width = model.spec.d_model
        drawn = generator(seed, f"dt-svd {matrix}").standard_normal(width)
        found |= {
            f"{name} {REMOVED}": Edit.dyads(site, {FIRST: -1.0}),
            f"{name} {ADDED}": addition(model, matrix, block),
            f"{name} {RANDOM}": Edit.replace_direction(site, FIRST, drawn / np.linalg.norm(drawn) / np.sqrt(width)),
            f"{name} {ONES}": Edit.replace_direction(site, FIRST, "ones"),
            f"{matrix} {OTHER}": Edit.replace_direction(site, other_dyad(model, matrix, block, seed)),
        }
        found |= {
            f"{name} L{i}": Edit.replace_direction(site_of(matrix, i), FIRST) for i in blocks_of(model) if i != block
        }
        if len(blocks_of(model)) > 1:
            every = [Edit.replace_direction(site_of(matrix, i), FIRST) for i in blocks_of(model)]
            found[f"{name} {ALL}"] = Edit.together(every)
    return found


def blocks_of(model: Model) -> list[int]:
    """Blocks with an MLP."""
    return [i for i, block in enumerate(model.spec.blocks) if block.mlp is not None]


def addition(model: Model, matrix: str, block: int) -> Edit:
    """σ₀ times 1/d everywhere laid over the first dyad, which stays: with the removal, the post's edit exactly."""
    row = direction(model, matrix, block)
    new = np.full((1, len(row)), 1 / len(row))
    term = Rewrite(site_of(matrix, block), row[None], new, "1/d added to its direction")
    return Edit(((term,),))


def direction(model: Model, matrix: str, block: int, index: int = FIRST) -> Float[np.ndarray, " d"]:
    """The direction of the stream of a dyad: what K reads, what V writes."""
    found = svd(model.map(model.sites(site_of(matrix, block))[0]))
    return found.U[:, index] if matrix == "K" else found.Vh[index]


def other_dyad(model: Model, matrix: str, block: int, seed: int) -> int:
    """A dyad of the first half of the spectrum, drawn; neither the first nor the third."""
    rank = svd(model.map(model.sites(site_of(matrix, block))[0])).rank
    return int(generator(seed, f"dt-svd other {matrix}").integers(THIRD + 1, max(rank // 2, THIRD + 2)))


def makeup(model: Model, matrix: str, block: int) -> tuple[float, float]:
    """Shares of ‖ΔM‖² that the removal has, and the addition (they sum to 1 but for their overlap 2 v·w)."""
    row = direction(model, matrix, block)
    new = np.full(len(row), 1 / len(row))
    whole = float(np.sum((new - row) ** 2))
    return 1 / whole, float(new @ new) / whole
