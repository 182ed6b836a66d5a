"""SIGTERM, SIGINT, SIGUSR1 and SIGUSR2: checkpoint and leave, from every phase; a second one leaves at once."""

import json
import signal
import time
from pathlib import Path

import pytest

from abmll.process import stopping
from abmll.process.stopping import Stopped, gently, listening, stop_if_asked
from abmll.training.checkpoints import RunDirectory
from tests.survival.children import UNCAUGHT, in_child
from tests.survival.places import SYSTEMS, assert_same_run, place_comparison, trainer
from tests.survival.signals import PHASES, campaign, from_outside


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny comparison."""
    return place_comparison(tmp_path_factory.mktemp("signals"))


@pytest.mark.parametrize("phase", PHASES)
def test_trust_12_a_signal_in_any_phase_and_the_same_results_afterwards(phase: str, place: Path) -> None:
    facts = campaign(place, phase, times=1, seed=len(phase))
    assert facts["slowest exit, s"] < 10


@pytest.mark.parametrize("system", SYSTEMS)
def test_trust_01_a_stop_in_the_inner_loop_saves_the_start_of_the_meta_iteration(system: str, tmp_path: Path) -> None:
    """By a real signal; the state that is saved is the one before the meta-iteration, moments and phi included."""

    def stopped() -> None:
        from abmll.training import inner

        plain, calls = inner._step, []

        def step(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == 10:  # in the second, fourth or fifth meta-iteration, not at its start
                signal.raise_signal(signal.SIGTERM)
            return plain(*arguments)  # type: ignore[arg-type]

        inner._step = step  # type: ignore[assignment]
        with listening():
            try:
                trainer(system, tmp_path / "run", 6)()
            except Stopped as stopped:
                raise SystemExit(stopped.exit_code) from None

    child = in_child(stopped, tmp_path / "out.txt")
    assert child.wait() == 143, child.text()
    saved = RunDirectory(tmp_path / "run").steps()[-1]
    assert 0 < saved < 6
    trainer(system, tmp_path / "run", 6)()
    trainer(system, tmp_path / "whole", 6)()
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_trust_12_a_stop_between_checkpoints_writes_one(tmp_path: Path) -> None:
    def stopped() -> None:
        with listening():
            try:
                _train(tmp_path / "run", on_step=3)
            except Stopped as stopped:
                print(stopped)
                raise SystemExit(stopped.exit_code) from None

    child = in_child(stopped, tmp_path / "out.txt")
    assert child.wait() == 128 + signal.SIGUSR1
    assert child.text() == "stopped by SIGUSR1: step 3 of 6 is saved\n"
    assert RunDirectory(tmp_path / "run").steps() == [0, 3]
    _train(tmp_path / "run")
    _train(tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def _train(folder: Path, on_step: int | None = None) -> None:
    """Six meta-iterations, checkpoints only at the ends; a signal after the journal's row of one of them."""
    from tests.systems import run_config, train

    def listen(event: dict[str, object]) -> None:
        if event["step"] == on_step:
            signal.raise_signal(signal.SIGUSR1)

    train(run_config("abmll", inner_steps=1, training={"iterations": 6}), folder, listener=listen)


def test_trust_12_a_signal_from_outside_ends_a_comparison_with_a_message(place: Path) -> None:
    child = from_outside(place, "outside", signal.SIGINT, 0.2)
    began = time.monotonic()
    assert child.wait(10) == 130, child.text()
    assert time.monotonic() - began < 10
    assert "Traceback" not in child.text()
    saved = RunDirectory(place / "outside" / "abmll" / "seed-0").steps()[-1]
    assert f"stopped by SIGINT: step {saved} of 1000 is saved; the same command goes on from there" in child.text()


def test_signals_that_come_together_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler signals a process and its parent, which passes the signal on: that must not end it at once."""
    ends: list[int] = []
    monkeypatch.setattr("abmll.process.stopping.os._exit", ends.append)
    with listening(), gently():
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2):
            signal.raise_signal(number)
        assert not ends
        with pytest.raises(Stopped, match="SIGUSR2"):
            stop_if_asked()
        monkeypatch.setattr("abmll.process.stopping.ONE_REQUEST", 0.0)
        signal.raise_signal(signal.SIGTERM)
    assert ends == [128 + signal.SIGTERM]


def test_trust_12_a_second_signal_leaves_at_once_with_the_last_checkpoint_intact(tmp_path: Path) -> None:
    def stubborn() -> None:
        stopping.ONE_REQUEST = 0.0  # this test need not wait so long
        with listening(), gently():
            trainer("abmll", tmp_path / "run", 2)()
            (tmp_path / "ready").write_text("")
            while True:  # nothing asks whether it should stop
                time.sleep(0.01)

    child = in_child(stubborn, tmp_path / "out.txt")
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    child.send(signal.SIGTERM)
    time.sleep(0.1)
    assert child.code is None
    child.send(signal.SIGTERM)
    began = time.monotonic()
    assert child.wait(5) == 143
    assert time.monotonic() - began < 1
    assert "stopped at once" in child.text()
    latest = RunDirectory(tmp_path / "run", strict=True).latest()
    assert latest is not None
    assert latest.step == 2


def test_a_signal_where_nothing_is_to_be_saved_raises_at_once_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening(), pytest.raises(Stopped, match="SIGTERM") as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    with listening(), gently():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop_if_asked()
    stop_if_asked()  # forgotten with the end of the block


def test_ctrl_c_in_a_library_call_is_pythons_own(tmp_path: Path) -> None:
    def work() -> None:
        def interrupt(event: dict[str, object]) -> None:
            signal.raise_signal(signal.SIGINT)

        trainer("abmll", tmp_path / "run", 3, listener=interrupt)()

    child = in_child(work, tmp_path / "out.txt")
    assert child.wait() == UNCAUGHT
    assert "KeyboardInterrupt" in child.text()
    assert json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[-1])["step"] == 1
