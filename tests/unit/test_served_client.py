"""examples/served_client.py: its prompts and its probabilities are the library's own."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abmll.prompts.encode import Encoder
from abmll.question import Question
from abmll.systems.temperature import TaskTemperature
from tests.tiny import tiny_tokenizer

CLIENT = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "served_client.py"))
LEARNED = {"log_temperatures": (-0.5, 0.4, 1.5), "weights": (0.2, 0.5, 0.3)}


@pytest.mark.parametrize("context", ["", "It is noon.\nSo they say."])
def test_its_prompt_is_the_plain_template_of_letters(context: str) -> None:
    question = Question("q", "Is it late?", ("no", "yes", "who knows"), None, context)
    row = {"question": question.question, "choices": question.choices, "context": context}
    assert CLIENT["prompt_of"](row) == Encoder(tiny_tokenizer(), "letter").prompt(question)


def test_its_probabilities_are_those_of_the_task_s_temperature() -> None:
    x, w = np.array(LEARNED["log_temperatures"]), np.array(LEARNED["weights"])
    about: dict[str, Any] = {"prior": {"mu": 1.0, "sd": 1.5, "tasks": 0}, "sampler": "mean", "likelihood": {}}
    numbers = {"mean": float(w @ x), "sd": float(np.sqrt(w @ (x - w @ x) ** 2))}
    learned = TaskTemperature.model_validate({"learned_from": "rows", "rows": 9, **about, **numbers, **LEARNED})
    scores = [-1.2, -0.3, -4.0, -60.0]
    stated = CLIENT["softmax"]([score / 1.7 for score in scores])
    found = CLIENT["probabilities"](scores, {"temperature": 1.7, "task_temperature": LEARNED})
    np.testing.assert_allclose(found, learned.apply([stated])[0], atol=1e-12)
    assert CLIENT["probabilities"](scores, {"temperature": 1.7, "task_temperature": None}) == stated
