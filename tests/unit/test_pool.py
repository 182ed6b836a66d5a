"""Commands side by side: slots, logs, failures by name, and what happens where this process is asked to stop."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from abmll.process import threads
from abmll.process.pool import run_commands, share_machine, visible_gpus
from abmll.process.stopping import Stopped, listening


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_at_most_one_command_in_a_slot_and_each_has_what_its_slot_says(tmp_path: Path) -> None:
    said = "import os, time; print(os.environ['SLOT']); time.sleep(0.3)"
    busy: set[str] = set()
    most: list[int] = []

    def began(name: str, slot: Mapping[str, str]) -> None:
        assert slot["SLOT"] not in {taken[name] for name in busy}
        taken[name] = slot["SLOT"]
        busy.add(name)
        most.append(len(busy))

    taken: dict[str, str] = {}
    commands = {f"c{number}": python(said) for number in range(5)}
    slots = [{"SLOT": "a"}, {"SLOT": "b"}]
    done = run_commands(commands, slots, tmp_path / "logs", began, lambda name, how: busy.discard(name))
    assert list(taken) == list(commands), "they begin in their order"
    assert {name: how.log.read_text().strip() for name, how in done.items()} == taken
    assert [how.code for how in done.values()] == [0] * 5
    assert max(most) == 2


def test_one_that_fails_is_told_with_its_last_line_and_leaves_the_others_alone(tmp_path: Path) -> None:
    commands = {
        "fails": python("print('one'); print('error: no room\\n'); raise SystemExit(2)"),
        "killed": python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        "goes on": python("import time; time.sleep(0.3); print('well')"),
    }
    done = run_commands(commands, [{}, {}], tmp_path)
    assert str(done["fails"]) == f"exit code 2; {tmp_path / 'fails.log'} ends: error: no room"
    assert str(done["killed"]) == f"killed by SIGKILL; {tmp_path / 'killed.log'} ends: it printed nothing"
    assert done["goes on"].code == 0
    run_commands({"fails": python("print('again')")}, [{}], tmp_path)
    assert (tmp_path / "fails.log").read_text().split() == ["one", "error:", "no", "room", "again"]


def test_a_stop_ends_what_runs_starts_nothing_more_and_waits(tmp_path: Path) -> None:
    patient = f"""
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path({str(tmp_path / "saved")!r}).write_text("")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(tmp_path / "ready")!r}).write_text("")
time.sleep(60)
"""

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    began: list[str] = []
    threading.Thread(target=stop, daemon=True).start()
    with listening(), pytest.raises(Stopped, match="SIGINT"):
        run_commands({"a": python(patient), "b": python("")}, [{}], tmp_path, lambda name, slot: began.append(name))
    assert began == ["a"]
    assert (tmp_path / "saved").exists(), "it was not waited for"


def test_gpus_go_round_and_threads_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abmll.process.pool.default_threads", lambda: 7)
    monkeypatch.delenv(threads.THREADS, raising=False)
    monkeypatch.setattr(threads._State, "default", None)
    threads.set_thread_defaults()
    slots = share_machine(3, ["2", "GPU-5f"])
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2", "GPU-5f", "2"]
    assert [slot["OMP_NUM_THREADS"] for slot in slots] == ["2"] * 3
    assert share_machine(9, []) == [{"OMP_NUM_THREADS": "1"}] * 9
    monkeypatch.setenv(threads.THREADS, "5")  # said by somebody else since then
    assert share_machine(2, []) == [{}, {}]
    monkeypatch.setattr(threads._State, "default", None)  # or before
    threads.set_thread_defaults()
    assert share_machine(2, []) == [{}, {}]


def test_gpus_are_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for given, seen in {"": [], "3,5": ["3", "5"], "MIG-a/b": ["MIG-a/b"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_gpus() == seen
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]
