"""ABMLL, amortized Bayesian meta-learning for LoRA, in one file: to be read beside docs/method.md, section 1.

Model and tasks come from the library, which computes the same losses without a matrix of any layer's size being made.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor, nn

import abmll

RANK, SCALE, TARGETS = 8, 2.0, ("q_proj", "v_proj")  # R, s = alpha / R, and the layers that are adapted
STD_INIT, STD_FLOOR, BETA = 3e-3, 1e-6, 0.34  # f, eps, and the weight of the KL, which is a mean over adapted weights
INNER_LR, OUTER_LR, STEPS, BATCH_SIZE, SEED = 3e-4, 0.5, 6, 2, 0  # rates of phi and theta; steps on each task


class Gaussian(nn.Module):
    """Independent Gaussians over the entries of W - W0, by low-rank factors."""

    def __init__(self, rows: int, columns: int, number: int) -> None:
        super().__init__()
        for name in ("mean", "std"):  # as in LoRA, B starts at zero and A at random
            generator = torch.Generator().manual_seed(key_of(f"{name}_a", SEED * 1_000_003 + number) >> 1)
            a = torch.empty(RANK, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator)
            self.register_parameter(f"{name}_b", nn.Parameter(torch.zeros(rows, RANK).double()))
            self.register_parameter(f"{name}_a", nn.Parameter(a.double()))

    def mean_and_var(self) -> tuple[Tensor, Tensor]:
        """mean = s B A, var = (s B' A' + f)^2 + eps^2."""
        return SCALE * self.mean_b @ self.mean_a, (SCALE * self.std_b @ self.std_a + STD_INIT) ** 2 + STD_FLOOR**2


class BayesianLinear(nn.Module):
    """A linear layer with a prior p(W | theta) that all tasks share, and the posterior q(W) of one task, phi."""

    def __init__(self, base: nn.Linear, number: int) -> None:
        super().__init__()
        self.base, self.number = base, number
        self.theta, self.phi = (Gaussian(*base.weight.shape, number) for _ in range(2))
        self.first_stds = {name: value.clone() for name, value in self.phi.state_dict().items() if "std" in name}

    def forward(self, x: Tensor) -> Tensor:
        """W is drawn from q: one matrix for all tokens; or for each token what such matrices make of it, a Gaussian."""
        (mean, var), (key, token, question) = self.phi.mean_and_var(), self.draw
        y = self.base(x) + x @ mean.T
        if token is None:
            return y + x @ (var.sqrt() * normal(key, x.shape[-1], np.arange(y.shape[-1]), self.number)).T
        return y + (x**2 @ var.T).sqrt() * normal(key, y.shape[-1], token, self.number, question)


class ABMLL:
    """theta and phi on a frozen model."""

    def __init__(self, base: abmll.LanguageModel) -> None:
        self.model, self.tokenizer, self.layers = base.model.double(), base.tokenizer, []
        for path, linear in [named for named in self.model.named_modules() if named[0].endswith(TARGETS)]:
            self.layers.append(BayesianLinear(linear, len(self.layers)))
            setattr(self.model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], self.layers[-1])

    def log_probabilities(self, question: abmll.Question, key: int, one_matrix: bool = False) -> Tensor:
        """log p(choice | question, W): softmax over the choices of the mean log-probability of a choice's tokens."""
        prompt = f"{question.context}\n\n" * bool(question.context) + f"Question: {question.question}\nAnswer:"
        text = "\x1f".join((question.id, question.context, question.question, *question.choices))
        name = int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little")
        length, before, scores = len(self.tokenizer(prompt).input_ids), 0, []
        for choice in question.choices:
            ids = torch.tensor(self.tokenizer(f"{prompt} {choice}").input_ids)
            token = np.r_[:length, length + before : len(ids) - 1 + before]  # all choices share the prompt's noise
            BayesianLinear.draw = (key, None if one_matrix else token, name)
            logits = self.model(ids[None, :-1]).logits[0].log_softmax(-1)
            scores.append(logits[torch.arange(length - 1, len(ids) - 1), ids[length:]].mean())
            before += len(ids) - 1 - length
        return torch.stack(scores).log_softmax(0)

    def kl(self) -> Tensor:
        """KL(q(W) || p(W | theta)), the mean over all adapted weights."""
        terms = []
        for layer in self.layers:
            (mean, var), (prior_mean, prior_var) = layer.phi.mean_and_var(), layer.theta.mean_and_var()
            terms.append(0.5 * ((prior_var / var).log() + (var + (mean - prior_mean) ** 2) / prior_var - 1))
        return torch.cat([term.flatten() for term in terms]).mean()

    def learn(self, batches: Sequence[Sequence[abmll.Question]], *place: int | str) -> list[tuple[float, float]]:
        """Make phi from theta, then a step on -E_q[log p(D | W)] + beta KL for each batch; NLL and KL before each."""
        for layer in self.layers:
            layer.phi.load_state_dict(layer.theta.state_dict() | layer.first_stds)
        optimizer, losses = torch.optim.Adam([f for x in self.layers for f in x.phi.parameters()], lr=INNER_LR), []
        for step, batch in enumerate(batches):
            key = key_of(*place, step) ^ key_of("activation", 0)
            nll = -torch.stack([self.log_probabilities(q, key)[q.answer] for q in batch]).mean()
            kl = self.kl()
            losses.append((nll.item(), kl.item()))
            optimizer.zero_grad()
            (nll + BETA * kl).backward()
            optimizer.step()
        return losses

    def meta_train(self, tasks: Sequence[abmll.Task], iterations: int) -> Iterator[dict[str, float]]:
        """Learn theta: its means go a part of the way to each task's, its stds descend the KL. Yields the losses."""
        optimizer = torch.optim.Adam([f for x in self.layers for f in (x.theta.std_b, x.theta.std_a)], lr=INNER_LR)
        for iteration in range(iterations):
            chance = np.random.Generator(np.random.Philox(np.random.SeedSequence([SEED, iteration, 0])))
            rows = tasks[chance.choice(len(tasks))].train
            chosen = chance.choice(len(rows), (STEPS, BATCH_SIZE), replace=False)
            (first, _), *_, (nll, task_kl) = self.learn([[rows[i] for i in b] for b in chosen], SEED, iteration, 0)
            kl = self.kl()
            optimizer.zero_grad()
            (BETA * kl).backward()
            optimizer.step()
            for layer in self.layers:
                layer.theta.mean_b.data.lerp_(layer.phi.mean_b.data, OUTER_LR)
                layer.theta.mean_a.data.lerp_(layer.phi.mean_a.data, OUTER_LR)
            yield {"nll_first": first, "nll": nll, "task_kl": task_kl, "query_task_kl": kl.item()}

    @torch.no_grad()
    def predict(self, question: abmll.Question, *place: int | str, samples: int = 10) -> Tensor:
        """p(choice | question, D): the mean probability under weights that are drawn from q."""
        keys = [key_of("predict", *place, sample) for sample in range(samples)]
        return torch.stack([self.log_probabilities(question, key, one_matrix=True).exp() for key in keys]).mean(0)


def key_of(*names: int | str) -> int:
    """64 bits that name some noise."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def normal(key: int, width: int, rows: np.ndarray, layer: int, question: int = 0) -> Tensor:
    """Standard normal numbers that depend on their names alone: Philox4x32-10, then Box-Muller."""
    a, b, c, d = map(np.uint64, np.broadcast_arrays(np.arange(-(-width // 4)), rows[:, None], layer, question))
    for turn in range(10):
        k, m = (key + turn * 0x9E3779B9) & 0xFFFFFFFF, ((key >> 32) + turn * 0xBB67AE85) & 0xFFFFFFFF
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q & 0xFFFFFFFF, (p >> 32) ^ d ^ m, p & 0xFFFFFFFF
    words = np.stack([a, b, c, d], axis=-1).astype(np.uint32).view(np.int32)
    uniform = torch.from_numpy((words ^ (words >> 31)) * 4.6566127342e-10)
    radius, angle = (-2 * uniform[..., ::2].clamp(min=1e-7).log()).sqrt(), 2 * torch.pi * uniform[..., 1::2]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :width]


if __name__ == "__main__":
    method = ABMLL(abmll.random_model("tiny-llama", device="cpu"))
    for losses in method.meta_train(abmll.load_tasks("builtin"), iterations=5):
        print(losses)
    task = abmll.load_tasks("builtin:occupations")[0]
    method.learn([task.train[i : i + BATCH_SIZE] for i in range(0, 20, BATCH_SIZE)], "occupations")
    print(task.test[0].choices, "probabilities", method.predict(task.test[0], "occupations").tolist())
