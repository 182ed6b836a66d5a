"""`likelihood.kind: channel`: the text after each choice, against texts written by hand and plain cross-entropy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from abmll import load_system
from abmll.errors import AbmllError
from abmll.likelihood import ChoiceLikelihood
from abmll.prompts.collate import collate
from abmll.prompts.encode import Encoder
from abmll.question import Question, Task
from abmll.systems.plans import AdaptationPlan, PredictionPlan, resolve
from tests.systems import TASKS, key_of, questions, run_config, same, scramble, system_of, tiny_base, train, values
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZERS = {kind: tiny_tokenizer(kind) for kind in ("bpe", "sentencepiece")}
QUESTIONS = (  # choices that begin alike, of several tokens, contexts or none
    Question("a", "is the sun over the river?", ("yes", "no"), 1),
    Question("b", "which  one?", ("the river", "the garden", "the", "Zürich 🦆"), 3, "A moon.\nThe horse walked."),
    Question("c", "right?", ("true", "false", "right or left"), 2, "The horse walked past the window."),
)
CLOSE = 3e-4
MEAN = PredictionPlan("mean", 1)


def texts_of(question: Question, choice: str) -> tuple[str, str]:
    """What is given and what is scored, written a second time."""
    context = f"{question.context}\n\n" if question.context else ""
    return f"Answer: {choice}\n", f"{context}Question: {question.question}"


def shown(examples: tuple[Question, ...]) -> str:
    return "".join("".join(texts_of(e, e.choices[e.answer or 0])) + "\n\n" for e in examples)


def cross_entropy(model: nn.Module, tokenizer: Any, given: str, scored: str) -> tuple[Tensor, int]:
    """Mean over the scored tokens, by the model's own loss; and how many there are."""
    ids, first = tokenizer(given + scored)["input_ids"], len(tokenizer(given)["input_ids"])
    assert ids[:first] == tokenizer(given)["input_ids"], "no token across the seam, in these texts"
    labels = torch.tensor([[-100] * first + ids[first:]])
    return model(input_ids=torch.tensor([ids]), labels=labels).loss, len(ids) - first


def by_hand(
    model: nn.Module, tokenizer: Any, question: Question, normalisation: str, examples: tuple[Question, ...] = ()
) -> Tensor:
    """What each choice scores."""
    scores = []
    for choice in question.choices:
        given, scored = texts_of(question, choice)
        loss, count = cross_entropy(model, tokenizer, shown(examples) + given, scored)
        scores.append(-loss * count / {"sum": 1, "token": count, "byte": len(scored.encode())}[normalisation])
    return torch.stack(scores)


@pytest.mark.parametrize("share_prefix", [True, False], ids=["packed", "apart"])
@pytest.mark.parametrize("normalisation", ["sum", "token", "byte"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@torch.no_grad()
def test_choices_score_what_the_text_after_them_does(tokenizer: str, normalisation: str, share_prefix: bool) -> None:
    model = tiny_model()
    encoder = Encoder(TOKENIZERS[tokenizer], "channel", normalisation)
    asked = [encoder(question) for question in QUESTIONS]
    likelihood = ChoiceLikelihood(model, "channel", 2.0)
    for encoded in (asked, [replace(one, tree=True) for one in asked]):
        batch = collate(encoded, share_prefix=share_prefix)
        found = likelihood.scores(batch)
        assert found.vocabulary is None
        expected = [by_hand(model, TOKENIZERS[tokenizer], question, normalisation) for question in QUESTIONS]
        for row, scores in zip(found.log_probabilities, expected, strict=True):
            torch.testing.assert_close(row[: len(scores)], (scores / 2).log_softmax(-1), atol=CLOSE, rtol=0)
            assert torch.isneginf(row[len(scores) :]).all()
        right = [-scores[question.answer] for scores, question in zip(expected, QUESTIONS, strict=True)]
        assert float(likelihood.nll(batch)) == pytest.approx(float(torch.stack(right).mean()), abs=CLOSE)


@torch.no_grad()
def test_summed_it_is_bayes_rule_at_equal_priors() -> None:
    """Against the joint probability of text and choice, in float64."""
    model, question = tiny_model(), QUESTIONS[2]
    joint = by_hand(model, TOKENIZERS["bpe"], question, "sum").double().exp() / len(question.choices)
    encoded = Encoder(TOKENIZERS["bpe"], "channel", "sum")(question)
    (found,) = ChoiceLikelihood(model, "channel").scores(collate([encoded])).log_probabilities.exp()
    torch.testing.assert_close(found.double(), joint / joint.sum(), atol=CLOSE, rtol=0)


def test_metaicl_descends_the_texts_after_the_shots() -> None:
    system = system_of("metaicl", likelihood={"kind": "channel"}, demonstrations=3, inner_steps=2)
    scramble(system)
    episode = resolve(system.config).episodes_of((Task("t", questions(6)),)).draw(0)
    asked = [question for batch in system.batcher.asked(episode) for question in batch]
    raw = [question for batch in episode.batches for question in batch]
    others = [rows for batch in episode.shown for rows in batch]
    model, tokenizer = system.language_model.model, system.language_model.tokenizer
    expected = []
    with torch.no_grad():
        for question, examples in zip(raw, others, strict=True):
            given, scored = texts_of(question, question.choices[question.answer])
            expected.append(cross_entropy(model, tokenizer, shown(examples) + given, scored)[0])
    found = system.method.inner_loss(system.batcher.batch(asked), key_of(0)).nll.detach()
    assert float(found) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


@torch.no_grad()
def test_answers_to_an_unseen_task_are_those_behind_its_examples_in_their_order() -> None:
    system = system_of("metaicl", likelihood={"kind": "channel", "normalisation": "sum"})
    scramble(system)
    examples = system.adapt(TASKS[1], AdaptationPlan(4, 0))
    question = TASKS[1].test[0]
    (answer,) = system.predict((question,), MEAN)
    model, tokenizer = system.language_model.model, system.language_model.tokenizer
    expected = by_hand(model, tokenizer, question, "sum", examples).softmax(-1)
    assert answer.probabilities == pytest.approx(expected.tolist(), abs=CLOSE)
    other = by_hand(model, tokenizer, question, "sum", examples[::-1]).softmax(-1)
    assert other.tolist() != pytest.approx(expected.tolist(), abs=CLOSE)


def test_without_demonstrations_it_is_structured_lora_and_learns(tmp_path: Path) -> None:
    found = {}
    for name, settings in (("structured", {}), ("metaicl", {"demonstrations": 0})):
        config = run_config(name, likelihood={"kind": "channel"}, inner_steps=3, inner_lr=1e-2, **settings)
        system, _ = train(config, tmp_path / name)
        found[name] = values(system, "shared")
    assert same(*found.values())
    cloze, _ = train(run_config("structured", inner_steps=3, inner_lr=1e-2), tmp_path / "cloze")
    assert not same(found["structured"], values(cloze, "shared"))


def test_a_stored_adapter_says_so_and_is_not_read_otherwise(tmp_path: Path) -> None:
    system = system_of("structured", likelihood={"kind": "channel"})
    scramble(system)
    system.save(tmp_path / "adapter")
    rows = questions(3)
    expected = system.predict(rows, MEAN)
    system.close()
    again = load_system(tmp_path / "adapter", tiny_base())
    assert again.config.likelihood.kind == "channel"
    assert again.stored().facts.likelihood.kind == "channel"
    assert again.predict(rows, MEAN) == expected


@pytest.mark.parametrize("cut", ["start", "middle", "end"])
def test_a_long_context_is_cut_and_what_is_left_is_scored(cut: str) -> None:
    tokenizer = TOKENIZERS["bpe"]
    encoder = Encoder(tokenizer, "channel", "byte", max_tokens=60)
    encoder.cut = cut
    question = Question("long", "which way?", ("up", "right or left"), 0, " ".join(f"river{i}" for i in range(60)))
    encoded = encoder(question)
    assert encoded.truncated
    assert question in encoder.truncated
    assert max(len(encoded.prefix) + len(tokens) for tokens in encoded.continuations) <= 60
    texts = {tokenizer.decode(t[g:]) for t, g in zip(encoded.continuations, encoded.given, strict=True)}
    assert len(texts) == 1, "of every choice the same text"
    (text,) = texts
    assert text.endswith("Question: which way?")
    assert ("river0 " in text, "river59\n" in text) == {
        "start": (False, True),
        "middle": (True, True),
        "end": (True, False),
    }[cut]
    assert encoded.lengths == (float(len(text.encode())),) * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood": {"template": "chat"}}, "has a template of its own"),
        ({"likelihood": {"template": "{{ question }}"}}, "has a template of its own"),
        ({"likelihood": {"premise": "N/A"}}, "premise would be taken from all choices alike"),
        ({"likelihood": {"learn_temperature": True}}, "in which the temperature has no part"),
        ({"posterior": {"name": "laplace"}}, "posterior.name=laplace fits a Gaussian to the probabilities"),
        ({"method": {"name": "core"}}, "method.name=core fits a Gaussian to the probabilities"),
    ],
)
def test_what_it_does_not_go_with_is_refused(changes: dict[str, Any], message: str) -> None:
    config = run_config(changes.get("method", {"name": "structured"})["name"]).model_dump(mode="json")
    config["likelihood"] |= {"kind": "channel"} | changes.get("likelihood", {})
    config["posterior"] = changes.get("posterior", config["posterior"])
    with pytest.raises(AbmllError, match=message):
        resolve(type(run_config("structured")).model_validate(config))
