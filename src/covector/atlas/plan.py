"""What an atlas decomposes, cut into units that need nothing of each other.

A unit is the OV or the QK circuits of a layer, one matrix of its MLP, an embedding, or the null draws of a basis; what
a checkpoint stores in one tensor (a fused q|k|v) is one unit. Units are the same whatever the machine, so a part has
the same bytes whoever computed it; they stand in the order of the weight files, and no tensor is read by two of them.
"""

import dataclasses
from dataclasses import dataclass, field

from covector.arch.adapter import AdaptedWeights
from covector.atlas import cost
from covector.errors import BadRank, BadRequest
from covector.linalg.dictionary import Dictionary
from covector.model.address import Site
from covector.model.bases import Basis
from covector.model.circuits import side_centred, site_tensors
from covector.model.opened import Model
from covector.model.spec import ModelSpec
from covector.model.weights import axis_sizes, canonical_axes, split_name

KINDS = ("ov", "qk", "mlp", "embed")
# Maps of a layer in the order that an atlas stands in.
IN_LAYER = ("ov", "qk", "in", "gate", "out")
# Null draws of which a mean, a deviation and a tail can be told.
LEAST_DRAWS = 20


@dataclass(frozen=True)
class Options:
    """What the bytes of an atlas depend on, besides the model and its frame.

    `rank`: dyads kept per site, largest gain first (None: all); `k`: tokens kept per pole; `draws`: null directions
    per basis; `kinds`: which of ov, qk, mlp, embed. `scores`: whether token lists are judged (coherence, held-out
    detection, stability, …), which takes a few times as long; `rotations`: random bases of each head judged beside it.
    """

    kinds: tuple[str, ...] = KINDS
    rank: int | None = None
    k: int = 10
    draws: int = 10_000
    seed: int = 0
    scores: bool = True
    rotations: int = 1

    def __post_init__(self) -> None:
        """Kinds in one order, each once: an atlas does not depend on how they were typed."""
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise BadRequest(
                f"expected kinds among {', '.join(KINDS)}, got '{', '.join(unknown)}'; leave it out for all"
            )
        object.__setattr__(self, "kinds", tuple(kind for kind in KINDS if kind in self.kinds))
        if self.rank is not None and self.rank < 1:
            raise BadRank(f"expected rank >= 1 dyads per site, got {self.rank}; leave it out for all")
        if min(self.k, self.rotations) < 1:
            raise BadRequest(f"expected k and rotations of at least 1, got k = {self.k}, rotations = {self.rotations}")
        if self.draws < LEAST_DRAWS:
            raise BadRequest(
                f"expected at least {LEAST_DRAWS} draws, got {self.draws}: no p or z can be told from fewer; 10000 are "
                "taken where none are asked for"
            )
        if self.seed < 0:
            raise BadRequest(f"expected a seed of 0 or more, got {self.seed}")

    def to_dict(self) -> dict[str, object]:
        """As the manifest records them."""
        values: dict[str, object] = dataclasses.asdict(self)
        return values | {"kinds": list(self.kinds)}


EVERYTHING = Options()


@dataclass(frozen=True)
class Against:
    """What directions of one side are compared with: a basis, without its part along 1 where they have none."""

    basis: str
    centred: bool

    def __str__(self) -> str:
        """As parts and columns name it."""
        return self.basis + (".centred" if self.centred else "")

    def of(self, model: Model) -> Basis:
        """The basis itself."""
        return model.bases.centred(self.basis) if self.centred else model.bases[self.basis]

    def judges(self, model: Model) -> Dictionary:
        """The basis as lists of its labels are judged by."""
        return model.bases.dictionary(self.basis, self.centred)

    def dimension(self, model: Model) -> int:
        """The dimension that directions live in."""
        return model.spec.d_model - self.centred


@dataclass(frozen=True)
class Unit:
    """One piece of work: the sites it decomposes, or the basis whose nulls it draws.

    ``tensors`` are canonical names; ``cost`` weighs the units against each other, for progress: about seconds.
    """

    name: str
    sites: tuple[Site, ...] = ()
    basis: "Against | None" = None
    tensors: tuple[str, ...] = ()
    cost: float = 0.0
    position: tuple[str, int] = field(default=("", 0), compare=False)


def units(model: Model, options: Options) -> tuple[Unit, ...]:
    """Every unit of an atlas of this model: null draws first, then the order of the weight files.

    Raises BadRequest where the model has nothing of the kinds asked for.
    """
    made = [_unit(model, options, name, sites) for name, sites in _grouped(model, options) if sites]
    if not made:
        raise BadRequest(
            f"{model.name} has no {', '.join(options.kinds)}: expected kinds that it has; leave --kinds out"
        )
    ordered = sorted(made, key=lambda unit: unit.position)
    every = (a for unit in made for site in unit.sites for a in compared_at(model, site).values())
    compared = sorted({str(drawn := null_of(model, a)): drawn for a in every}.items())
    return (*(_null_unit(model, options, against) for _, against in compared), *ordered)


def null_of(model: Model, against: Against) -> Against:
    """Whose null draws serve this comparison: those of the same vectors under another name (a tied unembedding)."""
    twin = model.bases[against.basis].same_as
    return against if twin is None else dataclasses.replace(against, basis=twin.name)


def compared_at(model: Model, site: Site) -> dict[int, "Against"]:
    """What each side of a site (0 read, 1 written; both read for QK) is compared with, where it lies in the stream."""
    at_stream = (0, 1) if site.kind in ("ov", "qk") else (0,) if _reads_stream(site) else (1,)

    def against(at: int) -> Against:
        reads = at == 0 or site.kind == "qk"
        centred = side_centred(model.stored.spec, model.frame, site, second=at == 1)
        return Against(model.bases.default("read" if reads else "write"), centred)

    return {at: against(at) for at in at_stream}


def _reads_stream(site: Site) -> bool:
    return site.kind in ("in", "gate", "unembed") or site.kind.endswith("_out")


def bases_of(model: Model) -> tuple[str, ...]:
    """What read and written directions are compared with."""
    return tuple(dict.fromkeys((model.bases.default("read"), model.bases.default("write"))))


def _grouped(model: Model, options: Options) -> list[tuple[str, tuple[Site, ...]]]:
    """Name and sites of every unit: each kind of a layer by itself, but kinds that read one stored tensor together."""
    spec, groups = model.spec, []
    for layer, block in enumerate(spec.blocks):
        heads = range(block.attn.n_heads) if block.attn else ()
        for kind in ("ov", "qk"):
            if kind in options.kinds:
                groups.append((f"L{layer}.{kind}", tuple(Site(layer, head, kind) for head in heads)))
        if block.mlp is not None and "mlp" in options.kinds:
            maps = ("in", *(("gate",) if block.mlp.gated else ()), "out")
            groups += [(f"L{layer}.mlp.{kind}", (Site(layer, None, kind),)) for kind in maps]
    if "embed" in options.kinds:
        groups += [(name, (Site(None, None, name),)) for name in _embeddings(model)]
    return _joined(model, groups)


def _joined(model: Model, groups: list[tuple[str, tuple[Site, ...]]]) -> list[tuple[str, tuple[Site, ...]]]:
    """Groups that read a stored tensor in common become one."""
    made: list[tuple[str, tuple[Site, ...], set[str]]] = []
    for name, sites in groups:
        read = _stored_names(model, _tensors(model, sites))
        together = [one for one in made if one[2] & read]
        made = [one for one in made if not one[2] & read]
        names, parts, reads = zip(*together, (name, sites, read), strict=True)
        made.append(("+".join(names), sum(parts, ()), set().union(*reads)))
    return [(name, sites) for name, sites, _ in made]


def _tensors(model: Model, sites: tuple[Site, ...]) -> tuple[str, ...]:
    """Canonical matrices that these sites are made from in the model's frame."""
    plain = dict.fromkeys(tensor for site in sites for tensor in site_tensors(site))
    if model.frame.name != "conjecture2022":
        return tuple(plain)
    # The published recipe takes off a mean over the columns of all three.
    beside = (tensor[:-1] + role for tensor in plain if tensor[-3:] in ("W_Q", "W_K", "W_V") for role in "QKV")
    return tuple(dict.fromkeys((*plain, *beside)))


def _stored_names(model: Model, tensors: tuple[str, ...]) -> set[str]:
    stored = model.stored
    return {stored.place(tensor).tensor if isinstance(stored, AdaptedWeights) else tensor for tensor in tensors}


def _embeddings(model: Model) -> tuple[str, ...]:
    """Embeddings in and out; a tied unembedding is the embedding again and is left out."""
    spec = model.spec
    names = ["embed" if i.name == "token" else f"{i.name}_in" for i in spec.assembly.inputs]
    names += [f"{spec.assembly.time.name}_in"] if spec.assembly.time else []
    names += ["pos"] if spec.assembly.positions == "learned" else []
    outs = [o for o in spec.outputs if not (o.name == "token" and spec.tied)]
    return (*names, *("unembed" if o.name == "token" else f"{o.name}_out" for o in outs))


def _unit(model: Model, options: Options, name: str, sites: tuple[Site, ...]) -> Unit:
    tensors, stored = _tensors(model, sites), model.stored
    position = min(map(stored.position, tensors)) if isinstance(stored, AdaptedWeights) else ("", 0)
    sizes = _sizes(model, options, max(len(model.bases[b]) for b in bases_of(model)))
    spec = model.spec
    seconds = cost.of_sites(
        sites, sizes, lambda site: kept_and_compared(spec, site, options), lambda site: _decomposition(spec, site)
    )
    return Unit(name, sites, None, tensors, seconds, position)


def _null_unit(model: Model, options: Options, against: Against) -> Unit:
    seconds = cost.of_nulls(_sizes(model, options, len(model.bases[against.basis])))
    return Unit(f"null.{against}", basis=against, cost=seconds)


def _sizes(model: Model, options: Options, vocabulary: int) -> cost.Sizes:
    return cost.Sizes(model.spec.d_model, vocabulary, options.draws, options.scores, options.rotations)


def kept_and_compared(spec: ModelSpec, site: Site, options: Options) -> tuple[int, int]:
    """How many directions of a site are kept, and how many are compared with a basis, at most.

    All of a head's are compared: together they are the subspace that p_svd is about.
    """
    if site.head is not None:
        attn = spec.blocks[site.layer or 0].attn
        size = min(attn.d_head if attn else 0, spec.d_model)
        return 2 * min(size, options.rank or size), 2 * size
    kept = min(min(tensor_shape(spec, site_tensors(site)[0])), options.rank or spec.d_model)
    return kept, kept


def _decomposition(spec: ModelSpec, site: Site) -> float:
    """Floating-point operations of a site's decomposition, about."""
    if site.head is not None:
        r = kept_and_compared(spec, site, EVERYTHING)[1] // 2
        return 8.0 * spec.d_model * r**2 + 30.0 * r**3
    short, long = sorted(tensor_shape(spec, site_tensors(site)[0]))
    return 2.0 * long * short**2 + 9.0 * short**3


def tensor_shape(spec: ModelSpec, tensor: str) -> tuple[int, ...]:
    """Shape of a canonical tensor."""
    layer, role = split_name(tensor)
    sizes = axis_sizes(spec, layer, (role,)) | {"position": spec.n_ctx + spec.assembly.position_offset}
    return tuple(sizes[axis] for axis in canonical_axes(role))


def tensors_of(model: Model, unit: Unit) -> dict[str, str]:
    """Stored name → sha256 of the unit's own tensors, and of the bases that its directions are compared with."""
    against = [unit.basis] if unit.basis else [a for site in unit.sites for a in compared_at(model, site).values()]
    of_bases = (tensor for a in dict.fromkeys(against) for tensor in model.bases[a.basis].tensors)
    biases = (bias for tensor in unit.tensors for bias in biases_of(tensor)) if model.frame.bias else ()
    return model.origins(*unit.tensors, *dict.fromkeys((*of_bases, *biases)))


def biases_of(matrix: str) -> tuple[str, ...]:
    """The biases that an affine map has from beside its matrix: ``L3.W_Q`` → ``L3.b_Q``, ``out.action.W`` → ….b.

    For ``W_out`` that before it as well: behind a gate it is a constant of the output.
    """
    lead, dot, role = matrix.rpartition(".")
    own = lead + dot + "b" + role.removeprefix("W")
    return (own, f"{lead}.b_in") if role == "W_out" else (own,)
