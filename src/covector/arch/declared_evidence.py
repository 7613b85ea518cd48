"""What a layout.toml and the stored tensors say together, and how a missing word is asked for."""

from dataclasses import dataclass
from typing import Any

from covector.arch.declared_keys import Declaration, per_layer
from covector.arch.declared_sizes import STATED, Axis, Found, Sizes, solve
from covector.errors import BadLayout, CheckpointMismatch, UnsupportedConfig
from covector.model.activations import activation


@dataclass(frozen=True)
class Evidence:
    """What the declaration and the file say together: the stated keys, the tensors found, the sizes that follow."""

    given: Declaration
    found: tuple[Found, ...]
    sizes: Sizes
    n_layers: int
    where: str

    def shows(self, *roles: str) -> bool:
        """Whether some stored tensor holds one of these roles."""
        return any(role in f.layout.roles for f in self.found for role in roles)

    def labelled(self, side: str) -> list[str]:
        """Labels X of the stored roles ``in.X.W`` (or ``out.X.W``), in the order of the declaration."""
        parts = [role.split(".") for f in self.found for role in f.layout.roles]
        return list(dict.fromkeys(part[1] for part in parts if len(part) == 3 and (part[0], part[2]) == (side, "W")))

    def need(self, axis: str, advice: str, layer: int | None = None) -> int:
        """A size; CheckpointMismatch, with the advice, when it does not follow."""
        size = self.sizes.get(axis, layer)
        if size is None:
            raise CheckpointMismatch(
                f"{self.where}: expected the size of {axis}{'' if layer is None else f' in block {layer}'}, neither "
                f"a key nor the shape of a tensor says it; {advice}"
            )
        return size

    def stated(self, key: str, why: str) -> Any:
        """A key of [anatomy] that has no default because it changes the function. Raises BadLayout when absent."""
        if key not in self.given.anatomy:
            raise BadLayout(f"{self.where}: expected {key} under [anatomy], it is absent; {why}")
        return self.given.anatomy[key]

    def each(self, key: str, default: Any = None) -> list[Any]:
        """A key of [anatomy] in every block."""
        return per_layer(self.given.anatomy, key, self.n_layers, self.where, default)


def evidence(given: Declaration, found: tuple[Found, ...], where: str) -> Evidence:
    """The number of blocks and all sizes. Raises CheckpointMismatch for contradictions, BadLayout for a missing key."""
    layers = {f.layer for f in found if f.layer is not None}
    n_layers = given.anatomy.get("n_layers", max(layers) + 1 if layers else 0)
    if not n_layers or layers != set(range(n_layers)):
        raise CheckpointMismatch(
            f"{where}: expected tensors of blocks 0–{max(n_layers, 1) - 1}, the declared names fit those of "
            f"{', '.join(map(str, sorted(layers))) or 'no block'}; check n_layers, the prefix and where {{i}} stands"
        )
    stated: dict[Axis, int] = {}
    if "d_model" in given.anatomy:
        stated[None, "d_model"] = given.anatomy["d_model"]
    for key, axis in STATED.items():
        for layer, size in enumerate(per_layer(given.anatomy, key, n_layers, where)):
            if size is not None:
                stated[layer, axis] = size
    return Evidence(given, found, solve(found, stated, n_layers, where), n_layers, where)


def known_activation(name: str, where: str) -> str:
    """`name` if it is an activation that can be computed. Raises BadLayout, listing those that can."""
    try:
        activation(name)
    except UnsupportedConfig as error:
        raise BadLayout(f"{where}: {error}") from None
    return name


def optional_float(value: float | int | None) -> float | None:
    """A number of the file as a float; TOML writes whole ones as integers."""
    return None if value is None else float(value)
