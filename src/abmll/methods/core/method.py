"""ABMLL in a core: the posterior of R given a task's rows by Gauss-Newton passes, its prior by EM."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abmll.adapters.layer import AdapterSet
from abmll.kernels.noise import derived_key, normal
from abmll.methods.base import Group, Terms, backward_by_share
from abmll.methods.core.gaussian import CoreGaussian, posterior_mean
from abmll.methods.core.jacobian import CoreGradients
from abmll.methods.core.local import Local
from abmll.methods.core.settings import CoreSettings
from abmll.methods.core.start import singular_start
from abmll.methods.fitted import Fitted, Pieces
from abmll.process.stopping import stop_if_asked
from abmll.prompts.batches import ChoiceBatch


class _Sites(NamedTuple):
    """A block as observations: rows W and what they observe, both float64; its NLL where they were made."""

    rows: Float[Tensor, "N P"]
    observed: Float[Tensor, " N"]
    nll: Float[Tensor, ""]


@final
class CoreABMLL(Fitted):
    r"""W = W0 + s B R A with R the task's own: $p(R \mid \theta) = N(M, \mathrm{diag} V)$, over all layers' cores.

    A row's log-likelihood is taken for a quadratic form of its choices' log-probabilities f (`Local`), and these for
    linear in R. Then the posterior given all rows is a Gaussian in closed form (`CoreGaussian`), whose KL from the
    prior has the weight 1 that the evidence gives it. Each of `passes` linearises at the mean that the one before
    found: Gauss-Newton steps to the mode.

    theta is B, A, M and V. Of the last task's posterior with mean m and covariance C, EM's M step with the paper's
    Gamma prior on 1 / V makes of T tasks

    $$ M = \tfrac1T {\textstyle\sum_i} m_i, \qquad
       V = \frac{\sum_i [\mathrm{diag} C_i + (m_i - M)^2] + 2 b_0}{T + 2 (a_0 - 1)}, $$

    towards which M and V go a part of the way after each meta-batch; B and A descend the expected NLL of the rows. phi
    is the LoRA of the posterior's mean, (B m, A); `posterior.name: core` answers by draws of R, or linearised.

    Attributes:
        found: the posterior of the last task that was fitted, float64; None before.
        batches: of that task.
        prior_variance: V of the next fits, in place of the learned one: a control; None: the learned one.

    >>> from abmll.methods import resolve_settings
    >>> resolve_settings("core", given={"covariance": "factorised"}).passes
    2
    """

    settings_class: ClassVar = CoreSettings
    settings: CoreSettings
    found: CoreGaussian | None = None
    batches: tuple[ChoiceBatch, ...] = ()
    prior_variance: Float[Tensor, " P"] | None = None

    @property
    def rows_at_once(self) -> str:  # type: ignore[override]
        """All of them, or a batch."""
        return self.settings.rows_at_once

    @property
    def fit_tokens(self) -> int | None:  # type: ignore[override]
        """Of a batch that gradients of rows are made by."""
        return self.settings.fit_tokens

    @property
    def learned_start(self) -> dict[str, Float[Tensor, " P"]]:
        """core_mean and core_variance: M, an identity (or zeros) for each layer, and V."""
        mean = torch.eye(self._rank).flatten().repeat(len(self.adapters.layers))
        mean = mean if self.settings.start == "lora" else torch.zeros_like(mean)
        return {"core_mean": mean, "core_variance": torch.full_like(mean, self.settings.core_std**2)}

    @property
    def factors_start(self) -> Callable[[AdapterSet], None] | None:
        """The weights' own directions, if it is said so."""
        return singular_start if self.settings.start == "singular" else None

    @property
    def _rank(self) -> int:
        return next(iter(self.adapters.layers.values())).shared.rank

    def shared(self) -> list[Group]:
        """theta: B and A, M, and V where it is learned (and the learned temperature)."""
        s = self.settings
        groups = [self.mean_group("shared")] if s.train_factors else []
        groups.append(Group("core_mean", [self.learned["core_mean"]], "sgd", s.mean_rate))
        if s.variances != "frozen":
            groups.append(Group("core_variance", [self.learned["core_variance"]], "sgd", s.variance_rate))
        return [*groups, *self.temperature_groups()]

    def task(self) -> list[Group]:
        """phi: the LoRA of the posterior's mean."""
        return [self.mean_group("task")]

    def begin_task(self, *, first: bool = True) -> None:
        """phi is the LoRA of the prior's mean."""
        self.found, self.batches = None, ()
        self.adapters.begin_task()
        self.put_core(self.learned["core_mean"])

    @torch.no_grad()
    def put_core(self, core: Float[Tensor, " P"]) -> None:
        """phi's B is theta's times R, in its memory."""
        for layer, r in zip(self.adapters.layers.values(), self.split(core), strict=True):
            layer.task.mean_b.copy_(layer.shared.mean_b @ r.to(layer.shared.mean_b))

    def split(self, core: Float[Tensor, " P"]) -> Float[Tensor, "L R R"]:
        """The core of each layer."""
        return core.view(-1, self._rank, self._rank)

    def inner_loss(self, batch: ChoiceBatch, key: Int[Tensor, ""]) -> Terms:
        """The plain NLL at phi."""
        nll = self.nll(batch)
        return Terms((nll,), nll)

    def fit(self, blocks: Sequence[Sequence[ChoiceBatch]], pieces: Sequence[Pieces] | None = None) -> list[Terms]:
        """The posterior given all batches, each row of which is there once.

        Args:
            blocks: batches that are linearised together, from the mean that the block before led to.
            pieces: of each block, which questions its batches have: the posterior is that of one batch in their order.

        Returns:
            The NLL of each block of each pass, before its update; with the last the KL from the prior.

        Raises:
            Stopped: between two batches, if the process was asked to stop; phi is not to be used then.
        """
        variance = self.learned["core_variance"] if self.prior_variance is None else self.prior_variance
        prior = self.learned["core_mean"].detach().double(), variance.detach().double()
        mean, sites, taken = prior[0], dict[int, _Sites](), []
        for _ in range(self.settings.passes):
            for number, block in enumerate(blocks):
                sites[number] = self._sites(block, mean, None if pieces is None else pieces[number])
                rows = torch.cat([site.rows for site in sites.values()])
                observed = torch.cat([site.observed for site in sites.values()])
                mean = posterior_mean(rows, observed, *prior)
                self.put_core(mean)
                nll = sites[number].nll / sum(batch.questions for batch in block)
                taken.append(Terms((nll,), nll))
        self.found = CoreGaussian(mean, prior[1], rows, self.settings.covariance, self._rank**2)
        self.batches = tuple(batch for block in blocks for batch in block)
        kl, last = self.found.divergence(prior[0]), taken[-1].nll
        return [*taken[:-1], Terms((last, kl / sum(batch.questions for batch in self.batches)), last, kl)]

    def _sites(self, block: Sequence[ChoiceBatch], mean: Float[Tensor, " P"], pieces: Pieces | None) -> _Sites:
        """A block linearised at phi, whose core is `mean`: each question's observations where it stands in the block.

        A question with fewer choices than others has as many observations, of which some are of nothing, as in one
        batch: then draws, which have a number for each, are the same too.
        """
        found = []
        for number, batch in enumerate(block):
            stop_if_asked()
            local, rows = self.linearised(batch, None if pieces is None else pieces.choices[number])
            found.append((rows.double(), local.target, local.nll.sum()))
            del local  # its graph
        nll = torch.stack([each for _, _, each in found]).sum()
        if pieces is None:
            flat = [(rows.flatten(0, 1), target.flatten()) for rows, target, _ in found]
            observed = [target + rows @ mean for rows, target in flat]
            return _Sites(torch.cat([rows for rows, _ in flat]), torch.cat(observed), nll)
        size = sum(map(len, pieces.places)), max(pieces.choices) - 1
        rows, target = mean.new_zeros(*size, len(mean)), mean.new_zeros(size)
        for places, (of_batch, seen, _) in zip(pieces.places, found, strict=True):
            at, count = torch.tensor(places, device=mean.device), of_batch.shape[1]
            rows[at, :count], target[at, :count] = of_batch, seen.to(target)
        rows = rows.flatten(0, 1)
        return _Sites(rows, target.flatten() + rows @ mean, nll)

    def linearised(self, batch: ChoiceBatch, choices: int | None = None) -> tuple[Local, Float[Tensor, "B D P"]]:
        """The likelihood near phi, and gradients by the cores of the root's combinations of outputs.

        Args:
            batch: all questions of which are linearised.
            choices: that each question has: there are as many observations but one; None: as the batch is padded.
        """
        gradients = CoreGradients(list(self.adapters.layers.values()))
        with torch.enable_grad(), gradients.listening():
            local = self.local(batch)
            if choices is not None:  # columns of choices that are not there are zero: no backward pass for them
                root, target = local.root[..., : choices - 1], local.target[:, : choices - 1]
                local = Local(local.outputs, root, target, local.nll)
            rows = gradients.rows(local.outputs, local.root, batch)
        return local, rows

    def outer_gradient(self, query: Sequence[ChoiceBatch], key: Int[Tensor, ""]) -> Terms | None:
        """On B and A that of the expected NLL; on M and V what is between them and the M step's."""
        assert self.found is not None, "a task is fitted first"
        terms = self._factor_gradient(self.found, key) if self.settings.train_factors else None
        mean, variance = self.learned["core_mean"], self.learned["core_variance"]
        mean.grad = (mean.detach() - self.found.mean).to(mean)
        if self.settings.variances != "frozen":
            variance.grad = (variance.detach() - self._wanted_variance(self.found)).to(variance)
        return terms

    def _wanted_variance(self, found: CoreGaussian) -> Float[Tensor, " P"]:
        """The M step's V, as if all tasks were as this one."""
        s = self.settings
        squares = found.marginal() + (found.mean - self.learned["core_mean"].detach()).square()
        if s.variances == "layer":
            squares = squares.view(-1, found.block).mean(1).repeat_interleave(found.block)
        return (s.prior_tasks * squares + 2 * s.precision_prior_rate) / (
            s.prior_tasks + 2 * (s.precision_prior_shape - 1)
        )

    def _factor_gradient(self, found: CoreGaussian, key: Int[Tensor, ""]) -> Terms:
        """Leave the gradient of the NLL, averaged over draws, on theta's B and A."""
        layers, draws = list(self.adapters.layers.values()), self.settings.outer_draws
        cores = [self.drawn(found, derived_key(key, "core", number)) for number in range(draws)] or [found.mean]
        phi = [layer.task.mean_b.detach().clone() for layer in layers]
        taken = []
        for core in cores:
            self.put_core(core)
            taken.append(backward_by_share(self.batches, partial(self.inner_loss, key=key)))
            for layer, r in zip(layers, self.split(core), strict=True):
                by_b, by_a = layer.task.mean_b.grad, layer.task.mean_a.grad
                assert by_b is not None
                assert by_a is not None
                for p, g in ((layer.shared.mean_b, by_b @ r.to(by_b).T), (layer.shared.mean_a, by_a)):
                    p.grad = g / len(cores) if p.grad is None else p.grad + g / len(cores)
                layer.task.mean_b.grad = layer.task.mean_a.grad = None
        with torch.no_grad():
            torch._foreach_copy_([layer.task.mean_b for layer in layers], phi)
        nll = torch.stack([terms.nll for terms in taken]).mean()
        return Terms((nll,), nll)

    def drawn(self, found: CoreGaussian, key: int | Int[Tensor, ""]) -> Float[Tensor, " P"]:
        """A draw of all cores; the same key draws the same."""
        device = found.mean.device
        layers = torch.arange(len(self.adapters.layers), device=device)
        of_prior = normal(key, found.block, layers, layer=0).flatten()
        of_rows = normal(key, len(found.rows), layers[: found.blocks], layer=1)
        return found.draw(of_prior.to(found.mean), of_rows.to(found.mean))
