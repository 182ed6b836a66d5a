"""ABMLL in a core: its Gaussian against dense float64, its rows against autograd, EM against the evidence."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MultivariateNormal, kl_divergence

from abmll.adapters.attach import SpreadWeight
from abmll.adapters.layer import AdaptedLinear
from abmll.config import PosteriorConfig
from abmll.errors import AbmllError, NonFiniteError
from abmll.kernels.noise import derived_key
from abmll.methods.core import CoreABMLL
from abmll.methods.core.gaussian import CoreGaussian, posterior_mean
from abmll.methods.core.jacobian import CoreGradients
from abmll.methods.core.local import Local, multinomial_root, of_choices
from abmll.methods.core.start import largest, singular_start
from abmll.systems.build import build_system, renew
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.posteriors.cores.core import Core
from abmll.systems.system import System
from tests.exact import exact_base, float64
from tests.systems import TASKS, run_config, scramble, tiny_base

PLAN = AdaptationPlan(6, 3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_gaussian(form: Any = "full", rows: int = 7, blocks: int = 3, block: int = 4) -> CoreGaussian:
    size = blocks * block
    return CoreGaussian(normal(size), normal(size, seed=1).exp(), normal(rows, size, seed=2), form, block)


def precision(found: CoreGaussian) -> Tensor:
    return torch.diag(1 / found.variance) + found.rows.T @ found.rows


def dense(found: CoreGaussian) -> Tensor:
    """The covariance by inverting precisions."""
    exact = precision(found)
    if found.form == "full":
        return exact.inverse()
    if found.form == "factorised":
        return torch.diag(1 / exact.diagonal())
    ends = range(0, len(exact), found.block)
    return torch.block_diag(*(exact[i : i + found.block, i : i + found.block].inverse() for i in ends))


FORMS = ("full", "blocks", "factorised")


@pytest.mark.parametrize("form", FORMS)
def test_the_covariance_is_the_dense_one(form: Any) -> None:
    found, other = a_gaussian(form), normal(5, 12, seed=3)
    expected = dense(found)
    torch.testing.assert_close(found.dense(), expected)
    torch.testing.assert_close(found.marginal(), expected.diagonal())
    torch.testing.assert_close(found.covariance(other), other @ expected @ other.T)


@pytest.mark.parametrize("form", FORMS)
def test_the_divergence_is_that_of_torch_distributions(form: Any) -> None:
    found, centre = a_gaussian(form), normal(12, seed=4)
    prior = MultivariateNormal(centre, torch.diag(found.variance))
    expected = kl_divergence(MultivariateNormal(found.mean, dense(found)), prior)
    torch.testing.assert_close(found.divergence(centre), expected)


@pytest.mark.parametrize("form", ["blocks", "factorised"])
def test_independent_forms_are_nearest_to_the_exact_posterior(form: Any) -> None:
    found = a_gaussian(form)
    exact = MultivariateNormal(found.mean, dense(replace(found, form="full")))
    best = kl_divergence(MultivariateNormal(found.mean, dense(found)), exact)
    for seed in range(5):
        scale = torch.exp(0.1 * normal(12, seed=10 + seed))
        moved = MultivariateNormal(found.mean + 0.05 * normal(12, seed=seed), scale * dense(found) * scale[:, None])
        assert kl_divergence(moved, exact) > best


@pytest.mark.parametrize("form", FORMS)
def test_draws_are_linear_in_normal_numbers_with_the_dense_moments(form: Any) -> None:
    """A draw is mean + T z: T is read off unit vectors, so T T^T is its covariance without any sampling error."""
    found = a_gaussian(form)
    count = found.blocks * 7
    eye, none = torch.eye(12 + count, dtype=torch.float64), torch.zeros(found.blocks, 7, dtype=torch.float64)
    columns = [found.draw(z[:12], z[12:].view(-1, 7)) for z in eye]
    root = torch.stack(columns, 1) - found.mean[:, None]
    torch.testing.assert_close(root @ root.T, dense(found))
    torch.testing.assert_close(found.draw(0 * eye[0, :12], none), found.mean)


def test_a_linear_gaussian_task_has_the_exact_mean() -> None:
    rows, observed, centre, variance = normal(7, 12), normal(7, seed=1), normal(12, seed=2), normal(12, seed=3).exp()
    exact = torch.diag(1 / variance) + rows.T @ rows
    expected = torch.linalg.solve(exact, rows.T @ observed + centre / variance)
    torch.testing.assert_close(posterior_mean(rows, observed, centre, variance), expected)


def test_what_cannot_be_computed_is_nan_and_not_an_error_of_the_solver() -> None:
    rows = torch.full((2, 3), float("inf"), dtype=torch.float64)
    assert posterior_mean(rows, normal(2), normal(3), normal(3).exp()).isnan().all()


@pytest.mark.parametrize("logits", [[0.1, -0.4, 1.0, 0.3], [40.0, 0.0, -40.0, 3.0], [0.0, 0.0, -300.0, -700.0]])
def test_the_root_is_that_of_the_fisher_information(logits: list[float]) -> None:
    p = torch.tensor([logits], dtype=torch.float64).softmax(-1).clamp_min(1e-12)
    p = p / p.sum()
    root = multinomial_root(p)[0]
    assert root.shape == (4, 3)
    torch.testing.assert_close(root @ root.T, p[0].diag() - p[0, :, None] * p[0], atol=1e-15, rtol=1e-9)


def test_the_local_model_has_the_gradient_and_fisher_information_of_categorical() -> None:
    """Also of a question with fewer choices, and by its expected score."""
    f = torch.tensor([[0.2, -0.3, 1.0], [0.5, 0.1, -torch.inf]], dtype=torch.float64).log_softmax(-1)
    answers = torch.tensor([2, 0])
    local = of_choices(f, answers)
    found = (local.root @ local.target[..., None])[..., 0]
    for row, count in ((0, 3), (1, 2)):
        logits = f[row, :count].clone().requires_grad_()
        (expected,) = torch.autograd.grad(Categorical(logits=logits).log_prob(answers[row]), logits)
        torch.testing.assert_close(found[row, :count], expected)
        fisher = torch.zeros(count, count, dtype=torch.float64)
        for y in range(count):
            (score,) = torch.autograd.grad(Categorical(logits=logits).log_prob(torch.tensor(y)), logits)
            fisher += f[row, y].exp() * torch.outer(score, score)
        root = local.root[row, :count]
        torch.testing.assert_close(root @ root.T, fisher)
    assert not bool(found[1, 2:].any())
    torch.testing.assert_close(local.nll, -f.gather(1, answers[:, None])[:, 0])


def core_system(base: Any = None, posterior: dict[str, Any] | None = None, **settings: Any) -> System:
    likelihood = settings.pop("likelihood", {})
    config = run_config("core", adaptation={"samples": 3}, likelihood=likelihood, **settings)
    config = config.model_copy(update={"posterior": PosteriorConfig(name="core", **(posterior or {}))})
    system = build_system(config, base or tiny_base())
    scramble(system, size=0.3)
    return system


def method_of(system: System) -> CoreABMLL:
    assert isinstance(system.method, CoreABMLL)
    return system.method


def posterior_of(system: System) -> Core:
    assert isinstance(system.posterior, Core)
    return system.posterior


@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("share", [True, False])
def test_rows_are_the_gradients_of_each_question_by_itself(kind: str, share: bool) -> None:
    """By autograd through B R A with R a leaf, one question after the other, in float64."""
    with float64():
        system = core_system(exact_base(), likelihood={"kind": kind, "share_prefix": share})
        method = method_of(system)
        core = method.learned["core_mean"].detach() + 0.1 * normal(len(method.learned["core_mean"]))
        method.begin_task()
        method.put_core(core)
        asked = (*TASKS[0].train[:2], *TASKS[1].train[:2])
        local, rows = method.linearised(system.batcher.batch(asked))
        leaf = core.requires_grad_()
        cores = {
            layer.index: partial(through_core, layer, r)
            for layer, r in zip(method.adapters.layers.values(), method.split(leaf), strict=True)
        }
        for index, question in enumerate(asked):
            count = len(question.choices)
            with method.adapters.with_cores(cores):
                f = system.likelihood.scores(system.batcher.batch([question])).log_probabilities[0, :count]
            for column in range(count - 1):
                (expected,) = torch.autograd.grad(f @ local.root[index, :count, column], leaf, retain_graph=True)
                assert expected.abs().max() > 1e-6
                torch.testing.assert_close(rows[index, column], expected, rtol=1e-6, atol=1e-10)


def through_core(layer: AdaptedLinear, core: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Output of a layer, of the base's output and its input."""
    factors = layer.shared
    return y + factors.variance.scale * (x @ factors.mean_a.detach().T @ core.T @ factors.mean_b.detach().T)


def linear(method: CoreABMLL, rows: dict[int, Tensor], observed: dict[int, Tensor]) -> Any:
    """A likelihood that is Gaussian in the cores themselves: W r + noise, by the number of questions as a name."""

    def linearised(batch: Any, directions: Any = None) -> tuple[Local, Tensor]:
        w, t = rows[id(batch)], observed[id(batch)]
        core = torch.stack([current(layer) for layer in method.adapters.layers.values()]).flatten().double()
        target = t - w @ core
        return Local(target[None], None, target[None], target.square().sum()[None] / 2), w[None]  # type: ignore[arg-type]

    def current(layer: Any) -> Tensor:
        return torch.linalg.lstsq(layer.shared.mean_b.double(), layer.task.mean_b.double()).solution

    return linearised


def gaussian_case(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[CoreABMLL, list[Any], Tensor, Tensor]:
    system = core_system(exact_base(), **settings)
    method = method_of(system)
    size = len(method.learned["core_mean"])
    batches = [system.batcher.batch([question]) for question in TASKS[0].train[:3]]
    rows = {id(b): normal(2, size, seed=i) for i, b in enumerate(batches)}
    observed = {id(b): normal(2, seed=10 + i) for i, b in enumerate(batches)}
    monkeypatch.setattr(
        CoreABMLL, "linearised", lambda self, batch, choices=None: linear(method, rows, observed)(batch)
    )
    return method, batches, torch.cat(list(rows.values())), torch.cat(list(observed.values()))


@pytest.mark.parametrize("order", ["all", "batch"])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_kalman_pass_is_the_batch_solution_where_the_likelihood_is_gaussian(
    order: Any, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with float64():
        method, batches, rows, observed = gaussian_case(monkeypatch, passes=passes, rows_at_once=order)
        method.begin_task()
        blocks = [batches] if order == "all" else [[batch] for batch in batches]
        terms = method.fit(blocks)
        prior = method.learned["core_mean"].detach(), method.learned["core_variance"].detach()
        exact = torch.diag(1 / prior[1]) + rows.T @ rows
        assert method.found is not None
        expected = torch.linalg.solve(exact, rows.T @ observed + prior[0] / prior[1])
        torch.testing.assert_close(method.found.mean, expected)
        torch.testing.assert_close(method.found.dense(), exact.inverse())
        of_prior = MultivariateNormal(prior[0], torch.diag(prior[1]))
        kl = kl_divergence(MultivariateNormal(expected, exact.inverse()), of_prior)
        torch.testing.assert_close(terms[-1].task_kl, kl)
        assert len(terms) == passes * len(blocks)


def test_em_raises_the_exact_marginal_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Gamma prior, and with whole steps: one task, whose evidence is a Gaussian's density."""
    settings = {"mean_rate": 1.0, "variance_rate": 1.0, "precision_prior_rate": 0.0, "train_factors": False}
    with float64():
        method, batches, rows, observed = gaussian_case(monkeypatch, passes=1, **settings)
        mean, variance = method.learned["core_mean"], method.learned["core_variance"]
        evidences = []
        for _ in range(6):
            spread = (rows * variance.detach()) @ rows.T + torch.eye(len(rows))
            evidences.append(float(MultivariateNormal(rows @ mean.detach(), spread).log_prob(observed)))
            method.begin_task()
            method.fit([batches])
            method.outer_gradient((), torch.tensor(0))
            with torch.no_grad():
                for group in method.shared():
                    for p in group.parameters:
                        p -= group.lr * p.grad
    assert np.all(np.diff(evidences) > 0), evidences


def test_the_m_step_has_the_paper_s_gamma_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where E[log p(r | M, V)] + log Gamma(1 / V) is largest, tasks being alike; and layers share where asked."""
    given = {"precision_prior_shape": 2.5, "precision_prior_rate": 0.4, "prior_tasks": 7.0, "train_factors": False}
    with float64():
        method, batches, _, _ = gaussian_case(monkeypatch, **given)
        method.begin_task()
        method.fit([batches])
        method.outer_gradient((), torch.tensor(0))
        mean, variance = method.learned["core_mean"], method.learned["core_variance"]
        wanted = (variance - variance.grad).detach().requires_grad_()
        assert method.found is not None
        squares = method.found.marginal() + (method.found.mean - mean.detach()).square()
        expected = 7.0 * (-0.5 * wanted.log() - squares / (2 * wanted))
        prior = torch.distributions.Gamma(given["precision_prior_shape"], given["precision_prior_rate"])
        (gradient,) = torch.autograd.grad((expected + prior.log_prob(1 / wanted)).sum(), wanted)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def adapted(system: System) -> System:
    system.adapt(TASKS[0], PLAN)
    return system


def answers(system: System, samples: int = 3) -> np.ndarray[Any, Any]:
    found = system.predict(TASKS[0].train[8:11], PredictionPlan("weight", samples, 4096))
    return np.array([row.probabilities for row in found])


def test_a_draw_is_the_lora_of_a_drawn_core() -> None:
    system = adapted(core_system())
    method, posterior = method_of(system), posterior_of(system)
    core = method.drawn(posterior.found, 5)
    layers = list(method.adapters.layers.values())
    drawn = posterior.draw(0, 5)
    for layer, r, b, a in zip(layers, method.split(core), drawn[::2], drawn[1::2], strict=True):
        torch.testing.assert_close(b @ a, layer.shared.mean_b @ r.float() @ layer.shared.mean_a)
        torch.testing.assert_close(layer.task.mean_a, layer.shared.mean_a)
    for layer, m in zip(layers, method.split(posterior.found.mean), strict=True):
        torch.testing.assert_close(layer.task.mean_b, layer.shared.mean_b @ m.float())


@pytest.mark.parametrize("how", ["draws", "linearised"])
def test_a_saved_posterior_answers_as_before(how: str, tmp_path: Path) -> None:
    system = adapted(core_system(posterior={"answers": how, "samples": 50}))
    before, phi = answers(system), [p.clone() for p in system.method.adapters.parameters("task")]
    assert all(torch.equal(p, q) for p, q in zip(phi, system.method.adapters.parameters("task"), strict=True))
    state = posterior_of(system).state()
    other = core_system(posterior={"answers": how, "samples": 50})
    scramble(other, seed=3)  # theta as a loaded adapter has it: phi in both slots
    for slot in ("shared", "task"):
        other.method.adapters.load_state_dict(slot, system.method.adapters.state_dict("task"))
    posterior_of(other).load({name: value.clone() for name, value in state.items()})
    posterior_of(other).fitted = True
    np.testing.assert_array_equal(answers(other), before)
    np.testing.assert_allclose(before.sum(1), 1)


def test_another_system_s_posterior_is_refused() -> None:
    system, other = adapted(core_system()), adapted(core_system())
    state = posterior_of(system).state()
    with pytest.raises(ValueError, match="numbers"):
        posterior_of(other).load(state | {"mean": state["mean"][1:]})
    with pytest.raises(KeyError):
        posterior_of(other).load({})


def test_linearised_answers_are_the_mean_where_nothing_is_uncertain_and_vary_by_j_c_j() -> None:
    system = adapted(core_system(posterior={"answers": "linearised", "samples": 20_000}, core_std=1e-4))
    mean = np.array(
        [row.probabilities for row in system.predict(TASKS[0].train[8:11], PredictionPlan("mean", 1, 4096))]
    )
    np.testing.assert_allclose(answers(system), mean, atol=1e-4)
    wide = adapted(core_system(posterior={"answers": "linearised", "samples": 20_000}, core_std=3.0))
    question = TASKS[0].train[8]
    count = len(question.choices)
    gradients = CoreGradients(list(wide.method.adapters.layers.values()))
    batch = wide.batcher.batch([question])
    with gradients.listening():
        f = wide.likelihood.scores(batch).log_probabilities
        rows = gradients.rows(f, torch.eye(count)[None], batch)[0].double()
    expected = rows @ posterior_of(wide).found.dense() @ rows.T
    ((_, draws),) = posterior_of(wide).draw_by_batch([question], PredictionPlan("weight", 3, 4096), ("x",))
    scores = np.log(np.concatenate([table for table, _ in draws]))
    scores -= scores.mean(1, keepdims=True)
    centring = np.eye(count) - 1 / count
    np.testing.assert_allclose(np.cov(scores.T), centring @ expected.numpy() @ centring, rtol=0.06, atol=1e-6)


def test_linearised_answers_do_not_depend_on_the_batch() -> None:
    system = adapted(core_system(posterior={"answers": "linearised", "samples": 50}))
    rows = (*TASKS[0].train[8:11], *TASKS[1].train[:2])
    plan = PredictionPlan("weight", 1, 4096)
    together = [row.probabilities for row in system.predict(rows, plan)]
    alone = [system.predict([row], plan)[0].probabilities for row in rows]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_permuted_variances_are_the_same_numbers_and_phi_stays(tmp_path: Path) -> None:
    systems = [core_system(posterior={"variances": name}) for name in ("learned", "permuted", "pooled")]
    for system in systems:
        method_of(system).learned["core_variance"].data.copy_(normal(len(method_of(system).learned["core_mean"])).exp())
        adapted(system)
    learned, permuted, pooled = (posterior_of(system).found for system in systems)
    assert not torch.equal(learned.variance, permuted.variance)
    torch.testing.assert_close(learned.variance.sort().values, permuted.variance.sort().values)
    torch.testing.assert_close(pooled.variance, learned.variance.log().mean().exp().expand_as(pooled.variance))
    phi = [list(system.method.adapters.parameters("task")) for system in systems]
    assert all(torch.equal(p, q) for other in phi[1:] for p, q in zip(phi[0], other, strict=True))
    assert method_of(systems[1]).prior_variance is None
    assert not np.array_equal(answers(systems[0]), answers(systems[1]))


def test_variances_that_are_all_equal_are_their_own_permutation() -> None:
    one, other = (adapted(core_system(posterior={"variances": name})) for name in ("learned", "permuted"))
    np.testing.assert_array_equal(answers(one), answers(other))


def test_rows_count_once_whatever_the_steps_are() -> None:
    few, many = core_system(rows_at_once="batch"), core_system(rows_at_once="batch")
    few.adapt(TASKS[0], AdaptationPlan(6, 3))
    many.adapt(TASKS[0], AdaptationPlan(6, 9))
    assert posterior_of(few).found.rows.shape == posterior_of(many).found.rows.shape


def test_a_posterior_that_is_not_finite_is_an_error_with_advice() -> None:
    system = core_system()
    with torch.no_grad():
        next(iter(system.method.adapters.layers.values())).shared.mean_b.fill_(3e38)
    with pytest.raises(NonFiniteError, match=r"core_std.*dtype|computed in"):
        adapted(system)


def test_without_rows_the_prior_s_mean_answers() -> None:
    system = core_system()
    system.adapt(TASKS[0], AdaptationPlan(6, 0))
    assert not posterior_of(system).fitted
    assert np.isfinite(answers(system)).all()


def test_another_method_has_no_cores() -> None:
    config = run_config("reptile").model_copy(update={"posterior": PosteriorConfig(name="core")})
    with pytest.raises(AbmllError, match=r"posterior\.name=core.*method\.name=core"):
        build_system(config, tiny_base())


@pytest.mark.parametrize("name", ["swag", "ensemble", "ivon", "blob", "scalabl", "c-lora"])
def test_a_posterior_made_of_steps_is_refused(name: str) -> None:
    config = run_config("core").model_copy(update={"posterior": PosteriorConfig(name=name)})
    with pytest.raises(AbmllError, match=rf"posterior\.name={name} is made of gradient steps"):
        build_system(config, tiny_base())


def test_the_singular_start_is_that_of_the_weights() -> None:
    weight = normal(40, 30) * torch.logspace(0, -4, 30, dtype=torch.float64)  # a spectrum that falls
    u, values, vt = torch.linalg.svd(weight, full_matrices=False)
    b, a = largest(weight, 3)
    torch.testing.assert_close(b @ a, (u[:, :3] * values[:3]) @ vt[:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a @ a.T, torch.eye(3, dtype=torch.float64))
    assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()


def test_it_begins_at_the_base_model() -> None:
    """Each layer's factors are those of its own weight, and the prior's mean moves nothing."""
    method = method_of(build_system(run_config("core", start="singular"), tiny_base()))
    for layer in method.adapters.layers.values():
        b, a = largest(layer.base.weight.detach().float(), layer.shared.rank)
        assert torch.equal(layer.shared.mean_b, b)
        assert torch.equal(layer.shared.mean_a, a)
    method.begin_task()
    assert not any(layer.task.mean_b.any() for layer in method.adapters.layers.values())


def test_the_singular_start_is_there_again_with_another_seed() -> None:
    config = run_config("core", start="singular")
    system = build_system(config, tiny_base())
    before = [p.detach().clone() for p in system.method.adapters.parameters("shared")]
    scramble(system, size=0.3)
    assert not all(torch.equal(a, b) for a, b in zip(before, system.method.adapters.parameters("shared"), strict=True))
    assert renew(system, config.model_copy(update={"training": config.training.model_copy(update={"seed": 5})}))
    assert all(torch.equal(a, b) for a, b in zip(before, system.method.adapters.parameters("shared"), strict=True))


def test_more_directions_than_a_layer_has_are_zero() -> None:
    b, a = largest(normal(3, 5), 4)
    torch.testing.assert_close(b @ a, normal(3, 5))
    assert not b[:, 3].any()
    assert not a[3].any()


def test_weights_in_parts_have_no_singular_start() -> None:
    base = tiny_base()
    system = build_system(run_config("core"), base)
    layer = next(iter(system.method.adapters.layers.values()))
    layer.base.spread_weight = SpreadWeight(torch.zeros(4), 1.0)
    try:
        with pytest.raises(AbmllError, match=r"start=singular reads the base model's weights"):
            singular_start(system.method.adapters)
    finally:
        del layer.base.spread_weight


def test_layers_that_share_a_variance_have_the_mean_of_its_numbers() -> None:
    system = core_system(variances="layer", outer_draws=0)
    method = method_of(system)
    system.adapt(TASKS[0], PLAN)
    method.outer_gradient((), torch.tensor(0))
    gradient = method.learned["core_variance"].grad
    assert gradient is not None
    by_layer = gradient.view(len(method.adapters.layers), -1)
    torch.testing.assert_close(by_layer, by_layer[:, :1].expand_as(by_layer))


@pytest.mark.parametrize("draws", [0, 2])
def test_factors_descend_the_expected_nll(draws: int) -> None:
    """Their gradient against autograd through B R A at the same cores."""
    with float64():
        system = core_system(exact_base(), outer_draws=draws)
        method = method_of(system)
        system.adapt(TASKS[0], PLAN)
        key = torch.tensor(7)
        terms = method.outer_gradient((), key)
        found = [p.grad.clone() for p in method.adapters.parameters("shared")]
        assert method.found is not None
        keys = [derived_key(key, "core", n) for n in range(draws)]
        cores = [method.drawn(method.found, k) for k in keys] or [method.found.mean]
        leaves = [
            (x.shared.mean_b.detach().requires_grad_(), x.shared.mean_a.detach().requires_grad_())
            for x in method.adapters.layers.values()
        ]
        total = torch.zeros(())
        for core in cores:
            made = {
                x.index: (lambda y, u, s=x.shared.variance.scale, b=b, a=a, r=r: y + s * (u @ a.T @ r.T @ b.T))
                for x, (b, a), r in zip(method.adapters.layers.values(), leaves, method.split(core), strict=True)
            }
            with method.adapters.with_cores(made):
                for batch in method.batches:
                    total = total + system.likelihood.nll(batch) * batch.questions / 6 / len(cores)
        expected = torch.autograd.grad(total, [p for pair in leaves for p in pair])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)
        torch.testing.assert_close(terms.nll, total.detach())
