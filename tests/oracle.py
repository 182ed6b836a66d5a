"""The likelihood and ABMLL's terms once more, slowly: float64, dense weights in a bare model, one choice at a time."""

import torch
from torch import Tensor
from torch.func import functional_call

from abmll.kernels import Factors
from abmll.kernels.noise import noise_key, normal
from abmll.methods.noise import StepCoordinates
from abmll.question import Question
from abmll.systems.system import System
from tests.dense import dense_kl, dense_mean, dense_normal, dense_precision_penalty
from tests.tiny import tiny_model

Leaves = dict[str, Tensor]
"""`layer.factor` -> float64 leaf, named as `AdapterSet.state_dict` names them."""


def leaves(system: System, slot: str) -> Leaves:
    """A slot's factors as float64 leaves."""
    state = system.method.adapters.state_dict(slot)
    return {name: tensor.double().clone().requires_grad_() for name, tensor in state.items()}


def factors_of(given: Leaves, path: str) -> Factors:
    """The four factors of one layer; a method without stds gets none."""
    four = [given.get(f"{path}.{name}") for name in ("mean_b", "mean_a", "std_b", "std_a")]
    return Factors(*four)


def slow_nll(system: System, given: Leaves, questions: tuple[Question, ...], key: int | None = None) -> Tensor:
    """Mean NLL of the right choices with W0 + mean (+ std * E for the weight draw `key`) written into a bare model."""
    model = tiny_model().double()
    weights = dict(model.named_parameters())
    for path, layer in system.method.adapters.layers.items():
        here, variance = factors_of(given, path), layer.task.variance
        added = dense_mean(here, variance)
        if key is not None:
            rows = torch.arange(layer.task.out_features)
            noise = normal(key, layer.task.in_features, rows, layer.index).double()
            added = added + dense_normal(here, variance).stddev * noise
        weights[f"{path}.weight"] = weights[f"{path}.weight"] + added
    return torch.stack([_question_nll(system, model, weights, question) for question in questions]).mean()


def _question_nll(system: System, model: torch.nn.Module, weights: dict[str, Tensor], question: Question) -> Tensor:
    encoded = system.batcher.encoder(question)
    scores = []
    for tokens, length in zip(encoded.continuations, encoded.lengths, strict=True):
        ids = torch.tensor([encoded.prefix + tokens])
        logits = functional_call(model, weights, (), {"input_ids": ids}).logits[0].log_softmax(-1)
        first = len(encoded.prefix)
        scores.append(sum(logits[first - 1 + i, token] for i, token in enumerate(tokens)) / length)
    return -torch.stack(scores).log_softmax(0)[encoded.answer]


def draw_key(coordinates: StepCoordinates, sample: int = 0) -> int:
    """The key of a training draw of the weight sampler, as an unsigned number."""
    return noise_key(*coordinates) ^ noise_key("weight", sample)


def slow_kl(system: System, task: Leaves, shared: Leaves) -> Tensor:
    """KL(q(phi | D) || p(phi | theta)), summed over all entries."""
    layers = system.method.adapters.layers.items()
    return sum(dense_kl(factors_of(task, p), factors_of(shared, p), x.task.variance) for p, x in layers)


def slow_prior(system: System, shared: Leaves, mean_weight: float, precision_weight: float) -> Tensor:
    """-gamma log p(theta), both parts, summed over all entries."""
    settings = system.method.settings
    total = torch.zeros((), dtype=torch.float64)
    normal_prior = torch.distributions.Normal(0.0, torch.tensor(settings.mean_prior_variance).double().sqrt())
    for path, layer in system.method.adapters.layers.items():
        here, variance = factors_of(shared, path), layer.task.variance
        penalty = dense_precision_penalty(
            here.std_b, here.std_a, variance, settings.precision_prior_shape, settings.precision_prior_rate
        )
        total = total - mean_weight * normal_prior.log_prob(dense_mean(here, variance)).sum()
        total = total + precision_weight * penalty
    return total


def slow_gradients(value: Tensor, given: Leaves) -> dict[str, Tensor]:
    """d value / d each leaf, zeros where it does not depend on it."""
    found = torch.autograd.grad(value, list(given.values()), allow_unused=True, retain_graph=True)
    pairs = zip(given.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if gradient is None else gradient for (name, leaf), gradient in pairs}
