"""The contract of a calibrator: a transform of answers that is fitted on two levels, and knows no model and no file."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from numpy import ndarray
from pydantic import BaseModel, ConfigDict, ValidationError

from abmll.calibrators.rows import ChoiceRows, TaskRows
from abmll.errors import AbmllError


class FittedCalibrator(abc.ABC):
    """A calibrator that has seen a task's held-out rows."""

    @abc.abstractmethod
    def apply(self, rows: ChoiceRows) -> Float[ndarray, "N K"]:
        """Calibrated probabilities of N questions.

        A transductive calibrator looks at all of them together; every other one gives each row what it would get alone.

        Returns:
            Finite, summing to 1 in each row, zero after a question's last choice.
        """


class Calibrator(BaseModel, abc.ABC):
    """Turns stated probabilities into better ones; its fields are its hyper-parameters.

    Level one, `meta_fit`, learns hyper-parameters from the tasks that a system was trained on. Level two, `fit`, learns
    what is particular to one task from the few rows of it that were answered without being learned.

    Attributes:
        name: in the registry, and in files.
        version: of the meaning of the fields; a file of another version is refused.
        transductive: `apply` looks at all rows that it is given, without their answers: it cannot answer one by one.
        keeps_order: the most probable choice stays the most probable.
        needs_fixed_choices: choice k must be the same in every row.
        needs_content_free: `fit` must be given answers to inputs without content.
        uses_features: `ChoiceRows.features` are used where they are given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    transductive: ClassVar[bool] = False
    keeps_order: ClassVar[bool] = False
    needs_fixed_choices: ClassVar[bool] = False
    needs_content_free: ClassVar[bool] = False
    uses_features: ClassVar[bool] = False

    def meta_fit(self, tasks: Sequence[TaskRows]) -> "Calibrator":
        """The calibrator with hyper-parameters learned from training tasks; what is there now acts as their prior.

        Tasks that do not meet its needs, or have no labelled rows to learn from, are left out; without any task the
        calibrator itself is returned.
        """
        return self

    def fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None = None) -> FittedCalibrator:
        """Learn one task's parameters from its held-out rows; from none of them, the prior's answer.

        Raises:
            AbmllError: a need is not met; says which.
        """
        need = self.unmet_need(held_out, content_free)
        if need:
            raise AbmllError(f"calibrator {self.name!r} {need}")
        return self._fit(held_out.labelled(), content_free)

    @abc.abstractmethod
    def _fit(self, held_out: ChoiceRows, content_free: ChoiceRows | None) -> FittedCalibrator:
        """`fit`, once its needs are met; every row is labelled."""

    def unmet_need(self, held_out: ChoiceRows, content_free: ChoiceRows | None = None) -> str:
        """What keeps it from being fitted to these rows; nothing if it can be."""
        if self.needs_fixed_choices and not held_out.fixed_choices:
            return "needs fixed choices (labels or letters), and here they differ from question to question"
        if self.needs_content_free and content_free is None:
            return "needs the answers to inputs without content (`content_free`), and none were given"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Name, version and hyper-parameters, ready for JSON."""
        return {"calibrator": self.name, "version": self.version, "settings": self.model_dump(mode="json")}

    @classmethod
    def from_settings(cls, settings: Any) -> "Calibrator":
        """A calibrator of this class from a mapping of settings.

        Raises:
            AbmllError: a setting is unknown, out of range or not finite; names it.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            lines = [f"calibrator {cls.name}, {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise AbmllError("\n".join(lines)) from error
