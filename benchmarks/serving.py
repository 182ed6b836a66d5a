"""A server under load: 50 clients at once, 10,000 rows, no answer lost or another row's, memory flat; or a tiny one.

    python -m benchmarks.serving --run smollm2 --task load --out benchmarks/results/serving.json

The task is adapted first, if it is not there, and 500 different rows are predicted by `abmll predict`, to which every
answer is compared. Clients ask 1 to 16 rows at a time, over connections of their own. Memory is the server's resident
size, read once a tenth of the rows is answered and at the end. With --progress FILE a line of JSON is appended every
ten seconds, so that a load that is cut short leaves what it saw until then.
"""

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from abmll.everyday.session import OWN_DEFAULTS
from benchmarks.common import describe, write_result

CLIENTS, ROWS, DIFFERENT = 50, 10_000, 500
WORDS = ("river", "garden", "harbour", "mountain", "street", "island", "valley", "bridge")


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of several lengths, with labels."""
    rng = random.Random(seed)
    out = []
    for number in range(count):
        word, label = (("sun", "good"), ("rain", "bad"))[number % 2]
        places = " and ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))
        out.append((f"the {word} is over the {places}, note {seed} {number}", label))
    return out


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def abmll(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "abmll", *words], check=True, stdout=subprocess.DEVNULL)


def expected_of(run: str, task: str, rows: list[str]) -> np.ndarray:
    """What `abmll predict` says of each row."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.jsonl", Path(folder) / "out.jsonl"
        write_rows(source, [{"text": text} for text in rows])
        abmll("predict", run, str(source), "--task", task, "-o", str(out))
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return np.array([[row["p_bad"], row["p_good"]] for row in found])


def adapt_if_missing(run: str, task: str) -> None:
    folder = next((p for p in (Path(run), Path("runs") / run) if (p / "tasks" / task).is_dir()), None)
    if folder is None:
        with tempfile.TemporaryDirectory() as where:
            source = Path(where) / "labelled.jsonl"
            write_rows(source, [{"text": text, "label": label} for text, label in texts(40, seed=1)])
            abmll("adapt", run, str(source), "--save", task, "--no-check")


class Load:
    """What clients saw."""

    def __init__(self, port: int, rows: list[str], expected: np.ndarray) -> None:
        self.port, self.rows, self.expected = port, rows, expected
        self.lock, self.answered, self.refused = threading.Lock(), 0, 0
        self.seconds: list[float] = []
        self.worst = 0.0

    def client(self, number: int, count: int) -> None:
        """Ask so many rows; every answer must be that of its row."""
        rng = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        while count:
            which = [rng.randrange(len(self.rows)) for _ in range(min(count, rng.randint(1, 16)))]
            body = json.dumps({"input": [self.rows[i] for i in which]})
            began = time.perf_counter()
            connection.request("POST", "/v1/classify", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found = json.loads(answer.read())
            if answer.status == 503:  # the queue is full
                with self.lock:
                    self.refused += 1
                time.sleep(rng.random())
                continue
            assert answer.status == 200, found
            probabilities = np.array([row["probs"] for row in found["data"]])
            assert probabilities.shape == (len(which), 2), "an answer is lost"
            with self.lock:
                self.seconds.append(time.perf_counter() - began)
                self.answered += len(which)
                self.worst = max(self.worst, float(np.abs(probabilities - self.expected[which]).max()))
            count -= len(which)
        connection.close()


def watch(load: Load, process: psutil.Process, over: threading.Event, progress: Path | None) -> list[tuple[int, int]]:
    """Rows answered and the server's resident size, every half a second until it is over."""
    sizes, began = [], time.perf_counter()
    told = began
    while not over.wait(0.5) and process.is_running():
        now = time.perf_counter()
        sizes.append((load.answered, process.memory_info().rss))
        if progress is not None and now - told >= 10:
            told = now
            line = {
                "seconds": round(now - began, 1),
                "rows_answered": load.answered,
                "requests": len(load.seconds),
                "refused_for_now_503": load.refused,
                "largest_difference_of_a_probability": load.worst,
                "resident_megabytes": sizes[-1][1] / 1e6,
            }
            with progress.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    return sizes


def measure(
    run: str,
    task: str,
    clients: int = CLIENTS,
    total: int = ROWS,
    different: int = DIFFERENT,
    progress: Path | None = None,
) -> dict[str, Any]:
    """The server under load; it ends by SIGTERM."""
    adapt_if_missing(run, task)
    rows = [text for text, _ in texts(different, seed=2)]
    expected = expected_of(run, task, rows)
    line = [sys.executable, "-m", "abmll", "serve", run, "--task", task]
    line += ["--port", "0", "--rate", "0", "--timeout", "600"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", server.stdout.readline())
        assert found is not None, "the server did not start"
        process, load = psutil.Process(server.pid), Load(int(found[1]), rows, expected)
        over, spent = threading.Event(), process.cpu_times().user
        began = time.perf_counter()
        with ThreadPoolExecutor(1) as watching:
            seen = watching.submit(watch, load, process, over, progress)
            try:
                with ThreadPoolExecutor(clients) as pool:
                    share = [total // clients + (n < total % clients) for n in range(clients)]
                    list(pool.map(load.client, range(clients), share))
                seconds, spent = time.perf_counter() - began, process.cpu_times().user - spent
                last = process.memory_info().rss
            finally:  # a client that failed must not leave a server, and this process waiting for it
                over.set()
                server.terminate()
                code = server.wait(60)
    sizes = seen.result()
    warm = next((rss for answered, rss in sizes if answered >= total / 10), sizes[-1][1])
    latency = np.quantile(load.seconds, [0.5, 0.95, 1.0])
    return {
        "what": "abmll serve under load; answers compared with those of abmll predict on the same rows",
        "run": run,
        "sampler": OWN_DEFAULTS["adaptation"]["sampler"],
        "clients": clients,
        "rows_asked": total,
        "rows_answered": load.answered,
        "different_rows": different,
        "requests": len(load.seconds),
        "refused_for_now_503": load.refused,
        "largest_difference_of_a_probability": load.worst,
        "seconds": seconds,
        "rows_per_second": load.answered / seconds,
        "cpu_seconds_of_the_server": spent,
        "request_seconds": dict(zip(("median", "95 %", "most"), latency.tolist(), strict=True)),
        "resident_megabytes": {
            "after a tenth": warm / 1e6,
            "most": max(rss for _, rss in sizes) / 1e6,
            "end": last / 1e6,
        },
        "memory_ratio_end_to_a_tenth": last / warm,
        "exit_code_after_SIGTERM": code,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="smollm2")
    parser.add_argument("--task", default="load")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--progress", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.run, arguments.task, arguments.clients, arguments.rows, progress=arguments.progress)
    if arguments.out is not None:
        write_result(arguments.out, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
