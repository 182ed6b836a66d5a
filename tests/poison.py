"""A tiny model in which one sign is poison: whatever row holds it comes out as NaN, and no other row does.

The embedding of the sign's token is NaN. That is a real number that is not finite, at a real place, on any processor:
no test has to hope that something overflows.
"""

from dataclasses import replace
from typing import Any

import torch

from abmll.models import LanguageModel, load_model
from abmll.question import Question, Task
from tests.systems import tiny_base
from tests.tiny import tiny_tokenizer

SIGN = "~"
EMBEDDING = "model.embed_tokens.weight"


def token() -> int:
    """The sign's own token."""
    (found,) = tiny_tokenizer()(SIGN)["input_ids"]
    return int(found)


@torch.no_grad()
def poison(base: LanguageModel) -> LanguageModel:
    """Poison a loaded model."""
    base.model.get_parameter(EMBEDDING)[token()] = float("nan")
    return base


def poisoned_base() -> LanguageModel:
    """The tiny model as a loaded base model, poisoned."""
    return poison(tiny_base())


def poisoned_load(*arguments: Any, **options: Any) -> LanguageModel:
    """As `load_model`, of a tiny model in a folder; to stand in for it in `abmll.systems.build`."""
    return poison(load_model(*arguments, **options))


def marked(question: Question) -> Question:
    """The question with the sign in it."""
    return replace(question, question=f"{question.question} {SIGN}")


def mark(task: Task, *, train: tuple[int, ...] = (), test: tuple[int, ...] = ()) -> Task:
    """A task with the sign in some of its rows."""
    rows = {"train": train, "test": test}
    parts = {
        name: tuple(marked(row) if i in places else row for i, row in enumerate(getattr(task, name)))
        for name, places in rows.items()
    }
    return replace(task, **parts)
