"""A straight effect is what reaches the outputs when later blocks see the stream as it was: held to dense algebra."""

import numpy as np
import pytest
import torch

import covector
from covector.io.agent_file import parse_agent
from covector.model.overlay import Change, Update
from covector.run.decoder import Decoder
from covector.run.direct import straight_values, writes_straight
from covector.run.edited import laid_over
from covector.run.episodes import Stage, play
from covector.run.replay import Moments, moments, values
from little_worlds import agent_values, random_agent, smooth_drift


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Moments]:
    folder = tmp_path_factory.mktemp("agent")
    random_agent(folder, tanh=True, values=agent_values(discrete=False, context=3))
    agent = parse_agent(agent_values(discrete=False, context=3), "test")
    decoder = Decoder(covector.open(folder).stored, torch.float64)
    played = play(decoder, Stage(agent, smooth_drift), range(4), agent.target, keep=True)
    return decoder, moments(agent, decoder.spec, played, 10**6)


def change(decoder: Decoder, name: str, head: int | None = None) -> Change:
    rng = np.random.default_rng(3)
    shape = decoder.weights[name].shape[-2:]
    return Change((Update(name, rng.normal(size=(shape[0], 1)), 0.3 * rng.normal(size=(1, shape[1])), head),))


def test_behind_the_last_sublayer_straight_is_all(bench: tuple[Decoder, Moments]) -> None:
    decoder, seen = bench
    edit = change(decoder, "L1.W_out")
    assert straight_values(decoder, seen, [edit])[0] == pytest.approx(values(laid_over(decoder, edit), seen), abs=1e-12)


@pytest.mark.parametrize(("name", "head"), [("L0.W_out", None), ("L0.W_O", 1), ("L1.W_O", 0)])
def test_elsewhere_it_is_the_clean_stream_and_what_the_change_adds(
    bench: tuple[Decoder, Moments], name: str, head: int | None
) -> None:
    decoder, seen = bench
    edit = change(decoder, name, head)
    found, done = straight_values(decoder, seen, [edit])[0], 0
    layer, role = name.split(".")
    hook = f"{layer}.z" if role == "W_O" else f"{layer}.mlp_post"
    (update,) = edit.updates
    gain, bias = (decoder.weights[f"final_norm.{x}"].astype(np.float64) for x in ("gain", "bias"))
    W, b = (decoder.weights[f"out.action.{x}"].astype(np.float64) for x in ("W", "b"))
    for sight in seen.sights:
        run = decoder.run(sight.inputs, mask=sight.mask, capture=[hook, "L1.resid_post"])
        x = run.cache[hook].numpy()
        x = x if head is None else x[:, :, head]
        stream = run.cache["L1.resid_post"].numpy() + x @ update.delta
        stream = stream[np.arange(len(stream)), sight.last]
        centred = stream - stream.mean(axis=1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * gain + bias
        expected = np.tanh(normed @ W + b)
        assert found[done : done + len(stream)] == pytest.approx(expected, abs=1e-10)
        done += len(stream)
    total = values(laid_over(decoder, edit), seen)
    assert np.abs(found - total).max() > 1e-3, "later parts answer to this change, so the two must differ"


def test_it_is_not_defined_for_what_does_not_write_the_stream(bench: tuple[Decoder, Moments]) -> None:
    decoder, _ = bench
    assert writes_straight(decoder, change(decoder, "L0.W_out"))
    assert not writes_straight(decoder, change(decoder, "L0.W_in"))
