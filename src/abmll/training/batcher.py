"""Questions -> batches on the model's device, in micro-batches where memory asks for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch

from abmll.errors import AbmllError
from abmll.prompts.batches import ChoiceBatch
from abmll.prompts.branches import MANY_CHOICES
from abmll.prompts.collate import collate, sorted_batches
from abmll.prompts.encode import EncodedQuestion, Encoder
from abmll.prompts.pieces import pieces_of
from abmll.question import Question, QuestionWithExamples
from abmll.tasks.episodes import Episode


@dataclass(frozen=True)
class Batcher:
    """Encodes and pads questions.

    Attributes:
        encoder: question -> token ids, cached.
        device: where batches go.
        micro_batch: most questions of one forward and backward pass; None: the whole batch at once.
        share_prefix: see `collate`.
        buckets: pad to few shapes, for passes that are captured once per shape and replayed; see `collate`.
        least: the smallest of these for gradient steps.
        share_labels: choices share the tokens that they begin with; `auto`: those of questions with more choices than
            there are letters.
        pieces: most of them that a long context is answered by, see `pieces_of`; 1: it is cut.
        examples: labelled questions that stand before every question in its prompt, as many as fit; () for none.
    """

    encoder: Encoder
    device: torch.device
    micro_batch: int | None = None
    share_prefix: bool = True
    buckets: bool = False
    least: int = 1
    share_labels: Literal["auto"] | bool = "auto"
    examples: tuple[Question, ...] = ()
    pieces: int = 1

    def __call__(self, questions: Sequence[Question]) -> list[ChoiceBatch]:
        """The batches of one gradient step: one, or as many as `micro_batch` makes."""
        size = self.micro_batch or max(1, len(questions))
        return [self.batch(questions[i : i + size], least=self.least) for i in range(0, len(questions), size)]

    def alike(self, questions: Sequence[Question], most_tokens: int) -> list[list[int]]:
        """Numbers of questions that batches are made of: each of one number of choices, near length and few tokens.

        Args:
            questions: in any order.
            most_tokens: padded tokens of a batch; a question that has more is alone. `micro_batch` holds, too, and a
                question with a premise, whose rows others could share, is alone.
        """
        encoded, of_choices = self.encode(questions), dict[int, list[int]]()
        for number, question in enumerate(encoded):
            of_choices.setdefault(len(question.continuations), []).append(number)
        out: list[list[int]] = []
        for _, numbers in sorted(of_choices.items()):
            some = [encoded[number] for number in numbers]
            for batch in sorted_batches(some, most_tokens, share_prefix=self.share_prefix, buckets=self.buckets):
                size = 1 if some[batch[0]].premise is not None else self.micro_batch or len(batch)
                out += [[numbers[i] for i in batch[at : at + size]] for at in range(0, len(batch), size)]
        return out

    def asked(self, episode: Episode) -> tuple[tuple[Question, ...], ...]:
        """The batches of an episode, each question with its demonstrations in front."""
        if not episode.shown:
            return episode.batches
        pairs = zip(episode.batches, episode.shown, strict=True)
        return tuple(
            tuple(self.after(question, rows) for question, rows in zip(batch, shown, strict=True))
            for batch, shown in pairs
        )

    def after(self, question: Question, rows: Sequence[Question]) -> Question:
        """A question with as many labelled rows in front of it as fit; never itself.

        Raises:
            AbmllError: it does not fit the model by itself.
        """
        with self._naming(question):
            return self.encoder.with_examples(question, others(question, rows))

    def encode(self, questions: Sequence[Question]) -> list[EncodedQuestion]:
        """The token ids of questions.

        Raises:
            AbmllError: one does not fit the model; names its file and line.
        """
        return [self._encode(self.shown(question)) for question in questions]

    def in_pieces(self, questions: Sequence[Question]) -> list[tuple[Question, ...]]:
        """The questions that each question is answered by: itself, or its pieces; errors as `encode`."""
        self.encode(questions)
        return [pieces_of(self.encoder, self.shown(question), self.pieces) for question in questions]

    def shown(self, question: Question) -> Question:
        """A question as it is asked: with `examples` before it, but for itself; one that has some already stays."""
        if not self.examples or isinstance(question, QuestionWithExamples):
            return question
        return QuestionWithExamples.of(question, others(question, self.examples))

    def _encode(self, question: Question) -> EncodedQuestion:
        with self._naming(question):
            encoded = self.encoder(question)
        many = len(question.choices) > MANY_CHOICES if self.share_labels == "auto" else self.share_labels
        if not many or not self.share_prefix:
            return encoded
        premise = None if encoded.premise is None else replace(encoded.premise, tree=True)
        return replace(encoded, tree=True, premise=premise)

    @staticmethod
    @contextmanager
    def _naming(question: Question) -> Iterator[None]:
        """An error inside names the question's file and line."""
        try:
            yield
        except AbmllError as error:
            raise AbmllError(f"{question.location}: {error}" if question.location else str(error)) from error

    def batch(self, questions: Sequence[Question], samples: int = 1, least: int = 1) -> ChoiceBatch:
        """All the questions as one batch, `samples` times over (see `ChoiceBatch.repeat`).

        On a CUDA device it arrives by one copy that nothing waits for.
        """
        return self.padded(self.encode(questions), samples, least)

    def padded(self, encoded: Sequence[EncodedQuestion], samples: int = 1, least: int = 1) -> ChoiceBatch:
        """As `batch`, of questions that are encoded already."""
        limit = self.encoder.limit
        batch = collate(encoded, share_prefix=self.share_prefix, buckets=self.buckets, limit=limit, least=least)
        batch = batch if samples == 1 else batch.repeat(samples)
        if self.device.type != "cuda":
            return batch.to(self.device)
        return batch.pin_memory().to(self.device, non_blocking=True)


def others(question: Question, rows: Sequence[Question]) -> list[Question]:
    """The rows that ask something else than a question, whatever their ids and answers are: none shows it its answer.

    >>> rows = [Question(str(i), "Good?", ("yes", "no"), i, f"text {i}") for i in (0, 1)]
    >>> [row.id for row in others(Question("x", "Good?", ("yes", "no"), None, "text 1"), rows)]
    ['0']
    """
    asked = (question.context, question.question, question.choices)
    return [row for row in rows if (row.context, row.question, row.choices) != asked]
