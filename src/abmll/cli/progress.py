"""What a user sees while a run goes on: a bar with the time left on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from abmll.process.timer import Pace

SECONDS_BETWEEN_LINES = 15.0


class ProgressDisplay:
    """Listens to the events of a run; use as a context manager.

    Args:
        console: where to write (standard error, so that tables on standard output stay clean).

    >>> with ProgressDisplay(Console(quiet=True)) as display:
    ...     display({"event": "plan", "units": 10, "done": 0})
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        left = TextColumn("{task.fields[left]}")
        self._bar = Progress(*columns, left, console=console, disable=not console.is_terminal)
        self._task: TaskID = self._bar.add_task("starting", total=None, left="")
        self._total, self._done, self._last_line = 0.0, 0.0, -SECONDS_BETWEEN_LINES
        self._pace = Pace()

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event of `run_comparison` or `meta_train`."""
        kind = event["event"]
        if kind in ("plan", "loading", "target"):
            self._pace.restart()
        if kind == "plan":
            self._total = event["units"]
            self._bar.update(self._task, total=self._total or None)
            if event["done"]:
                self.console.print(f"{event['done']} results are there already and are not made again")
        elif kind == "loading":
            self._describe(f"loading {event['model']}", always=True)
        elif kind == "target":
            trains = f"{event['iterations']} meta-iterations" if event["iterations"] else "nothing to train"
            self._describe(f"{event['system']}, seed {event['seed']}: {trains}", always=True)
        else:
            self._advance(event)

    def _advance(self, event: dict[str, Any]) -> None:
        self._done += (units := event.get("units", 0))
        self._pace.add(units)
        self._bar.update(self._task, completed=self._done, left=self._time_left())
        if event["event"] == "step":
            loss = f", NLL {event['nll']:.3f}" if "nll" in event else ""
            self._describe(f"{event['system']}: meta-iteration {event['step']} of {event['iterations']}{loss}")
        elif event["event"] == "evaluated":
            what = "adapted to" if event["adapted"] else "before adapting to"
            self._describe(f"{event['system']}: predicted, {what} {event['task']}")
        elif event["event"] == "counted":
            self._describe(f"{event['what']}: {int(self._done):,} of {int(self._total):,}")

    def _describe(self, text: str, *, always: bool = False) -> None:
        self._bar.update(self._task, description=text)
        now = time.monotonic()
        if self.console.is_terminal or not (always or now - self._last_line > SECONDS_BETWEEN_LINES):
            return
        self._last_line = now
        share = f"{int(100 * self._done / self._total)} %" if self._done and self._total else ""
        told = ", ".join(filter(None, (share, self._time_left())))
        self.console.print(f"{text} ({told})" if told else text, highlight=False, soft_wrap=True)

    def _time_left(self) -> str:
        unit = self._pace.unit_seconds
        if unit is None or not 0 < self._done < self._total:
            return ""
        return f"about {duration(unit * (self._total - self._done))} left"


def duration(seconds: float) -> str:
    """Seconds or, from 90 of them on, minutes.

    >>> duration(4.2), duration(100.0)
    ('4 s', '2 min')
    """
    return f"{max(0.0, seconds):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
