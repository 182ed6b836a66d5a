"""iMAML (Rajeswaran et al. 2019) on LoRA: phi solves a proximal problem, and theta takes its implicit gradient."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from abmll.methods.base import OptimizerName, Terms, backward_by_share
from abmll.methods.first_order import FirstOrder, FirstOrderSettings
from abmll.prompts.batches import ChoiceBatch

Vectors = list[Tensor]
"""One vector, in the shapes of the factors of phi."""


class IMAMLSettings(FirstOrderSettings):
    """Settings of iMAML; lambda and the iterations are those of the paper's table 2 (Omniglot).

    Attributes:
        proximal_weight: lambda, weight of |phi - theta|^2 / 2 over the factors, which every inner step descends beside
            its batch's mean NLL, in adaptation, too.
        cg_steps: iterations of conjugate gradients, each a product with the Hessian; 0: first-order MAML's gradient.
    """

    proximal_weight: float = Field(2.0, ge=0)
    cg_steps: int = Field(5, ge=0)
    inner_optimizer: OptimizerName = "sgd"
    inner_lr: float = Field(0.1, gt=0)  # MAML's, unknown on LoRA; the published code has .01, the paper 16 and 25 steps

    @model_validator(mode="after")
    def _a_problem_to_solve(self) -> "IMAMLSettings":
        if self.cg_steps and not self.proximal_weight:
            raise ValueError("method.cg_steps above 0 needs method.proximal_weight above 0: it is divided by")
        return self


@final
class IMAML(FirstOrder):
    r"""iMAML: $\phi^* = \arg\min_\phi L_S(\phi) + \tfrac\lambda2 |\phi - \theta|^2$, whatever steps lead there.

    As the gradient of what is descended is 0 at $\phi^*$, the implicit function theorem has

    $$ \nabla_\theta L_Q(\phi^*(\theta)) = (I + H / \lambda)^{-1} \, \nabla L_Q(\phi^*), $$

    with $H$ the Hessian of $L_S$, the mean loss of all inner steps' batches. Conjugate gradients solve for it by
    products with $H$ alone. A learned temperature takes its part by way of $\phi^*$, too. Here $\phi$ is what the
    inner steps made, which is $\phi^*$ only where there were enough of them.

    >>> from abmll.methods import resolve_settings
    >>> resolve_settings("imaml").cg_steps
    5
    """

    settings_class: ClassVar = IMAMLSettings
    settings: IMAMLSettings

    @property
    def through_steps(self) -> bool:  # type: ignore[override]
        """Whether the outer gradient knows the inner steps' batches."""
        return self.settings.cg_steps > 0

    def inner_loss(self, batch: ChoiceBatch, key: Int[Tensor, ""]) -> Terms:
        """Mean NLL of the batch and the proximal term, theta held fixed."""
        plain, weight = super().inner_loss(batch, key), self.settings.proximal_weight
        if not weight:
            return plain
        pairs = zip(self.adapters.parameters("task"), self.adapters.parameters("shared"), strict=True)
        distance = torch.stack([(phi - theta.detach()).square().sum() for phi, theta in pairs]).sum()
        return Terms((*plain.losses, 0.5 * weight * distance), plain.nll)

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms:
        """The query NLL's gradient by theta, by way of the problem that phi solves."""
        terms = backward_by_share(query, partial(super().inner_loss, key=key))
        if self.inner_taken is not None and self.settings.inner_steps:
            self._solve()
        self.adapters.add_task_gradients()
        return terms

    def _solve(self) -> None:
        """From the gradient by phi, in its .grad, that by theta; the temperature's part by way of phi is added."""
        steps, phi, weight = self.inner_taken, self.adapters.parameters("task"), self.settings.proximal_weight
        assert steps is not None

        def product(vectors: Vectors) -> Vectors:
            """(I + H / lambda) times these: the inner loss has the proximal term in it, and so lambda I + H."""
            return [part / weight for part in steps.curvature(vectors)]

        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in phi]
        solution = conjugate_gradients(product, gradient, self.settings.cg_steps)
        if self.temperature:
            steps.add_mixed([-part / weight for part in solution])
        for parameter, part in zip(phi, solution, strict=True):
            parameter.grad = part


def conjugate_gradients(product: Callable[[Vectors], Vectors], right: Vectors, steps: int) -> Vectors:
    """Solve A x = b for a symmetric, positive definite A by so many iterations from x = 0.

    Iterations end earlier at the solution, and at a direction in which A is not positive: the proximal problem is not
    convex there, and has no gradient in it. If that is the first one, x is b, as in first order.

    Args:
        product: A times a vector.
        right: b.
        steps: of them each has one product.

    Returns:
        x, of the A-norm's least error among the combinations of b, A b, A^2 b, ... that so many products allow.

    >>> a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> (x,) = conjugate_gradients(lambda v: [a @ v[0]], [torch.tensor([4.0, 7.0])], steps=2)
    >>> [round(float(number), 4) for number in x]
    [1.0, 2.0]
    """
    solution, residual = [torch.zeros_like(b) for b in right], [b.clone() for b in right]
    direction, squared = right, _dot(right, right)
    for step in range(steps):
        if squared == 0:
            break
        ahead = product(direction)
        curvature = _dot(direction, ahead)
        if curvature <= 0:
            return solution if step else right
        length = squared / curvature
        solution = [x + length * d for x, d in zip(solution, direction, strict=True)]
        residual = [r - length * a for r, a in zip(residual, ahead, strict=True)]
        before, squared = squared, _dot(residual, residual)
        direction = [r + squared / before * d for r, d in zip(residual, direction, strict=True)]
    return solution


def _dot(one: Vectors, other: Vectors) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)))
