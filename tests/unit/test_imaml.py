"""iMAML: its implicit gradient against closed forms, a dense solve, finite differences, and first order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from abmll.errors import AbmllError
from abmll.methods.noise import step_key
from abmll.methods.rivals.imaml import conjugate_gradients
from abmll.question import Question
from abmll.systems.build import build_system
from abmll.systems.system import System
from abmll.training.graphs import Graphs
from abmll.training.optimizers import GroupOptimizer
from abmll.training.through_steps import TakenSteps, going_back
from tests.exact import exact_base, float64
from tests.systems import questions, run_config, same, scramble, train, values

SUPPORT = [questions(2, start=0), questions(2, start=2), questions(3, start=4)]
QUERY = questions(3, start=8)
PLACE = (0, 0, 0)


def exact_system(method: str = "imaml", **settings: Any) -> System:
    """Within `float64`; adapters of rank 1, for dense Hessians of 224 numbers; convex by default."""
    proximal = {"proximal_weight": 10.0, "inner_lr": 0.05} if method == "imaml" else {}
    config = run_config(method, inner_steps=len(SUPPORT), **{**proximal, **settings})
    config = config.model_copy(update={"adapter": config.adapter.model_copy(update={"rank": 1, "alpha": 2.0})})
    system = build_system(config, exact_base())
    scramble(system, size=0.3)
    return system


def take(system: System, batches: Sequence[Sequence[Question]]) -> TakenSteps:
    """Inner steps from theta."""
    method = system.method
    method.begin_task(first=True)
    rates = [1.0] * len(batches)
    steps = TakenSteps(method, GroupOptimizer(method.task()), system.batcher, batches, PLACE, rates)
    steps.take(Graphs(torch.device("cpu")))
    return steps


def outer_gradient(system: System, batches: Sequence[Sequence[Question]] = SUPPORT, distinct: int = 3) -> Tensor:
    """By all of theta's factors, after the steps on these batches, of which the later ones repeat the first."""
    method, steps = system.method, take(system, batches)
    steps.batches = batches[:distinct]
    phi = values(system, "task")
    for parameter in (*method.adapters.parameters("shared"), *method.adapters.parameters("task"), *method.temperature):
        parameter.grad = None
    with going_back(method, steps):
        method.outer_gradient(system.batcher(QUERY), step_key((*PLACE, len(batches)))[0])
    assert same(values(system, "task"), phi), "phi is as the steps left it"
    assert all(p.grad is None for p in method.adapters.parameters("task"))
    return flat([p.grad for p in method.adapters.parameters("shared")])


def flat(parts: Sequence[Any]) -> Tensor:
    return torch.cat([part.detach().flatten() for part in parts])


def apart(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(p.shape) for part, p in zip(vector.split([p.numel() for p in like]), like, strict=True)]


def query_gradient(system: System) -> Tensor:
    phi = system.method.adapters.parameters("task")
    return flat(torch.autograd.grad(system.likelihood.nll(system.batcher.batch(QUERY)), phi))


def dense_hessian(system: System, more: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Of the mean NLL of SUPPORT at phi, column by column, by torch's own double backward; and its mixed part."""
    phi = system.method.adapters.parameters("task")
    with sdpa_kernel(SDPBackend.MATH):
        losses = [system.likelihood.nll(system.batcher.batch(rows)) for rows in SUPPORT]
        gradient = torch.cat(
            [g.flatten() for g in torch.autograd.grad(torch.stack(losses).mean(), phi, create_graph=True)]
        )
        rows = [torch.autograd.grad(part, [*phi, *more], retain_graph=True) for part in gradient]
    return torch.stack([flat(row[: len(phi)]) for row in rows]), torch.stack(
        [flat(row[len(phi) :] or [phi[0][:0]]) for row in rows]
    )


def test_with_many_iterations_it_is_the_dense_solve() -> None:
    """Of theta l (H + l)^-1 g, and of the learned temperature its own part and that by way of phi."""
    with float64():
        system, weight = exact_system(cg_steps=40, likelihood={"learn_temperature": True}), 10.0
        found, learned = outer_gradient(system), system.method.temperature
        by_temperature = learned[0].grad
        assert by_temperature is not None
        hessian, mixed = dense_hessian(system, learned)
        matrix = (hessian + weight * torch.eye(len(hessian))).numpy()
        spectrum = np.linalg.eigvalsh(matrix)
        assert spectrum.min() > 0
        assert spectrum.max() > 1.5 * spectrum.min(), "curvature counts here"
        solved = torch.from_numpy(np.linalg.solve(matrix, query_gradient(system).numpy()))
        torch.testing.assert_close(found, weight * solved, rtol=1e-7, atol=1e-11)
        (own,) = torch.autograd.grad(system.likelihood.nll(system.batcher.batch(QUERY)), learned)
        by_phi = solved @ mixed[:, 0].double()  # the temperature is float32
        assert float(by_temperature) == pytest.approx(float(own - by_phi), rel=1e-4)
        assert abs(float(by_phi)) > 0.01 * abs(float(own))


def test_it_is_the_slope_of_the_query_loss_at_the_solution_by_finite_differences() -> None:
    """Steps on one batch, until they are at the minimum: phi is a function of theta alone then, whatever the steps."""
    with float64():
        system = exact_system(cg_steps=40)
        same_batch = [SUPPORT[2]] * 60
        found, theta, size = outer_gradient(system, same_batch, distinct=1), values(system, "shared"), 1e-5
        names = list(theta)
        generator = torch.Generator().manual_seed(0)
        way = {name: torch.randn(t.shape, generator=generator) for name, t in theta.items()}
        losses = []
        for sign in (1, -1):
            system.method.adapters.load_state_dict("shared", {n: t + sign * size * way[n] for n, t in theta.items()})
            take(system, same_batch)
            losses.append(system.likelihood.nll(system.batcher.batch(QUERY)).item())
        slope = float((found * flat([way[name] for name in names])).sum())
    assert (losses[0] - losses[1]) / (2 * size) == pytest.approx(slope, rel=1e-5)
    assert abs(slope) > 1e-3


class Quadratic:
    """An NLL that is (phi - c)^T H (phi - c) / 2 of all factors, one for support and one for query batches."""

    def __init__(self, system: System, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.phi = system.method.adapters.parameters("task")
        size = sum(p.numel() for p in self.phi)
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
        self.hessian = basis @ torch.diag(torch.linspace(0.1, 3.0, size)) @ basis.T
        self.of_query = torch.diag(torch.rand(size, generator=generator))
        self.centre, self.query_centre = (torch.randn(size, generator=generator) for _ in range(2))
        self.asked = system.batcher.batch(QUERY).questions, system.batcher.batch(QUERY).input_ids

    def __call__(self, batch: Any) -> Tensor:
        asked = batch.questions == self.asked[0] and torch.equal(batch.input_ids, self.asked[1])
        h, c = (self.of_query, self.query_centre) if asked else (self.hessian, self.centre)
        away = torch.cat([p.flatten() for p in self.phi]) - c
        return 0.5 * away @ h @ away


def test_of_quadratic_tasks_it_is_the_closed_form() -> None:
    """phi* = (H + l)^-1 (H c + l theta), so that dL_Q/dtheta = l (H + l)^-1 H_Q (phi* - c_Q)."""
    with float64():
        weight = 0.7
        system = exact_system(cg_steps=200, proximal_weight=weight, inner_lr=0.4)
        quadratic = system.method.nll = Quadratic(system)
        theta = flat(system.method.adapters.parameters("shared"))
        matrix = quadratic.hessian + weight * torch.eye(len(theta))
        best = torch.linalg.solve(matrix, quadratic.hessian @ quadratic.centre + weight * theta)
        found = outer_gradient(system, [SUPPORT[0]] * 60, distinct=1)
        torch.testing.assert_close(flat(quadratic.phi), best, rtol=0, atol=1e-9)
        expected = weight * torch.linalg.solve(matrix, quadratic.of_query @ (best - quadratic.query_centre))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_fewer_iterations_are_the_least_error_of_their_krylov_space() -> None:
    """In the norm of A, among combinations of b, A b, ..., by a dense least-squares solve."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    a = a @ a.T + torch.eye(12)
    b = torch.randn(12, generator=generator, dtype=torch.float64)
    shapes = [torch.zeros(3, 2), torch.zeros(6)]
    for steps in (1, 3, 12):
        found = flat(conjugate_gradients(lambda v: apart(a @ flat(v), shapes), apart(b, shapes), steps))
        krylov = np.linalg.qr(np.stack([np.linalg.matrix_power(a, k) @ b.numpy() for k in range(steps)], 1))[0]
        expected = krylov @ np.linalg.solve(krylov.T @ a.numpy() @ krylov, krylov.T @ b.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_where_the_problem_is_not_convex_iterations_end() -> None:
    one, up = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])
    assert conjugate_gradients(lambda v: [-v[0]], [up], 5)[0].tolist() == [3, 4], "as in first order"
    assert conjugate_gradients(lambda v: [v[0] * 0], [one], 5)[0].tolist() == [1, 0]
    mixed = torch.diag(torch.tensor([2.0, -0.5]))  # positive along b, negative along what comes next
    (found,) = conjugate_gradients(lambda v: [mixed @ v[0]], [torch.tensor([4.0, 1.0])], 5)
    torch.testing.assert_close(found, torch.tensor([4.0, 1.0]) * 17 / 31.5)
    assert bool(conjugate_gradients(lambda v: [v[0] * float("nan")], [up], 5)[0].isnan().all()), "and is refused later"


def test_a_large_weight_is_first_order_maml() -> None:
    """A proximal term of 1e12 holds phi at theta, and I + H / 1e12 is the identity."""
    with float64():
        system, plain = exact_system(proximal_weight=1e12, inner_lr=1e-13), exact_system("fomaml", inner_lr=1e-13)
        torch.testing.assert_close(outer_gradient(system), outer_gradient(plain), rtol=1e-8, atol=1e-12)
        expected = outer_gradient(plain)
        change = (outer_gradient(exact_system(inner_lr=1e-13)) - expected).abs().max() / expected.abs().max()
        assert change > 0.05, "one of 10 is another gradient"


def test_without_weight_and_iterations_it_is_first_order_maml_bit_for_bit(tmp_path: Any) -> None:
    settings = {"inner_steps": 2, "inner_lr": 1e-2, "inner_optimizer": "adamw"}
    off = {"proximal_weight": 0.0, "cg_steps": 0}
    one, _ = train(run_config("imaml", **off, **settings), tmp_path / "one")
    other, _ = train(run_config("fomaml", **settings), tmp_path / "other")
    assert same(values(one, "shared"), values(other, "shared"))
    full, _ = train(run_config("imaml", **settings), tmp_path / "full")
    assert not same(values(full, "shared"), values(other, "shared"))


def test_without_steps_inside_it_is_the_gradient_at_theta(tmp_path: Any) -> None:
    one, _ = train(run_config("imaml", inner_steps=0), tmp_path / "one")
    other, _ = train(run_config("fomaml", inner_steps=0), tmp_path / "other")
    assert same(values(one, "shared"), values(other, "shared"))


def test_an_inner_step_descends_the_proximal_term() -> None:
    with float64():
        system = exact_system(proximal_weight=0.5)
        phi, theta = (flat(system.method.adapters.parameters(slot)) for slot in ("task", "shared"))
        (batch,) = system.batcher(SUPPORT[0])
        with torch.no_grad():
            terms, nll = system.method.inner_loss(batch, step_key(PLACE)[0]), float(system.likelihood.nll(batch))
        assert float(terms.total) == pytest.approx(nll + 0.25 * float((phi - theta).square().sum()), rel=1e-12)
        assert float(terms.nll) == pytest.approx(nll, rel=1e-12)


def test_iterations_without_a_proximal_term_are_refused() -> None:
    with pytest.raises(AbmllError, match=r"cg_steps above 0 needs method\.proximal_weight"):
        build_system(run_config("imaml", proximal_weight=0.0), exact_base())
