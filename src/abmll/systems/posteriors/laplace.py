"""Laplace-LoRA (Yang et al. 2024): a Gaussian around phi by the curvature of the examples' likelihood, linearised."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch import Tensor

from abmll.kernels.noise import noise_key, normal
from abmll.methods.noise import Coordinates, prediction_keys
from abmll.process.stopping import stop_if_asked
from abmll.question import Question
from abmll.systems.plans import PredictionPlan
from abmll.systems.posteriors.base import Adaptation, Posterior
from abmll.systems.posteriors.settings import LaplaceSettings
from abmll.systems.predict import Draw
from abmll.training.finite import no_answers

PRECISIONS = (1e-6, 1e12)
"""Between which the prior's precision is looked for."""


class Laplace(Posterior):
    r"""N(phi, (H + lambda)^-1) with H the generalised Gauss-Newton matrix of the examples, all its entries.

    With $f$ the log-probabilities of a question's choices, $J = \partial f / \partial \phi$ over the factors and
    $p = \mathrm{softmax} f$, a question adds $J^\top (\mathrm{diag}\, p - p p^\top) J$ to $H$. As
    $\sum_k p_k J_k = 0$ that is $G^\top G$ with the rows $\sqrt{p_k} J_k$, so that of n examples with K choices
    only the n K x n K matrix $G G^\top$ is ever inverted. The prior's precision has the largest evidence

    $$ \log Z(\lambda) = \text{const} - \tfrac\lambda2 |\phi - a_0|^2 - \tfrac12 \log\det(I + G G^\top / \lambda), $$

    which is concave in $\log \lambda$. A question is answered by the softmax of draws from
    $N(f, J (H + \lambda)^{-1} J^\top)$. The published code has Kronecker factors in place of H, and $a_0 = 0$.
    """

    settings: LaplaceSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._rows: Float[Tensor, "N P"] | None = None
        self.precision = math.nan

    def fit(self, adaptation: Adaptation) -> None:
        """G of the examples, and the prior's precision."""
        parts = [self.jacobian(question) for question in adaptation.examples]
        self._rows = torch.cat([f.exp().sqrt()[:, None] * rows for f, rows, _ in parts])
        given = self.settings.precision
        self.precision = self._evidence_precision() if given is None else given

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
        """J (H + lambda)^-1 J^T by the matrix inversion lemma, float64."""
        assert self._rows is not None, "fit comes first"
        own, cross = _product(rows, rows), _product(rows, self._rows)
        inner = _product(self._rows, self._rows) + self.precision * np.eye(len(self._rows))
        found: Float[np.ndarray, "K K"] = (own - cross @ np.linalg.solve(inner, cross.T)) / self.precision
        return found

    def sampled(
        self, f: Float[Tensor, " K"], covariance: Float[np.ndarray, "K K"], key: int
    ) -> Float[np.ndarray, "S K"]:
        """Probabilities under draws of the scores; the same standard normals for every question."""
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        noise = normal(noise_key("laplace", key), len(f), torch.arange(self.settings.samples), layer=0)
        drawn = noise.double().numpy() @ (vectors * np.sqrt(values.clip(min=0))).T
        found: Float[np.ndarray, "S K"] = softmax(f.double().cpu().numpy() + drawn, axis=1)
        return found

    def log_evidence(self, precision: float) -> float:
        """log Z of the examples by the prior's precision, without their log-likelihood, which does not depend on it."""
        assert self._rows is not None, "fit comes first"
        spectrum = np.linalg.eigvalsh(_product(self._rows, self._rows)).clip(min=0)
        return _log_evidence(precision, spectrum, self._squared_distance())

    def state(self) -> dict[str, Tensor]:
        """G and the prior's precision."""
        assert self._rows is not None, "fit comes first"
        return {"rows": self._rows, "precision": torch.tensor([self.precision], dtype=torch.float32)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        rows, size = state["rows"], sum(parameter.numel() for parameter in self.parameters)
        if rows.ndim != 2 or rows.shape[1] != size:
            raise ValueError(f"rows has the shape {tuple(rows.shape)}, here there are {size} numbers in phi")
        self._rows, self.precision = rows.to(self.parts.batcher.device), float(state["precision"])
        if self.precision <= 0:
            raise ValueError(f"the precision is {self.precision}")

    def _evidence_precision(self) -> float:
        assert self._rows is not None
        spectrum = np.linalg.eigvalsh(_product(self._rows, self._rows)).clip(min=0)
        distance = self._squared_distance()

        def loss(log_precision: float) -> float:
            return -_log_evidence(math.exp(log_precision), spectrum, distance)

        found = minimize_scalar(loss, bounds=np.log(PRECISIONS), method="bounded", options={"xatol": 1e-6})
        return float(np.float32(math.exp(found.x)))  # as it is stored

    def _squared_distance(self) -> float:
        """|phi - a0|^2."""
        if self.settings.centre == "zero":
            return sum(float(phi.detach().double().square().sum()) for phi in self.parameters)
        adapters = self.parts.method.adapters
        theta = dict(zip(map(id, adapters.parameters("task")), adapters.parameters("shared"), strict=True))
        return sum(float((phi - theta[id(phi)]).detach().double().square().sum()) for phi in self.parameters)


def _log_evidence(precision: float, spectrum: Float[np.ndarray, " N"], squared_distance: float) -> float:
    return -0.5 * precision * squared_distance - 0.5 * float(np.log1p(spectrum / precision).sum())


def _product(one: Float[Tensor, "N P"], other: Float[Tensor, "M P"]) -> Float[np.ndarray, "N M"]:
    found: Float[np.ndarray, "N M"] = (one @ other.T).double().cpu().numpy()
    return found
