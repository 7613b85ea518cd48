"""What a search looks for: a direction or a subspace per basis, from tokens, vectors, or directions of the atlas.

A concept of tokens is another direction among what is read (token_in) than among what is written (token_out), so a
query holds rows for every basis that the atlas compares with.

Source: F3 of the theory page; `docs/theory/search.md`, equations 1–2.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest, UnknownBasis
from covector.io.atlas import Atlas
from covector.linalg.norms import without_mean
from covector.model.bases import Basis
from covector.model.opened import Model
from covector.study.concept import concept, direction
from covector.study.expression import Expression

# A query with less than this beside the constant direction is that direction, and rounding.
CONSTANT = 1e-6
# Singular values of the rows below this share of the largest are rounding: the rows say the same thing twice. Stored
# directions are float16, known to 5e-4.
DEPENDENT, DEPENDENT_STORED = 1e-10, 1e-3
_HEAD = re.compile(r"L\d+H\d+", re.IGNORECASE)
_OLD_HEAD = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Query:
    """What is looked for: a subspace per basis (orthonormal rows; one row for a direction), and how it was said.

    ``places`` are the addresses of a query made of stored directions.
    """

    rows: Mapping[str, Float[np.ndarray, "k d"]]
    words: str
    kind: str
    notes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    @property
    def k(self) -> int:
        """Dimensions of the subspace (the largest, where bases differ); 1 for a direction, whose sign then counts."""
        return max(len(rows) for rows in self.rows.values())


def token_query(expression: Expression, model: Model, atlas: Atlas, *, last: bool = False) -> Query:
    """The concept of an expression in every basis of the atlas that holds its labels.

    `last` lets a phrase stand for its last token. Raises NotOneToken, UnknownBasis, BadRequest for texts that
    this model cannot say or that cancel.
    """
    rows, words, notes = {}, "", ()
    lacking: UnknownBasis | None = None
    for name in bases_of(atlas):
        basis = basis_named(model, name)
        try:
            meant = concept(expression, model, basis)
        except UnknownBasis as error:  # the bases of an agent hold different labels
            lacking = lacking or error
            continue
        rows[name] = direction(meant.last if last else meant.weights, basis)[None]
        words = meant.words
        if meant.phrases:
            verb = "stands" if len(meant.phrases) == 1 else "stand"
            which = f"{verb} for its last token" if last else f"{verb} for the mean of its tokens"
            notes = (f"{', '.join(map(repr, meant.phrases))} {which}",)
    if not rows and lacking:
        raise lacking
    return Query(rows, words, "tokens", notes)


def vector_query(
    vectors: Float[np.ndarray, "k d"] | Float[np.ndarray, " d"], atlas: Atlas, words: str, dependent: float = DEPENDENT
) -> Query:
    """One direction or the span of several, the same for every basis.

    Raises BadRequest for another width, values that are not finite, nothing but zeros, or a span that is all there is.
    """
    rows = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
    width = atlas.manifest["d_model"]
    if rows.ndim != 2 or rows.shape[1] != width or not np.isfinite(rows).all() or not rows.any():
        fits = rows.ndim == 2 and rows.shape[1] == width
        got = "numbers that are not finite" if fits and rows.any() else "nothing but zeros" if fits else ""
        raise BadRequest(
            f"expected vectors of width {width}, finite and not all zeros, got {got or f'shape {np.shape(vectors)}'}"
        )
    found = {name: _inside(rows, name, dependent) for name in bases_of(atlas)}
    return Query(found, words, "subspace" if len(rows) > 1 else "vector")


def like_query(atlas: Atlas, addresses: str | Sequence[str]) -> Query:
    """Stored directions as the query: ``L22H10.ov:1`` (what it writes), ``L22H10.ov:1.read``; several give their span.

    Raises BadRequest, naming the address that the atlas does not hold.
    """
    wanted = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not wanted:
        raise BadRequest("expected a direction of the atlas, got none; type for example L3H1.ov:0")
    found = dict(_stored(atlas, address) for address in wanted)
    rows = atlas.units(np.array(list(found.values())))
    query = vector_query(rows if len(rows) > 1 else rows[0], atlas, " + ".join(found), DEPENDENT_STORED)
    return Query(query.rows, query.words, "like", (), tuple(found))


def bases_of(atlas: Atlas) -> tuple[str, ...]:
    """Names of the bases that the atlas compares with, sorted."""
    return tuple(sorted(set(atlas.column("basis"))))


def basis_named(model: Model, name: str) -> Basis:
    """The basis that an atlas calls by this name."""
    return model.bases.centred(name.removesuffix(".centred")) if name.endswith(".centred") else model.bases[name]


def dimension(name: str, width: int) -> int:
    """The dimension that directions compared with this basis live in: one less where they have no part along 1."""
    return width - name.endswith(".centred")


def _inside(rows: Float[np.ndarray, "k d"], basis: str, dependent: float) -> Float[np.ndarray, "m d"]:
    """Orthonormal rows of what directions compared with this basis can have of the query; a single row keeps its sign.

    In a centred frame that is the part without the constant direction.
    """
    size = float(np.linalg.norm(rows))
    rest = without_mean(rows) if basis.endswith(".centred") else rows
    if np.linalg.norm(rest) < CONSTANT * size:
        raise BadRequest("the query is the constant direction, which this frame has not; choose another or --frame raw")
    if len(rows) == 1:
        return rest / np.linalg.norm(rest)
    _, values, spanning = np.linalg.svd(rest, full_matrices=False)
    kept = spanning[values > values[0] * dependent]
    if len(kept) >= dimension(basis, rows.shape[1]):
        raise BadRequest(
            f"the query spans all {len(kept)} dimensions that directions have here: each lies in it; give fewer vectors"
        )
    return kept


def _stored(atlas: Atlas, address: str) -> tuple[str, int]:
    """(the direction in words, its row)."""
    site, _, rest = address.strip().partition(":")
    old = _OLD_HEAD.fullmatch(site)
    site = f"L{old[1]}H{old[2]}" if old else site
    site = f"{site}.ov" if _HEAD.fullmatch(site) else site
    dyad, _, side = rest.partition(".")
    index = atlas.columns("site", "side", "dyad")
    here = np.flatnonzero(index["site"] == site)
    rows = [int(i) for i in here if str(index["dyad"][i]) == (dyad or "0") and side in ("", index["side"][i])]
    if not rows:
        kept = f"; {site} has dyads 0–{max(index['dyad'][here])}" if len(here) else ""
        raise BadRequest(
            f"{atlas.folder} has no direction '{address}'{kept}; type for example L3H1.ov:0 or L3H1.qk:2.key"
        )
    order = ("write", "read", "query", "key")
    row = min(rows, key=lambda i: order.index(index["side"][i]))
    return f"{site}:{dyad or 0}.{index['side'][row]}", row
