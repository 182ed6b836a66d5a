"""Laplace-LoRA with Kronecker factors, and its precision learned over training tasks; against dense float64 forms."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from abmll.adapters.gaussian import LowRankGaussian
from abmll.adapters.layer import AdaptedLinear, Noise
from abmll.config import PosteriorConfig, RunConfig
from abmll.errors import AbmllError
from abmll.everyday.saved import save_posterior
from abmll.everyday.session import open_run
from abmll.files import write_sealed_json
from abmll.kernels import Variance
from abmll.process.world import World
from abmll.question import Question, Task
from abmll.runs import evaluate_run as evaluation
from abmll.runs.compare import complete_run
from abmll.systems.build import build_system
from abmll.systems.plans import AdaptationPlan, PredictionPlan
from abmll.systems.posteriors.base import Adaptation
from abmll.systems.posteriors.laplace import Laplace
from abmll.systems.posteriors.laplace.curvature import FullCurvature, KroneckerCurvature, KroneckerSums, Passes, Seen
from abmll.systems.posteriors.laplace.evidence import Evidence, pooled
from abmll.systems.posteriors.laplace.pooled import PRECISION_FILE, learn_precision, read_precision
from abmll.systems.posteriors.settings import resolve_posterior
from abmll.systems.system import System
from tests.exact import exact_base, float64
from tests.runs import UNSEEN, config_in, place_tiny, run_in, system_in, train_run
from tests.systems import TASKS, questions, run_config, scramble, tiny_base

PLAN, MEAN = AdaptationPlan(6, 6), PredictionPlan("mean", 1)
PRECISION = 0.7
LONG = ("red or green or blue", "green or red")
"""Choices of several tokens."""


def adapted(base: Any = None, method: str = "fomaml", **posterior: Any) -> System:
    """A system with this posterior, adapted to the first task from a theta far from its start."""
    config = run_config(method, adaptation={"samples": 4}, inner_lr=1e-2)
    config = config.model_copy(update={"posterior": PosteriorConfig(name="laplace", **posterior)})
    system = build_system(config, base or tiny_base())
    scramble(system)
    system.adapt(TASKS[0], PLAN)
    return system


def laplace_of(system: System) -> Laplace:
    assert isinstance(system.posterior, Laplace)
    return system.posterior


# -------------------- Kronecker factors


class OneLayer(nn.Module):
    """Scores of three choices by one adapted layer, which sees one token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shared, task = (LowRankGaussian(5, 4, 2, Variance("square", 0.1, 1e-6, 1.5), with_std=False) for _ in "st")
        self.layer = AdaptedLinear(nn.Linear(4, 5), shared, task, Noise(), 0)
        self.head = nn.Linear(5, 3)
        for parameter in task.parameters():
            parameter.data.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x[None, None])))[0, 0].log_softmax(-1)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("name", ["mean_b", "mean_a"])
def test_of_one_token_the_kronecker_factors_are_the_whole_gauss_newton_matrix(name: str, copies: int) -> None:
    with float64():
        network, x, other = OneLayer(), torch.randn(4), torch.randn(4)
        parameter = getattr(network.layer.task, name)
        passes, sums, full = Passes([network.layer], [parameter]), KroneckerSums(), []
        for _ in range(copies):
            with passes.listening():
                f = network(x)
            sums.add(passes.seen(f, torch.ones(1, 1, dtype=torch.bool)), f.detach().exp())
            full.append(f.detach().exp().sqrt()[:, None] * rows_of(f, parameter))
        kronecker, dense = sums.curvature(), FullCurvature(torch.cat(full))
        asked = rows_of(network(other), parameter)
        for precision in (0.01, 3.0):
            np.testing.assert_allclose(
                kronecker.covariance(asked, precision), dense.covariance(asked, precision), rtol=1e-8
            )
            log_det = [np.log1p(each.spectrum() / precision).sum() for each in (kronecker, dense)]
            assert log_det[0] == pytest.approx(log_det[1], rel=1e-8)


def rows_of(scores: Tensor, parameter: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(s, parameter, retain_graph=True)[0].flatten() for s in scores])


def seen_of(posterior: Laplace, question: Question) -> tuple[Tensor, list[Seen]]:
    passes = Passes(list(posterior.parts.method.adapters.layers.values()), posterior.parameters)
    batch = posterior.parts.batcher.batch([question])
    with passes.listening():
        f = posterior.parts.likelihood.scores(batch).log_probabilities[0, : len(question.choices)]
        return f.detach(), passes.seen(f, batch.reach > 0)


@pytest.mark.parametrize("method", ["fomaml", "anil"])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_what_the_factors_are_made_of_adds_up_to_the_jacobian(method: str, share_prefix: bool) -> None:
    """Of all tokens the sum of g x^T is a gradient by the parameter; padding has no part."""
    with float64():
        system = adapted(exact_base(), method, form="kfac")
        posterior = laplace_of(system)
        batcher = replace(system.batcher, share_prefix=share_prefix)
        posterior.parts = posterior.parts._replace(batcher=batcher)
        for question in (replace(row, choices=LONG) for row in questions(2)):
            _, seen = seen_of(posterior, question)
            (encoded,) = batcher.encode([question])
            fed = [len(choice) - 1 for choice in encoded.continuations]
            rows = 1 if share_prefix else len(fed)
            assert 0 < min(fed) < max(fed), "rows of several lengths, so that there is padding"
            assert [len(x) for x, _ in seen] == [rows * len(encoded.prefix) + sum(fed)] * len(posterior.parameters)
            found = torch.cat([torch.einsum("kmo,mi->koi", g, x).flatten(1) for x, g in seen], dim=1)
            _, expected, _ = posterior.jacobian(question)
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def dense_blocks(posterior: Laplace, rows: tuple[Question, ...], inputs_mean: str) -> np.ndarray:
    """The block-diagonal matrix of Kronecker products, all its entries."""
    sums: list[list[Any]] = []
    tokens = 0
    for row in rows:
        f, seen = seen_of(posterior, row)
        p, tokens = f.exp().numpy(), tokens + len(seen[0].inputs)
        new = [
            [x.numpy().T @ x.numpy(), sum(p[k] * g[k].numpy().T @ g[k].numpy() for k in range(len(p)))] for x, g in seen
        ]
        sums = (
            new if not sums else [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(sums, new, strict=True)]
        )
    count = tokens if inputs_mean == "tokens" else len(rows)
    blocks = [np.kron(outputs, inputs / count) for inputs, outputs in sums]
    size = sum(map(len, blocks))
    dense, start = np.zeros((size, size)), 0
    for block in blocks:
        dense[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return dense


@pytest.mark.parametrize("inputs_mean", ["tokens", "examples"])
def test_covariance_and_evidence_are_those_of_the_dense_kronecker_products(inputs_mean: str) -> None:
    with float64():
        system = adapted(exact_base(), form="kfac", inputs_mean=inputs_mean, precision=PRECISION)
        posterior = laplace_of(system)
        posterior.parts = posterior.parts._replace(batcher=replace(system.batcher, share_prefix=False))
        rows_adapted_to = tuple(replace(row, choices=LONG) for row in questions(3))  # rows of the batch have padding
        posterior.fit(Adaptation(rows_adapted_to, (), (0, 0, 0)))
        curvature = dense_blocks(posterior, rows_adapted_to, inputs_mean)
        posterior.precision = PRECISION
        inverse = np.linalg.inv(curvature + PRECISION * np.eye(len(curvature)))
        _, rows, _ = posterior.jacobian(TASKS[0].test[0])
        np.testing.assert_allclose(posterior.covariance(rows), rows.numpy() @ inverse @ rows.numpy().T, rtol=1e-7)
        _, log_det = np.linalg.slogdet(np.eye(len(curvature)) + curvature / PRECISION)
        evidence = posterior.evidence()
        expected = -PRECISION / 2 * evidence.squared_distance - log_det / 2
        assert evidence.log_at(PRECISION) == pytest.approx(expected, rel=1e-8)


def test_answers_by_kronecker_factors_are_stored_and_of_a_precise_prior_phi_s_own() -> None:
    system, precise = adapted(form="kfac"), adapted(form="kfac", precision=1e12)
    posterior, asked = laplace_of(system), TASKS[0].test[:3]
    before = system.predict(asked)
    assert isinstance(posterior.curvature, KroneckerCurvature)
    posterior.load({name: value.clone() for name, value in posterior.state().items()})
    assert system.predict(asked) == before
    for one, other in zip(precise.predict(asked), precise.predict(asked, MEAN), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    state = posterior.state()
    for spoilt in ({}, {**state, "inputs.0": state["inputs.0"][1:]}, {**state, "outputs.1": torch.zeros(2)}):
        with pytest.raises((KeyError, ValueError)):
            posterior.load(spoilt)


def test_kronecker_factors_are_another_curvature_than_the_whole_matrix() -> None:
    asked = TASKS[0].test[:3]
    full, kfac = (adapted(form=form, precision=5.0).predict(asked) for form in ("full", "kfac"))
    assert [row.probabilities for row in full] != [row.probabilities for row in kfac]
    assert all(math.isclose(sum(row.probabilities), 1, rel_tol=1e-6) for row in kfac)


def test_a_precision_is_above_zero_or_a_word_that_is_known() -> None:
    for value in (0, -1.0):
        with pytest.raises(AbmllError, match=r"posterior.precision: a precision is above 0, found"):
            resolve_posterior("laplace", {"precision": value})
    with pytest.raises(AbmllError, match=r"posterior.precision: Input should be 'pooled', found 'poled'"):
        resolve_posterior("laplace", {"precision": "poled"})


# -------------------- the precision that is learned over training tasks


def test_of_sharp_likelihoods_the_pooled_precision_is_that_of_the_displacements() -> None:
    """Where each phi is known, it is 1 over the maximum likelihood variance of their entries around theta."""
    moved = np.random.default_rng(0).normal(0, 0.3, (7, 50))
    evidences = [Evidence(np.full(50, 1e12), float(np.square(row).sum())) for row in moved]
    assert pooled(evidences).best_precision() == pytest.approx(1 / np.square(moved).mean(), rel=1e-4)
    assert evidences[0].best_precision() == pytest.approx(1 / np.square(moved[0]).mean(), rel=1e-4)


def test_the_pooled_precision_has_the_largest_sum_of_dense_evidences() -> None:
    with float64():
        system = adapted(exact_base(), precision="pooled")
        posterior, dense = laplace_of(system), []

        def adapt(task: Task) -> None:
            examples = system.adapt(task, PLAN)
            rows = np.concatenate([dense_rows(posterior, row) for row in examples])
            parts = (flat(system.method.adapters.parameters(slot, "mean")) for slot in ("task", "shared"))
            distance = float(np.square(np.subtract(*parts)).sum())
            dense.append((rows.T @ rows, distance))

        learned = learn_precision(posterior, {**{task.name: task for task in TASKS[:3]}, "small": None}, adapt)

    def log_evidence(precision: float) -> float:
        dets = [np.linalg.slogdet(np.eye(len(h)) + h / precision)[1] for h, _ in dense]
        return -0.5 * sum(precision * d + det for (_, d), det in zip(dense, dets, strict=True))

    best = learned.precision
    assert all(log_evidence(best) > log_evidence(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    assert list(learned.tasks) == [task.name for task in TASKS[:3]]
    assert min(learned.tasks.values()) < best < max(learned.tasks.values())
    assert list(learned.left_out) == ["small"]


def dense_rows(posterior: Laplace, row: Question) -> np.ndarray:
    f, rows, _ = posterior.jacobian(row)
    return np.asarray(f.exp().sqrt()[:, None] * rows)


def flat(parameters: list[Any]) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in parameters]).numpy()


def pooled_run(folder: Path, **adaptation: Any) -> tuple[RunConfig, Path]:
    config = config_in(
        place_tiny(folder), "reptile", posterior={"name": "laplace", "precision": "pooled"}, adaptation=adaptation
    )
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    return config, run


def test_a_run_stores_the_precision_for_tasks_that_it_has_not_seen(tmp_path: Path) -> None:
    config, run = pooled_run(tmp_path)
    posterior = laplace_of(train_run(config, run))
    stored = read_precision(run)
    assert stored is not None
    assert stored.learned.precision == posterior.pooled
    assert len(stored.learned.tasks) == 3
    session = open_run(run)
    session.system.adapt(UNSEEN, AdaptationPlan(6, 3))
    assert laplace_of(session.system).precision == stored.learned.precision
    assert session.system.answer(UNSEEN.test[:2])[0].spread
    (run / PRECISION_FILE).unlink()
    bare = open_run(run).system
    bare.adapt(UNSEEN, AdaptationPlan(6, 3))
    with pytest.raises(AbmllError, match=r"posterior.precision=pooled: no precision was learned .* give a number"):
        bare.answer(UNSEEN.test[:2])
    with pytest.raises(AbmllError, match="no precision was learned"):
        save_posterior(run, "mine", config, bare)
    assert not (run / "tasks" / "mine").exists()


def test_a_precision_of_other_weights_or_damaged_is_refused_and_learned_again(tmp_path: Path) -> None:
    config, run = pooled_run(tmp_path)
    train_run(config, run)
    text = (run / PRECISION_FILE).read_text()
    stored = read_precision(run)
    assert stored is not None
    other = stored.model_copy(update={"weights": "0" * 64})
    write_sealed_json(run / PRECISION_FILE, other.model_dump(mode="json"))
    with pytest.raises(AbmllError, match="was learned with other weights"):
        open_run(run)
    train_run(config, run)
    assert (run / PRECISION_FILE).read_text() == text
    (run / PRECISION_FILE).write_text(text.replace("tiny0", "tiny9"))
    with pytest.raises(AbmllError, match=PRECISION_FILE):
        open_run(run)


def test_other_settings_of_the_curvature_do_not_take_it(tmp_path: Path) -> None:
    config, run = pooled_run(tmp_path)
    train_run(config, run)
    assert laplace_of(open_run(run, {"posterior": {"form": "kfac"}}).system).pooled is None
    assert laplace_of(open_run(run, {"adaptation": {"steps": 5}}).system).pooled is not None


def test_without_rows_to_learn_it_from_nothing_is_trained(tmp_path: Path) -> None:
    config, run = pooled_run(tmp_path, examples=17)
    with pytest.raises(AbmllError, match=r"no training task has adaptation.examples=17 rows to adapt to and one more"):
        train_run(config, run)
    assert not (run / "adapter").exists()


def test_each_point_of_a_curve_has_the_precision_of_its_weights(tmp_path: Path, monkeypatch: Any) -> None:
    config, _ = pooled_run(tmp_path)
    run = run_in(tmp_path / "runs" / "curve", config, unseen=[UNSEEN], curve=2)
    system, steps = system_in(config), []
    learn = evaluation.learn_run_precision

    def note(run: Any, system: System, step: int, *rest: Any) -> None:
        learn(run, system, step, *rest)
        steps.append((step, laplace_of(system).pooled))

    monkeypatch.setattr(evaluation, "learn_run_precision", note)
    complete_run(run, system, lambda event: None, World())
    assert [step for step, _ in steps] == [0, 3]
    stored = read_precision(run.folder)
    assert stored is not None
    assert steps[1][1] == stored.learned.precision != steps[0][1]
    steps.clear()
    complete_run(run, system, lambda event: None, World())
    assert steps == [], "all is there"
