"""Calibration: whatever the frame, the side, the variant and the size of the basis, chance is called chance."""

import numpy as np
import pytest

from covector.analyses.readout import readout
from covector.analyses.side import Exact, read_side
from covector.linalg.chance import haar_directions
from covector.linalg.norms import without_mean
from covector.model.bases import Basis, _variant
from random_checkpoints import random_model

DRAWS = 400
# One vector has no deviation from the mean: no centred or whitened form.
CASES = [
    (variant, n, d)
    for variant in ("", "centred", "pinv", "whitened")
    for n, d in ((1, 6), (5, 12), (40, 12))
    if n > 1 or variant in ("", "pinv")
]


def basis(n: int, d: int, variant: str, centred: bool) -> Basis:
    vectors = np.random.default_rng([n, d]).standard_normal((n, d)) + 1.0
    plain = Basis("token_out", "out", tuple(map(str, range(n))), lambda: without_mean(vectors) if centred else vectors)
    return _variant(plain, f"token_out:{variant}", variant) if variant else plain


@pytest.mark.identity("SV-30")
@pytest.mark.parametrize("exact", [False, True], ids=["bound", "exact"])
@pytest.mark.parametrize("centred", [False, True], ids=["raw", "centred"])
@pytest.mark.parametrize(("variant", "n", "d"), CASES)
def test_random_directions_are_rarely_called_significant(
    n: int, d: int, variant: str, centred: bool, exact: bool
) -> None:
    """P(p_dir ≤ .05) ≤ .05 + 4 standard errors for Haar directions of the space that the side can reach."""
    rows = haar_directions(DRAWS, d, seed=3)
    if centred:
        rows = without_mean(rows)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    chosen = basis(n, d, variant, centred)
    found = read_side(rows, None, chosen, k=1, keep=np.ones(n, bool), centred=centred,
                      exact=Exact(2000, 1) if exact else None)  # fmt: skip
    share = np.mean(found.p_dir <= 0.05)
    if variant == "whitened":
        # Directions that are random before whitening are only nearly so behind it: its metric stretches them.
        assert found.d == min(d - centred, n - 1)
        return
    assert share <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / DRAWS)
    if n == 1:
        assert share >= 0.05 - 4 * np.sqrt(0.05 * 0.95 / DRAWS)


def test_directions_that_are_random_behind_whitening_are_rarely_called_significant() -> None:
    chosen = basis(10, 64, "whitened", False)
    values, axes = np.linalg.eigh(chosen.metric)
    keep = values > values[-1] * 1e-12
    behind = haar_directions(DRAWS, int(keep.sum()), seed=5) @ axes[:, keep].T
    rows = behind @ np.linalg.pinv(chosen.metric)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = read_side(rows, None, chosen, k=1, keep=np.ones(10, bool), centred=False)
    assert np.mean(found.p_dir <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / DRAWS)


@pytest.mark.parametrize("frame", ["raw", "folded", "gauge_fixed", "tl_default"])
def test_swapping_queries_and_keys_swaps_the_sides_of_qk(frame: str) -> None:
    import dataclasses

    from covector.model.weights import ArrayWeights

    model = random_model("gpt2")
    arrays = {n: np.array(model.stored[n]) for n in model.stored.names()}
    for kind in ("W", "b"):
        q, k = f"L1.{kind}_Q", f"L1.{kind}_K"
        arrays[q], arrays[k] = arrays[k], arrays[q]
    weights = ArrayWeights(dataclasses.replace(model.spec, tied=False), arrays)
    swapped = dataclasses.replace(model, stored=weights, weights=weights)
    before, after = (readout(m, "L1H2.qk", frame=frame, k=3) for m in (model, swapped))
    assert before.meta["dimension"]["read"] == before.meta["dimension"]["write"]
    for name in ("p_dir", "p_svd", "q"):
        np.testing.assert_allclose(after[f"write_{name}"], before[f"read_{name}"], rtol=1e-6)
    np.testing.assert_allclose(np.abs(after["write_zeta"]), np.abs(before["read_zeta"]), rtol=1e-8)


def test_the_constant_of_an_affine_map_is_no_direction_of_the_stream() -> None:
    model = random_model("gpt2")
    table = readout(model, "L1H2", frame="raw+bias", rank=6)
    plain = readout(model, "L1H2")
    assert len(table) == 6
    assert len(plain) == 5
    assert np.isfinite(table["read_p_dir"]).all()


def test_a_head_of_zeros_has_no_dyads_and_says_so() -> None:
    import dataclasses

    from covector.model.weights import ArrayWeights

    model = random_model("gpt2")
    arrays = {n: np.array(model.stored[n]) for n in model.stored.names()}
    arrays["L1.W_O"] = np.zeros_like(arrays["L1.W_O"])
    weights = ArrayWeights(dataclasses.replace(model.spec, tied=False), arrays)
    table = readout(dataclasses.replace(model, stored=weights, weights=weights), "L1H2")
    assert len(table) == 0
    assert "0 of 0 dyads" in table.says


def test_a_map_read_against_its_own_rows_says_so() -> None:
    assert "own rows" in readout(random_model("gpt2"), "embed", rank=2).not_says
    assert "own rows" not in readout(random_model("gpt2"), "L1H2", rank=2).not_says
