"""A loader must prove itself: every piece of our reading of a checkpoint, against the model that owns it.

The decoder runs once in step with the judge. At each hook point that the judge shows, what the decoder computed from
the judge's own previous values is compared with the judge's value, and then replaced by it: so each piece (q from what
the real W_Q was given, the pattern from the real q and k, z from the real pattern and v, …) is judged alone, and the
first failure names the piece that is wrong. Then the decoder runs freely, and block outputs and logits are compared.
Norms are judged besides on rows so small that their eps speaks.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from covector.errors import BadRequest, NotProven
from covector.model.spec import ModelSpec, Norm
from covector.model.weights import Weights
from covector.run.assembly import read_out
from covector.run.decoder import Decoder
from covector.run.hf_runner import HFRunner
from covector.run.hooks import HOOKS, output_hook
from covector.run.pieces import normalize
from covector.run.random_inputs import proof_length, random_inputs


@dataclass(frozen=True)
class Tolerance:
    """Largest differences allowed, relative to the judge's largest value (at least 1).

    ``linear``: rounding of one product. ``step``: transformers keeps RMS norms, rotary tables, softmax and embedding
    scales in float32 whatever the model's precision. ``run``: those steps added up over all blocks.
    """

    linear: float
    step: float
    run: float


# float64: 1e-10 leaves six digits above eps * sqrt(d) for sums of any width; 1e-5 is 100 float32 roundings of 6e-8.
# float32: the judge's own rounding, eps * sqrt(d_mlp) ≈ 1e-5 per product, and an amplification of 10 over the blocks.
TOLERANCES = {torch.float64: Tolerance(1e-10, 1e-5, 1e-5), torch.float32: Tolerance(1e-4, 1e-4, 1e-3)}
# Recorded pairs are float64 from another program: the order of its sums is all that may differ, over all blocks.
RECORDED = 1e-9
# Mean squares of the probe rows: from far below any eps in use (1e-12) to ordinary activations.
_PROBE_SIZES = tuple(10.0**power for power in range(-14, 3))


@dataclass(frozen=True)
class Check:
    """One comparison: its name (a hook point, a norm, or ``run.`` and a hook point), and how far apart the two are.

    ``difference`` is the largest absolute difference over the larger of 1 and the reference's largest value; infinite
    when the shapes differ. ``worst`` says where it lies.
    """

    name: str
    compared: str
    difference: float
    tolerance: float
    worst: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within the tolerance."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Recorded:
    """Recorded pairs of a model that has no judge: inputs by name, and the values that another program computed.

    ``expected`` goes by hook name (``resid_in``, ``final_normed``, ``logits``, ``out.action``); ``logits@1`` stands
    for one position, counted from the end when negative.
    """

    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    mask: np.ndarray | None = None


def prove(
    weights: Weights,
    judge: PreTrainedModel | HFRunner,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Check]:
    """Every check of `weights` against the transformers model they were read from, in the order of the computation.

    Norms first, then each piece in step with the judge, then the free run. `dtype` is the judge's (the decoder
    computes in float64); random inputs by `seed` unless given: 12 positions, or just past a local window of up to 512
    (see `unexercised` for longer ones). Costs two forward passes of each; the judge is not changed.

    Raises BadRequest when the judge has another dtype, or attention that does not return its patterns.
    """
    runner = judge if isinstance(judge, HFRunner) else HFRunner(judge, weights)
    _check_judge(runner, dtype)
    allowed = TOLERANCES[dtype]
    given = dict(inputs) if inputs else random_inputs(weights.spec, length=proof_length(weights.spec), seed=seed)
    decoder, draw = Decoder(weights), torch.Generator().manual_seed(seed)
    norms = {name: norm for name, norm in weights.spec.norms().items() if name in runner.norms}
    with torch.no_grad():
        seen = runner.run(given, capture=runner.hooks)
        checks = [_probe(decoder, runner, name, norm, dtype, draw) for name, norm in norms.items()]
        checks += _in_step(decoder, given, seen.cache, allowed)
        checks += _free(decoder, given, seen.cache, runner.returned(given), allowed)
    return checks


def prove_recorded(weights: Weights, pairs: Recorded) -> list[Check]:
    """The decoder in float64 against recorded values, to 1e-9 of their largest (at least 1).

    Raises BadRequest for inputs that the model does not take, or a name that is no hook point.
    """
    expected = {_at_position(name): np.asarray(value) for name, value in pairs.expected.items()}
    inputs = {name: torch.tensor(value) for name, value in pairs.inputs.items()}
    mask = None if pairs.mask is None else torch.tensor(pairs.mask)
    with torch.no_grad():
        cache = Decoder(weights).run(inputs, mask=mask, capture={hook for hook, _ in expected}).cache
    checks = []
    for (hook, position), value in expected.items():
        ours = cache[hook] if position is None else cache[hook][:, position]
        name = hook if position is None else f"{hook}@{position}"
        checks.append(compare(name, "decoder against the recorded values", ours, torch.tensor(value), RECORDED))
    return checks


def first_failure(checks: Iterable[Check]) -> Check | None:
    """The first check that did not pass, in the order of the computation; None when all did."""
    return next((check for check in checks if not check.passed), None)


def require_proven(checks: Iterable[Check], where: str) -> None:
    """Raise NotProven, naming the first piece that failed, unless there are checks and all passed."""
    checks = list(checks)
    failed = first_failure(checks)
    if failed:
        raise NotProven(
            f"{where}: {failed.name}: expected {failed.compared} within {failed.tolerance:.0e}, they differ by "
            f"{failed.difference:.1e}{failed.worst and ' at ' + failed.worst}; the layout family does not fit this "
            "checkpoint"
        )
    if not checks:
        raise NotProven(f"{where}: expected at least one check, none was made; give recorded pairs or a judge")


def compare(name: str, compared: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Check:
    """One check of two tensors; shapes that differ, and values that are not numbers, fail."""
    if ours.shape != theirs.shape:
        shapes = f"shape {tuple(ours.shape)} beside {tuple(theirs.shape)}"
        return Check(name, compared, math.inf, tolerance, shapes)
    if not theirs.numel():
        return Check(name, compared, math.inf, tolerance, "nothing to compare")
    theirs = theirs.to(ours.dtype)
    apart = (ours - theirs).abs()
    largest = apart.max().item() / max(1.0, theirs.abs().max().item())
    place = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
    return Check(name, compared, math.inf if math.isnan(largest) else largest, tolerance, _place(name, place))


def _place(name: str, place: tuple[int, ...]) -> str:
    """Where in a tensor, in the words of its hook point."""
    role = name.partition("@")[0].rsplit(".", 1)[-1]
    axes = next((hook.axes.split() for hook in HOOKS if hook.name == role), [])
    if role == "pattern":
        axes = ["batch", "head", "query", "key"]
    if len(axes) != len(place):
        return f"index {', '.join(map(str, place))}"
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=True))


def _check_judge(runner: HFRunner, dtype: torch.dtype) -> None:
    if dtype not in TOLERANCES or runner.model.dtype != dtype:
        raise BadRequest(
            f"judge: expected a model in float64 or float32 and the same as dtype, got {runner.model.dtype} and "
            f"{dtype}; load it with load_judge(…, dtype=torch.float64)"
        )
    if not any(hook.endswith(".pattern") for hook in runner.hooks):
        raise BadRequest(
            "judge: expected eager attention, which returns its patterns, got "
            f"'{runner.model.config._attn_implementation}'; load it with load_judge"
        )


def _probe(
    decoder: Decoder, runner: HFRunner, name: str, norm: Norm, dtype: torch.dtype, draw: torch.Generator
) -> Check:
    """One norm on random rows of mean square 1e-14 … 100: where eps is larger than the row, it decides the result."""
    width = decoder.spec.d_head if name.endswith(("q_norm", "k_norm")) else decoder.spec.d_model
    sizes = torch.tensor(_PROBE_SIZES, dtype=torch.float64)[:, None]
    rows = (torch.randn(len(sizes), width, generator=draw, dtype=torch.float64) * sizes.sqrt()).to(dtype)
    theirs = runner.norms[name](rows.to(runner.model.device)).to(decoder.device)
    ours = normalize(rows.to(torch.float64), norm, decoder.part(f"{name}.gain"), decoder.part(f"{name}.bias"))
    return compare(name, "gain, bias and eps against the judge's norm", ours, theirs, TOLERANCES[dtype].step)


@dataclass
class _Step:
    """Compares what passes at one hook point with the judge's value, and lets the judge's value go on."""

    name: str
    theirs: Tensor
    tolerance: float
    checks: list[Check] = field(default_factory=list)

    def __call__(self, ours: Tensor) -> Tensor:
        theirs = self.theirs.to(ours.device, ours.dtype)
        self.checks.append(
            compare(self.name, "ours, from the judge's inputs, against the judge's", ours, theirs, self.tolerance)
        )
        return theirs if theirs.shape == ours.shape else ours


def _in_step(
    decoder: Decoder, inputs: Mapping[str, Tensor], cache: Mapping[str, Tensor], allowed: Tolerance
) -> list[Check]:
    checks: list[Check] = []
    norms = decoder.spec.norms()
    steps: dict[str, Callable[[Tensor], Tensor]] = {
        name: _Step(name, value, _allowed(name, decoder.spec, norms, allowed), checks)
        for name, value in cache.items()
        if name in decoder.hooks
    }
    decoder.run(inputs, intervene=steps)
    return checks


def _allowed(name: str, spec: ModelSpec, norms: Mapping[str, Norm], allowed: Tolerance) -> float:
    """`linear` where transformers computes in the model's own precision, `step` where it falls back to float32."""
    if name.endswith(".pattern"):
        return allowed.step
    if name == "resid_in":
        scaled = any(source.scale != 1 for source in spec.assembly.inputs)
        return allowed.step if scaled else allowed.linear
    role = name.rsplit(".", 1)[-1]
    prefix = name[: -len(role)]
    sources = {
        "attn_normed": ("attn_norm",),
        "mlp_normed": ("mlp_norm",),
        "attn_added": ("attn_post",),
        "mlp_added": ("mlp_post",),
        "resid_mid": ("attn_after", "mlp_after"),
        "resid_post": ("attn_after", "mlp_after"),
        "final_normed": ("final_norm",),
    }.get(role, ())
    passed = [norms.get(prefix + source) for source in sources]
    return allowed.step if any(norm and norm.kind == "rms" for norm in passed) else allowed.linear


def _free(
    decoder: Decoder,
    inputs: Mapping[str, Tensor],
    cache: Mapping[str, Tensor],
    returned: Mapping[str, Tensor],
    allowed: Tolerance,
) -> list[Check]:
    """Block outputs, and each output head where the judge itself reads it, without any help from the judge."""
    blocks = [f"L{layer}.resid_post" for layer in range(decoder.spec.n_layers)]
    run = decoder.run(inputs, capture=blocks)
    words = "a free run of the decoder against the judge's"
    checks = [
        compare(f"run.{name}", words, run.cache[name], cache[name].to(decoder.device), allowed.run) for name in blocks
    ]
    for out in decoder.spec.outputs:
        ours = read_out(decoder.spec.assembly, out, run.outputs[out.name])
        theirs = returned[out.name].to(decoder.device)
        checks.append(compare(f"run.{output_hook(out.name)}", words, ours, theirs, allowed.run))
    return checks


def _at_position(name: str) -> tuple[str, int | None]:
    hook, _, position = name.partition("@")
    try:
        return hook, int(position) if position else None
    except ValueError:
        raise BadRequest(f"recorded '{name}': expected HOOK or HOOK@POSITION, such as logits@-1") from None
