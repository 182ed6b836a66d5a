"""A server as a process: a stop answers what was asked, and one that is killed starts again as if nothing had been."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.everyday import texts
from tests.serving import place_tasks

ROWS = [text for text, _ in texts(60, seed=3)]
KILLS = int(os.environ.get("ABMLL_KILLS", "1"))
"""Times that a server is killed and started again; `make load` has more."""
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_tasks(tmp_path_factory.mktemp("home"))


@contextmanager
def server(home: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`abmll serve`, and its port."""
    line = [sys.executable, "-m", "abmll", "serve", "runs/mine", "--task", "t", "--port", "0"]
    environment = {**os.environ, "ABMLL_SERVE_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=home, text=True, env=environment, **pipes) as process:
        assert process.stdout is not None
        try:
            found = re.search(r":(\d+) \(t\)", process.stdout.readline())
            assert found is not None
            yield process, int(found[1])
        finally:
            process.kill()


def ask(port: int, rows: list[str]) -> list[list[float]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    connection.request("POST", "/v1/classify", json.dumps({"input": rows}), headers)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, found
    return [row["probs"] for row in found["data"]]


def test_a_stop_answers_what_was_asked_and_a_kill_leaves_nothing_behind(home: Path) -> None:
    before = sorted(path for path in home.rglob("*") if path.is_file())
    expected: list[list[float]] = []
    for number in range(KILLS):
        with server(home) as (killed, port), ThreadPoolExecutor(3) as pool:
            expected = expected or ask(port, ROWS)
            asked = [pool.submit(ask, port, ROWS) for _ in range(3)] if number % 2 else []
            killed.send_signal(signal.SIGKILL)  # every other time in the middle of answers
            killed.wait(20)
            assert all(future.exception() or future.result() == expected for future in asked)
    with server(home) as (stopped, port), ThreadPoolExecutor(6) as pool:
        assert ask(port, ROWS) == expected
        waiting = [pool.submit(ask, port, ROWS) for _ in range(6)]
        while not any(future.done() for future in waiting):
            time.sleep(0.005)
        stopped.send_signal(signal.SIGTERM)
        stopped.send_signal(signal.SIGTERM)  # within a second it is the same request
        assert [future.result() for future in waiting] == [expected] * 6
        out, err = stopped.communicate(timeout=30)
    assert stopped.returncode == 0, err
    assert out.endswith("Stopped\n")
    assert TOKEN not in out + err
    assert ROWS[0] not in out + err
    assert sorted(path for path in home.rglob("*") if path.is_file()) == before
