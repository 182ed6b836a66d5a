"""ChoiceBatch: encoded questions as padded tensors in one buffer, ready for one forward pass; made by `collate`."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


class BatchSignature(NamedTuple):
    """All that decides the shapes of a batch and the operations on it, so what a captured graph is good for.

    Attributes:
        rows: N.
        columns: T.
        reads: P, places that answer tokens are read from.
        targets: M, answer tokens.
        questions: B.
        choices: K.
        causal: whether every row is one plain sequence.
        premises: Q, different premises of the questions; 0 where nothing is subtracted.
    """

    rows: int
    columns: int
    reads: int
    targets: int
    questions: int
    choices: int
    causal: bool
    premises: int = 0


@dataclass(frozen=True, eq=False)
class ChoiceBatch:
    """B questions of up to K choices as N rows of T tokens, padded on the right.

    A row is a prompt, then its choices, side by side or as a tree (`abmll.prompts.branches`). What is asked of the
    model is the hidden state at P places, and of the logits there the M answer tokens: the first token of every choice
    is read from the prompt's last place, all others from the token before. All tensors are parts of one buffer, so a
    batch moves as one copy.

    Where the questions have premises, the Q different ones are rows like any others, after those of the questions; so
    questions with the same choices share one.

    Attributes:
        input_ids: token ids; 0 where padded.
        position_ids: position of each token; choices all go on from the prompt. 0, 1, ... where `causal`.
        reach: the first column after a token from which it is not seen any more: a token of a prompt is seen to the
            end of its row, one of a choice by what goes on from it; 0 for padding, which nothing sees.
        token_index: place of a token in its unpadded question, for noise counters.
        row_keys: question key of each row, for noise counters.
        read_row, read_column: places from which answer tokens are read, each once; (0, 0) where padded.
        target_read: which of these places predicts each answer token.
        target_token: the token.
        target_choice: the choice b * K + k that it belongs to, or (B + q) * K + k of premise q; (B + Q) * K where
            padded.
        lengths: what each choice's log-probability is divided by; 1 where there is no choice.
        premise_lengths: the same after a premise.
        premise_of: the premise of each question; 0 where there are none.
        choice_mask: which choices exist.
        answers: right choices, -1 if unknown.
        causal: whether every row is one plain sequence, a prompt and at most one choice: no mask is needed then.
        buffer: the memory of all the tensors above.
    """

    input_ids: Int[Tensor, "N T"]
    position_ids: Int[Tensor, "N T"]
    reach: Int[Tensor, "N T"]
    token_index: Int[Tensor, "N T"]
    row_keys: Int[Tensor, " N"]
    read_row: Int[Tensor, " P"]
    read_column: Int[Tensor, " P"]
    target_read: Int[Tensor, " M"]
    target_token: Int[Tensor, " M"]
    target_choice: Int[Tensor, " M"]
    answers: Int[Tensor, " B"]
    lengths: Float[Tensor, "B K"]
    choice_mask: Bool[Tensor, "B K"]
    premise_lengths: Float[Tensor, "Q K"]
    premise_of: Int[Tensor, " B"]
    causal: bool
    buffer: UInt8[Tensor, " bytes"] = field(repr=False)

    @property
    def questions(self) -> int:
        """B."""
        return self.answers.shape[0]

    @property
    def premises(self) -> int:
        """Q."""
        return self.premise_lengths.shape[0]

    @property
    def slots(self) -> int:
        """(B + Q) * K: choices that answer tokens may belong to."""
        return self.lengths.numel() + self.premise_lengths.numel()

    @property
    def signature(self) -> BatchSignature:
        """The batch's bucket: batches of one signature can be copied into each other."""
        (rows, columns), (questions, choices) = self.input_ids.shape, self.lengths.shape
        reads, targets = self.read_row.shape[0], self.target_read.shape[0]
        return BatchSignature(rows, columns, reads, targets, questions, choices, self.causal, self.premises)

    @classmethod
    def zeros(cls, sizes: BatchSignature, device: torch.device | str = "cpu") -> "ChoiceBatch":
        """A batch of these sizes, to be filled."""
        return _cut(torch.zeros(_size(sizes), dtype=torch.uint8, device=device), sizes)

    def attention_mask(self, window: int | None = None) -> Bool[Tensor, "N 1 T T"]:
        """Who may look at whom: earlier tokens of the prompt or of its own choices; padding at itself only.

        Args:
            window: tokens look back at less than this many positions, for models with a sliding window.
        """
        columns = torch.arange(self.reach.shape[1], device=self.reach.device)
        allowed = (columns[:, None] >= columns) & (columns[:, None] < self.reach[:, None, :])
        if window is not None:
            allowed = allowed & (self.position_ids[:, :, None] - self.position_ids[:, None, :] < window)
        return (allowed | (columns[:, None] == columns))[:, None]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ChoiceBatch":
        """The same batch on another device; one copy, which overlaps with the host's work if the batch is pinned."""
        return _cut(self.buffer.to(device, non_blocking=non_blocking), self.signature)

    def pin_memory(self) -> "ChoiceBatch":
        """The same batch in page-locked memory, from which CUDA devices copy without waiting."""
        return _cut(self.buffer.pin_memory(), self.signature)

    def copy_(self, other: "ChoiceBatch") -> "ChoiceBatch":
        """Overwrite this batch in place with another of the same signature, from any device; returns this one.

        Raises:
            ValueError: the signatures differ.
        """
        if self.signature != other.signature:
            raise ValueError(f"a batch of {other.signature} does not fit into one of {self.signature}")
        self.buffer.copy_(other.buffer, non_blocking=self.buffer.is_cuda)
        return self

    def repeat(self, samples: int) -> "ChoiceBatch":
        """This batch `samples` times, one group of rows after the other: S * N rows and S * B questions.

        A group's questions, reads, targets and choices keep their order, so scores of shape (S * B, K) are those of
        group s at [s * B : (s + 1) * B]. Cheapest before the batch goes to the device.
        """
        n, _, p, m, b, k, causal, q = self.signature
        groups = torch.arange(samples, device=self.buffer.device)[:, None]
        shifted = {
            "read_row": self.read_row + groups * n,
            "target_read": self.target_read + groups * p,
            "target_choice": self._choices_of(groups, samples),
            "premise_of": self.premise_of + groups * q,
        }
        sizes = BatchSignature(
            samples * n,
            self.input_ids.shape[1],
            samples * p,
            samples * m,
            samples * b,
            k,
            causal,
            samples * q,
        )
        out = ChoiceBatch.zeros(sizes, self.buffer.device)
        for name in _LAYOUT:
            value: Tensor = getattr(self, name)
            place = getattr(out, name).view(samples, *value.shape)
            place.copy_(shifted[name].view_as(place) if name in shifted else value)
        return out

    def _choices_of(self, groups: Int[Tensor, "S 1"], samples: int) -> Int[Tensor, "S M"]:
        """`target_choice` of each group: first all questions' choices, then all premises', last the padding."""
        asked, premises, choice = self.lengths.numel(), self.premise_lengths.numel(), self.target_choice
        of_premise = choice + (samples - 1) * asked + groups * premises
        of_group = torch.where(choice < asked, choice + groups * asked, of_premise)
        return torch.where(choice < self.slots, of_group, samples * self.slots)


_ROW, _TOKEN, _READ, _TARGET = ("rows",), ("rows", "columns"), ("reads",), ("targets",)
_QUESTION, _CHOICE = ("questions",), ("questions", "choices")
_LAYOUT: dict[str, tuple[torch.dtype, tuple[str, ...]]] = {  # the widest type first, so that all views are aligned
    "input_ids": (torch.int64, _TOKEN),
    "position_ids": (torch.int64, _TOKEN),
    "reach": (torch.int64, _TOKEN),
    "token_index": (torch.int64, _TOKEN),
    "row_keys": (torch.int64, _ROW),
    "read_row": (torch.int64, _READ),
    "read_column": (torch.int64, _READ),
    "target_read": (torch.int64, _TARGET),
    "target_token": (torch.int64, _TARGET),
    "target_choice": (torch.int64, _TARGET),
    "answers": (torch.int64, _QUESTION),
    "premise_of": (torch.int64, _QUESTION),
    "lengths": (torch.float32, _CHOICE),
    "premise_lengths": (torch.float32, ("premises", "choices")),
    "choice_mask": (torch.bool, _CHOICE),
}


def _shape(name: str, sizes: BatchSignature) -> tuple[int, ...]:
    return tuple(getattr(sizes, dimension) for dimension in _LAYOUT[name][1])


def _size(sizes: BatchSignature) -> int:
    """Bytes of a batch."""
    return sum(math.prod(_shape(name, sizes)) * dtype.itemsize for name, (dtype, _) in _LAYOUT.items())


def _cut(buffer: UInt8[Tensor, " bytes"], sizes: BatchSignature) -> ChoiceBatch:
    """A batch whose tensors are parts of the buffer."""
    views, start = {}, 0
    for name, (dtype, _) in _LAYOUT.items():
        shape = _shape(name, sizes)
        end = start + math.prod(shape) * dtype.itemsize
        views[name] = buffer[start:end].view(dtype).view(shape)
        start = end
    return ChoiceBatch(**views, causal=sizes.causal, buffer=buffer)
