"""`abmll watch`: alarms where a promise holds, and how soon one comes where it fails."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from abmll.metrics.betting import HORIZON, LEVEL, first_alarm, most_power, wealth

STREAMS, LABELS = 400, 1000
RISKS = (0.05, 0.1, 0.2)
CHANGE = 300
"""Labels before the promise begins to fail, in streams where it holds at first."""


def watch_rows(streams: int = STREAMS) -> Iterator[dict[str, Any]]:
    """Of so many streams of labels, how many have an alarm; by ours, and by MAPIE's risk monitoring if it is there."""
    for risk in RISKS:
        yield {
            "risk": risk,
            "streams": streams,
            "false": alarms(risk, risk, LABELS, streams),
            "doubled": alarms(risk, 2 * risk, HORIZON, streams),
            "bound": round(streams * most_power(risk, 2 * risk), 1),
            "trebled": alarms(risk, 3 * risk, HORIZON, streams),
            "half_more": alarms(risk, 1.5 * risk, LABELS, streams),
            "late": delay(risk, streams),
            "mapie": by_mapie(risk, streams),
        }


def stream(rate: float, labels: int, streams: int, seed: int = 0) -> Bool[np.ndarray, "S N"]:
    """Whether each answer is wrong, at one rate."""
    return np.random.default_rng([seed, round(1000 * rate), labels]).random((streams, labels)) < rate


def alarms(risk: float, rate: float, labels: int, streams: int, seed: int = 0) -> int:
    """How many streams have an alarm within so many labels."""
    after = wealth(stream(rate, labels, streams, seed), risk)
    return sum(first_alarm(each) is not None for each in after)


def delay(risk: float, streams: int) -> int:
    """Labels from the change of the rate to twice the risk to the alarm: the median, of streams without one before."""
    wrong = np.concatenate([stream(risk, CHANGE, streams), stream(2 * risk, 2 * LABELS, streams)], axis=1)
    found = [first_alarm(each) or wrong.shape[1] for each in wealth(wrong, risk)]
    return int(np.median([label - CHANGE for label in found if label > CHANGE]))


def by_mapie(risk: float, streams: int) -> dict[str, int] | None:
    """The same streams by MAPIE's `RiskMonitoring` at the same level, the promised risk as its threshold.

    Its bound is one for the mean of numbers in [0, 1], here given whether answers are right.
    """
    try:
        from mapie.exchangeability_testing import RiskMonitoring
    except ImportError:
        return None

    def alarm(wrong: Bool[np.ndarray, "N"]) -> bool:
        monitor = RiskMonitoring(risk="accuracy", test_level=LEVEL, threshold=risk, warn=False)
        return bool(monitor.update(np.zeros(len(wrong), dtype=int), wrong.astype(int)).harmful_shift_detected)

    counts = {"false": (risk, LABELS), "doubled": (2 * risk, HORIZON)}
    return {name: sum(map(alarm, stream(rate, labels, streams))) for name, (rate, labels) in counts.items()}
