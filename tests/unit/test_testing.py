"""abmll.testing: each check finds what it is for, and lets pass what is right."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, final

import pytest
import torch

from abmll.methods import Group, Method, Settings, Terms, register_method
from abmll.metrics.predictions import Predictions
from abmll.scoring.registered import register_metric
from abmll.tasks.registered import RawTask, register_source
from abmll.testing import check_method, check_metric, check_source
from tests.registries import fresh_registries


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Nothing that a test registers is left for others."""
    with fresh_registries():
        yield


class Plain(Method):
    """Structured LoRA once more; the tests break one member of it at a time."""

    def shared(self) -> list[Group]:
        return [self.mean_group("shared"), *self.temperature_groups()]

    def task(self) -> list[Group]:
        return [self.mean_group("task")]

    def begin_task(self, *, first: bool = True) -> None:
        self.adapters.begin_task()

    def inner_loss(self, batch: Any, key: Any) -> Terms:
        nll = self.nll(batch)
        return Terms((nll,), nll)

    def outer_gradient(self, query: Sequence[Any], key: Any) -> Terms | None:
        self.adapters.add_displacement()
        return None


@final
class Right(Plain):
    """Nothing is broken."""


class NotFinal(Plain):
    """Not marked as final."""


@final
class OverridesConcrete(Plain):
    """Has a mean group of its own."""

    def mean_group(self, slot: Any) -> Group:
        return super().mean_group(slot)


class _Undescribed(Settings):
    spice: float = 1.0


@final
class UndescribedSetting(Plain):
    """A setting that no docstring describes."""

    settings_class: ClassVar = _Undescribed


@final
class InnerStepsMoveTheta(Plain):
    """Writes to theta in its loss."""

    def inner_loss(self, batch: Any, key: Any) -> Terms:
        with torch.no_grad():
            self.adapters.parameters("shared")[0].add_(1e-3)
        return super().inner_loss(batch, key)


@final
class InnerGradientsOnTheta(Plain):
    """Does not detach theta."""

    def inner_loss(self, batch: Any, key: Any) -> Terms:
        nll = self.nll(batch)
        return Terms((nll + 1e-6 * self.adapters.mean_penalty(1.0, "shared").float(),), nll)


@final
class OuterGradientSteps(Plain):
    """Steps by itself."""

    def outer_gradient(self, query: Sequence[Any], key: Any) -> None:
        super().outer_gradient(query, key)
        with torch.no_grad():
            self.adapters.parameters("shared")[0].add_(0.5)


@final
class NoOuterGradient(Plain):
    """Leaves no gradient."""

    def outer_gradient(self, query: Sequence[Any], key: Any) -> None:
        return None


@final
class FrozenButGraded(Plain):
    """Moves half of the factors, and lets the others collect gradients."""

    def task(self) -> list[Group]:
        s = self.settings
        return [Group("mean", self.adapters.parameters("task")[::2], s.inner_optimizer, s.inner_lr)]


@final
class PhiGoesOn(Plain):
    """Never makes phi from theta."""

    def begin_task(self, *, first: bool = True) -> None:
        return None


@final
class HiddenState(Plain):
    """Remembers how many steps there were, and no checkpoint does."""

    steps = 0

    def inner_loss(self, batch: Any, key: Any) -> Terms:
        self.steps += 1
        nll = self.nll(batch)
        return Terms((nll * self.steps**2,), nll + 0.0)


@final
class SaysItMovesNothing(Plain):
    """Says that theta is not trained."""

    moves_weights: ClassVar[bool] = False


BROKEN = {
    NotFinal: "is not marked @typing.final",
    OverridesConcrete: "overrides mean_group",
    UndescribedSetting: "does not describe spice",
    InnerStepsMoveTheta: "inner steps move theta",
    InnerGradientsOnTheta: "leave gradients on theta",
    OuterGradientSteps: "outer_gradient moves the shared slot",
    NoOuterGradient: "others than the parameters of shared",
    FrozenButGraded: "leaves gradients on phi",
    PhiGoesOn: "depending on the phi before",
    HiddenState: "becomes another run",
    SaysItMovesNothing: "moves 0 tensors",
}


def test_what_is_right_passes() -> None:
    register_method("right", Right)
    check_method("right", inner_lr=1e-3)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_what_is_broken_in_a_method_is_named(broken: type[Method]) -> None:
    register_method("broken", broken)
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_method("broken")


def rows(task: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    numbers = range(start, start + count)
    return [{"question": f"{task}: is {n} even?", "choices": ["yes", "no"], "answer": n % 2} for n in numbers]


def test_sources_are_checked() -> None:
    calls = itertools.count()
    register_source("right", lambda rest: [RawTask("a", rows("a", 4), rows("a", 2, start=4))])
    register_source("restless", lambda rest: [RawTask("a", rows("a", 4, start=next(calls)))])
    register_source("scores-only", lambda rest: [RawTask("a", [], rows("a", 4))])
    check_source("right:anything")
    with pytest.raises(AssertionError, match="gives other tasks when it is read again"):
        check_source("restless")
    with pytest.raises(ValueError, match=r"scores-only/a.train:1: the file has no rows"):
        check_source("scores-only")


def doubling(values: Iterable[float]) -> Any:
    """A metric whose value is another one each time."""
    found = iter(values)

    def metric(predictions: Predictions) -> float:
        """Whatever comes next."""
        return next(found)

    return metric


def first_row(predictions: Predictions) -> float:
    """The first row's largest probability."""
    return max(predictions.rows[0].probabilities)


def not_finite(predictions: Predictions) -> float:
    """Log of the smallest probability."""
    return float(torch.tensor([p for row in predictions.rows for p in row.probabilities]).min().log())


def size(predictions: Predictions) -> float | None:
    """The number of rows, where there is more than one."""
    return float(len(predictions.rows)) if len(predictions.rows) > 1 else None


def test_metrics_are_checked() -> None:
    register_metric("size", size)
    register_metric("restless", doubling(itertools.count(1.0)))
    register_metric("first", first_row)
    register_metric("infinite", not_finite)
    check_metric("size")
    with pytest.raises(AssertionError, match="another value for the same rows"):
        check_metric("restless")
    with pytest.raises(AssertionError, match="depends on the order of the rows"):
        check_metric("first")
    with pytest.raises(ValueError, match="metric 'infinite' gives -inf"):
        check_metric("infinite")
