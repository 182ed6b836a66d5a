"""ChoiceBatch: encoded questions as padded tensors in one buffer, ready for one forward pass."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from abmll.prompts.branches import Branches, fed_tokens, side_by_side, tree
from abmll.prompts.encode import EncodedQuestion


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
    """

    rows: int
    columns: int
    reads: int
    targets: int
    questions: int
    choices: int
    causal: bool


@dataclass(frozen=True, eq=False)
class ChoiceBatch:
    """B questions of up to K choices as N rows of T tokens, padded on the right.

    A row is a prompt, then its choices, side by side or as a tree (`abmll.prompts.branches`). What is asked of the
    model is the hidden state at P places, and of the logits there the M answer tokens: the first token of every choice
    is read from the prompt's last place, all others from the token before. All tensors are parts of one buffer, so a
    batch moves as one copy.

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
        target_choice: the choice b * K + k that it belongs to; B * K where padded.
        lengths: what each choice's log-probability is divided by; 1 where there is no choice.
        choice_mask: which choices exist.
        answers: right choices, -1 if unknown.
        causal: whether every row is one plain sequence, a prompt and at most one choice: no mask is needed then.
        buffer: the memory of all the tensors above.

    >>> question = EncodedQuestion((5, 6, 7), ((8, 9), (4,)), (2.0, 1.0), answer=0, key=3, truncated=False)
    >>> batch = collate([question])
    >>> batch.input_ids.tolist(), batch.read_column.tolist()
    ([[5, 6, 7, 8]], [2, 3])
    >>> batch.target_read.tolist(), batch.target_token.tolist(), batch.target_choice.tolist()
    ([0, 1, 0], [8, 9, 4], [0, 0, 1])
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
    causal: bool
    buffer: UInt8[Tensor, " bytes"] = field(repr=False)

    @property
    def questions(self) -> int:
        """B."""
        return self.answers.shape[0]

    @property
    def signature(self) -> BatchSignature:
        """The batch's bucket: batches of one signature can be copied into each other."""
        (rows, columns), (questions, choices) = self.input_ids.shape, self.lengths.shape
        reads, targets = self.read_row.shape[0], self.target_read.shape[0]
        return BatchSignature(rows, columns, reads, targets, questions, choices, self.causal)

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
        n, _, p, m, b, k, causal = self.signature
        groups = torch.arange(samples, device=self.buffer.device)[:, None]
        shifted = {
            "read_row": self.read_row + groups * n,
            "target_read": self.target_read + groups * p,
            "target_choice": torch.where(
                self.target_choice < b * k, self.target_choice + groups * b * k, samples * b * k
            ),
        }
        sizes = BatchSignature(samples * n, self.input_ids.shape[1], samples * p, samples * m, samples * b, k, causal)
        out = _cut(torch.empty(_size(sizes), dtype=torch.uint8, device=self.buffer.device), sizes)
        for name in _LAYOUT:
            value: Tensor = getattr(self, name)
            place = getattr(out, name).view(samples, *value.shape)
            place.copy_(shifted[name].view_as(place) if name in shifted else value)
        return out


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
    "lengths": (torch.float32, _CHOICE),
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


def bucket(size: int) -> int:
    """The next of 8, 16, 24, 32, 48, 64, 96, 128, 192, ...: few sizes, at most half as large again from 16 on.

    >>> [bucket(size) for size in (1, 9, 24, 33, 49, 97, 300)]
    [8, 16, 24, 48, 64, 128, 384]
    """
    power = max(8, 1 << (size - 1).bit_length())
    between = 3 * power // 4
    return between if power > 16 and size <= between else power


def collate(
    questions: Sequence[EncodedQuestion],
    *,
    share_prefix: bool = True,
    buckets: bool = False,
    limit: int | None = None,
    least: int = 1,
) -> ChoiceBatch:
    """Pad encoded questions into one batch, on the CPU.

    Args:
        questions: at least one.
        share_prefix: one row per question; else one row per choice. Where a choice is one token, as letters are,
            nothing of it is fed in, and a question of such choices has one row in any case.
        buckets: pad T and K on to `bucket` sizes, P and M to one of fewer still. N and B stay as they are.
        limit: the model's number of positions, beyond which no bucket pads rows whose positions the model counts.
        least: buckets of fewer T, P or M are not used.
    """
    rows = _rows(questions, share_prefix)
    sizes = _widened(_signature(rows), limit, least) if buckets else _signature(rows)
    batch = _cut(torch.zeros(_size(sizes), dtype=torch.uint8), sizes)
    _fill_rows(batch, rows)
    _fill_targets(batch, rows)
    _fill_questions(batch, questions)
    return batch


def _widened(sizes: BatchSignature, limit: int | None, least: int) -> BatchSignature:
    columns = bucket(max(sizes.columns, least))
    if limit is not None and sizes.causal:
        columns = max(sizes.columns, min(columns, limit))
    places = _few(max(sizes.reads, sizes.targets, least))  # that the head reads costs little, another shape a lot
    return sizes._replace(columns=columns, reads=places, targets=places, choices=bucket(sizes.choices))


def _few(size: int) -> int:
    """16, 64, 256 or, beyond, a bucket: where the head reads so much, reading more costs more than another shape.

    >>> [_few(size) for size in (1, 17, 65, 257)]
    [16, 64, 256, 384]
    """
    return next((few for few in (16, 64, 256) if size <= few), bucket(size))


@dataclass(frozen=True, slots=True)
class _Row:
    """A prompt, and choices after it.

    Attributes:
        question: its place in the batch, B of them.
        asked: the question.
        first: number of the first choice of this row.
        choices: those of this row.
        branches: how they go on from the prompt.
        counter: place of the first token after the prompt in the unpadded question.
    """

    question: int
    asked: EncodedQuestion
    first: int
    choices: tuple[tuple[int, ...], ...]
    branches: Branches
    counter: int

    @property
    def start(self) -> int:
        """Columns of the prompt."""
        return len(self.asked.prefix)

    @property
    def width(self) -> int:
        """Columns of the row, without padding."""
        return self.start + len(self.branches.tokens)


def _rows(questions: Sequence[EncodedQuestion], share_prefix: bool) -> list[_Row]:
    """All rows of a batch, without padding."""
    rows = []
    for b, asked in enumerate(questions):
        choices, counter = asked.continuations, len(asked.prefix)
        if _in_one_row(asked, share_prefix):
            rows.append(_Row(b, asked, 0, choices, tree(choices) if asked.tree else side_by_side(choices), counter))
            continue
        for k, choice in enumerate(choices):
            rows.append(_Row(b, asked, k, (choice,), side_by_side((choice,)), counter))
            counter += len(choice) - 1
    return rows


def _signature(rows: Sequence[_Row]) -> BatchSignature:
    """Sizes without any bucket."""
    return BatchSignature(
        rows=len(rows),
        columns=max(row.width for row in rows),
        reads=sum(len(row.branches.tokens) + 1 for row in rows),
        targets=sum(len(row.branches.reads) for row in rows),
        questions=rows[-1].question + 1,
        choices=max(row.first + len(row.choices) for row in rows),
        causal=all(row.branches.is_chain for row in rows),
    )


def _in_one_row(question: EncodedQuestion, share_prefix: bool) -> bool:
    return share_prefix or all(len(tokens) == 1 for tokens in question.continuations)


def _fill_rows(batch: ChoiceBatch, rows: Sequence[_Row]) -> None:
    """What is fed in: a prompt's tokens, then those of its choices."""
    ids, positions, places = batch.input_ids.numpy(), batch.position_ids.numpy(), batch.token_index.numpy()
    reach = batch.reach.numpy()
    for i, row in enumerate(rows):
        start, width, branches = row.start, row.width, row.branches
        ids[i, :start], ids[i, start:width] = row.asked.prefix, branches.tokens
        positions[i, :start], positions[i, start:width] = np.arange(start), start + branches.depth
        places[i, :start], places[i, start:width] = np.arange(start), row.counter + np.arange(width - start)
        reach[i, :start], reach[i, start:width] = width, start + branches.reach
    batch.row_keys.numpy()[:] = [row.asked.key for row in rows]


def _fill_targets(batch: ChoiceBatch, rows: Sequence[_Row]) -> None:
    """From a row's last prompt token on, every token fed in predicts another one."""
    choices = batch.lengths.shape[1]
    batch.target_choice.fill_(batch.lengths.numel())
    reads = (batch.read_row.numpy(), batch.read_column.numpy())
    targets = (batch.target_read.numpy(), batch.target_token.numpy(), batch.target_choice.numpy())
    read = target = 0
    for i, row in enumerate(rows):
        count, total = len(row.branches.tokens) + 1, len(row.branches.reads)
        here = slice(target, target + total)
        reads[0][read : read + count] = i
        reads[1][read : read + count] = np.arange(row.start - 1, row.width)
        numbers = np.repeat(np.arange(len(row.choices)), [len(choice) for choice in row.choices])
        targets[0][here] = read + row.branches.reads
        targets[1][here] = np.fromiter(chain(*row.choices), np.int64, total)
        targets[2][here] = row.question * choices + row.first + numbers
        read, target = read + count, target + total


def _fill_questions(batch: ChoiceBatch, questions: Sequence[EncodedQuestion]) -> None:
    lengths, real = batch.lengths.fill_(1.0).numpy(), batch.choice_mask.numpy()
    for b, question in enumerate(questions):
        lengths[b, : len(question.lengths)] = question.lengths
        real[b, : len(question.lengths)] = True
    batch.answers.numpy()[:] = [q.answer for q in questions]


def sorted_batches(
    questions: Sequence[EncodedQuestion], max_tokens: int, *, share_prefix: bool = True, buckets: bool = False
) -> Iterator[list[int]]:
    """Indices of questions in batches of similar length with at most `max_tokens` padded tokens each (one at least)."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].tokens, i))
    batch: list[int] = []
    rows = width = 0
    for i in order:
        here = _rows_and_width(questions[i], share_prefix)
        rows, width = rows + here[0], max(width, here[1])
        if batch and rows * (bucket(width) if buckets else width) > max_tokens:
            yield batch
            batch, (rows, width) = [], here
        batch.append(i)
    if batch:
        yield batch


def _rows_and_width(question: EncodedQuestion, share_prefix: bool) -> tuple[int, int]:
    """Rows of a question, and how many columns the widest of them takes."""
    choices = question.continuations
    if _in_one_row(question, share_prefix):
        return 1, len(question.prefix) + fed_tokens(choices, question.tree)
    return len(choices), len(question.prefix) + max(len(choice) - 1 for choice in choices)
