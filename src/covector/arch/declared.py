"""A home-made transformer, opened by a layout.toml that declares its tensors in words and its anatomy in a few keys.

The words say which axis of a stored tensor is which (`words`), the keys what no tensor shows: norms, masks,
activations, how inputs become positions. Sizes follow from the stored shapes; whatever is missing, unknown or
contradicts something else is refused in one line. The grammar, every key and a worked example: docs/layouts.md.
"""

import difflib
import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.declared_evidence import evidence
from covector.arch.declared_keys import Declaration, read_declaration
from covector.arch.declared_names import ready_names
from covector.arch.declared_sizes import Found, find, parsed
from covector.arch.declared_spec import spec_of
from covector.arch.words import Layout
from covector.errors import BadLayout, CheckpointMismatch
from covector.model.spec import MLP, Attention, ModelSpec, output_bias, output_weight
from covector.model.weights import TensorSource, required, split_name

Labels = dict[str, tuple[str, ...]]

# Which key makes room for a stored tensor that the anatomy has no place for, by the beginning of its role.
_ROOM = (
    (("W_gate", "b_gate"), "gated = true"),
    (("q_norm.", "k_norm."), 'qk_norm = "layer" or "rms"'),
    (("final_norm.",), "norm and final_norm = true"),
    (("embed_norm.",), "norm under [assembly]"),
    (("W_pos",), "positions under [assembly]"),
    (("attn_", "mlp_"), "norm and placement"),
    (("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"), "attention = true"),
    (("W_in", "W_out", "b_in", "b_out"), "mlp = true"),
    (("in.",), 'kind = "linear" of that input'),
    (("out.",), "transform of that output"),
)


def declared(layout: str | Path, source: TensorSource, where: str) -> tuple[AdaptedWeights, Labels]:
    """Canonical weights of `source` as `layout` declares them, and the labels of its bases (``action_out`` …).

    `layout` is the text of a layout.toml, or its `Path`; `where` names it in errors. Nothing but headers is read.
    Raises BadLayout when the declaration is not well-formed or contradicts itself, CheckpointMismatch, naming the
    tensor, when it and the stored tensors disagree.
    """
    given = read_declaration(_text(layout, where), where)
    layouts = parsed(_all_words(given, where), where)
    found = find(layouts, source)
    _check_present(given, layouts, found, source)
    spec = spec_of(evidence(given, found, where))
    words = {pattern: _optional(layout, spec) for pattern, layout in layouts.items()}
    ignored = tuple(fnmatch.translate(glob) for glob in given.ignore)
    weights = adapt(spec, words, source, ignored=ignored)
    _check_room(weights, where)
    _check_every_block(found, spec, where)
    return weights, _labels(given, spec, where)


def anatomy_names(spec: ModelSpec) -> Iterator[str]:
    """Every canonical tensor that this anatomy can use, required or not."""
    yield from required(spec)
    for source in (*spec.assembly.inputs, *((spec.assembly.time,) if spec.assembly.time else ())):
        if source.kind == "linear":
            yield f"in.{source.name}.b"
    for layer, block in enumerate(spec.blocks):
        for sub in block.sublayers:
            yield from (f"L{layer}.{bias}" for bias in _biases(sub.part))
    for norm in spec.norms():
        yield from (f"{norm}.gain", f"{norm}.bias")
    for out in spec.outputs:
        yield from (output_weight(out.name), output_bias(out.name))
        if out.transform:
            yield from (f"out.{out.name}.transform.W", f"out.{out.name}.transform.b")


def _biases(part: Attention | MLP) -> tuple[str, ...]:
    if isinstance(part, Attention):
        return ("b_Q", "b_K", "b_V", "b_O")
    return ("b_in", "b_out", *(("b_gate",) if part.gated else ()))


def _text(layout: str | Path, where: str) -> str:
    if isinstance(layout, str):
        return layout
    try:
        return layout.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadLayout(f"{where}: expected a readable layout file, got {error}; check the path") from None


def _all_words(given: Declaration, where: str) -> dict[str, str]:
    """Ready names under their prefix, then the file's own words, which replace a ready name's."""
    placement = given.anatomy.get("placement", "pre")
    words = {}
    for name in given.use:
        ready = ready_names(name, placement, where)
        words |= {given.prefix + tensor: text for tensor, text in ready.items()}
    if given.prefix and not given.use:
        raise BadLayout(
            f"{where}: [tensors] prefix stands before the names that use brings, there is no use; remove it"
        )
    return words | dict(given.words)


def _check_present(
    given: Declaration, layouts: Mapping[str, Layout], found: tuple[Found, ...], source: TensorSource
) -> None:
    """Every name that the file itself writes down is stored, unless it says that it may be absent."""
    hits = {f.pattern for f in found}
    for pattern in given.words:
        layout = layouts[pattern]
        if pattern not in hits and not (layout.optional or layout.ignored):
            tensor = pattern.replace("{i}", "0")
            near = difflib.get_close_matches(tensor, source.names(), n=3) or sorted(source.names())[:3]
            raise CheckpointMismatch(
                f"{source.where}: expected tensor '{tensor}' ({layout.words}), it is missing; "
                f"the file has {', '.join(near) or 'no tensors'}; correct the name, or end its words with ?"
            )


def _optional(layout: Layout, spec: ModelSpec) -> str:
    """The words, optional where some block has no such sublayer: required tensors are asked for by the anatomy."""
    lacking = (None in (block.attn, block.mlp) for block in spec.blocks)
    return layout.words if layout.optional or layout.ignored or not any(lacking) else f"{layout.words} ?"


def _check_room(weights: AdaptedWeights, where: str) -> None:
    """A tensor that is read into no place of the anatomy would be dropped silently, so it is refused."""
    room = set(anatomy_names(weights.spec))
    for name, place in weights.places.items():
        if name not in room:
            role = split_name(name)[1]
            key = next((key for starts, key in _ROOM if role.startswith(starts)), "the anatomy")
            raise CheckpointMismatch(
                f"{where}: tensor '{place.tensor}' holds {name}, the anatomy has no place for it; "
                f'check {key}, or declare "{place.tensor}" = "-" if it is not used'
            )


def _check_every_block(found: tuple[Found, ...], spec: ModelSpec, where: str) -> None:
    """A tensor of some blocks only (a lost bias, a lost gain) would change the function, so it is refused."""
    room = set(anatomy_names(spec))
    have: dict[str, set[int]] = {}
    for f in found:
        for role in f.layout.roles if f.layer is not None else ():
            have.setdefault(role, set()).add(f.layer)  # type: ignore[arg-type]
    for role, layers in have.items():
        lacking = [i for i in range(spec.n_layers) if i not in layers and f"L{i}.{role}" in room]
        if lacking:
            raise CheckpointMismatch(
                f"{where}: expected {role} in every block, the file has it for {', '.join(map(str, sorted(layers)))} "
                f"and not for {', '.join(map(str, lacking))}; is the checkpoint complete?"
            )


def _labels(given: Declaration, spec: ModelSpec, where: str) -> Labels:
    """Labels by the name of the basis; a basis without labels is left out."""
    time = (spec.assembly.time,) if spec.assembly.time else ()
    sides: tuple[tuple[str, Mapping[str, Mapping[str, Any]], Any], ...] = (
        ("in", given.inputs, (*spec.assembly.inputs, *time)),
        ("out", given.outputs, spec.outputs),
    )
    labels = {}
    for side, tables, parts in sides:
        for part in parts:
            stated = tables.get(part.name, {}).get("labels")
            if stated is None:
                continue
            names = tuple(str(i) for i in range(part.n)) if stated == "numbers" else tuple(_spelled(stated))
            if len(names) != part.n:
                raise CheckpointMismatch(
                    f"{where}: [{side}puts.{part.name}] labels: expected {part.n} (the rows of its tensor), "
                    f"got {len(names)}; name every row, padding too"
                )
            labels[f"{part.name}_{side}"] = names
    return labels


def _spelled(labels: Any, name: str = "") -> list[str]:
    """A list as it is; a number n as name0 … ; a table as all combinations, slowest first: ``key x3 y0``."""
    if isinstance(labels, int):
        return [f"{name}{i}" for i in range(labels)]
    if isinstance(labels, list):
        return [str(label) for label in labels]
    words = [""]
    for axis, entries in labels.items():
        words = [f"{one} {two}".strip() for one in words for two in _spelled(entries, axis)]
    return words
