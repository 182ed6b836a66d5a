"""The posterior over cores that `method.name: core` finds: draws, linearised answers, and controls of its prior."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from abmll.errors import AbmllError
from abmll.kernels.noise import noise_key, normal
from abmll.methods.core import CoreABMLL
from abmll.methods.core.gaussian import CoreGaussian
from abmll.methods.noise import Coordinates, prediction_keys
from abmll.process.stopping import stop_if_asked
from abmll.question import Question
from abmll.systems.plans import PredictionPlan
from abmll.systems.posteriors.base import Adaptation, FactorDraws, check_shapes, copied, put
from abmll.systems.posteriors.settings import CoreSettings
from abmll.systems.predict import Draw
from abmll.training.finite import no_answers
from abmll.training.inner import fit_rows

_PARTS = ("mean", "variance", "rows")


class Core(FactorDraws):
    r"""N(m, C) over the cores R, and theta's B and A: W - W0 = s B R A.

    A draw of R is a LoRA, (B R, A). `answers: linearised` takes the log-probabilities f of a question's choices for
    linear in R: they are $N(f(m), J C J^\top)$ with J the gradients of f by R at m, and the answer is the mean of
    their softmax. What is kept is in float32, so that a saved posterior answers as before.
    """

    settings: CoreSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        if not isinstance(self.parts.method, CoreABMLL):
            raise AbmllError("posterior.name=core is of the cores of method.name=core; another method has none")
        self._found: CoreGaussian | None = None
        self._factors: list[Tensor] = []

    @property
    def method(self) -> CoreABMLL:
        """That of the system."""
        assert isinstance(self.parts.method, CoreABMLL)
        return self.parts.method

    @property
    def found(self) -> CoreGaussian:
        """Over the cores, float64."""
        assert self._found is not None, "fit comes first"
        return self._found

    def fit(self, adaptation: Adaptation) -> None:
        """The posterior that made phi; or with another prior's variances, fitted to the same examples."""
        found = self.method.found
        if self.settings.variances != "learned":
            found = self._with_other_variances(adaptation)
        assert found is not None, "phi was made by steps"
        self._found = _rounded(found)
        self._factors = copied(self.method.adapters.parameters("shared", "mean"))

    def _with_other_variances(self, adaptation: Adaptation) -> CoreGaussian | None:
        """phi, and what the method knows of it, are put back."""
        method, phi, found = self.method, copied(self.parameters), self.method.found
        batches = method.batches
        try:
            method.begin_task(first=True)
            method.prior_variance = self._control(method.learned["core_variance"].detach())
            fit_rows(method, self.parts.batcher, adaptation.batches, adaptation.coordinates)
            return method.found
        finally:
            method.prior_variance, method.found, method.batches = None, found, batches
            put(self.parameters, phi)

    def _control(self, variance: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """V of a control."""
        if self.settings.variances == "pooled":
            return variance.log().mean().exp().expand_as(variance)
        generator = torch.Generator().manual_seed(noise_key("permuted", self.settings.permutation) >> 1)
        return variance[torch.randperm(len(variance), generator=generator).to(variance.device)]

    def draw(self, number: int, key: int) -> list[Tensor]:
        """B R and A of every layer."""
        return self._lora(self.method.drawn(self.found, key))

    def _lora(self, core: Float[Tensor, " P"]) -> list[Tensor]:
        cores, out = self.method.split(core), list(self._factors)
        for index, r in enumerate(cores):
            out[2 * index] = out[2 * index] @ r.to(out[2 * index])
        return out

    def draw_by_batch(
        self, questions: Sequence[Question], plan: PredictionPlan, coordinates: Coordinates
    ) -> Iterator[tuple[list[int], list[Draw]]]:
        """By draws of factors; or each question by itself, with a backward pass for each choice."""
        if self.settings.answers == "draws":
            yield from super().draw_by_batch(questions, plan, coordinates)
            return
        (key,) = prediction_keys(coordinates, 1)
        shared, theta, phi = self.method.adapters.parameters("shared", "mean"), [], copied(self.parameters)
        theta = copied(shared)
        try:
            put(shared, self._factors)  # those of the posterior, by which gradients go
            put(self.parameters, self._lora(self.found.mean))
            for place, question in enumerate(questions):
                stop_if_asked()
                yield [place], self._linearised(question, key)
        finally:
            put(shared, theta)
            put(self.parameters, phi)

    def _linearised(self, question: Question, key: int) -> list[Draw]:
        batch, count = self.parts.batcher.batch([question]), len(question.choices)
        scores = self.parts.likelihood.scores(batch)
        each = torch.eye(scores.log_probabilities.shape[1], device=scores.log_probabilities.device)[None, :, :count]
        local, rows = self.method.linearised(batch, each)
        f, covariance = local.outputs.detach()[0, :count].double(), self.found.covariance(rows[0].double())
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        places = torch.arange(self.settings.samples, device=f.device)
        noise = normal(noise_key("core", key), count, places, layer=0).to(f)
        tables = (f + noise @ (vectors * values.clamp_min(0).sqrt()).mT).softmax(-1)
        if not bool(tables.isfinite().all()):
            raise no_answers([question], self.method.adapters)
        raw = None
        if scores.vocabulary is not None:
            raw = scores.vocabulary.detach()[:, :count].double().exp().cpu().numpy()
        return [(table[None], raw) for table in tables.cpu().numpy()]

    def state(self) -> dict[str, Tensor]:
        """m, V, the observations' rows, and theta's factors."""
        found = {name: getattr(self.found, name).float() for name in _PARTS}
        return found | {f"factor.{index}": value for index, value in enumerate(self._factors)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        device, shared = self.parts.batcher.device, self.method.adapters.parameters("shared", "mean")
        factors = [state[f"factor.{index}"].to(device) for index in range(len(shared))]
        check_shapes(shared, factors)
        mean, variance, rows = (state[name].to(device).double() for name in _PARTS)
        learned = self.method.learned["core_mean"]
        if not (mean.shape == variance.shape == learned.shape and rows.shape[1:] == learned.shape):
            raise ValueError(f"cores of {tuple(mean.shape)} numbers, here they have {tuple(learned.shape)}")
        rank = factors[0].shape[1]
        self._found = CoreGaussian(mean, variance, rows, self.method.settings.covariance, rank**2)
        self._factors = factors


def _rounded(found: CoreGaussian) -> CoreGaussian:
    """With numbers as they are stored."""
    return replace(found, **{name: getattr(found, name).float().double() for name in _PARTS})
