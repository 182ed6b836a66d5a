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
from abmll.methods.core.jacobian import CoreGradients
from abmll.methods.noise import Coordinates, prediction_keys
from abmll.process.stopping import stop_if_asked
from abmll.question import Question
from abmll.systems.plans import PredictionPlan
from abmll.systems.posteriors.base import Adaptation, FactorDraws, check_shapes, copied, put
from abmll.systems.posteriors.settings import CoreSettings
from abmll.systems.predict import Draw
from abmll.training.finite import no_answers
from abmll.training.inner import fit_rows

TOGETHER = 16
"""Questions of a forward pass whose answers are linearised, where `method.fit_tokens` says nothing."""
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
        """By draws of factors; or linearised, with a backward pass for each choice."""
        if self.settings.answers == "draws":
            yield from super().draw_by_batch(questions, plan, coordinates)
            return
        (key,) = prediction_keys(coordinates, 1)
        shared = self.method.adapters.parameters("shared", "mean")
        theta, phi = copied(shared), copied(self.parameters)
        try:
            put(shared, self._factors)  # those of the posterior, by which gradients go
            put(self.parameters, self._lora(self.found.mean))
            for places in self._together(questions):
                stop_if_asked()
                yield places, self._linearised([questions[place] for place in places], key)
        finally:
            put(shared, theta)
            put(self.parameters, phi)

    def _together(self, questions: Sequence[Question]) -> list[list[int]]:
        """Numbers of questions whose answers one pass linearises."""
        batcher, tokens = self.parts.batcher, self.method.fit_tokens
        if tokens is not None:
            return batcher.alike(questions, tokens)
        step = 1 if batcher.encoder.premise is not None else TOGETHER
        return [list(range(start, min(start + step, len(questions)))) for start in range(0, len(questions), step)]

    def _linearised(self, questions: Sequence[Question], key: int) -> list[Draw]:
        """Of some questions, whose cores' gradients one forward pass gives, and a backward pass for each choice."""
        method, likelihood, batcher, _, _ = self.parts
        batch, gradients = batcher.batch(questions), CoreGradients(list(method.adapters.layers.values()))
        padded, count = batch.lengths.shape[1], max(len(question.choices) for question in questions)
        with torch.enable_grad(), gradients.listening():
            scores = likelihood.scores(batch)
            choices = torch.eye(padded, device=batch.lengths.device)[:, :count]  # no pass for what is padded
            rows = gradients.rows(scores.log_probabilities, choices.expand(len(questions), -1, -1), batch)
        f, there = scores.log_probabilities.detach().double()[:, :count], batch.choice_mask[:, :count]
        rows = torch.where(there[..., None], rows, 0).double()
        noise = normal(noise_key("core", key), f.shape[1], torch.arange(self.settings.samples, device=f.device), 0)
        drawn = torch.stack([self._scores(rows_of_one, noise.to(f)) for rows_of_one in rows], dim=1)
        tables = (f + drawn).softmax(-1)
        if not bool(tables.isfinite().all()):
            raise no_answers(list(questions), method.adapters)
        raw = None if scores.vocabulary is None else scores.vocabulary[:, :count].detach().double().exp().cpu().numpy()
        return [(table, raw) for table in tables.cpu().numpy()]

    def _scores(self, rows: Float[Tensor, "K P"], noise: Float[Tensor, "S K"]) -> Float[Tensor, "S K"]:
        """What draws of a question's scores add to them; the same standard normals for every question."""
        covariance = self.found.covariance(rows)
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        return noise @ (vectors * values.clamp_min(0).sqrt()) @ vectors.mT  # the one symmetric root: no sign is free

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
