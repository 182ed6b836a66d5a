"""Examples in the prompt: what a model can do with them without learning anything."""

from collections.abc import Sequence

from abmll.prompts.encode import Encoder
from abmll.question import Question


def with_examples(question: Question, examples: Sequence[Question], encoder: Encoder) -> Question:
    """The question with as many of the examples as fit in front of its context, see `Encoder.with_examples`.

    An encoder does the same by itself with a `QuestionWithExamples`.

    Args:
        question: to be asked.
        examples: labelled ones.
        encoder: its template, likelihood and `max_tokens` count.

    Raises:
        AbmllError: an example has no answer, or the template is a chat.
    """
    return encoder.with_examples(question, examples)
