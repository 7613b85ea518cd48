"""Addresses of places in a model: ``L9H6.ov``, ``L9K2.v``, ``L3.mlp.in``, ``embed``; with ranges and wildcards.

A head alone (``L9H6``, or ``9.6`` as it used to be written) means its OV map. Layers and heads count from 0.
"""

import re
from dataclasses import dataclass

from covector.errors import BadSite
from covector.model.spec import ModelSpec

HEAD_KINDS = ("ov", "qk", "q", "k", "v", "o")
MLP_KINDS = ("in", "gate", "out")
_NUMBERS = r"(?:\d+(?:-\d+)?|\*)"
_HEAD = re.compile(rf"L({_NUMBERS})([HK])({_NUMBERS})(?:\.(\w+))?", re.IGNORECASE)
_OLD_HEAD = re.compile(r"(\d+)\.(\d+)")
_MLP = re.compile(rf"L({_NUMBERS})\.mlp\.(\w+|\*)", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Site:
    """One place: a head's map (``kind`` ov, qk, q, o), a key/value head's (k, v), an MLP's (in, gate, out), or a name.

    ``head`` counts query heads for ov, qk, q, o and key/value heads for k, v.
    """

    layer: int | None
    head: int | None
    kind: str

    def __str__(self) -> str:
        """The address as it is typed."""
        if self.layer is None:
            return self.kind
        if self.head is None:
            return f"L{self.layer}.mlp.{self.kind}"
        return f"L{self.layer}{'K' if self.kind in 'kv' else 'H'}{self.head}.{self.kind}"

    @property
    def in_mlp(self) -> bool:
        """Whether the site belongs to an MLP."""
        return self.layer is not None and self.head is None


def named_sites(spec: ModelSpec) -> tuple[str, ...]:
    """Sites outside the blocks: embeddings in and out, by the names that they are typed with."""
    names = []
    for source in spec.assembly.inputs:
        names.append("embed" if source.name == "token" else f"{source.name}_in")
    if spec.assembly.time:
        names.append(f"{spec.assembly.time.name}_in")
    if spec.assembly.positions != "none":
        names.append("pos")
    names += ["unembed" if out.name == "token" else f"{out.name}_out" for out in spec.outputs]
    return tuple(names)


def site(text: str, spec: ModelSpec) -> Site:
    """The single site that `text` names in this model. Raises BadSite, with the ranges and a near miss."""
    found = sites(text, spec)
    if len(found) != 1:
        raise BadSite(f"expected one site, '{text}' names {len(found)} ({found[0]} … {found[-1]}); name one of them")
    return found[0]


def sites(text: str, spec: ModelSpec) -> tuple[Site, ...]:
    """Every site that `text` names (``L20-23H*.ov``, ``L*.mlp.out``), in order of layer, head. Raises BadSite."""
    text = text.strip()
    old = _OLD_HEAD.fullmatch(text)
    if old:
        text = f"L{old[1]}H{old[2]}"
    head, mlp = _HEAD.fullmatch(text), _MLP.fullmatch(text)
    if head:
        return _head_sites(text, head, spec)
    if mlp:
        return _mlp_sites(text, mlp, spec)
    names = named_sites(spec)
    if text in names:
        return (Site(None, None, text),)
    raise BadSite(
        f"expected an address such as L3H1.ov, L3H1.qk, L3K0.v, L3.mlp.in, L3.mlp.out, {', '.join(names)}; got '{text}'"
    )


def _head_sites(text: str, found: re.Match[str], spec: ModelSpec) -> tuple[Site, ...]:
    letter = found[2].upper()
    kind = (found[4] or ("ov" if letter == "H" else "v")).lower()
    if kind not in HEAD_KINDS:
        raise BadSite(f"{text}: expected a head's map ({', '.join(HEAD_KINDS)}), got '{kind}'")
    if letter == "K" and kind not in "kv":
        raise BadSite(
            f"{text}: a key/value head has only .k and .v, got '.{kind}'; write L{found[1]}H{found[3]}.{kind}"
        )
    made = []
    for layer in _numbers(found[1], spec.n_layers, text, spec):
        attn = spec.blocks[layer].attn
        if attn is None:
            if found[1].isdigit():
                raise BadSite(f"{text}: block {layer} of {spec.family} has no attention")
            continue
        count = attn.n_kv_heads if letter == "K" else attn.n_heads
        for number in _numbers(found[3], count, text, spec, letter):
            # A query head's key and value belong to its key/value head, where they are stored and counted once.
            owner = attn.kv_of(number) if letter == "H" and kind in "kv" else number
            made.append(Site(layer, owner, kind))
    return tuple(dict.fromkeys(made))


def _mlp_sites(text: str, found: re.Match[str], spec: ModelSpec) -> tuple[Site, ...]:
    kind = found[2].lower()
    if kind not in (*MLP_KINDS, "*"):
        raise BadSite(f"{text}: expected an MLP map (in, gate, out), got '{kind}'")
    made = []
    for layer in _numbers(found[1], spec.n_layers, text, spec):
        mlp = spec.blocks[layer].mlp
        if mlp is None or (kind == "gate" and not mlp.gated):
            if found[1].isdigit():
                lacks = "no MLP" if mlp is None else "no gate: its MLP is not gated"
                raise BadSite(f"{text}: block {layer} of {spec.family} has {lacks}")
            continue
        kinds = [k for k in MLP_KINDS if k != "gate" or mlp.gated] if kind == "*" else [kind]
        made += [Site(layer, None, k) for k in kinds]
    return tuple(made)


def _numbers(text: str, count: int, whole: str, spec: ModelSpec, letter: str = "L") -> range:
    if text == "*":
        return range(count)
    first, _, last = text.partition("-")
    low, high = int(first), int(last or first)
    if low > high or high >= count:
        raise BadSite(_outside(whole, spec, low, high, letter))
    return range(low, high + 1)


def _outside(text: str, spec: ModelSpec, low: int, high: int, letter: str) -> str:
    heads = spec.n_kv_heads if letter == "K" else spec.n_heads
    limits = f"layers run 0–{spec.n_layers - 1}, {'key/value heads' if letter == 'K' else 'heads'} 0–{heads - 1}"
    if low > high:
        return f"{text}: a range runs upwards, got {low}-{high}; {limits}"
    hint = ""
    found = _HEAD.fullmatch(text)
    if found and found[1].isdigit() and found[3].isdigit():
        layer, head = min(int(found[1]), spec.n_layers - 1), min(int(found[3]), heads - 1)
        swapped = (int(found[3]), int(found[1]))
        if swapped[0] < spec.n_layers and swapped[1] < heads:
            layer, head = swapped
        hint = f". Did you mean L{layer}{found[2].upper()}{head}?"
    elif high >= spec.n_layers:
        hint = f". Did you mean {text.replace(str(high), str(spec.n_layers - 1), 1)}?"
    return f"{text} is outside {spec.family}: {limits}{hint}"
