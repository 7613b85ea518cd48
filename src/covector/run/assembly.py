"""From labelled inputs to the first residual stream: embed each, place them, add time and positions, normalise."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from covector.errors import BadRequest
from covector.model.spec import Assembly, Input, Norm, Output, input_weight
from covector.run.pieces import Part, activation, need, normalize


def embed(source: Input, value: Tensor, part: Part) -> Float[Tensor, "batch position d_model"]:
    """One input as rows of the stream.

    A lookup takes indices [batch, time], or weights over its rows [batch, time, n] (differentiable). A linear input
    takes vectors [batch, time, n], or indices [batch, time] standing for one-hot vectors; a single number per step
    may leave out its last axis. Raises BadRequest for anything else, and for an index outside the table.
    """
    table = need(part, input_weight(source.name))
    rows = _rows(source, value, table)
    if source.kind == "linear":
        bias = part(f"in.{source.name}.b")
        rows = rows if bias is None else rows + bias
        rows = activation(source.activation)(rows) if source.activation else rows
    return rows * source.scale if source.scale != 1 else rows


def _rows(source: Input, value: Tensor, table: Tensor) -> Tensor:
    indices = not value.is_floating_point()
    if source.kind == "linear" and source.n == 1 and (value.ndim == 2 or indices):
        value, indices = (value[..., None] if value.ndim == 2 else value).to(table.dtype), False
    if indices and value.ndim == 2:
        if value.numel() and not (int(value.min()) >= 0 and int(value.max()) < len(table)):
            raise BadRequest(
                f"input '{source.name}': expected indices 0–{len(table) - 1}, got {int(value.min())}–"
                f"{int(value.max())}; use this model's own vocabulary or labels"
            )
        return table[value]
    if value.ndim != 3 or value.shape[-1] != len(table):
        short = "indices [batch, time]" if source.kind == "lookup" else f"vectors [batch, time, {len(table)}]"
        raise BadRequest(
            f"input '{source.name}': expected {short}, got {str(value.dtype).removeprefix('torch.')} of shape "
            f"{tuple(value.shape)}; give every sequence a batch axis"
        )
    return value.to(table.dtype) @ table


def assemble(
    assembly: Assembly, inputs: Mapping[str, Tensor], part: Part, positions: Int[Tensor, "#batch position"] | None
) -> Float[Tensor, "batch position d_model"]:
    """The first stream. `positions` index W_pos; counted from 0 where None.

    Raises BadRequest for an input that is missing, unknown, or does not fit the others.
    """
    _check_names(assembly, inputs)
    place = {"tokens": _tokens, "interleaved": _interleaved, "summed": _summed}[assembly.mode]
    stream = place(assembly, inputs, part)
    if assembly.norm and assembly.norm_before_positions:
        stream = _normed(stream, assembly.norm, part)
    stream = _positioned(stream, assembly, part, positions)
    if assembly.norm and not assembly.norm_before_positions:
        stream = _normed(stream, assembly.norm, part)
    return stream


def _check_names(assembly: Assembly, inputs: Mapping[str, Tensor]) -> None:
    known = [i.name for i in (*assembly.inputs, *((assembly.time,) if assembly.time else ()))]
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise BadRequest(f"inputs: expected {', '.join(known)}, got '{unknown[0]}'; leave it out or rename it")


def _need(inputs: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in inputs:
        given = ", ".join(inputs) or "none"
        raise BadRequest(f"inputs: expected '{name}', got {given}; this model cannot run without it")
    return inputs[name]


def _tokens(assembly: Assembly, inputs: Mapping[str, Tensor], part: Part) -> Tensor:
    first = assembly.inputs[0]
    stream = embed(first, _need(inputs, first.name), part)
    for extra in assembly.inputs[1:]:
        value = inputs.get(extra.name)
        if value is None:
            value = torch.zeros(stream.shape[:2], dtype=torch.long, device=stream.device)
        stream = stream + embed(extra, value, part)
    time = _time(assembly, inputs, part)
    return stream if time is None else stream + time


def _summed(assembly: Assembly, inputs: Mapping[str, Tensor], part: Part) -> Tensor:
    rows = [embed(i, _need(inputs, i.name), part) for i in assembly.inputs]
    time = _time(assembly, inputs, part)
    rows += [] if time is None else [time]
    lengths = {r.shape[1] for r in rows}
    if len(lengths) != 1:
        raise BadRequest(f"inputs: expected as many timesteps in each, got {sorted(lengths)}; they are summed")
    return torch.stack(rows).sum(0)


def _interleaved(assembly: Assembly, inputs: Mapping[str, Tensor], part: Part) -> Tensor:
    """Inputs of a timestep side by side; the sequence may stop in the middle of its last timestep."""
    first = assembly.inputs[0]
    steps = _need(inputs, first.name).shape[1]
    lengths = [inputs[i.name].shape[1] if i.name in inputs else 0 for i in assembly.inputs]
    inside = [steps - n for n in lengths]
    if any(gap not in (0, 1) for gap in inside) or inside != sorted(inside):
        given = ", ".join(f"{i.name} {n}" for i, n in zip(assembly.inputs, lengths, strict=True))
        raise BadRequest(
            f"inputs: expected {steps} timesteps of each, or one less from some input of the last timestep on, "
            f"got {given}; the sequence may stop inside its last timestep, not have holes"
        )
    time = _time(assembly, inputs, part)
    if time is not None and time.shape[1] != steps:
        raise BadRequest(f"inputs: expected {steps} timesteps, one time for each, got {time.shape[1]}")
    rows = []
    for source, length in zip(assembly.inputs, lengths, strict=True):
        if not length:
            continue
        row = embed(source, inputs[source.name], part)
        row = row if time is None else row + time[:, :length]
        rows.append(functional.pad(row, (0, 0, 0, steps - length)))
    # Inputs without a single step (one timestep, stopped early) have no column at all.
    return torch.stack(rows, dim=2).flatten(1, 2)[:, : sum(lengths)]


def _time(assembly: Assembly, inputs: Mapping[str, Tensor], part: Part) -> Tensor | None:
    return embed(assembly.time, _need(inputs, assembly.time.name), part) if assembly.time else None


def _positioned(stream: Tensor, assembly: Assembly, part: Part, positions: Tensor | None) -> Tensor:
    if assembly.positions == "none":
        return stream
    table = need(part, "W_pos")
    if assembly.positions == "zero":
        return stream + table[0]
    if positions is None:
        positions = torch.arange(stream.shape[1], device=stream.device)[None]
    places = positions + assembly.position_offset
    if places.numel() and int(places.max()) >= len(table):
        raise BadRequest(
            f"expected at most {len(table) - assembly.position_offset} positions, got position "
            f"{int(positions.max())}; shorten the sequence, the model learned no more"
        )
    return stream + table[places]


def _normed(stream: Tensor, norm: Norm, part: Part) -> Tensor:
    return normalize(stream, norm, part("embed_norm.gain"), part("embed_norm.bias"))


def read_out(
    assembly: Assembly, out: Output, value: Float[Tensor, "batch position n"]
) -> Float[Tensor, "batch time n"]:
    """An output only where it is meant to be read: at the positions of the input that it names, else everywhere."""
    names = [source.name for source in assembly.inputs]
    if assembly.mode != "interleaved" or out.at not in names:
        return value
    return value[:, names.index(out.at) :: len(names)]


def spread_mask(assembly: Assembly, mask: Tensor, length: int) -> Tensor:
    """A padding mask over timesteps or positions as one over positions [batch, position]; True marks what is real."""
    mask = mask.bool()
    if assembly.mode == "interleaved" and mask.shape[1] != length:
        mask = mask.repeat_interleave(len(assembly.inputs), dim=1)[:, :length]
    if mask.shape[1] != length:
        raise BadRequest(f"mask: expected one value per position ({length}) or timestep, got {mask.shape[1]}")
    return mask
