"""Laplace-LoRA (Yang et al. 2024): a Gaussian around phi by the curvature of the examples' likelihood, linearised."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import softmax
from torch import Tensor

from abmll.errors import AbmllError
from abmll.kernels.noise import noise_key, normal
from abmll.methods.noise import Coordinates, prediction_keys
from abmll.process.stopping import stop_if_asked
from abmll.question import Question
from abmll.systems.plans import PredictionPlan
from abmll.systems.posteriors.base import Adaptation, Posterior
from abmll.systems.posteriors.laplace.curvature import (
    Curvature,
    FullCurvature,
    KroneckerCurvature,
    KroneckerSums,
    Passes,
)
from abmll.systems.posteriors.laplace.evidence import Evidence
from abmll.systems.posteriors.settings import LaplaceSettings
from abmll.systems.predict import Draw
from abmll.training.finite import no_answers


class Laplace(Posterior):
    r"""N(phi, (H + lambda)^-1) with H the generalised Gauss-Newton matrix of the examples.

    With $f$ the log-probabilities of a question's choices, $J = \partial f / \partial \phi$ over the factors and
    $p = \mathrm{softmax} f$, a question adds $J^\top (\mathrm{diag}\, p - p p^\top) J$ to $H$. As
    $\sum_k p_k J_k = 0$ that is $G^\top G$ with the rows $\sqrt{p_k} J_k$, so that of n examples with K choices
    only the n K x n K matrix $G G^\top$ is ever inverted (`posterior.form: full`; `kfac` is an approximation by
    Kronecker factors, which the published code has: `KroneckerCurvature`). The prior's precision has the largest
    evidence

    $$ \log Z(\lambda) = \text{const} - \tfrac\lambda2 |\phi - a_0|^2 - \tfrac12 \log\det(I + H / \lambda), $$

    which is concave in $\log \lambda$: that of the examples or, with `posterior.precision: pooled`, summed over
    training tasks. A question is answered by the softmax of draws from $N(f, J (H + \lambda)^{-1} J^\top)$.

    Attributes:
        precision: of the prior; NaN before `fit`, and where it is to be pooled and was not learned.
        pooled: the precision that was learned over training tasks; None: none was.
    """

    settings: LaplaceSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._curvature: Curvature | None = None
        self.precision = math.nan
        self.pooled: float | None = None

    @property
    def curvature(self) -> Curvature:
        """H of the examples."""
        assert self._curvature is not None, "fit comes first"
        return self._curvature

    def fit(self, adaptation: Adaptation) -> None:
        """H of the examples, and the prior's precision."""
        of_examples = self._full if self.settings.form == "full" else self._kronecker
        self._curvature = of_examples(adaptation.examples)
        given = self.settings.precision
        if given == "pooled":
            self.precision = math.nan if self.pooled is None else self.pooled
        else:
            found = self.evidence().best_precision() if given is None else given
            self.precision = float(np.float32(found))  # as it is stored

    def _full(self, examples: Sequence[Question]) -> Curvature:
        parts = [self.jacobian(question) for question in examples]
        return FullCurvature(torch.cat([f.exp().sqrt()[:, None] * rows for f, rows, _ in parts]))

    def _kronecker(self, examples: Sequence[Question]) -> Curvature:
        sums = KroneckerSums(per_example=self.settings.inputs_mean == "examples")
        passes = Passes(list(self.parts.method.adapters.layers.values()), self.parameters)
        for question in examples:
            batch = self.parts.batcher.batch([question])
            with torch.enable_grad(), passes.listening():
                f = self.parts.likelihood.scores(batch).log_probabilities[0, : len(question.choices)]
                seen = passes.seen(f, batch.reach > 0)
            if not all(bool(part.isfinite().all()) for each in seen for part in each):
                raise no_answers([question], self.parts.method.adapters)
            sums.add(seen, f.detach().exp())
        return sums.curvature()

    def evidence(self) -> Evidence:
        """Of the examples, by the prior's precision."""
        return Evidence(self.curvature.spectrum(), self._squared_distance())

    def draw_by_batch(
        self, questions: Sequence[Question], plan: PredictionPlan, coordinates: Coordinates
    ) -> Iterator[tuple[list[int], list[Draw]]]:
        """Each question by itself: one forward pass, and a backward pass for each choice."""
        (key,) = prediction_keys(coordinates, 1)
        for place, question in enumerate(questions):
            stop_if_asked()
            f, rows, vocabulary = self.jacobian(question)
            tables = self.sampled(f, self.covariance(rows), key)
            raw = None if vocabulary is None else vocabulary.double().exp().cpu().numpy()[None]
            yield [place], [(table[None], raw) for table in tables]

    def jacobian(
        self, question: Question
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, "K P"], Float[Tensor, " K"] | None]:
        """Log-probabilities of a question's choices, their gradients by the factors, and what `letter` has besides.

        Raises:
            NonFiniteError: a number is NaN or infinite.
        """
        batcher, parameters = self.parts.batcher, self.parameters
        count = len(question.choices)
        with torch.enable_grad():
            scores = self.parts.likelihood.scores(batcher.batch([question]))
            f = scores.log_probabilities[0, :count]
            grads = [torch.autograd.grad(f[k], parameters, retain_graph=k < count - 1) for k in range(count)]
        rows = torch.stack([torch.cat([part.flatten() for part in grad]) for grad in grads])
        if not bool(rows.isfinite().all()) or not bool(f.isfinite().all()):
            raise no_answers([question], self.parts.method.adapters)
        return f.detach(), rows, None if scores.vocabulary is None else scores.vocabulary[0, :count].detach()

    def covariance(self, rows: Float[Tensor, "K P"]) -> Float[np.ndarray, "K K"]:
        """J (H + lambda)^-1 J^T, float64.

        Raises:
            AbmllError: lambda is to be pooled over training tasks, and was not learned.
        """
        return self.curvature.covariance(rows, self._known_precision())

    def _known_precision(self) -> float:
        if math.isnan(self.precision):
            raise AbmllError(
                "posterior.precision=pooled: no precision was learned over training tasks with these weights; "
                "`abmll train` and `abmll compare` learn it where the run has posterior.precision=pooled. Here give a "
                "number, or null for the examples' own"
            )
        return self.precision

    def sampled(
        self, f: Float[Tensor, " K"], covariance: Float[np.ndarray, "K K"], key: int
    ) -> Float[np.ndarray, "S K"]:
        """Probabilities under draws of the scores; the same standard normals for every question."""
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        noise = normal(noise_key("laplace", key), len(f), torch.arange(self.settings.samples), layer=0)
        drawn = noise.double().numpy() @ (vectors * np.sqrt(values.clip(min=0))).T
        found: Float[np.ndarray, "S K"] = softmax(f.double().cpu().numpy() + drawn, axis=1)
        return found

    def state(self) -> dict[str, Tensor]:
        """H and the prior's precision."""
        precision = torch.tensor([self._known_precision()], dtype=torch.float32)
        return {**self.curvature.state(), "precision": precision}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        kind = FullCurvature if self.settings.form == "full" else KroneckerCurvature
        self._curvature, self.precision = kind.of_state(state, self.parameters), float(state["precision"])
        if not self.precision > 0:
            raise ValueError(f"the precision is {self.precision}")

    def _squared_distance(self) -> float:
        """|phi - a0|^2."""
        if self.settings.centre == "zero":
            return sum(float(phi.detach().double().square().sum()) for phi in self.parameters)
        adapters = self.parts.method.adapters
        theta = dict(zip(map(id, adapters.parameters("task")), adapters.parameters("shared"), strict=True))
        return sum(float((phi - theta[id(phi)]).detach().double().square().sum()) for phi in self.parameters)
