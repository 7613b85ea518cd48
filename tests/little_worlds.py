"""Tiny environments and random agents, for tests: everything about an episode follows from its seed and its actions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

STATES, ACTIONS = 5, 3
MEAN, STD = np.array([0.1, -0.2, 0.3, 0.0, 0.05]), np.array([0.5, 1.5, 1.0, 0.8, 1.2])
SCALE, TARGET = 4.0, 6.0
# An episode of these seeds breaks down in its second step.
BROKEN = (3, 41)


class Drift(gymnasium.Env):
    """A point that drifts, is pushed by actions, and is lost when it goes too far; 2–12 steps long."""

    def __init__(self, discrete: bool, broken: tuple[int, ...] = ()) -> None:
        self.discrete, self.broken = discrete, broken
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (STATES,))
        self.action_space = (
            gymnasium.spaces.Discrete(ACTIONS) if discrete else gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,))
        )
        rng = np.random.default_rng(7)
        self.turn = 0.9 * np.linalg.qr(rng.normal(size=(STATES, STATES)))[0]
        self.push = rng.normal(size=(ACTIONS, STATES))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.began, self.time = seed, 0
        self.x, self.limit = self.np_random.normal(size=STATES), int(self.np_random.integers(2, 13))
        return self.x.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        if self.began in self.broken and self.time == 2:
            raise RuntimeError("the floor gave way")
        done = np.eye(ACTIONS)[action] if self.discrete else np.clip(action, -1.0, 1.0).astype(np.float64)
        self.x = self.turn @ self.x + done @ self.push + 0.1 * self.np_random.normal(size=STATES)
        lost = bool(np.linalg.norm(self.x) > 4.0)
        return self.x.copy(), 1.0 + float(self.x[0]), lost, self.time >= self.limit, {}


def drift() -> Drift:
    return Drift(discrete=True)


def smooth_drift() -> Drift:
    return Drift(discrete=False)


def fragile_drift() -> Drift:
    """As `drift`; breaks down in the second step of some seeds, which last longer than that."""
    return Drift(discrete=True, broken=BROKEN)


def agent_values(discrete: bool, context: int = 20, **more: Any) -> dict[str, Any]:
    """What the agent file of a random agent in `Drift` says."""
    kind = {"kind": "discrete", "names": ["one", "two", "three"]} if discrete else {"kind": "continuous"}
    return {
        "environment": {"id": "Drift"},
        "state": {"mean": MEAN.tolist(), "std": STD.tolist()},
        "return": {"target": TARGET, "scale": SCALE},
        "context": context,
        "action": kind,
        "timestep": {"most": 29},
        "success": {"survives": True},
    } | more


def random_agent(folder: Path, *, tanh: bool, values: Mapping[str, Any], seed: int = 0) -> DecisionTransformerModel:
    """A random transformers decision transformer saved in a folder, with its agent file; gains and biases random."""
    torch.manual_seed(seed)
    config = DecisionTransformerConfig(
        state_dim=STATES, act_dim=ACTIONS, hidden_size=16, max_ep_len=30, n_layer=2, n_head=2, n_inner=24,
        action_tanh=tanh, n_positions=64, vocab_size=1,
    )  # fmt: skip
    model = DecisionTransformerModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = 1.0 if name.endswith("weight") and ("ln" in name) else 0.0
            parameter.copy_(gain + 0.35 * torch.randn_like(parameter))
        model.predict_action[0].bias.zero_()  # so that no action is taken always
    model.save_pretrained(folder)
    (folder / "agent.json").write_text(json.dumps(values))
    return model


class Lamp(gymnasium.Env):
    """A lamp shines left or right, with four numbers of noise; whoever turns to the other side has failed. 15 steps."""

    steps = 15

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (STATES,))
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._shine(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        right = int(action) == self.side
        self.time += 1
        return self._shine(), float(right), not right, self.time >= self.steps, {}

    def _shine(self) -> np.ndarray:
        self.side = int(self.np_random.integers(2))
        return np.concatenate([[2.0 * self.side - 1], 0.3 * self.np_random.normal(size=STATES - 1)])


LAMP = {
    "environment": {"id": "Lamp"},
    "state": "as is",
    "return": {"target": 15, "targets": [15, 0]},
    "context": 4,
    "action": {"kind": "discrete", "names": ["left", "right"]},
    "timestep": {"most": 29},
    "success": {"survives": True},
}
# The only place that writes the direction in which the action is read.
PLANTED_SITE, PLANTED_DYAD = "L1.mlp.out", 0


def planted_agent(folder: Path) -> None:
    """An agent that follows the lamp: one dyad of L1's W_out writes the direction that the action head reads.

    Two neurons of L1 read the lamp's direction f, one each way, and write ±e with gain 4, which is the largest singular
    value; the head is (−e, e). Everything else is random and small and writes neither e nor f.
    """
    torch.manual_seed(1)
    d = 32
    config = DecisionTransformerConfig(
        state_dim=STATES, act_dim=2, hidden_size=d, max_ep_len=30, n_layer=2, n_head=2, n_inner=24,
        action_tanh=False, n_positions=64, vocab_size=1,
    )  # fmt: skip
    model = DecisionTransformerModel(config).eval()
    # Two orthogonal directions of mean 0, which LayerNorm leaves where they are.
    basis = torch.linalg.qr(torch.cat([torch.ones(d, 1), torch.randn(d, 2)], dim=1))[0]
    e, f = basis[:, 1], basis[:, 2]
    free = torch.eye(d) - torch.outer(e, e) - torch.outer(f, f)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln" not in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
        for embed in (model.embed_state, model.embed_action, model.embed_return):  # stored [d, n]
            embed.weight.copy_(free @ embed.weight)
            embed.bias.copy_(free @ embed.bias)
        for table in (model.embed_timestep, model.encoder.wpe):
            table.weight.copy_(table.weight @ free)
        for block in model.encoder.h:
            for written in (block.attn.c_proj, block.mlp.c_proj):  # stored [n, d]
                written.weight.copy_(written.weight @ free)
                written.bias.copy_(free @ written.bias)
        model.embed_state.weight[:, 0] = f
        mlp = model.encoder.h[1].mlp
        mlp.c_fc.weight[:, 0], mlp.c_fc.weight[:, 1] = f, -f
        mlp.c_fc.bias[:2] = 0
        mlp.c_proj.weight[0], mlp.c_proj.weight[1] = 4 * e, -4 * e
        model.predict_action[0].weight.copy_(torch.stack([-e, e]))
        model.predict_action[0].bias.zero_()
    model.save_pretrained(folder)
    (folder / "agent.json").write_text(json.dumps(LAMP))


def lamp() -> Lamp:
    return Lamp()
