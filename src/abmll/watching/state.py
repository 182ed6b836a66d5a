"""What has been counted of a watched task: `watch/NAME/counted.json` in its run directory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from abmll.errors import AbmllError
from abmll.files import read_sealed_json, write_sealed_json
from abmll.metrics.betting import LEVEL, first_alarm, wealth

FOLDER, FILE, FORMAT = "watch", "counted.json", 1
_KEY = 32


@dataclass(frozen=True)
class Counted:
    """Labelled answers that were counted against a promise, in their order.

    Attributes:
        risk: share of the answers that may be wrong, as promised.
        adapter: SHA-256 of the task's weights: another adaptation makes another promise.
        threshold: of the confidence, where `abmll watch` answers the rows itself; None until it does.
        wrong: whether each answer was wrong.
        seen: hashes of the rows and of their groups, from which no text comes back.
    """

    risk: float
    adapter: str
    threshold: float | None = None
    wrong: tuple[bool, ...] = ()
    seen: frozenset[str] = frozenset()

    @property
    def errors(self) -> int:
        """How many answers were wrong."""
        return sum(self.wrong)

    @property
    def evidence(self) -> float:
        """Wealth of who has bet against the promise, see `abmll.metrics.betting`; the alarm is at 1 / LEVEL."""
        return float(wealth(np.array(self.wrong), self.risk)[-1]) if self.wrong else 1.0

    @property
    def alarm(self) -> int | None:
        """Number of labels at which the promise was found to fail; None: it was not."""
        return first_alarm(wealth(np.array(self.wrong), self.risk)) if self.wrong else None

    def with_more(self, wrong: Sequence[bool], keys: frozenset[str]) -> "Counted":
        """The same with more answers, and the keys of their rows."""
        return replace(self, wrong=(*self.wrong, *map(bool, wrong)), seen=self.seen | keys)


def write_counted(folder: Path, task: str, counted: Counted) -> None:
    """Write what was counted of a task, whole or not at all.

    Raises:
        OSError: the disk is full, ...; the file is then as it was.
    """
    values = {
        "format": FORMAT,
        "risk": counted.risk,
        "level": LEVEL,
        "adapter": counted.adapter,
        "threshold": counted.threshold,
        "wrong": "".join("01"[wrong] for wrong in counted.wrong),
        "seen": sorted(counted.seen),
    }
    write_sealed_json(folder / FILE, values, _of(task))


def read_counted(folder: Path, task: str) -> Counted | None:
    """What was counted of a task; None if nothing was.

    Raises:
        AbmllError: the file is damaged, edited, another task's, or of a later version.
    """
    file, advice = folder / FILE, "`abmll watch ... --restart` begins anew"
    if not file.exists():
        return None
    values = read_sealed_json(file, _of(task), advice)
    try:
        return _counted(values)
    except (KeyError, TypeError, ValueError) as error:
        raise AbmllError(f"{file}: not what was counted ({error}); {advice}") from error


def _of(task: str) -> str:
    return f"{FILE} of {task}"


def _counted(values: dict[str, Any]) -> Counted:
    if values["format"] != FORMAT or values["level"] != LEVEL:
        raise ValueError(f"format {values['format']!r}, level {values['level']!r}")
    wrong, seen, threshold = values["wrong"], values["seen"], values["threshold"]
    fine = isinstance(wrong, str) and not set(wrong) - {"0", "1"} and isinstance(values["adapter"], str)
    if not fine or not all(isinstance(key, str) and len(key) == _KEY for key in seen):
        raise ValueError("its answers are damaged")
    risk = float(values["risk"])
    if not 0 < risk < 1:
        raise ValueError(f"risk {risk}")
    limit = None if threshold is None else float(threshold)
    return Counted(risk, values["adapter"], limit, tuple(mark == "1" for mark in wrong), frozenset(seen))
