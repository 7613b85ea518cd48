"""What a prompt's answer is made of: direct contributions that add up, head by source token, token by token, the lens.

Source: theory page §1.3, §1.7; `docs/theory/observables.md`, equations 2, 7, 15.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from covector.analyses.attend_prompt import position_named
from covector.analyses.attribute_picture import attribute_picture, check_by
from covector.model.opened import Model
from covector.propagation.constant import constant
from covector.propagation.linearised import Functional, Linearised, Policies
from covector.render import Column, Table
from covector.run.decoder import Decoder
from covector.run.inputs_file import position_names
from covector.run.pairs import check_reading
from covector.run.points import captured
from covector.run.prompts import Pair, side_of
from covector.study.observable import Observable

Row = tuple[str, str, float]
# Of all parts' sizes: a gap above ROUNDING is shown, one above BROKEN is a defect of covector.
ROUNDING, BROKEN = 1e-12, 1e-9
# What the row `biases` holds besides the output's own.
LEFT = {
    "component": "of norms and outputs",
    "head": "of norms and outputs",
    "token": "all biases, and what held gates and patterns leave",
}


def attribute(
    model: Model, observable: Observable | str, prompt: Pair, *, by: str = "component", at: str = "end"
) -> Table:
    """The observable on one prompt, split. The parts of every split but the lens sum to it to rounding.

    The row ``biases`` is made from the biases, by the held model applied to nothing (`propagation.constant`), not from
    what the other rows leave, so the sum is a check: what is left is a row ``unexplained`` where it exceeds 1e-12 of
    the parts' sizes.

    `by`: ``component``: what each head, MLP and the embeddings write directly to the output, the final norm's scale
    held;
    ``head``: the same with each head split over the tokens that it attends to; ``token``: what each input token brings
    through all paths while patterns, scales and gates are held; ``lens``: the observable read from the stream after
    every sublayer, with the norm's own scale there.
    `at`: where the output is read: a slot (``end``), a position, or the text of a token that stands there once.
    Accounting: frozen stand-ins at this prompt. Raises BadRequest for another `by`, NotOneToken, UnknownBasis, and
    AssertionError where more than 1e-9 is left: then a split is wrong, which is a defect of covector.
    """
    check_by(by)
    observable = Observable.parse(observable, model) if isinstance(observable, str) else observable
    words = [_word(model, i) for i in prompt.clean]
    if prompt.inputs is not None:
        words = list(position_names(model, prompt.inputs[0]))
    where = position_named(at, words, prompt.slots, "--at")
    check_reading(model, observable.output, [prompt], at if at in prompt.slots else str(where))
    run = captured(Decoder(model.weights, device=model.device), side_of([prompt], 0))
    position = np.array([where])
    linear = Linearised(model.weights, (run,), Policies.all("frozen"))
    value = float(observable.of(run[f"out.{observable.output}"][0, position[0]]))
    start = linear.start(observable.vector[None], observable.output, position)
    rows = SPLITS[by](linear, start, words, observable, position, model.device)
    if by != "lens":
        held = constant(linear, observable.vector[None], observable.output, position, whole=by == "token")
        rows = closed([*rows, ("biases", LEFT[by], float(held[0]))], value)
    return _table(model, observable, prompt, words, rows, value, by, at)


def closed(rows: list[Row], value: float) -> list[Row]:
    """The rows, with one more for what they leave of the value where that is more than rounding.

    Raises AssertionError where it is no rounding at all.
    """
    gap = value - sum(row[2] for row in rows)
    size = abs(value) + sum(abs(row[2]) for row in rows)
    if not abs(gap) <= BROKEN * size:
        raise AssertionError(
            f"the parts should sum to {value:.9g}, and leave {gap:.3g}: a defect of covector, please report it"
        )
    return [*rows, ("unexplained", "rounding", gap)] if abs(gap) > ROUNDING * size else rows


def _direct(linear: Linearised, G: Functional, _words: Sequence[str], *_more: object) -> list[Row]:
    """What every component writes, read by the functional at the end."""
    return [(name, "", float(value.sum())) for name, value, _on in _written(linear, G)]


def _written(linear: Linearised, G: Functional) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(component, its contribution by position, the functional on its z) from the last to the first."""
    found: list[tuple[str, np.ndarray, np.ndarray]] = []
    for s in range(linear.end, 0, -1):
        G = linear.before(G, s)
        for c in reversed(linear.components):
            if c.writes != s:
                continue
            out = linear.out(G, c)
            if c.mlp:
                found.append((c.name, np.sum(out * linear.runs[0][c.hook("mlp_out")], axis=-1), out))
                continue
            Gz = linear.on_z(out, c)
            each = np.sum(Gz * linear.runs[0][c.hook("z")], axis=-1)
            found += [(f"L{c.layer}H{h}", each[:, :, h], Gz[:, :, h]) for h in range(each.shape[2])]
            if linear.part(c.hook("b_O")) is not None:
                found.append((f"L{c.layer}.b_O", np.sum(out * linear.need(c.hook("b_O")), axis=-1), out))
    found.append(("embed", np.sum(G * linear.runs[0]["resid_in"], axis=-1), G))
    return found


def _by_source(linear: Linearised, G: Functional, words: Sequence[str], *_: object) -> list[Row]:
    """Heads split over the tokens whose values they fetch; everything else whole."""
    found: list[Row] = []
    by_name = {f"L{c.layer}H{h}": (c, h) for c in linear.components if c.attn for h in range(c.attn.n_heads)}
    for name, value, on_z in _written(linear, G):
        if name not in by_name:
            found.append((name, "", float(value.sum())))
            continue
        c, h = by_name[name]
        assert c.attn is not None
        v = linear.runs[0][c.hook("v")][:, :, c.attn.kv_of(h)]
        pattern = linear.runs[0][c.hook("pattern")][:, h]
        each = np.einsum("bts,btk,bsk->s", pattern, on_z, v)
        found += [(name, f"{i} {word}", float(each[i])) for i, word in enumerate(words)]
    return found


def _by_token(linear: Linearised, G: Functional, words: Sequence[str], *_: object) -> list[Row]:
    """The functional at the input, on every token's row."""
    each = np.sum(linear.adjoint(G)[0] * linear.runs[0]["resid_in"], axis=-1)[0]
    return [(str(i), word, float(each[i])) for i, word in enumerate(words)]


def _lens(
    linear: Linearised, _G: Functional, _words: Sequence[str], observable: Observable, at: np.ndarray, device: str
) -> list[Row]:
    """The outputs read early: each state through the final norm and the output matrix."""
    decoder = Decoder(linear.weights, device=device)
    found, stream = [], np.zeros_like(linear.runs[0]["resid_in"])
    last = linear.spec.n_layers
    for s in range(linear.end + 1):
        names = [c.name for c in linear.components if c.writes == s] or ["embed"]
        stream = linear.runs[0]["resid_in"] if s == 0 else _state(linear, s, stream)
        with torch.no_grad():
            run = decoder.run(resid_in=torch.from_numpy(stream), first=last, at=torch.from_numpy(at))
        found.append((" + ".join(names), "", float(observable.of(run.outputs[observable.output][0, 0].cpu().numpy()))))
    return found


def _state(linear: Linearised, s: int, before: np.ndarray) -> np.ndarray:
    """The stream after the components that write state s."""
    run = linear.runs[0]
    here = [c for c in linear.components if c.writes == s]
    stream = sum((run[c.hook(f"{c.sub.name}_added")] for c in here), before)
    norm = here[0].sub.after
    return linear.forward_norm(stream, norm, f"L{here[0].layer}.{here[0].sub.name}_after") if norm else stream


SPLITS: dict[str, Callable[..., list[Row]]] = {
    "component": _direct,
    "head": _by_source,
    "token": _by_token,
    "lens": _lens,
}


def _word(model: Model, i: int) -> str:
    labels = model.labels.get("token", ())
    return labels[i] if i < len(labels) else str(i)


_ABOUT = {
    "component": "component; biases: those of norms and outputs",
    "head": "component; biases: those of norms and outputs",
    "token": "position of the token; biases: all of them and φ(0), through held scales, slopes, gates and patterns",
    "lens": "what was added last",
}


def _table(
    model: Model,
    observable: Observable,
    prompt: Pair,
    words: Sequence[str],
    rows: list[Row],
    value: float,
    by: str,
    at: str,
) -> Table:
    values = np.array([row[2] for row in rows])
    ordered = by in ("component", "head")
    order = np.argsort(-np.abs(values), kind="stable") if ordered else np.arange(len(rows))
    gross = float(np.abs(values).sum())
    kept = by != "lens"
    columns = [
        Column("part", [rows[i][0] for i in order], about=_ABOUT[by]),
        *(
            [Column("of", [rows[i][1] for i in order], about="token it comes from, or what it holds")]
            if by in ("head", "token")
            else []
        ),
        Column(
            observable.unit,
            values[order],
            observable.unit,
            3,
            "its contribution" if kept else "the observable read here",
        ),
        *(
            [Column("share", values[order] / value if value else values[order] * np.nan, "", 3, "over the whole")]
            if kept
            else []
        ),
    ]
    first = rows[int(np.argmax(np.abs(values)))]
    told = f"{first[0]}{' of ' + repr(first[1]) if by in ('head', 'token') and first[1] else ''}"
    says = (
        f"{observable} is {value:+.3f}; {told} brings most, {first[2]:+.3f}; the parts cancel by "
        f"{1 - abs(value) / gross:.0%}."
        if kept
        else f"{observable} is {value:+.3f} at the end; read from the embeddings it is {rows[0][2]:+.3f}."
    )
    return Table(
        columns=columns,
        meta=model.meta | {"analysis": "attribute", "observable": str(observable), "by": by, "at": at, "value": value,
                           "policy": "frozen" if kept else "none", "kind": "accounting", "tokens": list(words),
                           "prompt": prompt.texts[0]},
        title=f"{model.name} · {observable} · {prompt.texts[0]!r} at {at} · by {by} · {value:+.3f} {observable.unit}",
        says=says,
        not_says="It does not say what would happen without a part: later layers, scales and attention would change "
        "(covector "
        f"patch measures that){'; ' + observable.warning if observable.warning else ''}.",
        next=f'covector observe norms {model.words} {observable.typed}',
        picture=attribute_picture,
    )  # fmt: skip
