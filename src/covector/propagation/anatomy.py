"""The stream as numbered states, and the components between them.

State 0 is the assembled stream; each sublayer of a sequential block makes the next state, the sublayers of a parallel
block make one state together. A component reads one state and adds to the next, so what a functional on one state is
on an earlier one, and which components lie between, needs no family-specific code.
"""

from dataclasses import dataclass

from covector.model.spec import MLP, Attention, ModelSpec, Sublayer


@dataclass(frozen=True)
class Component:
    """One sublayer: it reads state `reads` and adds to what becomes state `writes`."""

    layer: int
    sub: Sublayer
    reads: int
    writes: int

    @property
    def name(self) -> str:
        """``L3.attn`` or ``L3.mlp``: the prefix of its hooks' roles."""
        return f"L{self.layer}.{self.sub.name}"

    def hook(self, role: str) -> str:
        """``L3.z`` and so on."""
        return f"L{self.layer}.{role}"

    @property
    def attn(self) -> Attention | None:
        """Its attention, or None for an MLP."""
        return self.sub.part if isinstance(self.sub.part, Attention) else None

    @property
    def mlp(self) -> MLP | None:
        """Its MLP, or None for attention."""
        return self.sub.part if isinstance(self.sub.part, MLP) else None


def components(spec: ModelSpec) -> tuple[Component, ...]:
    """Every sublayer of the model, in the order in which they write."""
    made: list[Component] = []
    state = 0
    for layer, block in enumerate(spec.blocks):
        entering = state
        for sub in block.sublayers:
            if block.parallel:
                made.append(Component(layer, sub, entering, entering + 1))
                state = entering + 1
            else:
                made.append(Component(layer, sub, state, state + 1))
                state += 1
    return tuple(made)


def last_state(spec: ModelSpec) -> int:
    """The state that the final norm reads."""
    return max((c.writes for c in components(spec)), default=0)
