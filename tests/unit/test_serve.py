"""The server as clients meet it: answers are those of `abmll predict`, whoever asks beside; what is refused."""

import csv
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abmll.errors import AbmllError
from abmll.question import Question
from abmll.serving.engine import Busy, Closed, Engine
from abmll.serving.limits import Limits
from abmll.serving.server import Address, read_token
from abmll.showing.opening import Opened
from abmll.systems.predict import Answer
from tests.commands import exit_code
from tests.everyday import asked, texts, write_asked, write_csv
from tests.serving import JSON, Client, opened_in, place_tasks, serving

ROWS = [text for text, _ in texts(300, seed=7)]
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, and what `abmll predict` says of the rows."""
    folder = place_tasks(tmp_path_factory.mktemp("home"))
    write_csv(folder / "rows.csv", ["text"], [[text] for text in ROWS])
    write_asked(folder / "rows.jsonl", [{**row, "answer": None} for row in asked(30, seed=5)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for task, rows, more in (
            ("t", "rows.csv", ""),
            ("t", "rows.csv", "--abstain-below-risk 0.3"),
            ("draws", "rows.csv", ""),
            ("own", "rows.jsonl", ""),
        ):
            out = f"{task}{'-sure' if more else ''}.jsonl"
            assert exit_code(f"predict runs/mine {rows} --task {task} -o {out} {more}", patch) == 0
    return folder


@pytest.fixture(scope="module")
def opened(home: Path) -> Opened:
    return opened_in(home, "t", "draws", "own")


@pytest.fixture(scope="module")
def client(opened: Opened) -> Iterator[Client]:
    with serving(opened) as found:
        yield found


def predicted(home: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / f"{name}.jsonl").read_text().splitlines()]


def probabilities(rows: list[dict[str, Any]]) -> list[list[float]]:
    return [row["probabilities"] if "probabilities" in row else [row["p_bad"], row["p_good"]] for row in rows]


@pytest.mark.parametrize("name", ["t", "draws", "own"])
def test_answers_are_those_of_predict_bit_for_bit_task_after_task(home: Path, client: Client, name: str) -> None:
    file = "rows.jsonl" if name == "own" else "rows.csv"
    rows = (
        [json.loads(x) for x in (home / file).open()] if name == "own" else list(csv.DictReader((home / file).open()))
    )
    found, expected = client.classify(model=name, rows=rows), predicted(home, name)
    assert [row["probs"] for row in found["data"]] == probabilities(expected)
    for key in ("prediction", "confidence", "spread", "information"):
        assert [row[key] for row in found["data"]] == [row[key] for row in expected]
    assert [row["index"] for row in found["data"]] == list(range(len(rows)))
    assert {row["answered"] for row in found["data"]} == {None}
    assert found["labels"] == (None if name == "own" else ["bad", "good"])
    assert found["usage"] == {"rows": len(rows)}


def test_many_clients_at_once_get_their_own_answers(home: Path, client: Client) -> None:
    expected = {name: np.array(probabilities(predicted(home, name))) for name in ("t", "draws")}

    def one(number: int) -> float:
        rng = random.Random(number)
        name, which = rng.choice(("t", "draws")), rng.sample(range(len(ROWS)), rng.randint(1, 9))
        found = client.classify(model=name, input=[ROWS[i] for i in which])
        assert found["model"] == name
        return float(np.abs(np.array([row["probs"] for row in found["data"]]) - expected[name][which]).max())

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(one, range(64))) < 1e-5
    _, text, _ = client.ask("GET", "/metrics")
    batches = float(next(x for x in text.decode().splitlines() if x.startswith("abmll_batch_rows_count")).split()[1])
    assert batches < 64, "requests were answered together"


def test_a_promise_is_that_of_predict_where_the_same_rows_fix_its_thresholds(home: Path, opened: Opened) -> None:
    expected = predicted(home, "t-sure")
    task = replace(opened.tasks["t"], pilot=np.array([row["confidence"] for row in expected]))
    promise = task.promise(0.3)
    answered = [row["confidence"] >= promise.covered.threshold for row in expected]
    assert answered == [row["answered"] for row in expected]


def test_what_is_promised_is_told_and_a_row_may_stay_unanswered(client: Client) -> None:
    found = client.classify(model="t", input=ROWS[:5], abstain_below_risk=0.3)
    assert found["promise"]["threshold"] is None, "every row is answered"
    assert [row["answered"] for row in found["data"]] == [True] * 5
    assert all(row["label"] in row["set"] for row in found["data"])
    assert "needs 45 rows held back" in client.refused(422, model="t", input="x", abstain_below_risk=0.05)
    assert "here are 0" in client.refused(422, model="own", rows=asked(1), abstain_below_risk=0.3)
    assert "expected a number between 0 and 1" in client.refused(422, model="t", input="x", abstain_below_risk=1.5)


def test_below_the_threshold_there_is_no_prediction(opened: Opened) -> None:
    task = replace(opened.tasks["t"], pilot=np.linspace(0.5, 0.6, 50))
    question = task.texts(["one", "two"])
    sure, unsure = (_answer((1 - p, p)) for p in (0.99, 0.51))
    promise = replace(task.promise(0.3), covered=replace(task.promise(0.3).covered, threshold=0.9), least=0.3)
    shown = task.shown(question, (sure, unsure), promise)
    assert [(row["answered"], row["prediction"], row["label"]) for row in shown] == [
        (True, "good", "good"),
        (False, None, "good"),
    ]
    assert [row["set"] for row in shown] == [["good"], ["good", "bad"]]


def _answer(p: tuple[float, ...]) -> Any:
    return Answer(p, int(np.argmax(p)), max(p), None, None)


@pytest.mark.parametrize(
    ("status", "request_", "said"),
    [
        (404, {"input": "x"}, "one of t, draws, own"),
        (404, {"model": "nothing", "input": "x"}, "one of t, draws, own"),
        (422, {"model": "t"}, "either input"),
        (422, {"model": "t", "input": "x", "rows": []}, "either input"),
        (422, {"model": "t", "input": []}, "0 rows"),
        (422, {"model": "t", "input": ["fine", " "]}, "row:2: text is empty"),
        (422, {"model": "t", "rows": [{"txt": "x"}]}, "text is missing"),
        (422, {"model": "t", "rows": ["x"]}, "rows.0"),
        (422, {"model": "t", "input": 3}, "input"),
        (422, {"model": "t", "input": "x", "temperature": 0}, "temperature"),
        (422, {"model": "own", "input": "x"}, "choices of their own"),
        (422, {"model": "own", "rows": [{"question": "Q", "choices": ["a"]}]}, "row:1"),
        (413, {"model": "t", "input": ["x"] * 1025}, "1 to 1,024"),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why(
    client: Client, status: int, request_: dict[str, Any], said: str
) -> None:
    assert said in client.refused(status, **request_)


def test_one_clients_bad_row_is_no_others_failure(client: Client) -> None:
    """What does not fit the model is found when it is encoded, in a batch with the rows of others."""
    long = {"question": "long " * 3000, "choices": ["a", "b"]}
    good = asked(1, seed=9)[0]
    with ThreadPoolExecutor(8) as pool:
        bad = [
            pool.submit(client.ask, "POST", "/v1/classify", json.dumps({"model": "own", "rows": [long]}).encode())
            for _ in range(4)
        ]
        fine = [pool.submit(client.classify, model="own", rows=[good]) for _ in range(4)]
        assert {future.result()[0] for future in bad} == {422}
        assert len({json.dumps(future.result()["data"][0]["label"]) for future in fine}) == 1


BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"3",
    b'"x"',
    b"\xff\xfe",
    b'{"input": NaN, "model": "t"}',
    b'{"input": "a", "input": "b"}',
    b'{"model": "t", "input": "\\ud800"}',
    b'{"model": "t", "rows": [{"text": "a\\u0000b"}]}',
    b'{"model": "t", "rows": [{"text": 1e999}]}',
    b'{"model": "t", "rows": [{"text": ' + b"9" * 5000 + b"}]}",
    b'{"model": "t", "rows": ' + b"[" * 100000 + b"]" * 100000 + b"}",
    b'{"model": ["t"], "input": {}}',
]


def test_fuzzed_bodies_end_in_4xx_and_the_server_goes_on(client: Client) -> None:
    rng = random.Random(0)
    good = json.dumps({"model": "t", "input": ["the sun is over the river"]}).encode()
    bodies = [*BODIES, *(_spoilt(good, rng) for _ in range(80))]
    for body in bodies:
        status, found, _ = client.ask("POST", "/v1/classify", body)
        assert 400 <= status < 500 or status == 200, (body, found)
        assert status == 200 or set(found["error"]) == {"message", "type", "code"}
    assert all(client.ask("POST", "/v1/classify", body)[0] in (400, 422) for body in BODIES)
    assert client.ask("GET", "/health")[:2] == (200, {"status": "ok"})


def _spoilt(body: bytes, rng: random.Random) -> bytes:
    out = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out))
        if rng.random() < 0.5:
            out[place] = rng.randrange(256)
        else:
            del out[place : place + rng.randint(1, 9)]
    return bytes(out)


def test_only_json_of_this_machines_own_pages_is_taken(client: Client) -> None:
    body = json.dumps({"model": "t", "input": "x"}).encode()
    assert client.ask("POST", "/v1/classify", body, {"Content-Type": "text/plain"})[0] == 415
    assert client.ask("GET", "/v1/models", headers={"Host": "evil.example"})[0] == 421
    assert client.ask("GET", "/v1/models", headers={"Host": "localhost:1"})[0] == 200
    assert client.ask("GET", "/nothing")[0] == 404
    assert client.ask("PUT", "/v1/classify", body)[0] == 405


def test_the_api_is_described_and_the_description_fetches_nothing(client: Client) -> None:
    status, schema, _ = client.ask("GET", "/openapi.json")
    assert status == 200
    assert {"/v1/classify", "/v1/models", "/health", "/metrics"} <= set(schema["paths"])
    asked_for = schema["paths"]["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(asked_for["properties"]) == {"model", "input", "rows", "abstain_below_risk"}
    _, page, headers = client.ask("GET", "/docs")
    assert b"/v1/classify" in page
    assert b"http" not in page.replace(b"HTTP", b"")
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_models_tell_labels_and_columns_and_no_path(home: Path, client: Client) -> None:
    _, found, _ = client.ask("GET", "/v1/models")
    assert [model["id"] for model in found["data"]] == ["t", "draws", "own"]
    assert found["data"][0]["labels"] == ["bad", "good"]
    assert found["data"][0]["held_back"] == 26
    assert str(home) not in json.dumps(found)


def test_a_slow_client_stops_nobody_and_is_dropped(home: Path) -> None:
    with serving(opened_in(home, "t"), Limits(rate=0.0, body_seconds=0.5)) as client:
        head = (
            "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        )
        slow = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(9)]
        for number, connection in enumerate(slow):
            connection.sendall((head + ("\r\n{" if number % 3 else "")).encode() if number % 2 else b"POST")
        assert client.classify(model="t", input=ROWS[0])["usage"] == {"rows": 1}
        for connection in slow:
            connection.settimeout(20)
            said = connection.recv(9999)
            assert said == b"" or b" 408 " in said.partition(b"\r\n")[0]
            connection.close()
        assert client.classify(model="t", input=ROWS[0])["usage"] == {"rows": 1}


def test_size_rate_and_queue_are_limited(home: Path) -> None:
    limits = Limits(body=2000, rows=4, queue=4, rate=2.0)
    with serving(opened_in(home, "t"), limits) as client:
        assert client.ask("POST", "/v1/classify", b"x" * 2001)[0] == 413
        status, found, headers = 200, None, {}
        for _ in range(8):
            status, found, headers = client.ask("POST", "/v1/classify", b"{}")
            if status == 429:
                break
        assert (status, found["error"]["code"]) == (429, 429)
        assert int(headers["retry-after"]) >= 1
        assert client.ask("GET", "/health")[0] == 200
        chunked = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        chunked += b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n" + b"400\r\n" + b"x" * 1024
        time.sleep(0.6)
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(chunked + b"\r\n")
            assert b" 413 " in connection.recv(999).partition(b"\r\n")[0]


def test_trust_47_without_the_token_nothing_is_told(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(opened_in(home, "t"), token=TOKEN) as client:
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing"):
            assert client.ask("GET", path)[0] == 401
            assert client.ask("GET", path, headers={"Authorization": "Bearer wrong"})[0] == 401
        bearing = {"Authorization": f"Bearer {TOKEN}"}
        assert client.ask("GET", "/v1/models", headers=bearing)[0] == 200
        body = json.dumps({"input": ROWS[0]}).encode()
        assert client.ask("POST", "/v1/classify", body, {**JSON, **bearing})[0] == 200
        assert client.ask("GET", "/health")[0] == 200
        assert TOKEN not in repr(client.served)
    assert TOKEN not in "".join(capfd.readouterr())


class Model:
    """Says each question's number as its confidence, once it is let; the sizes of batches are kept."""

    def __init__(self) -> None:
        self.let, self.batches = threading.Semaphore(0), list[int]()

    def ask(self, speaker: str, questions: list[Question]) -> tuple[Answer, ...]:
        self.batches.append(len(questions))
        self.let.acquire()
        return tuple(Answer((1.0,), 0, float(question.id), None, None) for question in questions)


def numbered(*numbers: int) -> list[Question]:
    return [Question(str(number), "Which?", ("a", "b"), None) for number in numbers]


def numbers(future: Future[tuple[Answer, ...]]) -> list[float]:
    return [answer.confidence for answer in future.result(20)]


def test_short_requests_pass_a_long_one_and_are_answered_together() -> None:
    model = Model()
    engine = Engine(model.ask, 2000).start()
    first = engine.submit("a", numbered(0))
    while not model.batches:
        time.sleep(0.001)
    long = engine.submit("a", numbered(*range(600)))
    short = [engine.submit(name, numbered(n, n)) for n, name in enumerate("baab")]
    dropped = engine.submit("a", numbered(77))
    assert engine.waiting == 600 + 8 + 1
    with pytest.raises(Busy):
        engine.submit("a", numbered(*range(1500)))
    assert dropped.cancel()
    model.let.release(20)
    assert numbers(first) == [0]
    assert numbers(long) == list(range(600))
    assert [numbers(future) for future in short] == [[n, n] for n in range(4)]
    assert model.batches == [1, 256, 4, 4, 256, 88]
    engine.close(20.0)
    with pytest.raises(Closed):
        engine.submit("a", numbered(1))


def test_a_close_answers_what_waits_or_says_that_it_does_not() -> None:
    model = Model()
    engine = Engine(model.ask, 99).start()
    futures = [engine.submit("a", numbered(n)) for n in range(3)]
    model.let.release(9)
    engine.close(20.0)
    assert [numbers(future) for future in futures] == [[0], [1], [2]]
    slow = Model()
    engine = Engine(slow.ask, 99).start()
    futures = [engine.submit(name, numbered(1)) for name in "ab"]
    engine.close(0.1)
    with pytest.raises(Closed):
        futures[1].result(20)
    slow.let.release()


def test_an_address_that_others_reach_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(AbmllError, match="a token is needed"):
            Address(host)
        assert TOKEN not in repr(Address(host, token=TOKEN))
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"):
        assert Address(host).is_loopback
    monkeypatch.setenv("ABMLL_SERVE_TOKEN", "short")
    with pytest.raises(AbmllError, match="16 ASCII characters") as refused:
        read_token(None)
    assert "short" not in str(refused.value)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    monkeypatch.delenv("ABMLL_SERVE_TOKEN")
    assert read_token(None) is None
