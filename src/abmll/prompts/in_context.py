"""Examples in the prompt: what a model can do with them without learning anything."""

from collections.abc import Sequence
from dataclasses import replace

from abmll.errors import AbmllError
from abmll.prompts.encode import Encoder, MarkedText
from abmll.question import Question

SEPARATOR = "\n\n"


def with_examples(question: Question, examples: Sequence[Question], encoder: Encoder) -> Question:
    """The question with as many of the examples as fit in front of its context, each as its prompt and right answer.

    Examples are taken in their order; one that does not fit any more is left out, a shorter one after it may fit. The
    question's own tokens come first: what is left of `encoder.max_tokens` is for examples.

    Args:
        question: to be asked.
        examples: labelled ones.
        encoder: its template, likelihood and `max_tokens` count.

    Raises:
        AbmllError: an example has no answer, or the template is a chat.
    """
    if encoder.chat:
        raise AbmllError("adaptation.in_context needs likelihood.template=plain or a template of your own, not chat")
    left = encoder.max_tokens - encoder(question).tokens
    shown = []
    for example in examples:
        text = MarkedText(encoder.example(example) + SEPARATOR)
        size = encoder.count(text)
        if size <= left:
            shown.append(text)
            left -= size
    return replace(question, context=MarkedText("".join(shown) + encoder.marked(question.context)))
