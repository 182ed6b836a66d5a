"""Questions -> batches on the model's device, in micro-batches where memory asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from abmll.tasks.batches import ChoiceBatch, collate
from abmll.tasks.prompts import Encoder
from abmll.tasks.question import Question


@dataclass(frozen=True)
class Batcher:
    """Encodes and pads questions.

    Attributes:
        encoder: question -> token ids, cached.
        device: where batches go.
        micro_batch: most questions of one forward and backward pass; None: the whole batch at once.
        share_prefix: see `collate`.
    """

    encoder: Encoder
    device: torch.device
    micro_batch: int | None = None
    share_prefix: bool = True

    def __call__(self, questions: Sequence[Question]) -> list[ChoiceBatch]:
        """The batches of one gradient step: one, or as many as `micro_batch` makes."""
        size = self.micro_batch or max(1, len(questions))
        return [self.batch(questions[i : i + size]) for i in range(0, len(questions), size)]

    def batch(self, questions: Sequence[Question]) -> ChoiceBatch:
        """All the questions as one batch."""
        encoded = [self.encoder(question) for question in questions]
        letter = self.encoder.kind == "letter"
        return collate(encoded, share_prefix=self.share_prefix, letter=letter).to(self.device)
