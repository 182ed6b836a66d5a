"""ABMLL in a core, fitted in pieces of a few rows: the posterior of one batch, in memory that rows do not add to."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from abmll.config import RunConfig
from abmll.methods.core import CoreABMLL
from abmll.methods.fitted import Pieces
from abmll.process import stopping
from abmll.process.stopping import Stopped
from abmll.question import Question, Task
from abmll.runs.estimate import estimate
from abmll.systems.plans import AdaptationPlan, PredictionPlan, resolve
from abmll.systems.system import System
from benchmarks.common import peak_bytes
from tests.exact import exact_base, float64
from tests.systems import TASKS
from tests.unit.test_core import core_system, method_of, normal, posterior_of


def uneven() -> Task:
    """Questions of two, three, four and five choices and of many lengths, one kind after the other and mixed."""
    rows = [*TASKS[0].train[:4], *TASKS[2].train[:4]]
    for number, words in enumerate((1, 12, 5)):
        choices = ("river", "horse", "garden", "mountain side", "sea")[: 3 + 2 * (number % 2)]
        rows.insert(3 * number, Question(f"more{number}", "sun " * words + "?", choices, number % 3))
    return Task("uneven", tuple(rows))


PLAN = AdaptationPlan(11, 6)


def fitted(tokens: int | None, base: Any = None, **settings: Any) -> System:
    system = core_system(base, fit_tokens=tokens, **settings)
    size = len(method_of(system).learned["core_mean"])
    method_of(system).learned["core_variance"].data.copy_(normal(size, seed=4).exp() / 4)
    system.adapt(uneven(), PLAN)
    return system


@pytest.mark.parametrize(("tokens", "order"), [(1, "all"), (150, "all"), (90, "batch")])
def test_the_posterior_is_that_of_one_batch(tokens: int, order: Any) -> None:
    """To rounding in float64, in every form: moments, draws, and the gradient that theta takes."""
    with float64():
        one, other = (method_of(fitted(n, exact_base(), rows_at_once=order)) for n in (None, tokens))
        sizes = [batch.questions for batch in other.batches]
        assert sum(sizes) == 11
        assert tokens == 1 or len(set(sizes)) > 1
        assert one.found is not None
        assert other.found is not None
        assert one.found.rows.abs().max() > 0.1
        prior = one.learned["core_mean"].detach()
        for form in ("full", "blocks", "factorised"):
            first, second = (replace(found, form=form) for found in (one.found, other.found))
            pairs = {
                "mean": (first.mean, second.mean),
                "rows": (first.rows, second.rows),
                "covariance": (first.dense(), second.dense()),
                "divergence": (first.divergence(prior), second.divergence(prior)),
                "draw": (one.drawn(first, 5), other.drawn(second, 5)),
            }
            for name, (expected, found) in pairs.items():
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        for method in (one, other):
            method.outer_gradient((), torch.tensor(3))
        for p, q in zip(one.adapters.parameters("shared"), other.adapters.parameters("shared"), strict=True):
            assert p.grad.abs().max() > 1e-6
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-10)


def test_the_terms_are_those_of_one_batch() -> None:
    with float64():
        found = []
        for tokens in (None, 60):
            system = core_system(exact_base(), fit_tokens=tokens)
            method, asked = method_of(system), uneven().train
            method.begin_task()
            if tokens is None:
                found.append(method.fit([system.batcher(asked)]))
                continue
            dealt = system.batcher.alike(asked, tokens)
            blocks = [[system.batcher.batch([asked[i] for i in numbers]) for numbers in dealt]]
            choices = tuple(len(asked[numbers[0]].choices) for numbers in dealt)
            found.append(method.fit(blocks, [Pieces(tuple(map(tuple, dealt)), choices)]))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(other.nll, one.nll)
        torch.testing.assert_close(found[1][-1].task_kl, found[0][-1].task_kl)


def test_batches_are_of_one_number_of_choices_near_length_and_few_tokens() -> None:
    batcher = core_system().batcher
    asked = uneven().train
    lengths = [question.tokens for question in batcher.encode(asked)]
    dealt = batcher.alike(asked, 150)
    assert sorted(number for numbers in dealt for number in numbers) == list(range(11))
    for numbers in dealt:
        assert len({len(asked[number].choices) for number in numbers}) == 1
        assert batcher.batch([asked[number] for number in numbers]).input_ids.numel() <= 150 or len(numbers) == 1
        assert [lengths[number] for number in numbers] == sorted(lengths[number] for number in numbers)
    assert max(map(len, dealt)) > 2
    for numbers in replace(batcher, micro_batch=2).alike(asked, 10_000):
        assert len(numbers) <= 2


def test_questions_with_premises_are_alone() -> None:
    batcher = core_system(likelihood={"premise": "Answer:"}).batcher
    assert all(len(numbers) == 1 for numbers in batcher.alike(uneven().train, 10_000))


def backward_passes(monkeypatch: pytest.MonkeyPatch, system: System) -> int:
    count, plain = [], torch.autograd.grad

    def counted(*given: Any, **named: Any) -> Any:
        count.append(1)
        return plain(*given, **named)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    system.adapt(TASKS[2], PLAN)
    monkeypatch.undo()
    return len(count)


def test_there_is_no_backward_pass_for_choices_that_only_padding_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA batches are padded to 8 choices: questions of 4 take three passes each time, not seven."""
    plain, padded, whole = core_system(), core_system(), core_system(fit_tokens=None)
    for system in (padded, whole):
        system.batcher = replace(system.batcher, buckets=True)
    counts = [backward_passes(monkeypatch, system) for system in (plain, padded, whole)]
    assert counts[0] == counts[1] == 2 * 3 * len(method_of(padded).batches)
    assert counts[2] == 2 * 7
    torch.testing.assert_close(posterior_of(padded).found.mean, posterior_of(plain).found.mean, atol=1e-5, rtol=1e-4)


def test_memory_does_not_grow_with_the_rows() -> None:
    """But for the observations themselves, 8 P bytes each, which the posterior is made of."""
    peaks: dict[tuple[int | None, int], float] = {}
    for tokens in (None, 140):
        system = core_system(fit_tokens=tokens)
        for count in (6, 24):
            task = Task("rows", tuple(replace(row, id=f"{row.id}x") for row in TASKS[2].train[:count]))
            peaks[tokens, count] = peak_bytes(lambda: system.adapt(task, AdaptationPlan(count, count)))  # noqa: B023
    rows = posterior_of(system).found.rows
    assert len(rows) == 24 * 3
    assert peaks[None, 24] > 3 * peaks[None, 6]
    assert peaks[140, 24] < 1.2 * peaks[140, 6] + 8 * rows.numel() * 8
    assert peaks[140, 24] < peaks[None, 24] / 3


def test_an_estimate_knows_the_rows_of_a_pass() -> None:
    """Of 20 examples of 128 tokens; of four of these; of a step's two, as every other method takes them."""
    given = [
        ("core", {"fit_tokens": None}, {}),
        ("core", {}, {}),
        ("reptile", {}, {}),
        ("core", {"fit_tokens": 1}, {}),
        ("core", {"fit_tokens": None}, {"micro_batch": 1}),
    ]
    found = []
    for name, settings, training in given:
        values = {"model": {"shape": "tiny-llama"}, "likelihood": {"max_tokens": 128}, "training": training}
        config = RunConfig.model_validate({**values, "method": {"name": name, **settings}})
        found.append(estimate(resolve(config)).activation_bytes)
    assert [round(each / found[-1]) for each in found] == [20, 4, 2, 1, 1]


def answers(system: System) -> np.ndarray[Any, Any]:
    asked = (*TASKS[2].train[20:23], *TASKS[1].train[:3], *TASKS[2].train[12:14])
    found = system.predict(asked, PredictionPlan("weight", 1, 4096))
    return np.concatenate([row.probabilities for row in found])


def test_linearised_answers_are_those_of_one_batch() -> None:
    """Padded to 8 choices or not, letters' probabilities in the vocabulary too."""
    for kind in ("cloze", "letter"):
        given = {"posterior": {"answers": "linearised", "samples": 50}, "likelihood": {"kind": kind}}
        systems = [core_system(fit_tokens=tokens, **given) for tokens in (None, 100)]
        for system in systems:
            system.adapt(TASKS[2], PLAN)
        before = answers(systems[0])
        np.testing.assert_allclose(answers(systems[1]), before, atol=3e-5)
        systems[0].batcher = replace(systems[0].batcher, buckets=True)
        np.testing.assert_allclose(answers(systems[0]), before, atol=3e-5)


def test_a_fit_can_be_stopped_between_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    system, done, plain = core_system(fit_tokens=1), [], CoreABMLL.linearised

    def linearised(self: CoreABMLL, *given: Any) -> tuple[Any, Tensor]:
        done.append(1)
        monkeypatch.setattr(stopping._State, "asked", 15)
        return plain(self, *given)

    monkeypatch.setattr(CoreABMLL, "linearised", linearised)
    with pytest.raises(Stopped):
        system.adapt(uneven(), PLAN)
    assert len(done) == 1
