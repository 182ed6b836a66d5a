"""What a request must be to get to the application at all: from whom, how large, how fast, how often."""

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
MOST_CLIENTS = 10_000
"""Clients whose rates are kept."""
OPEN = ("/health", "/")
"""Paths that need no token: the first tells no more than that there is a server, the second is a page without data."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True)
class Limits:
    """What is let in.

    Attributes:
        body: bytes of a request.
        rows: of a request.
        queue: rows that wait, of all requests.
        rate: requests a second of a client, after a burst of two seconds; 0: any.
        body_seconds: until the body of a request is there, and its headers.
        seconds: until it is answered.
        connections: at a time.
    """

    body: int = 4 << 20
    rows: int = 1024
    queue: int = 8192
    rate: float = 100.0
    body_seconds: float = 20.0
    seconds: float = 120.0
    connections: int = 512


def refusal(status: int, message: str, seconds: float | None = None) -> JSONResponse:
    """An error as JSON, in the shape of OpenAI's and vLLM's servers.

    >>> refusal(413, "too large").body
    b'{"error":{"message":"too large","type":"invalid_request_error","code":413}}'
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {} if seconds is None else {"Retry-After": str(math.ceil(seconds))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers)


class Rates:
    """A bucket of requests for each client, which fills by `rate` a second up to two seconds' worth.

    >>> rates = Rates(1.0)
    >>> [rates.wait("ann", now) for now in (0.0, 0.0, 0.0, 1.0)]
    [0.0, 0.0, 1.0, 0.0]
    """

    def __init__(self, rate: float) -> None:
        self.rate, self._left = rate, OrderedDict[str, tuple[float, float]]()

    def wait(self, client: str, now: float | None = None) -> float:
        """Seconds until a client's next request is let in; 0: this one is."""
        if not self.rate:
            return 0.0
        now, most = time.monotonic() if now is None else now, max(1.0, 2 * self.rate)
        left, before = self._left.pop(client, (most, now))
        left = min(most, left + self.rate * (now - before))
        allowed = left >= 1.0
        self._left[client] = (left - 1.0 if allowed else left, now)
        if len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self.rate


class Guard:
    """Reads a request whole, within limits, before the application hears of it; nothing of a request is logged.

    Args:
        app: the application.
        limits: what is let in.
        token: that every request must bear, but for `OPEN`; None: none.
        hosts: names of this server that a request may be for, so that no page of a browser reaches it by a name of its
            own (DNS rebinding); None: any.
    """

    def __init__(
        self, app: App, limits: Limits, token: str | None = None, hosts: tuple[str, ...] | None = None
    ) -> None:
        self.app, self.limits, self.token, self.hosts = app, limits, token, hosts
        self.rates = Rates(limits.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the life of the application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is not None:
            await refused(scope, receive, send)
            return
        body = b""
        if scope["method"] in ("POST", "PUT", "PATCH"):
            try:
                async with asyncio.timeout(self.limits.body_seconds):
                    read = await self._body(receive)
            except TimeoutError:
                await refusal(408, f"the request was not there after {self.limits.body_seconds:g} s")(
                    scope, receive, send
                )
                return
            if read is None:
                return  # the client is gone
            if len(read) > self.limits.body:
                await self._too_large()(scope, receive, send)
                return
            body = read
        await self._run(scope, receive, send, body)

    def _refused(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> JSONResponse | None:
        """What is wrong with a request, by its head."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        if self.hosts is not None and name.lower() not in self.hosts:
            return refusal(421, "this server is not known by that name; ask for localhost")
        if self.token is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token.encode()):
                return refusal(401, "a token is needed: Authorization: Bearer TOKEN")
        if scope["method"] == "POST":
            client = (scope.get("client") or ("",))[0]
            if seconds := self.rates.wait(client):
                return refusal(429, f"more than {self.limits.rate:g} requests a second", seconds)
            kind_of = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind_of != b"application/json":
                return refusal(415, "Content-Type must be application/json")
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length[:20]) > self.limits.body:
                return self._too_large()
        return None

    def _too_large(self) -> JSONResponse:
        return refusal(413, f"more than {self.limits.body:,} bytes; send fewer rows at a time")

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, or a part of it that is too large already; None: the client left."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body or not message.get("more_body"):
                return b"".join(parts)

    async def _run(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        """Let the application answer; a client that leaves takes its rows out of the queue."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()

        async def again() -> MutableMapping[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        answering, watching = asyncio.ensure_future(self.app(scope, again, send)), asyncio.ensure_future(until_gone())
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        finally:
            answering.cancel()
            watching.cancel()
        if not answering.cancelled() and (error := answering.exception()) is not None:
            raise error
