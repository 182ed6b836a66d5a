"""`likelihood.pieces`: long contexts answered by parts of them, whose log-probabilities are averaged."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from abmll.models import LanguageModel, random_model
from abmll.prompts.encode import Encoder
from abmll.prompts.pieces import pieces_of
from abmll.question import Question
from abmll.systems.build import build_system
from abmll.systems.plans import PredictionPlan
from abmll.systems.system import System
from tests.tiny import tiny_tokenizer

WORDS = ["the", "river", "and", "the", "garden", "in", "the", "rain", "or", "the", "snow"]
MEAN = PredictionPlan("mean", 1)


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    return random_model("tiny-llama", device="cpu")


def asked(words: int, number: int = 0) -> Question:
    context = " ".join(WORDS[(i + number) % len(WORDS)] + str(i) for i in range(words))
    return Question(str(number), "Which?", ("river", "the garden", "snow"), None, context)


def system_on(base: LanguageModel, **likelihood: object) -> System:
    sections = {"method": {"name": "pretrained"}, "likelihood": {"max_tokens": 200, **likelihood}}
    return build_system(sections, base)


@pytest.mark.parametrize("kind", ["cloze", "letter"])
@pytest.mark.parametrize("words", [40, 41, 90, 200])
def test_pieces_are_the_whole_text_in_order_as_few_as_fit(kind: str, words: int) -> None:
    encoder = Encoder(tiny_tokenizer("bpe"), "letter" if kind == "letter" else "cloze", max_tokens=120)
    encoder.cut = "middle"
    question = asked(words)
    found = pieces_of(encoder, question, most=100)
    assert " ".join(piece.context for piece in found) == question.context
    assert not any(encoder(piece).truncated for piece in found)
    assert not encoder.truncated
    counts = [len(piece.context.split()) for piece in found]
    assert max(counts) - min(counts) <= 1
    if len(found) > 2:
        split, count = question.context.split(), len(found) - 1
        bounds = [number * words // count for number in range(count + 1)]
        fewer = [" ".join(split[start:end]) for start, end in pairwise(bounds)]
        assert any(encoder(replace(question, context=text)).truncated for text in fewer)


def test_of_too_many_pieces_the_first_the_last_and_some_between_are_read() -> None:
    encoder = Encoder(tiny_tokenizer("bpe"), max_tokens=60)
    question = asked(400)
    every = pieces_of(encoder, question, most=1000)
    assert question not in encoder.truncated
    some = pieces_of(encoder, question, most=3)
    assert (some[0], some[-1]) == (every[0], every[-1])
    assert len(some) == 3
    assert encoder.truncated == {question}


def test_what_fits_and_what_never_does_is_one_question() -> None:
    encoder = Encoder(tiny_tokenizer("bpe"), max_tokens=60)
    assert pieces_of(encoder, asked(3), most=4) == (asked(3),)
    crowded = replace(asked(50), question="the river " * 60)
    assert pieces_of(encoder, crowded, most=4) == (crowded,)
    assert encoder.truncated == {crowded}
    assert pieces_of(encoder, asked(300), most=1) == (asked(300),)


@pytest.mark.parametrize("kind", ["cloze", "letter"])
def test_answers_are_the_mean_log_probabilities_of_the_pieces(base: LanguageModel, kind: str) -> None:
    questions = [asked(words, number) for number, words in enumerate((3, 120, 5, 300))]
    cutting = system_on(base, kind=kind)
    pieces = [pieces_of(cutting.batcher.encoder, question, most=3) for question in questions]
    assert [len(one) for one in pieces] == [1, 3, 1, 3]
    flat = [piece for one in pieces for piece in one]
    stated = iter([answer.probabilities for answer in cutting.answer(flat, MEAN)])
    expected = [softmax(np.mean([np.log(next(stated)) for _ in one], axis=0)) for one in pieces]
    cut = [answer.probabilities for answer in cutting.answer(questions, MEAN)]
    cutting.close()
    pooling = system_on(base, kind=kind, pieces=3)
    found = [answer.probabilities for answer in pooling.answer(questions, MEAN)]
    predicted = [row.probabilities for row in pooling.predict(questions, MEAN)]
    pooling.close()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(predicted, found, atol=1e-6)
    np.testing.assert_allclose(cut[0], found[0], atol=1e-6)
    assert not np.allclose(cut[3], found[3], atol=1e-5)


def test_each_draw_is_pooled_by_itself(base: LanguageModel) -> None:
    system = build_system({"likelihood": {"max_tokens": 200, "pieces": 4}, "method": {"name": "abmll"}}, base)
    plan = PredictionPlan("weight", 3)
    question = asked(120)
    pieces = pieces_of(system.batcher.encoder, question, most=4)
    system.batcher = replace(system.batcher, pieces=1)
    draws = []
    for sample in range(3):
        only = PredictionPlan("weight", sample + 1)
        tables = np.array([row.probabilities for row in system.predict(pieces, only)]) * (sample + 1)
        draws.append(tables)
    single = [draws[0], draws[1] - draws[0], draws[2] - draws[1]]
    expected = np.mean([softmax(log_softmax(np.log(one), axis=1).mean(0)) for one in single], axis=0)
    system.batcher = replace(system.batcher, pieces=4)
    np.testing.assert_allclose(system.predict([question], plan)[0].probabilities, expected, atol=1e-5)
    system.close()
