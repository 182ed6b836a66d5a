"""Outer gradients through the inner steps: against unrolled loops, finite differences, and first order."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from abmll.errors import AbmllError
from abmll.kernels import Factors, Variance, eager, op, twice_differentiable
from abmll.kernels.eager import twice
from abmll.kernels.noise import key_tensor
from abmll.methods.base import InnerSteps
from abmll.methods.noise import sample_key, step_key
from abmll.systems.build import build_system
from abmll.systems.system import System
from abmll.training.graphs import Graphs
from abmll.training.optimizers import GroupOptimizer
from abmll.training.outer import NOT_CAPTURED, add_outer_gradient
from abmll.training.through_steps import TakenSteps, going_back
from tests.exact import exact_base, float64
from tests.systems import questions, run_config, same, scramble, system_of, train, values

SUPPORT = [questions(2, start=0), questions(2, start=2), questions(3, start=4)]
QUERY = questions(3, start=8)
PLACE = (0, 0, 0)
FACTORS = [1.0, 0.5, 0.25]


def exact_system(method: str, **settings: Any) -> System:
    """Within `float64`, with factors that are large enough for curvature to count."""
    settings.setdefault("inner_lr", 0.3)
    system = build_system(run_config(method, inner_steps=len(SUPPORT), **settings), exact_base())
    scramble(system, size=0.3)
    return system


def outer_gradients(system: System) -> dict[str, Tensor]:
    """What the loop makes of theta's gradient after steps on SUPPORT, by name."""
    method = system.method
    method.begin_task(first=True)
    optimizer = GroupOptimizer(method.task())
    steps = TakenSteps(method, optimizer, system.batcher, SUPPORT, PLACE, FACTORS)
    steps.take(Graphs(torch.device("cpu")))
    for parameter in (*method.adapters.parameters("shared"), *method.adapters.parameters("task"), *method.temperature):
        parameter.grad = None
    phi = values(system, "task")
    with going_back(method, steps):
        method.outer_gradient(system.batcher(QUERY), step_key((*PLACE, len(SUPPORT)))[0])
    assert same(values(system, "task"), phi), "phi is as the steps left it"
    names = method.adapters.state_dict("shared")
    found = dict(zip(names, method.adapters.parameters("shared"), strict=True)) | method.learned
    found |= dict(zip(["temperature"], method.temperature, strict=False))
    return {name: p.grad.clone() for name, p in found.items() if p.grad is not None}


class Reader(nn.Module):
    """The NLL of questions as a function of the factors that `functional_call` puts in."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.model, self.system = system.language_model.model, system

    def forward(self, rows: Sequence[Any]) -> Tensor:
        return self.system.likelihood.nll(self.system.batcher.batch(rows))


Rule = Callable[[list[Tensor], list[Tensor], int], list[Tensor]]


def unrolled(system: System, theta: dict[str, Tensor], rule: Rule, stay: str = "") -> Tensor:
    """L_Q(phi(theta)) with autograd through everything; layers whose path has `stay` in it do not move."""
    reader = Reader(system)

    def nll(phi: dict[str, Tensor], rows: Sequence[Any]) -> Tensor:
        inside = {f"model.{name.rpartition('.')[0]}.task.{name.rpartition('.')[2]}": t for name, t in phi.items()}
        return functional_call(reader, inside, (rows,))

    phi, moving = dict(theta), [name for name in theta if not stay or stay not in name]
    with sdpa_kernel(SDPBackend.MATH):
        for step, rows in enumerate(SUPPORT):
            gradients = torch.autograd.grad(nll(phi, rows), [phi[name] for name in moving], create_graph=True)
            moved = rule([phi[name] for name in moving], list(gradients), step)
            phi |= dict(zip(moving, moved, strict=True))
        return nll(phi, QUERY)


def sgd(rates: Sequence[Tensor | float]) -> Rule:
    return lambda phi, gradients, step: [
        p - rate * FACTORS[step] * g for p, g, rate in zip(phi, gradients, rates, strict=True)
    ]


class Adam:
    """AdamW without decay, whose second moments pass no gradient on."""

    def __init__(self, rate: float) -> None:
        self.rate, self.first, self.second = rate, list[Tensor](), list[Tensor]()

    def __call__(self, phi: list[Tensor], gradients: list[Tensor], step: int) -> list[Tensor]:
        first = self.first or [torch.zeros_like(p) for p in phi]
        second = self.second or [torch.zeros_like(p) for p in phi]
        self.first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients, strict=True)]
        self.second = [(0.999 * v + 0.001 * g * g).detach() for v, g in zip(second, gradients, strict=True)]
        rate = self.rate * FACTORS[step] / (1 - 0.9 ** (step + 1))
        roots = [(v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8 for v in self.second]
        return [p - rate * m / root for p, m, root in zip(phi, self.first, roots, strict=True)]


def theta_of(system: System) -> dict[str, Tensor]:
    return {name: t.requires_grad_() for name, t in values(system, "shared").items()}


def check(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-7, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_maml_is_autograd_through_an_unrolled_loop(optimizer: str) -> None:
    with float64():
        rate = 0.3 if optimizer == "sgd" else 0.01
        system = exact_system("maml", inner_optimizer=optimizer, inner_lr=rate)
        theta = theta_of(system)
        rule = sgd([rate] * len(theta)) if optimizer == "sgd" else Adam(rate)
        gradients = torch.autograd.grad(unrolled(system, theta, rule), list(theta.values()))
        found = outer_gradients(system)
        check(found, dict(zip(theta, gradients, strict=True)))
        first = exact_system("maml", inner_optimizer=optimizer, inner_lr=rate, second_order=False)
        apart = max(float((found[n] - g).abs().max() / g.abs().max()) for n, g in outer_gradients(first).items())
        assert apart > 0.05, "second order counts here"


def test_maml_is_the_slope_of_the_query_loss_by_finite_differences() -> None:
    with float64():
        system = exact_system("maml")
        found, theta, size = outer_gradients(system), values(system, "shared"), 1e-6
        generator = torch.Generator().manual_seed(0)
        way = {name: torch.randn(t.shape, generator=generator) for name, t in theta.items()}
        losses = []
        for sign in (1, -1):
            system.method.adapters.load_state_dict("shared", {n: t + sign * size * way[n] for n, t in theta.items()})
            system.method.begin_task(first=True)
            steps = TakenSteps(
                system.method, GroupOptimizer(system.method.task()), system.batcher, SUPPORT, PLACE, FACTORS
            )
            steps.take(Graphs(torch.device("cpu")))
            losses.append(system.likelihood.nll(system.batcher.batch(QUERY)).item())
        slope = sum(float((found[n] * way[n]).sum()) for n in way)
        assert (losses[0] - losses[1]) / (2 * size) == pytest.approx(slope, rel=1e-6)


def test_meta_sgd_has_the_gradient_by_its_rates() -> None:
    with float64():
        system = exact_system("meta-sgd", second_order=True, inner_optimizer="sgd")
        log_rates = system.method.learned["log_rates"]
        with torch.no_grad():
            log_rates.copy_(torch.linspace(-0.5, 0.5, len(log_rates)))
        theta, mine = theta_of(system), log_rates.detach().clone().requires_grad_()
        loss = unrolled(system, theta, sgd(list(0.3 * mine.exp())))
        *by_theta, by_rates = torch.autograd.grad(loss, [*theta.values(), mine])
        check(outer_gradients(system), {**dict(zip(theta, by_theta, strict=True)), "log_rates": by_rates})


def test_anil_has_the_part_of_the_layers_that_stay() -> None:
    with float64():
        system = exact_system("anil", second_order=True, inner_optimizer="sgd")
        theta = theta_of(system)
        loss = unrolled(system, theta, sgd([0.3] * (len(theta) // 2)), stay="q_proj")
        gradients = torch.autograd.grad(loss, list(theta.values()))
        check(outer_gradients(system), dict(zip(theta, gradients, strict=True)))


def test_a_learned_temperature_has_its_part_through_the_steps() -> None:
    with float64():
        system = exact_system("maml", likelihood={"learn_temperature": True})
        theta, temperature = theta_of(system), system.likelihood.log_temperature
        (expected,) = torch.autograd.grad(unrolled(system, theta, sgd([0.3] * len(theta))), [temperature])
        torch.testing.assert_close(outer_gradients(system)["temperature"], expected, rtol=1e-7, atol=1e-11)


def test_micro_batches_change_nothing() -> None:
    with float64():
        whole = outer_gradients(exact_system("maml"))
        system = exact_system("maml")
        object.__setattr__(system.batcher, "micro_batch", 1)
        check(outer_gradients(system), whole)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_first_order_is_first_order_maml_bit_for_bit(optimizer: str, tmp_path: Any) -> None:
    settings = {"inner_steps": 2, "inner_lr": 1e-2, "inner_optimizer": optimizer}
    one, _ = train(run_config("maml", second_order=False, **settings), tmp_path / "one")
    other, _ = train(run_config("fomaml", **settings), tmp_path / "other")
    assert same(values(one, "shared"), values(other, "shared"))
    full, _ = train(run_config("maml", **settings), tmp_path / "full")
    assert not same(values(full, "shared"), values(other, "shared"))


def test_maml_en_llm_without_demonstrations_is_maml(tmp_path: Any) -> None:
    settings = {"inner_steps": 2, "inner_lr": 1e-2, "inner_optimizer": "adamw"}
    one, _ = train(run_config("maml-en-llm", demonstrations=0, **settings), tmp_path / "one")
    other, _ = train(run_config("maml", **settings), tmp_path / "other")
    assert same(values(one, "shared"), values(other, "shared"))
    shown, _ = train(run_config("maml-en-llm", **settings), tmp_path / "shown")
    assert not same(values(shown, "shared"), values(other, "shared"))


def test_without_steps_inside_it_is_the_gradient_at_theta(tmp_path: Any) -> None:
    one, _ = train(run_config("maml", inner_steps=0), tmp_path / "one")
    other, _ = train(run_config("fomaml", inner_steps=0), tmp_path / "other")
    assert same(values(one, "shared"), values(other, "shared"))


def test_curvature_is_the_hessian_of_the_support(tmp_path: Any) -> None:
    """Against the derivative of the gradient along a way, by torch.autograd's own double backward."""
    with float64():
        system = exact_system("maml")
        method, parameters = system.method, system.method.adapters.parameters("task")
        steps: InnerSteps = TakenSteps(method, GroupOptimizer(method.task()), system.batcher, SUPPORT, PLACE, FACTORS)
        assert isinstance(steps, TakenSteps)
        steps.take(Graphs(torch.device("cpu")))
        generator = torch.Generator().manual_seed(0)
        way = [torch.randn(p.shape, generator=generator) for p in parameters]
        found, phi, size = steps.curvature(way), [p.detach().clone() for p in parameters], 1e-6

        def gradient(sign: int) -> list[Tensor]:
            with torch.no_grad():
                for p, start, w in zip(parameters, phi, way, strict=True):
                    p.copy_(start + sign * size * w)
            losses = [system.likelihood.nll(system.batcher.batch(rows)) for rows in SUPPORT]
            return list(torch.autograd.grad(torch.stack(losses).mean(), parameters))

        for product, up, down in zip(found, gradient(1), gradient(-1), strict=True):
            torch.testing.assert_close(product, (up - down) / (2 * size), rtol=1e-5, atol=1e-7)


def test_nothing_is_copied_for_methods_that_do_not_go_back() -> None:
    system = system_of("fomaml")
    optimizer = GroupOptimizer(system.method.task())
    steps = TakenSteps(system.method, optimizer, system.batcher, SUPPORT, PLACE, FACTORS)
    steps.take(Graphs(torch.device("cpu")))
    assert not steps.points
    with going_back(system.method, steps):
        assert system.method.inner_taken is None


# -------------------- ABML of Ravi & Beatson


def of_slot(factors: dict[str, Tensor], part: str) -> list[tuple[Tensor, Tensor]]:
    return [(t, factors[name.replace("_b", "_a")]) for name, t in factors.items() if name.endswith(f"{part}_b")]


def dense_kl(system: System, phi: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
    """By torch.distributions, entry by entry."""
    variance = next(iter(system.method.adapters.layers.values())).task.variance
    s, sides = variance.scale, []
    for factors in (phi, theta):
        means = [s * (b @ a) for b, a in of_slot(factors, "mean")]
        stds = [((s * (b @ a) + variance.offset) ** 2 + variance.floor**2).sqrt() for b, a in of_slot(factors, "std")]
        sides.append([torch.distributions.Normal(m, d) for m, d in zip(means, stds, strict=True)])
    pairs = zip(*sides, strict=True)
    return torch.stack([torch.distributions.kl_divergence(q, p).sum() for q, p in pairs]).sum()


class DrawnReader(Reader):
    """The NLL under the draw of a step's key."""

    def forward(self, rows: Sequence[Any], step: int = 0) -> Tensor:
        batch, adapters = self.system.batcher.batch(rows), self.system.method.adapters
        key = sample_key(step_key((*PLACE, step))[0], "activation", 0).reshape(1)
        with adapters.drawing("activation", key, batch.row_keys, batch.token_index):
            return self.system.likelihood.nll(batch)


ABML = {"training_sampler": "activation", "std_init": 2.0, "inner_lr": 2e-3, "std_lr": 1e-3, "outer_std_lr": 1e-3}


@pytest.mark.parametrize("start", ["copy", "init"])
def test_abml_is_autograd_through_an_unrolled_loop(start: str) -> None:
    """The bound of all rows, S and Q, at phi(theta): by dense Gaussians, theta in every KL on the way."""
    with float64():
        system = exact_system("abmll", preset="ravi-beatson", std_start=start, **ABML)
        theta = theta_of(system)
        found = outer_gradients(system)
        system.method.begin_task(first=True)  # what phi starts from
        started = {n: t.clone() for n, t in system.method.adapters.state_dict("task").items()}
        reader, weight = DrawnReader(system), 1 / 12

        def nll(phi: dict[str, Tensor], rows: Sequence[Any], step: int) -> Tensor:
            inside = {f"model.{name.rpartition('.')[0]}.task.{name.rpartition('.')[2]}": t for name, t in phi.items()}
            return functional_call(reader, inside, (rows,), {"step": step})

        constant = {name for name in theta if ".std_" in name} if start == "init" else set()
        phi = {n: started[n].requires_grad_() if n in constant else t for n, t in theta.items()}
        with sdpa_kernel(SDPBackend.MATH):
            for step, rows in enumerate(SUPPORT):
                loss = nll(phi, rows, step) + weight * dense_kl(system, phi, theta)
                gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                rates = [1e-3 if ".std_" in name else 2e-3 for name in phi]
                phi = dict(zip(phi, sgd(rates)(list(phi.values()), list(gradients), step), strict=True))
            every = [(rows, len(rows)) for rows in (*SUPPORT, QUERY)]
            total = sum(count for _, count in every)
            bound = sum(nll(phi, rows, len(SUPPORT)) * count / total for rows, count in every)
            expected = torch.autograd.grad(bound + weight * dense_kl(system, phi, theta), list(theta.values()))
        check(found, dict(zip(theta, expected, strict=True)))


def test_what_second_order_needs_is_refused_without() -> None:
    for given in ({"outer_step": "displacement"}, {"phi": "persistent", "outer_step": "identity"}):
        with pytest.raises(AbmllError, match="outer_step=identity"):
            system_of("abmll", second_order=True, **given)


@pytest.mark.parametrize("form", ["square", "log_std"])
def test_ops_with_all_derivatives_are_the_ops(form: Any) -> None:
    """Values and first derivatives are those of the tiled ones; second ones are those of finite differences."""
    generator = torch.Generator().manual_seed(0)
    variance = Variance(form, 0.3, 0.1, 2.0)

    def factors() -> list[Tensor]:
        shapes = ((5, 2), (2, 4), (5, 2), (2, 4))
        return [0.3 * torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]

    task, shared, x = factors(), factors(), torch.randn(4, 3, 4, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    keys, key = key_tensor(5, 6), key_tensor(7)[0]

    def kl(op: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
        return op([Factors(*numbers[:4])], [Factors(*numbers[4:])], [variance], 2, key)

    def output(op: Callable[..., Tensor], x: Tensor, *numbers: Tensor) -> Tensor:
        return op(torch.zeros(4, 3, 5, dtype=torch.float64), x, Factors(*numbers), variance, keys, 3)

    for make, plain, tiled, inputs in (
        (kl, twice.task_kl, eager.task_kl, (*task, *shared)),
        (output, twice.weight_output, eager.weight_output, (x, *task)),
    ):
        one, other = make(plain, *inputs), make(tiled, *inputs)
        torch.testing.assert_close(one, other)
        up = torch.randn(one.shape, generator=generator, dtype=torch.float64)
        for mine, theirs in zip(*(torch.autograd.grad(o, inputs, up) for o in (one, other)), strict=True):
            torch.testing.assert_close(mine, theirs)
        assert torch.autograd.gradgradcheck(partial(make, plain), inputs)


def test_inside_ops_and_attention_are_twice_differentiable() -> None:
    with twice_differentiable():
        assert op("task_kl", torch.device("cpu")) is twice.task_kl
        assert op("mean_output", torch.device("cuda")) is eager.mean_output
    assert op("task_kl", torch.device("cpu")) is not twice.task_kl


def test_on_cuda_it_is_said_that_the_outer_gradient_is_not_captured() -> None:
    system = system_of("maml", inner_steps=1)
    method, graphs = system.method, Graphs(torch.device("cpu"))
    method.begin_task(first=True)
    steps = TakenSteps(method, GroupOptimizer(method.task()), system.batcher, SUPPORT[:1], PLACE, [1.0])
    steps.take(graphs)
    graphs.capture = True  # as on CUDA, where a capture would be tried at the second visit
    outer = GroupOptimizer(method.shared())
    totals = [torch.zeros_like(p) for p in outer.parameters]
    for _ in range(3):
        with going_back(method, steps):
            add_outer_gradient(method, system.batcher, QUERY, (*PLACE, 1), (outer, totals), 1.0, graphs)
    assert list(graphs.report()["fallbacks"].values()) == [NOT_CAPTURED]
