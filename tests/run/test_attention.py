"""One attention sublayer against a loop over batch, head and query that is written from the definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from covector.model.spec import Attention, Norm, Rotary
from covector.run.attention import attend, score, visible, weigh

D_MODEL, LENGTH = 7, 6
PLAIN = Attention(n_heads=4, n_kv_heads=2, d_head=3, scale=0.5)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(attn: Attention) -> dict[str, torch.Tensor]:
    heads, groups, d = attn.n_heads, attn.n_kv_heads, attn.d_head
    shapes = {
        "W_Q": (heads, D_MODEL, d),
        "W_K": (groups, D_MODEL, d),
        "W_V": (groups, D_MODEL, d),
        "W_O": (heads, d, D_MODEL),
        "b_Q": (heads, d),
        "b_K": (groups, d),
        "b_V": (groups, d),
        "b_O": (D_MODEL,),
    }
    return {name: draws(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def run(x, attn, weights, mask=None):
    seen = {}

    def tap(name, value):
        seen[name] = value
        return value

    out = attend(x, attn, weights.get, tap, positions=torch.arange(x.shape[1])[None], mask=mask)
    return out, seen


def by_hand(x: np.ndarray, attn: Attention, w: dict[str, np.ndarray]) -> np.ndarray:
    """Grouped causal attention of one sequence, query by query."""
    out = np.tile(w["b_O"], (len(x), 1))
    for head in range(attn.n_heads):
        group = head // (attn.n_heads // attn.n_kv_heads)
        q = x @ w["W_Q"][head] + w["b_Q"][head]
        k = x @ w["W_K"][group] + w["b_K"][group]
        v = x @ w["W_V"][group] + w["b_V"][group]
        for t in range(len(x)):
            first = 0 if attn.window is None else max(0, t - attn.window + 1)
            scores = [attn.scale * q[t] @ k[s] for s in range(first, t + 1)]
            if attn.softcap:
                scores = [attn.softcap * math.tanh(s / attn.softcap) for s in scores]
            weights = np.exp(scores) / np.exp(scores).sum()
            out[t] += weights @ v[first : t + 1] @ w["W_O"][head]
    return out


@pytest.mark.parametrize(
    "attn", [PLAIN, replace(PLAIN, window=3), replace(PLAIN, softcap=1.0), replace(PLAIN, scale=2.0)]
)
def test_attention_equals_the_loop_over_heads_and_queries(attn):
    x, weights = draws(2, LENGTH, D_MODEL), parts(attn)
    out, _ = run(x, attn, weights)
    plain = {name: value.numpy() for name, value in weights.items()}
    want = np.stack([by_hand(row, attn, plain) for row in x.numpy()])
    assert np.allclose(out.numpy(), want, rtol=0, atol=1e-12)


def test_grouped_heads_equal_a_key_and_value_head_copied_for_each_query_head():
    x, weights = draws(1, LENGTH, D_MODEL), parts(PLAIN)
    grouped, _ = run(x, PLAIN, weights)
    copied = {n: w.repeat_interleave(2, dim=0) if n[-1] in "KV" else w for n, w in weights.items()}
    alone, _ = run(x, replace(PLAIN, n_kv_heads=4), copied)
    assert torch.allclose(grouped, alone, rtol=0, atol=1e-13)


def test_without_causality_every_query_sees_every_key():
    seen = visible(replace(PLAIN, causal=False), 4, None, "cpu")
    assert seen.all()


def test_a_window_lets_a_position_see_itself_and_the_ones_just_before():
    seen = visible(replace(PLAIN, window=2), 4, None, "cpu")[0, 0]
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_padding_is_never_attended_to():
    mask = torch.tensor([[True, True, False, True]])
    _, seen = run(draws(1, 4, D_MODEL), PLAIN, parts(PLAIN), mask)
    pattern = seen["pattern"][0]
    assert torch.equal(pattern[:, 3, 2], torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(pattern.sum(-1), torch.ones(4, 4, dtype=torch.float64))


def test_a_query_that_may_see_nothing_gives_numbers():
    mask = torch.tensor([[False, True]])
    out, seen = run(draws(1, 2, D_MODEL), PLAIN, parts(PLAIN), mask)
    assert out.isfinite().all()
    assert seen["pattern"][0, 0, 1].tolist() == [0, 1]


def test_scores_are_captured_before_the_mask_and_after_the_cap():
    attn = replace(PLAIN, softcap=1.0)
    _, seen = run(draws(1, LENGTH, D_MODEL), attn, parts(attn))
    assert seen["scores"].isfinite().all()
    assert 0.99 < seen["scores"].abs().max() <= 1


def test_q_is_captured_before_its_norm_and_q_turned_after_norm_and_turn():
    attn = replace(PLAIN, d_head=4, n_kv_heads=4, qk_norm=Norm("rms", 1e-6), rotary=Rotary(4, 10.0))
    x, weights = draws(1, LENGTH, D_MODEL), parts(attn)
    weights["q_norm.gain"] = 2 * torch.ones(4, dtype=torch.float64)
    _, seen = run(x, attn, weights)
    assert torch.allclose(seen["q"], torch.einsum("bpm,hmd->bphd", x, weights["W_Q"]) + weights["b_Q"])
    # A turn keeps lengths, and the norm sets them: gain 2 times √d_head = 2.
    assert torch.allclose(seen["q_turned"].norm(dim=-1), torch.tensor(4.0, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(seen["k_turned"].norm(dim=-1), torch.tensor(2.0, dtype=torch.float64), atol=1e-5)


def test_gradients_through_scores_and_softmax_equal_finite_differences(slopes):
    attn = replace(PLAIN, softcap=2.0)
    q, k = draws(1, 5, 4, 3), draws(1, 5, 2, 3, seed=1)
    seen = visible(attn, 5, None, "cpu")
    for f, x in (
        (lambda q: score(q, k, attn), q),
        (lambda k: score(q, k, attn), k),
        (lambda s: weigh(s, seen), score(q, k, attn)),
    ):
        exact, measured = slopes(f, x)
        assert exact == pytest.approx(measured, rel=1e-10, abs=1e-10)
