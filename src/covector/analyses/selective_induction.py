"""Selective induction: break … A B … A → B for one token B and for no other.

The edit is the least change of what induction heads read that takes the token's value away.

Source: Q14 of the theory page; `docs/theory/edits.md`, equations 16–19.
"""

from collections.abc import Sequence

from covector.analyses.induction_edit import LEAST
from covector.analyses.selective_measures import measure, set_up
from covector.analyses.selective_tables import by_target
from covector.model.opened import Model
from covector.render import Table


def selective_induction(
    model: Model,
    token: str | None = None,
    *,
    heads: Sequence[str] = (),
    tokens: Sequence[str] = (),
    pairs: int = 32,
    keep: float = 0.0,
    draws: int = 200,
    way: str = LEAST,
    neutral: dict[str, list[str]] | None = None,
    start: str = "auto",
    length: int | None = None,
    ridge: float = 1e-6,
    dtype: str = "float64",
    seed: int = 0,
) -> Table:
    """One row per token taken as the target: what its edit does to it, and to the others. `token` is the first row.

    Without `token` every token is a target that is asked about. The model's induction heads are edited, those found
    (`induction_heads`) or `heads`. `keep` is the share of the value that stays, `pairs` the strings per token, `draws`
    the most other tokens that are taken as the target in turn. `way`: ``least``, the change of least E‖xΔM‖², or
    ``dyads``, dyads of OV dampened by F6 to the same E‖xΔM‖². e and Σ come from strings that are not measured on.
    Raises BadRequest, BadSite, NotOneToken.
    """
    setup = set_up(model, token, heads=heads, tokens=tokens, pairs=pairs, keep=keep, draws=draws, way=way,
                   neutral=neutral, start=start, length=length, ridge=ridge, dtype=dtype, seed=seed)  # fmt: skip
    return by_target(measure(setup))
