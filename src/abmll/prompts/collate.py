"""Encoded questions -> ChoiceBatch: where each token goes, to which sizes rows are padded, what is batched together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from abmll.prompts.batches import BatchSignature, ChoiceBatch
from abmll.prompts.branches import Branches, fed_tokens, side_by_side, tree
from abmll.prompts.encode import EncodedQuestion


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

    >>> question = EncodedQuestion((5, 6, 7), ((8, 9), (4,)), (2.0, 1.0), answer=0, key=3, truncated=False)
    >>> batch = collate([question])
    >>> batch.input_ids.tolist(), batch.read_column.tolist()
    ([[5, 6, 7, 8]], [2, 3])
    >>> batch.target_read.tolist(), batch.target_token.tolist(), batch.target_choice.tolist()
    ([0, 1, 0], [8, 9, 4], [0, 0, 1])
    """
    premises = _premises(questions)
    rows = _rows((*questions, *premises), share_prefix)
    sizes = _signature(rows)._replace(questions=len(questions), premises=len(premises))
    sizes = _widened(sizes, limit, least) if buckets else sizes
    batch = ChoiceBatch.zeros(sizes)
    _fill_rows(batch, rows)
    _fill_targets(batch, rows)
    _fill_questions(batch, questions, premises)
    return batch


def _premises(questions: Sequence[EncodedQuestion]) -> list[EncodedQuestion]:
    """The different premises; a question without one, among others, is a mistake of the caller."""
    premises = list(dict.fromkeys(question.premise for question in questions))
    if None in premises and len(premises) > 1:
        raise ValueError("some questions have a premise and some have none: they were encoded by different settings")
    return [premise for premise in premises if premise is not None]


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
        question: its place in the batch, of B questions and, after them, Q premises.
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
    def scored(self) -> np.ndarray | bool:
        """Of the tokens of its choices, one after the other: those that are no given ones."""
        given = self.asked.given[self.first :]
        if not given:
            return True
        return np.concatenate([np.arange(len(c)) >= g for c, g in zip(self.choices, given, strict=False)])

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
    """From a row's last prompt token on, every token fed in predicts another one; what is given counts as padding."""
    choices = batch.lengths.shape[1]
    batch.target_choice.fill_(batch.slots)
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
        targets[2][here] = np.where(row.scored, row.question * choices + row.first + numbers, batch.slots)
        read, target = read + count, target + total


def _fill_questions(
    batch: ChoiceBatch, questions: Sequence[EncodedQuestion], premises: Sequence[EncodedQuestion]
) -> None:
    lengths, real = batch.lengths.fill_(1.0).numpy(), batch.choice_mask.numpy()
    for b, question in enumerate(questions):
        lengths[b, : len(question.lengths)] = question.lengths
        real[b, : len(question.lengths)] = True
    of_premises = batch.premise_lengths.fill_(1.0).numpy()
    for q, premise in enumerate(premises):
        of_premises[q, : len(premise.lengths)] = premise.lengths
    number = {premise: i for i, premise in enumerate(premises)}
    batch.answers.numpy()[:] = [q.answer for q in questions]
    batch.premise_of.numpy()[:] = [0 if q.premise is None else number[q.premise] for q in questions]


def sorted_batches(
    questions: Sequence[EncodedQuestion], max_tokens: int, *, share_prefix: bool = True, buckets: bool = False
) -> Iterator[list[int]]:
    """Indices of questions in batches of similar length with at most `max_tokens` padded tokens each (one at least)."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].tokens, i))
    batch: list[int] = []
    seen: set[EncodedQuestion | None] = set()
    rows = width = 0
    for i in order:
        premise = questions[i].premise
        here = _rows_and_width(questions[i], share_prefix)
        after = (0, 0) if premise is None else _rows_and_width(premise, share_prefix)
        rows, width = rows + here[0] + (0 if premise in seen else after[0]), max(width, here[1], after[1])
        if batch and rows * (bucket(width) if buckets else width) > max_tokens:
            yield batch
            batch, seen, rows, width = [], set(), here[0] + after[0], max(here[1], after[1])
        batch.append(i)
        seen.add(premise)
    if batch:
        yield batch


def _rows_and_width(question: EncodedQuestion, share_prefix: bool) -> tuple[int, int]:
    """Rows of a question, and how many columns the widest of them takes."""
    choices = question.continuations
    if _in_one_row(question, share_prefix):
        return 1, len(question.prefix) + fed_tokens(choices, question.tree)
    return len(choices), len(question.prefix) + max(len(choice) - 1 for choice in choices)
