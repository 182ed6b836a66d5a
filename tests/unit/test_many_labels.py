"""Many labels: what they begin with is computed once, whatever their number, and says the same as each by itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import abmll
from abmll.classifier import Classifier
from abmll.likelihood import ChoiceLikelihood
from abmll.prompts.branches import MANY_CHOICES, fed_tokens
from abmll.prompts.collate import collate
from abmll.prompts.encode import LETTERS, EncodedQuestion, Encoder
from abmll.question import Question
from abmll.training.batcher import Batcher
from tests.everyday import place_run
from tests.tiny import tiny_model, tiny_tokenizer

VERBS, THINGS = ("cancel", "change", "show", "lose", "order", "block"), ("card", "account", "address", "transfer")
LABELS = tuple(f"{verb} the {thing} {number}" for verb in VERBS for thing in THINGS for number in range(1, 7))


def asked(number: int, labels: tuple[str, ...] = LABELS) -> Question:
    return Question(str(number), "Which fits?", labels, number % len(labels), f"text {number}")


def batcher(**options: Any) -> Batcher:
    return Batcher(Encoder(tiny_tokenizer()), torch.device("cpu"), **options)


@pytest.mark.parametrize(
    ("share_labels", "labels", "tree"),
    [("auto", 26, False), ("auto", 27, True), (True, 2, True), (False, 144, False)],
)
def test_labels_share_their_beginnings_where_they_are_more_than_letters(
    share_labels: Any, labels: int, tree: bool
) -> None:
    assert len(LETTERS) == MANY_CHOICES
    (encoded,) = batcher(share_labels=share_labels).encode([asked(0, LABELS[:labels])])
    assert encoded.tree == tree
    assert not batcher(share_prefix=False).encode([asked(0)])[0].tree, "a model without masks has rows of their own"


def test_what_is_computed_grows_slower_than_the_labels() -> None:
    (encoded,) = batcher().encode([asked(0)])
    choices = encoded.continuations
    beginnings = {choice[:length] for choice in choices for length in range(1, len(choice))}
    assert fed_tokens(choices, shared=True) == len(beginnings)
    assert len(beginnings) < fed_tokens(choices, shared=False) / 2
    assert encoded.tokens == len(encoded.prefix) + len(choices) + len(beginnings)
    assert collate([encoded]).input_ids.shape == (1, len(encoded.prefix) + len(beginnings))


@pytest.mark.parametrize("normalisation", ["sum", "token", "byte"])
def test_a_tree_of_labels_gives_the_scores_and_gradients_of_each_label_by_itself(normalisation: Any) -> None:
    model, found = tiny_model().double(), []
    for options in ({"share_labels": True}, {"share_labels": False}, {"share_prefix": False}):
        made = replace(batcher(**options), encoder=Encoder(tiny_tokenizer(), normalisation=normalisation))
        batch, likelihood = made.batch([asked(n) for n in (0, 50)]), ChoiceLikelihood(model, learn_temperature=True)
        likelihood.nll(batch).backward()
        found.append((likelihood.scores(batch).log_probabilities.detach(), likelihood.log_temperature.grad))
    for scores, gradient in found[:2]:
        torch.testing.assert_close(scores, found[2][0], atol=1e-4, rtol=0)
        torch.testing.assert_close(gradient, found[2][1], atol=1e-4, rtol=0)


def test_a_choice_that_is_the_beginning_of_another_is_read_in_its_middle() -> None:
    both = EncodedQuestion((5, 6), ((7,), (7, 8), (7, 8, 9)), (1.0, 2.0, 3.0), 0, 1, False, tree=True)
    batch = collate([both])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8]]
    assert batch.causal, "one chain, which needs no mask"
    assert batch.target_read.tolist() == [0, 0, 1, 0, 1, 2]


@pytest.mark.parametrize("sampler", ["weight", "activation"])
def test_draws_answer_many_labels_alone_as_in_a_batch(sampler: Any) -> None:
    """Noise goes by the question and the place of a token in it, not by the batch."""
    base = abmll.models.random_model("tiny-llama", device="cpu")
    sections = {"method": {"name": "abmll", "std_init": 0.1}, "adaptation": {"sampler": sampler, "samples": 2}}
    system = abmll.build_system(sections, replace(base, tokenizer=tiny_tokenizer()))
    together = system.answer([asked(n) for n in range(3)])
    for number, answer in enumerate(together):
        (alone,) = system.answer([asked(number)])
        np.testing.assert_allclose(answer.probabilities, alone.probabilities, atol=1e-6)
    system.close()


def test_151_labels_are_fitted_saved_loaded_and_predicted(tmp_path: Path) -> None:
    labels = [*LABELS, *(f"out of scope {n}" for n in range(7))]
    texts = [f"please {label}" for label in labels]
    run = place_run(tmp_path) / "runs" / "mine"
    fitted = Classifier(run, steps=2, temperature="none").fit(texts, labels)  # folds: five times as long
    assert len(fitted.classes_) == 151
    probabilities = fitted.predict_proba(texts[:3])
    assert probabilities.shape == (3, 151)
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    fitted.save(tmp_path / "saved")
    loaded = Classifier.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.predict_proba(texts[:3]), probabilities, atol=1e-6)
    assert set(loaded.predict(texts[:3])) <= set(labels)
