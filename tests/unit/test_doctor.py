"""`abmll doctor`, against facts obtained in other ways."""

import importlib.metadata
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from abmll import kernels
from abmll.cli import app
from abmll.diagnosis import machine as doctor
from abmll.diagnosis.machine import diagnose
from abmll.kernels import onednn


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(params=[200, 404])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_versions_and_devices_are_those_of_the_installation() -> None:
    found = diagnose()
    for name in ("transformers", "peft", "safetensors", "numpy"):
        assert found.versions[name] == importlib.metadata.version(name)
    assert found.versions["torch"] == torch.__version__
    assert found.devices["cpu"]["threads"] == torch.get_num_threads()
    assert set(found.devices) >= {"cpu"}
    assert found.free["memory_bytes"] > 1 << 20
    assert json.loads(json.dumps(found.to_dict()))["versions"] == found.versions


def test_the_hub_is_reached_or_not(server: str) -> None:
    assert diagnose(server).hub["reached"].startswith("yes")
    lost = diagnose()
    assert lost.hub["reached"].startswith("no (")
    assert any("hub does not answer" in line for line in lost.advice)


def test_offline_is_told_and_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert diagnose(server).hub["reached"] == "not tried: HF_HUB_OFFLINE is set"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert diagnose("file:///etc/hostname").hub["reached"].startswith("not tried")


def test_every_op_is_told_with_what_runs_it_and_why() -> None:
    told = diagnose().kernels["cpu"]
    assert set(told) == set(kernels.OPS)
    for name, runs in told.items():
        home = kernels.op(name, torch.device("cpu")).__module__
        assert home.startswith(f"abmll.kernels.{runs.split(',')[0].split(':')[0].split(' ')[0]}")
    if onednn.why_not() is not None:
        assert str(onednn.why_not()) in told["frozen_linear"]
    kernels.use("triton")
    try:
        told = diagnose(check=False).kernels["cpu"]
        assert "log_std" in told["task_kl"]
        assert {name: runs.split(" ")[0].rstrip(":") for name, runs in told.items()} == {
            name: "eager" if name == "frozen_linear" else "triton" for name in kernels.OPS
        }
    finally:
        kernels.use("auto")


def test_eager_on_cuda_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "triton_error", lambda: "No module named triton")
    assert doctor._what_runs("task_kl", torch.device("cuda")) == "eager: Triton cannot be used (No module named triton)"
    devices = {"cpu": {}, "cuda:0": {}}
    assert (
        "without Triton"
        in doctor._advice(devices, {"memory_bytes": 1 << 40, "disk_bytes": 1 << 40}, {"reached": ""})[0]
    )


def test_trust_47_doctor_tells_whether_there_is_a_token_and_not_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ([], ["--json"]):
        monkeypatch.setenv("HF_TOKEN", "hf_planted0123456789")
        done = CliRunner().invoke(app, ["doctor", *options])
        assert done.exit_code == 0, done.output
        assert "planted" not in done.output
        assert "set" in done.output
    assert json.loads(done.output)["hub"]["token"] == "set"


def test_on_a_gpu_the_wait_for_compiling_is_announced_beside_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnose(check=False)
    monkeypatch.setattr("abmll.cli.work.doctor.diagnose", lambda check: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "triton_error", lambda: None)
    told = CliRunner().invoke(app, ["doctor", "--json"])
    assert "--no-check leaves it out" in told.stderr
    assert json.loads(told.stdout)["versions"] == found.versions
    assert CliRunner().invoke(app, ["doctor", "--json", "--no-check"]).stderr == ""
    monkeypatch.setattr(kernels, "triton_error", lambda: "no Triton")
    assert CliRunner().invoke(app, ["doctor", "--json"]).stderr == "", "nothing is compiled"
    monkeypatch.undo()
    if not torch.cuda.is_available():
        monkeypatch.setattr("abmll.cli.work.doctor.diagnose", lambda check: found)
        assert CliRunner().invoke(app, ["doctor", "--json"]).stderr == ""
