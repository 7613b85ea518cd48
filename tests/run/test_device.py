"""A model runs where it is told to, whole: everything it meets is there, and what comes back is what the CPU gives.

There is no graphics card in these tests: `far_device` stands in for one (tests/far_device.py).
"""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import covector
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.render import Table
from covector.run.decoder import Decoder
from covector.run.device import placed
from covector.run.prompts import Pair
from far_device import FAR, FarTensor, far_device

ROOT = Path(__file__).resolve().parents[2]
TASK, OTHER = "' she' - ' he'", "' her' - ' him'"
TEMPLATE = "Yesterday [NAME] was happy because"
NAMES = (["Mary", "Lisa", "Emma", "Laura"], ["John", "Mark", "Paul", "Jack"])
TEXT = "Mary was happy because she was there. John was happy because he was there. " * 4


@pytest.fixture(scope="module")
def model() -> Model:
    return covector.open("demo-lm")


def prompts(model: Model) -> list[Pair]:
    return covector.fill_template(model, TEMPLATE, {"NAME": NAMES})


def _patched(**options: Any) -> Callable[[Model], Table]:
    return lambda model: covector.patch(model, TASK, prompts(model), **options)


def _steered(model: Model) -> Table:
    from covector.analyses.steer import steer

    return steer(model, [TASK], prompts(model), path="L0H0>out", token="NAME", scales=[1.0], draws=2, text=TEXT)


def _debiased(model: Model) -> Table:
    from covector.analyses.debias import debias

    return debias(model, [TASK], [OTHER], prompts(model), draws=2, heads=1)


def _predicted(path: str) -> Callable[[Model], Table]:
    def run(model: Model) -> Table:
        from covector.analyses.predict import predict_heads
        from covector.analyses.predict_path import predict_path

        some = prompts(model)
        if path == "heads":
            return predict_heads(model, TASK, some[:2], some[2:])
        return predict_path(model, TASK, path, some[:2], some[2:])

    return run


def _other(name: str) -> Callable[[Model], Table]:
    def run(model: Model) -> Table:
        from covector.analyses.attend import attend
        from covector.analyses.fires import fires
        from covector.analyses.layernorm import layernorm
        from covector.analyses.neurons import neurons
        from covector.analyses.probes import probes
        from covector.analyses.regions import regions, segments

        some = prompts(model)
        asked: dict[str, Callable[[], Table]] = {
            "paths": lambda: covector.paths(model, TASK, some, expansions=5),
            "shares": lambda: covector.shares(model, TASK, some),
            "layernorm": lambda: layernorm(model, TASK, some),
            "neurons": lambda: neurons(model, TASK, some, top=3, source="mean"),
            "regions": lambda: regions(model, TASK, "L2.mlp", TEXT, most=40),
            "segments": lambda: segments(model, TASK, "L2.mlp", some),
            "probes": lambda: probes(model, TASK, "L0H0@NAME", some[:3], some[3:], draws=2),
            "attend": lambda: attend(model, "L0H0", some[0], None, "end", draws=20),
            "fires": lambda: fires(model, "L0H0:0", TEXT, draws=19),
        }
        return asked[name]()

    return run


def _attributed(by: str) -> Callable[[Model], Table]:
    return lambda model: covector.attribute(model, TASK, prompts(model)[0], by=by)


RUNS: dict[str, Callable[[Model], Table]] = {
    **{f"patch {what}": _patched(what=what) for what in ("heads", "ov", "qk", "resid", "pattern", "k", "mlp")},
    "patch integrated": _patched(guess="integrated", steps=2),
    "patch softmax": _patched(what="k", guess="softmax"),
    "patch mean": _patched(source="mean", slots=("NAME",)),
    "patch direct": _patched(route=()),
    "patch to receivers": _patched(route=("L2H3", "L2.mlp")),
    **{f"attribute {by}": _attributed(by) for by in ("component", "head", "token", "lens")},
    **{name: _other(name) for name in
       ("paths", "shares", "layernorm", "neurons", "regions", "segments", "probes", "attend", "fires")},
    "predict heads": _predicted("heads"),
    "predict path": _predicted("L0H0@NAME"),
    "steer": _steered,
    "debias": _debiased,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_analysis_that_runs_a_model_gives_on_another_device_what_it_gives_on_the_cpu(
    name: str, model: Model
) -> None:
    here = RUNS[name](model)
    with far_device():
        there = RUNS[name](model.on(FAR))
    assert [c.name for c in there.columns] == [c.name for c in here.columns]
    for column in here.columns:
        ours, theirs = list(column.values), list(there[column.name])
        if any(isinstance(value, float) for value in ours):
            # Not bitwise: a sum may be taken over other strides.
            np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-11)
        else:
            assert theirs == ours
    assert there.meta["device"] == FAR
    assert "device" not in here.meta


def test_what_a_decoder_captures_stays_on_its_device(model: Model) -> None:
    with far_device():
        run = Decoder(model.weights, device=FAR).run(torch.tensor([[1, 2, 3]]), capture=["L1.z"])
    assert isinstance(run.logits, FarTensor)
    assert isinstance(run.cache["L1.z"], FarTensor)


def test_the_far_device_refuses_what_a_real_one_refuses() -> None:
    with far_device():
        far, near = torch.ones(3).to(FAR), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(far, near)
        with pytest.raises((RuntimeError, TypeError)):
            far.numpy()
        assert (far + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]


def test_every_decoder_that_an_analysis_makes_is_told_where_to_run() -> None:
    """What no test above runs is read: each `Decoder(…)` has a device (proofs compare two runners on the CPU)."""
    bare = []
    for path in sorted((ROOT / "src/covector").rglob("*.py")):
        if path.name == "proof.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Decoder":
                told = len(node.args) == 3 or any(k.arg == "device" for k in node.keywords)
                bare += [] if told else [f"{path.name}:{node.lineno}"]
    assert bare == []


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("gpu", "--device: expected cpu, cuda, cuda:N or mps, got 'gpu'"),
        ("cuda:x", "--device: expected cpu, cuda, cuda:N or mps, got 'cuda:x'"),
        ("cuda", r"--device cuda: expected a CUDA device, torch .* finds none here; use --device cpu"),
        ("mps", r"--device mps: expected a device that torch .* finds here, it finds none; use --device cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BadRequest, match=says):
        placed(device)


def test_the_devices_that_are_there_are_named_in_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(placed(name)) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(BadRequest, match=r"--device cuda:2: expected cuda:0 to cuda:1, this machine has no more"):
        placed("cuda:2")


def test_mps_runs_in_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert placed("mps", torch.float32).type == "mps"
    with pytest.raises(BadRequest, match="--device mps: expected float32, mps has no float64"):
        placed("mps")


PROMPTS = ["--template", "[N] is", "--fill", "N=Mary:John"]
COMMANDS: dict[str, list[str]] = {
    "patch": ["patch", "nowhere", TASK, *PROMPTS],
    "attribute": ["attribute", "nowhere", TASK, "--prompt", "Mary"],
    "steer": ["steer", "nowhere", TASK, *PROMPTS],
    "debias": ["debias", "nowhere", "--bias", TASK, "--keep", OTHER, *PROMPTS],
    "attend": ["attend", "nowhere", "L0H0", "--prompt", "Mary"],
    "fires": ["fires", "nowhere", "L0H0:0", "--text", "pyproject.toml"],
    "paths": ["observe", "paths", "nowhere", TASK, *PROMPTS],
    "shares": ["observe", "shares", "nowhere", TASK, *PROMPTS],
    "predict": ["observe", "predict", "nowhere", TASK, *PROMPTS],
    "layernorm": ["observe", "layernorm", "nowhere", TASK, *PROMPTS],
    "neurons": ["observe", "neurons", "nowhere", TASK, *PROMPTS],
    "regions": ["observe", "regions", "nowhere", TASK, "L2.mlp", *PROMPTS],
    "probes": ["observe", "probes", "nowhere", TASK, "L0H0@N", *PROMPTS],
    "study": ["study", "activations", "nowhere", "--text", "pyproject.toml"],
    "replicate obprop": ["replicate", "obprop", "nowhere"],
    "ioi": ["observe", "ioi", "nowhere"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_an_absent_device_before_they_look_for_the_model(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from covector.cli.main import run

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run([*COMMANDS[name], "--device", "cuda"]) == 2
    told = capsys.readouterr().err
    assert "--device cuda: expected a CUDA device" in told
    assert told.count("\n") == 1


def test_help_names_the_devices_without_importing_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from covector.cli.main import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "patch", "--help"], capture_output=True, text=True, env={"COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stderr
    assert "cuda:N" in done.stdout
