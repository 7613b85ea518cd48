"""Which stored matrix takes a term, and on which hand.

site            write                     read
ov              W_O of the head, right    W_V of the key/value head, left (alone only where it serves one query head)
qk              W_K, left (the key's)     W_Q of the head, left (the query's)
q, k, v         right (head space)        left (the stream)
o               right (the stream)        left (head space)
mlp in, gate    right (neurons)           left (the stream)
mlp out         right (the stream)        left (neurons)
embed, pos, in  right (the stream)        –
unembed, out    –                         left (the stream)

Source: `docs/theory/edits.md`, equations 2–4.
"""

from dataclasses import dataclass

from covector.errors import BadRequest
from covector.model.address import Site
from covector.model.circuits import site_tensors
from covector.model.spec import ModelSpec
from covector.study.edit_terms import READ, WRITE

LEFT, RIGHT = "left", "right"


@dataclass(frozen=True)
class Target:
    """The matrix that takes a change: canonical name, slice, hand, and whether its rows lie in the stream."""

    tensor: str
    head: int | None
    hand: str
    stream: bool


def own_side(site: Site) -> str:
    """The side that takes an edit where none is named: writers write, readers read, OV writes, QK reads (its query)."""
    if site.layer is None:
        return READ if site.kind == "unembed" or site.kind.endswith("_out") else WRITE
    return WRITE if site.kind in ("ov", "o", "out") else READ


def target(spec: ModelSpec, site: Site, side: str) -> Target:
    """Where a term on this side of a site goes. Raises BadRequest for a side that several heads share, or that has no
    factor of its own, with the address that does."""
    name = site_tensors(site)
    if site.layer is None:
        if side != own_side(site):
            raise BadRequest(
                f"edit of {site}: expected @{own_side(site)}, its other side is a list of labels, not a space of "
                "directions; edit the side in the stream"
            )
        return Target(name[0], None, RIGHT if side == WRITE else LEFT, True)
    if site.head is None:
        return Target(name[0], None, RIGHT if side == WRITE else LEFT, (side == WRITE) == (site.kind == "out"))
    attn = spec.blocks[site.layer].attn
    if attn is None:
        raise BadRequest(f"edit of {site}: block {site.layer} has no attention")
    own, at = attn.kv_of(site.head), f"L{site.layer}."
    if site.kind == "ov":
        if side == WRITE:
            return Target(at + "W_O", site.head, RIGHT, True)
        return Target(at + "W_V", _alone(spec, site, own, "v"), LEFT, True)
    if site.kind == "qk":
        if side == READ:
            return Target(at + "W_Q", site.head, LEFT, True)
        return Target(at + "W_K", _alone(spec, site, own, "k"), LEFT, True)
    return Target(name[0], site.head, RIGHT if side == WRITE else LEFT, (side == WRITE) == (site.kind == "o"))


def _alone(spec: ModelSpec, site: Site, own: int, kind: str) -> int:
    """The key/value head, if no other query head reads it."""
    attn = spec.blocks[site.layer or 0].attn
    sharing = [h for h in range(attn.n_heads) if attn.kv_of(h) == own] if attn else []
    if len(sharing) > 1:
        heads = ", ".join(f"H{h}" for h in sharing)
        other = "the default side, which writes" if kind == "v" else "@read, the query's side"
        raise BadRequest(
            f"edit of {site}: expected a factor of its own, its {'value' if kind == 'v' else 'key'} is shared by "
            f"{heads}; change them all at L{site.layer}K{own}.{kind}, or this head alone on {other}"
        )
    return own
