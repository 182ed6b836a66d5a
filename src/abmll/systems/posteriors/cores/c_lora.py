"""C-LoRA (Rahmati et al. 2025): between the factors a Gaussian core that each token has of its own."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear, relu

from abmll.adapters.layer import AdaptedLinear
from abmll.kernels.noise import noise_key, normal
from abmll.methods.base import Terms, backward_by_share
from abmll.methods.noise import Coordinates, prediction_keys, step_key
from abmll.process.stopping import stop_if_asked
from abmll.prompts.batches import ChoiceBatch
from abmll.question import Question
from abmll.systems.plans import PredictionPlan
from abmll.systems.posteriors.base import Adaptation, Posterior, check_shapes, copied, factor_pairs, put
from abmll.systems.posteriors.settings import CLoRASettings
from abmll.systems.predict import Draw, draw_by_batch
from abmll.training.failed_batch import FailedBatch
from abmll.training.inner import check_finite, clear
from abmll.training.optimizers import schedule_factor


class Net(NamedTuple):
    """Of one layer: h = A x -> mean and root of the std of the core, by one hidden layer."""

    hidden: Float[Tensor, "H R"]
    hidden_bias: Float[Tensor, " H"]
    out: Float[Tensor, "C H"]
    out_bias: Float[Tensor, " C"]

    def __call__(self, h: Float[Tensor, "*tokens R"]) -> tuple[Tensor, Tensor]:
        """Mean and std of each token's core, of shape *tokens x R x R."""
        out = linear(relu(linear(h, self.hidden, self.hidden_bias)), self.out, self.out_bias)
        mean, root = out.unflatten(-1, (2, h.shape[-1], h.shape[-1])).unbind(-3)
        return mean, root.sigmoid().square()


class CLoRA(Posterior):
    r"""y = W0 x + s B E(x) A x with E(x) ~ N(mu(h), g(h)^4) entry by entry, h = A x, for every token.

    mu and g are a small network of each layer, learned with B and A from theta on the batches that made phi: B and A by
    AdamW at the method's inner rate, the networks by SGD. What is descended is the batch's mean NLL at one draw, and
    the KL of E from N(0, sigma_p^2), summed over entries, layers and tokens of a question, times `kl_weight`. The core
    begins at the identity, so that the mean is theta; the published one begins at random. A draw is of outputs, as each
    token has another core: no LoRA, and nothing to export.
    """

    settings: CLoRASettings

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._factors: list[Tensor] = []
        self._nets: list[Net] = []

    def fit(self, adaptation: Adaptation) -> None:
        """All steps; phi is put back."""
        phi = copied(self.parameters)
        try:
            self.parts.method.begin_task(first=True)
            ranks = [a.shape[0] for _, a in factor_pairs(self)]
            self._nets = [new_net(rank, index, self.settings, phi[0]) for index, rank in enumerate(ranks)]
            self._take(adaptation)
            self._factors = copied(self.parameters)
            self._nets = [Net(*copied(net)) for net in self._nets]
        finally:
            clear(self.parameters)
            put(self.parameters, phi)

    def _take(self, adaptation: Adaptation) -> None:
        """The steps, in phi's memory."""
        rates = (self.parts.method.settings.inner_lr, self.settings.core_lr)
        adam = torch.optim.AdamW(self.parameters, lr=rates[0], weight_decay=0.0)
        sgd = torch.optim.SGD([part for net in self._nets for part in net], lr=rates[1])
        for number, questions in enumerate(adaptation.batches):
            stop_if_asked()
            self._gradients(questions, (*adaptation.coordinates, number))
            factor = schedule_factor(adaptation.schedule, number, len(adaptation.batches))
            for optimizer, rate in zip((adam, sgd), rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
                optimizer.step()

    def draw_by_batch(
        self, questions: Sequence[Question], plan: PredictionPlan, coordinates: Coordinates
    ) -> Iterator[tuple[list[int], list[Draw]]]:
        """The probabilities of every batch under each draw; B and A take phi's place meanwhile."""
        method, likelihood, batcher, _, _ = self.parts
        by_batch: dict[tuple[int, ...], list[Draw]] = {}
        alone = PredictionPlan("mean", 1, plan.batch_tokens)
        phi = copied(self.parameters)
        try:
            put(self.parameters, self._factors)
            for key in prediction_keys(coordinates, plan.samples):
                with method.adapters.with_cores(self._cores(key, lambda kl: None)):
                    found = draw_by_batch(method, likelihood, batcher, questions, alone, coordinates)
                    for places, drawn in found:
                        by_batch.setdefault(tuple(places), []).extend(drawn)
        finally:
            put(self.parameters, phi)
        yield from ((list(places), drawn) for places, drawn in by_batch.items())

    def state(self) -> dict[str, Tensor]:
        """B, A and the network of every layer."""
        factors = {f"factor.{index}": value for index, value in enumerate(self._factors)}
        nets = enumerate(self._nets)
        return factors | {f"{name}.{index}": part for index, net in nets for name, part in net._asdict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse."""
        device, pairs = self.parts.batcher.device, factor_pairs(self)
        factors = [state[f"factor.{index}"].to(device) for index in range(len(self.parameters))]
        check_shapes(self.parameters, factors)
        nets = [Net(*(state[f"{name}.{i}"].to(device) for name in Net._fields)) for i in range(len(pairs))]
        for index, ((_, a), net) in enumerate(zip(pairs, nets, strict=True)):
            check_shapes(new_net(a.shape[0], index, self.settings, a), net)
        self._factors, self._nets = factors, nets

    def _gradients(self, questions: tuple[Question, ...], coordinates: tuple[int, ...]) -> None:
        """Leave those of a step on B, A and the networks."""
        method, _, batcher, _, _ = self.parts
        key = step_key(coordinates).to(batcher.device)
        divergences: list[Tensor] = []

        def loss(batch: ChoiceBatch) -> Terms:
            divergences.clear()
            with method.adapters.drawing("mean", key, batch.row_keys, batch.token_index):
                plain = method.inner_loss(batch, key[0])
            tokens = (batch.reach > 0).to(divergences[0])
            kl = (torch.stack(divergences).sum(0) * tokens).sum() / batch.questions
            return Terms((*plain.losses, self.settings.kl_weight * kl), plain.nll, kl)

        moved = [*self.parameters, *(part for net in self._nets for part in net)]
        clear(moved)
        name = noise_key("CLoRA", int(key))
        with method.adapters.with_cores(self._cores(name, divergences.append)):
            terms = backward_by_share(batcher(questions), loss)
        clear(method.temperature)
        gradients = [part.grad for part in moved if part.grad is not None]
        what = f"step {coordinates[-1]} of the posterior"
        check_finite(terms, gradients, what, FailedBatch(questions, coordinates), method.adapters)

    def _cores(self, key: int, hear: Callable[[Tensor], None]) -> dict[int, Callable[[Tensor, Tensor], Tensor]]:
        """What the layers that move put out under a draw; each token's KL is heard of."""
        layers = {id(layer.task.mean_a): layer for layer in self.parts.method.adapters.layers.values()}
        moving = [layers[id(a)] for _, a in factor_pairs(self)]
        pairs = zip(moving, self._nets, strict=True)
        return {layer.index: partial(self._output, layer, net, key, hear) for layer, net in pairs}

    def _output(
        self, layer: AdaptedLinear, net: Net, key: int, hear: Callable[[Tensor], None], y: Tensor, x: Tensor
    ) -> Tensor:
        task, noise = layer.task, layer.noise
        assert noise.questions is not None
        assert noise.tokens is not None
        h = linear(x.to(task.mean_a.dtype), task.mean_a)
        mean, std = net(h)
        hear(divergence(mean, std, self.settings.prior_std))
        core = mean + std * token_noise(key, h.shape[-1], layer.index, noise.questions, noise.tokens).to(std)
        added = linear((core @ h[..., None])[..., 0], task.mean_b)
        return (y.to(added.dtype) + task.variance.scale * added).to(y.dtype)


def token_noise(
    key: int, rank: int, layer: int, questions: Int[Tensor, " B"], tokens: Int[Tensor, "B T"]
) -> Float[Tensor, "B T {rank} {rank}"]:
    """Standard normal, by question, token and layer: another batch has the same."""
    drawn = normal(key, rank * rank, tokens, layer=layer, question=questions[:, None].expand_as(tokens))
    return drawn.unflatten(-1, (rank, rank))


def divergence(
    mean: Float[Tensor, "*tokens R R"], std: Float[Tensor, "*tokens R R"], prior_std: float
) -> Float[Tensor, "*tokens"]:
    """KL(N(mean, std^2) || N(0, prior_std^2)) of each token, summed over entries.

    >>> divergence(torch.zeros(1, 1), torch.full((1, 1), 0.2), 0.2)
    tensor(0.)
    """
    ratio = (std / prior_std).square()
    return 0.5 * (ratio + (mean / prior_std).square() - 1 - ratio.log()).sum((-2, -1))


def new_net(rank: int, index: int, settings: CLoRASettings, like: Tensor) -> Net:
    """torch's usual start of linear layers, but for the mean, which is the identity whatever h is."""
    generator = torch.Generator().manual_seed(noise_key("c-lora", index) >> 1)
    width, count = settings.hidden, 2 * rank * rank

    def uniform(*shape: int, fan_in: int) -> Tensor:
        return torch.empty(shape).uniform_(-1, 1, generator=generator) / math.sqrt(fan_in)

    net = [uniform(width, rank, fan_in=rank), uniform(width, fan_in=rank)]
    net += [uniform(count, width, fan_in=width), uniform(count, fan_in=width)]
    net[2][: rank * rank] = 0
    net[3][: rank * rank] = torch.eye(rank).flatten()
    return Net(*(part.to(like).requires_grad_() for part in net))
