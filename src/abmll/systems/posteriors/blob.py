"""BLoB (Wang et al. 2024): a Gaussian over A whose mean and stds are learned together, B a point."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from abmll.kernels.noise import noise_key, normal
from abmll.systems.posteriors.base import factor_pairs
from abmll.systems.posteriors.settings import BLoBSettings
from abmll.systems.posteriors.variational import Variational, kl_weight


class BLoB(Variational):
    r"""q(A) = N(M, G^4) entry by entry, p(A) = N(M_0, sigma_p^2); B is a point.

    Each step draws $A = M + G^2 \circ E$, one for all tokens, and takes the gradient $g_A$ of the batch's mean NLL
    there. M and B take an AdamW step at the method's inner rate by $g_A$ and $g_B$; G, and M once more, an SGD step by
    $g_A \circ 2 G \circ E$ and by the gradient of the KL times its weight. Beside a mean NLL the ELBO has the weight
    1 / n. With `kl_schedule: published` it is 2^i / (2^(m+1) - 1), where i counts up to m = 100 n^(pi/8) / batch:
    within ten steps that is nothing. The published forward pass draws signs for each token (Flipout), which is no draw
    of weights.
    """

    settings: BLoBSettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._b: list[Tensor] = []
        self._mean: list[Tensor] = []
        self._root_std: list[Tensor] = []
        self._centre: list[Tensor] = []
        self._adam: torch.optim.AdamW | None = None
        self._examples, self._steps = 0, 0

    def start(self, examples: int) -> None:
        """B and M of theta; G uniform between epsilon / sqrt 2 and epsilon."""
        pairs = factor_pairs(self)
        self._b = [b.detach().clone() for b, _ in pairs]
        self._mean = [a.detach().clone() for _, a in pairs]
        zero = self.settings.centre == "zero"
        self._centre = [torch.zeros_like(mean) if zero else mean.clone() for mean in self._mean]
        self._root_std = [_uniform(mean, index, self.settings.epsilon) for index, mean in enumerate(self._mean)]
        rate = self.parts.method.settings.inner_lr
        self._adam = torch.optim.AdamW([*self._b, *self._mean], lr=rate, weight_decay=0.0)
        self._examples, self._steps = examples, 0

    def step(self, gradients: list[Tensor], key: int) -> None:
        """AdamW on B and M, SGD on G and on M by the KL."""
        assert self._adam is not None, "start comes first"
        s = self.settings
        weight = kl_weight(s, self._examples, self._steps, self.parts.method.settings.batch_size)
        kl_lr = s.kl_lr * self.rate_factor
        self._adam.param_groups[0]["lr"] = self.parts.method.settings.inner_lr * self.rate_factor
        of_kl = [kl_gradients(*q, s.prior_std) for q in zip(self._mean, self._root_std, self._centre, strict=True)]
        for value, gradient in zip([*self._b, *self._mean], gradients[::2] + gradients[1::2], strict=True):
            value.grad = gradient
        self._adam.step()
        for index, (by_mean, by_root) in enumerate(of_kl):
            root = self._root_std[index]
            of_noise = gradients[2 * index + 1] * self._noise(index, key) * 2 * root
            self._mean[index] -= kl_lr * weight * by_mean
            self._root_std[index] = root - kl_lr * (weight * by_root + of_noise)
        self._steps += 1

    def draw(self, number: int, key: int) -> list[Tensor]:
        """B, and A with noise, of every layer."""
        drawn = []
        for index, (b, mean, root) in enumerate(zip(self._b, self._mean, self._root_std, strict=True)):
            drawn += [b, mean + root.square() * self._noise(index, key)]
        return drawn

    def state(self) -> dict[str, Tensor]:
        """B, M and G of every layer."""
        parts = {"b": self._b, "mean": self._mean, "root_std": self._root_std}
        return {f"{part}.{index}": value for part, values in parts.items() for index, value in enumerate(values)}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        device, pairs = self.parts.batcher.device, factor_pairs(self)
        found = {
            part: [state[f"{part}.{i}"].to(device) for i in range(len(pairs))] for part in ("b", "mean", "root_std")
        }
        for (b, a), mine, mean, root in zip(pairs, found["b"], found["mean"], found["root_std"], strict=True):
            if (mine.shape, mean.shape, root.shape) != (b.shape, a.shape, a.shape):
                raise ValueError(f"a layer of shapes {tuple(mine.shape)} and {tuple(mean.shape)}")
        self._b, self._mean, self._root_std = found["b"], found["mean"], found["root_std"]

    def _noise(self, index: int, key: int) -> Tensor:
        mean = self._mean[index]
        return normal(key, mean.shape[1], torch.arange(mean.shape[0], device=mean.device), layer=index).to(mean)


def kl_gradients(
    mean: Float[Tensor, "R I"], root_std: Float[Tensor, "R I"], centre: Float[Tensor, "R I"], prior_std: float
) -> tuple[Float[Tensor, "R I"], Float[Tensor, "R I"]]:
    """Gradients of KL(N(mean, root_std^4) || N(centre, prior_std^2)), summed over entries, by mean and root_std."""
    return (mean - centre) / prior_std**2, 2 * root_std**3 / prior_std**2 - 2 / root_std


def _uniform(like: Tensor, index: int, most: float) -> Tensor:
    generator = torch.Generator().manual_seed(noise_key("blob", index) >> 1)
    values = torch.empty(like.shape).uniform_(most / math.sqrt(2), most, generator=generator)
    return values.to(like)
