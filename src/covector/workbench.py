"""The workbench: opens a model and hands its parts to analyses; what Python users and the faces call.

model = covector.open("gpt2")
model.spec, model.bases["token_out"], model.map("L9H6.ov")
"""

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covector.arch.adapter import AdaptedWeights, adapt
from covector.arch.config import Config
from covector.arch.family import family_of
from covector.arch.toy import TOYS
from covector.errors import BadRequest, MissingExtra, NotProven, UnsupportedConfig, UnsupportedFamily
from covector.io.agent_file import find_agent
from covector.io.checkpoint import Checkpoint, open_checkpoint
from covector.io.safetensors_file import SafetensorsFile
from covector.model.frames import Frame
from covector.model.opened import Model
from covector.model.weights import Weights
from covector.render import Table
from covector.study.agent import Agent, state_labels

if TYPE_CHECKING:
    from covector.run.hf_runner import HFRunner


def open(ref: Any, layout: str | Path | None = None, *, frame: str = "raw", strict: bool = False) -> Model:
    """Open a model without building it: tensors are read one by one, when they are asked for.

    `ref`: a hub name (``gpt2``, ``name@revision``), a local folder, ``demo-lm``, a transformers or a TransformerLens
    model in memory, canonical weights (of `covector.arch.toy`), or the name of a ready toy (``toy``,
    ``toy-induction``; a folder of that name is ``./toy``). `layout`: the ``layout.toml`` of a home-made
    model (default: the one beside the weights). `strict` refuses configuration keys that no adapter knows.

    Raises UnknownModel, HubUnreachable, UnsupportedFamily, UnsupportedConfig, CheckpointMismatch, CorruptCheckpoint,
    UnsafeCheckpoint, UnknownFrame, FrameUnavailable.
    """
    if isinstance(ref, Weights):
        model = Model(ref.spec.family, ref, ref, identity={"files": {}, "versions": versions()})
    elif isinstance(ref, str) and ref in TOYS:
        weights, labels = TOYS[ref]()
        model = Model(ref, weights, weights, labels={"token": labels}, identity={"files": {}, "versions": versions()})
    else:
        model = _open(open_checkpoint(ref, layout), layout, strict)
    return model if frame == "raw" else model.framed(frame)


def _open(checkpoint: Checkpoint, layout: str | Path | None, strict: bool) -> Model:
    model = _declared(checkpoint, checkpoint.layout) if checkpoint.layout else _known(checkpoint, strict)
    if layout is None:
        return model
    return dataclasses.replace(model, typed=f"{model.words} --layout {shlex.quote(str(layout))}")


def _known(checkpoint: Checkpoint, strict: bool) -> Model:
    """A model of a family that has an adapter."""
    config = Config(checkpoint.config, f"{checkpoint.where}/config.json")
    kind = checkpoint.config.get("model_type")
    if not kind:
        raise UnsupportedFamily(
            f"{checkpoint.where}: expected a config.json with a model_type, it has none; a home-made transformer opens "
            "with a layout.toml beside its weights or --layout FILE; see docs/layouts.md"
        )
    family = family_of(str(kind), checkpoint.where)
    spec, tensors = family.spec(config), family.tensors(config)
    unknown = config.unknown()
    if strict and unknown:
        raise UnsupportedConfig(
            f"{config.where}: --strict expects known keys only, these are unknown: {', '.join(unknown)}; "
            "leave --strict out if they do not change the function"
        )
    weights = adapt(spec, tensors, checkpoint.tensors, prefixes=family.prefixes, ignored=family.ignored)
    agent = None if checkpoint.vocabulary else find_agent(checkpoint.name, checkpoint.folder)
    labels = {"token": checkpoint.vocabulary.labels} if checkpoint.vocabulary else _agent_labels(agent)
    more: dict[str, Any] = {"unknown_keys": list(unknown)} if unknown else {}
    if agent and agent.untrained:
        more["untrained"] = list(agent.untrained)
    if family.notes:
        more |= family.notes(weights)
    return _opened(checkpoint, weights, labels, more)


def _agent_labels(agent: Agent | None) -> dict[str, tuple[str, ...]]:
    """Names of states and actions, where an agent file stands beside the weights or is known by the model's name."""
    return {} if agent is None else {"state": state_labels(agent), "action": agent.actions}


def _opened(
    checkpoint: Checkpoint, weights: AdaptedWeights, labels: Mapping[str, tuple[str, ...]], more: Mapping[str, Any]
) -> Model:
    identity = {
        "revision": checkpoint.revision or None,
        "files": dict(checkpoint.tensors.headers),
        "flags": dict(checkpoint.flags) or None,
        "versions": versions(),
        **more,
    }
    return Model(checkpoint.name, weights, weights, Frame(), labels, checkpoint.vocabulary, identity)


def _declared(checkpoint: Checkpoint, layout: Path) -> Model:
    """A home-made model, opened by its declaration."""
    from covector.arch.declared import declared

    weights, labels = declared(layout, checkpoint.tensors, str(layout))
    if checkpoint.vocabulary:
        labels = {"token": checkpoint.vocabulary.labels} | labels
    digest = hashlib.sha256(layout.read_bytes()).hexdigest()
    return _opened(checkpoint, weights, labels, {"layout": {"file": layout.name, "sha256": digest}})


def prove(
    ref: Any, layout: str | Path | None = None, *, strict: bool = False, dtype: str = "float64", seed: int = 0
) -> Table:
    """Prove that a checkpoint is read rightly: every linear piece, pattern, block and logit against transformers.

    One row per kind of piece. A declared layout has no judge of its own: it is proven against recorded pairs where the
    declaration names them. Raises NotProven, naming the first piece that fails, or saying that no independent judge
    exists; MissingExtra without torch and transformers.
    """
    try:
        from covector.analyses.proof import PRECISIONS, proof
        from covector.run.hf_load import load_judge
        from covector.run.proof import Recorded, prove_recorded
        from covector.run.proof import prove as compare_pieces
        from covector.run.random_inputs import proof_length, unexercised
    except ImportError as error:
        raise MissingExtra(
            f"--check runs the model: expected torch and transformers, {error.name} is missing; "
            "pip install 'covector[run]'"
        ) from error
    checkpoint = open_checkpoint(ref, layout)
    model = _open(checkpoint, layout, strict)
    if checkpoint.layout:
        inputs, expected = _recorded(checkpoint, checkpoint.layout)
        return proof(model, prove_recorded(model.stored, Recorded(inputs, expected)), "its recorded input/output pairs")
    if checkpoint.folder is None:
        raise _no_judge(checkpoint.name)
    family = family_of(str(checkpoint.config.get("model_type")), checkpoint.where)
    kind = PRECISIONS[dtype]
    judge = load_judge(checkpoint.folder, family.hf_class, dtype=kind)
    checks = compare_pieces(model.stored, judge, dtype=kind, seed=seed)
    left_out = unexercised(model.spec, proof_length(model.spec))
    return proof(model, checks, f"transformers' {family.hf_class}", left_out)


def transformers_runner(
    ref: Any, layout: str | Path | None = None, *, dtype: str = "float64", device: str = "cpu"
) -> "HFRunner":
    """The transformers model of a checkpoint under our hook names: a second runner beside the reference decoder.

    `ref`: a hub name, a local folder, ``demo-lm``, or a transformers model in memory (run as it is). Raises BadRequest
    for a model that transformers has no class for (declared layouts, toys), what `open` raises, and MissingExtra
    without torch and transformers.
    """
    try:
        from covector.run.hf_load import judge_of
        from covector.run.hf_runner import HFRunner
    except ImportError as error:
        raise MissingExtra(
            f"--runner transformers: expected torch and transformers, {error.name} is missing; "
            "pip install 'covector[run]'"
        ) from error
    if isinstance(ref, Weights) or (isinstance(ref, str) and ref in TOYS):
        raise _no_class(ref if isinstance(ref, str) else ref.spec.family)
    checkpoint = open_checkpoint(ref, layout)
    if checkpoint.layout:
        raise _no_class(checkpoint.name)
    weights = _open(checkpoint, layout, strict=False).stored
    hf_class = family_of(str(checkpoint.config.get("model_type")), checkpoint.where).hf_class
    judge = judge_of(ref, checkpoint.folder, hf_class, dtype=dtype, device=device)
    if judge is None:
        raise _no_class(checkpoint.name)
    return HFRunner(judge, weights)


def _no_class(name: str) -> BadRequest:
    return BadRequest(
        f"--runner transformers: {name} is declared or made here, transformers has no class that runs it; "
        "use --runner decoder"
    )


def _recorded(checkpoint: Checkpoint, layout: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and expected values that the declaration's [check] table finds in the file beside the weights."""
    from covector.arch.declared_check import arranged, recorded_names
    from covector.arch.declared_keys import read_declaration

    names = recorded_names(read_declaration(layout.read_text(encoding="utf-8"), str(layout)), str(layout))
    path = checkpoint.folder / names.file if checkpoint.folder and names else None
    if names is None or path is None or not path.exists():
        raise _no_judge(checkpoint.name)
    file = SafetensorsFile(path)
    tensors = {name: file.read(name) for name in file.entries}
    inputs = {name: arranged(words, tensors, str(layout)) for name, words in names.inputs.items()}
    return inputs, {hook: arranged(words, tensors, str(layout)) for hook, words in names.expected.items()}


def _no_judge(name: str) -> NotProven:
    return NotProven(
        f"{name}: not proven: no independent judge; names, shapes and use of every tensor agree. Record input/output "
        "pairs from the original program and name them in the layout's [check] table (docs/layouts.md)"
    )


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {"covector": own_version(), "numpy": np.__version__}


def own_version() -> str:
    """covector's version, from the installed package."""
    try:
        return version("covector")
    except PackageNotFoundError:
        return "not installed"
