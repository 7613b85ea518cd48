"""Who may talk to the page's server: this machine's browser, on this page, with this run's token. Nobody else.

The token is the first part of every address (``http://127.0.0.1:PORT/TOKEN/``), so links inside the page carry it and
no cookie is needed. A foreign page that guesses the port is refused by Host (DNS rebinding), by Origin and by fetch
metadata, and does not have the token.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# The page runs its own script and style and draws its own images; it loads nothing and nobody may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# A request to the page is a question of a few lines; a text to measure side effects on is its longest part.
MOST_BYTES = 512 * 1024


class Guard:
    """An ASGI application that lets through what may come to `inside`, and adds the headers of every answer."""

    def __init__(self, inside: App, token: str, port: int) -> None:
        self.inside, self.token = inside, token
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it with a line that says why."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.inside(scope, receive, send)
            return  # no websockets here
        given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope["path"], given)
        if refused:
            await _answer(send, *refused)
            return
        prefix = f"/{self.token}"
        passed = {**scope, "path": scope["path"][len(prefix) :] or "/", "root_path": "", "raw_path": None}
        body = await _body(receive) if scope["method"] in ("POST", "PUT", "PATCH", "DELETE") else b""
        if body is None:
            await _answer(
                send, 413, f"expected a request of at most {MOST_BYTES} bytes, got more; ask for less at once"
            )
            return
        await self.inside(passed, _replayed(body, receive), _with_headers(send))

    def _refused(self, path: str, given: MutableMapping[str, str]) -> tuple[int, str] | None:
        if given.get("host") not in self.hosts:
            return 421, "expected this server's own address as Host; open the address that covector view printed"
        if given.get("origin", "null" if "origin" in given else None) not in (None, *self.origins):
            return 403, "expected requests of this page, got those of another origin"
        if given.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "expected requests of this page, got those of another site"
        first = path.split("/")[1] if path.startswith("/") else ""
        if not hmac.compare_digest(first.encode(), self.token.encode()):
            return 404, "expected the address that covector view printed, with its token"
        length = given.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "expected a whole number as Content-Length"
        if len(length) > 12 or int(length) > MOST_BYTES:
            return 413, f"expected a request of at most {MOST_BYTES} bytes, got more; ask for less at once"
        return None


async def _body(receive: Receive) -> bytes | None:
    """The whole body, or None where it is longer than allowed (whatever its Content-Length said)."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> MutableMapping[str, Any]:
        return next(given, None) or await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message.get("headers", [])}
            more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in own]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sent


async def _answer(send: Send, status: int, why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
