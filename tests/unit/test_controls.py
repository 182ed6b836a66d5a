"""Controls that could explain a gain without Bayes, and systems that begin anew on what was captured."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from abmll.adapters.attach import attach
from abmll.errors import AbmllError
from abmll.kernels.noise import kept, key_tensor, noise_key
from abmll.metrics.predictions import Prediction, Predictions, read_predictions
from abmll.process.world import World
from abmll.prompts.encode import Encoder
from abmll.question import QuestionWithExamples, Task
from abmll.runs.compare import complete_run
from abmll.runs.evaluate_run import is_complete
from abmll.runs.prepare import Run
from abmll.scoring.scores import score
from abmll.systems.build import build_system, renew
from abmll.systems.folds import held_out
from abmll.systems.plans import AdaptationPlan, PredictionPlan, resolve
from abmll.tasks.episodes import adaptation_batches
from tests.runs import run_in
from tests.systems import (
    TASKS,
    gradients,
    key_of,
    questions,
    run_config,
    same,
    scramble,
    system_of,
    tiny_base,
    train,
    values,
)
from tests.tiny import tiny_tokenizer

KEYS = key_tensor(*(noise_key("test", i) for i in range(400)))


def test_the_prior_of_a_system_of_means_is_the_l2_of_the_dense_product() -> None:
    weight, variance = 3.0, 0.5
    plain, system = (system_of("structured", mean_prior_weight=w, mean_prior_variance=variance) for w in (0.0, weight))
    for one in (plain, system):
        scramble(one)
        terms = one.method.inner_loss(one.batcher.batch(questions(2)), key_of(0))
        terms.backward()
    wanted = 0.0
    adapters = system.method.adapters
    for layer in adapters.layers.values():
        factors = [layer.task.mean_b.detach().double(), layer.task.mean_a.detach().double()]
        b, a = (f.requires_grad_() for f in factors)
        normal = torch.distributions.Normal(0.0, math.sqrt(variance))
        loss = -weight * normal.log_prob(layer.task.variance.scale * (b @ a)).sum() / adapters.entries
        wanted += float(loss.detach())
        loss.backward()
        layer.expected = (b.grad, a.grad)
    assert float(terms.total - terms.nll) == pytest.approx(wanted, rel=1e-6)
    without, found = gradients(plain, "task"), gradients(system, "task")
    for path, layer in adapters.layers.items():
        for name, expected in zip(("mean_b", "mean_a"), layer.expected, strict=True):
            got = found[f"{path}.{name}"] - without[f"{path}.{name}"]
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)


def test_dropout_masks_keep_the_stated_share_and_are_named_by_their_key() -> None:
    masks = kept(KEYS, layers=3, width=50, rate=0.3)
    assert masks.shape == (400, 3, 50)
    assert set(masks.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    assert binomtest(int((masks == 0).sum()), masks.numel(), 0.3).pvalue > 1e-3
    assert abs(np.corrcoef(masks[:, 0].flatten(), masks[:, 1].flatten())[0, 1]) < 0.03
    assert torch.equal(kept(KEYS[7:8], 3, 50, 0.3)[0], masks[7])


def test_dropout_of_a_layer_has_the_mean_and_variance_of_bernoulli_columns() -> None:
    model = nn.ModuleDict({"q_proj": nn.Linear(12, 5)})
    adapters = attach(model, ["q_proj"], rank=2, alpha=4.0, std=None)
    layer = adapters.layers["q_proj"]
    with torch.no_grad():
        layer.task.mean_b.normal_(generator=torch.Generator().manual_seed(0))
    x, rate = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(1)), 0.25
    with torch.no_grad(), adapters.dropping(rate, KEYS):
        drawn = model["q_proj"](x.expand(400, 3, 12))
    weight = layer.task.dense_mean().detach()
    mean = layer.base(x[0]) + x[0] @ weight.T
    variance = rate / (1 - rate) * (x[0] ** 2) @ (weight.T**2)  # of w_i x_i z_i / (1 - p), summed over i
    error = (drawn.mean(0) - mean) / (variance / 400).sqrt()
    assert float(error.abs().max()) < 4.5
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.35, atol=0)
    with torch.no_grad(), adapters.dropping(rate, KEYS[3:4]):
        torch.testing.assert_close(model["q_proj"](x)[0], drawn[3])
    assert adapters.noise.kept is None


def test_mc_dropout_draws_in_predictions_and_has_a_row_without_them() -> None:
    config = run_config("reptile", dropout=0.3)
    assert resolve(config).rows == ("run", "run_mean")
    assert resolve(run_config("reptile")).rows == ("run",)
    system = build_system(config, tiny_base())
    scramble(system, size=0.5)
    drawn = system.predict(questions(3), PredictionPlan("weight", 4), ("here",))
    mean = system.predict(questions(3), PredictionPlan("mean", 1), ("here",))
    assert all(max(p.spread) > 0 for p in drawn)
    assert all(p.spread is None for p in mean)
    alone = system.predict(questions(1), PredictionPlan("weight", 4), ("here",))
    assert alone[0].probabilities == pytest.approx(drawn[0].probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {}),
        ("reptile", {"outer_optimizer": "adamw"}),
        ("fomaml", {}),
        ("abmll", {"std_start": "init", "std_state": "float64"}),
        ("abmll", {"outer_step": "displacement"}),
        ("structured", {"likelihood": {"learn_temperature": True}}),
    ],
)
def test_a_renewed_system_is_a_new_one(method: str, settings: dict, tmp_path: Path) -> None:
    first = run_config(method, **settings)
    second = run_config(method, **{**settings, "inner_lr": 1e-3}, training={"seed": 7})
    renewed, _ = train(first, tmp_path / "first")
    renewed.adapt(TASKS[1], AdaptationPlan(4, 2), 0)
    assert renew(renewed, second)
    fresh = build_system(second, tiny_base())
    for slot in ("shared", "task"):
        assert same(values(renewed, slot), values(fresh, slot))
    for name, system in (("renewed", renewed), ("fresh", fresh)):
        _train_with_its_optimizers(second, tmp_path / name, system)
    assert same(values(renewed, "shared"), values(fresh, "shared"))
    for system in (renewed, fresh):
        system.adapt(TASKS[1], AdaptationPlan(4, 2), 0)
    assert same(values(renewed, "task"), values(fresh, "task"))


def complete(run: Run) -> None:
    """Train and evaluate, as a comparison does."""
    complete_run(run, build_system(run.config, tiny_base()), lambda event: None, World())


def _train_with_its_optimizers(config, folder: Path, system) -> None:
    complete_run(run_in(folder, config, TASKS), system, lambda event: None, World())


def test_a_system_is_not_renewed_to_what_its_captured_steps_do_not_do() -> None:
    system = system_of("abmll")
    assert not renew(system, run_config("abmll", task_kl_weight=0.5))
    assert not renew(system, run_config("structured"))
    assert not renew(system, run_config("abmll", likelihood={"kind": "letter"}))
    assert renew(system, run_config("abmll", std_lr=1e-2, outer_lr=1e-2))
    assert system.training.outer.groups[0].lr == 1e-2


def test_every_example_is_answered_once_by_what_was_not_adapted_to_it() -> None:
    examples, log = TASKS[0].train[:10], []

    def adapt(task: Task, plan: AdaptationPlan) -> None:
        assert plan.examples == len(task.train) == 8
        assert plan.steps == 3
        log.append({q.id for q in task.train})

    def predict(asked, fitted):
        assert {q.id for q in fitted} == log[-1]
        assert not log[-1] & {q.id for q in asked}
        return [tuple(Prediction(q.id, q.answer, (len(log) / 10, 1 - len(log) / 10)) for q in asked)] * 2

    rows = held_out(adapt, predict, TASKS[0], examples, AdaptationPlan(10, 3), 5)
    assert len(log) == 5
    assert len(rows) == 2
    assert [p.id for p in rows[0]] == [q.id for q in examples]


def test_a_comparison_with_folds_writes_held_out_rows_and_they_set_the_temperature(tmp_path: Path) -> None:
    config = run_config("abmll", adaptation={"examples": 6, "steps": 2, "folds": 3, "test_questions": 4, "samples": 2})
    task = Task("unseen", TASKS[1].train, TASKS[1].test)
    folders = [tmp_path / name / "seed-0" / "predictions" for name in ("abmll", "abmll_mean")]
    run = run_in(tmp_path / "abmll" / "seed-0", config, TASKS[:1], (task,), predictions=folders, curve=2)
    complete(run)
    assert is_complete(run)
    for name in ("abmll", "abmll_mean"):
        start, file = sorted((tmp_path / name / "seed-0" / "predictions").glob("examples-*/draw-0/*.jsonl"))
        assert not read_predictions(start).held_out_rows, "at the end of training alone"
        found = read_predictions(file)
        assert [p.id for p in found.held_out_rows] == [p.id for p in found.adaptation_rows]
        assert found.held_out_rows != found.adaptation_rows
        assert score(found).temperature_cv is not None
        (before,) = (tmp_path / name / "seed-0" / "predictions").glob("before-adaptation/draw-0/*.jsonl")
        assert not read_predictions(before).held_out_rows


def test_scores_by_the_held_out_temperature() -> None:
    rows = (Prediction("a", 0, (0.9, 0.1)),)
    held = tuple(Prediction(str(i), int(i == 3), (0.9, 0.1)) for i in range(4))  # right 3 times in 4: T = 2
    learned = (Prediction("x", 0, (0.9, 0.1)),)
    found = score(Predictions("s", "t", 0, 0, 0, rows, learned, held_out_rows=held))
    assert found.temperature_cv == pytest.approx(2.0, rel=1e-3)
    assert found.nll_scaled_cv == pytest.approx(-math.log(0.75), rel=1e-3)
    assert found.temperature < 0.1  # what was learned asks for far more confidence


def test_files_without_held_out_rows_are_as_they_were(tmp_path: Path) -> None:
    rows = (Prediction("a", 0, (0.9, 0.1)),)
    plain, held = (Predictions("s", "t", 0, 0, 0, rows, rows, held_out_rows=h) for h in ((), rows))
    for found in (plain, held):
        found.write(tmp_path / "f.jsonl")
        assert read_predictions(tmp_path / "f.jsonl") == found
        counts = '"row_counts": [1, 1]' if found is plain else '"row_counts": [1, 1, 1]'
        assert counts in (tmp_path / "f.jsonl").read_text()


def test_examples_in_the_prompt_are_prompts_with_their_answers() -> None:
    encoder = Encoder(tiny_tokenizer(), max_tokens=400)
    first, second, asked = questions(3, task=2)
    found = encoder.with_examples(asked, (first, second))
    text = "\n\n".join(f"{encoder.prompt(q)} {q.choices[q.answer]}" for q in (first, second))
    assert encoder.prompt(found) == f"{text}\n\n{encoder.prompt(asked)}"
    assert (found.id, found.choices, found.answer) == (asked.id, asked.choices, asked.answer)
    assert encoder.with_examples(replace(asked, group="g"), (first, second)).group == "g", "of the task, not the prompt"
    letters = Encoder(tiny_tokenizer(), "letter", max_tokens=400)
    assert f"Answer: {'ABCD'[first.answer]}\n\n" in letters.prompt(letters.with_examples(asked, (first,)))


def test_only_examples_that_fit_are_in_the_prompt() -> None:
    asked, *examples = questions(9, task=2)
    room = Encoder(tiny_tokenizer(), max_tokens=10_000)
    size = room(room.with_examples(asked, examples[:3])).tokens
    tight = Encoder(tiny_tokenizer(), max_tokens=size + 2)
    found = tight.with_examples(asked, examples)
    assert 2 <= found.context.count("Answer:") < len(examples)
    assert not tight(found).truncated
    with pytest.raises(AbmllError, match="in_context"):
        Encoder(tiny_tokenizer(), template="chat").with_examples(asked, examples)


def test_in_context_is_a_system_of_a_comparison(tmp_path: Path) -> None:
    settings = {"examples": 6, "steps": 0, "folds": 3, "test_questions": 4, "in_context": True}
    config = run_config("pretrained", adaptation=settings, likelihood={"max_tokens": 500})
    task = Task("unseen", TASKS[1].train, TASKS[1].test)
    complete(run_in(tmp_path / "icl" / "seed-0", config, TASKS[:1], (task,)))
    (file,) = (tmp_path / "icl" / "seed-0" / "predictions").glob("examples-*/draw-0/*.jsonl")
    (before,) = (tmp_path / "icl" / "seed-0" / "predictions").glob("before-adaptation/draw-0/*.jsonl")
    found = read_predictions(file)
    assert len(found.held_out_rows) == 6
    assert found.rows == read_predictions(before).rows  # nothing is learned: the examples are in the prompt in both


def test_wider_steps_are_the_same_steps() -> None:
    narrow, wide = (build_system(run_config("abmll"), tiny_base()) for _ in range(2))
    object.__setattr__(narrow.batcher, "buckets", True)
    object.__setattr__(wide.batcher, "buckets", True)
    object.__setattr__(wide.batcher, "least", 128)
    (a,), (b,) = (system.batcher(questions(2)) for system in (narrow, wide))
    assert (a.input_ids.shape[1], b.input_ids.shape[1]) == (16, 128)
    for system in (narrow, wide):
        scramble(system)
    losses = [s.method.inner_loss(batch, key_of(0)).nll.detach() for s, batch in ((narrow, a), (wide, b))]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)


def test_every_example_is_in_the_prompt_where_there_is_room() -> None:
    encoder = Encoder(tiny_tokenizer(), max_tokens=10_000)
    asked, *examples = questions(13, task=2)
    text = "".join(f"{encoder.prompt(q)} {q.choices[q.answer]}\n\n" for q in examples)
    assert len(examples) == 12
    assert encoder.prompt(encoder.with_examples(asked, examples)) == text + encoder.prompt(asked)


def test_each_draw_of_a_comparison_adapts_on_examples_of_its_own(tmp_path: Path) -> None:
    settings = {"examples": 6, "steps": 2, "draws": 3, "folds": 3, "test_questions": 2, "samples": 2}
    task = Task("unseen", TASKS[1].train, TASKS[1].test)
    complete(run_in(tmp_path / "lora" / "seed-0", run_config("lora", adaptation=settings), TASKS[:1], (task,)))
    files = [read_predictions(*tmp_path.glob(f"lora/seed-0/predictions/examples-*/draw-{n}/*.jsonl")) for n in range(3)]
    for number, found in enumerate(files):
        taken, _ = adaptation_batches(task, examples=6, steps=2, batch_size=2, seed=0, draw=number)
        assert {p.id for p in found.adaptation_rows} == {p.id for p in found.held_out_rows} == {q.id for q in taken}
    assert len({frozenset(p.id for p in found.adaptation_rows) for found in files}) == 3
    assert len({found.rows[0].probabilities for found in files}) == 3, "other examples, other answers"


def test_a_question_with_examples_is_encoded_as_one_that_has_them_in_its_context() -> None:
    asked, *examples = questions(5, task=2)
    fields = (asked.id, asked.question, asked.choices, asked.answer, asked.context, asked.location, asked.group)
    for tokens in (200, 10_000):
        encoder = Encoder(tiny_tokenizer(), max_tokens=tokens)
        shown = encoder(QuestionWithExamples(*fields, tuple(examples)))
        assert shown == encoder(encoder.with_examples(asked, examples))
        assert encoder(asked).tokens < shown.tokens <= tokens
        assert encoder(QuestionWithExamples(*fields)).prefix == encoder(asked).prefix, "none to show"
