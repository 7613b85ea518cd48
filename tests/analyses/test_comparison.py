"""Comparing with somebody else's SVD of a place: in whatever frame, container and precision they made it."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from covector.analyses.compare import compare
from covector.errors import BadRequest, SpaceMismatch
from covector.linalg.relation import Relation
from covector.linalg.svd import SVD, svd
from covector.model.opened import Model
from random_checkpoints import random_model


def theirs(model: Model, frame: str, site: str, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What another program finds: LAPACK's SVD of the dense map in a frame, cut to its rank."""
    m = model.framed(frame).map(site)
    rank = svd(m).rank
    U, S, Vh = np.linalg.svd(np.asarray(m.dense(), dtype))
    return U[:, :rank], S[:rank], Vh[:rank]


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model("gpt2")


@pytest.mark.parametrize("site", ["L1H2.ov", "L1H2.qk", "L0.mlp.in", "L0.mlp.out", "unembed", "embed"])
@pytest.mark.parametrize("frame", ["raw", "raw+bias", "folded", "folded+bias", "gauge_fixed", "tl_demo"])
def test_the_frame_of_their_svd_is_found(model: Model, frame: str, site: str) -> None:
    found = compare(model, site, *theirs(model, frame, site))
    assert found.frame is not None
    # A frame may leave a map as it is; then the first of those that do is named.
    same = model.framed(found.frame).map(site).dense()
    np.testing.assert_allclose(same, model.framed(frame).map(site).dense(), atol=1e-12)
    assert found.relation.kind in ("sign", "same")
    assert found.words.startswith(f"{found.site}, in frame {found.frame}: ")


def test_a_model_with_bias_rows_is_compared_without_them_too(model: Model) -> None:
    found = compare(model.framed("folded+bias"), "L1H2.ov", *theirs(model, "folded", "L1H2.ov"))
    assert found.frame == "folded"
    assert compare(model, "L1H2.ov", *theirs(model, "raw+bias", "L1H2.ov")).frame == "raw+bias"


def test_arrays_that_fit_no_frame_are_refused_and_those_that_fit_one_are_not(model: Model) -> None:
    U, S, Vh = theirs(model, "raw", "L1H2.ov")
    with pytest.raises(SpaceMismatch, match="which fit no reading of this map"):
        compare(model, "L1H2.ov", U[:-1], S, Vh)
    with pytest.raises(SpaceMismatch, match="expected U and Vh of two axes and S of one"):
        compare(model, "L1H2.ov", U, np.diag(S), Vh)
    # A row more fits the maps with bias, of which none is theirs.
    extra = compare(
        model, "L1H2.ov", np.linalg.qr(np.random.default_rng(0).standard_normal((len(U) + 1, S.size)))[0], S, Vh
    )
    assert (extra.frame, extra.relation.kind) == (None, "different")


def test_another_matrix_is_in_no_frame(model: Model) -> None:
    found = compare(model, "L1H2.ov", *theirs(model, "raw", "L1H1.ov"))
    assert (found.frame, found.relation.kind) == (None, "different")
    assert "in no frame that this model has: different from dyad" in found.words


def test_a_frame_that_leaves_everything_open_does_not_hide_one_that_explains(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[SVD] = []
    arrays = theirs(model, "raw", "L1H2.ov")
    real = compare(model, "L1H2.ov", *arrays).relation

    def relation(ours: SVD, *arrays: np.ndarray, **options: object) -> Relation:
        tried.append(ours)
        kinds = {1: "undetermined", 2: "different", 3: kind}
        return dataclasses.replace(real, kind=kinds.get(len(tried), "different"))

    monkeypatch.setattr(sys.modules["covector.analyses.compare"], "relate", relation)
    for kind, frame in (("sign", "folded"), ("different", "raw")):
        tried.clear()
        found = compare(model, "L1H2.ov", *arrays)
        assert found.frame == frame
        assert found.relation.kind == ("sign" if kind == "sign" else "undetermined")


def test_lists_whole_numbers_and_float32_are_taken(model: Model) -> None:
    arrays = theirs(model, "folded", "L1H2.ov")
    assert compare(model, "L1H2.ov", *(json.loads(json.dumps(a.tolist())) for a in arrays)).frame == "folded"
    single = theirs(model, "folded", "L1H2.ov", np.float32)
    assert compare(model, "L1H2.ov", *single).frame == "folded"
    listed = compare(model, "L1H2.ov", *(a.tolist() for a in single))
    assert listed.frame == "folded"
    assert "compared as float32" in listed.words
    whole = compare(
        model, "L1H2.ov", np.eye(len(arrays[0]), 2, dtype=int).tolist(), [2, 1], np.eye(2, len(arrays[0]), dtype=int)
    )
    assert whole.relation.kind == "different"
    with pytest.raises(BadRequest, match="expected real numbers for U, came complex128"):
        compare(model, "L1H2.ov", arrays[0] + 1j, *arrays[1:])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch_tensors_are_taken_whatever_they_track_and_hold(model: Model, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    arrays = theirs(model, "folded", "L1H2.ov")
    tensors = [torch.tensor(a, dtype=getattr(torch, dtype), requires_grad=True) for a in arrays]
    found = compare(model, "L1H2.ov", *tensors)
    assert (found.frame, found.relation.kind) == ("folded", "sign")
    assert all(t.requires_grad for t in tensors)
