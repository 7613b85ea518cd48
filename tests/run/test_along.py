"""What passes hook points along a text."""

import numpy as np
import pytest
import torch

import covector
from covector.arch.toy import random_model
from covector.errors import BadRequest, FrameUnavailable
from covector.model.opened import Model
from covector.run.along import along
from covector.run.decoder import Decoder
from covector.run.text import text_ids

TEXT = " ".join(["the king had a red hat and the queen a blue one"] * 60)


@pytest.fixture(scope="module")
def demo() -> Model:
    return covector.open("demo-lm")


def test_rows_are_positions_in_the_order_of_the_text_without_the_first_of_each_window(demo: Model) -> None:
    """Against one window at a time, captured by hand in float64."""
    ids, length = text_ids(demo, TEXT), min(demo.spec.n_ctx, 256)
    assert len(ids) > 2 * length, "the text has to fill several windows"
    decoder, wanted = Decoder(demo.weights), []
    for start in range(0, len(ids) - 1, length):
        piece = torch.from_numpy(ids[start : start + length][None])
        wanted.append(decoder.run(piece, capture=("L2.attn_normed", "L1.z")).cache)
    told = along(demo, TEXT, ("L2.attn_normed", "L1.z"), dtype=torch.float64)
    for name, rows in told.items():
        by_hand = np.concatenate([one[name][0, 1:].numpy() for one in wanted])
        np.testing.assert_allclose(rows, by_hand, atol=1e-9)
    assert told["L1.z"].shape[1:] == (demo.spec.n_heads, demo.spec.blocks[1].attn.d_head)


def test_no_more_positions_than_asked_for_are_read(demo: Model) -> None:
    first = along(demo, TEXT, ("L0.attn_normed",), most=40)["L0.attn_normed"]
    every = along(demo, TEXT, ("L0.attn_normed",))["L0.attn_normed"]
    assert len(first) == 40
    np.testing.assert_array_equal(first, every[:40])


def test_what_cannot_run_is_refused(demo: Model) -> None:
    with pytest.raises(BadRequest, match="expected most >= 2"):
        along(demo, TEXT, ("L0.z",), most=1)
    with pytest.raises(FrameUnavailable, match="expected a frame that keeps it"):
        along(demo.framed("tl_demo"), TEXT, ("L0.z",))
    with pytest.raises(BadRequest, match="has no tokenizer"):
        along(covector.open(random_model()), TEXT, ("L0.z",))
