"""Domain-conditional PMI: what a choice scores after a premise is subtracted from what it scores after the question."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from abmll.adapters.attach import attach
from abmll.adapters.facts import LikelihoodFacts
from abmll.config import RunConfig
from abmll.errors import AbmllError
from abmll.exporting.calibrated import CALIBRATION_FILE, export_calibrated
from abmll.files import read_sealed_json
from abmll.likelihood import ChoiceLikelihood
from abmll.metrics.predictions import Prediction
from abmll.prompts.batches import ChoiceBatch
from abmll.prompts.collate import collate, sorted_batches
from abmll.prompts.encode import EncodedQuestion, Encoder
from abmll.question import Question, without_content
from abmll.runs.estimate import estimate
from abmll.systems.adapters import use_adapter
from abmll.systems.plans import PredictionPlan, resolve
from tests.systems import run_config, system_of
from tests.tiny import tiny_model, tiny_tasks, tiny_tokenizer

MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()
LABELS = ("good", "fair to poor", "true")
QUESTIONS = (
    Question("a", "the sun is over the river", LABELS, 0),
    Question("b", "a moon above the garden and the stone house", LABELS, 2, "snow on the mountain"),
    Question("c", "the letter was on the bread", ("a horse", "the window was on the mountain"), 1),
    Question("d", "rain", LABELS, 1),
)
PREMISES = ("", "N/A")


def _tokens_of(prompt: str, choice: str) -> tuple[list[int], int]:
    whole, alone = (TOKENIZER(text)["input_ids"] for text in (f"{prompt} {choice}", prompt))
    assert whole[: len(alone)] == alone
    return whole, len(alone)


def _slow_score(model: nn.Module, prompt: str, choice: str, normalisation: str) -> Tensor:
    """log p(choice | prompt) over its length, one choice at a time."""
    ids, start = _tokens_of(prompt, choice)
    table = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    total = torch.stack([table[i - 1, ids[i]] for i in range(start, len(ids))]).sum()
    return total / {"sum": 1, "token": len(ids) - start, "byte": len(choice.encode())}[normalisation]


def _slow_pmi(model: nn.Module, question: Question, premise: str, normalisation: str = "token") -> Tensor:
    head = f"{question.context}\n\n" if question.context else ""
    asked, empty = f"{head}Question: {question.question}\nAnswer:", f"Question: {premise}\nAnswer:"
    gaps = [
        _slow_score(model, asked, c, normalisation) - _slow_score(model, empty, c, normalisation)
        for c in question.choices
    ]
    return torch.stack(gaps)


def _batch(
    questions: tuple[Question, ...] = QUESTIONS,
    premise: str | None = "",
    normalisation: Any = "token",
    share_prefix: bool = True,
    **options: Any,
) -> ChoiceBatch:
    encoder = Encoder(TOKENIZER, "cloze", normalisation, premise=premise)
    return collate([encoder(q) for q in questions], share_prefix=share_prefix, **options)


def _scores(batch: ChoiceBatch, model: nn.Module = MODEL) -> Tensor:
    with torch.no_grad():
        return ChoiceLikelihood(model).scores(batch).log_probabilities


@pytest.mark.parametrize("premise", PREMISES)
@pytest.mark.parametrize("normalisation", ["sum", "token", "byte"])
@pytest.mark.parametrize("options", [{}, {"share_prefix": False}, {"buckets": True}])
def test_scores_equal_log_probabilities_of_plain_transformers(
    premise: str, normalisation: str, options: dict[str, Any]
) -> None:
    got = _scores(_batch(premise=premise, normalisation=normalisation, **options))
    for row, question in enumerate(QUESTIONS):
        expected = _slow_pmi(MODEL, question, premise, normalisation).log_softmax(0)
        torch.testing.assert_close(got[row, : len(question.choices)], expected, atol=2e-4, rtol=1e-4)
        assert bool((got[row, len(question.choices) :] == -torch.inf).all())


def test_a_premise_that_says_the_same_of_every_choice_changes_nothing() -> None:
    encoder = Encoder(TOKENIZER)
    plain = [encoder(q) for q in QUESTIONS]
    same = [
        replace(q, premise=EncodedQuestion((5, 6), ((7, 8),) * len(q.lengths), (2.0,) * len(q.lengths), -1, 9, False))
        for q in plain
    ]
    torch.testing.assert_close(_scores(collate(same)), _scores(collate(plain)), atol=1e-5, rtol=1e-5)


def test_a_question_that_is_its_premise_is_answered_uniformly() -> None:
    question = Question("a", "N/A", LABELS, 0)
    expected = torch.full((1, 3), -torch.tensor(3.0).log().item())
    torch.testing.assert_close(_scores(_batch((question,), "N/A")), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_choices_in_another_order_have_the_same_probabilities(share_prefix: bool) -> None:
    order = (2, 0, 1)
    turned = tuple(replace(q, choices=tuple(LABELS[i] for i in order)) for q in QUESTIONS if q.choices == LABELS)
    straight = tuple(q for q in QUESTIONS if q.choices == LABELS)
    got, expected = (_scores(_batch(rows, share_prefix=share_prefix)) for rows in (turned, straight))
    torch.testing.assert_close(got, expected[:, list(order)], atol=1e-5, rtol=1e-5)


def test_questions_with_the_same_choices_share_one_premise_in_the_same_forward_pass() -> None:
    labelled = tuple(replace(QUESTIONS[0], id=str(i), question=f"rain {i}") for i in range(6))
    plain, shared, mixed = _batch(labelled, None), _batch(labelled), _batch((*labelled, QUESTIONS[2]))
    assert [batch.input_ids.shape[0] for batch in (plain, shared, mixed)] == [6, 7, 9]
    assert [batch.premises for batch in (plain, shared, mixed)] == [0, 1, 2]
    calls: list[torch.Size] = []
    hook = MODEL.model.register_forward_pre_hook(
        lambda module, given, named: calls.append(named["input_ids"].shape), with_kwargs=True
    )
    try:
        for batch in (plain, shared, mixed):
            _scores(batch)
    finally:
        hook.remove()
    assert calls == [batch.input_ids.shape for batch in (plain, shared, mixed)]


def test_a_score_does_not_depend_on_the_questions_beside_it() -> None:
    together = _scores(_batch())
    for row, question in enumerate(QUESTIONS):
        alone = _scores(_batch((question,)))
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("buckets", [True, False])
def test_a_repeated_batch_has_its_scores_as_often(buckets: bool) -> None:
    batch = _batch(buckets=buckets)
    repeated = batch.repeat(3)
    assert repeated.premises == 3 * batch.premises
    assert repeated.signature == batch.repeat(3).copy_(repeated).signature
    torch.testing.assert_close(_scores(repeated), _scores(batch).repeat(3, 1), atol=1e-6, rtol=1e-6)


def test_the_gradient_goes_through_the_premise_too() -> None:
    model = tiny_model()
    adapters = attach(model, rank=3, alpha=6.0)
    parameters = adapters.parameters("task", "mean")
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    tables = [_slow_pmi(model, q, "N/A").log_softmax(0) for q in QUESTIONS]
    slow = -torch.stack([table[q.answer] for table, q in zip(tables, QUESTIONS, strict=True)]).mean()
    expected = torch.autograd.grad(slow, parameters)
    got = torch.autograd.grad(ChoiceLikelihood(model).nll(_batch(premise="N/A")), parameters)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=2e-3)
    without = torch.autograd.grad(ChoiceLikelihood(model).nll(_batch(premise=None)), parameters)
    assert not torch.allclose(got[0], without[0], atol=1e-3)


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("buckets", [True, False])
def test_batches_keep_to_their_size_with_premises(share_prefix: bool, buckets: bool) -> None:
    tasks = tiny_tasks(3)
    encoder = Encoder(TOKENIZER, premise="")
    encoded = [encoder(q) for task in tasks for q in task.train]
    options = {"share_prefix": share_prefix, "buckets": buckets}
    batches = list(sorted_batches(encoded, 600, **options))
    assert sorted(i for batch in batches for i in batch) == list(range(len(encoded)))
    sizes = [collate([encoded[i] for i in batch], **options).input_ids.numel() for batch in batches]
    assert max(size for size, batch in zip(sizes, batches, strict=True) if len(batch) > 1) <= 600
    assert max(map(len, batches)) > 1


def test_questions_with_and_without_a_premise_are_no_batch() -> None:
    encoders = Encoder(TOKENIZER), Encoder(TOKENIZER, premise="")
    with pytest.raises(ValueError, match="some have none"):
        collate([encoder(QUESTIONS[0]) for encoder in encoders])


def test_letters_and_examples_in_the_prompt_are_refused_by_name() -> None:
    with pytest.raises(AbmllError, match=r"likelihood\.premise with likelihood\.kind=letter"):
        resolve(run_config("reptile", likelihood={"kind": "letter", "premise": ""}))
    with pytest.raises(AbmllError, match=r"likelihood\.premise with likelihood\.kind=letter"):
        Encoder(TOKENIZER, "letter", premise="")
    with pytest.raises(AbmllError, match=r"adaptation\.in_context with likelihood\.premise"):
        resolve(run_config("reptile", likelihood={"premise": ""}, adaptation={"in_context": True}))


def test_a_system_adapts_and_predicts_by_it(caplog: pytest.LogCaptureFixture) -> None:
    task = tiny_tasks(1)[0]
    system = system_of("reptile", likelihood={"premise": "N/A"})
    before = system.predict(task.test)
    for prediction, question in zip(before, task.test, strict=True):
        expected = _slow_pmi(MODEL, question, "N/A").softmax(0)
        assert prediction.probabilities == pytest.approx(expected.tolist(), abs=1e-4)
    (asked,) = system.predict((without_content(task.test[0].choices, "N/A"),))
    assert asked.probabilities == pytest.approx([1 / len(asked.probabilities)] * len(asked.probabilities))
    unlearned = _nll(system.predict(task.train))
    system.adapt(task)
    assert _nll(system.predict(task.train)) < unlearned
    stored = system.stored()
    assert stored.facts.likelihood.premise == "N/A"
    with caplog.at_level(logging.WARNING):
        use_adapter(stored, system_of("reptile"), "here")
    assert "likelihood.premise=N/A" in caplog.text


def _nll(predictions: tuple[Prediction, ...]) -> float:
    return -sum(math.log(p.probabilities[p.answer]) for p in predictions) / len(predictions)


def test_facts_without_a_premise_are_written_as_early_versions_read_them() -> None:
    assert "premise" not in LikelihoodFacts().model_dump_json()
    assert LikelihoodFacts.model_validate_json(LikelihoodFacts().model_dump_json()) == LikelihoodFacts()
    facts = LikelihoodFacts(premise="")
    assert facts.model_dump()["premise"] == ""
    assert LikelihoodFacts.model_validate_json(facts.model_dump_json()) == facts


@pytest.mark.parametrize("premise", [None, "N/A"])
def test_an_exported_mean_says_to_its_server_what_to_subtract(tmp_path: Path, premise: str | None) -> None:
    system = system_of("abmll", likelihood={"premise": premise})
    plan = PredictionPlan("weight", 2)
    export_calibrated(system.stored(), system, tiny_tasks(1)[0].test[:4], tmp_path / "served", plan=plan)
    written = read_sealed_json(tmp_path / "served" / CALIBRATION_FILE)
    assert written["likelihood"].get("premise") == premise
    assert ("`premise`" in written["use"]) == (premise is not None)
    assert ("premise 'N/A'" in (tmp_path / "served" / "README.md").read_text()) == (premise is not None)


def test_an_estimate_counts_the_premises() -> None:
    without, with_premise = (
        estimate(resolve(RunConfig.model_validate({"model": {"shape": "tiny-llama"}, "likelihood": {"premise": p}})))
        for p in (None, "")
    )
    assert with_premise.activation_bytes == 2 * without.activation_bytes
    assert with_premise.weight_bytes == without.weight_bytes
