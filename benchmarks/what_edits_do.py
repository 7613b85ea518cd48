"""What removing a topic of demo-lm's language does: to its own loss, to that of the 23 others, and what chance does.

Fixed beforehand, nothing tuned: every topic of truth.json in turn is the concept (all its words that are one token);
OV maps and MLP outputs of all layers; four ways to spend the same ‖ΔM‖_F, that of the one dyad that writes most of the
concept: that dyad removed, all dyads in proportion (equation 12), the concept's direction erased, and ten random
directions erased. Measured on fresh documents: change of −log p of the topic's own words where they occur, and of the
other topics' words where those occur. A direction that carries less than this ‖ΔM‖ over all sites is erased
whole; the share that it reaches is printed.

    python benchmarks/what_edits_do.py [documents per topic, 4]
"""

import sys

import numpy as np
import torch

import covector
from covector.analyses.choose_candidates import Candidates, candidates
from covector.demo.corpus import documents, load_truth
from covector.linalg.chance.haar import haar_directions
from covector.linalg.choosing import mu_of_size, proportional
from covector.linalg.interval import half_width
from covector.model.overlay import Change
from covector.run.decoder import Decoder
from covector.run.edited import laid_over
from covector.study.edit import Edit

RANDOM = 10


def texts(model: covector.Model, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [document, 128], padded by 0, and lengths; `each` documents of every topic."""
    kept: dict[str, list[str]] = {}
    for one in documents(11, 400 * each):
        if one.topic and len(kept.setdefault(one.topic, [])) < each:
            kept[one.topic].append(one.text)
    rows = [[0, *model.vocabulary.encode(text)][:128] for some in kept.values() for text in some]
    ids = np.zeros((len(rows), 128), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.array([len(row) for row in rows])


def loss(decoder: Decoder, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """−log p of the token that follows [document, 127]; NaN behind the end."""
    values = np.full((len(ids), 127), np.nan)
    with torch.no_grad():
        for some in np.array_split(np.argsort(lengths, kind="stable"), max(1, len(ids) // 8)):
            rows = torch.from_numpy(ids[some, : lengths[some].max()])
            log_p = decoder.run(rows).logits[:, :-1].log_softmax(-1)
            values[some, : rows.shape[1] - 1] = -log_p.gather(-1, rows[:, 1:, None])[..., 0].double().numpy()
    values[np.arange(127)[None] >= lengths[:, None] - 1] = np.nan
    return values


def ways(found: Candidates, seed: int) -> tuple[dict[str, list[Change]], tuple[float, float]]:
    """Changes of one size, by way; the share of it that erasing the concept, and random directions, reach."""
    unit = int(np.argmax(found.gains**2 * found.related))
    size = float(found.gains[unit])
    one = np.where(np.arange(len(found)) == unit, -1.0, 0.0)
    every = proportional(found.related, mu_of_size(found.related, found.gains, size))
    rows = haar_directions(RANDOM, found.rows.shape[1], seed)
    reached = [min(1.0, whole(found, some) / size) for some in (found.concept, *(row[None] for row in rows))]
    return {
        "one dyad removed": [found.changed_by(one)],
        "all in proportion": [found.changed_by(every)],
        "direction erased": [erased(found, found.concept, size)],
        "random directions": [erased(found, row[None], size) for row in rows],
    }, (reached[0], float(np.mean(reached[1:])))


def whole(found: Candidates, rows: np.ndarray) -> float:
    """‖ΔM‖_F over all sites of erasing the span of orthonormal rows."""
    return float(np.sqrt(np.sum(found.gains**2 * np.sum((found.rows @ rows.T) ** 2, axis=1))))


def erased(found: Candidates, rows: np.ndarray, size: float) -> Change:
    """M(I − ε QᵀQ) at every site, ε such that the size is that of the others (all of it where it cannot be)."""
    epsilon = -min(1.0, size / whole(found, rows))
    terms = [Edit.within(str(site), rows, epsilon).steps[0][0] for site in found.sites]
    return Edit((tuple(terms),)).change(found.model)


def main(each: int = 4) -> None:
    model = covector.open("demo-lm")
    decoder, truth = Decoder(model.stored, torch.float32), load_truth()
    ids, lengths = texts(model, each)
    base = loss(decoder, ids, lengths)
    labels = model.bases["token_out"].labels
    words = {t: [f" {w}" for w in some if f" {w}" in labels] for t, some in truth.data["topics"].items()}
    # A word of two topics belongs to neither here.
    twice = {w for t, some in words.items() for w in some if any(w in other for o, other in words.items() if o != t)}
    own = {t: [labels.index(w) for w in some if w not in twice] for t, some in words.items()}
    any_topic = np.isin(ids[:, 1:], [i for some in own.values() for i in some]) & ~np.isnan(base)
    rows: dict[str, list[tuple[float, float]]] = {}
    sizes = []
    for number, (topic, wanted) in enumerate(own.items()):
        here = np.isin(ids[:, 1:], wanted) & ~np.isnan(base)
        found = candidates(model, " + ".join(f"'{labels[i]}'" for i in wanted))
        changed, reached = ways(found, number)
        sizes.append(reached)
        for way, changes in changed.items():
            moved = [loss(laid_over(decoder, change), ids, lengths) - base for change in changes]
            mine, others = (float(np.mean([m[at].mean() for m in moved])) for at in (here, any_topic & ~here))
            rows.setdefault(way, []).append((mine, others))
        print(f"{topic:10s} " + "  ".join(f"{way}: {x[-1][0]:+.3f} / {x[-1][1]:+.3f}" for way, x in rows.items()))
    print(f"\n{len(own)} topics, {int((~np.isnan(base)).sum()):,} tokens, equal ‖ΔM‖: mean change of −log p, nats")
    concept, random = np.mean(sizes, axis=0)
    print(f"erased whole they reach {concept:.2f} of that ‖ΔM‖ on average, random directions {random:.2f}")
    chance = np.array([a - b for a, b in rows["random directions"]])
    for way, pairs in rows.items():
        mine, others = np.array(pairs).T
        gap = mine - others
        print(
            f"{way:20s} own words {mine.mean():+.4f} ± {half_width(mine):.4f}   other topics' {others.mean():+.4f} ± "
            f"{half_width(others):.4f}   own − others {gap.mean():+.4f} ± {half_width(gap):.4f}, above chance's in "
            f"{int((gap > chance).sum())} of {len(own)}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
