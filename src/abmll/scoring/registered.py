"""Metrics that are not the library's own: a number of a predictions file, by a name that a recipe can give."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from abmll.errors import AbmllError
from abmll.metrics.predictions import Predictions
from abmll.registry import Registry
from abmll.scoring.scores import Scores, score

SCORES = tuple(entry.name for entry in fields(Scores) if entry.name not in ("n", "more"))
"""The library's own metrics."""
Metric = Callable[[Predictions], float | None]
"""A number of the predictions of one task; None where it is not defined."""


def _check_metric(name: str, metric: object) -> None:
    if not callable(metric):
        raise AbmllError(f"metric {name!r}: {metric!r} is no function")
    if not (metric.__doc__ or "").strip():
        raise AbmllError(f"metric {name!r} has no docstring; reports show its first line as the definition")
    if name.endswith(("_interval", "_standard_error")):
        raise AbmllError(f"metric {name!r}: results.json has its own names that end so; choose another name")


METRICS: Registry[Metric] = Registry(
    "metric",
    "abmll.metrics",
    {},
    check=_check_metric,
    guide="docs/add-a-metric.md",
    reserved=(
        *SCORES,
        *("n", "kind", "n_tasks", "n_seeds", "n_draws", "examples_consumed"),
        *("against_reference", "before_adaptation", "cost", "not_finite"),
    ),
)
"""Every metric that a recipe can name in `metrics`; the library's own scores are always there."""


def register_metric(name: str, metric: Metric) -> None:
    """Let recipes name a metric that is not the library's own, in this process: `metrics: [NAME]`.

    An installed package does without: it declares the function as an entry point of the group `abmll.metrics`.

    Args:
        name: its column in the tables, and its key in results.json.
        metric: takes the predictions of one task and gives a number, or None where it has no value. The first line of
            its docstring is shown as the definition. `abmll.testing.check_metric(NAME)` tests it.

    Raises:
        AbmllError: the name is taken, or the function has no docstring.

    >>> register_metric("accuracy", lambda predictions: 1.0)
    Traceback (most recent call last):
    abmll.errors.AbmllError: metric 'accuracy' is abmll's own; choose another name
    """
    METRICS.register(name, metric)


def definition(name: str) -> str:
    """The first line of a registered metric's docstring."""
    return (METRICS.lookup(name).__doc__ or "").strip().splitlines()[0]


def score_with(predictions: Predictions, metrics: Sequence[str]) -> Scores:
    """`score`, and the values of registered metrics.

    Raises:
        AbmllError: as `score`; or a metric is unknown, fails, or gives a number that is not finite.
    """
    return replace(score(predictions), more={name: _value(name, predictions) for name in metrics})


def _value(name: str, predictions: Predictions) -> float | None:
    metric = METRICS.lookup(name)
    try:
        value = metric(predictions)
        if value is None or math.isfinite(value):
            return None if value is None else float(value)
    except Exception as error:  # whatever a stranger's function raises
        raise AbmllError(f"metric {name!r} fails ({type(error).__name__}: {error})") from error
    raise AbmllError(f"metric {name!r} gives {value}; where it is not defined it should give None")
