"""Vocabularies: tokens as real text, whatever mark a tokenizer uses for a space; one token or an explained refusal."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from covector.errors import CorruptCheckpoint, NotOneToken
from covector.io.vocabulary import read_vocabulary


def byte_level(folder: Path) -> Path:
    """A byte-level BPE with ` she`, ` he`, bytes, and nothing longer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "he", "Ġhe", "sh", "she", "Ġshe"]
    merges = [("h", "e"), ("Ġ", "he"), ("s", "h"), ("s", "he"), ("Ġ", "she")]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_byte_level_tokens_carry_their_real_spaces_and_name_their_bytes(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(byte_level(tmp_path))
    assert vocabulary is not None
    assert vocabulary.labels[vocabulary.one(" she")] == " she"
    assert "<0xE6>" in vocabulary.labels
    assert len(set(vocabulary.labels)) == len(vocabulary)


@pytest.mark.parametrize("typed", [" she", "·she", "Ġshe"])
def test_a_token_may_be_typed_as_it_is_shown(tmp_path: Path, typed: str) -> None:
    vocabulary = read_vocabulary(byte_level(tmp_path))
    assert vocabulary is not None
    assert vocabulary.raw[vocabulary.one(typed)] == "Ġshe"


def test_a_text_of_several_tokens_is_shown_with_its_split_and_near_tokens(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(byte_level(tmp_path))
    assert vocabulary is not None
    with pytest.raises(NotOneToken, match=r"expected a single token, got ' shed': it is ' she' \| 'd'; near .*' she'"):
        vocabulary.one(" shed")


def test_a_folder_without_a_tokenizer_has_no_vocabulary(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None


def test_a_broken_tokenizer_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptCheckpoint, match="expected a tokenizer that the tokenizers library reads"):
        read_vocabulary(tmp_path)


def test_sentence_pieces_show_spaces_and_encode_without_the_one_the_tokenizer_adds(shared: Path) -> None:
    """A reader finds: ` he` is id 281 in stories260k, as its card says, and ` wanted` is several pieces."""
    vocabulary = read_vocabulary(shared / "models" / "stories260k")
    assert vocabulary is not None
    assert (vocabulary.one(" he"), vocabulary.one("▁she"), vocabulary.one("·He")) == (281, 358, 346)
    with pytest.raises(NotOneToken, match=r"it is ' want' \| 'ed'"):
        vocabulary.one(" wanted")


def test_gpt2_tokens_have_their_published_ids(shared: Path) -> None:
    """A reader finds GPT-2's ids of five words, and an encoded sentence, from vocab.json and merges.txt alone."""
    vocabulary = read_vocabulary(shared / "data" / "gpt2-tokenizer")
    assert vocabulary is not None
    assert [vocabulary.one(t) for t in (" he", " she", " his", " her", " Mary")] == [339, 673, 465, 607, 5335]
    ids = vocabulary.encode("So David is a really great friend, isn't")
    assert ids == [2396, 3271, 318, 257, 1107, 1049, 1545, 11, 2125, 470]
