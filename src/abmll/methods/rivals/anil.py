"""ANIL (Raghu et al. 2020), first order: inner steps move a part of the adapted layers alone."""

from collections.abc import Sequence
from typing import ClassVar, final

from jaxtyping import Int
from pydantic import Field
from torch import Tensor, nn

from abmll.errors import AbmllError
from abmll.methods.base import Group, Terms
from abmll.methods.first_order import FirstOrder, FirstOrderSettings
from abmll.prompts.batches import ChoiceBatch


class ANILSettings(FirstOrderSettings):
    """Settings of ANIL.

    Attributes:
        second_order: the outer gradient goes through the inner steps, as published.
        task_modules: the adapted layers whose factors inner steps move, as in `adapter.targets`: a path or its end.
    """

    # ANIL moves the head of a classifier. Here the head is no adapter; values are what layers hand on to it.
    second_order: bool = False
    task_modules: tuple[str, ...] = Field(("v_proj",), min_length=1)


@final
class ANIL(FirstOrder):
    """First-order MAML in which a task moves some layers; theta takes the query batch's gradient in all of them."""

    settings_class: ClassVar = ANILSettings
    settings: ANILSettings

    @property
    def through_steps(self) -> bool:  # type: ignore[override]
        """Whether steps depend on theta, in the layers that stay, too."""
        return self.settings.second_order

    def task(self) -> list[Group]:
        """The task's mean factors in the layers that move.

        Raises:
            AbmllError: a name of `task_modules` is that of no adapted layer.
        """
        paths = self.adapters.layers
        if idle := [name for name in self.settings.task_modules if not any(_named(path, (name,)) for path in paths)]:
            ends = ", ".join(sorted({path.rpartition(".")[2] for path in paths}))
            raise AbmllError(f"method.task_modules: {idle[0]!r} matches no adapted layer; they are called {ends}")
        return [self.mean_group("task")._replace(parameters=self._factors(moving=True))]

    def begin_task(self, *, first: bool = True) -> None:
        """phi <- theta."""
        self._collect(False)
        self.adapters.begin_task()

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms:
        """The query NLL's gradient at phi, on all of theta's factors."""
        self._collect(True)
        terms = self.query_gradient(query, key)
        if self.inner_taken is not None:
            self.inner_taken.carry_back()
        self.adapters.add_task_gradients()
        self._collect(False)
        return terms

    def _collect(self, whether: bool) -> None:
        """Whether the factors that stay collect gradients: in the outer step, not in inner ones."""
        for parameter in self._factors(moving=False):
            parameter.requires_grad_(whether)

    def _factors(self, *, moving: bool) -> list[nn.Parameter]:
        names = self.settings.task_modules
        layers = [layer for path, layer in self.adapters.layers.items() if _named(path, names) == moving]
        return [factor for layer in layers for factor in (layer.task.mean_b, layer.task.mean_a)]


def _named(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)
