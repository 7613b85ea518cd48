"""A path's feature, step by step: how long the functional is after each component, and its constant.

From weights alone, or at prompts: then through MLPs, queries and keys too, whose stand-ins need a working point.

Source: `docs/theory/observables.md`, equations 1–8 and 11.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from covector.analyses.propagate import propagate
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.propagation.linearised import Policies
from covector.render import Column, Table
from covector.run.clusters import pairs_told
from covector.run.decoder import Decoder
from covector.run.points import captured
from covector.run.prompts import Pair, batches, canonical_slot
from covector.study.feature import Feature
from covector.study.observable import Observable
from covector.study.path import Path, parse_path

POLICIES = ("frozen", "exact")


def feature_steps(
    model: Model,
    observable: Observable,
    path: str,
    *,
    normed: bool = False,
    saved: str = "",
    pairs: Sequence[Pair] = (),
    at: str = "end",
    policy: str = "frozen",
) -> tuple[Feature, Table]:
    """The feature of a path, and a table with one row per step from the output down: its length there.

    Data-free, or with `pairs` a fit: the mean of the features at each clean prompt, `policy` frozen (f(x)/x of every
    nonlinear piece held, patterns too) or exact (gradients); the output read `at` a slot, the first step at its own
    (``L0H0@NAME``; where prompts have one slot besides the end, that one is taken). A feature at a prompt holds the
    attention that its heads pay there; lengths are those of the mean over prompts of one length in tokens, averaged
    over lengths.
    `saved`: the file that it is written to, for the next command. Raises what `propagate` raises, BadRequest in a
    frame in which the feature would not be read in the running model, or for another policy.
    """
    if model.frame.name != "raw":
        raise BadRequest(f"a feature is added to the running model: expected frame raw, got {model.frame}")
    if pairs:
        feature = at_prompts(model, observable, _placed(model, path, pairs), pairs, at=at, policy=policy, normed=normed)
    else:
        _check_free(model, path)
        feature = propagate(model, observable, path, normed=normed)
    return feature, _table(model, observable, feature, pairs, at, saved)


def at_prompts(
    model: Model,
    observable: Observable,
    path: Path,
    pairs: Sequence[Pair],
    *,
    at: str = "end",
    policy: str = "frozen",
    normed: bool = False,
) -> Feature:
    """The mean over pairs of the path's feature at their clean prompts; see `feature_steps`."""
    if policy not in POLICIES:
        raise BadRequest(f"--policy: expected {' or '.join(POLICIES)}, got '{policy}'")
    policies = Policies.all("frozen" if policy == "frozen" else "exact")
    blocked = next((s for s in path.steps if s.kind in ("q", "k")), None)
    if policy == "frozen" and blocked is not None:
        raise BadRequest(f"{blocked}: a frozen pattern does not move with queries and keys; expected --policy exact")
    decoder, found = Decoder(model.weights, device=model.device), list[tuple[int, Feature]]()
    for batch in batches(pairs):
        names = [[pair.slot_of(t) for t in range(len(pair))] for pair in batch.pairs]
        run = {name: x.astype(np.float64) for name, x in captured(decoder, batch.clean).items()}
        one = propagate(model, observable, path, normed=normed, runs=(run,), policies=policies, at=batch.at(at),
                        names=names)  # fmt: skip
        found.append((len(batch.pairs), one))
    share = np.array([n for n, _ in found]) / len(pairs)
    vectors = np.stack([f.vector for _, f in found])
    first = found[0][1]
    lengths = share @ np.array([[norm for _, norm in f.norms] for _, f in found])
    lengths[-1] = np.linalg.norm(share @ vectors)
    return dataclasses.replace(
        first,
        vector=share @ vectors,
        constant=float(share @ [f.constant for _, f in found]),
        norms=tuple((place, float(x)) for (place, _), x in zip(first.norms, lengths, strict=True)),
        convention=f"mean over {len(pairs)} clean prompts, norms and attention as they are there",
    )


def _placed(model: Model, text: str, pairs: Sequence[Pair]) -> Path:
    """The path with a slot at its first step: its own, or the only one that prompts have. Raises BadRequest."""
    path = parse_path(text, model.spec)
    if not path.steps:
        return path
    first, slot = path.steps[0], path.steps[0].slot
    if slot is None:
        known = list(dict.fromkeys(name for pair in pairs for name in pair.slots if name != "end"))
        if len(known) != 1:
            raise BadRequest(
                f"{text}: expected where its first step reads, such as {first}@{known[0] if known else 'end'} "
                f"({', '.join([*known, 'end'])}, or a position)"
            )
        slot = known[0]
    steps = [dataclasses.replace(first, slot=slot), *path.steps[1:]]
    return Path(tuple(dataclasses.replace(s, slot=canonical_slot(pairs, s.slot)) if s.slot else s for s in steps))


def _check_free(model: Model, text: str) -> None:
    """Raise BadRequest, saying which options give prompts, for what needs a working point."""
    step = next((s for s in parse_path(text, model.spec).steps if s.kind in ("mlp", "q", "k")), None)
    if step is not None:
        why = (
            "an MLP is linear at a working point only"
            if step.kind == "mlp"
            else "a query or key matters by what it meets"
        )
        raise BadRequest(f"{step}: {why}; expected prompts to take it from: --template with --fill, or --prompts FILE")


def _table(model: Model, observable: Observable, feature: Feature, pairs: Sequence[Pair], at: str, saved: str) -> Table:
    constant = f"{feature.constant:+.4f}" if np.isfinite(feature.constant) else "none (differences only)"
    fitted = "; a fit to these prompts, at others it is another one" if pairs else ""
    places, norms = [place for place, _ in feature.norms], np.array([norm for _, norm in feature.norms])
    places[-1] = f"{places[-1]} → {feature.hook}" if len(places) > 1 else places[-1]
    return Table(
        columns=[
            Column("step", [str(i) for i in range(len(places))], about="from the output down"),
            Column("place", places, about="what the functional has been pulled through"),
            Column("norm", norms, "logits", about="its length: the observable per unit length of the stream"),
            Column("gain", np.concatenate([[1.0], norms[1:] / norms[:-1]]), "×", 3, "length over the step before"),
        ],
        meta=model.meta
        | {"analysis": "feature", "kind": "fit" if pairs else "prediction", "pairs": len(pairs)}
        | feature.to_meta()
        | ({"at": at} if pairs else {}),
        title=f"{model.name} · {feature.observable} · {feature.path} · read at {feature.hook} · constant "
        f"{constant} · {f'{feature.policy}, {pairs_told(pairs)}' if pairs else 'no data'}",
        says=f"A stream that moves by 1 along the feature at {feature.hook}{_where(feature, model)} moves "
        f"{feature.observable} by {'' if pairs else 'up to '}{feature.norm:.3f} logits through this path"
        f"{', to first order at the mean of the clean prompts' if feature.policy == 'exact' else ''}"
        f"{', with norms, patterns and gates held' if feature.policy == 'frozen' else ''}.",
        not_says=f"It does not say that the path is used: {feature.convention}{fitted}.",
        next=f"covector steer {model.words} {observable.typed} --feature {saved or 'FILE'} "
        + (f"--token {_slot(feature, model)} with the same prompts" if pairs else "--token NAME --template …"),
        key=("step",),
    )


def _where(feature: Feature, model: Model) -> str:
    slot = _slot(feature, model)
    return f" of {slot}" if slot else ""


def _slot(feature: Feature, model: Model) -> str:
    steps = parse_path(feature.path, model.spec).steps
    return (steps[0].slot or "") if steps else ""
