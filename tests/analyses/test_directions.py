"""Lists of directions: each filter against its own plain reading of the index; and which are looked at first."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import covector
from changed_atlas import with_columns
from covector.analyses.direction_lines import direction_line
from covector.analyses.look_first import OF_ONE_PLACE
from covector.atlas.plan import Options
from covector.errors import BadRequest
from covector.render.labels import cell_len, shown
from covector.render.number import number_text, probability

Row = dict[str, Any]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> covector.Atlas:
    """demo-lm's, with verdicts planted on every seventh and every ninth direction: few draws call nothing."""
    folder = tmp_path_factory.mktemp("list")
    built = covector.build_atlas("demo-lm", folder / "demo.atlas", options=Options(draws=500))
    assert built is not None
    at = np.arange(len(built))
    return with_columns(built, folder / "planted.atlas", interpretable=at % 7 == 0, noisy=at % 9 == 0)


@pytest.fixture(scope="module")
def rows(atlas: covector.Atlas) -> list[Row]:
    return atlas.rows(np.arange(len(atlas)))


FILTERS: list[tuple[dict[str, Any], Callable[[Row], bool]]] = [
    ({"kinds": ["qk", "mlp.in"]}, lambda r: r["kind"] in ("qk", "mlp.in")),
    ({"side": "write"}, lambda r: r["side"] == "write"),
    ({"site": "L1H2"}, lambda r: r["site"].startswith("L1H2.")),
    ({"site": "l*h3.OV"}, lambda r: r["site"].endswith("H3.ov")),
    ({"site": "L3.mlp.out:4"}, lambda r: r["site"] == "L3.mlp.out"),
    ({"layers": (1, 2)}, lambda r: r["layer"] in (1, 2)),
    ({"layers": (0, 3)}, lambda r: r["layer"] is not None),
    ({"most_q": 0.01}, lambda r: r["q_dir"] <= 0.01),
    ({"flag": "noisy"}, lambda r: r["noisy"]),
    ({"labels": "GERMANY"}, lambda r: any("germany" in t.lower() for t in r["top"] + r["bottom"])),
    ({"labels": "'he'"}, lambda r: any(t in ("he", " he") for t in r["top"] + r["bottom"])),
    ({"kinds": ["ov"], "side": "read", "most_q": 0.2}, lambda r: r["kind"] == "ov" and r["side"] == "read"
     and r["q_dir"] <= 0.2),
]  # fmt: skip


@pytest.mark.parametrize(("given", "keeps"), FILTERS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_a_filter_keeps_what_the_index_says(
    atlas: covector.Atlas, rows: list[Row], given: dict[str, Any], keeps: Callable[[Row], bool]
) -> None:
    expected = {f"{r['site']}:{r['dyad']} {r['side']}" for r in rows if keeps(r)}
    table = covector.directions(atlas, **given)
    assert {f"{r['place']} {r['side']}" for r in table.rows} == expected
    assert 0 < len(expected) < len(rows)
    assert table.meta["kept"] == len(expected)
    assert table.meta["near"] == sum(r["q_dir"] < 0.05 for r in rows if keeps(r))


@pytest.mark.slow
@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("sort", ["strength", "sigma", "q_dir", "p_svd", "layer", "label", "side"])
def test_rows_come_in_order_and_what_is_unknown_last(
    atlas: covector.Atlas, rows: list[Row], sort: str, rising: bool
) -> None:
    by = {f"{r['site']}:{r['dyad']} {r['side']}": abs(r["zeta"]) if sort == "strength" else r[sort] for r in rows}
    values = [by[f"{r['place']} {r['side']}"] for r in covector.directions(atlas, sort=sort, rising=rising).rows]
    missing = [v is None or v != v for v in values]
    assert missing == sorted(missing)
    known = [v for v, lost in zip(values, missing, strict=True) if not lost]
    assert known == sorted(known, reverse=not rising)
    assert len(values) == len(rows)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": (9, 9)}, r"--layers: expected layers of this atlas \(0 to 3\), first to last, got 9"),
        ({"layers": (2, 4)}, "got 2-4"),
        ({"layers": (3, 1)}, "got 3-1"),
        ({"site": "L9H0"}, "--site: expected a part of an address of this atlas, such as .*, got 'L9H0'"),
    ],
)
def test_a_place_that_is_not_there_is_refused(atlas: covector.Atlas, given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        covector.directions(atlas, **given)


@pytest.mark.parametrize("sort", ["p_svd", "p_cov", "q_svd", "heldout", "coherence", "stability", "lexical"])
def test_what_rows_are_in_order_of_stands_in_every_line(atlas: covector.Atlas, rows: list[Row], sort: str) -> None:
    known = {f"{r['site']}:{r['dyad']} {r['side']}": r[sort] for r in rows}
    table = covector.directions(atlas, sort=sort, rising=True, top=7)
    assert table.lines is not None
    for row in table.rows:
        value = known[f"{row['place']} {row['side']}"]
        (said,) = re.findall(rf" {sort} +(\S+)", table.lines(row, 120).splitlines()[0])
        assert said == (probability(value).strip() if sort[0] in "pq" else number_text(value, 3))


def test_the_number_that_calls_a_direction_interpretable_stands_on_the_screen(atlas: covector.Atlas) -> None:
    out = io.StringIO()
    table = covector.directions(atlas, flag="interpretable", top=5)
    table.show(file=out)
    for row in table.rows:
        line = next(
            line for line in out.getvalue().splitlines() if line.startswith((row["place"] + " ", row["place"] + "~"))
        )
        assert f"list {row['judged']} {probability(row['q_coherence'])}" in line
    assert "q_coherence" in table.says
    assert max(map(len, out.getvalue().splitlines()[:-1])) <= 120


def test_the_next_command_is_more_like_the_first(atlas: covector.Atlas) -> None:
    for table in (covector.directions(atlas, sort="sigma", top=4), covector.look_first(atlas, 4)):
        row = next(
            row for row in table.rows if not row["place"].startswith(("embed", "pos"))
        )  # a search leaves them out
        assert table.next == f"covector search {atlas.folder} --like {row['place']}.{row['side']}"
    alone = covector.directions(atlas, kinds=["embed"], top=1)
    assert alone.next.endswith(f"--like {alone.rows[0]['place']}.write")
    assert covector.directions(atlas, labels="no such label").next == ""


def test_the_sentence_counts_embeddings_and_what_the_covariance_leaves(atlas: covector.Atlas) -> None:
    told = atlas.columns("q_dir", "p_cov", "kind")
    near = told["q_dir"] < 0.05
    said = covector.directions(atlas).says
    assert f"{near.sum()} of them lie closer to a label than random directions" in said
    assert f"{(near & (told['p_cov'] < 0.05)).sum()} of these also than ones of the labels' own covariance" in said
    outside = near & np.isin(told["kind"], ["embed", "pos"])
    assert f"; {outside.sum()} are of an embedding" in said
    assert "embedding" not in covector.directions(atlas, kinds=["ov"]).says


def test_the_first_are_the_first_of_all(atlas: covector.Atlas) -> None:
    every, few = covector.directions(atlas, sort="sigma"), covector.directions(atlas, sort="sigma", top=7)
    assert few.rows == every.rows[:7]
    assert few.meta["kept"] == len(atlas)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"kinds": ["vo"]}, "ov, qk"), ({"side": "left"}, "query, read, write"), ({"flag": "good"}, "interpretable"),
     ({"sort": "beauty"}, "strength"), ({"top": 0}, "at least 1")],
)  # fmt: skip
def test_a_wrong_name_is_refused_with_those_that_there_are(
    atlas: covector.Atlas, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        covector.directions(atlas, **given)


def test_called_directions_are_looked_at_first_then_the_strongest_two_of_a_place(
    atlas: covector.Atlas, rows: list[Row]
) -> None:
    near = [i for i, r in enumerate(rows) if r["q_dir"] < 0.05 and r["layer"] is not None]
    ranked = sorted(near, key=lambda i: (not rows[i]["interpretable"], -abs(rows[i]["zeta"])))
    expected: list[int] = []
    for i in ranked:
        if sum(rows[j]["site"] == rows[i]["site"] for j in expected) < OF_ONE_PLACE:
            expected.append(i)
    table = covector.look_first(atlas, top=30)
    assert [int(r["row"]) for r in table.rows] == expected[:30]
    assert any(r["interpretable"] for r in table.rows)
    for r in table.rows:
        given = rows[int(r["row"])]
        plus = (given["score_pole"] if given["interpretable"] else given["zeta"]) > 0
        assert r["pole"] == ("+" if plus else "−")
        assert r["labels"] == given["top" if plus else "bottom"][: len(r["labels"])]


def test_an_atlas_without_scores_names_the_nearest_and_says_so(tmp_path: Path) -> None:
    plain = covector.build_atlas("demo-dt", tmp_path / "a", options=Options(draws=100, scores=False))
    assert plain is not None
    table = covector.look_first(plain)
    assert "without scores" in table.says
    assert not any(r["interpretable"] for r in table.rows)
    strengths = [abs(r["zeta"]) for r in table.rows]
    assert strengths == sorted(strengths, reverse=True)


def test_where_nothing_is_near_nothing_is_named(atlas: covector.Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = covector.Atlas(atlas.folder)
    opened.columns("q_dir", "zeta", "interpretable", "score_pole")
    monkeypatch.setitem(opened._read, "q_dir", np.ones(len(opened)))
    table = covector.look_first(opened)
    assert len(table) == 0
    assert table.says.startswith("No direction inside a layer is nearer")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_line_fits_and_says_what_the_row_says(atlas: covector.Atlas, width: int) -> None:
    table = covector.directions(atlas, top=40)
    called = 0
    for row in table.rows:
        line = direction_line(row, width)
        assert max(map(cell_len, line.splitlines())) <= width
        assert line.startswith(row["place"])
        if width < 120:
            continue
        assert f"ζ {row['zeta']:+5.1f}" in line
        flags = row["called"].split()
        assert ("SVD-specific" in line) == ("svd_specific" in flags)
        assert ("interpretable" in line) == ("interpretable" in flags and "svd_specific" not in flags)
        assert (row["place"] + "~" in line) == ("noisy" in flags)
        verdict = "interpretable" in flags or "aligned" in flags
        assert (row["place"] + "~" in line) == ("noisy" in flags)
        first = line.split(" | ", 1)[1]
        if not verdict:  # the nearest label's pole
            assert first.startswith(f"{'+' if row['zeta'] > 0 else '−'} {shown(row['label'])}"[:9])
        elif row["judged"] is not None:  # the pole that the verdict is about
            assert first.startswith(row["judged"])
        called += bool(flags)
    assert width < 120 or called
