"""The entropy of demo-lm's language in closed form: nats per document, no sampling.

A document's entropy is H(text) = H(text | topic) + I(topic; text), as the topic is hidden but all else is in the text.
The first term adds up slot by slot. The second is log(number of topics) less the doubt that a finished document
leaves. Two topics share at most one word (checked), so two different topic words settle the topic: doubt remains
only after no topic word, or after one shared word alone, said in sentences with a single topic slot.
"""

import math
from collections.abc import Sequence
from itertools import combinations

from covector.demo.corpus import PRONOUNS, Slot, Truth


def document_entropy(truth: Truth) -> float:
    """H(text) of one document in nats, its end included; exact for a truth whose topics share ≤ 1 word."""
    share = truth.data["document"]["sequence_share"]
    return entropy_of([share, 1 - share]) + share * sequence_entropy(truth) + (1 - share) * prose_entropy(truth)


def entropy_of(probabilities: Sequence[float]) -> float:
    """Entropy in nats of a distribution; zeros count nothing."""
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def sequence_entropy(truth: Truth) -> float:
    """Entropy in nats of a sequence document: its length, its words without replacement, its passes."""
    data = truth.data["document"]
    lengths = range(data["sequence_words"]["shortest"], data["sequence_words"]["longest"] + 1)
    words = [math.fsum(math.log(len(truth.pool) - i) for i in range(n)) for n in lengths]
    return math.log(len(lengths)) + math.fsum(words) / len(lengths) + math.log(len(data["sequence_passes"]))


def prose_entropy(truth: Truth) -> float:
    """Entropy in nats of a prose document."""
    counts = truth.data["document"]["sentences"]
    given_topic = math.log(len(counts)) + sum(counts) / len(counts) * sentence_entropy(truth)
    return given_topic + topic_information(truth)


def sentence_entropy(truth: Truth) -> float:
    """Entropy in nats of one sentence when the topic is known, averaged over topics."""
    kinds = truth.data["kinds"]
    total = entropy_of([kinds[k]["share"] for k in truth.kinds])
    for kind in truth.kinds:
        templates = truth.templates[kind]
        inside = math.fsum(template_entropy(truth, t) for t in templates) / len(templates)
        total += kinds[kind]["share"] * (math.log(len(templates)) + inside)
    return total


def template_entropy(truth: Truth, template: tuple[Slot, ...]) -> float:
    """Entropy in nats of the slots of a template when the topic is known, averaged over topics."""
    total, seen, known = 0.0, [], set()  # known: labels whose gender the text has told
    for slot in template:
        role, label = slot.role, slot.label
        if role == "text" or (role, label) in seen:
            continue
        drawn = sum(r == role for r, _ in seen)
        seen.append((role, label))
        if role in PRONOUNS:
            rates = truth.p_female.values()
            total += 0 if label in known else math.fsum(entropy_of([p, 1 - p]) for p in rates) / len(rates)
            known.add(label)
        elif role == "name":
            total += math.log(len(truth.gender_of_name) - drawn)
            known.add(label)
        elif role == "occupation":
            total += _occupation_entropy(truth) if label in known else math.log(len(truth.p_female))
        elif role in ("country", "capital"):
            pair = {("country", label), ("capital", label)}
            total += 0 if pair <= set(seen) else math.log(len(truth.data["capitals"]))
        elif role in truth.stubs:
            total += entropy_of([*truth.stubs[role].values()])
        elif role != "topic":
            total += math.log(len(truth.data["classes"][role]) - drawn)
    words = sum(r == "topic" for r, _ in seen)
    rows = truth.word_given_topic
    return total + math.fsum(_draws_entropy([p for p in row if p > 0], words) for row in rows) / len(rows)


def _occupation_entropy(truth: Truth) -> float:
    """H(occupation | gender) in nats, for the gender of a name drawn uniformly."""
    genders = [*truth.gender_of_name.values()]
    return math.fsum(
        genders.count(g) / len(genders) * entropy_of([*truth.occupations_given(g).values()]) for g in set(genders)
    )


def _draws_entropy(weights: list[float], count: int) -> float:
    """Entropy in nats of `count` draws without replacement, in order, from unnormalised weights."""
    if count == 0:
        return 0.0
    total = math.fsum(weights)
    here = entropy_of([w / total for w in weights])
    if count == 1:
        return here
    rest = (_draws_entropy(weights[:i] + weights[i + 1 :], count - 1) for i in range(len(weights)))
    return here + math.fsum(w / total * h for w, h in zip(weights, rest, strict=True))


def topic_information(truth: Truth) -> float:
    """I(topic; text) of a prose document in nats.

    Raises ValueError if two topics share more than one word: the closed form would then miss doubt.
    """
    for (a, words), (b, others) in combinations(truth.data["topics"].items(), 2):
        if len(set(words) & set(others)) > 1:
            raise ValueError(f"topics {a} and {b} share more than one word; the closed form needs at most one")
    none, one = _slot_shares(truth)
    counts = truth.data["document"]["sentences"]
    n_topics = len(truth.topics)
    doubt = 0.0
    for sentences in counts:
        doubt += none**sentences * math.log(n_topics)
        for k in range(1, sentences + 1):
            # k sentences with one topic slot, the others with none; all k say the same word.
            ways = math.comb(sentences, k) * one**k * none ** (sentences - k)
            for column in truth.word_given_topic.T:
                likelihood = [p**k for p in column if p > 0]
                total = math.fsum(likelihood)
                doubt += ways * total / n_topics * entropy_of([x / total for x in likelihood])
    return math.log(n_topics) - doubt / len(counts)


def _slot_shares(truth: Truth) -> tuple[float, float]:
    """Probabilities that a sentence has no topic slot, and exactly one."""
    shares = [0.0, 0.0]
    for kind in truth.kinds:
        share = truth.data["kinds"][kind]["share"] / len(truth.templates[kind])
        for template in truth.templates[kind]:
            slots = sum(slot.role == "topic" for slot in template)
            if slots < 2:
                shares[slots] += share
    return shares[0], shares[1]
