"""How the inputs of a declared model become its first stream, and which outputs read its last one."""

from collections.abc import Iterable, Mapping
from typing import Any

from covector.arch.declared_evidence import Evidence, known_activation, optional_float
from covector.arch.declared_keys import meant
from covector.errors import BadLayout
from covector.model.spec import Assembly, Input, Norm, Output

# Inputs that are indices whatever they mean; the others must say so.
_LOOKUPS = ("token",)


def assembly_of(facts: Evidence, norm: Norm | None) -> Assembly:
    """The assembly. Raises BadLayout for an input that is named nowhere, twice, or without saying what it is."""
    given = facts.given.assembly
    names = _input_names(facts)
    time = given.get("timestep")
    order = given.get("order", [name for name in names if name != time])
    _check_inputs(facts, names, order, time)
    mode = given.get("mode", "tokens" if order == ["token"] else None if order else "summed")
    if mode is None:
        raise BadLayout(
            f'{facts.where}: expected mode under [assembly], it is absent; write "interleaved" if the inputs of a '
            'timestep have a position each, "summed" if they share one, "tokens" for a language model'
        )
    stands = _embed_norm(facts, norm)
    return Assembly(
        mode,
        tuple(_input(facts, name, index=name in _LOOKUPS) for name in order),
        time=_input(facts, time, index=True) if time else None,
        positions=given.get("positions", "learned" if facts.shows("W_pos") else "none"),
        position_offset=given.get("position_offset", 0),
        norm=norm if stands != "none" else None,
        norm_before_positions=stands == "before_positions",
    )


def outputs_of(facts: Evidence, norm: Norm | None) -> tuple[Output, ...]:
    """The outputs, in the order of the [outputs] tables, then of the tensors. Raises BadLayout."""
    return tuple(_output(facts, name, norm) for name in _output_names(facts))


def _input_names(facts: Evidence) -> list[str]:
    """Inputs in the order of the [inputs] tables, then of the tensors."""
    stored = (["token"] if facts.shows("W_E") else []) + facts.labelled("in")
    for name in facts.given.inputs:
        if name not in stored:
            role = "W_E" if name == "token" else f"in.{name}.W"
            raise BadLayout(
                f"{facts.where}: [inputs.{name}] expects a stored tensor with the role {role}, there is none; "
                f"declare it under [tensors]{meant(name, stored)}"
            )
    return list(dict.fromkeys((*facts.given.inputs, *stored)))


def _input(facts: Evidence, name: str, index: bool) -> Input:
    given = facts.given.inputs.get(name, {})
    kind = given.get("kind", "lookup" if index else None)
    if kind is None:
        raise BadLayout(
            f'{facts.where}: expected kind under [inputs.{name}], it is absent; write "lookup" if it is an index that '
            'picks a row of its table, "linear" if numbers are multiplied by it'
        )
    act = given.get("activation", "none")
    n = facts.need(f"in.{name}", f"declare the axis '{name}' of its table alone")
    return Input(name, n, kind, float(given.get("scale", 1.0)), None if act == "none" else act)


def _embed_norm(facts: Evidence, norm: Norm | None) -> str:
    """Where the norm of the embeddings stands; asked for when its gain is there."""
    stands = facts.given.assembly.get("norm")
    if stands is None and facts.shows("embed_norm.gain", "embed_norm.bias"):
        raise BadLayout(
            f"{facts.where}: expected norm under [assembly], it is absent and the file has embed_norm; write "
            '"after_positions" or "before_positions"'
        )
    if stands not in (None, "none") and norm is None:
        raise BadLayout(f'{facts.where}: [assembly] norm = "{stands}" contradicts [anatomy] norm = "none"')
    return stands or "none"


def _check_inputs(facts: Evidence, names: list[str], order: list[str], time: str | None) -> None:
    used = [*order, *([time] if time else [])]
    for name in used:
        if name not in names:
            raise BadLayout(
                f"{facts.where}: [assembly] names the input '{name}', no tensor holds it; inputs: "
                f"{', '.join(names) or 'none'}{meant(name, names)}"
            )
    for name in names:
        if used.count(name) != 1:
            raise BadLayout(
                f"{facts.where}: expected the input '{name}' once in [assembly], as one of order or as timestep, it is "
                f'there {used.count(name)} times; correct order, or declare its tensor as "-"'
            )


def _output_names(facts: Evidence) -> Iterable[str]:
    tied = facts.given.anatomy.get("tied", False)
    stored = (["token"] if facts.shows("W_U") or tied else []) + facts.labelled("out")
    for name in facts.given.outputs:
        if name not in stored:
            role = "W_U" if name == "token" else f"out.{name}.W"
            raise BadLayout(
                f"{facts.where}: [outputs.{name}] expects a stored tensor with the role {role}, there is none; "
                f"declare it under [tensors]{', or write tied = true' if name == 'token' else ''}{meant(name, stored)}"
            )
    if facts.shows("W_E") and not stored:
        facts.stated("tied", "no tensor holds an output; declare W_U, or write tied = true if W_E is read again")
    return dict.fromkeys((*facts.given.outputs, *stored))


def _output(facts: Evidence, name: str, norm: Norm | None) -> Output:
    given: Mapping[str, Any] = facts.given.outputs.get(name, {})
    act, transform, at = given.get("activation"), given.get("transform"), given.get("at")
    inputs = facts.given.assembly.get("order", _input_names(facts))
    if at is not None and at not in inputs:
        raise BadLayout(f"{facts.where}: [outputs.{name}] at takes an input ({', '.join(inputs)}); got '{at}'")
    tied = name == "token" and facts.given.anatomy.get("tied", False)
    has_norm = facts.shows(f"out.{name}.norm.gain")
    return Output(
        name,
        facts.need("in.token" if tied else f"out.{name}", f"declare the axis '{name}' of its matrix alone"),
        scale=float(given.get("scale", 1.0)),
        softcap=optional_float(given.get("softcap")),
        activation=known_activation(act, facts.where) if act else None,
        transform=known_activation(transform, facts.where) if transform else None,
        transform_norm=norm if has_norm else None,
        at=at,
    )
