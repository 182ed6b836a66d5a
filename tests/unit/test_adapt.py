"""Adapting to an unseen task by the training's own inner steps, and predicting by the mean of probabilities."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from abmll.adapters.attach import detach
from abmll.errors import AbmllError
from abmll.kernels.noise import key_tensor, noise_key
from abmll.methods.base import Schedule
from abmll.methods.noise import ADAPTATION
from abmll.metrics.predictions import Prediction
from abmll.metrics.scores import mean_nll
from abmll.systems import predict as adapting
from abmll.systems.plans import AdaptationPlan, PredictionPlan, resolve
from abmll.systems.predict import adapt, predict
from abmll.systems.system import System
from abmll.training.checkpoints import RunDirectory
from abmll.training.optimizers import GroupOptimizer
from abmll.training.train import meta_train
from tests.systems import TASKS, key_of, questions, run_config, same, scramble, system_of, values
from tests.tiny import tiny_tasks

SYSTEMS = ("pretrained", "lora", "structured", "reptile", "fomaml", "abmll")
UNSEEN = tiny_tasks(6, seed=1)[4]
PLACE = (0, 0, "tiny4")
WIDE = {"std_init": 0.05}
"""Stds that a draw can be told from the mean by."""


def predict_with(system: System, count: int = 6, **plan: Any) -> tuple[Prediction, ...]:
    """Predictions of some test questions; `plan` as for `PredictionPlan`."""
    wanted = PredictionPlan(**{"samples": 3, **plan})
    return predict(system.method, system.likelihood, system.batcher, UNSEEN.test[:count], wanted, PLACE)


def probabilities(predictions: tuple[Prediction, ...]) -> np.ndarray:
    """As one flat array."""
    return np.concatenate([p.probabilities for p in predictions])


def wide_system(**settings: Any) -> System:
    """An ABMLL system with random factors and wide stds."""
    system = system_of("abmll", **{**WIDE, **settings})
    scramble(system, size=0.1)
    return system


# -------------------- adaptation


def seen_while_adapting(name: str, plan: AdaptationPlan, draw: int) -> tuple[list[list[str]], list[Any], set[str]]:
    """Ids of each step's batch, each step's noise key, and the examples that were returned."""
    system = system_of(name)
    batches: list[list[str]] = []
    noise: list[int] = []
    keys = {system.batcher.encoder(q).key: q.id for q in UNSEEN.train}
    inner_loss = system.method.inner_loss

    def watch(batch: Any, key: Any) -> Any:
        batches.append([keys[key] for key in batch.row_keys.tolist()])
        noise.append(int(key))
        return inner_loss(batch, key)

    system.method.inner_loss = watch  # type: ignore[method-assign]
    examples = adapt(system.method, system.batcher, UNSEEN, plan, draw)
    return batches, noise, {q.id for q in examples}


def test_every_system_adapts_by_the_same_steps_on_the_same_examples() -> None:
    seen = [seen_while_adapting(name, AdaptationPlan(), 0) for name in SYSTEMS]
    batches, noise, examples = seen[0]
    assert [len(batch) for batch in batches] == [2] * 10
    assert len(examples) == 20
    assert {i for batch in batches for i in batch} == examples, "each of the 20 examples is used, once"
    assert noise == [int(key_of(0, ADAPTATION, 0, step)) for step in range(10)]
    assert all(other == seen[0] for other in seen[1:])


def test_draws_and_seeds_choose_other_examples() -> None:
    plan = AdaptationPlan(examples=8, steps=4)
    chosen = [seen_while_adapting("lora", plan, draw)[2] for draw in (0, 1)]
    chosen.append(seen_while_adapting("lora", replace(plan, seed=1), 0)[2])
    assert len({frozenset(one) for one in chosen}) == 3


def test_steps_and_examples_need_not_match() -> None:
    batches, _, examples = seen_while_adapting("lora", AdaptationPlan(examples=3, steps=4), 0)
    used = [i for batch in batches for i in batch]
    assert len(examples) == 3
    assert len(used) == 8
    assert [set(used[i : i + 3]) for i in (0, 3)] == [examples, examples], "each pass is a permutation"


def test_adaptation_is_the_training_loops_own_inner_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from abmll.training import inner, through_steps

    assert adapting.inner_steps is through_steps.inner_steps is inner.inner_steps
    seen: list[int] = []

    def count(method: Any, optimizer: Any, batcher: Any, batches: Any, *others: Any) -> list[Any]:
        seen.append(len(batches))
        return []

    monkeypatch.setattr(adapting, "inner_steps", count)
    system = system_of("structured")
    adapt(system.method, system.batcher, UNSEEN, AdaptationPlan(), 0)
    assert seen == [10]


@pytest.mark.parametrize(("schedule", "factors"), [("linear", (1.0, 0.75, 0.5, 0.25)), ("constant", (1.0,) * 4)])
def test_rates_fall_over_the_steps_as_torch_has_them(schedule: Schedule, factors: tuple[float, ...]) -> None:
    """`torch.optim.AdamW` with `LambdaLR` on a copy of phi, given the gradients that phi has at each step."""
    plan = AdaptationPlan(examples=8, steps=4, schedule=schedule)
    system = system_of("lora")
    rate = system.adapting.groups[0].lr
    gradients: list[list[torch.Tensor]] = []
    step = type(system.adapting).step

    def seen(optimizer: GroupOptimizer, skip: Any = None) -> None:
        gradients.append([p.grad.clone() for p in optimizer.parameters if p.grad is not None])
        step(optimizer, skip)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(system.adapting), "step", seen)
        system.adapt(UNSEEN, AdaptationPlan(examples=8, steps=0))
        copies = [torch.nn.Parameter(p.detach().clone()) for p in system.adapting.parameters]
        system.adapt(UNSEEN, plan)
    theirs = torch.optim.AdamW(copies, lr=rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(theirs, lambda done: factors[min(done, 3)])
    for grads in gradients:
        for copy, grad in zip(copies, grads, strict=True):
            copy.grad = grad
        theirs.step()
        falling.step()
    assert len(gradients) == 4
    for ours, copy in zip(system.adapting.parameters, copies, strict=True):
        torch.testing.assert_close(ours, copy, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SYSTEMS)
def test_adapting_moves_phi_alone_and_starts_from_theta_each_time(name: str) -> None:
    system = system_of(name, likelihood={"learn_temperature": True})
    theta, temperature = values(system, "shared"), system.likelihood.log_temperature.detach().clone()
    plan = AdaptationPlan(examples=4, steps=2)
    adapt(system.method, system.batcher, UNSEEN, plan, 0)
    once = values(system, "task")
    adapt(system.method, system.batcher, TASKS[0], plan, 0)
    adapt(system.method, system.batcher, UNSEEN, plan, 0)
    assert same(values(system, "task"), once)
    assert not same(once, theta)
    assert same(values(system, "shared"), theta)
    assert torch.equal(system.likelihood.log_temperature.detach(), temperature)


def test_a_persistent_phi_is_made_anew_for_an_unseen_task() -> None:
    ends = []
    for junk in (False, True):
        system = system_of("abmll", phi="persistent")
        if junk:
            with torch.no_grad():
                for parameter in system.method.adapters.parameters("task"):
                    parameter.add_(1.0)
        adapt(system.method, system.batcher, UNSEEN, AdaptationPlan(examples=4, steps=2), 0)
        ends.append(values(system, "task"))
    assert same(*ends)


@pytest.mark.parametrize("name", ["lora", "structured"])
def test_moments_that_go_on_in_training_begin_anew_for_an_unseen_task(name: str, tmp_path: Path) -> None:
    system, config = system_of(name, inner_steps=2), run_config(name, inner_steps=2)
    run = resolve(config)
    meta_train(system.learner, run.episodes_of(TASKS), run.training, RunDirectory(tmp_path))
    kept = {n: t.clone() for n, t in system.training.inner.state_dict().items()}
    theta = values(system, "shared")
    system.adapt(UNSEEN, AdaptationPlan(examples=4, steps=2), 0)
    other = system_of(name)
    other.method.adapters.load_state_dict("shared", theta)
    other.adapt(UNSEEN, AdaptationPlan(examples=4, steps=2), 0)
    assert same(values(system, "task"), values(other, "task"))
    assert same(system.training.inner.state_dict(), kept), "adapting used the moments of training"
    assert {float(t) for n, t in kept.items() if n.endswith(".step")} == {9.0}


def test_too_few_rows_to_adapt_on_are_refused() -> None:
    system = system_of("lora")
    with pytest.raises(AbmllError, match=r"'tiny4' has 24 train rows, adaptation wants 25"):
        adapt(system.method, system.batcher, UNSEEN, AdaptationPlan(examples=25), 0)


def test_a_row_that_does_not_fit_the_model_is_said_before_phi_moves() -> None:
    system = system_of("lora")
    system.adapt(UNSEEN, AdaptationPlan(examples=4, steps=2), 0)
    before = values(system, "task")
    long = replace(UNSEEN.train[0], id="long", question="Is it? " * 5000, location="a.csv:9")
    with pytest.raises(AbmllError, match=r"a\.csv:9: question 'long' needs"):
        system.adapt(replace(UNSEEN, train=(*UNSEEN.train, long)))
    assert same(values(system, "task"), before)


def test_adapting_learns() -> None:
    """A task with one rule: twenty examples and some larger steps say it to the model."""
    system = system_of("structured", inner_lr=5e-3)
    plan = PredictionPlan("mean")
    task = tiny_tasks(1, n_rows=20, n_test=40, seed=3)[0]
    scores = []
    for steps in (0, 40):
        adapt(system.method, system.batcher, task, AdaptationPlan(steps=steps), 0)
        made = predict(system.method, system.likelihood, system.batcher, task.test, plan, PLACE)
        accuracy = np.mean([np.argmax(p.probabilities) == p.answer for p in made])
        scores.append((accuracy, mean_nll(made)))
    assert scores[1][0] > scores[0][0] + 0.1
    assert scores[1][1] < scores[0][1]


# -------------------- prediction


def test_probabilities_are_the_mean_over_draws_of_probabilities() -> None:
    system = wide_system()
    together = predict_with(system, samples=3)
    alone = []
    for sample in range(3):
        batch = system.batcher.batch(UNSEEN.test[:6])
        key = key_tensor(noise_key("predict", *PLACE, sample))
        with torch.no_grad(), system.method.adapters.drawing("weight", key, batch.row_keys, batch.token_index):
            scores = system.likelihood.scores(batch).log_probabilities
        rows = [row[: len(q.choices)] for row, q in zip(scores.exp().double(), UNSEEN.test, strict=False)]
        alone.append(torch.cat(rows).numpy())
    assert np.abs(probabilities(together) - np.mean(alone, axis=0)).max() < 1e-5
    spread = np.concatenate([p.spread for p in together if p.spread is not None])
    assert np.abs(spread - np.std(alone, axis=0)).max() < 1e-5
    assert spread.max() > 1e-2
    of_logs = np.exp(np.mean(np.log(alone), axis=0))
    assert np.abs(probabilities(together) - of_logs).max() > 1e-3, "too narrow to tell from averaging logits"


@pytest.mark.parametrize("sampler", ["weight", "activation", "mean"])
def test_predictions_are_reproducible_and_normalised(sampler: str) -> None:
    first, second = (predict_with(wide_system(), sampler=sampler) for _ in range(2))
    assert first == second
    assert all(sum(p.probabilities) == pytest.approx(1.0, abs=1e-12) for p in first)
    assert [p.id for p in first] == [q.id for q in UNSEEN.test[:6]]
    assert [p.answer for p in first] == [q.answer for q in UNSEEN.test[:6]]
    assert all((p.spread is None) == (sampler == "mean") for p in first)


def test_predictions_say_which_group_a_question_is_of() -> None:
    system = system_of("lora")
    asked = [replace(q, group=group) for q, group in zip(UNSEEN.test, ("x", None, "x"), strict=False)]
    made = predict(system.method, system.likelihood, system.batcher, asked, PredictionPlan(), PLACE)
    assert [row.group for row in made] == ["x", None, "x"]


def test_another_place_draws_other_weights() -> None:
    system = wide_system()
    plan = PredictionPlan("weight", 3)
    made = [
        predict(system.method, system.likelihood, system.batcher, UNSEEN.test[:6], plan, place)
        for place in ((0, 0, "tiny4"), (1, 0, "tiny4"), (0, 1, "tiny4"), (0, 0, "tiny5"))
    ]
    assert len({p[0].probabilities for p in made}) == 4


def test_trust_33_a_draw_equals_writing_it_into_the_base_weights() -> None:
    system = wide_system()
    plan = PredictionPlan("weight", 1)
    drawn = predict(system.method, system.likelihood, system.batcher, UNSEEN.test, plan, PLACE)
    key = noise_key("predict", *PLACE, 0)
    layers = system.method.adapters.layers
    weights = {path: layer.task.dense_draw(key, layer.index) for path, layer in layers.items()}
    detach(system.language_model.model, system.method.adapters)
    with torch.no_grad():
        for path, added in weights.items():
            weight = system.language_model.model.get_submodule(path).weight
            weight.add_(added)  # type: ignore[operator]
        scores = system.likelihood.scores(system.batcher.batch(UNSEEN.test)).log_probabilities.exp()
    by_hand = [row[: len(q.choices)] for row, q in zip(scores, UNSEEN.test, strict=True)]
    assert np.abs(probabilities(drawn) - torch.cat(by_hand).numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("sampler", "share_prefix"),
    [("mean", True), ("weight", True), ("activation", True), ("mean", False), ("weight", False)],
)
@pytest.mark.parametrize("kind", ["cloze", "letter"])
def test_trust_22_a_score_does_not_depend_on_its_batch(sampler: str, share_prefix: bool, kind: str) -> None:
    likelihood = {"kind": kind, "share_prefix": share_prefix}
    system = wide_system(likelihood=likelihood, training_sampler="weight")
    mixed = (*UNSEEN.test[:3], *TASKS[2].test[:3], *questions(2))  # other numbers of choices, other lengths
    plan = PredictionPlan(sampler, 2)
    made: list[tuple[Prediction, ...]] = []
    for tokens in (1, 150, 100_000):
        wanted = replace(plan, batch_tokens=tokens)
        made.append(predict(system.method, system.likelihood, system.batcher, mixed, wanted, PLACE))
    backwards = predict(system.method, system.likelihood, system.batcher, mixed[::-1], plan, PLACE)[::-1]
    for other in (*made[1:], backwards):
        assert [p.id for p in other] == [p.id for p in made[0]]
        assert np.abs(probabilities(other) - probabilities(made[0])).max() < 1e-5


def test_a_system_without_stds_has_one_draw() -> None:
    system = system_of("structured")
    scramble(system)
    assert predict_with(system, sampler="weight", samples=5) == predict_with(system, sampler="mean")


def test_narrow_stds_predict_as_the_mean() -> None:
    system = wide_system(std_init=1e-7, std_floor=1e-8)
    with torch.no_grad():
        for parameter in system.method.adapters.parameters("task", "std"):
            parameter.zero_()
    drawn, mean = predict_with(system), predict_with(system, sampler="mean")
    assert np.abs(probabilities(drawn) - probabilities(mean)).max() < 1e-5


def test_vocabulary_confidence_is_the_raw_probability_of_the_predicted_letter() -> None:
    letter = predict_with(wide_system(likelihood={"kind": "letter"}))
    assert all(p.vocabulary_confidence is not None and 0 < p.vocabulary_confidence < 1 for p in letter)
    assert all(p.vocabulary_confidence < max(p.probabilities) for p in letter if p.vocabulary_confidence)
    assert all(p.vocabulary_confidence is None for p in predict_with(wide_system()))


def test_predicting_leaves_no_trace() -> None:
    system = wide_system()
    before = {slot: values(system, slot) for slot in ("shared", "task")}
    predict_with(system)
    assert all(same(values(system, slot), before[slot]) for slot in before)
    assert system.method.adapters.noise.sampler == "mean"
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["structured", "abmll"])
def test_moments_of_an_earlier_adaptation_do_not_move_the_next(name: str) -> None:
    """An optimizer that is used again (captured steps need that) starts as a new one does."""
    plan, system = AdaptationPlan(examples=4, steps=2), system_of(name)
    optimizer = GroupOptimizer(system.method.task())
    adapt(system.method, system.batcher, TASKS[0], plan, 0, optimizer)
    adapt(system.method, system.batcher, UNSEEN, plan, 0, optimizer)
    again = values(system, "task")
    adapt(system.method, system.batcher, UNSEEN, plan, 0, GroupOptimizer(system.method.task()))
    assert same(values(system, "task"), again)


def test_the_noise_of_a_draw_is_named_by_its_number() -> None:
    """Sample s of a prediction is one forward pass under the key of s, so ten samples are ten draws, not one."""
    system = wide_system()
    drawn = probabilities(predict_with(system, samples=3))
    alone = [direct(system, noise_key("predict", *PLACE, sample)) for sample in range(3)]
    assert drawn == pytest.approx(np.mean(alone, axis=0), abs=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
    assert np.abs(alone[1] - alone[2]).max() > 1e-4


def direct(system: System, key: int) -> np.ndarray:
    """Probabilities of the first six test questions, one by one, under the weights of one key."""
    found = []
    for question in UNSEEN.test[:6]:
        batch = system.batcher.batch([question])
        with torch.no_grad(), system.method.adapters.drawing("weight", key_tensor(key)):
            found.append(system.likelihood.scores(batch).log_probabilities[0, : len(question.choices)].exp())
    return torch.cat(found).numpy()
