"""Progress and the time left: on a pipe, and where the first step is slow."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from abmll.cli import progress
from abmll.cli.progress import ProgressDisplay
from abmll.process.timer import Pace
from tests.commands import command
from tests.everyday import place_run, write_texts


class Clock:
    """Seconds that go by when they are said to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("time.monotonic", found)
    monkeypatch.setattr(progress, "Pace", lambda: Pace(found))
    return found


def lines_of(clock: Clock, seconds: list[float], total: int, units: float = 1) -> list[str]:
    """What is printed on a pipe while steps take so many seconds each."""
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=40)) as display:
        display({"event": "plan", "units": total, "done": 0})
        for taken in seconds:
            clock.now += taken
            display({"event": "counted", "what": "steps", "units": units})
    return out.getvalue().splitlines()


def test_a_slow_first_step_says_nothing_of_the_others(clock: Clock) -> None:
    lines = lines_of(clock, [300.0, *[2.0] * 20], total=101)
    assert lines[0] == "steps: 1 of 101 (0 %)"
    assert lines[1:] == ["steps: 9 of 101 (8 %, about 3 min left)", "steps: 17 of 101 (16 %, about 3 min left)"]


def test_a_line_comes_every_15_seconds_and_not_more_often(clock: Clock) -> None:
    assert len(lines_of(clock, [0.1] * 1000, total=1000)) == 7
    assert len(lines_of(clock, [60.0] * 5, total=5)) == 5


def test_the_pace_follows_what_happens_now() -> None:
    clock = Clock()
    pace = Pace(clock)
    for seconds in [1.0] * 30 + [5.0] * 16:
        clock.now += seconds
        pace.add()
    assert pace.unit_seconds == 5.0


def test_units_count_by_their_number_and_waits_between_them_do_not() -> None:
    clock = Clock()
    pace = Pace(clock)
    for seconds, units in ((10.0, 1), (80.0, 40), (3.0, 1)):
        clock.now += 1000.0
        pace.restart()
        clock.now += seconds
        pace.add(0)
        assert pace.unit_seconds is None
        pace.add(units)
    assert pace.unit_seconds == 2.0


def test_adapting_and_its_check_say_how_far_they_are_on_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place_run(tmp_path)
    write_texts(tmp_path / "my.csv", 12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    code, _, err = command(monkeypatch, capsys)("adapt runs/mine my.csv --save t adaptation.steps=4")
    assert code == 0
    lines = err.splitlines()
    steps = [line for line in lines if line.startswith("steps of adapting: ")]
    assert [line.split(" (")[0] for line in steps] == [f"steps of adapting: {n} of 4" for n in (1, 2, 3, 4)]
    assert ["left)" in line for line in steps] == [False, False, True, False]
    check = [line for line in lines if line.startswith("parts of the check: ")]
    assert check[-1] == "parts of the check: 12 of 12 (100 %)"
    assert len(check) == 10 * 5 + 3, "four steps, and answers, of ten parts; the base, examples in its prompt, the end"
