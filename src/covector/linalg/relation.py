"""What `compare` finds between somebody else's SVD and ours, as a value and as one line of words."""

from dataclasses import dataclass

# Readings that need words of their own; the others only say how arrays were turned.
AS_GIVEN = "as given"
ROWS_OF_V = "rows of V"


@dataclass(frozen=True, eq=False)
class Relation:
    """What turns their dyads into ours.

    kind            same | truncated | sign | rotated | permuted | transposed | undetermined | different: the last
                    that applies; the fields below tell all that apply
    reading         how their arrays had to be read: "as given", "V for Vh", "Uᵀ for U", "both transposed", "U and V
                    swapped", "swapped, V for Vh", or "rows of V" (beyond repair: rows of V were kept as directions)
    compared        number of dyads looked at; `missing` are ours that they lack, `extra` theirs that we do not have
    flipped         our indices whose dyad has the other sign
    order           their index for each of ours if the order differs, else None
    rotated         runs of our indices inside which only the span agrees
    undetermined    our indices too close to what was left out, of ours or theirs, for their dtype to fix; theirs are
                    dyads of our map with these gains, but so would others be
    first_difference  the first of our indices that nothing explains, or None
    left_angle, right_angle  largest principal angle (rad) between the spans of the compared read and written directions
    gain_difference  largest |ΔS|/S[0]
    vector_difference  largest ‖Δu‖ or ‖Δv‖ after signs and order, outside rotated and undetermined runs
    departure       None, or the largest entry of UᵀU - I in float64 arrays that were compared at float32's tolerance,
                    since they are orthonormal to no more than float32
    """

    kind: str
    reading: str
    compared: int
    missing: int
    extra: int
    flipped: tuple[int, ...]
    order: tuple[int, ...] | None
    rotated: tuple[range, ...]
    undetermined: tuple[int, ...]
    first_difference: int | None
    left_angle: float
    right_angle: float
    gain_difference: float
    vector_difference: float
    departure: float | None = None

    @property
    def words(self) -> str:
        """The relation in one line."""
        if self.reading == ROWS_OF_V:
            return "transposed: row i of V (the loadings of coordinate i) was taken for written direction i"
        if self.kind == "different":
            return (
                f"different from dyad {self.first_difference} on: gains by up to {self.gain_difference:.1e} of the "
                f"first, the spans of {self.compared} dyads by {self.left_angle:.2g} rad (read) and "
                f"{self.right_angle:.2g} rad (written)"
            )
        parts = [f"{self.compared} dyads agree to {max(self.gain_difference, self.vector_difference):.1e}"]
        parts += [f"read with {self.reading}"] if self.reading != AS_GIVEN else []
        parts += ["in another order"] if self.order is not None else []
        parts += [f"signs flipped at {_listed(self.flipped)}"] if self.flipped else []
        parts += [f"rotated inside {', '.join(f'{b[0]}-{b[-1]}' for b in self.rotated)}"] if self.rotated else []
        parts += [f"{_listed(self.undetermined)} not determined in this dtype"] if self.undetermined else []
        if self.departure is not None:
            parts += [f"compared as float32, their vectors being orthonormal to {self.departure:.0e} only"]
        parts += [f"{self.missing} of ours missing"] if self.missing else []
        parts += [f"{self.extra} of theirs beyond ours not compared"] if self.extra else []
        return f"{self.kind}: " + "; ".join(parts)


def _listed(indices: tuple[int, ...]) -> str:
    shown = ", ".join(str(i) for i in indices[:8])
    return shown if len(indices) <= 8 else f"{shown} and {len(indices) - 8} more"
