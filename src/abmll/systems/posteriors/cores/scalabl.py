"""ScalaBL (Samplawski et al. 2025): a Gaussian over the singular values of each A, r numbers a layer."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from abmll.kernels.noise import noise_key, normal
from abmll.systems.posteriors.base import factor_pairs
from abmll.systems.posteriors.settings import ScalaBLSettings
from abmll.systems.posteriors.variational import Variational, kl_weight

LEAST_VALUE = 1e-8
"""Below it a singular value is taken for this, so that it has a logarithm."""


class Core(NamedTuple):
    """Of one layer: W - W0 = s left diag(v) right, where v is N(exp(log_value), exp(log_std)^2) entry by entry."""

    left: Float[Tensor, "O R"]
    right: Float[Tensor, "R I"]
    log_value: Float[Tensor, " R"]
    log_std: Float[Tensor, " R"]


class ScalaBL(Variational):
    r"""q(v) = N(exp(l), exp(l_sigma)^2) over a diagonal core between the factors, p(v) = N(0, sigma_p^2).

    The core is the singular values of the A that steps begin with, A = U diag(v) V^T; B U and V^T stand around it, so
    that the product is theta's. Each step draws $v = e^l + e^{l_\sigma} \circ \epsilon$, takes the gradient of the
    batch's mean NLL there, and then an AdamW step at the method's inner rate on B U, V^T, l and l_sigma, and an SGD
    step on l and l_sigma by the gradient of the KL times its weight, that of the ELBO unless
    `kl_schedule: published`. A draw is a LoRA: its values are multiplied into V^T. (The published code descends
    KL(p || q), which makes stds grow: `kl: reversed`.)
    """

    settings: ScalaBLSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._cores: list[Core] = []
        self._adam: torch.optim.AdamW | None = None
        self._examples, self._steps = 0, 0

    def start(self, examples: int) -> None:
        """The SVD of theta's A; stds uniform between epsilon / sqrt 2 and epsilon."""
        pairs = enumerate(factor_pairs(self))
        self._cores = [core_of(b.detach(), a.detach(), index, self.settings.epsilon) for index, (b, a) in pairs]
        moved = [part for core in self._cores for part in core]
        self._adam = torch.optim.AdamW(moved, lr=self.parts.method.settings.inner_lr, weight_decay=0.0)
        self._examples, self._steps = examples, 0

    def step(self, gradients: list[Tensor], key: int) -> None:
        """AdamW by the NLL, then SGD by the KL, whose gradient is taken where the NLL's was."""
        assert self._adam is not None, "start comes first"
        s, method = self.settings, self.parts.method.settings
        weight = kl_weight(s, self._examples, self._steps, method.batch_size)
        of_kl = [kl_gradients(core.log_value, core.log_std, s) for core in self._cores]
        for index, core in enumerate(self._cores):
            by_left, by_a = gradients[2 * index : 2 * index + 2]
            for part, gradient in zip(core, self._through(core, by_left, by_a, index, key), strict=True):
                part.grad = gradient
        self._adam.param_groups[0]["lr"] = method.inner_lr * self.rate_factor
        self._adam.step()
        for core, (by_value, by_std) in zip(self._cores, of_kl, strict=True):
            core.log_value.sub_(s.kl_lr * self.rate_factor * weight * by_value)
            core.log_std.sub_(s.kl_lr * self.rate_factor * weight * by_std)
        self._steps += 1

    def draw(self, number: int, key: int) -> list[Tensor]:
        """B U, and the drawn values times V^T, of every layer."""
        drawn = []
        for index, core in enumerate(self._cores):
            values = core.log_value.exp() + core.log_std.exp() * self._noise(index, key)
            drawn += [core.left, values[:, None] * core.right]
        return drawn

    def state(self) -> dict[str, Tensor]:
        """The four parts of every layer."""
        cores = enumerate(self._cores)
        return {f"{name}.{index}": part for index, core in cores for name, part in core._asdict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        device, cores = self.parts.batcher.device, []
        for index, (b, a) in enumerate(factor_pairs(self)):
            core = Core(*(state[f"{name}.{index}"].to(device) for name in Core._fields))
            rank = (a.shape[0],)
            if [tuple(part.shape) for part in core] != [tuple(b.shape), tuple(a.shape), rank, rank]:
                raise ValueError(f"a layer of shapes {[tuple(part.shape) for part in core]}")
            cores.append(core)
        self._cores = cores

    def _through(self, core: Core, by_left: Tensor, by_a: Tensor, index: int, key: int) -> tuple[Tensor, ...]:
        """From gradients by the drawn factors, those by the parts of the core."""
        value, noise = core.log_value.exp(), core.log_std.exp() * self._noise(index, key)
        by_values = (by_a * core.right).sum(1)
        return by_left, (value + noise)[:, None] * by_a, by_values * value, by_values * noise

    def _noise(self, index: int, key: int) -> Float[Tensor, " R"]:
        value = self._cores[index].log_value
        return normal(key, len(value), torch.zeros((), dtype=torch.int64, device=value.device), layer=index).to(value)


def core_of(b: Float[Tensor, "O R"], a: Float[Tensor, "R I"], index: int, epsilon: float) -> Core:
    """B A as B U diag(v) V^T, with new stds."""
    u, values, right = torch.linalg.svd(a.double(), full_matrices=False)
    generator = torch.Generator().manual_seed(noise_key("scalabl", index) >> 1)
    std = torch.empty(len(values), dtype=torch.float32).uniform_(epsilon / math.sqrt(2), epsilon, generator=generator)
    log_value = values.clamp(min=LEAST_VALUE).log()
    return Core((b.double() @ u).to(b), right.to(a), log_value.to(a), std.log().to(a))


def kl_gradients(
    log_value: Float[Tensor, " R"], log_std: Float[Tensor, " R"], settings: ScalaBLSettings
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Gradients by log_value and log_std of KL(q || p), summed over entries; of KL(p || q) where it is reversed.

    >>> kl_gradients(torch.zeros(1), torch.zeros(1), ScalaBLSettings())  # N(1, 1) || N(0, 1)
    (tensor([1.]), tensor([0.]))
    """
    value, std, prior = log_value.exp(), log_std.exp(), settings.prior_std
    if settings.kl == "reversed":
        return (value / std).square(), 1 - (prior**2 + value.square()) / std.square()
    return (value / prior).square(), (std / prior).square() - 1
