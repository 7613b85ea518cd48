"""The server of the explorer: its parts and JSON twins, what it refuses, and what it says of itself."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

import covector
from covector.web.app import create_app
from covector.web.jobs import Jobs
from covector.web.shown import Shown


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(demo_atlas: Path, jobs: Jobs) -> TestClient:
    return TestClient(create_app(Shown(str(demo_atlas)), jobs))


def unpacked(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a packed buffer, read by its description alone."""
    assert data[:4] == b"CVCT"
    (length,) = struct.unpack("<I", data[4:8])
    header = json.loads(data[8 : 8 + length])
    kinds = {"f4": "<f4", "u1": "u1", "u2": "<u2", "u4": "<u4", "i2": "<i2"}
    arrays = {}
    for name, told in header["arrays"].items():
        assert (8 + length + told["at"]) % 8 == 0, "the page maps arrays in place: they stand on multiples of 8"
        count = math.prod(told["shape"])
        arrays[name] = np.frombuffer(data, kinds[told["type"]], count, 8 + length + told["at"]).reshape(told["shape"])
    return arrays, header["about"]


def test_the_overview_has_every_place_with_chance_beside_what_was_found(client: TestClient, demo_atlas: Path) -> None:
    told = client.get("/api/overview").json()
    atlas = covector.open_atlas(demo_atlas)
    assert told["directions"] == len(atlas)
    assert [s["site"] for s in told["sites"]] == [s["site"] for s in atlas.sites]
    columns = {c["name"]: c for c in told["glance"]["columns"]}
    assert columns["near"]["chance"] == 0.05
    assert told["glance"]["says"]
    assert told["glance"]["not_says"]


def test_directions_are_those_of_the_index_to_four_digits(client: TestClient, demo_atlas: Path) -> None:
    arrays, about = unpacked(client.get("/api/parts/directions").content)
    atlas = covector.open_atlas(demo_atlas)
    places = np.array([s["site"] for s in atlas.sites], dtype=object)
    assert about["rows"] == len(atlas)
    assert (places[arrays["site"]] == atlas.column("site")).all()
    assert (arrays["dyad"] == atlas.column("dyad")).all()
    for name in ("sigma", "zeta", "p_dir", "q_dir", "p_svd", "coherence"):
        # 12 bits of fraction and rounding to nearest: 2⁻¹³ of the value; p below the least float32 become 0.
        np.testing.assert_allclose(arrays[name], atlas.column(name), rtol=2**-13, atol=1e-37)
    sides = np.array(about["texts"]["side"], dtype=object)
    assert (sides[arrays["side"]] == atlas.column("side")).all()
    bits = {name: (arrays["flags"] >> i & 1).astype(bool) for i, name in enumerate(about["flags"])}
    for name in ("noisy", "interpretable", "svd_specific", "aligned"):
        assert (bits[name] == atlas.column(name)).all()


def test_labels_are_those_of_both_poles_in_their_order(client: TestClient, demo_atlas: Path) -> None:
    arrays, about = unpacked(client.get("/api/parts/labels").content)
    words = np.array([*about["words"], None], dtype=object)
    atlas = covector.open_atlas(demo_atlas)
    rows = atlas.rows(np.arange(len(atlas)), ["top", "bottom", "top_cos", "bottom_cos"])
    for pole in ("top", "bottom"):
        mine = words[arrays[pole]]
        for i in range(0, len(atlas), 97):
            given = rows[i][pole][: about["pole"]]
            assert mine[i][: len(given)].tolist() == given
            steps = np.array(rows[i][f"{pole}_cos"][: about["pole"]])
            np.testing.assert_allclose(
                arrays[f"{pole}_cos"][i][: len(given)] / about["steps"], steps, atol=0.51 / about["steps"]
            )


def test_lists_shorter_than_others_leave_their_places_empty(agent_atlas: Path) -> None:
    arrays, about = unpacked(Shown(str(agent_atlas)).bundle.labels)
    atlas = covector.open_atlas(agent_atlas)
    lengths = np.array([len(r["top"]) for r in atlas.rows(np.arange(len(atlas)), ["top"])])
    assert ((arrays["top"] < len(about["words"])).sum(axis=1) == np.minimum(lengths, about["pole"])).all()
    assert len(set(lengths.tolist())) > 1, "the agent's bases have different sizes"


def test_spectra_are_whole_and_noise_of_the_same_norm_has_the_same_norm(client: TestClient, demo_atlas: Path) -> None:
    arrays, _ = unpacked(client.get("/api/parts/spectra").content)
    atlas = covector.open_atlas(demo_atlas)
    for i, record in enumerate(atlas.sites):
        rows = slice(arrays["start"][i], arrays["start"][i + 1])
        np.testing.assert_allclose(arrays["sigma"][rows], record["sigma"], rtol=2**-13)
        low, high = arrays["low"][rows].astype(float), arrays["high"][rows].astype(float)
        assert (low <= high).all()
        assert np.linalg.norm(low) <= np.linalg.norm(record["sigma"]) <= np.linalg.norm(high)


def test_a_direction_has_all_the_digits_of_the_index(client: TestClient, demo_atlas: Path) -> None:
    told = client.get("/api/directions/100").json()
    row = covector.open_atlas(demo_atlas).rows(np.array([100]))[0]
    assert told["zeta"] == row["zeta"]
    assert told["top"] == row["top"]
    assert client.get("/api/directions/-1").status_code == 404
    assert "expected a direction 0–" in client.get("/api/directions/99999999").json()["detail"]


def test_a_readout_is_the_commands_own_table(client: TestClient) -> None:
    told = client.get("/api/readout", params={"site": "L2H1", "rank": 3, "k": 4, "frame": "folded"}).json()
    table = covector.readout(covector.open("demo-lm"), "L2H1", rank=3, k=4, frame="folded")
    given = {c["name"]: c["values"] for c in told["columns"]}
    assert given["sigma"] == table["sigma"].tolist()
    assert "--frame folded" in told["command"]
    assert told["command"].startswith("covector svd ")


def test_a_search_is_the_commands_own_table(client: TestClient, demo_atlas: Path) -> None:
    told = client.get("/api/search", params={"query": "' she' + ' he'", "top": 7}).json()
    table = covector.trace(demo_atlas, "' she' + ' he'", top=7)
    assert next(c["values"] for c in told["columns"] if c["name"] == "place") == list(table["place"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/readout?site=L99H9", "L99H9"),
        ("/api/readout?site=../../etc/passwd", "expected"),
        ("/api/readout?site=L0H0&frame=nonsense", "nonsense"),
        ("/api/search?query=@/etc/passwd", "got a file"),
        ("/api/search?query=%20@%2Fetc%2Fpasswd", "got a file"),
        ("/api/jobs/12345", "expected a job of this run"),
    ],
)
def test_a_wrong_request_gets_one_line(client: TestClient, path: str, said: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert "root:" not in answer.text
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd", "/static/app.js", "/build.json",
        "/api/parts/vectors", "/api/parts/..%2fmanifest.json", "/app.js/../../guard.py", "/api/jobs/1/films/..%2f..",
        "/docs", "/redoc", "/index.html%00.js",
    ],
)  # fmt: skip
def test_no_address_becomes_a_path(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in (404, 422)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"question": "norms"}', b'{"question": 3, "values": {}}', b"\xff\xfe",
     b'{"question": "norms", "values": {"task": ["a"]}}', b'{"question": "norms", "values": {}, "more": 1}',
     b'{"question": "norms", "values": {"task": null}}', b"[" * 5000],
)  # fmt: skip
def test_a_malformed_body_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


def test_an_unknown_question_and_an_unknown_field_are_named(client: TestClient) -> None:
    told = client.post("/api/jobs", json={"question": "rm", "values": {}}).json()["detail"]
    assert "expected a question (norms" in told
    told = client.post("/api/jobs", json={"question": "norms", "values": {"out": "/tmp"}}).json()["detail"]
    assert "expected the fields task, got 'out'" in told


def test_the_built_page_is_served_from_memory(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "./app.js" in page.text
    assert "http" not in page.text.replace("http-equiv", ""), "the page loads nothing from elsewhere"
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")


def described(demo_atlas: Path, jobs: Jobs) -> list[Any]:
    """Every operation of the OpenAPI description but the one that starts work."""
    app = create_app(Shown(str(demo_atlas)), jobs)
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app).exclude(path="/api/jobs", method="POST")
    return [operation.ok() for operation in schema.get_all_operations()]


def test_every_answer_follows_its_own_description(demo_atlas: Path, jobs: Jobs) -> None:
    """Schemathesis: requests made from the OpenAPI description, right and wrong; answers as described, no crash."""
    operations = described(demo_atlas, jobs)
    assert len(operations) >= 9
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def answers(case: Any) -> None:
            # Whether a text is an address or a token of this model, no description of requests can say.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        answers()


@pytest.mark.parametrize(
    "body",
    [
        b'{"question": "\\ud800", "values": {}}',
        b'{"question": "norms", "values": {"task": "\\ud800"}}',
        b'{"question": "norms", "values": {"\\ud800": "a"}}',
        b'{"question": "edit", "values": {"edits": "L0H0.ov:0*0", "neutral": "\\ud800"}}',
        b'{"question": "norms", "values": {"task": ["\\ud800"]}}',
    ],
)
def test_half_a_character_is_refused_and_the_next_question_is_taken(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    good = client.post("/api/jobs", json={"question": "norms", "values": {"task": "' she' - ' he'"}})
    assert good.status_code == 202
    assert good.json()["id"] in [j["id"] for j in client.get("/api/jobs").json()] or good.json()["state"] != "queued"
    assert client.delete(f"/api/jobs/{good.json()['id']}").json()["state"] in ("cancelled", "done", "failed")
