"""A toy that names the indirect object: planted duplicate, previous-token, induction, S-inhibition, mover heads.

Five orthogonal parts of the stream hold the token, its position, "this name came before" (`dup`), the name in front
(`before`), and the name not to say (`inhibit`); names are said through a sixth. All planted weights are written down.

=======  ======================================================================================
L0H0     duplicate-token: at a name that came before, looks at it and writes half of it to `dup`
L0H1     previous-token: writes the name in front to `before`
L1H0     induction: at a name that came before, looks behind it and writes its other half to `dup`
L2H0     S-inhibition: looks where `dup` is and writes it to `inhibit`
L3H0     name mover: looks at names but the one in `inhibit`, and says what it sees
=======  ======================================================================================

The second head of layers 1 to 3 is small noise. Source: the mechanism is that of Wang et al. 2022, "Interpretability in
the wild" (arXiv 2211.00593); the construction is ours.
"""

import numpy as np

from covector.model.spec import Assembly, Attention, Block, Input, ModelSpec, Output, Sublayer
from covector.model.weights import ArrayWeights

NAMES = ("Michael", "Christopher", "Jessica", "Matthew", "Ashley", "Jennifer", "Joshua", "Amanda", "Daniel", "David",
         "James", "Robert", "John", "Joseph", "Andrew", "Ryan")  # fmt: skip
WORDS = ("Then", " Then", ",", ".", " and", " went", " to", " the", " store", " gave", " a", " ring", "After",
         "Afterwards", " lunch")  # fmt: skip
# Score of a wanted key: others are at most half of it, e⁻²⁰ below. Weight of a noise head's map.
SHARPNESS, NOISE = 40.0, 0.05


def indirect_object(n_ctx: int = 24, seed: int = 0, *, planted: bool = True) -> tuple[ArrayWeights, tuple[str, ...]]:
    """Weights and token labels. The logit of the name that came once is 1, others 0, up to noise of a few per cent.

    `planted` False turns every head into noise of the same anatomy: a model that does not do the task.
    """
    labels = ("<s>", *(f" {name}" for name in NAMES), *WORDS)
    n, v = len(NAMES), len(labels)
    sizes = (v, n_ctx, n, n, n, n)
    token, position, dup, before, inhibit, out = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1])
    d_model, d_head, n_heads = sum(sizes), n + n_ctx + 2, 2
    name = token[1 : n + 1]
    attn = Sublayer(Attention(n_heads, n_heads, d_head, scale=1.0))
    spec = ModelSpec(
        family="toy",
        d_model=d_model,
        blocks=(Block((attn,)),) * 4,
        assembly=Assembly("tokens", (Input("token", v, "lookup"),), positions="learned"),
        outputs=(Output("token", v),),
        n_ctx=n_ctx,
    )
    rng = np.random.default_rng(seed)
    arrays = {"W_E": token, "W_pos": position, "W_U": (np.eye(v, n, -1) @ out).T}
    for layer in range(4):
        for role in ("W_Q", "W_K", "W_V"):
            arrays[f"L{layer}.{role}"] = rng.standard_normal((n_heads, d_model, d_head)) / np.sqrt(d_model)
        noise = rng.standard_normal((n_heads, d_head, n)) / np.sqrt(d_head)
        arrays[f"L{layer}.W_O"] = NOISE * noise @ out
        arrays[f"L{layer}.b_Q"] = np.zeros((n_heads, d_head))
    if not planted:
        return ArrayWeights(spec, arrays), labels

    one = np.ones((1, n))
    first = position[:1]  # where a head looks when it finds nothing

    def plant(at: str, query: np.ndarray, key: np.ndarray, ask: dict[int, float], value: np.ndarray, write: np.ndarray):
        """A head from rows: query i meets key i; `ask` are constant queries; value i is written as row i."""
        layer, head = at.split("H")
        for role, rows in (("W_Q", query), ("W_K", key), ("W_V", value)):
            arrays[f"{layer}.{role}"][int(head)] = np.pad(rows.T, ((0, 0), (0, d_head - len(rows))))
        arrays[f"{layer}.W_O"][int(head)] = np.pad(write, ((0, d_head - len(write)), (0, 0)))
        for i, score in ask.items():
            arrays[f"{layer}.b_Q"][int(head), i] = score

    nowhere, s = np.zeros((1, d_model)), SHARPNESS
    queries = np.concatenate([nowhere, s * name, -2 * s * position])
    plant("L0H0", queries, np.concatenate([first, name, position]), {0: s / 2}, name, 0.5 * dup)
    plant("L0H1", s * position[1:], position[:-1], {}, name, before)
    plant("L1H0", np.concatenate([nowhere, s * name]), np.concatenate([first, before]), {0: s / 2}, before, 0.5 * dup)
    plant("L2H0", np.zeros((2, d_model)), np.concatenate([first, one @ dup]), {0: s / 2, 1: s}, dup, inhibit)
    queries = np.concatenate([nowhere, nowhere, -2 * s * inhibit])
    plant("L3H0", queries, np.concatenate([first, one @ name, name]), {0: s / 2, 1: s}, name, out)
    return ArrayWeights(spec, arrays), labels
