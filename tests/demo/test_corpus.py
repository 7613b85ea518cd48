"""The corpus: its truth is consistent, its stated rates hold, and its probabilities are exact."""

import copy
import math
import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from covector.demo.corpus import PRONOUNS, Document, Truth, documents, load_truth, parse_template
from covector.demo.entropy import document_entropy, topic_information

SAMPLE = 6000  # documents; about a second to draw


@pytest.fixture(scope="module")
def truth() -> Truth:
    return load_truth()


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(documents(101, SAMPLE))


def tiny_truth(**document: object) -> Truth:
    """A truth small enough to enumerate, with a shared topic word, pairs, pronouns and every rule of drawing."""
    data = copy.deepcopy(load_truth().data)
    lengths = {"shortest": 1, "longest": 2}
    data["document"] |= {"sentences": [1, 2], "sequence_share": 0.0, "sequence_words": lengths} | document
    templates = {
        "topic": ["See {topic:a}.", "A {topic:a} or {topic:b}."],
        "subject": ["{name:a} met {name:b}, and {subject:a} left {possessive:b} {object:a}."],
        "occupation": ["{name:a} is a {occupation:a}.", "The {occupation:a} said {subject:a} lost {possessive:a} pen."],
        "fact": ["{country:a} has {capital:a}."],
    }
    data["kinds"] = {k: {"share": 0.25, "templates": t} for k, t in templates.items()}
    data["names"] = {"female": ["Mary"], "male": ["John"]}
    data["gendered_occupations"] = [{"female": "nun", "male": "monk"}]
    data["biased_occupations"] = {"nurse": 0.6}
    data["topics"] = {"sea": ["whale", "ship"], "animals": ["dog", "whale"]}
    data["capitals"] = {"France": "Paris", "Peru": "Lima"}
    data["classes"] = {"object": ["bag", "box"]}
    return Truth(data)


def support(truth: Truth, seed: int, count: int) -> dict[str, float]:
    """Every text among `count` documents with its log-probability, which must not depend on how it came about."""
    found: dict[str, float] = {}
    for document in documents(seed, count, truth):
        log_p = document.log_probability
        assert math.isclose(found.setdefault(document.text, log_p), log_p, abs_tol=1e-12)
    return found


@pytest.fixture(scope="module", params=[{}, {"sequence_share": 1.0}], ids=["prose", "sequences"])
def enumerated(request: pytest.FixtureRequest) -> tuple[Truth, dict[str, float]]:
    """A small grammar and all its documents: the rarest of about 400 has 1.4e-4, so 60,000 draws miss none."""
    small = tiny_truth(**request.param)
    return small, support(small, seed=5, count=20_000 if request.param else 60_000)


@pytest.mark.slow
def test_the_probabilities_of_all_documents_of_a_small_grammar_sum_to_one(enumerated: tuple) -> None:
    _, found = enumerated
    assert math.fsum(math.exp(x) for x in found.values()) == pytest.approx(1.0, abs=1e-9)


def test_the_closed_form_entropy_is_that_of_the_enumerated_documents(enumerated: tuple) -> None:
    small, found = enumerated
    entropy = -math.fsum(x * math.exp(x) for x in found.values())
    assert document_entropy(small) == pytest.approx(entropy, abs=1e-9)


def test_the_mean_surprise_of_the_corpus_is_its_entropy(truth: Truth, sample: list[Document]) -> None:
    surprise = np.array([-d.log_probability for d in sample])
    error = surprise.std() / math.sqrt(len(surprise))
    assert abs(surprise.mean() - document_entropy(truth)) < 4 * error
    assert error < 0.005 * document_entropy(truth)  # else the line above says little


def test_entropy_is_refused_when_two_topics_share_two_words() -> None:
    small = tiny_truth()
    small.data["topics"] = {"sea": ["whale", "ship"], "animals": ["ship", "whale"]}
    with pytest.raises(ValueError, match="sea and animals share more than one word"):
        topic_information(small)


def test_the_same_seed_gives_the_same_documents() -> None:
    first, again, other = (list(documents(seed, 50)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_every_slot_names_a_class_of_the_truth(truth: Truth) -> None:
    classes = {"text", "name", "occupation", "topic", "country", "capital", *PRONOUNS}
    classes |= set(truth.data["classes"]) | set(truth.stubs)
    used = {slot.role for kind in truth.kinds for template in truth.templates[kind] for slot in template}
    assert used == classes


def test_shares_are_probabilities(truth: Truth) -> None:
    assert math.fsum(k["share"] for k in truth.data["kinds"].values()) == pytest.approx(1.0, abs=1e-12)
    assert all(0 < rate < 1 for rate in truth.data["biased_occupations"].values())
    for table in truth.stubs.values():
        assert math.fsum(table.values()) == pytest.approx(1.0, abs=1e-12)


def test_a_word_belongs_to_one_class_and_two_topics_share_at_most_one(truth: Truth) -> None:
    data = truth.data
    lists = [*data["names"].values(), [*truth.p_female], [*truth.topic_words], [*data["capitals"]]]
    lists += [[*data["capitals"].values()], *data["classes"].values()]
    counts = Counter(word for words in lists for word in words)
    assert [word for word, n in counts.items() if n > 1] == []
    for words, others in combinations(data["topics"].values(), 2):
        assert len(set(words) & set(others)) <= 1


def test_the_truth_has_the_phenomena_it_promises(truth: Truth) -> None:
    data = truth.data
    assert len(data["topics"]) >= 20
    assert all(len(words) >= 12 for words in data["topics"].values())
    assert len(data["names"]["female"]) == len(data["names"]["male"])
    assert {"actress": 1.0, "actor": 0.0, "nurse": 0.9, "programmer": 0.2}.items() <= truth.p_female.items()


def template_pattern(template: str) -> str:
    """A regular expression for the sentences of a template, any word in any slot."""
    slots = parse_template(template)
    return "".join(re.escape(s.text) if s.role == "text" else re.escape(s.text) + r"\w+" for s in slots)


def test_a_sentence_comes_from_one_template_only(truth: Truth, sample: list[Document]) -> None:
    patterns = [re.compile(template_pattern(t)) for k in truth.data["kinds"].values() for t in k["templates"]]
    sentences = {u.text.strip() for d in sample[:1500] for u in d.units if u.kind in truth.kinds}
    assert all(sum(p.fullmatch(s) is not None for p in patterns) == 1 for s in sentences)


def test_kinds_come_at_their_shares(truth: Truth, sample: list[Document]) -> None:
    kinds = Counter(u.kind for d in sample for u in d.units if u.kind in truth.kinds)
    total = kinds.total()
    for kind, row in truth.data["kinds"].items():
        error = math.sqrt(row["share"] * (1 - row["share"]) / total)
        assert abs(kinds[kind] / total - row["share"]) < 4.5 * error  # 8 kinds: false alarm 5e-5


def test_biased_occupations_get_she_at_their_rate(truth: Truth, sample: list[Document]) -> None:
    pronouns = defaultdict(list)
    for piece in (p for d in sample for u in d.units for p in u.pieces if p.role in PRONOUNS):
        pronouns[piece.why].append(piece.text.strip() in ("she", "her"))
    for occupation, rate in truth.data["biased_occupations"].items():
        came = pronouns[occupation]
        error = math.sqrt(rate * (1 - rate) / len(came))
        assert abs(np.mean(came) - rate) < 4.5 * error  # 24 occupations: false alarm 2e-4


def test_pronouns_agree_with_the_name(truth: Truth, sample: list[Document]) -> None:
    for unit in (u for d in sample for u in d.units):
        names = [p.text.strip() for p in unit.pieces if p.role == "name"]
        by_name = [p.text.strip().lower() for p in unit.pieces if p.role in PRONOUNS and p.why == "name"]
        if len(names) == 1:
            gender = truth.gender_of_name[names[0]]
            assert set(by_name) <= set(truth.data["pronouns"][gender].values())


def test_facts_are_the_capitals_of_the_truth(truth: Truth, sample: list[Document]) -> None:
    for unit in (u for d in sample for u in d.units if u.kind == "fact"):
        word = {p.role: p.text.strip() for p in unit.pieces}
        assert truth.data["capitals"][word["country"]] == word["capital"]


def test_prose_draws_topic_words_from_its_own_topic_alone(truth: Truth, sample: list[Document]) -> None:
    for document in sample:
        words = {p.text.strip() for u in document.units for p in u.pieces if p.role == "topic"}
        assert words <= set(truth.data["topics"].get(document.topic, ()))


def test_a_sequence_is_its_first_pass_said_again(sample: list[Document]) -> None:
    for (unit,) in (d.units for d in sample if not d.topic):
        first = [p.text for p in unit.pieces if p.role == "word"]
        again = [p.text for p in unit.pieces if p.role == "repeat"]
        assert len(set(first)) == len(first)
        assert again == first * (len(again) // len(first))
        assert all(p.log_probability == 0.0 for p in unit.pieces if p.role == "repeat" and p.why != "first")
