"""IVON (Shen et al. 2024; on LoRA Cong et al. 2024): a diagonal Gaussian by natural-gradient steps."""

from typing import NamedTuple

import torch
from torch import Tensor

from abmll.kernels.noise import normal
from abmll.systems.posteriors.base import copied
from abmll.systems.posteriors.settings import IVONSettings
from abmll.systems.posteriors.variational import Variational


class IVONState(NamedTuple):
    """Of one factor: mean m, Hessian h, momentum, and the prior's mean."""

    mean: Tensor
    hessian: Tensor
    momentum: Tensor
    centre: Tensor


class IVON(Variational):
    r"""q(w) = N(m, 1 / (ess (h + delta))) over A and B, with delta the prior's weight (`weight_decay`).

    Each step draws $w = m + \epsilon / \sqrt{ess (h + \delta)}$, takes the gradient g there, and

    $$ \hat h = \epsilon g \sqrt{ess (h + \delta)}, \qquad
       h \leftarrow \beta_2 h + (1 - \beta_2) \hat h + \tfrac12 (1 - \beta_2)^2 (h - \hat h)^2 / (h + \delta), $$

    $$ m \leftarrow m - lr \, \mathrm{clip}\bigl( (\bar g + \delta (m - m_0)) / (h + \delta), \pm \xi \bigr), $$

    with $\bar g$ the momentum of g without its bias. With $m_0$ = theta and delta above 0 it is ABML's inner problem by
    natural gradient. At the published $\beta_2$ ten steps hardly move h, and so the stds.
    """

    settings: IVONSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._states: list[IVONState] = []
        self._steps = 0

    def start(self, examples: int) -> None:
        """m = theta, h = `hess_init`."""
        self._steps = 0
        zero = self.settings.centre == "zero"
        self._states = [
            IVONState(
                mean,
                torch.full_like(mean, self.settings.hess_init),
                torch.zeros_like(mean),
                torch.zeros_like(mean) if zero else mean.clone(),
            )
            for mean in copied(self.parameters)
        ]

    def step(self, gradients: list[Tensor], key: int) -> None:
        """One natural-gradient step of every factor."""
        self._steps += 1
        settings = self.settings.model_copy(update={"lr": self.settings.lr * self.rate_factor})
        pairs = enumerate(zip(self._states, gradients, strict=True))
        self._states = [
            ivon_step(state, gradient, self._noise(index, key), self._steps, settings)
            for index, (state, gradient) in pairs
        ]

    def draw(self, number: int, key: int) -> list[Tensor]:
        """m and noise, for every factor."""
        return [
            state.mean + self._noise(index, key) / _root(state.hessian, self.settings)
            for index, state in enumerate(self._states)
        ]

    def state(self) -> dict[str, Tensor]:
        """m and h of every factor."""
        parts = [(f"mean.{i}", s.mean) for i, s in enumerate(self._states)]
        return dict(parts + [(f"hessian.{i}", s.hessian) for i, s in enumerate(self._states)])

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        means, hessians = (self.load_like_factors(state, part) for part in ("mean", "hessian"))
        if any(bool((h + self.settings.weight_decay <= 0).any()) for h in hessians):
            raise ValueError("a variance is not positive")
        pairs = zip(means, hessians, strict=True)
        self._states = [IVONState(mean, h, torch.zeros_like(mean), mean) for mean, h in pairs]

    def _noise(self, index: int, key: int) -> Tensor:
        mean = self._states[index].mean
        return normal(key, mean.shape[1], torch.arange(mean.shape[0], device=mean.device), layer=index).to(mean)


def ivon_step(state: IVONState, gradient: Tensor, noise: Tensor, step: int, settings: IVONSettings) -> IVONState:
    """The state after step number `step`, from 1, by the gradient at the draw of this noise."""
    s, (mean, hessian, momentum, centre) = settings, state
    estimate = noise * gradient * _root(hessian, s)
    momentum = s.beta1 * momentum + (1 - s.beta1) * gradient
    correction = (hessian - estimate).square() / (hessian + s.weight_decay)
    hessian = s.beta2 * hessian + (1 - s.beta2) * estimate + 0.5 * (1 - s.beta2) ** 2 * correction
    push = momentum / (1 - s.beta1**step) + s.weight_decay * (mean - centre)
    way = (push / (hessian + s.weight_decay)).clamp(-s.clip, s.clip)
    return IVONState(mean - s.lr * way, hessian, momentum, centre)


def _root(hessian: Tensor, s: IVONSettings) -> Tensor:
    """1 / std."""
    return (s.ess * (hessian + s.weight_decay)).sqrt()
