"""A server in this process, on a port of this machine, and clients that ask it over sockets."""

import atexit
import functools
import http.client
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from abmll.serving.app import Served
from abmll.serving.engine import Engine
from abmll.serving.limits import LOOPBACK, Limits
from abmll.serving.metrics import Metrics
from abmll.serving.server import Address, bound, make_server, pages_of
from abmll.showing.opening import Opened, ToServe, open_tasks
from tests.commands import exit_code, place_saved_task
from tests.everyday import asked, write_asked

JSON = {"Content-Type": "application/json"}

ANY = Limits(rate=0.0)


def place_tasks(folder: Path) -> Path:
    """A tiny run with the tasks t (texts, 26 rows held back), draws (other settings) and own (questions)."""
    shutil.copytree(_placed(), folder, dirs_exist_ok=True)
    return folder


@functools.cache
def _placed() -> Path:
    """Made once in a process; `place_tasks` copies it, but for the base model, which nobody writes to."""
    folder = place_saved_task(Path(tempfile.mkdtemp(prefix="abmll-serving-")))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_asked(folder / "asked.jsonl", asked(20))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        line = "adapt runs/mine my.csv --save draws --no-check adaptation.samples=3"
        assert exit_code(line, patch) == 0
        assert exit_code("adapt runs/mine asked.jsonl --save own --no-check", patch) == 0
    return folder


@dataclass
class Client:
    """Asks a server, by one connection a question."""

    port: int
    served: Served

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = JSON
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body (JSON, or else bytes) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            data, found = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
        is_json = found.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(data) if is_json else data, found

    def classify(self, **request: Any) -> Any:
        """The answer to a request that must be taken."""
        status, found, _ = self.ask("POST", "/v1/classify", json.dumps(request).encode())
        assert status == 200, found
        return found

    def refused(self, status: int, **request: Any) -> str:
        """Why a request was not taken."""
        found = self.ask("POST", "/v1/classify", json.dumps(request).encode())
        assert found[0] == status, found
        return str(found[1]["error"]["message"])


@contextmanager
def serving(
    opened: Opened,
    limits: Limits = ANY,
    risk: float | None = None,
    token: str | None = None,
    examples: Mapping[str, Path] | None = None,
) -> Iterator[Client]:
    """Serve opened tasks while the block runs; their model is the engine's from then on."""
    metrics: list[Metrics] = []
    engine = Engine(opened.ask, limits.queue, lambda *batch: metrics[0].batch(*batch))
    metrics.append(Metrics(lambda: engine.waiting))
    served = Served(
        engine.start(), opened.tasks, limits, metrics[0], risk, token, LOOPBACK, pages_of(opened, examples or {})
    )
    address, ports, listens = Address(port=0, token=token, drain_seconds=10.0), list[int](), threading.Event()

    def listening(port: int) -> None:
        ports.append(port)
        listens.set()

    server = make_server(served, address, listening)
    with bound(address) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert listens.wait(30)
            yield Client(ports[0], served)
        finally:
            server.should_exit = True
            thread.join(30)
            engine.close(30.0)


def opened_in(folder: Path, *tasks: str) -> Opened:
    """Tasks of the run that `place_tasks` made."""
    return open_tasks(ToServe(folder / "runs" / "mine", tasks))
