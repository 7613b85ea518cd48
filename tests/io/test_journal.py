"""A journal keeps what is done, drops a line that was cut off, and goes on only with the same request."""

import pytest

from covector.errors import BadRequest
from covector.io.journal import Journal

REQUEST = {"model": "m", "seeds": [1, 2], "arms": {"cut": "L0.mlp.out:0*0"}}


def test_lines_come_back_in_order(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Journal(path, REQUEST)
    assert log.lines == []
    log.add([{"a": 1.1}, {"a": "é"}])
    log.add([{"a": [None, True]}])
    assert Journal(path, REQUEST).lines == [{"a": 1.1}, {"a": "é"}, {"a": [None, True]}]


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_line_that_was_cut_off_is_dropped_and_the_next_begins_anew(tmp_path, cut):
    path = tmp_path / "log.jsonl"
    log = Journal(path, REQUEST)
    log.add([{"seed": 1}])
    whole = path.read_bytes()
    log.add([{"seed": 1234}])
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, REQUEST)
    assert again.lines == [{"seed": 1}]
    assert path.read_bytes() == whole
    again.add([{"seed": 5}])
    assert Journal(path, REQUEST).lines == [{"seed": 1}, {"seed": 5}]


@pytest.mark.parametrize(
    ("other", "key"),
    [({"model": "n"}, "model"), ({"arms": {}}, "arms"), ({"seeds": [1]}, "seeds"), ({"more": 1}, "more")],
)
def test_another_request_is_refused_by_its_key(tmp_path, other, key):
    path = tmp_path / "log.jsonl"
    Journal(path, REQUEST).add([{"a": 1}])
    before = path.read_bytes()
    with pytest.raises(BadRequest, match=f"holds another request: {key} was .*, now .*choose another --out"):
        Journal(path, REQUEST | other)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{}\n", "no journal\n", "[1]\n", '{"request": 3}\n', '{"request": {}}\nx\n'])
def test_what_is_no_journal_is_refused(tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(BadRequest):
        Journal(path, REQUEST)
    assert path.read_text() == text


def test_a_request_is_the_same_after_it_went_through_a_file(tmp_path):
    path = tmp_path / "log.jsonl"
    Journal(path, {"targets": (1.0, 0.5), "none": None})
    Journal(path, {"targets": [1.0, 0.5], "none": None})
