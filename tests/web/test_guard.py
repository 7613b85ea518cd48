"""Who may talk to the server of the explorer: nobody but its own page."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from covector.web.guard import HEADERS, MOST_BYTES, Guard

TOKEN, PORT = "Zm9vYmFy_-token", 4321
HOST = (b"host", b"127.0.0.1:4321")


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path it was given and the length of the body."""
    message = await receive() if scope["method"] == "POST" else {"body": b""}
    text = f"{scope['path']} {len(message['body'])}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text})


def asked(
    path: str, *headers: tuple[bytes, bytes], method: str = "GET", body: Iterable[bytes] = (b"",)
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request."""
    parts = list(body)
    chunks = iter(
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)
    )
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(chunks)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "query_string": b""}
    asyncio.run(Guard(echo, TOKEN, PORT)(scope, receive, send))
    given = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], given, sent[1]["body"]


def test_the_page_itself_is_let_through_without_its_token() -> None:
    status, headers, body = asked(f"/{TOKEN}/api/state", HOST)
    assert (status, body) == (200, b"/api/state 0")
    assert {name: headers[name] for name in HEADERS} == HEADERS


def test_the_address_without_a_path_is_the_page() -> None:
    assert asked(f"/{TOKEN}/", HOST)[2] == b"/ 0"


@pytest.mark.parametrize(
    "path", ["/", "/api/state", "/wrong/api/state", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", "", f"//{TOKEN}/"]
)
def test_an_address_without_the_token_is_not_found(path: str) -> None:
    assert asked(path, HOST)[0] == 404


@pytest.mark.parametrize(
    "host", [b"evil.example", b"127.0.0.1", b"127.0.0.1:4322", b"127.0.0.1:4321.evil.example", b"[::1]:4321", b""]
)
def test_a_foreign_host_is_refused(host: bytes) -> None:
    status, headers, body = asked(f"/{TOKEN}/api/state", (b"host", host))
    assert status == 421
    assert b"/api/state" not in body
    assert headers["content-security-policy"] == HEADERS["content-security-policy"]


def test_a_request_without_a_host_is_refused() -> None:
    assert asked(f"/{TOKEN}/api/state")[0] == 421


@pytest.mark.parametrize(
    "origin", [b"http://evil.example", b"null", b"http://127.0.0.1:4322", b"https://127.0.0.1:4321"]
)
def test_a_foreign_origin_is_refused(origin: bytes) -> None:
    assert asked(f"/{TOKEN}/api/jobs", HOST, (b"origin", origin), method="POST")[0] == 403


@pytest.mark.parametrize("site", [b"cross-site", b"same-site"])
def test_what_another_site_fetches_is_refused(site: bytes) -> None:
    assert asked(f"/{TOKEN}/app.js", HOST, (b"sec-fetch-site", site))[0] == 403


def test_the_pages_own_origin_is_let_through() -> None:
    own = (b"origin", b"http://127.0.0.1:4321"), (b"sec-fetch-site", b"same-origin")
    assert asked(f"/{TOKEN}/api/jobs", HOST, *own, method="POST", body=[b"ab"])[2] == b"/api/jobs 2"


def test_a_long_body_is_refused_whatever_its_length_says() -> None:
    pieces = [b"x" * 65536] * (MOST_BYTES // 65536 + 1)
    assert asked(f"/{TOKEN}/api/jobs", HOST, (b"content-length", b"10"), method="POST", body=pieces)[0] == 413
    long = (b"content-length", str(MOST_BYTES + 1).encode())
    assert asked(f"/{TOKEN}/api/jobs", HOST, long, method="POST")[0] == 413
    assert asked(f"/{TOKEN}/api/jobs", HOST, method="POST", body=[b"x" * 1000] * 4)[2] == b"/api/jobs 4000"


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"ten", "²".encode("latin-1")])
def test_a_length_that_is_no_number_is_refused(length: bytes) -> None:
    assert asked(f"/{TOKEN}/api/jobs", HOST, (b"content-length", length), method="POST")[0] == 400


def test_websockets_are_not_answered() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(echo, TOKEN, PORT)({"type": "websocket", "path": f"/{TOKEN}/", "headers": [HOST]}, None, send))  # type: ignore[arg-type]
    assert sent == []
