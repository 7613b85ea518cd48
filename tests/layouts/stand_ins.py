"""Four checkpoints that may not be at hand: their layouts, noise of their shapes, and what they compute by hand.

The forward passes are written from the cards of the models, on the tensors as they are stored.
"""

import tomllib
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
SHAPES = tomllib.loads((HERE / "shapes.toml").read_text())
PLANTED = [
    (model, plant["mistake"], plant["words"], plant["caught"])
    for model, plants in tomllib.loads((HERE / "planted.toml").read_text()).items()
    for plant in plants
]
Tensors = dict[str, np.ndarray]


def layout(model: str) -> str:
    """The text of the model's layout.toml."""
    return (HERE / f"{model}.toml").read_text()


def with_words(text: str, words: dict[str, str]) -> str:
    """A layout in which these tensors are declared in other words: lines replaced, or added at the end."""
    lines = text.splitlines()
    for tensor, value in words.items():
        line = f'"{tensor}" = "{value}"'
        places = [i for i, old in enumerate(lines) if old.startswith(f'"{tensor}" =')]
        lines = [line if i in places else old for i, old in enumerate(lines)] + ([] if places else [line])
    return "\n".join(lines)


def noise(model: str, seed: int = 0) -> Tensors:
    """Random tensors of the model's names and shapes, float64; matrices of gain about 1, so that nothing vanishes."""
    rng, shapes, made = np.random.default_rng(seed), dict(SHAPES[model]), {}
    blocks = shapes.pop("blocks")
    for pattern, shape in shapes.items():
        for name in dict.fromkeys(pattern.replace("{i}", str(i)) for i in range(blocks)):
            made[name] = rng.normal(size=shape) * (max(shape) ** -0.5 if len(shape) > 1 else 0.3)
    return made


def cartpole_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two episodes of five steps."""
    return {
        "state": rng.normal(size=(2, 5, 4)),
        "action": rng.integers(0, 2, (2, 5)),
        "return": rng.normal(size=(2, 5)),
        "time": rng.integers(0, 999, (2, 5)),
    }


def cartpole(t: Tensors, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Action logits at every step: the sum of four embeddings, then torch.nn.TransformerEncoder."""
    x = inputs["state"] @ t["state_embed.weight"].T + t["state_embed.bias"]
    x = x + inputs["return"][..., None] * t["return_embed.weight"][:, 0] + t["return_embed.bias"]
    x = x + t["action_embed.weight"][inputs["action"]] + t["time_embed.weight"][inputs["time"]]
    layer = nn.TransformerEncoderLayer(64, 2, 256, dropout=0.0, batch_first=True, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    lead = "transformer."
    encoder.load_state_dict({k.removeprefix(lead): torch.tensor(v) for k, v in t.items() if k.startswith(lead)})
    with torch.no_grad():
        final = encoder(torch.tensor(x)).numpy()
    return final @ t["action_head.weight"].T + t["action_head.bias"]


def modadd_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Six pairs of numbers below 59."""
    return {"token": rng.integers(0, 59, (6, 2))}


def modadd(t: Tensors, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Logits at both positions: q = W_Q x, heads side by side before W_O, no mask, no norm."""
    lead, x = "blocks.0.", t["embed.W_E"].T[inputs["token"]] + t["pos_embed.W_pos"]
    q, k, v = (np.einsum("hdm,bpm->bhpd", t[f"{lead}attn.W_{letter}"], x) for letter in "QKV")
    pattern = _softmax(np.einsum("bhpd,bhkd->bhpk", q, k) / np.sqrt(32))
    heads = np.einsum("bhpk,bhkd->bphd", pattern, v)
    x = x + heads.reshape(*x.shape[:2], 128) @ t[f"{lead}attn.W_O"].T
    hidden = np.maximum(x @ t[f"{lead}mlp.W_in"].T + t[f"{lead}mlp.b_in"], 0)
    x = x + hidden @ t[f"{lead}mlp.W_out"].T + t[f"{lead}mlp.b_out"]
    return x @ t["unembed.W_U"]


def memory_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Three timesteps without the last action."""
    return _agent_inputs(rng, steps=3, states=980, actions=8)


def obstacles_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One timestep without an action."""
    return _agent_inputs(rng, steps=1, states=147, actions=4)


def minigrid(t: Tensors, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Action logits at every token: return, state, action interleaved; TransformerLens blocks, norms if stored."""
    x = _interleaved(t, inputs)
    x = x + t["transformer.pos_embed.W_pos"][: x.shape[1]]
    blocks = sum(name.endswith("attn.W_Q") for name in t)
    for i in range(blocks):
        b = {k.removeprefix(f"transformer.blocks.{i}."): v for k, v in t.items() if f".blocks.{i}." in k}
        x = x + _attention(b, _norm(x, b.get("ln1.w"), b.get("ln1.b")))
        y = _norm(x, b.get("ln2.w"), b.get("ln2.b"))
        if "mlp.W_gate" in b:
            hidden = np.maximum(y @ b["mlp.W_gate"], 0) * (y @ b["mlp.W_in"]) + b["mlp.b_in"]
        else:
            hidden = np.maximum(y @ b["mlp.W_in"] + b["mlp.b_in"], 0)
        x = x + hidden @ b["mlp.W_out"] + b["mlp.b_out"]
    x = _norm(x, t.get("transformer.ln_final.w"), t.get("transformer.ln_final.b"))
    return x @ t["action_predictor.weight"].T + t["action_predictor.bias"]


MODELS = {
    "dt-cartpole": (cartpole, cartpole_inputs, "action"),
    "dt-minigrid-memory": (minigrid, memory_inputs, "action"),
    "dt-minigrid-obstacles": (minigrid, obstacles_inputs, "action"),
    "modadd59-clock": (modadd, modadd_inputs, "token"),
}


def _agent_inputs(rng: np.random.Generator, steps: int, states: int, actions: int) -> dict[str, np.ndarray]:
    return {
        "return": rng.normal(size=(2, steps)),
        "state": rng.normal(size=(2, steps, states)),
        "action": rng.integers(0, actions, (2, steps - 1)),
        "time": rng.integers(0, 1001, (2, steps)),
    }


def _interleaved(t: Tensors, inputs: dict[str, np.ndarray]) -> np.ndarray:
    returns = inputs["return"][..., None] * t["reward_embedding.0.weight"][:, 0]
    states = inputs["state"] @ t["state_embedding.weight"].T
    actions = t["action_embedding.0.weight"][inputs["action"]]
    time = t["time_embedding.weight"][inputs["time"]]
    rows = []
    for step in range(states.shape[1]):
        rows += [returns[:, step] + time[:, step], states[:, step] + time[:, step]]
        rows += [actions[:, step] + time[:, step]] if step < actions.shape[1] else []
    return np.stack(rows, axis=1)


def _attention(b: Tensors, x: np.ndarray) -> np.ndarray:
    q, k, v = (np.einsum("bpm,hmd->bhpd", x, b[f"attn.W_{c}"]) + b[f"attn.b_{c}"][:, None] for c in "QKV")
    scores = np.einsum("bhpd,bhkd->bhpk", q, k) / np.sqrt(q.shape[-1])
    future = np.triu(np.ones(scores.shape[-2:], bool), 1)
    z = np.einsum("bhpk,bhkd->bhpd", _softmax(np.where(future, -np.inf, scores)), v)
    return np.einsum("bhpd,hdm->bpm", z, b["attn.W_O"]) + b["attn.b_O"]


def _norm(x: np.ndarray, gain: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray:
    if gain is None:
        return x
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + bias


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
