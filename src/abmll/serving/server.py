"""Run the application: on which address, with which token, and how it stops."""

import asyncio
import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from abmll.errors import AbmllError
from abmll.files import open_regular
from abmll.process.stopping import ONE_REQUEST, SIGNALS
from abmll.serving.app import Served, build_app
from abmll.serving.engine import Engine
from abmll.serving.limits import LOOPBACK, Limits
from abmll.serving.metrics import Metrics
from abmll.showing.bars import add_speakers, find_examples
from abmll.showing.opening import Opened, ToServe, open_tasks
from abmll.showing.page import live_page

TOKEN_VARIABLE = "ABMLL_SERVE_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Address:
    """Where a server listens, and who may ask it.

    Attributes:
        host: a name or an address of this machine.
        port: 0: any that is free.
        token: that requests must bear; None: none, on a loopback address alone.
        drain_seconds: after which a stop leaves requests unanswered.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.token is None and not self.is_loopback:
            raise AbmllError(
                f"--host {self.host}: others can reach it, so a token is needed: a file with --token-file, or the "
                f"environment variable {TOKEN_VARIABLE}"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def read_token(file: Path | None) -> str | None:
    """The token of a file, or else of the environment; None where there is neither.

    Raises:
        AbmllError: it is too short or has other characters than a header takes; it is not repeated.
        OSError: the file cannot be read.
    """
    if file is not None:
        with open_regular(file) as opened:
            text = opened.read(4096).decode("utf-8", "replace").strip()
        where = str(file)
    else:
        text, where = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not text:
            return None
    if len(text) < SHORTEST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise AbmllError(f"{where}: a token has {SHORTEST_TOKEN} ASCII characters or more, none of them a space")
    return text


class Protocol(H11Protocol):
    """HTTP/1.1 in which the head of a request must be there in time: a slow client keeps no connection."""

    head_seconds = 20.0

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Go on waiting, if no request is being answered."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    """Stops gently at any of the signals that stop the other commands: what was asked is answered, and no more taken.

    Args:
        config: of uvicorn.
        listening: hears of the port, once requests can come.
    """

    def __init__(self, config: uvicorn.Config, listening: Callable[[int], None]) -> None:
        super().__init__(config)
        self._listening, self._asked = listening, 0.0

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            self._listening(self.servers[0].sockets[0].getsockname()[1])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises the signal again at the end, which would end the process by it; here it is a request."""
        if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit and time.monotonic() - self._asked < ONE_REQUEST:
            return
        self.force_exit = self.should_exit
        self.should_exit, self._asked = True, time.monotonic()


def serve_run(
    asked: ToServe,
    address: Address,
    limits: Limits,
    listening: Callable[[int], None] = lambda port: None,
    *,
    page: bool = True,
) -> None:
    """Serve saved tasks until a signal asks to stop; then what was asked already is answered.

    Args:
        asked: what is served.
        address: where.
        limits: what is let in.
        listening: hears of the port, once requests can come.
        page: there is a page at `/`, which asks the base model, too.

    Raises:
        AbmllError: as `open_tasks`; or nothing can listen there.
    """
    if limits.queue < limits.rows:
        raise AbmllError(f"--queue {limits.queue}: is less than the rows of one request, --rows {limits.rows}")
    opened = open_tasks(asked)
    pages = pages_of(opened, asked.examples) if page else {}
    metrics: list[Metrics] = []
    engine = Engine(opened.ask, limits.queue, lambda *batch: metrics[0].batch(*batch))
    metrics.append(Metrics(lambda: engine.waiting))
    hosts = LOOPBACK if address.is_loopback else None
    served = Served(engine.start(), opened.tasks, limits, metrics[0], asked.risk, address.token, hosts, pages)
    server = make_server(served, address, listening)
    try:
        with bound(address) as listener:
            server.run(sockets=[listener])
    finally:
        engine.close(0.0 if server.force_exit else address.drain_seconds)


def pages_of(opened: Opened, files: Mapping[str, Path]) -> dict[str, Any]:
    """What the page at `/` says of each task; the base can be asked from now on, too.

    Raises:
        AbmllError: a file of examples is bad, or is not what the task was adapted to.
    """
    pages = {}
    for name, task in opened.tasks.items():
        examples = find_examples(task, files.get(name))
        add_speakers(opened, task, examples.shown)
        pages[name] = live_page(task, examples)
    return pages


def make_server(served: Served, address: Address, listening: Callable[[int], None]) -> Server:
    """A server of an application, which stops once its `should_exit` is set."""
    limits = served.limits
    protocol = type("LimitedProtocol", (Protocol,), {"head_seconds": limits.body_seconds})
    config = uvicorn.Config(
        build_app(served),
        loop="asyncio",
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # what clients ask is nobody's business
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(address.drain_seconds)),
    )
    return Server(config, listening)


def bound(address: Address) -> socket.socket:
    """A socket there; uvicorn's own would end the process where it is taken, without the reason.

    Raises:
        AbmllError: nothing can listen there.
    """
    host = address.host.strip("[]")
    listener: socket.socket | None = None
    try:
        family, _, _, _, where = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        if listener is not None:
            listener.close()
        reason = error.strerror or str(error)
        raise AbmllError(f"{host}:{address.port}: cannot listen there ({reason})") from None
    return listener
