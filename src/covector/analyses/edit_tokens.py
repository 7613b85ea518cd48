"""What a model says next, before and after an edit: the likeliest tokens of every prompt, at every dose of either sign.

Source: theory page F5; `docs/theory/edits.md`, equations 8 and 20.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from covector.analyses.edit_setup import DOSES, Setup, set_up
from covector.analyses.edit_words import again
from covector.axes import Float, Int
from covector.errors import BadRequest
from covector.model.opened import Model
from covector.render import Column, Curve, Table
from covector.run.edit_runs import scaled
from covector.run.prompts import Pair
from covector.study.edit import Edit
from covector.study.edit_terms import Along, Dyads
from covector.study.observable import Observable

# Tokens listed of every prompt; curves in the picture.
TOP, MOST_CURVES = 8, 8


def edit_tokens(
    model: Model,
    edit: Edit | str | Sequence[Edit | str],
    observables: Sequence[Observable | str] | Observable | str,
    prompts: Sequence[Pair],
    *,
    doses: Sequence[float] = DOSES,
    top: int = TOP,
    at: str = "end",
    bos: str = "auto",
    dtype: str = "float64",
) -> Table:
    """One row per prompt, token and dose: how likely it is that the token comes next.

    Dose t means W + t ΔW with all edits together; 0, the model as it is, and 1 are always measured. A dose below 0 goes
    the other way: it strengthens what the edit removes. Tokens are those among the `top` likeliest at any dose, and
    those that `observables` name; the same at every dose. A prompt that comes twice is listed once; of tokens with one
    text the id is told. `p` is the softmax probability at dose t, ``before`` at dose 0, `rank` 1 for the likeliest;
    `kl` KL(base ‖ edited) in nats of the whole next-token distribution of that prompt: what the edit does besides.
    Exact: every dose is run with the reference decoder. Controls are in `edit_effect`.
    Raises BadRequest for a dose that turns a direction around unasked, and what `edit_effect` raises.
    """
    setup = set_up(model, edit, observables, prompts, doses=(1.0,), draws=1, at=at, bos=bos, dtype=dtype)
    return by_token(setup, doses, top)


def by_token(setup: Setup, doses: Sequence[float], top: int = TOP) -> Table:
    """The table of `edit_tokens` for an experiment that is set up; `doses` instead of its own."""
    if top < 1:
        raise BadRequest(f"expected at least one token of every prompt, got {top}")
    if not setup.observables:
        raise BadRequest("expected prompts and something to observe on them, got none")
    grid = _doses(doses, setup.parts[0].edit)
    change = setup.parts[0].change
    logits = np.stack([setup.base if dose == 0 else setup.bench.logits(scaled(change, float(dose))) for dose in grid])
    rows = [*_rows(setup, grid, _log_softmax(logits), top)]
    columns = [
        Column("prompt", [r["prompt"] for r in rows], about="the text"),
        Column("side", [r["side"] for r in rows], about="of its pair"),
        Column("token", [r["token"] for r in rows], about="what may come next"),
        Column("dose", np.array([r["dose"] for r in rows]), "×", 2, "share of the edit; below 0 the other way"),
        Column("p", np.array([r["p"] for r in rows]), about="its probability at this dose"),
        Column("before", np.array([r["before"] for r in rows]), about="its probability in the model as it is"),
        Column("rank", np.array([r["rank"] for r in rows]), about="its place among all tokens, 1 the likeliest"),
        Column("kl", np.array([r["kl"] for r in rows]), "nats", about="KL(base ‖ edited) of what comes next here"),
    ]
    meta = _meta(setup, grid, top)
    return Table(columns, meta, *_words(setup, rows, grid), picture=lambda _: _picture(rows, grid),
                 key=("prompt", "side", "token", "dose"))  # fmt: skip


def _meta(setup: Setup, grid: Float[np.ndarray, " dose"], top: int) -> dict[str, Any]:
    """The request; ``epsilon``: ε of every direction at dose 1, where it is one number; ``edit_json``: to keep it."""
    every = {e for step in setup.parts[0].edit.steps for t in step if isinstance(t, Dyads | Along) for e in t.epsilon}
    return setup.model.meta | {
        "analysis": "edit_tokens", "kind": "accounting", "edit": setup.parts[0].edit.record(),
        "parts": [str(p.edit) for p in setup.parts[1:]], "observables": [str(o) for o in setup.observables],
        "at": setup.at, "pairs": len(setup.bench.pairs), "sides": setup.bench.sides,
        "names": len(set(setup.clusters)), "precision": str(setup.bench.decoder.dtype).removeprefix("torch."),
        "doses": grid.tolist(), "top": top, "epsilon": every.pop() if len(every) == 1 else None,
        "edit_json": setup.parts[0].edit.bound(setup.model).to_json(),
    }  # fmt: skip


def _doses(doses: Sequence[float], edit: Edit) -> Float[np.ndarray, " dose"]:
    """The doses in order with 0 and 1 among them. Raises BadRequest where one turns a direction around unasked."""
    found = np.unique([*map(float, doses), 0.0, 1.0])
    if not np.isfinite(found).all():
        raise BadRequest(f"--dose: expected numbers with commas, such as -1,-0.5,0.5,1, got {list(doses)}")
    every = [e for step in edit.steps for t in step if isinstance(t, Dyads | Along) for e in t.epsilon]
    for dose in found:
        least = min((dose * e for e in every), default=0.0)
        if least < -1 and dose != 1 and not edit.reflects:
            raise BadRequest(
                f"--dose {dose:g}: ε would become {least:g}, which turns a direction around; --reflect allows it"
            )
    return found


def _log_softmax(logits: Float[np.ndarray, "*batch token"]) -> Float[np.ndarray, "*batch token"]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _rows(
    setup: Setup, grid: Float[np.ndarray, " dose"], logp: Float[np.ndarray, "dose side n token"], top: int
) -> Iterator[dict[str, Any]]:
    labels = setup.model.labels["token"]
    base = int(np.flatnonzero(grid == 0)[0])
    named = sorted({int(i) for o in setup.observables for i in o.ids})
    listed = set[tuple[Any, ...]]()
    for i, pair in enumerate(setup.bench.pairs):
        for s in range(setup.bench.sides):
            prompt = (s, (pair.clean, pair.corrupt)[s], pair.position(setup.at))
            if prompt in listed:
                continue
            listed.add(prompt)
            here = logp[:, s, i]
            kl = np.sum(np.exp(here[base]) * (here[base] - here), axis=-1)
            found = _listed(here, base, named, top)
            for token, name in zip(found, _names(found, labels), strict=True):
                for d, dose in enumerate(grid):
                    yield {
                        "prompt": pair.texts[s], "side": ("clean", "corrupt")[s] if setup.bench.sides == 2 else "",
                        "token": name, "dose": float(dose), "p": float(np.exp(here[d, token])),
                        "before": float(np.exp(here[base, token])),
                        "rank": 1 + int(np.sum(here[d] > here[d, token])), "kl": float(max(kl[d], 0.0)),
                    }  # fmt: skip


def _listed(here: Float[np.ndarray, "dose token"], base: int, named: list[int], top: int) -> Int[np.ndarray, " k"]:
    """The likeliest tokens at any dose and the named ones, likeliest in the model as it is first."""
    likeliest = np.argsort(-here, axis=-1, kind="stable")[:, :top]
    every = np.unique(np.concatenate([likeliest.ravel(), np.array(named, dtype=np.int64)])).astype(np.int64)
    return every[np.argsort(-here[base, every], kind="stable")]


def _names(tokens: Int[np.ndarray, " k"], labels: Sequence[str]) -> list[str]:
    """The text of every token; with its id where another has the same (bytes beside the letters that they are)."""
    texts = [labels[int(token)] for token in tokens]
    return [text if texts.count(text) == 1 else f"{text} (id {i})" for text, i in zip(texts, tokens, strict=True)]


def _words(setup: Setup, rows: list[dict[str, Any]], grid: Float[np.ndarray, " dose"]) -> tuple[str, str, str, str]:
    """Title, says, does not say, next."""
    whole = [r for r in rows if r["dose"] == 1]
    first = {(r["prompt"], r["side"]): r["token"] for r in reversed(rows) if r["dose"] == 0 and r["rank"] == 1}
    turned = {(r["prompt"], r["side"]) for r in whole if r["rank"] == 1 and first[r["prompt"], r["side"]] != r["token"]}
    most = max(whole, key=lambda r: abs(r["p"] - r["before"]))
    kl = float(np.mean([r["kl"] for r in {(r["prompt"], r["side"]): r for r in whole}.values()]))
    n = len(first)
    title = (
        f"{setup.model.name} · {setup.parts[0].edit.in_words()} · what comes next after {n} prompts, {len(grid)} doses"
    )
    says = (
        f"At dose 1 another token is the likeliest after {len(turned)} of {n} prompts; the largest change is of "
        f"{most['token']!r} after '{most['prompt']}', from {most['before']:.3f} to {most['p']:.3f}. The "
        f"distribution moves by {kl:.3g} nats on average."
    )
    not_says = (
        "It does not say that other directions would do less: no random changes stand beside it (edit has them); nor "
        "what the edit does to other text (--neutral)."
    )
    return title, says, not_says, again(setup, "effect")


def _picture(rows: list[dict[str, Any]], grid: Float[np.ndarray, " dose"]) -> Curve:
    """Probability against dose of the first prompt's tokens whose probability changes most between the doses."""
    first = (rows[0]["prompt"], rows[0]["side"])
    curves: dict[str, list[float]] = {}
    for r in rows:
        if (r["prompt"], r["side"]) == first:
            curves.setdefault(r["token"], []).append(r["p"])
    kept = sorted(curves, key=lambda t: min(curves[t]) - max(curves[t]))[:MOST_CURVES]
    return Curve(
        grid, np.array([curves[t] for t in kept]), kept, "dose", f"probability after '{rows[0]['prompt']}'", "×", ""
    )
