"""Decision transformer layout: GPT-2 blocks over return, state and action, a place in the sequence each.

A timestep is three positions: R₁ s₁ a₁ R₂ s₂ a₂ …. Each gets the embedding of its timestep, then a LayerNorm; the
position table is added afterwards, and always its row 0, since transformers passes position 0 everywhere. The next
action is read where the state stands, the next state and return where the action stands.
"""

from covector.arch import gpt2
from covector.arch.config import Config
from covector.arch.family import Family
from covector.model.spec import Assembly, Input, ModelSpec, Norm, Output

TENSORS = {
    "embed_return.weight": "in.return.W: d_model return",
    "embed_return.bias": "in.return.b: d_model",
    "embed_state.weight": "in.state.W: d_model state",
    "embed_state.bias": "in.state.b: d_model",
    "embed_action.weight": "in.action.W: d_model action",
    "embed_action.bias": "in.action.b: d_model",
    "embed_timestep.weight": "in.timestep.W: timestep d_model",
    "embed_ln.weight": "embed_norm.gain: d_model",
    "embed_ln.bias": "embed_norm.bias: d_model",
    **{f"encoder.{name}": words for name, words in gpt2.TENSORS.items() if not name.startswith("wte")},
    # The token embedding of the GPT-2 inside: nothing ever looks a token up.
    "encoder.wte.weight": "-",
    "predict_state.weight": "out.state.W: state d_model",
    "predict_state.bias": "out.state.b: state",
    "predict_action.0.weight": "out.action.W: action d_model",
    "predict_action.0.bias": "out.action.b: action",
    "predict_return.weight": "out.return.W: return d_model",
    "predict_return.bias": "out.return.b: return",
}
MASKS = (r"(decision_transformer\.)?encoder\.h\.\d+\.attn\.(bias|masked_bias)",)
# torch's default for embed_ln; the config's epsilon is for the blocks.
EMBED_EPS = 1e-5


def spec(config: Config) -> ModelSpec:
    """Anatomy of a decision transformer with continuous states and actions."""
    d, n_state, n_action = config.need("hidden_size"), config.need("state_dim"), config.need("act_dim")
    # Never used: see TENSORS.
    config.get("vocab_size")
    tanh = "tanh" if config.get("action_tanh", True) else None
    inputs = (Input("return", 1, "linear"), Input("state", n_state, "linear"), Input("action", n_action, "linear"))
    return ModelSpec(
        family="decision_transformer",
        d_model=d,
        blocks=gpt2.blocks(_as_gpt2(config)),
        assembly=Assembly(
            "interleaved",
            inputs,
            time=Input("timestep", config.get("max_ep_len", 4096), "lookup"),
            positions="zero",
            norm=Norm("layer", EMBED_EPS),
            norm_before_positions=True,
        ),
        outputs=(
            Output("action", n_action, activation=tanh, at="state"),
            Output("state", n_state, at="action"),
            Output("return", 1, at="action"),
        ),
        n_ctx=config.get("n_positions", 1024),
        final_norm=Norm("layer", config.get("layer_norm_epsilon", 1e-5)),
    )


def _as_gpt2(config: Config) -> Config:
    """The same config under GPT-2's names and with this family's defaults; keys used in it count as used here."""
    named = {"activation_function": "relu", "n_layer": 3, "n_head": 1} | config.values
    view = Config(named | {"n_embd": config.need("hidden_size")}, config.where)
    view.used = config.used
    return view


def tensors(_: Config) -> dict[str, str]:
    """Stored names and their layouts: the same for every config."""
    return dict(TENSORS)


def tiny() -> dict[str, object]:
    """A config of a few thousand parameters, for proofs."""
    return {
        "model_type": "decision_transformer",
        "state_dim": 5,
        "act_dim": 3,
        "hidden_size": 20,
        "max_ep_len": 30,
        "n_positions": 40,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 36,
        "scale_attn_by_inverse_layer_idx": True,
    }


FAMILY = Family(
    "decision_transformer",
    ("decision_transformer",),
    spec,
    tensors,
    ("decision_transformer.",),
    MASKS,
    "DecisionTransformerModel",
    tiny,
)
