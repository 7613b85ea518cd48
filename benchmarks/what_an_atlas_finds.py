"""What an atlas finds of what is known to be there, and of what is known not to be: prints docs/what-is-found.md.

Dyads planted in random maps; models whose directions cannot mean anything; embeddings that were never read; the topics,
pronouns and facts that the bundled model was trained on. Nothing here was tuned (but for the world in which
`svd_specific` has power, which was sought), and nothing is left out for coming out badly. Exits with 1 when directions
that mean nothing are called more often than their level, or when planted ones that dominate are missed.

    python benchmarks/what_an_atlas_finds.py > docs/what-is-found.md
"""

import dataclasses
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from truths.apart import Apart, topics_apart
from truths.learned import concept_lines, concepts, count_text, facts
from truths.meaningless import called, of_never_read, rotated_bases, rotated_internals, untrained, untrained_blocks
from truths.planted import LEVEL, STRENGTHS, WIDE, atlas_of, planted_model, recovered, verdicts

import covector
from covector.io.atlas import Atlas
from covector.model.opened import Model

HEAD = """# What is found

What an atlas finds where the truth is known, and what it finds where there is nothing. Written by
`python benchmarks/what_an_atlas_finds.py > docs/what-is-found.md` (three minutes on one core). Nothing was tuned
towards these numbers, the training of `demo-lm` least of all, and what came out badly stands with the rest; but the
world in which `svd_specific` has power was sought, about thirty were tried, and it is a favourable one. The tests
`tests/atlas/test_power_*.py`, `tests/atlas/test_false_discovery_*.py` and `tests/demo/test_demo_topics_*.py` hold the
same against expected values that are derived, not printed.
"""


def planted_section(folder: Path) -> tuple[str, bool]:
    """Recovery curves; whether dominant dyads are found and none where none is."""
    rows, ends = [], []
    for strength in STRENGTHS:
        found = []
        for seed in (0, 1):
            model, plants = planted_model(strength, seed)
            found += recovered(atlas_of(model, folder / f"planted{strength}-{seed}", kinds=("ov", "mlp")), plants)
        cells = [[r for r in found if (r.plant.kind == "ov") == ov and r.plant.group == group]
                 for ov in (True, False) for group in (False, True)]  # fmt: skip
        text = [f"{np.mean([r.called for r in cell]):.2f} ({np.mean([r.cos for r in cell]):.2f})" for cell in cells]
        rows.append(f"| {strength:g} | {' | '.join(text)} |")
        ends.append(float(np.mean([r.called for r in found])))
    ruled = [ruled_row(folder, strength, tilt) for tilt in (0.0, WIDE.tilt) for strength in (0.0, 0.5, 1.0, 4.0)]
    text = f"""
## Planted dyads

Random maps (d = 64, 600 tokens, 12 layers: 1,920 directions in an atlas) with one dyad more in each: a token, or the
centre of a topic of 20 tokens. Strength is its gain over the largest gain of the random map. The share found (a
direction there has q_dir < .05 and is nearest to the token, or to one of the topic), and in brackets the mean |cos| of
the nearest direction with the truth.

| strength | OV, token | OV, topic | MLP, token | MLP, topic |
|---|---|---|---|---|
{chr(10).join(rows)}

The verdicts of the written rules on topics (heads, d = 128, 1,000 null draws). A dyad that *is* the centre of its topic
is `aligned`, since its list shares nothing beyond it; one {WIDE.tilt:g}° off the centre is `interpretable`.

| off the centre | strength | topics interpretable | topics aligned | other directions called |
|---|---|---|---|---|
{chr(10).join(ruled)}

Two limits. `interpretable` asks for more coherence *beyond* the direction than random directions have. Where the stream
is narrow and topics are many, random directions meet one by chance, and what their lists share beyond them is as much:
then topics are `aligned` at best. And tokens that have nothing else in common are not found by `q_dir` at any strength,
since their sum has a cosine of only 1/√n with each; a search for them finds it.
"""
    return text, ends[0] <= LEVEL and ends[-1] >= 0.95


def ruled_row(folder: Path, strength: float, tilt: float) -> str:
    """Verdicts on planted topics at one strength."""
    model, plants = planted_model(strength, 0, dataclasses.replace(WIDE, tilt=tilt))
    atlas = atlas_of(model, folder / f"ruled{strength}-{tilt}", kinds=("ov",), scores=True, draws=1000)
    found = verdicts(atlas, plants)
    return (
        f"| {tilt:g}° | {strength:g} | {found.interpretable} of {found.topics} | {found.aligned} of {found.topics} | "
        f"{found.others_called} of {found.others} |"
    )


def nothing_section(folder: Path) -> tuple[str, bool]:
    """What is called in models without meaning, beside the trained one; whether that is nominal."""
    model = covector.open("demo-lm")
    made: list[tuple[str, Model]] = [
        ("as trained", model), ("bases of heads rotated", rotated_bases(model, 0)),
        ("blocks rotated against embeddings", rotated_internals(model, 0)),
        ("blocks untrained, embeddings trained", untrained_blocks(model, 0)), ("untrained", untrained(model, 0)),
    ]  # fmt: skip
    rows, fine = [], True
    for i, (name, one) in enumerate(made):
        found = called(atlas_of(one, folder / f"nothing{i}", scores=True, draws=10_000))
        rows.append(
            f"| {name} | {share(found.p_dir)} | {found.q_dir} | {share(found.p_svd)} | {found.q_svd} | "
            f"{share(found.p_coherence)} | {found.interpretable} |"
        )
        allowed = LEVEL + 4 * np.sqrt(LEVEL * (1 - LEVEL) / found.n)
        fine &= i < 2 or (found.p_dir <= allowed and found.q_dir == 0)
        fine &= (found.q_svd == 0) == (i > 0)
    text = f"""
## Where there is nothing

`demo-lm` (4 layers, d = 128, 3,072 directions inside its blocks), and models made from it whose directions mean
nothing. By chance 5 % have p < .05 (fewer where tokens are alike, as p_dir is an upper bound), and q calls any in one
of 20 models at most.

| model | p_dir < .05 | called by q_dir | p_svd < .05 | called by q_svd | coherence p < .05 | interpretable |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Rotated bases of a trained head still lie nearer to tokens than chance, because their subspace does; `p_svd`, which asks
whether the singular vectors do more than other bases, does not call them. In the untrained model every token counts as
hardly trained, so that no list is judged.

{rotations_text(folder, model)}"""
    return text, fine


def rotations_text(folder: Path, model: Model) -> str:
    """What `svd_specific` can say with one random basis per head, and what it says with more, planted topics too."""
    judged = [
        atlas_of(model, folder / f"bases{n}", kinds=("ov", "qk"), scores=True, draws=1000, rotations=n) for n in (1, 32)
    ]
    p, q = (
        [f"{np.nanmin(atlas.column(name)):.2g}" for atlas in judged]
        for name in ("p_coherence_pooled", "q_coherence_svd")
    )
    passed = [int(atlas.column("svd_specific").sum()) for atlas in judged]
    topics = specific = 0
    for tilt in (0.0, 40.0, 55.0, 65.0):
        made, plants = planted_model(8.0, 0, dataclasses.replace(WIDE, tilt=tilt, layers=4))
        atlas = atlas_of(made, folder / f"specific{tilt}", kinds=("ov",), scores=True, draws=1000, rotations=64)
        topics += verdicts(atlas, plants).topics
        specific += int(atlas.column("svd_specific").sum())
    return f"""`svd_specific` asks for lists more coherent than those of random bases as well, the bases of all heads
in one pool. With one random basis per head (the default of `--rotations`) the least p is {p[0]}, the least q {q[0]},
and {passed[0]} pass; with `--rotations 32` the least p is {p[1]}, the least q {q[1]}, and {passed[1]} pass.
Of {topics} topics planted 0° to 65° off their centre, eight times as strong as anything random
in their heads, {specific} pass with 64 random
bases: of a random basis of 16 dimensions some direction comes near enough to the topic for its list to be as coherent
beyond it. `p_svd` of the nearest token, above, has power that this verdict has not there.

It has power where the tokens of a topic lie barely above the place where lists end, so that a direction which holds a
part of the dyad lists others (the theory page of scores, 20). Heads of 32 dimensions among 6,000 tokens (d = 128), two
dyads of each beside topics and the others off them; the last two columns are the same heads with random bases:

| off the centre | interpretable | specific, 1 rotation | specific, 8 | others | interpretable | specific |
|---|---|---|---|---|---|---|
{chr(10).join(apart_row(folder, tilt) for tilt in (40.0, 50.0, 60.0, 66.0))}
"""


def apart_row(folder: Path, tilt: float) -> str:
    """Verdicts on topics that stand among dyads off them, and on random bases of the same heads."""
    world = Apart(tilt)
    model, bases = topics_apart(world)
    asked = [(model, 1), (model, 8), (rotated_bases(model, 0), 8)]
    once, more, turned = [
        atlas_of(one, folder / f"apart{tilt}-{i}", kinds=("ov",), scores=True, draws=1000, rotations=n)
        for i, (one, n) in enumerate(asked)
    ]
    told, stored = more.columns("site", "side"), more.vectors.astype(np.float64)
    at = []
    for (site, side), basis in bases.items():
        here = np.flatnonzero((told["site"] == site) & (told["side"] == side))
        at += [here[np.abs(stored[here] @ truth).argmax()] for truth in basis[: world.leading]]
    found = [int(atlas.column(name)[at].sum()) for atlas, name in (
        (more, "interpretable"), (once, "svd_specific"), (more, "svd_specific"))]  # fmt: skip
    others = int(more.column("svd_specific").sum()) - found[-1]
    random = [int(turned.column(name).sum()) for name in ("interpretable", "svd_specific")]
    topics = " | ".join(f"{n} of {len(at)}" for n in found)
    beside = " | ".join(f"{n} of {total}" for n, total in (
        (others, len(more) - len(at)), (random[0], len(turned)), (random[1], len(turned))))  # fmt: skip
    return f"| {tilt:g}° | {topics} | {beside} |"


def share(value: float) -> str:
    """A share in per cent; a dash where there is none."""
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"


def never_section(folder: Path) -> str:
    """Tokens that no text ever used."""
    model = covector.open("demo-lm")
    found = of_never_read(model, inside(folder, model))
    below, called = share(float((found.p < LEVEL).mean())), int((found.q < LEVEL).sum())
    return f"""
## Tokens that were never read

{found.tokens} of the {found.of:,} tokens of `demo-lm` hold a character that its corpus never writes.
{found.flagged} of them are flagged as hardly trained; of the tokens that 1,000 documents hold, {found.wrongly} are.
Their vectors are nearly one (mean cosine with their mean {found.shared:.3f}): training has pushed all of them the same
way. What they share is met as chance has it: {below} of the directions inside the blocks have p < .05,
{called} have q < .05. Of the {found.called} directions that q_dir calls, {found.listing} list such a token at either
pole (ten labels each); the rules leave flagged tokens out of the lists that they judge.
"""


@cache
def _atlas_at(folder: Path) -> Atlas:
    return Atlas(folder)


def inside(folder: Path, model: Model) -> Atlas:
    """The atlas of the blocks of the bundled model, built once."""
    place = folder / "inside"
    return _atlas_at(place) if place.exists() else atlas_of(model, place)


def learned_section(folder: Path) -> str:
    """What of the truth behind the bundled model some direction carries."""
    model = covector.open("demo-lm")
    lines = concept_lines(model, inside(folder, model))
    joined = facts(model)
    by_chance = f"best head of shuffled pairs: {joined.by_chance:.1f}; p = {joined.p_head:.3f}"
    return f"""
## What demo-lm was trained on

Its corpus has topics, pronouns, classes of words and facts, known word by word. For each the table has the direction
inside the blocks nearest to the mean of its words (of a contrast: one side less the other), scored as `covector search`
does it; how many directions have q < .05 against random directions; `p`, the place of the best one among the best ones
of 999 other lists of as many words (for topics, words of any topics; for classes, any words; for contrasts, the same
words with their signs shuffled); and `AUC`, how well the direction nearest to every second word ranks the other words
above words that do not belong (chance .50). Found: some q < .05, and `p` significant over this table (q < .05).

| | words | nearest direction | cos | q < .05 | p | AUC | found |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

{count_text(lines, [concept.kind for concept in concepts(model)])}

How to read it. Words of a topic lie together in the embedding, so that a direction which ranks some of them high ranks
the others high: the AUC tells of the embedding as much as of the direction. Of 3,072 directions the best comes near to
any list of topic words, hence `p`, and hence few topics although most have directions beyond random ones. Lists of many
words of any class share what sets words apart from fragments, and some directions follow that: against them, no
class of words but the single letters stands out. Seven pronouns can be signed in 35 ways, so that their p cannot fall
below .029 and `she − he` cannot be found by it, near as its direction is.

Facts: {joined.pairs} countries and capitals of one token each. A dyad that reads the country and writes its capital:
the largest cos·cos is {joined.dyad:.3f} on average (p = {joined.p_dyad:.3f} among shuffled pairs). A whole head:
{joined.head} prefers the right capital for {joined.right} of {joined.pairs} ({by_chance}).
"""


def main() -> int:
    """Print the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted, powerful = planted_section(folder)
        nothing, nominal = nothing_section(folder)
        sys.stdout.write(HEAD + planted + nothing + never_section(folder) + learned_section(folder))
    return int(not (powerful and nominal))


if __name__ == "__main__":
    sys.exit(main())
