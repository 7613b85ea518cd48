"""F and G: do cosines with a threshold find the directions of a concept, and does removing them change its tokens?

Source: `docs/replicate.md`.
"""

from collections.abc import Sequence

import numpy as np

from covector.analyses.query import token_query
from covector.analyses.replicate.finding import ALPHA, Asked, Finding, Traced, silent, verdict
from covector.analyses.search import search
from covector.analyses.studies.directions import of_p
from covector.errors import CovectorError, NotOneToken, UnknownBasis
from covector.render import Table
from covector.study.concept import concept
from covector.study.expression import parse


def tracing(asked: Asked) -> list[Finding]:
    """F: cosines and a threshold find directions of a concept; G: removing them changes what they are about."""
    known, unknown = [], []
    for words in asked.concepts:
        try:
            known.append((words, token_query(parse(words), asked.model, asked.atlas)))
        except (NotOneToken, UnknownBasis):
            unknown.append(words)
    if "token_out" not in asked.model.bases:
        return [silent("F", "it has no token outputs"), silent("G", "no concept was traced")]
    if not known:
        why = f"its vocabulary cannot say any of {'; '.join(unknown)}: name others with --concept"
        return [silent("F", why), silent("G", "no concept was traced")]
    told, traced = [], []
    for words, query in known:
        options = {"model": asked.model, "kinds": ("ov",), "alpha": ALPHA / len(known), "seed": asked.seed}
        told.append((words, search(asked.atlas, query, top=1, **options)))
        traced.append(_traced(asked, words, search(asked.atlas, query, top=1, sides=("write",), **options)))
    looked = len(known) * told[0][1].meta["directions"]
    words, best = max(told, key=lambda pair: abs(pair[1]["cos"][0]) / pair[1].meta["tau"])
    cos, tau = abs(float(best["cos"][0])), float(best.meta["tau"])
    beyond = sum(abs(t["cos"][0]) >= t.meta["tau"] for _, t in told)
    why = (
        f"beyond the threshold for {beyond} of {len(known)} concepts; '{words}': {best['place'][0]} {best['side'][0]}, "
    )
    why += f"among directions of the basis' own covariance {of_p(float(best['p_cov'][0]))}"
    why += f"; its vocabulary cannot say {'; '.join(unknown)}" if unknown else ""
    found = Finding(
        "F",
        "largest |cos| with a concept",
        cos,
        tau,
        verdict(cos >= tau),
        why,
        p=min(1.0, float(best["p"][0]) * looked),
    )
    return [found, removal_finding(asked, traced)]


def removal_finding(asked: Asked, traced: Sequence[Traced]) -> Finding:
    """G: rank-1 removal of traced directions against removals of random ones of the same heads and norm."""
    beyond = [t for t in traced if abs(t.cos) >= t.tau]
    if asked.removed is None:
        return silent("G", "it runs the model on a text: give one with --text")
    if not beyond:
        return silent("G", "no direction that a head writes lies beyond the threshold for a concept")
    try:
        done = asked.removed(asked.model, beyond)
    except CovectorError as error:
        return silent("G", str(error))
    null = np.abs(done.null)
    p = float((1 + (null >= abs(done.effect)).sum()) / (len(null) + 1))
    return Finding(
        "G",
        "change of log p (nats)",
        done.effect,
        float(np.quantile(null, 1 - ALPHA)),
        verdict(p < ALPHA),
        f"{done.words}; {done.places} tokens, {len(null)} random removals",
        p=p,
    )


def _traced(asked: Asked, words: str, table: Table) -> Traced:
    address, _, dyad = str(table["place"][0]).partition(":")
    tokens = concept(parse(words), asked.model, asked.model.bases["token_out"]).weights
    wanted = tuple(i for i, weight in tokens.items() if weight > 0)
    cos, tau = float(table["cos"][0]), float(table.meta["tau"])
    return Traced(words, asked.model.site(address), int(dyad), cos, tau, wanted)
