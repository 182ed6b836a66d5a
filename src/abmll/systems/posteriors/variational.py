"""What posteriors share that are learned by steps of their own: from theta, on the batches that made phi."""

import abc
import math
from functools import partial

from torch import Tensor

from abmll.kernels.noise import noise_key
from abmll.methods.base import backward_by_share
from abmll.methods.noise import step_key
from abmll.process.stopping import stop_if_asked
from abmll.question import Question
from abmll.systems.posteriors.base import Adaptation, FactorDraws, check_shapes, copied, put
from abmll.systems.posteriors.settings import KLSettings
from abmll.training.failed_batch import FailedBatch
from abmll.training.inner import check_finite, clear
from abmll.training.optimizers import schedule_factor


class Variational(FactorDraws):
    """A Gaussian over the factors, each step of which draws factors and descends the batch's loss there.

    So there are two adaptations, phi's and this one, from the same theta on the same batches in the same order.

    Attributes:
        rate_factor: multiplies the rates of the next step, by the schedule of the adaptation.
    """

    rate_factor: float = 1.0

    @abc.abstractmethod
    def start(self, examples: int) -> None:
        """Begin at theta, which `parameters` hold, with so many examples to come."""

    @abc.abstractmethod
    def step(self, gradients: list[Tensor], key: int) -> None:
        """Take a step by the gradients at the draw that the key names."""

    def fit(self, adaptation: Adaptation) -> None:
        """All steps; phi is put back."""
        phi = copied(self.parameters)
        try:
            self.parts.method.begin_task(first=True)
            self.start(len(adaptation.examples))
            for number, questions in enumerate(adaptation.batches):
                stop_if_asked()
                self.rate_factor = schedule_factor(adaptation.schedule, number, len(adaptation.batches))
                self._take(questions, (*adaptation.coordinates, number))
        finally:
            clear(self.parameters)
            put(self.parameters, phi)

    def _take(self, questions: tuple[Question, ...], coordinates: tuple[int, ...]) -> None:
        method, _, batcher, _, _ = self.parts
        key = step_key(coordinates).to(batcher.device)
        name = noise_key(type(self).__name__, int(key))
        put(self.parameters, self.draw(0, name))
        clear(self.parameters)
        terms = backward_by_share(batcher(questions), partial(method.inner_loss, key=key[0]), self.parameters)
        clear(method.temperature)
        gradients = [parameter.grad for parameter in self.parameters]
        whole = [gradient for gradient in gradients if gradient is not None]
        assert len(whole) == len(gradients), "every factor that moves has a part in the loss"
        what = f"step {coordinates[-1]} of the posterior"
        check_finite(terms, whole, what, FailedBatch(questions, coordinates), method.adapters)
        self.step([gradient.detach().clone() for gradient in whole], name)

    def load_like_factors(self, state: dict[str, Tensor], part: str) -> list[Tensor]:
        """The tensors `part.0`, `part.1`, ... of a state, one for each factor."""
        parameters = self.parameters
        values = [state[f"{part}.{index}"].to(self.parts.batcher.device) for index in range(len(parameters))]
        check_shapes(parameters, values)
        return values


def kl_weight(settings: KLSettings, examples: int, steps: int, batch_size: int) -> float:
    """Of the KL of the step after so many, beside a mean NLL.

    Args:
        settings: whether it is the ELBO's.
        examples: that steps are taken on.
        steps: that were taken.
        batch_size: questions of a step.

    >>> kl_weight(KLSettings(), examples=20, steps=0, batch_size=2)
    0.05
    """
    if settings.kl_schedule == "elbo":
        return settings.kl_weight / max(1, examples)
    batches = max(1, round(100 * examples ** (math.pi / 8) / batch_size))
    number = (steps + 1) % batches or batches
    return settings.kl_weight * 2.0 ** (number - batches - 1) / (1 - 2.0 ** -(batches + 1))
